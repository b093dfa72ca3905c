//! R6.6, R7.6: a server that is asked to end tells its clients to come back, finishes what is in flight, and loses nothing.

use schemas::frame::Close;
use tests::harness::{Business, Phone, Server, Settings, free_ports, number};

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_told_to_come_back_and_miss_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings { ports: Some(free_ports()), ..Settings::unmetered() };
    let mut server = Server::start(&folder.path().join("data"), settings);
    let business = Business::new(&server);
    let mut phone = Phone::new(&server, &number(1), "one");
    phone.connect().await.unwrap();
    let items: Vec<_> = (0..500).map(|n| serde_json::json!({ "to": number(1), "content": n.to_string() })).collect();
    assert!(business.batch(&items).await.iter().all(|answer| answer["status"] == 202));

    let ending = tokio::task::spawn_blocking(move || {
        let code = server.terminate();
        (server, code)
    });
    let code = phone.until_closed().await;
    let told = phone.frames.iter().find(|frame| frame["type"] == "reconnect").expect("it was told").clone();
    assert_eq!((code, told["reason"].as_str()), (Close::Drain.code(), Some("drain")), "{told}");
    assert!(told["after_ms"].as_u64().is_some());
    let (server, code) = ending.await.unwrap();
    assert_eq!(code, Some(0), "{}", server.log());

    let _server = server.restart();
    phone.until_seen(500).await;
    assert_eq!(phone.contents(), (0..500).map(|n| n.to_string()).collect::<Vec<_>>());
}
