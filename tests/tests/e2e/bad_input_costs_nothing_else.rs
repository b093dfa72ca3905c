//! Hostile and broken clients get a clear, bounded answer, and their neighbours do not notice.

use std::time::Duration;

use serde_json::json;
use tests::harness::{Business, PATIENCE, Phone, Server, Settings, number};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

fn resident_bytes(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

async fn raw(server: &Server) -> TcpStream {
    TcpStream::connect(server.url.trim_start_matches("http://")).await.unwrap()
}

async fn neighbour_is_served(server: &Server, n: u32) {
    let business = Business::new(server);
    let mut phone = Phone::new(server, &number(n), "neighbour");
    phone.connect().await.unwrap();
    let sent = business.send(&number(n), "neighbour").await;
    phone.until_seen(1).await;
    business.until(&sent.id, "delivered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_a_gigabyte_is_refused_before_memory_is_spent() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::default());
    neighbour_is_served(&server, 1).await;
    let before = resident_bytes(&server);
    let token = server.token("acme", "server");
    // Announced: refused by its length alone.
    let mut socket = raw(&server).await;
    let head = format!(
        "POST /v1/messages HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\ncontent-length: 1073741824\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    tokio::time::timeout(PATIENCE, socket.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
    // Not announced: refused when it passes the bound.
    let piece = bytes::Bytes::from(vec![b' '; 1 << 20]);
    let endless = futures::stream::iter((0..1024).map(move |_| Ok::<_, std::io::Error>(piece.clone())));
    let request = server
        .http
        .post(format!("{}/v1/messages", server.url))
        .bearer_auth(&token)
        .header("content-type", "application/json");
    let sent = tokio::time::timeout(PATIENCE, request.body(reqwest::Body::wrap_stream(endless)).send()).await.unwrap();
    if let Ok(response) = sent {
        assert_eq!(response.status(), 413);
    }
    assert!(resident_bytes(&server) < before + (64 << 20), "memory grew from {before} to {}", resident_bytes(&server));
    neighbour_is_served(&server, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_tiny_lines_are_answered_up_to_the_bound() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::unmetered());
    let before = resident_bytes(&server);
    let token = server.token("acme", "server");
    let request = server.http.post(format!("{}/v1/messages/batch", server.url)).bearer_auth(&token);
    let response =
        request.header("content-type", "application/x-ndjson").body("x\n".repeat(1_000_000)).send().await.unwrap();
    let mut lines = 0;
    let mut response = response;
    while let Ok(Some(chunk)) = response.chunk().await {
        lines += chunk.iter().filter(|b| **b == b'\n').count();
    }
    let bound = schemas::limits::DoorLimits::default().batch_items;
    assert!(lines >= bound && lines <= bound + 1, "{lines} answers");
    assert!(resident_bytes(&server) < before + (128 << 20));
    neighbour_is_served(&server, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_loris_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(
        &folder.path().join("data"),
        Settings::default().with(["limits.door.head_ms=300", "limits.door.request_ms=600"]),
    );
    let token = server.token("acme", "server");
    let heads = [
        "GET /v1/limits HTTP/1.1\r\nhost: x\r\nx-slow: ".to_owned(),
        format!(
            "POST /v1/messages HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{{"
        ),
    ];
    for head in heads {
        let mut socket = raw(&server).await;
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "the connection was left open: {head}");
        let said = String::from_utf8_lossy(&rest);
        assert!(said.is_empty() || said.contains(" 408 "), "{said}");
    }
    neighbour_is_served(&server, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_reads_is_closed_and_costs_little() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings::unmetered().with(["limits.socket.write_ms=500", "limits.flow.ack_ms=600000"]);
    let server = Server::start(&folder.path().join("data"), settings);
    let business = Business::new(&server);
    let body = "x".repeat(9_000);
    let items: Vec<_> = (0..3_000).map(|n| json!({ "to": number(1), "content": format!("{n} {body}") })).collect();
    for answer in business.batch(&items).await {
        assert_eq!(answer["status"], 202, "{answer}");
    }
    let before = resident_bytes(&server);
    // It says that it acknowledges everything, and reads nothing: the server must stop by what it wrote, not by trust.
    let mut deaf = Phone::new(&server, &number(1), "deaf");
    deaf.connect().await.unwrap();
    neighbour_is_served(&server, 2).await;
    assert!(resident_bytes(&server) < before + (64 << 20));
    // Its line is there as soon as it listens again, from where it was.
    let mut phone = Phone::new(&server, &number(1), "deaf");
    phone.connect().await.unwrap();
    phone.until_seen(3_000).await;
    assert!(phone.received.iter().enumerate().all(|(n, r)| r.content.starts_with(&format!("{n} "))));
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_are_none_are_answered_and_a_storm_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::default());
    let mut phone = Phone::new(&server, &number(1), "one");
    phone.connect().await.unwrap();
    for frame in
        [json!({ "type": "dance" }), json!({ "no": "type" }), json!([1, 2]), json!({ "type": "ack", "cursor": "zzz" })]
    {
        phone.say(frame.clone()).await;
        let error = phone.until_frame("a refusal", |f| f["type"] == "error").await;
        assert!(error["problem"]["detail"].as_str().is_some_and(|d| !d.is_empty()), "{frame}: {error}");
    }
    phone.say(json!({ "type": "ping", "unknown": 1 })).await;
    phone.until_frame("a pong", |f| f["type"] == "pong").await;
    for _ in 0..2_000 {
        phone.say(json!({ "type": "ping" })).await;
    }
    assert_eq!(phone.until_closed().await, schemas::frame::Close::Storm.code());
    neighbour_is_served(&server, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_a_foreign_origin_cannot_connect() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::default());
    let token = server.token("acme", &number(1));
    for (origin, allowed) in [("http://evil.example", false), ("null", false), (server.url.as_str(), true)] {
        let mut socket = raw(&server).await;
        let host = server.url.trim_start_matches("http://");
        let head = format!(
            "GET /v1/ws?device=web&access_token={token} HTTP/1.1\r\nhost: {host}\r\norigin: {origin}\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        tokio::time::timeout(PATIENCE, socket.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(&answer, if allowed { b"HTTP/1.1 101" } else { b"HTTP/1.1 403" }, "{origin}");
    }
    assert!(!server.log().contains(&token), "a token in the address is never logged");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_token_closes_the_socket_and_a_new_one_keeps_it() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::default());
    let mut phone = Phone::new(&server, &number(1), "one");
    phone.connect().await.unwrap();
    phone.say(json!({ "type": "token", "token": server.token("acme", &number(1)) })).await;
    phone.until_frame("the answer", |f| f["type"] == "accepted").await;
    phone.say(json!({ "type": "token", "token": server.token("acme", &number(2)) })).await;
    assert_eq!(phone.until_closed().await, schemas::frame::Close::TokenInvalid.code());
    tokio::time::timeout(Duration::from_secs(20), phone.connect()).await.unwrap().unwrap();
}
