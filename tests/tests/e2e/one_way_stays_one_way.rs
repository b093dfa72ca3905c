//! P12, R1.1, R1.4, R1.7, R1.8: a one-way message has no reply, and the two histories are apart.

use serde_json::{Value, json};
use tests::harness::{Business, Person, Server, Settings, contents, number};

#[tokio::test(flavor = "multi_thread")]
async fn nobody_replies_to_a_one_way_message() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::chatting());
    let acme = Business::new(&server);
    let (sara, phone) = (Person::new(&server, "business:sara"), Person::new(&server, &number(1)));
    let sent = acme.send(&number(1), "news").await;
    acme.until(&sent.id, "pending").await;
    let reply = json!({ "content": "thanks" });
    let (status, refused) = phone.post(&format!("/v1/conversations/{}/messages", sent.id), reply.clone()).await;
    assert_eq!((status, &refused["type"]), (403, &json!("/problems/no-reply")), "{refused}");
    for word in ["read", "archive", "block"] {
        let body = if word == "read" { json!({ "up_to": 1 }) } else { Value::Null };
        let (status, refused) = phone.post(&format!("/v1/conversations/{}/{word}", sent.id), body).await;
        assert_eq!((status, &refused["type"]), (403, &json!("/problems/no-reply")), "{word}: {refused}");
    }
    let (status, refused) = phone.post("/v1/messages", json!({ "to": number(1), "content": "thanks" })).await;
    assert_eq!((status, &refused["type"]), (403, &json!("/problems/forbidden")), "{refused}");
    // Whoever it was not for is not even told that it is there.
    let other = Person::new(&server, &number(2));
    let (status, refused) = other.post(&format!("/v1/conversations/{}/messages", sent.id), reply).await;
    assert_eq!((status, &refused["type"]), (404, &json!("/problems/not-recorded-or-unknown")), "{refused}");
    assert!(phone.pages("/v1/conversations?limit=9").await.is_empty());

    // R1.7, R1.8: each history has its own.
    let id = phone.open("business:sara").await;
    phone.say(&id, "a question").await;
    sara.say(&id, "an answer").await;
    assert_eq!(contents(&phone.thread(&id, "oldest", 9).await), ["a question", "an answer"]);
    assert_eq!(contents(&phone.pages("/v1/messages?limit=9").await), ["news"]);
    let unread = phone.get("/v1/unread").await;
    assert_eq!(unread, json!({ "one_way": 1, "chat": 1, "total": 2 }));
}
