//! Several devices of one user: each its own cursor, one session each, and the newer session wins.

use serde_json::json;
use tests::harness::{Business, Phone, Server, Settings, number};

#[tokio::test(flavor = "multi_thread")]
async fn every_device_gets_everything_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::unmetered());
    let business = Business::new(&server);
    let mut phone = Phone::new(&server, &number(1), "phone");
    let mut tablet = Phone::new(&server, &number(1), "tablet");
    phone.connect().await.unwrap();
    tablet.connect().await.unwrap();
    for n in 0..9 {
        business.send(&number(1), &n.to_string()).await;
    }
    let last = business.send(&number(1), "9").await;
    phone.until_seen(10).await;
    tablet.until_seen(10).await;
    assert_eq!(phone.contents(), tablet.contents());

    // Once its acknowledgement is in the trace, its cursor is kept.
    tests::harness::eventually("the tablet's acknowledgement", async || {
        let (_, trace) = business.get(&format!("/v1/messages/{}/trace", last.id)).await;
        let by_tablet = |s: &serde_json::Value| s["stage"] == "delivered" && s["device"] == "tablet";
        trace["stages"].as_array()?.iter().any(by_tablet).then_some(())
    })
    .await;

    // The tablet sleeps; it goes on where it was, by the cursor that the server keeps for it.
    tablet.drop_line();
    business.send(&number(1), "10").await;
    phone.until_seen(11).await;
    tablet.cursor = None;
    tablet.connect().await.unwrap();
    tablet.until_seen(11).await;
    assert_eq!(tablet.repeats, 0, "the stored cursor was used");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_device_starts_at_what_nobody_has_received() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::unmetered());
    let business = Business::new(&server);
    let mut phone = Phone::new(&server, &number(1), "phone");
    phone.connect().await.unwrap();
    let old = business.send(&number(1), "old").await;
    phone.until_seen(1).await;
    business.until(&old.id, "delivered").await;
    phone.drop_line();
    business.send(&number(1), "new").await;
    let mut tablet = Phone::new(&server, &number(1), "tablet");
    tablet.connect().await.unwrap();
    tablet.until_seen(1).await;
    assert_eq!(tablet.contents(), ["new"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newer_session_of_a_device_wins_and_the_older_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::default());
    let mut older = Phone::new(&server, &number(1), "phone");
    let mut newer = Phone::new(&server, &number(1), "phone");
    older.connect().await.unwrap();
    newer.connect().await.unwrap();
    assert_eq!(older.until_closed().await, schemas::frame::Close::NewerSession.code());
    Business::new(&server).send(&number(1), "hello").await;
    newer.until_seen(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_beyond_what_was_sent_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::default());
    let business = Business::new(&server);
    let mut phone = Phone::new(&server, &number(1), "phone");
    phone.connect().await.unwrap();
    business.send(&number(1), "one").await;
    phone.until_seen(1).await;
    let cursor: schemas::Cursor = phone.cursor.clone().unwrap().parse().unwrap();
    let (partition, position) = cursor.0.iter().next().map(|(p, at)| (*p, *at)).unwrap();
    let beyond = schemas::Cursor::at(partition, schemas::cursor::place(position.epoch.0, position.n + 5));
    phone.say(json!({ "type": "ack", "cursor": beyond.to_string() })).await;
    let error = phone.until_frame("the refusal", |frame| frame["type"] == "error").await;
    assert_eq!(error["problem"]["type"], "/problems/ack-beyond-sent", "{error}");
}
