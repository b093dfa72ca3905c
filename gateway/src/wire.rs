//! Tests over real sockets: the pump, the registry, the gatherer and both reference clients together.

mod missed;
mod talk;

#[path = "../../clients/reference.rs"]
#[allow(dead_code, unreachable_pub)]
mod reference;

use std::{sync::Arc, time::Duration};

use axum::extract::ws::WebSocketUpgrade;
use futures::{SinkExt, StreamExt};
use schemas::{
    Cursor, Limits, Position, Status, frame::ServerFrame, port::Landing, position::Inbox, view::StatusChange,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Message, client::IntoClientRequest},
};

use crate::testing::{House, PHONE, message_to, mobile, phone, token, token_for, until};

type Raw = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn raw(address: &str, query: &str, token: &str) -> Raw {
    let mut request = format!("ws://{address}/v1/ws?{query}").into_client_request().unwrap();
    request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    connect_async(request).await.unwrap().0
}

/// Asks for a connection, and does not wait for the answer.
async fn half_a_connection(address: &str, number: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "GET /v1/ws?device=d1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer {}\r\n\r\n",
        token("acme", phone(number))
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

async fn frame(socket: &mut Raw) -> Result<ServerFrame, u16> {
    loop {
        let next = tokio::time::timeout(Duration::from_secs(10), socket.next()).await.expect("a frame");
        match next {
            Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).unwrap()),
            Some(Ok(Message::Close(Some(frame)))) => return Err(frame.code.into()),
            Some(Ok(_)) => {}
            other => panic!("the socket ended with {other:?}"),
        }
    }
}

/// Everything until the close code.
async fn last_words(socket: &mut Raw) -> (Vec<String>, u16) {
    let mut words = Vec::new();
    loop {
        match frame(socket).await {
            Ok(ServerFrame::Reconnect { reason, .. }) => words.push(reason),
            Ok(_) => {}
            Err(code) => return (words, code),
        }
    }
}

fn inbox(house: &House) -> Inbox {
    house.gateway.inboxes(&mobile(PHONE)).remove(0)
}

/// Runs the reference client; what it sees comes over the channel.
fn listen(address: &str, device: &str) -> (tokio::task::JoinHandle<u16>, mpsc::Receiver<ServerFrame>) {
    listen_as(PHONE, address, device)
}

fn listen_as(
    number: &'static str,
    address: &str,
    device: &str,
) -> (tokio::task::JoinHandle<u16>, mpsc::Receiver<ServerFrame>) {
    let (say, seen) = mpsc::channel(10_000);
    let mut client = reference::Client::new(&format!("http://{address}"), device, move || token("acme", phone(number)));
    let task = tokio::spawn(async move { client.run(move |frame| say.try_send(frame).is_ok()).await });
    (task, seen)
}

