//! The reference client in Rust against the real server, through kills: each message once, in order, nothing missed.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use schemas::frame::ServerFrame;
use tests::harness::{Business, Server, Settings, eventually, number};

use crate::reference::Client;

const ROUNDS: usize = 3;
const EACH: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn the_rust_client_sees_each_once_in_order_through_kills() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(&folder.path().join("data"), Settings::unmetered().on_fixed_ports());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (mut client, heard) = {
        let token = server.token("acme", &number(1));
        (Client::new(&server.url, "rust", move || token.clone()), seen.clone())
    };
    let running = tokio::spawn(async move {
        let code = client
            .run(|frame| {
                let mut heard = heard.lock();
                if let ServerFrame::Messages { items } = frame {
                    heard.extend(items.into_iter().map(|item| item.content));
                }
                heard.len() < ROUNDS * EACH
            })
            .await;
        (code, client.cursor)
    });
    let mut expected = Vec::new();
    let mut last = String::new();
    for round in 0..ROUNDS {
        let business = Business::new(&server);
        for n in 0..EACH {
            let name = format!("{round}.{n}");
            last = business.insist(&number(1), &name, &name).await.id;
            expected.push(name);
            // In the middle of a round: some are with the client, some are not, and some are not acknowledged.
            if n == EACH / 2 && round > 0 {
                server.kill9();
                server = server.restart();
            }
        }
    }
    let (code, cursor) = tokio::time::timeout(Duration::from_secs(60), running).await.unwrap().unwrap();
    assert_eq!(code, 1000, "it ended because it had enough");
    assert_eq!(*seen.lock(), expected);
    assert!(cursor.is_some(), "it keeps its cursor");
    let business = Business::new(&server);
    eventually("the last one to be acknowledged", async || (business.status(&last).await == "delivered").then_some(()))
        .await;
}
