//! R1.2, R9.6, P13: what either side says on a socket reaches all devices of both, in one order; marks, ticks and edits reach
//! whom they concern.

use serde_json::{Value, json};
use tests::harness::{Person, Phone, Server, Settings, number};

const SARA: &str = "business:sara";

/// Chat items of a device, in the order in which they came: number, content, who.
async fn until_items(device: &mut Phone, count: usize) -> Vec<Value> {
    device.until_seen(count).await;
    std::mem::take(&mut device.items)
}

async fn send(device: &mut Phone, client_ref: &str, to: Value, content: &str) {
    let mut frame = json!({ "type": "send", "ref": client_ref, "content": content });
    let key = if to.as_str().is_some_and(|to| to.contains('-')) { "conversation_id" } else { "to" };
    frame[key] = to;
    device.say(frame).await;
}

fn frame_of<'a>(kind: &'a str, field: &'a str, value: Value) -> impl Fn(&Value) -> bool + 'a {
    move |frame| frame["type"] == kind && frame[field] == value
}

#[tokio::test(flavor = "multi_thread")]
async fn all_devices_of_both_sides_see_the_same_order() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::unmetered());
    let mut phone = Phone::new(&server, &number(1), "phone");
    let mut tablet = Phone::new(&server, &number(1), "tablet");
    let mut desk = Phone::new(&server, SARA, "desk");
    let mut laptop = Phone::new(&server, SARA, "laptop");
    for device in [&mut phone, &mut tablet, &mut desk, &mut laptop] {
        device.connect().await.unwrap();
    }
    send(&mut phone, "first", json!(SARA), "from the phone 0").await;
    let first = phone.accepted("first").await;
    let item = desk.until_item("the first message", |item| item["id"] == first.as_str()).await;
    assert_eq!((&item["kind"], &item["seq"]), (&json!("chat"), &json!(1)), "{item}");
    let conversation = item["conversation_id"].clone();
    for n in 1..10 {
        send(&mut phone, &n.to_string(), conversation.clone(), &format!("from the phone {n}")).await;
        send(&mut desk, &n.to_string(), conversation.clone(), &format!("from the desk {n}")).await;
    }
    let mut orders = Vec::new();
    for device in [&mut phone, &mut tablet, &mut desk, &mut laptop] {
        let items = until_items(device, 19).await;
        let seqs: Vec<_> = items.iter().map(|item| item["seq"].as_u64().unwrap()).collect();
        assert_eq!(seqs, (1..=19).collect::<Vec<_>>(), "dense, in order, each once");
        orders.push(items.iter().map(|item| item["content"].clone()).collect::<Vec<_>>());
        assert_eq!((device.repeats, device.repeats_in_session), (0, 0));
    }
    assert!(orders.iter().all(|order| *order == orders[0]), "one order for everyone");
    let by =
        |who: &str| orders[0].iter().filter(|text| text.as_str().unwrap().contains(who)).cloned().collect::<Vec<_>>();
    assert_eq!(by("phone"), (0..10).map(|n| json!(format!("from the phone {n}"))).collect::<Vec<_>>());
    assert_eq!(by("desk"), (1..10).map(|n| json!(format!("from the desk {n}"))).collect::<Vec<_>>());
    // Who reads it over HTTP reads the same.
    let sara = Person::new(&server, SARA);
    let thread = sara.thread(conversation.as_str().unwrap(), "oldest", 7).await;
    assert_eq!(thread.iter().map(|row| row["content"].clone()).collect::<Vec<_>>(), orders[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_s_own_comes_to_one_s_other_devices_with_its_ref_and_is_not_delivered_by_them() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::unmetered());
    let mut phone = Phone::new(&server, &number(1), "phone");
    let mut tablet = Phone::new(&server, &number(1), "tablet");
    phone.connect().await.unwrap();
    tablet.connect().await.unwrap();
    send(&mut phone, "mine", json!(SARA), "hello").await;
    let id = phone.accepted("mine").await;
    for device in [&mut phone, &mut tablet] {
        let item = device.until_item("the own message", |item| item["id"] == id.as_str()).await;
        assert_eq!((&item["ref"], &item["from"]), (&json!("mine"), &json!(number(1))), "{item}");
    }
    // Both devices have acknowledged it, and nobody of the other side has it. A message after it, that the business
    // receives, is settled later: by then nothing has come of the acknowledgements.
    let mine = Person::new(&server, &number(1));
    let mut desk = Phone::new(&server, SARA, "desk");
    assert_eq!(mine.get(&format!("/v1/messages/{id}")).await["status"], "pending");
    desk.connect().await.unwrap();
    desk.until_seen(1).await;
    phone.until_frame("the tick", frame_of("status", "status", json!("delivered"))).await;
    let trace = mine.get(&format!("/v1/messages/{id}/trace")).await;
    let devices: Vec<_> = trace["stages"].as_array().unwrap().iter().filter_map(|s| s["device"].as_str()).collect();
    assert!(!devices.is_empty() && devices.iter().all(|device| *device == "desk"), "{trace}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ticks_and_marks_reach_the_sender_and_one_s_own_other_devices() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::unmetered());
    let mut phone = Phone::new(&server, &number(1), "phone");
    let mut tablet = Phone::new(&server, &number(1), "tablet");
    let mut desk = Phone::new(&server, SARA, "desk");
    for device in [&mut phone, &mut tablet, &mut desk] {
        device.connect().await.unwrap();
    }
    send(&mut desk, "d", json!(number(1)), "may we bring it?").await;
    let id = desk.accepted("d").await;
    phone.until_seen(1).await;
    let tick = desk.until_frame("delivered", frame_of("status", "status", json!("delivered"))).await;
    assert_eq!((&tick["id"], &tick["ref"]), (&json!(id), &json!("d")));
    let item = phone.items[0].clone();
    let (conversation, seq) = (item["conversation_id"].clone(), item["seq"].clone());
    phone.say(json!({ "type": "read", "conversation_id": conversation, "up_to": seq })).await;
    desk.until_frame("read", frame_of("status", "status", json!("read"))).await;
    for device in [&mut tablet, &mut desk] {
        let seen = |frame: &Value| frame["type"] == "read";
        let mark = match device.frames.iter().find(|frame| seen(frame)).cloned() {
            Some(mark) => mark,
            None => device.until_frame("the mark", seen).await,
        };
        assert_eq!((&mark["by"], &mark["up_to"], &mark["conversation_id"]), (&json!(number(1)), &seq, &conversation));
    }
    // By ids it is the same mark (rule 15): everything before it is read too.
    for n in 0..3 {
        send(&mut desk, &format!("m{n}"), conversation.clone(), "more").await;
    }
    phone.until_seen(4).await;
    let last = phone.items.last().unwrap()["id"].clone();
    phone.say(json!({ "type": "read", "ids": [last] })).await;
    desk.until_frame("the mark", |frame| frame["type"] == "read" && frame["up_to"] == 4).await;
    let sara = Person::new(&server, SARA);
    tests::harness::eventually("all are read", async || {
        let thread = sara.thread(conversation.as_str().unwrap(), "oldest", 10).await;
        thread.iter().all(|row| row["status"] == "read").then_some(())
    })
    .await;
    let mine = Person::new(&server, &number(1));
    assert_eq!(mine.row(conversation.as_str().unwrap()).await["unread"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_a_deletion_and_a_note_are_items_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::unmetered());
    let sara = Person::new(&server, SARA);
    let id = sara.open(&number(1)).await;
    let mut phone = Phone::new(&server, &number(1), "phone");
    let mut laptop = Phone::new(&server, SARA, "laptop");
    phone.connect().await.unwrap();
    laptop.connect().await.unwrap();
    let said = sara.say(&id, "Monday").await;
    let message = said["id"].as_str().unwrap();
    let path = format!("/v1/conversations/{id}/messages/{message}");
    // Each is seen before the next, as a device that comes later is not told what was deleted.
    phone.until_seen(1).await;
    laptop.until_seen(1).await;
    let (status, answer) = sara.ask("PATCH", &path, &json!({ "content": "Tuesday" })).await;
    assert!([200, 202].contains(&status), "{status}: {answer}");
    phone.until_seen(2).await;
    laptop.until_seen(2).await;
    let (status, answer) = sara.ask("DELETE", &path, &Value::Null).await;
    assert!([200, 202].contains(&status), "{status}: {answer}");
    sara.does(&id, "close", Value::Null).await;
    for device in [&mut phone, &mut laptop] {
        let items = until_items(device, 4).await;
        let kinds: Vec<_> = items.iter().map(|item| item["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["chat", "edit", "delete", "note"]);
        assert_eq!((&items[1]["about"], &items[1]["content"]), (&json!(message), &json!("Tuesday")));
        assert_eq!(items[2]["about"], message);
        assert!(items[3]["content"].as_str().unwrap().contains("closed"), "{}", items[3]);
    }
}
