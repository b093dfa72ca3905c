//! The phones of a drill: they come and go, keep their cursor and drop what they have seen. Sleepers connect only while an
//! account is drawn up. A business user's desk listens to what becomes of its messages and holds every word of it against
//! what the server answers when asked.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::{SinkExt, StreamExt};
use rand::Rng;
use schemas::Status;
use serde_json::{Value, json};
use tokio::{net::TcpStream, sync::watch};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Message, client::IntoClientRequest},
};

use super::{
    ledger::Seen,
    world::{Recipient, World},
};

/// How long people wait before they try again.
pub(super) const AGAIN: Duration = Duration::from_millis(20);
/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// What a phone keeps between connections.
#[derive(Default)]
struct Memory {
    cursor: Option<String>,
    known: HashSet<String>,
}

/// How one connection behaves.
#[derive(Clone, Copy)]
struct Manner {
    /// It hangs up after so many frames.
    frames: u32,
    /// It acknowledges.
    acknowledges: bool,
    /// It names the cursor it kept; else it goes on from the one that the server keeps, and drops what comes again.
    names_cursor: bool,
}

impl Manner {
    const PATIENT: Self = Self { frames: u32::MAX, acknowledges: true, names_cursor: true };

    /// Most connections hold; some last a few frames only, and some of those end without an acknowledgement.
    fn any() -> Self {
        let (mut rng, patient) = (rand::rng(), Self { names_cursor: rand::rng().random_bool(0.8), ..Self::PATIENT });
        match rng.random_bool(0.7) {
            true => patient,
            false => Self { frames: rng.random_range(1..20), acknowledges: rng.random_bool(0.5), ..patient },
        }
    }
}

async fn open(world: &World, token: &str, device: &str, cursor: Option<&str>) -> Option<Socket> {
    let at = cursor.map(|c| format!("&cursor={c}")).unwrap_or_default();
    let url = format!("{}/v1/ws?device={device}{at}", world.doors.sockets.replacen("http", "ws", 1));
    let mut request = url.into_client_request().ok()?;
    request.headers_mut().insert("authorization", format!("Bearer {token}").parse().ok()?);
    Some(tokio::time::timeout(CONNECT, connect_async(request)).await.ok()?.ok()?.0)
}

/// The phone of recipient `n`.
pub(super) async fn phone(world: Arc<World>, n: usize) {
    let (person, mut memory) = (&world.people[n], Memory::default());
    while !world.over.is_cancelled() {
        let connection = connection(&world, person, &mut memory, Manner::any());
        let ended = tokio::select! {
            ended = connection => ended,
            () = world.over.cancelled() => return,
        };
        if ended.is_none() {
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// Waits until sleepers are to be awake, or to sleep.
async fn until(awake: &mut watch::Receiver<bool>, wanted: bool) {
    while *awake.borrow_and_update() != wanted {
        if awake.changed().await.is_err() {
            return;
        }
    }
}

/// The phone of a recipient that sleeps: connected while it is told to be awake, and gone when it says so.
pub(super) async fn sleeper(world: Arc<World>, n: usize) {
    let (person, mut memory, mut awake) = (&world.people[n], Memory::default(), world.awake.subscribe());
    while !world.over.is_cancelled() {
        until(&mut awake, true).await;
        world.connected_sleepers.fetch_add(1, Ordering::AcqRel);
        let dozing = async {
            loop {
                connection(&world, person, &mut memory, Manner::PATIENT).await;
                tokio::time::sleep(AGAIN).await;
            }
        };
        tokio::select! {
            () = dozing => {}
            () = until(&mut awake, false) => {}
            () = world.over.cancelled() => return,
        }
        world.connected_sleepers.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One connection, until it ends; `None` where it could not be made or broke.
async fn connection(world: &World, person: &Recipient, memory: &mut Memory, manner: Manner) -> Option<()> {
    let cursor = memory.cursor.as_deref().filter(|_| manner.names_cursor);
    let mut socket = open(world, &person.token, "phone", cursor).await?;
    let mut here = HashSet::new();
    for _ in 0..manner.frames {
        let Message::Text(text) = socket.next().await?.ok()? else { continue };
        let frame: Value = serde_json::from_str(&text).ok()?;
        match frame["type"].as_str() {
            Some("messages") => {
                let at = world.clock.wall();
                for item in frame["items"].as_array()? {
                    let text = |name: &str| item[name].as_str().unwrap_or_default().to_owned();
                    let (id, content) = (text("id"), text("content"));
                    if !here.insert(id.clone()) {
                        person.repeats_in_session.fetch_add(1, Ordering::Relaxed);
                    }
                    if memory.known.insert(id.clone()) {
                        person.seen.lock().push(Seen { id, content, at });
                    } else {
                        person.repeats.fetch_add(1, Ordering::Relaxed);
                    }
                    memory.cursor = item["cursor"].as_str().map(str::to_owned);
                }
                if manner.acknowledges {
                    say(&mut socket, &json!({ "type": "ack", "cursor": memory.cursor })).await?;
                }
            }
            Some("ping") => say(&mut socket, &json!({ "type": "pong" })).await?,
            Some("reconnect") => return Some(()),
            _ => {}
        }
    }
    Some(())
}

async fn say(socket: &mut Socket, frame: &Value) -> Option<()> {
    socket.send(Message::text(frame.to_string())).await.ok()
}

/// A tenant's business user at its desk: hears what becomes of its messages.
pub(super) async fn desk(world: Arc<World>, tenant: usize) {
    while !world.over.is_cancelled() {
        tokio::select! {
            _ = listen(&world, tenant) => tokio::time::sleep(AGAIN).await,
            () = world.over.cancelled() => return,
        }
    }
}

async fn listen(world: &World, tenant: usize) -> Option<()> {
    let token = &world.desks[tenant];
    let mut socket = open(world, token, "desk", None).await?;
    let connection = world.desk_connections.fetch_add(1, Ordering::Relaxed);
    loop {
        let Message::Text(text) = socket.next().await?.ok()? else { continue };
        let frame: Value = serde_json::from_str(&text).ok()?;
        match frame["type"].as_str() {
            Some("status") => {
                let id = frame["id"].as_str()?.to_owned();
                let told = word(&frame["status"])?;
                let (status, answer) = world.ask(http::Method::GET, &format!("/v1/messages/{id}"), token, None).await;
                if let (200, Some(asked)) = (status, word(&answer["status"]))
                    && asked < told
                {
                    world.fault(format!(
                        "{tenant}: a frame says that {id} is {told}, and asked, the server says {asked}"
                    ));
                }
                world.told.lock().push((id, connection, told));
            }
            Some("ping") => say(&mut socket, &json!({ "type": "pong" })).await?,
            Some("reconnect") => return Some(()),
            _ => {}
        }
    }
}

/// A status by its word.
pub(super) fn word(value: &Value) -> Option<Status> {
    Status::ALL.into_iter().find(|status| value.as_str() == Some(status.word()))
}
