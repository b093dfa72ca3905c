//! Part 4 of chat: typing is never stored and never reaches outsiders; presence only those who share a conversation, and a
//! user can switch it off.

use serde_json::{Value, json};
use tests::harness::{Person, Phone, Server, Settings, number};

const SARA: &str = "business:sara";

/// Everything that comes before the answer to a ping; messages are not among it.
async fn so_far(device: &mut Phone) -> Vec<Value> {
    device.frames.clear();
    device.say(json!({ "type": "ping" })).await;
    device.until_frame("pong", |frame| frame["type"] == "pong").await;
    device
        .frames
        .iter()
        .filter(|frame| ["typing", "presence"].contains(&frame["type"].as_str().unwrap()))
        .cloned()
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::unmetered().with(["limits.chat.away_ms=100"]));
    let (sara, omar) = (Person::new(&server, SARA), Person::new(&server, "business:omar"));
    let conversation = sara.open(&number(1)).await;
    sara.say(&conversation, "hello").await;
    omar.open(&number(2)).await;
    let mut desk = Phone::new(&server, SARA, "desk");
    let mut outsider = Phone::new(&server, "business:omar", "desk");
    let mut other = Phone::new(&server, &number(2), "phone");
    for device in [&mut desk, &mut outsider, &mut other] {
        device.connect().await.unwrap();
    }
    let mut phone = Phone::new(&server, &number(1), "phone");
    phone.connect().await.unwrap();
    let here = |online: bool| {
        move |frame: &Value| frame["type"] == "presence" && frame["user"] == number(1) && frame["online"] == online
    };
    desk.until_frame("the phone's coming", here(true)).await;
    let row = sara.row(&conversation).await;
    assert_eq!(row["online"], true, "the list says so too: {row}");

    // A storm of typing is one frame, and leaves nothing behind.
    for _ in 0..20 {
        phone.say(json!({ "type": "typing", "conversation_id": conversation })).await;
    }
    let typing = desk.until_frame("typing", |frame| frame["type"] == "typing").await;
    assert_eq!((&typing["by"], &typing["conversation_id"]), (&json!(number(1)), &json!(conversation)));
    for device in [&mut outsider, &mut other] {
        let told = so_far(device).await;
        assert!(told.iter().all(|frame| frame["user"] != number(1) && frame["type"] != "typing"), "{told:?}");
    }
    outsider.say(json!({ "type": "typing", "conversation_id": conversation })).await;
    let refused = outsider.until_frame("a refusal", |frame| frame["type"] == "error").await;
    assert_eq!(refused["problem"]["status"], 404, "{refused}");
    assert!(so_far(&mut phone).await.iter().all(|frame| frame["type"] != "typing"));
    assert_eq!(sara.thread(&conversation, "oldest", 10).await.len(), 1);
    assert_eq!(phone.received.len(), 1, "only the message is in the inbox");

    // Gone, and seen last.
    phone.drop_line();
    let gone = desk.until_frame("the phone's going", here(false)).await;
    assert!(gone["last_seen"].is_string(), "{gone}");
    let row = sara.row(&conversation).await;
    assert_eq!((&row["online"], &row["last_seen"]), (&json!(false), &gone["last_seen"]), "{row}");

    // Hidden: as if it were never here.
    let person = Person::new(&server, &number(1));
    let (status, kept) = person.ask("PUT", "/v1/preferences", &json!({ "show_presence": false })).await;
    assert_eq!((status, &kept["show_presence"]), (200, &json!(false)));
    let hidden = |frame: &Value| here(false)(frame) && frame["last_seen"].is_null();
    desk.until_frame("who hides is gone", hidden).await;
    desk.frames.clear();
    phone.connect().await.unwrap();
    phone.say(json!({ "type": "typing", "conversation_id": conversation })).await;
    desk.until_frame("typing", |frame| frame["type"] == "typing").await;
    let row = sara.row(&conversation).await;
    assert!(row["online"].is_null() && row["last_seen"].is_null(), "{row}");
    assert!(!desk.frames.iter().any(here(true)), "{:?}", desk.frames);
    // Kept through a restart.
    let server = server.restart();
    assert_eq!(Person::new(&server, &number(1)).get("/v1/preferences").await["show_presence"], false);
    let (status, refused) = Person::new(&server, &number(1)).ask("PUT", "/v1/preferences", &json!({ "a": 1 })).await;
    assert_eq!((status, &refused["type"]), (422, &json!("/problems/invalid-field")));
}

// P12, R1.4.
#[tokio::test(flavor = "multi_thread")]
async fn a_one_way_message_cannot_be_answered_on_the_socket() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::unmetered());
    let business = tests::harness::Business::new(&server);
    let mut phone = Phone::new(&server, &number(1), "phone");
    phone.connect().await.unwrap();
    let notice = business.send(&number(1), "your code is 1234").await;
    phone.until_seen(1).await;
    phone.say(json!({ "type": "send", "ref": "r", "conversation_id": notice.id, "content": "thanks" })).await;
    let refused = phone.until_frame("a refusal", |frame| frame["type"] == "error").await;
    assert_eq!(
        (&refused["ref"], &refused["problem"]["type"]),
        (&json!("r"), &json!("/problems/no-reply")),
        "{refused}"
    );
}
