//! Part 8 of chat: one's own message can be edited and deleted within a time, both sides see it, and no count changes.

use serde_json::{Value, json};
use tests::harness::{Person, Phone, Server, Settings, contents, number};

#[tokio::test(flavor = "multi_thread")]
async fn edited_and_deleted_for_both_sides() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::chatting());
    let (sara, phone) = (Person::new(&server, "business:sara"), Person::new(&server, &number(1)));
    let id = sara.open(&number(1)).await;
    let first = sara.say(&id, "helo").await["id"].as_str().unwrap().to_owned();
    let second = sara.say(&id, "a secret").await["id"].as_str().unwrap().to_owned();
    let path = |of: &str| format!("/v1/conversations/{id}/messages/{of}");
    for body in [json!({ "content": "hello", "key": "1" }), json!({ "content": "hello", "key": "1" })] {
        let (status, edited) = sara.ask("PATCH", &path(&first), &body).await;
        assert_eq!((status, &edited["content"]), (200, &json!("hello")), "{edited}");
    }
    let (status, deleted) = sara.ask("DELETE", &path(&second), &Value::Null).await;
    assert_eq!((status, &deleted["content"]), (200, &json!("")), "{deleted}");
    for who in [&sara, &phone] {
        let thread = who.thread(&id, "oldest", 50).await;
        assert_eq!(contents(&thread), ["hello", ""]);
        assert!(thread[0]["edited_at"].is_string() && thread[1]["deleted_at"].is_string(), "{thread:?}");
        let one = who.get(&format!("/v1/messages/{second}")).await;
        assert_eq!(one["content"], "", "nor is it found by its id");
        assert!(who.row(&id).await["last"]["text"].is_null(), "nor in the list");
    }
    assert_eq!(phone.row(&id).await["unread"], 2, "edits and deletions change no count");
    // A device that was there learns both, at places of their own.
    let inbox = phone.get("/v1/inbox?device=a&limit=50").await;
    let kinds: Vec<_> = inbox["items"].as_array().unwrap().iter().map(|item| item["kind"].clone()).collect();
    assert_eq!(kinds, ["chat", "chat", "edit", "delete"]);
    assert_eq!(inbox["items"][2]["about"], first);
    assert_eq!(inbox["items"][1]["content"], "", "a device that comes later is not told what was deleted");
    for (who, of, slug) in [(&phone, &first, "not-your-message"), (&sara, &second, "message-deleted")] {
        let (_, refused) = who.ask("PATCH", &path(of), &json!({ "content": "mine" })).await;
        assert_eq!(refused["type"], format!("/problems/{slug}"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_comes_later_is_not_told_what_was_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::chatting());
    let sara = Person::new(&server, "business:sara");
    let id = sara.open(&number(1)).await;
    sara.say(&id, "hello").await;
    let said = sara.say(&id, "a secret").await["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/conversations/{id}/messages/{said}");
    assert_eq!(sara.ask("PATCH", &path, &json!({ "content": "a worse secret" })).await.0, 200);
    assert_eq!(sara.ask("DELETE", &path, &Value::Null).await.0, 200);
    let mut device = Phone::new(&server, &number(1), "new");
    device.connect().await.unwrap();
    device.until_seen(4).await;
    let seen: Vec<_> = device.items.iter().map(|item| (item["kind"].clone(), item["content"].clone())).collect();
    let expected = [("chat", "hello"), ("chat", ""), ("edit", ""), ("delete", "")];
    assert_eq!(seen, expected.map(|(kind, content)| (json!(kind), json!(content))));
}

#[tokio::test(flavor = "multi_thread")]
async fn not_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings::chatting().with(["limits.chat.edit_ms=1"]);
    let server = Server::start(&folder.path().join("data"), settings);
    let sara = Person::new(&server, "business:sara");
    let id = sara.open(&number(1)).await;
    let said = sara.say(&id, "helo").await["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/conversations/{id}/messages/{said}");
    let refused = tests::harness::eventually("the time to be over", async || {
        let (status, answer) = sara.ask("PATCH", &path, &json!({ "content": "hello" })).await;
        (status == 409).then_some(answer)
    })
    .await;
    assert_eq!(refused["type"], "/problems/edit-too-late", "{refused}");
    let (status, _) = sara.ask("DELETE", &path, &Value::Null).await;
    assert_eq!(status, 409);
}
