//! R1.5, R1.6, R1.11 to R1.14, P2, P13, R10.7: a pair has one conversation, both write to it, and each reads what it wrote.

use std::collections::BTreeSet;

use futures::future::join_all;
use serde_json::{Value, json};
use tests::harness::{Person, Server, Settings, contents, number};

#[tokio::test(flavor = "multi_thread")]
async fn two_creators_at_once_make_one() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::chatting());
    let sara = Person::new(&server, "business:sara");
    for n in 0..10 {
        let phone = Person::new(&server, &number(n));
        let asks = (0..8).map(|i| {
            let (who, with) = if i % 2 == 0 { (&sara, phone.name.clone()) } else { (&phone, sara.name.clone()) };
            async move { who.post("/v1/conversations", json!({ "with": with })).await }
        });
        let answers = join_all(asks).await;
        let ids: BTreeSet<_> = answers.iter().map(|(_, body)| body["id"].to_string()).collect();
        assert!(answers.iter().all(|(status, _)| [200, 201].contains(status)), "{answers:?}");
        assert_eq!(ids.len(), 1, "P2: {answers:?}");
        assert_eq!(phone.pages("/v1/conversations?limit=50").await.len(), 1);
    }
    let hers = sara.pages("/v1/conversations?limit=3").await;
    assert_eq!(hers.len(), 10, "R1.13: each of them once, over pages");
}

#[tokio::test(flavor = "multi_thread")]
async fn both_write_and_read_what_they_wrote() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::chatting());
    let (sara, phone) = (Person::new(&server, "business:sara"), Person::new(&server, &number(1)));
    let id = phone.open("business:sara").await;
    let mut said = Vec::new();
    for n in 0..30_u64 {
        let who = if n % 3 == 0 { &sara } else { &phone };
        let text = format!("message {n} <i>\u{2713}</i>");
        let receipt = who.say(&id, &text).await;
        assert_eq!(receipt["seq"], n + 1, "one order for everyone");
        said.push(format!("message {n} \u{2713}"));
        // Rule 14: who is answered 201 finds it, and so does the other side.
        for reader in [&sara, &phone] {
            let latest = reader.get(&format!("/v1/conversations/{id}/messages?limit=1")).await;
            assert_eq!(latest["items"][0]["id"], receipt["id"], "{} does not see it", reader.name);
            let one = reader.get(&format!("/v1/messages/{}", receipt["id"].as_str().unwrap())).await;
            assert_eq!((&one["kind"], &one["conversation_id"]), (&json!("chat"), &json!(id)), "R1.12");
        }
    }
    let (hers, his) = (sara.thread(&id, "oldest", 7).await, phone.thread(&id, "oldest", 50).await);
    assert_eq!(contents(&hers), said);
    assert_eq!(contents(&his), said);
    assert_eq!(sara.row(&id).await["unread"], 20);
    assert_eq!(phone.row(&id).await["unread"], 10);
    let trace = phone.get(&format!("/v1/messages/{}/trace", hers[1]["id"].as_str().unwrap())).await;
    assert_eq!(trace["stages"][0]["stage"], "accepted");

    // A mark that moves shows at once, and becomes a tick of the other side.
    let marked = phone.does(&id, "read", json!({ "up_to": 30 })).await;
    assert_eq!((&marked["unread"], &marked["read_seq"]), (&json!(0), &json!(30)));
    assert_eq!(sara.row(&id).await["other_read_seq"], 30);
    let own = hers[0]["id"].as_str().unwrap();
    tests::harness::eventually("her message to be read", async || {
        let message = sara.get(&format!("/v1/messages/{own}")).await;
        (message["status"] == "read").then_some(())
    })
    .await;
    let (status, by_message) =
        sara.post(&format!("/v1/messages/{}/read", hers[29]["id"].as_str().unwrap()), Value::Null).await;
    assert_eq!(status, 200, "{by_message}");
    assert_eq!(sara.get("/v1/unread").await, json!({ "one_way": 0, "chat": 0, "total": 0 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_is_the_same_message_for_as_long_as_it_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::chatting());
    let (sara, phone) = (Person::new(&server, "business:sara"), Person::new(&server, &number(1)));
    let id = sara.open(&number(1)).await;
    let path = format!("/v1/conversations/{id}/messages");
    let body = json!({ "content": "once", "ref": "17" });
    let (_, first) = phone.post(&path, body.clone()).await;
    sara.does(&id, "close", Value::Null).await;
    // Also past the memory of the process that took it, and after the conversation has gone on.
    let server = server.restart();
    let phone = Person::new(&server, &number(1));
    let sara = Person::new(&server, "business:sara");
    let (status, again) = phone.post(&path, body).await;
    assert_eq!((status, &again["id"], &again["seq"]), (201, &first["id"], &first["seq"]), "{again}");
    sara.does(&id, "reopen", Value::Null).await;
    let (status, other) = phone.post(&path, json!({ "content": "another", "ref": "17" })).await;
    assert_eq!((status, &other["type"]), (422, &json!("/problems/idempotency-conflict")), "{other}");
    assert_eq!(contents(&sara.thread(&id, "oldest", 50).await).iter().filter(|text| **text == "once").count(), 1);
}
