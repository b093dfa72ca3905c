//! R4.3, P8: a `send` that is repeated, on the same connection, on another, after a crash, is one message; with another body
//! it is refused.

use serde_json::{Value, json};
use tests::harness::{Person, Phone, Server, Settings, number};

const SARA: &str = "business:sara";

async fn answer(device: &mut Phone, client_ref: &str) -> Value {
    device.until_frame("an answer", |frame| frame["ref"] == client_ref && frame["type"] != "status").await
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_breaks_in_between() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(&folder.path().join("data"), Settings::unmetered().on_fixed_ports());
    let mut phone = Phone::new(&server, &number(1), "phone");
    let mut desk = Phone::new(&server, SARA, "desk");
    phone.connect().await.unwrap();
    let send = json!({ "type": "send", "ref": "r1", "to": SARA, "content": "once" });
    phone.say(send.clone()).await;
    let id = answer(&mut phone, "r1").await["id"].clone();
    assert!(id.is_string());
    phone.say(send.clone()).await;
    assert_eq!(answer(&mut phone, "r1").await["id"], id);

    server.kill9();
    let server = server.restart();
    phone.insist().await;
    phone.say(send.clone()).await;
    let again = answer(&mut phone, "r1").await;
    assert_eq!((&again["type"], &again["id"]), (&json!("accepted"), &id), "{again}");
    // Sent and never answered, because the line broke: the same again.
    let next = json!({ "type": "send", "ref": "r2", "to": SARA, "content": "twice", "key": "k2" });
    phone.say(next.clone()).await;
    phone.drop_line();
    phone.insist().await;
    phone.say(next).await;
    assert_eq!(answer(&mut phone, "r2").await["type"], "accepted");

    desk.connect().await.unwrap();
    desk.until_seen(2).await;
    assert_eq!(desk.contents(), ["once", "twice"]);
    let sara = Person::new(&server, SARA);
    let conversation = desk.items[0]["conversation_id"].as_str().unwrap().to_owned();
    assert_eq!(sara.thread(&conversation, "oldest", 10).await.len(), 2);

    let other = json!({ "type": "send", "ref": "r1", "to": SARA, "content": "another" });
    phone.say(other).await;
    let refused = answer(&mut phone, "r1").await;
    assert_eq!(refused["problem"]["type"], "/problems/idempotency-conflict", "{refused}");
}

// R5.5: the socket's quota is HTTP's.
#[tokio::test(flavor = "multi_thread")]
async fn the_quota_is_the_one_of_http() {
    let folder = tempfile::tempdir().unwrap();
    let server =
        Server::start(&folder.path().join("data"), Settings::default().with(["limits.door.person_per_minute=5"]));
    let mut phone = Phone::new(&server, &number(1), "phone");
    phone.connect().await.unwrap();
    let person = Person::new(&server, &number(1));
    let id = person.open(SARA).await;
    person.say(&id, "by HTTP").await;
    let mut refused = 0;
    for n in 0..6 {
        let client_ref = n.to_string();
        phone.say(json!({ "type": "send", "ref": client_ref, "conversation_id": id, "content": "x" })).await;
        let answer = answer(&mut phone, &client_ref).await;
        if answer["type"] == "error" {
            assert_eq!(answer["problem"]["type"], "/problems/quota-exceeded", "{answer}");
            assert!(answer["problem"]["retry_after_ms"].as_u64() > Some(0), "{answer}");
            refused += 1;
        }
    }
    assert!(refused >= 2, "five a minute, and one was by HTTP: {refused} of six were refused");
}
