//! Part "trouble" of chat: `kill -9` while a hundred pairs talk, again and again; afterwards both sides have the same
//! history, nothing is lost, nothing stands twice, and the counts are right.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use futures::future::join_all;
use serde_json::{Value, json};
use tests::harness::{Person, Server, Settings, number};

const PAIRS: u32 = 100;
const KILLS: u64 = 5;
/// Messages from one kill to the next.
const BETWEEN: u64 = 500;

/// What one of the two did, as far as it was answered.
#[derive(Default)]
struct Done {
    said: Vec<(String, String)>,
    read: u64,
}

/// Talks until told to stop: says something under a `ref` until it is accepted, and marks what is there as read.
async fn talk(who: Person, with: String, stop: &AtomicBool, said_so_far: &AtomicU64) -> (String, Done) {
    let (_, opened) = who.insist("/v1/conversations", &json!({ "with": with })).await;
    // 202 names the command, and the conversation beside it.
    let id = opened["conversation_id"].as_str().or(opened["id"].as_str()).expect("an id").to_owned();
    let mut done = Done::default();
    let mut n = 0;
    while !stop.load(Ordering::SeqCst) {
        let content = format!("{} says {n}", who.name);
        let body = json!({ "content": content, "ref": n.to_string() });
        let (_, said) = who.insist(&format!("/v1/conversations/{id}/messages"), &body).await;
        said_so_far.fetch_add(1, Ordering::SeqCst);
        done.said.push((said["id"].as_str().expect("an id").to_owned(), content));
        if n % 4 == 3
            && let Some(seq) = said["seq"].as_u64()
        {
            who.insist(&format!("/v1/conversations/{id}/read"), &json!({ "up_to": seq })).await;
            done.read = done.read.max(seq);
        }
        n += 1;
    }
    (id, done)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_pairs_lose_nothing_and_count_right() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings::chatting().with(["limits.door.concurrent_requests=1000"]).on_fixed_ports();
    let mut server = Server::start(&folder.path().join("data"), settings);
    let (stop, said_so_far) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut people = Vec::new();
    for n in 0..PAIRS {
        let business = format!("business:b{n}");
        people.push((Person::new(&server, &business), number(n)));
        people.push((Person::new(&server, &number(n)), business));
    }
    let talking = join_all(people.iter().map(|(who, with)| talk(who.clone(), with.clone(), &stop, &said_so_far)));
    let killing = async {
        for kill in 1..=KILLS {
            tests::harness::eventually("them to talk on", async || {
                (said_so_far.load(Ordering::SeqCst) >= kill * BETWEEN).then_some(())
            })
            .await;
            server.kill9();
            server = server.restart();
        }
        stop.store(true, Ordering::SeqCst);
        server
    };
    let (done, server) = tokio::join!(talking, killing);
    let mut total = 0;
    for (pair, people) in done.chunks(2).zip(people.chunks(2)) {
        let [(id, hers), (other, his)] = pair else { panic!("pairs") };
        let [(she, _), (he, _)] = people else { panic!("pairs") };
        assert_eq!(id, other, "P2");
        // What was accepted a moment ago may still be on its way.
        let all = hers.said.len() + his.said.len();
        let thread = tests::harness::eventually("all of it to be recorded", async || {
            let thread = she.thread(id, "oldest", 500).await;
            (thread.len() >= all).then_some(thread)
        })
        .await;
        let pairs = |rows: &[Value]| -> Vec<(String, String)> {
            rows.iter().map(|row| (text(row, "id"), text(row, "content"))).collect()
        };
        let (as_she, as_he) = (pairs(&thread), pairs(&he.thread(id, "oldest", 500).await));
        assert_eq!(as_she, as_he, "both read the same history");
        let mut seen = HashMap::new();
        as_she.iter().for_each(|(message, content)| *seen.entry((message, content)).or_insert(0) += 1);
        for (message, content) in hers.said.iter().chain(&his.said) {
            assert_eq!(seen.get(&(message, content)), Some(&1), "{content} is there once");
        }
        assert_eq!(as_she.len(), all, "and nothing else is");
        let seqs: Vec<u64> = thread.iter().map(|row| row["seq"].as_u64().unwrap()).collect();
        assert_eq!(seqs, (1..=all as u64).collect::<Vec<_>>(), "numbers are dense");
        // Each side's messages stand in the order it said them in.
        for (who, said) in [(she, &hers.said), (he, &his.said)] {
            let own: Vec<_> = thread.iter().filter(|row| row["from"] == *who.name).map(|row| text(row, "id")).collect();
            assert_eq!(own, said.iter().map(|(message, _)| message.clone()).collect::<Vec<_>>());
        }
        for (who, mark) in [(she, hers.read), (he, his.read)] {
            let row = who.row(id).await;
            let read = row["read_seq"].as_u64().unwrap();
            assert!(read >= mark, "a mark that was answered stands: {row}");
            let unread = thread.iter().filter(|m| m["from"] != *who.name && m["seq"].as_u64() > Some(read)).count();
            assert_eq!(row["unread"], unread, "{row}");
        }
        total += all;
    }
    assert!(total as u64 >= KILLS * BETWEEN, "they were busy: {total}");
    // Commands are no messages, and repeats are counted apart.
    tests::harness::eventually("balanced books", async || {
        let (_, books) = server.admin("GET", "/admin/v1/books", None).await;
        (books["balanced"] == true && books["total"]["accepted"] == total).then_some(())
    })
    .await;
}

fn text(row: &Value, field: &str) -> String {
    row[field].as_str().expect("text").to_owned()
}
