//! Three nodes behind a real nginx with the configuration that is shipped: TLS, sockets, streams, and a node that fails.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use futures::{SinkExt, StreamExt};
use ingest::auth::{NewToken, Permissions, Who, mint};
use schemas::{Phone, Tenant, Timestamp, frame::SUBPROTOCOL};
use serde_json::Value;
use tests::harness::{Server, Settings, eventually, free_ports, number, stack::Nodes};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

const SECRET: &str = "three nodes and one secret, of thirty-two bytes or more";

fn node(folder: &Path, n: usize) -> Server {
    let set = [format!("auth.secret={SECRET}"), format!("node=n{n}"), "limits.socket.drain_ms=1000".to_owned()];
    let settings = Settings { ports: Some(free_ports()), ..Settings::unmetered().with(set) };
    Server::start(&folder.join(format!("data{n}")), settings)
}

fn token(who: Who) -> String {
    let business = matches!(who, Who::Server);
    let can = Permissions { send: business, chat: business, broadcast: business, admin: false };
    let claims = NewToken { tenant: Tenant::parse("acme").unwrap(), who, can, ttl_ms: 3_600_000 };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    mint(SECRET.as_bytes(), &claims, Timestamp(now.as_millis() as i64)).unwrap()
}

/// What clients see of it.
struct Proxy {
    nginx: Nodes,
    url: String,
    http: reqwest::Client,
}

impl Proxy {
    async fn before(nodes: &[Server]) -> Self {
        let addresses: Vec<&str> = nodes.iter().map(|node| node.url.trim_start_matches("http://")).collect();
        let nginx = Nodes::start("nginx", &["--gateways", &addresses.join(",")]).await;
        let ca = reqwest::Certificate::from_pem(&std::fs::read(nginx.folder.join("ca.pem")).unwrap()).unwrap();
        let http = reqwest::Client::builder().no_proxy().tls_certs_only([ca]).http1_only().build().unwrap();
        Self { url: format!("https://{}", nginx.addresses[0]), nginx, http }
    }

    /// A socket through it, welcomed; `None`: nobody took it.
    async fn socket(&self, n: u32) -> Option<WebSocketStream<reqwest::Upgraded>> {
        let phone = Phone::from_stored(&number(n)).unwrap();
        let asked = self
            .http
            .get(format!("{}/v1/ws?device=phone", self.url))
            .bearer_auth(token(Who::Mobile(phone)))
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("sec-websocket-protocol", SUBPROTOCOL);
        let answer = asked.send().await.ok()?;
        if answer.status() != 101 {
            return None;
        }
        let raw = answer.upgrade().await.ok()?;
        let mut socket = WebSocketStream::from_raw_socket(raw, Role::Client, None).await;
        (frame(&mut socket).await?["type"] == "welcome").then_some(socket)
    }
}

