//! The reference client in JavaScript, run by Node against the real server: it keeps its cursor, drops repeats, comes back.

use std::{path::Path, process::Stdio};

use tests::harness::{Business, Server, Settings, free_ports, number};
use tokio::io::{AsyncBufReadExt, BufReader};

#[tokio::test(flavor = "multi_thread")]
async fn the_javascript_client_sees_each_once_in_order_through_kills() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings { ports: Some(free_ports()), ..Settings::unmetered() };
    let mut server = Server::start(&folder.path().join("data"), settings);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut node = tokio::process::Command::new("node");
    node.arg("--experimental-websocket").arg(root.join("tests/clients/listen.mjs"));
    node.env("ESH3AR_URL", &server.url)
        .env("ESH3AR_TOKEN", server.token("acme", &number(1)))
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let mut child = node.spawn().expect("node is needed for the JavaScript client");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for round in 0..3 {
        let business = Business::new(&server);
        for n in 0..20 {
            business.insist(&number(1), &format!("{round}.{n}"), &format!("{round}.{n}")).await;
        }
        for n in 0..20 {
            let line = tokio::time::timeout(tests::harness::PATIENCE, lines.next_line()).await.unwrap().unwrap();
            assert_eq!(line.as_deref(), Some(format!("{round}.{n}").as_str()));
        }
        server.kill9();
        server = server.restart();
    }
}
