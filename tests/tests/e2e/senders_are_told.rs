//! R9.6: a sender who is connected hears of every change, and whoever was away reads the feed from where it was.

use serde_json::json;
use tests::harness::{Business, Phone, Server, Settings, eventually, number};

#[tokio::test(flavor = "multi_thread")]
async fn a_connected_sender_hears_sent_and_delivered() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::default());
    let token = server.token("acme", "business:sara");
    let mut desk = Phone::with_token(&server, token.clone(), "desk");
    desk.connect().await.unwrap();
    let mut phone = Phone::new(&server, &number(1), "one");
    phone.connect().await.unwrap();
    let request = server.http.post(format!("{}/v1/messages", server.url)).bearer_auth(&token);
    let response = request.json(&json!({ "to": number(1), "content": "hi", "ref": "r-7" })).send().await.unwrap();
    assert_eq!(response.status(), 202);
    phone.until_seen(1).await;
    let told = desk.until_frame("delivered", |f| f["type"] == "status" && f["status"] == "delivered").await;
    assert_eq!(told["ref"], "r-7");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_feed_goes_on_where_its_reader_was() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::unmetered());
    let business = Business::new(&server);
    let mut phone = Phone::new(&server, &number(1), "one");
    phone.connect().await.unwrap();
    let mut ids = Vec::new();
    let (mut cursor, mut told) = (String::new(), Vec::new());
    for round in 0..3 {
        for n in 0..5 {
            let body =
                json!({ "to": number(1), "content": "x", "ref": format!("{round}-{n}"), "metadata": { "n": n } });
            ids.push(business.post("/v1/messages", &body).await.1["id"].as_str().unwrap().to_owned());
        }
        phone.until_seen(ids.len()).await;
        eventually("all delivered events", async || {
            let page = if cursor.is_empty() { String::new() } else { format!("&cursor={cursor}") };
            let (status, body) = business.get(&format!("/v1/events?limit=4&metadata=true{page}")).await;
            assert_eq!(status, 200, "{body}");
            cursor = body["next_cursor"].as_str().unwrap().to_owned();
            for event in body["items"].as_array().unwrap() {
                if event["status"] == "delivered" {
                    assert!(event["ref"].as_str().is_some() && event["metadata"]["n"].is_u64(), "{event}");
                    told.push(event["id"].as_str().unwrap().to_owned());
                }
            }
            (told.len() >= ids.len()).then_some(())
        })
        .await;
        assert_eq!(told, ids, "each once, in order");
    }
}
