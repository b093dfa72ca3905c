//! Commits do not wait for phones: one that never acknowledges delays nobody else, not even in its own partition.

use schemas::{Partition, UserId};
use tests::harness::{Business, Phone, Server, Settings, Taste, eventually, number};

#[tokio::test(flavor = "multi_thread")]
async fn its_partition_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::unmetered());
    let business = Business::new(&server);
    let partition = |n: u32| Partition::of(&format!("acme/{}", number(n)).parse::<UserId>().unwrap(), 24);
    let neighbour = (2..).find(|n| partition(*n) == partition(1)).unwrap();
    let mut silent = Phone::new(&server, &number(1), "one").taste(Taste::Silent);
    silent.connect().await.unwrap();
    let items: Vec<_> = (0..3_000).map(|n| serde_json::json!({ "to": number(1), "content": n.to_string() })).collect();
    business.batch(&items).await;
    let mut phone = Phone::new(&server, &number(neighbour), "one");
    phone.connect().await.unwrap();
    for n in 0..20 {
        let sent = business.send(&number(neighbour), &n.to_string()).await;
        phone.until_seen(n + 1).await;
        business.until(&sent.id, "delivered").await;
    }
    // Everything is recorded and committed, though nothing of the silent one is acknowledged.
    eventually("no message to wait", async || {
        let (_, lanes) = server.admin("GET", "/admin/v1/lanes", None).await;
        lanes["lanes"].as_array()?.iter().all(|lane| lane["waiting"] == 0).then_some(())
    })
    .await;
}
