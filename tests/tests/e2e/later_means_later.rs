//! Rules 8 and 9: scheduled messages wait durably and go out on time, expired ones fail, cancelled ones never arrive.

use std::time::Duration;

use serde_json::json;
use tests::harness::{Business, Phone, Server, Settings, number};

fn in_ms(ms: i64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    schemas::Timestamp(now.as_millis() as i64 + ms).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduled_message_waits_through_a_kill_and_goes_out_on_time() {
    let folder = tempfile::tempdir().unwrap();
    let mut server =
        Server::start(&folder.path().join("data"), Settings::default().with(["limits.flow.due_every_ms=50"]));
    let business = Business::new(&server);
    let at = in_ms(3_000);
    let (status, body) =
        business.post("/v1/messages", &json!({ "to": number(1), "content": "later", "send_at": at })).await;
    assert_eq!(status, 202, "{body}");
    let id = body["id"].as_str().unwrap().to_owned();
    let seen = business.until(&id, "pending").await;
    assert_eq!(seen["send_at"].as_str(), Some(at.as_str()));
    server.kill9();
    let server = server.restart();
    let business = Business::new(&server);
    let mut phone = Phone::new(&server, &number(1), "one");
    phone.connect().await.unwrap();
    business.send(&number(1), "now").await;
    phone.until_seen(2).await;
    assert_eq!(phone.contents(), ["now", "later"]);
    assert!(in_ms(0) >= at, "not before its time");
    business.until(&id, "delivered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_message_expires_and_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::default().with(["limits.flow.due_every_ms=50"]));
    let business = Business::new(&server);
    let (_, body) =
        business.post("/v1/messages", &json!({ "to": number(1), "content": "stale", "expires_at": in_ms(700) })).await;
    let id = body["id"].as_str().unwrap();
    business.send(&number(1), "fresh").await;
    let failed = business.until(id, "failed").await;
    assert_eq!(failed["reason"], "expired");
    let mut phone = Phone::new(&server, &number(1), "one");
    phone.connect().await.unwrap();
    phone.until_seen(1).await;
    assert_eq!(phone.contents(), ["fresh"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pending_message_can_be_cancelled_and_a_delivered_one_cannot() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::default());
    let business = Business::new(&server);
    let parked = business.send(&number(1), "parked").await;
    business.until(&parked.id, "pending").await;
    let (status, body) = business.delete(&format!("/v1/messages/{}", parked.id)).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(business.until(&parked.id, "failed").await["reason"], "cancelled");

    let (_, body) = business
        .post("/v1/messages", &json!({ "to": number(1), "content": "scheduled", "send_at": in_ms(60_000) }))
        .await;
    let scheduled = body["id"].as_str().unwrap().to_owned();
    business.until(&scheduled, "pending").await;
    let (status, body) = business.delete(&format!("/v1/messages/{scheduled}")).await;
    assert_eq!(status, 200, "{body}");

    let mut phone = Phone::new(&server, &number(1), "one");
    phone.connect().await.unwrap();
    let sent = business.send(&number(1), "arrives").await;
    phone.until_seen(1).await;
    assert_eq!(phone.contents(), ["arrives"], "the cancelled one is passed over");
    business.until(&sent.id, "delivered").await;
    let (status, problem) = business.delete(&format!("/v1/messages/{}", sent.id)).await;
    assert_eq!((status, problem["type"].as_str()), (409, Some("/problems/too-late")), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_message_is_said_to_be_unknown() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::default());
    let business = Business::new(&server);
    let path = format!("/v1/messages/{}", uuid::Uuid::new_v4());
    let (status, problem) = tokio::time::timeout(Duration::from_secs(10), business.get(&path)).await.unwrap();
    assert_eq!((status, problem["type"].as_str()), (404, Some("/problems/not-recorded-or-unknown")));
    assert_eq!(business.get("/v1/messages/xyz").await.0, 404, "what is no id names nothing");
}