async fn items(seen: &mut mpsc::Receiver<ServerFrame>, count: usize) -> Vec<u128> {
    let mut ids = Vec::new();
    while ids.len() < count {
        let frame = tokio::time::timeout(Duration::from_secs(10), seen.recv()).await.expect("items").unwrap();
        if let ServerFrame::Messages { items } = frame {
            ids.extend(items.iter().map(|item| item.id.0.as_u128()));
        }
    }
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waited_and_what_comes_arrives_in_order_and_is_delivered() {
    let house = House::open(Limits::default()).await;
    let address = house.serve().await;
    for n in 1..=250 {
        house.world.record(message_to(PHONE, n));
    }
    let (task, mut seen) = listen(&address, "d1");
    assert_eq!(items(&mut seen, 250).await, (1..=250).collect::<Vec<u128>>());
    for piece in 0..5u128 {
        let hints: Vec<_> = (1..=50).map(|n| house.world.record(message_to(PHONE, 250 + piece * 50 + n))).collect();
        assert!(house.world.deliver(hints).await.iter().all(|landing| *landing == Landing::Taken));
    }
    assert_eq!(items(&mut seen, 250).await, (251..=500).collect::<Vec<u128>>());
    let ids: Vec<_> = (1..=500).map(|n| message_to(PHONE, n).id).collect();
    until("all are delivered", || ids.iter().all(|id| house.world.status(*id) == Status::Delivered)).await;
    let partition = inbox(&house).partition;
    until("the cursor is stored", || {
        let inner = house.world.inner.lock();
        inner.cursors.values().any(|cursor| cursor.position(partition).n == 500)
    })
    .await;
    // Facts of many messages are few records.
    let records: usize = house.world.inner.lock().outcomes.values().map(Vec::len).sum();
    assert!(records < 200, "{records} records for 1,000 facts");
    task.abort();
    until("the session is gone", || house.gateway.sessions() == 0).await;
    assert_eq!(house.world.deliver(vec![house.world.record(message_to(PHONE, 501))]).await, [Landing::Absent]);
    until("presence knows", || house.world.inner.lock().places.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_keeps_its_cursor_sees_each_once_over_many_connections() {
    let house = House::open(Limits::default()).await;
    let address = house.serve().await;
    let (_task, mut seen) = listen(&address, "d1");
    let mut all = Vec::new();
    for round in 0..6u128 {
        let hints: Vec<_> = (1..=20).map(|n| house.world.record(message_to(PHONE, round * 20 + n))).collect();
        house.world.deliver(hints).await;
        all.extend(items(&mut seen, 20).await);
        // The connection breaks without a word, as a lost network does: the handle is told nothing.
        house.gateway.registry.each(|handle| handle.order(crate::registry::Order::Drain(1)));
    }
    assert_eq!(all, (1..=120).collect::<Vec<u128>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_session_of_the_same_device_takes_over_and_the_older_is_told_why() {
    let house = House::open(Limits::default()).await;
    let address = house.serve().await;
    let mut older = raw(&address, "device=d1", &token("acme", phone(PHONE))).await;
    assert!(matches!(frame(&mut older).await, Ok(ServerFrame::Welcome { recovered: true, .. })));
    let mut other_device = raw(&address, "device=d2", &token("acme", phone(PHONE))).await;
    let mut newer = raw(&address, "device=d1", &token("acme", phone(PHONE))).await;
    assert_eq!(last_words(&mut older).await, (vec!["newer_session".to_owned()], 4200));
    house.world.deliver(vec![house.world.record(message_to(PHONE, 1))]).await;
    for socket in [&mut newer, &mut other_device] {
        assert!(matches!(frame(socket).await, Ok(ServerFrame::Welcome { .. })));
        assert!(matches!(frame(socket).await, Ok(ServerFrame::Messages { items }) if items.len() == 1));
    }
    let device = "d1".parse().unwrap();
    until("one is left", || house.gateway.registry.of_device(&mobile(PHONE), &device) == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_acknowledged_closes_the_socket_and_comes_again_on_the_next() {
    let mut limits = Limits::default();
    limits.flow.ack_ms = 200;
    let house = House::open(limits).await;
    let address = house.serve().await;
    house.world.record(message_to(PHONE, 1));
    let mut socket = raw(&address, "device=d1", &token("acme", phone(PHONE))).await;
    assert_eq!(last_words(&mut socket).await, (vec!["no_ack".to_owned()], 4003));
    let mut socket = raw(&address, "device=d1", &token("acme", phone(PHONE))).await;
    assert!(matches!(frame(&mut socket).await, Ok(ServerFrame::Welcome { .. })));
    assert!(matches!(frame(&mut socket).await, Ok(ServerFrame::Messages { items }) if items[0].id.0.as_u128() == 1));
    until("sent is known", || house.world.status(message_to(PHONE, 1).id) == Status::Sent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_reads_is_closed_and_stops_nobody_else() {
    let mut limits = Limits::default();
    limits.socket.write_ms = 200;
    let house = House::open(limits).await;
    let address = house.serve().await;
    let slow = "+962790000009";
    let mut stream = half_a_connection(&address, slow).await;
    until("it is connected", || house.gateway.sessions() == 1).await;
    let (_task, mut seen) = listen(&address, "d1");
    until("both are connected", || house.gateway.sessions() == 2).await;
    let hints: Vec<_> = (1..=900)
        .map(|n| {
            let mut message = message_to(slow, 10_000 + n);
            message.content.body = "x".repeat(40_000);
            house.world.record(message)
        })
        .collect();
    for piece in hints.chunks(100) {
        house.world.deliver(piece.to_vec()).await;
    }
    house.world.deliver(vec![house.world.record(message_to(PHONE, 1))]).await;
    assert_eq!(items(&mut seen, 1).await, [1]);
    until("the slow one is closed", || house.gateway.sessions() == 1).await;
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await.expect("it ends");
    assert!(rest.len() < 40_000_000, "most was never written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_away_makes_facts_wait_and_loses_none() {
    let house = House::open(Limits::default()).await;
    let address = house.serve().await;
    let (_task, mut seen) = listen(&address, "d1");
    until("it is connected", || house.gateway.sessions() == 1).await;
    house.world.inner.lock().away.push("append");
    let hints: Vec<_> = (1..=40).map(|n| house.world.record(message_to(PHONE, n))).collect();
    house.world.deliver(hints).await;
    assert_eq!(items(&mut seen, 40).await.len(), 40);
    assert_eq!(house.world.status(message_to(PHONE, 1).id), Status::Pending);
    house.world.inner.lock().away.clear();
    let ids: Vec<_> = (1..=40).map(|n| message_to(PHONE, n).id).collect();
    until("all are delivered", || ids.iter().all(|id| house.world.status(*id) == Status::Delivered)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_tells_clients_to_come_back_and_makes_what_they_said_durable() {
    let house = House::open(Limits::default()).await;
    let address = house.serve().await;
    house.world.record(message_to(PHONE, 1));
    let mut socket = raw(&address, "device=d1", &token("acme", phone(PHONE))).await;
    frame(&mut socket).await.unwrap();
    let Ok(ServerFrame::Messages { items }) = frame(&mut socket).await else { panic!("an item is expected") };
    let cursor = items[0].cursor.clone().unwrap();
    socket.send(Message::text(format!(r#"{{"type":"ack","cursor":"{cursor}"}}"#))).await.unwrap();
    let gateway = house.gateway.clone();
    let draining = tokio::spawn(async move { gateway.drain().await });
    assert_eq!(last_words(&mut socket).await, (vec!["drain".to_owned()], 4000));
    drop(socket);
    draining.await.unwrap();
    assert_eq!(house.world.status(message_to(PHONE, 1).id), Status::Delivered);
    assert_eq!(house.gateway.sessions(), 0);
    assert!(house.world.inner.lock().places.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_business_user_connects_and_is_told_what_became_of_its_messages() {
    let house = House::open(Limits::default()).await;
    let address = house.serve().await;
    let sara = ingest::auth::Who::Business("sara".parse().unwrap());
    let mut socket = raw(&address, "device=desk", &token("acme", sara)).await;
    let Ok(ServerFrame::Welcome { cursor, .. }) = frame(&mut socket).await else { panic!("welcome is expected") };
    assert!(cursor.0.is_empty(), "nothing was written to it yet");
    let id = message_to(PHONE, 7).id;
    let note =
        |status| StatusChange { id, status, at: schemas::Timestamp(1), reason: None, client_ref: None, metadata: None };
    let user = schemas::UserId::business("acme".parse().unwrap(), "sara".parse().unwrap());
    let node: &dyn schemas::port::Node = house.gateway.registry.as_ref();
    node.notify(vec![(user.clone(), note(Status::Sent)), (user, note(Status::Delivered))]).await;
    // Of one message that waits the latest is enough, so the first may be passed over.
    loop {
        let Ok(ServerFrame::Status(change)) = frame(&mut socket).await else { panic!("a status is expected") };
        if change.status == Status::Delivered {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_ends_its_session_unless_it_is_renewed_on_the_socket() {
    let mut limits = Limits::default();
    limits.socket.heartbeat_ms = 200;
    let house = House::open(limits).await;
    let address = house.serve().await;
    let short = || token_for("acme", phone(PHONE), 2_000);
    let mut left = raw(&address, "device=d1", &short()).await;
    let mut renewed = raw(&address, &format!("device=d2&access_token={}", short()), "").await;
    let text = format!(r#"{{"type":"token","token":"{}"}}"#, token("acme", phone(PHONE)));
    renewed.send(Message::text(text)).await.unwrap();
    assert_eq!(last_words(&mut left).await.1, 4100);
    let mut accepted = false;
    for _ in 0..10 {
        accepted |= matches!(frame(&mut renewed).await, Ok(ServerFrame::Accepted { .. }));
    }
    assert!(accepted && house.gateway.sessions() == 1);
    let foreign = format!(r#"{{"type":"token","token":"{}"}}"#, token("acme", phone("+962790000002")));
    renewed.send(Message::text(foreign)).await.unwrap();
    assert_eq!(last_words(&mut renewed).await.1, 4101);
}

#[tokio::test]
async fn a_cursor_from_elsewhere_is_answered_honestly() {
    let house = House::open(Limits::default()).await;
    let address = house.serve().await;
    for n in 1..=5 {
        house.world.record(message_to(PHONE, n));
    }
    let inbox = inbox(&house);
    let welcome = async |cursor: Cursor| {
        let mut socket = raw(&address, &format!("device=d1&cursor={cursor}"), &token("acme", phone(PHONE))).await;
        let Ok(ServerFrame::Welcome { cursor, recovered, .. }) = frame(&mut socket).await else { panic!("welcome") };
        (cursor.position(inbox.partition).n, recovered)
    };
    let at = |n| Cursor::at(inbox.partition, schemas::cursor::place(1, n));
    assert_eq!(welcome(at(3)).await, (3, true));
    assert_eq!(welcome(at(99)).await, (0, false), "beyond the inbox: it is not from here");
    house.world.inner.lock().entries.get_mut(&inbox).unwrap().drain(..4);
    assert_eq!(welcome(at(4)).await, (4, true));
    assert_eq!(welcome(at(2)).await, (4, false), "retention passed it: what is kept starts after the fourth");
    house.world.inner.lock().entries.clear();
    assert_eq!(welcome(Cursor::at(inbox.partition, Position::START)).await, (0, true));
}

// DESIGN §7 and docs/performance.md: the defaults cost 137 KB a connection.
#[tokio::test]
async fn the_settings_of_a_socket_are_pinned() {
    let limits = Limits::default().socket;
    let given = Arc::new(parking_lot::Mutex::new(String::new()));
    let shown = given.clone();
    let routes = axum::Router::new().route(
        "/",
        axum::routing::get(move |upgrade: WebSocketUpgrade| async move {
            let upgrade = crate::socket::settings(upgrade, &limits);
            *shown.lock() = format!("{upgrade:?}");
            upgrade.on_upgrade(|_| async {})
        }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, routes).await });
    connect_async(format!("ws://{address}/")).await.unwrap();
    let given = given.lock().clone();
    for setting in [
        "read_buffer_size: 1024,",
        "write_buffer_size: 4096,",
        "max_write_buffer_size: 262144,",
        "max_message_size: Some(65536)",
        "max_frame_size: Some(65536)",
        "accept_unmasked_frames: false",
    ] {
        assert!(given.contains(setting), "{setting} is not in {given}");
    }
    let size = std::mem::size_of::<crate::socket::Pump>();
    assert!(size <= 1_280, "a connection's own state has {size} bytes");
}

#[tokio::test]
async fn a_frame_that_is_too_long_ends_the_session() {
    let house = House::open(Limits::default()).await;
    let address = house.serve().await;
    let mut socket = raw(&address, "device=d1", &token("acme", phone(PHONE))).await;
    frame(&mut socket).await.unwrap();
    socket.send(Message::text("x".repeat(70_000))).await.unwrap();
    assert_eq!(last_words(&mut socket).await.1, 4201);
    let mut socket = raw(&address, "device=d1", &token("acme", phone(PHONE))).await;
    socket.send(Message::binary(vec![1, 2, 3])).await.unwrap();
    assert_eq!(last_words(&mut socket).await.1, 4201);
}

// The JavaScript reference client, where Node is there (20 has a WebSocket behind a flag).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_javascript_client_sees_everything_once_and_in_order() {
    let house = House::open(Limits::default()).await;
    let address = house.serve().await;
    for n in 1..=30 {
        house.world.record(message_to(PHONE, n));
    }
    let client = concat!(env!("CARGO_MANIFEST_DIR"), "/../clients/reference.js");
    let script = format!(
        "import({client:?}).then(({{ connect }}) => {{ let n = 0; const c = connect({{ url: 'http://{address}', \
         token: () => '{}', device: 'js', onItem: (item) => {{ console.log(item.id); \
         if (++n === 60) setTimeout(() => c.close(), 300); }} }}); }});",
        token("acme", phone(PHONE))
    );
    let node = tokio::process::Command::new("node")
        .args(["--experimental-websocket", "--input-type=module", "-e", &script])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let Ok(node) = node else {
        println!("skipped: there is no `node` here");
        return;
    };
    until("it is connected", || house.gateway.sessions() == 1).await;
    let last = message_to(PHONE, 30).id;
    until("it caught up", || house.world.status(last) == Status::Delivered).await;
    // It is made to come back in between.
    house.gateway.registry.each(|handle| handle.order(crate::registry::Order::Drain(1)));
    let hints: Vec<_> = (31..=60).map(|n| house.world.record(message_to(PHONE, n))).collect();
    house.world.deliver(hints).await;
    let output = tokio::time::timeout(Duration::from_secs(20), node.wait_with_output()).await.unwrap().unwrap();
    let seen: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    let sent: Vec<String> = (1..=60).map(|n| message_to(PHONE, n).id.to_string()).collect();
    assert_eq!(seen, sent);
    until("all are delivered", || house.world.status(message_to(PHONE, 60).id) == Status::Delivered).await;
}
