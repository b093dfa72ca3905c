//! Protocol: `recovered: false` says that retention passed what a client had not yet; nothing is left out in silence.

use std::time::Duration;

use tests::harness::{Business, Phone, Server, Settings, eventually, number};

/// Days by default.
const RETENTION: Duration = Duration::from_millis(1_500);

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_place_is_gone_is_told_and_goes_on_from_its_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings::default().with([
        format!("limits.message.retention_ms={}", RETENTION.as_millis()),
        format!("limits.message.send_at_ahead_ms={}", RETENTION.as_millis()),
        "limits.flow.retain_every_ms=50".to_owned(),
        "limits.flow.due_every_ms=50".to_owned(),
    ]);
    let server = Server::start(&folder.path().join("data"), settings.on_fixed_ports());
    let business = Business::new(&server);
    let (mut behind, mut up_to_date) = (Phone::new(&server, &number(1), "one"), Phone::new(&server, &number(2), "one"));
    for phone in [&mut behind, &mut up_to_date] {
        phone.connect().await.unwrap();
    }
    let mut last = String::new();
    for n in 0..2 {
        business.send(&number(2), &n.to_string()).await;
        last = business.send(&number(1), &n.to_string()).await.id;
    }
    behind.until_seen(2).await;
    up_to_date.until_seen(2).await;
    business.until(&last, "delivered").await;
    behind.drop_line();
    up_to_date.drop_line();
    for n in 2..5 {
        last = business.send(&number(1), &n.to_string()).await.id;
    }
    let accepted = std::time::SystemTime::now();
    eventually("its time to pass", async || (accepted.elapsed().ok()? > RETENTION).then_some(())).await;
    // Retention looks through a partition when it is taken over, and then a minute apart.
    let server = server.restart();
    let business = Business::new(&server);
    // Nobody received it: it has failed before it goes, and then it is unknown.
    eventually("retention to take the last one", async || {
        (business.get(&format!("/v1/messages/{last}")).await.0 == 404).then_some(())
    })
    .await;

    let before = behind.cursor.clone();
    let welcome = behind.connect().await.unwrap();
    assert_eq!(welcome["recovered"], false, "{welcome}");
    assert_ne!(welcome["cursor"].as_str(), before.as_deref(), "a new place is given: {welcome}");
    let fresh = business.send(&number(1), "fresh").await;
    behind.until_seen(3).await;
    assert_eq!(behind.contents(), ["0", "1", "fresh"]);
    business.until(&fresh.id, "delivered").await;

    // Who had everything missed nothing, though all of it is gone.
    let welcome = up_to_date.connect().await.unwrap();
    assert_eq!(welcome["recovered"], true, "{welcome}");
    business.send(&number(2), "fresh").await;
    up_to_date.until_seen(3).await;
    assert_eq!(up_to_date.contents(), ["0", "1", "fresh"]);
}