/// The next frame; `None`: the connection ended.
async fn frame(socket: &mut WebSocketStream<reqwest::Upgraded>) -> Option<Value> {
    let next = async {
        loop {
            match socket.next().await? {
                Ok(Message::Text(text)) => return serde_json::from_str(&text).ok(),
                Ok(Message::Close(_)) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), next).await.ok()?
}

/// Sockets that a node holds, by its own counters.
async fn held(node: &Server) -> u64 {
    let text = node.http.get(format!("{}/metrics", node.admin)).send().await.unwrap().text().await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("esh3ar_sessions "));
    line.and_then(|n| n.trim().parse::<f64>().ok()).unwrap_or(0.0) as u64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_behind_nginx_share_the_sockets_and_a_dead_one_is_left_out_within_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let mut nodes: Vec<Server> = (1..=3).map(|n| node(folder.path(), n)).collect();
    let proxy = Proxy::before(&nodes).await;

    // Sockets, over TLS, spread by how many each has.
    let mut sockets = Vec::new();
    for n in 0..30 {
        sockets.push(proxy.socket(n).await.expect("a socket through nginx"));
    }
    let spread = eventually("every socket is counted", async || {
        let mut spread = Vec::new();
        for node in &nodes {
            spread.push(held(node).await);
        }
        (spread.iter().sum::<u64>() == 30).then_some(spread)
    })
    .await;
    assert!(spread.iter().all(|n| (8..=12).contains(n)), "{spread:?}");
    for socket in &mut sockets {
        socket.send(Message::text(r#"{"type":"ping"}"#)).await.unwrap();
        assert_eq!(frame(socket).await.unwrap()["type"], "pong");
    }

    // One is killed: its sockets end and find another node; nobody who asks is refused for it.
    nodes[0].kill9();
    let killed = Instant::now();
    let mut lost = 0;
    for (n, socket) in (0..).zip(&mut sockets) {
        // Whoever is still connected answers at once; the others see their end.
        let alive = socket.send(Message::text(r#"{"type":"ping"}"#)).await.is_ok() && frame(socket).await.is_some();
        if !alive {
            lost += 1;
            *socket = eventually("a lost phone comes back", async || proxy.socket(n).await).await;
        }
    }
    assert_eq!(lost, spread[0], "those of the other nodes noticed nothing");
    let back = killed.elapsed();
    assert!(back < Duration::from_secs(5), "all are back after {back:?}");
    let mut slowest = Duration::ZERO;
    for _ in 0..60 {
        let began = Instant::now();
        let asked = proxy.http.get(format!("{}/v1/limits", proxy.url)).bearer_auth(token(Who::Server));
        assert_eq!(asked.send().await.unwrap().status(), 200);
        slowest = slowest.max(began.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(slowest < Duration::from_secs(3), "{slowest:?}");

    // It comes back and gets new sockets.
    let first = nodes.remove(0).restart();
    let mut n = 100;
    eventually("the node that came back holds sockets", async || {
        sockets.push(proxy.socket(n).await?);
        n += 1;
        (held(&first).await > 0).then_some(())
    })
    .await;
    println!("{lost} phones were back after {back:?}; the slowest request took {slowest:?}");

    // A drain: the node sends its phones away and nginx gives them to others.
    nodes[0].terminate();
    let mut moved = 0;
    for (n, socket) in (0..30).zip(&mut sockets) {
        let mut last = None;
        let ping = socket.send(Message::text(r#"{"type":"ping"}"#)).await.is_ok();
        while ping && let Some(frame) = frame(socket).await {
            last = Some(frame["type"].clone());
            if last == Some("pong".into()) {
                break;
            }
        }
        if last != Some("pong".into()) {
            moved += 1;
            *socket = eventually("a phone that was sent away comes back", async || proxy.socket(n).await).await;
        }
    }
    assert!(moved > 0);
    proxy.nginx.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_pass_as_they_come_and_what_nginx_refuses_has_our_form() {
    let folder = tempfile::tempdir().unwrap();
    let nodes = [node(folder.path(), 1)];
    let proxy = Proxy::before(&nodes).await;
    let get = async |path: &str| proxy.http.get(format!("{}{path}", proxy.url)).send().await.unwrap().status();
    assert_eq!((get("/health/ready").await, get("/metrics").await), (200.into_status(), 404.into_status()));

    // A line is answered while the body is still being written.
    let (lines, body) = tokio::sync::mpsc::channel::<Result<String, std::io::Error>>(1);
    let body = futures::stream::unfold(body, async |mut body| body.recv().await.map(|line| (line, body)));
    let asked = proxy
        .http
        .post(format!("{}/v1/messages/batch", proxy.url))
        .bearer_auth(token(Who::Server))
        .header("content-type", "application/x-ndjson")
        .body(reqwest::Body::wrap_stream(body));
    let item = |n: u32| format!("{{\"to\":\"{}\",\"content\":\"hello\",\"key\":\"k{n}\"}}\n", number(n));
    lines.send(Ok(item(1))).await.unwrap();
    let answering = tokio::spawn(asked.send());
    // Enough for the first chunk that the door reads.
    for n in 2..600 {
        lines.send(Ok(item(n))).await.unwrap();
    }
    let mut answer = tokio::time::timeout(Duration::from_secs(10), answering).await.unwrap().unwrap().unwrap();
    assert_eq!(answer.status(), 200);
    let first = tokio::time::timeout(Duration::from_secs(10), answer.chunk()).await.expect("it is answered in between");
    assert!(String::from_utf8_lossy(&first.unwrap().unwrap()).contains("\"id\""));
    drop(lines);
    let mut rest = String::new();
    while let Some(chunk) = answer.chunk().await.unwrap() {
        rest.push_str(&String::from_utf8_lossy(&chunk));
    }
    assert!(rest.lines().count() >= 500, "{}", rest.lines().count());

    // Too large for this route, and nobody there: problems like ours.
    let large = proxy.http.post(format!("{}/v1/messages", proxy.url)).bearer_auth(token(Who::Server));
    let refused = large.body(vec![b'x'; 300 * 1024]).send().await.unwrap();
    assert_eq!(refused.status(), 413);
    assert_eq!(refused.headers()["content-type"], "application/problem+json");
    let [mut only] = nodes;
    only.kill9();
    let away = proxy.http.get(format!("{}/v1/limits", proxy.url)).send().await.unwrap();
    assert_eq!((away.status(), away.headers()["retry-after"].to_str().unwrap()), (503.into_status(), "1"));
    assert_eq!(away.json::<Value>().await.unwrap()["type"], "/problems/unknown-outcome");
    proxy.nginx.stop().await;
}

trait IntoStatus {
    fn into_status(self) -> reqwest::StatusCode;
}

impl IntoStatus for u16 {
    fn into_status(self) -> reqwest::StatusCode {
        reqwest::StatusCode::from_u16(self).unwrap()
    }
}
