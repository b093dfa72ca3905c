//! R4.1–R4.7: a failed delivery is tried again after 1, 2, 4, 8, 16 and 32 s (here a hundredth of that), an
//! acknowledgement in between stops it, and what is given up is a dead letter that an administrator can send again.

use serde_json::json;
use tests::harness::{Business, Phone, Server, Settings, Taste, eventually, number};

#[tokio::test(flavor = "multi_thread")]
async fn six_retries_then_a_dead_letter_that_can_be_requeued() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::hundredfold());
    let business = Business::new(&server);
    let mut phone = Phone::new(&server, &number(1), "one").taste(Taste::Silent);
    phone.connect().await.unwrap();
    let sent = business.send(&number(1), "nobody answers").await;
    // The phone keeps coming back and never acknowledges.
    let failed = loop {
        if !phone.is_connected() {
            phone.insist().await;
        }
        let _ = tokio::time::timeout(std::time::Duration::from_millis(50), phone.next()).await;
        let (_, body) = business.get(&format!("/v1/messages/{}", sent.id)).await;
        if body["status"] == "failed" {
            break body;
        }
    };
    assert_eq!(failed["reason"], "no_ack");
    assert_eq!(phone.repeats_in_session, 0, "never twice on one connection");

    // R4.7: every attempt is told, 0 to 6.
    let (_, trace) = business.get(&format!("/v1/messages/{}/trace", sent.id)).await;
    let stages = trace["stages"].as_array().unwrap();
    let attempts: Vec<_> =
        stages.iter().filter(|s| s["stage"] == "attempt_failed").map(|s| s["attempt"].as_u64().unwrap()).collect();
    assert_eq!(attempts, [0, 1, 2, 3, 4, 5, 6], "{trace}");

    // R4.5: the administrators see it, and start a new round.
    let dead = eventually("the dead letter", async || {
        let (_, list) = server.admin("GET", "/admin/v1/dead?reason=no_ack", None).await;
        list["items"].as_array()?.first().cloned()
    })
    .await;
    assert_eq!(dead["id"], sent.id.as_str());
    let (status, dry) =
        server.admin("POST", "/admin/v1/dead/requeue", Some(json!({ "ids": [sent.id], "dry_run": true }))).await;
    assert_eq!(status, 200, "{dry}");
    let (status, report) = server.admin("POST", "/admin/v1/dead/requeue", Some(json!({ "ids": [sent.id] }))).await;
    assert_eq!(status, 200, "{report}");
    let mut phone = Phone::new(&server, &number(1), "two");
    phone.connect().await.unwrap();
    phone.until_seen(1).await;
    business.until(&sent.id, "delivered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r4_4_a_late_acknowledgement_stops_the_retries() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::hundredfold());
    let business = Business::new(&server);
    let mut silent = Phone::new(&server, &number(1), "one").taste(Taste::Silent);
    silent.connect().await.unwrap();
    let sent = business.send(&number(1), "late").await;
    silent.until_seen(1).await;
    assert_eq!(silent.until_closed().await, schemas::frame::Close::NoAck.code());
    let mut phone = Phone::new(&server, &number(1), "one");
    phone.connect().await.unwrap();
    phone.until_seen(1).await;
    business.until(&sent.id, "delivered").await;
    let (_, list) = server.admin("GET", "/admin/v1/dead", None).await;
    assert_eq!(list["items"].as_array().map(Vec::len), Some(0), "{list}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreached_user_s_message_stays_pending_and_is_never_buried() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::hundredfold());
    let business = Business::new(&server);
    let mut silent = Phone::new(&server, &number(1), "one").taste(Taste::Silent);
    silent.connect().await.unwrap();
    let sent = business.send(&number(1), "wait for me").await;
    silent.until_seen(1).await;
    silent.drop_line();
    // The retry finds nobody and parks: the attempts end there.
    eventually("a parked stage", async || {
        let (_, trace) = business.get(&format!("/v1/messages/{}/trace", sent.id)).await;
        trace["stages"].as_array()?.iter().any(|s| s["stage"] == "parked").then_some(())
    })
    .await;
    assert_eq!(business.status(&sent.id).await, "sent");
    let mut phone = Phone::new(&server, &number(1), "one");
    phone.connect().await.unwrap();
    phone.until_seen(1).await;
    business.until(&sent.id, "delivered").await;
}
