//! A business user's inbox has many writers; over HTTP too it is read page by page with one cursor, nothing left out and
//! nothing twice, and acknowledged with it.

use std::collections::HashMap;

use serde_json::{Value, json};
use tests::harness::{Person, Server, Settings, eventually, number};

const PHONES: u32 = 8;

#[tokio::test(flavor = "multi_thread")]
async fn page_by_page_with_one_cursor() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::chatting());
    let sara = Person::new(&server, "business:sara");
    let phones: Vec<_> = (0..PHONES).map(|n| Person::new(&server, &number(n))).collect();
    let mut said = HashMap::<String, Vec<String>>::new();
    for n in 0..3 {
        for phone in &phones {
            let id = phone.open("business:sara").await;
            phone.say(&id, &n.to_string()).await;
            said.entry(id).or_default().push(n.to_string());
        }
    }
    let first = phones[0].open("business:sara").await;
    let own = sara.say(&first, "hers").await["id"].as_str().unwrap().to_owned();
    said.get_mut(&first).unwrap().push("hers".to_owned());

    let mut seen = HashMap::<String, Vec<String>>::new();
    let (mut cursor, mut ids) = (String::new(), Vec::new());
    loop {
        let page = sara.get(&format!("/v1/inbox?device=desk&limit=5&cursor={cursor}")).await;
        for item in page["items"].as_array().unwrap() {
            let text = |field: &str| item[field].as_str().unwrap().to_owned();
            seen.entry(text("conversation_id")).or_default().push(text("content"));
            ids.push(text("id"));
        }
        cursor = page["cursor"].as_str().unwrap().to_owned();
        if page["more"] == false {
            break;
        }
    }
    assert_eq!(seen, said, "each once, in the order of its conversation");
    let (status, acked) = sara.post("/v1/messages/ack", json!({ "device": "desk", "cursor": cursor })).await;
    assert_eq!((status, &acked["acknowledged"]), (200, &json!(PHONES * 3)), "all but her own: {acked}");
    for id in &ids {
        let want = if *id == own { "pending" } else { "delivered" };
        eventually("what she has to be delivered", async || {
            let message = sara.get(&format!("/v1/messages/{id}")).await;
            (message["status"] == want).then_some(())
        })
        .await;
    }
    let page = sara.get("/v1/inbox?device=desk").await;
    assert_eq!((&page["items"], &page["more"]), (&json!([]), &json!(false)), "the stored cursor counts");
    phones[1].say(&phones[1].open("business:sara").await, "one more").await;
    let page = sara.get("/v1/inbox?device=desk").await;
    assert_eq!(page["items"][0]["content"], "one more");
    assert_eq!(page["items"].as_array().unwrap().len(), 1);

    // Nobody acknowledges beyond what there is, or in inboxes that it does not have.
    let beyond = schemas::Cursor::at(schemas::Partition(0), schemas::Position { epoch: schemas::Epoch(900), n: 9 });
    for cursor in [beyond.to_string(), schemas::Cursor::at(schemas::Partition(999), Default::default()).to_string()] {
        let (status, refused) = sara.post("/v1/messages/ack", json!({ "device": "desk", "cursor": cursor })).await;
        assert_eq!((status, &refused["type"]), (409, &json!("/problems/ack-beyond-sent")), "{refused}");
    }
    assert_eq!(sara.ask("GET", &format!("/v1/messages/{own}"), &Value::Null).await.1["status"], "pending");
}
