//! What a chat message costs the history, in steady state: counted where it is asked, in each process.

use std::collections::BTreeMap;

use ops::compose::Role;
use serde_json::json;
use tests::harness::{
    Phone,
    cluster::{Cluster, small},
    eventually, number,
};

/// Messages of one side that go out together.
const TOGETHER: usize = 5;
const ROUNDS: usize = 30;
/// How often it is measured, at most: what a machine's pause has come again (a look, an acknowledgement) is no message's cost.
const TIMES: usize = 3;
/// Marks of one message each.
const MARKS: usize = 20;
/// What is asked from time to time, whatever is said.
const AT_TIMES: [&str; 5] = ["Epoch", "DueFrom", "Buckets", "Counts", PROBE];
/// What a process asks to know whether the history answers.
const PROBE: &str = "DeadNames";

/// Rows written, requests that wrote them, and reads by statement.
type Asked = BTreeMap<String, f64>;

async fn asked(cluster: &Cluster, role: Role) -> Asked {
    let text = cluster.metrics(cluster.nth(role, 0)).await;
    let named = |line: &str| {
        let (name, value) = line.strip_prefix("esh3ar_history_")?.rsplit_once(' ')?;
        let name = name.split('"').nth(1).or_else(|| name.split(['_', '{']).next())?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    text.lines().filter_map(named).collect()
}

/// What the owner asked for, once its process has told of so many rows more than `before`, and nothing comes after them: it
/// tells its counts once a second.
async fn told(cluster: &Cluster, before: f64, rows: f64) -> Asked {
    let (mut last, mut same) = (Asked::new(), 0);
    eventually("the counts to be told", async || {
        let now = asked(cluster, Role::Pipeline).await;
        let is_same = ["rows", "States"].iter().all(|what| now.get(*what) == last.get(*what));
        same = if is_same { same + 1 } else { 0 };
        last = now;
        (last["rows"] - before >= rows && same > 100).then(|| last.clone())
    })
    .await
}

/// Each side says so much at once, waits until that stands, and until the other side's device has it.
async fn talk(sides: &mut [Phone; 2], conversation: &serde_json::Value, rounds: std::ops::Range<usize>) {
    for round in rounds {
        for side in 0..2 {
            let refs: Vec<_> = (0..TOGETHER).map(|n| format!("{side}-{round}-{n}")).collect();
            for client_ref in &refs {
                let content = format!("message {client_ref}");
                let frame =
                    json!({ "type": "send", "ref": client_ref, "conversation_id": conversation, "content": content });
                sides[side].say(frame).await;
            }
            for client_ref in &refs {
                // They may be answered in any order.
                let answers =
                    |frame: &serde_json::Value| frame["ref"] == client_ref.as_str() && frame["type"] == "accepted";
                if !sides[side].frames.iter().any(answers) {
                    sides[side].accepted(client_ref).await;
                }
            }
            let last = format!("message {}", refs[TOGETHER - 1]);
            sides[1 - side].until_item("the last of them", |item| item["content"] == last.as_str()).await;
        }
    }
}

/// The business user says something, and the phone reads up to it: until that was told.
async fn read(sides: &mut [Phone; 2], conversation: &serde_json::Value, round: usize) {
    let [phone, desk] = sides;
    let client_ref = format!("read-{round}");
    desk.say(json!({ "type": "send", "ref": client_ref, "conversation_id": conversation, "content": client_ref }))
        .await;
    let id = desk.accepted(&client_ref).await;
    let item = phone.until_item("what it reads", |item| item["id"] == id.as_str()).await;
    phone.say(json!({ "type": "read", "conversation_id": conversation, "up_to": item["seq"] })).await;
    let told = |frame: &serde_json::Value| {
        frame["type"] == "status" && frame["status"] == "read" && frame["id"] == id.as_str()
    };
    if !desk.frames.iter().any(told) {
        desk.until_frame("the tick", told).await;
    }
}

/// What is wrong with what a message cost its conversation's owner.
fn wrong(owner: &Asked) -> Option<String> {
    let names = owner.get("Spots").copied().unwrap_or_default();
    if names > 1.1 {
        return Some(format!("the owner looks once for the name of a message, not {names} times"));
    }
    let not_reads = ["rows", "requests", "rounds", "Spots"];
    let others =
        owner.iter().filter(|(what, _)| !AT_TIMES.contains(&what.as_str()) && !not_reads.contains(&what.as_str()));
    let others: f64 = others.map(|(_, n)| n).sum();
    if others > 0.1 {
        return Some(format!("the owner reads nothing else for a message: {others} {owner:?}"));
    }
    (owner["rows"] > 12.0).then(|| format!("rows of a message: {}", owner["rows"]))
}

/// Of a busy conversation its owner reads neither the row nor turns nor counts; what it looks for is whether a message's name
/// (its `ref`) was said before. A mark is told to the messages that it is about, whatever the length of the thread before them.
#[tokio::test(flavor = "multi_thread")]
async fn a_chat_message_costs_its_rows_and_one_look_for_its_name_and_a_mark_what_it_tells() {
    let cluster = Cluster::start(|folder| {
        let mut plan = small(folder);
        plan.set.push("limits.door.person_per_minute=1000000".to_owned());
        plan.set.push("limits.door.person_per_hour=1000000".to_owned());
        plan
    })
    .await;
    let gateway = cluster.nth(Role::Gateway, 0);
    let url = format!("http://{}", cluster.members[gateway].listen());
    let phone = cluster.phone_at(gateway, &number(1));
    let desk = Phone::at(&url, cluster.token_of("acme", "sara"), "desk");
    let mut sides = [phone, desk];
    for side in &mut sides {
        side.insist().await;
    }
    sides[0].say(json!({ "type": "send", "ref": "first", "to": "business:sara", "content": "hello" })).await;
    let id = sides[0].accepted("first").await;
    let item = sides[1].until_item("the first", |item| item["id"] == id.as_str()).await;
    let conversation = item["conversation_id"].clone();
    talk(&mut sides, &conversation, 0..5).await;

    let roles = [("pipeline", Role::Pipeline), ("gateway", Role::Gateway)];
    let messages = (ROUNDS * TOGETHER * 2) as f64;
    let mut whys = Vec::new();
    for time in 0..TIMES {
        let mut before = Vec::new();
        for (_, role) in roles {
            before.push(asked(&cluster, role).await);
        }
        let first = 5 + time * ROUNDS;
        talk(&mut sides, &conversation, first..first + ROUNDS).await;
        // Every message has rows of its own; those about many at once are fewer where more come together.
        told(&cluster, before[0]["rows"], 4.0 * messages).await;
        let mut costs = Vec::new();
        for ((name, role), before) in roles.into_iter().zip(&before) {
            let now = asked(&cluster, role).await;
            let cost: Asked = now
                .into_iter()
                .map(|(what, n)| (what.clone(), (n - before.get(&what).unwrap_or(&0.0)) / messages))
                .collect();
            println!("{name}, for each of {messages} messages:");
            cost.iter().filter(|(_, n)| **n > 0.0).for_each(|(what, n)| println!("  {what} {n:.2}"));
            costs.push(cost);
        }
        match wrong(&costs[0]) {
            None => break,
            Some(why) => whys.push(why),
        }
    }
    assert!(whys.len() < TIMES, "{whys:#?}");

    // The first mark is about all of it.
    read(&mut sides, &conversation, 0).await;
    let mut least = f64::INFINITY;
    for time in 0..TIMES {
        let before = told(&cluster, 0.0, 0.0).await;
        for round in 1..=MARKS {
            read(&mut sides, &conversation, time * MARKS + round).await;
        }
        let states = told(&cluster, before["rows"], MARKS as f64).await["States"] - before["States"];
        least = least.min(states / MARKS as f64);
        println!("states read for a mark in a conversation of {messages} messages and more: {least:.2}");
        if least <= 6.0 {
            break;
        }
    }
    assert!(least <= 6.0, "a mark of one message reads the states of {least}");
}
