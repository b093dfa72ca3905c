//! P6, R1, rule 15: unread counts are exact, whatever is repeated, comes late, or is cut off by `kill -9`.

use serde_json::json;
use tests::harness::{Person, Server, Settings, number};

/// What a side has to read, counted from the thread itself.
fn counted(thread: &[serde_json::Value], reader: &str, mark: u64) -> usize {
    let theirs = |row: &&serde_json::Value| row["kind"] == "chat" && row["from"] != reader;
    thread.iter().filter(theirs).filter(|row| row["seq"].as_u64() > Some(mark)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_are_exact_through_repeats_late_marks_and_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings::chatting().on_fixed_ports();
    let mut server = Server::start(&folder.path().join("data"), settings);
    let (sara, phone) = (Person::new(&server, "business:sara"), Person::new(&server, &number(1)));
    let id = sara.open(&number(1)).await;
    let (messages, read) = (format!("/v1/conversations/{id}/messages"), format!("/v1/conversations/{id}/read"));
    let mut marks = [0_u64; 2];
    let mut chance = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..6 {
        for n in 0..25 {
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let dice = chance >> 40;
            let side = usize::from(dice.is_multiple_of(2));
            let who = [&sara, &phone][side];
            if dice % 5 < 3 {
                let body = json!({ "content": format!("{round}.{n}"), "ref": format!("{round}.{}", dice % 11) });
                // Some are said again under their own `ref`, some under another's.
                let (status, answer) = who.post(&messages, body.clone()).await;
                assert!([201, 422].contains(&status), "{answer}");
                if dice.is_multiple_of(7) {
                    assert_eq!(who.post(&messages, body).await.0, status);
                }
            } else {
                let last = who.row(&id).await["last_seq"].as_u64().unwrap();
                let up_to = if last == 0 { 0 } else { (dice / 16) % (last + 1) };
                for up_to in [up_to, up_to / 2, up_to] {
                    assert_eq!(who.post(&read, json!({ "up_to": up_to })).await.0, 200);
                }
                marks[side] = marks[side].max(up_to);
            }
        }
        server.kill9();
        server = server.restart();
        let thread = sara.thread(&id, "oldest", 10).await;
        for (side, who) in [&sara, &phone].into_iter().enumerate() {
            let row = who.row(&id).await;
            assert_eq!(row["unread"], counted(&thread, &who.name, marks[side]), "{}: {row}", who.name);
            assert_eq!(who.get("/v1/unread").await["chat"], row["unread"], "the badge says the same");
            let list = who.pages("/v1/conversations?limit=5").await;
            assert_eq!(list[0]["unread"], row["unread"], "and so does the list");
        }
    }
}
