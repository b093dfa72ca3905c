//! Part 1 and 6 of chat: put away and back by a new message, closed until reopened, blocked, handed over.

use serde_json::{Value, json};
use tests::harness::{Person, Server, Settings, contents, number};

async fn listed(who: &Person, status: &str) -> usize {
    who.pages(&format!("/v1/conversations?limit=5&status={status}")).await.len()
}

async fn refused(who: &Person, id: &str, slug: &str) -> Value {
    let (_, body) = who.post(&format!("/v1/conversations/{id}/messages"), json!({ "content": "x" })).await;
    assert_eq!(body["type"], format!("/problems/{slug}"), "{body}");
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn archived_closed_blocked_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::chatting());
    let (sara, phone) = (Person::new(&server, "business:sara"), Person::new(&server, &number(1)));
    let id = sara.open(&number(1)).await;
    sara.say(&id, "hello").await;

    assert_eq!(phone.does(&id, "archive", Value::Null).await["status"], "archived");
    assert_eq!((listed(&phone, "archived").await, listed(&phone, "active").await), (1, 0));
    assert_eq!(listed(&sara, "active").await, 1, "only for oneself");
    sara.say(&id, "are you there?").await;
    assert_eq!(
        (listed(&phone, "archived").await, listed(&phone, "active").await),
        (0, 1),
        "a new message brings it back"
    );
    phone.does(&id, "archive", Value::Null).await;
    assert_eq!(phone.does(&id, "unarchive", Value::Null).await["status"], "active");

    assert_eq!(sara.does(&id, "close", Value::Null).await["status"], "closed");
    assert_eq!(
        (listed(&phone, "closed").await, listed(&sara, "closed").await, listed(&sara, "active").await),
        (1, 1, 0)
    );
    refused(&phone, &id, "conversation-closed").await;
    refused(&sara, &id, "conversation-closed").await;
    assert_eq!(sara.does(&id, "reopen", Value::Null).await["status"], "active");
    phone.say(&id, "yes").await;
    // The tenant's server may do it too; it says nothing.
    let server_key = Person::new(&server, "server");
    server_key.does(&id, "close", Value::Null).await;
    server_key.does(&id, "reopen", Value::Null).await;
    refused(&server_key, &id, "forbidden").await;

    assert_eq!(phone.does(&id, "block", Value::Null).await["blocked"], true);
    refused(&sara, &id, "blocked").await;
    phone.say(&id, "the one who blocks may write").await;
    phone.does(&id, "unblock", Value::Null).await;
    sara.say(&id, "thank you").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handed_over_it_is_the_same_thread() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::chatting());
    let (sara, omar) = (Person::new(&server, "business:sara"), Person::new(&server, "business:omar"));
    let phone = Person::new(&server, &number(1));
    let id = phone.open("business:sara").await;
    phone.say(&id, "hello").await;
    assert_eq!(omar.ask("GET", &format!("/v1/conversations/{id}"), &Value::Null).await.0, 404, "not his yet");
    assert_eq!(sara.does(&id, "assign", json!({ "to": "business:omar" })).await["assigned_to"], "business:omar");
    let body = refused(&sara, &id, "assigned-elsewhere").await;
    assert!(body["detail"].as_str().unwrap().contains("business:omar"), "409 names who it is: {body}");
    assert_eq!((listed(&sara, "active").await, listed(&omar, "active").await), (0, 1));
    assert_eq!(omar.row(&id).await["unread"], 1, "what nobody read is his to read");
    omar.say(&id, "how can I help?").await;
    phone.say(&id, "like this").await;
    assert_eq!(phone.open("business:sara").await, id, "the old pair leads to the thread");
    let thread = omar.thread(&id, "oldest", 2).await;
    let kinds: Vec<_> = thread.iter().map(|row| row["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["chat", "note", "chat", "chat"]);
    assert!(contents(&thread)[1].contains("\"assigned\""), "the thread says who has it: {thread:?}");
    assert_eq!(thread[2]["from"], "business:omar");
    // Whoever it began with may take it back.
    sara.does(&id, "assign", json!({ "to": "business:sara" })).await;
    refused(&omar, &id, "not-recorded-or-unknown").await;
    sara.say(&id, "back again").await;
}
