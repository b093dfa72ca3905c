//! Rule 13: a broadcast is accepted as one, expanded little by little, survives a kill, and sends nobody two.

use serde_json::json;
use tests::harness::{Business, Phone, Server, Settings, eventually, number};

#[tokio::test(flavor = "multi_thread")]
async fn everyone_gets_one_also_through_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(&folder.path().join("data"), Settings::unmetered());
    let business = Business::new(&server);
    let mut to: Vec<_> = (0..5_000).map(number).collect();
    to.extend([number(3), number(4), "0790000001".to_owned()]);
    let (status, body) = business.post("/v1/broadcasts", &json!({ "to": to, "content": "news", "key": "b1" })).await;
    assert_eq!(status, 202, "{body}");
    assert_eq!(body["recipients"], 5_000, "duplicates are one, an impossible number is none");
    let id = body["id"].as_str().unwrap().to_owned();
    server.kill9();
    let server = server.restart();
    let business = Business::new(&server);
    eventually("the broadcast to be done", async || {
        let (_, body) = business.get(&format!("/v1/broadcasts/{id}")).await;
        (body["state"] == "done").then_some(())
    })
    .await;
    for n in [0, 3, 4, 2_500, 4_999] {
        let marker = business.send(&number(n), "after").await;
        let mut phone = Phone::new(&server, &number(n), "one");
        phone.connect().await.unwrap();
        phone.until_seen(2).await;
        business.until(&marker.id, "delivered").await;
        let mut contents = phone.contents();
        contents.sort_unstable();
        assert_eq!(contents, ["after", "news"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_broadcast_goes_no_further() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::unmetered());
    let business = Business::new(&server);
    let to: Vec<_> = (0..50_000).map(number).collect();
    let (status, body) = business.post("/v1/broadcasts", &json!({ "to": to, "content": "news" })).await;
    assert_eq!(status, 202, "{body}");
    let path = format!("/v1/broadcasts/{}", body["id"].as_str().unwrap());
    let (status, body) = business.delete(&path).await;
    assert_eq!(status, 200, "{body}");
    let (_, after) = business.get(&path).await;
    assert_eq!(after["state"], "cancelled");
    assert!(after["expanded"].as_u64().unwrap() < 50_000, "{after}");
}
