//! Ten thousand phones that say nothing but `pong` keep their lines through heartbeats, and a message to one of them arrives.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{SinkExt, StreamExt};
use rustix::process::{Resource, getrlimit, setrlimit};
use tests::harness::{Business, Server, Settings, not_run, number};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{Message, client::IntoClientRequest, protocol::WebSocketConfig},
};

const WANTED: usize = 10_000;
/// Descriptors for everything else that this process holds.
const OTHERS: usize = 500;
/// How long all of it may take: the heartbeat is five seconds here.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Default)]
struct Counts {
    pings: AtomicUsize,
    ended: AtomicUsize,
}

/// How many sockets this process may hold, of those that are wanted.
fn room() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
    let most = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
    WANTED.min(most.saturating_sub(OTHERS))
}

async fn open(server: &Server, n: usize) -> WebSocketStream<TcpStream> {
    let address = &server.listen;
    let mut request = format!("ws://{address}/v1/ws?device=one").into_client_request().unwrap();
    let token = server.token("acme", &number(n as u32));
    request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    let stream = TcpStream::connect(address).await.unwrap();
    let config = WebSocketConfig::default().read_buffer_size(512).write_buffer_size(0);
    client_async_with_config(request, stream, Some(config)).await.unwrap_or_else(|why| panic!("phone {n}: {why}")).0
}

/// Answers heartbeats and gives the contents of what comes.
async fn listen(mut socket: WebSocketStream<TcpStream>, counts: Arc<Counts>, got: tokio::sync::mpsc::Sender<String>) {
    while let Some(Ok(message)) = socket.next().await {
        let Message::Text(text) = message else { continue };
        let frame: serde_json::Value = serde_json::from_str(&text).unwrap();
        match frame["type"].as_str() {
            Some("ping") => {
                counts.pings.fetch_add(1, Ordering::Relaxed);
                if socket.send(Message::text(r#"{"type":"pong"}"#)).await.is_err() {
                    break;
                }
            }
            Some("messages") => {
                for item in frame["items"].as_array().into_iter().flatten() {
                    let _ = got.send(item["content"].as_str().unwrap_or_default().to_owned()).await;
                }
            }
            _ => {}
        }
    }
    counts.ended.fetch_add(1, Ordering::Relaxed);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_hold_over_heartbeats_and_one_gets_its_message() {
    let count = room();
    if count < WANTED {
        not_run(&format!("{WANTED} idle connections: this process may hold {count}, and they alone were held"));
    }
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings::default().with(["limits.socket.heartbeat_ms=5000", "limits.socket.silent_ms=20000"]);
    let server = Server::start(&folder.path().join("data"), settings);
    let counts = Arc::new(Counts::default());
    let (got, mut messages) = tokio::sync::mpsc::channel(16);
    let mut tasks = tokio::task::JoinSet::new();
    for wave in (0..count).collect::<Vec<_>>().chunks(100) {
        for socket in futures::future::join_all(wave.iter().map(|n| open(&server, *n))).await {
            tasks.spawn(listen(socket, counts.clone(), got.clone()));
        }
    }
    // Two heartbeats each, on the whole: whoever connected first has had more.
    let beaten = async {
        while counts.pings.load(Ordering::Relaxed) < 3 * count {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    assert!(
        tokio::time::timeout(PATIENCE, beaten).await.is_ok(),
        "{} heartbeats came",
        counts.pings.load(Ordering::Relaxed)
    );
    assert_eq!(counts.ended.load(Ordering::Relaxed), 0, "no line was lost");
    let (_, lanes) = server.admin("GET", "/admin/v1/lanes", None).await;
    assert_eq!(lanes["sessions"], count, "{lanes}");

    let (business, chosen) = (Business::new(&server), number(count as u32 * 2 / 3));
    let sent = business.send(&chosen, "are you there").await;
    let came = tokio::time::timeout(PATIENCE, messages.recv()).await.unwrap();
    assert_eq!(came.as_deref(), Some("are you there"));
    assert_eq!(business.until(&sent.id, "sent").await["to"], chosen);
    assert_eq!(counts.ended.load(Ordering::Relaxed), 0);
}
