//! R4.3, P8: a key is the message's name. Sent again it is the same message; sent again with another body it is refused.

use serde_json::json;
use tests::harness::{Business, Phone, Server, Settings, number};

#[tokio::test(flavor = "multi_thread")]
async fn p8_repeats_are_one_message_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::unmetered());
    let business = Business::new(&server);
    let first = business.insist(&number(1), "once", "order-17").await;
    for _ in 0..5 {
        assert_eq!(business.insist(&number(1), "once", "order-17").await.id, first.id);
    }
    let server = server.restart();
    let business = Business::new(&server);
    for _ in 0..5 {
        assert_eq!(business.insist(&number(1), "once", "order-17").await.id, first.id);
    }
    let marker = business.send(&number(1), "after").await;
    let mut phone = Phone::new(&server, &number(1), "one");
    phone.connect().await.unwrap();
    phone.until_seen(2).await;
    assert_eq!(phone.contents(), ["once", "after"]);
    business.until(&marker.id, "delivered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_with_another_body_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::unmetered());
    let business = Business::new(&server);
    let first = business.insist(&number(1), "ten dinars", "pay-1").await;
    let (status, problem) =
        business.post("/v1/messages", &json!({ "to": number(1), "content": "ninety dinars", "key": "pay-1" })).await;
    assert_eq!((status, problem["type"].as_str()), (422, Some("/problems/idempotency-conflict")), "{problem}");

    // A door that has forgotten (a restart) accepts it; the owner does not deliver it and tells the administrators.
    business.until(&first.id, "pending").await;
    let server = server.restart();
    let business = Business::new(&server);
    let (status, _) =
        business.post("/v1/messages", &json!({ "to": number(1), "content": "ninety dinars", "key": "pay-1" })).await;
    assert_eq!(status, 202);
    tests::harness::eventually("the conflict among the dead letters", async || {
        let (_, dead) = server.admin("GET", "/admin/v1/dead", None).await;
        let found = dead["items"].as_array()?.iter().any(|d| d["reason"] == "idempotency_conflict");
        found.then_some(())
    })
    .await;
    let mut phone = Phone::new(&server, &number(1), "one");
    phone.connect().await.unwrap();
    let marker = business.send(&number(1), "after").await;
    phone.until_seen(2).await;
    assert_eq!(phone.contents(), ["ten dinars", "after"]);
    business.until(&marker.id, "delivered").await;
    assert_eq!(business.until(&first.id, "delivered").await["content"], "ten dinars");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_the_header_is_the_same_as_in_the_body() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::unmetered());
    let business = Business::new(&server);
    let in_body = business.insist(&number(1), "x", "k-1").await;
    for header in ["k-1", "\"k-1\""] {
        let request = server.http.post(format!("{}/v1/messages", server.url)).bearer_auth(business.token());
        let response = request
            .header("Idempotency-Key", header)
            .json(&json!({ "to": number(1), "content": "x" }))
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 202);
        let body: serde_json::Value = response.json().await.unwrap();
        assert_eq!(body["id"], in_body.id.as_str(), "{header}");
    }
}
