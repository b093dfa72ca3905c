//! The people of a drill: senders that insist, and phones that come and go.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{SinkExt, StreamExt};
use parking_lot::Mutex;
use rand::Rng;
use serde_json::{Value, json};
use tokio_tungstenite::{
    connect_async,
    tungstenite::{Message, client::IntoClientRequest},
};

/// How long people wait before they try again.
const AGAIN: Duration = Duration::from_millis(20);

/// One recipient: who sends to it, and what its phone saw.
#[derive(Default)]
pub(super) struct Thread {
    /// Messages accepted, numbered from 0: the next number to send.
    pub(super) accepted: AtomicU64,
    /// Ids of what was accepted, in order.
    pub(super) ids: Mutex<Vec<String>>,
    /// What the phone saw, each once, in order.
    pub(super) seen: Mutex<Vec<u64>>,
    /// Sent again after the phone had it (allowed across connections).
    pub(super) repeats: AtomicU64,
    /// Sent twice on one connection (never allowed).
    pub(super) repeats_in_session: AtomicU64,
}

/// What all people of a drill share.
pub(super) struct World {
    /// The public door; the same through every restart.
    pub(super) url: String,
    /// For requests.
    pub(super) http: reqwest::Client,
    /// Senders send while this is set.
    pub(super) sending: AtomicBool,
    /// Everyone ends once this is set.
    pub(super) over: AtomicBool,
    /// The recipients.
    pub(super) threads: Vec<Arc<Thread>>,
}

impl World {
    /// The number of the `n`th recipient.
    pub(super) fn number(n: usize) -> String {
        format!("+96279{n:07}")
    }
}

/// Sends to one recipient, message after message, each until it is accepted.
pub(super) async fn sender(world: Arc<World>, n: usize, token: String) {
    let thread = &world.threads[n];
    while !world.over.load(Ordering::Relaxed) {
        if !world.sending.load(Ordering::Relaxed) {
            tokio::time::sleep(AGAIN).await;
            continue;
        }
        let next = thread.accepted.load(Ordering::Acquire);
        let priority = ["high", "normal", "low"][n % 3];
        let body = json!({ "to": World::number(n), "content": next.to_string(), "key": format!("{n}-{next}"), "priority": priority });
        let request = world.http.post(format!("{}/v1/messages", world.url)).bearer_auth(&token).json(&body);
        let answered = async { request.send().await.ok()?.error_for_status().ok()?.json::<Value>().await.ok() };
        match answered.await {
            Some(answer) => {
                thread.ids.lock().push(answer["id"].as_str().unwrap_or_default().to_owned());
                thread.accepted.store(next + 1, Ordering::Release);
            }
            None => tokio::time::sleep(AGAIN).await,
        }
    }
}

/// One phone: keeps its cursor, drops what it has seen, hangs up now and then, sometimes without having acknowledged.
pub(super) async fn phone(world: Arc<World>, n: usize, token: String) {
    let (mut cursor, mut known) = (None::<String>, HashSet::new());
    while !world.over.load(Ordering::Relaxed) {
        if connection(&world, n, &token, &mut cursor, &mut known).await.is_none() {
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// One connection, until it ends; `None` where it could not be made or broke.
async fn connection(
    world: &World,
    n: usize,
    token: &str,
    cursor: &mut Option<String>,
    known: &mut HashSet<u64>,
) -> Option<()> {
    let thread = &world.threads[n];
    let at = cursor.as_ref().map(|c| format!("&cursor={c}")).unwrap_or_default();
    let url = format!("{}/v1/ws?device=phone{at}", world.url.replacen("http", "ws", 1));
    let mut request = url.into_client_request().ok()?;
    request.headers_mut().insert("authorization", format!("Bearer {token}").parse().ok()?);
    let (mut socket, _) = tokio::time::timeout(Duration::from_secs(5), connect_async(request)).await.ok()?.ok()?;
    // Most connections hold; some last a few frames only, and some of those end without an acknowledgement.
    let frames = if rand::rng().random_bool(0.3) { rand::rng().random_range(1..20) } else { u32::MAX };
    let acknowledges = frames == u32::MAX || rand::rng().random_bool(0.5);
    let mut here = HashSet::new();
    for _ in 0..frames {
        let message = tokio::select! {
            message = socket.next() => message?.ok()?,
            () = over(world) => return Some(()),
        };
        let Message::Text(text) = message else { continue };
        let frame: Value = serde_json::from_str(&text).ok()?;
        match frame["type"].as_str() {
            Some("messages") => {
                for item in frame["items"].as_array()? {
                    let number: u64 = item["content"].as_str()?.parse().ok()?;
                    if !here.insert(number) {
                        thread.repeats_in_session.fetch_add(1, Ordering::Relaxed);
                    }
                    if known.insert(number) {
                        thread.seen.lock().push(number);
                    } else {
                        thread.repeats.fetch_add(1, Ordering::Relaxed);
                    }
                    *cursor = item["cursor"].as_str().map(str::to_owned);
                }
                if acknowledges {
                    socket.send(Message::text(json!({ "type": "ack", "cursor": cursor }).to_string())).await.ok()?;
                }
            }
            Some("ping") => socket.send(Message::text(r#"{"type":"pong"}"#)).await.ok()?,
            Some("reconnect") => return Some(()),
            _ => {}
        }
    }
    Some(())
}

async fn over(world: &World) {
    while !world.over.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
