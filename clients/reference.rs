//! The reference client: what a phone does, in as few lines as it takes. It keeps its cursor, drops what it has seen, comes
//! back after a pause with jitter, renews its token, and acknowledges by cursor every 100 ms. What it sends it repeats on every
//! connection until it is answered.
//!
//! Needs tokio, tokio-tungstenite, futures, serde_json and `schemas`. Stop it by dropping it.

use std::{
    collections::{HashSet, VecDeque},
    time::Duration,
};

use futures::{SinkExt, StreamExt};
use schemas::{
    Cursor, MessageId,
    frame::{ClientFrame, SUBPROTOCOL, ServerFrame},
    view::Item,
};
use tokio::sync::mpsc;
use tokio_tungstenite::{
    connect_async,
    tungstenite::{Message, client::IntoClientRequest, protocol::frame::coding::CloseCode},
};

/// One device of one user.
pub struct Client {
    /// The server, e.g. `ws://127.0.0.1:8080`.
    pub url: String,
    /// Gives a token that is valid now.
    pub token: Box<dyn Fn() -> String + Send + Sync>,
    /// The device's name.
    pub device: String,
    /// Everything up to here was seen: keep it where it survives the client.
    pub cursor: Option<Cursor>,
    /// Whether what is seen is acknowledged.
    pub ack: bool,
    /// What it is given to say.
    outbox: Option<mpsc::Receiver<ClientFrame>>,
    /// What it sent and has no answer to yet.
    unanswered: Vec<ClientFrame>,
    /// The last ids seen: the wire repeats across reconnects, the client does not.
    seen: (HashSet<MessageId>, VecDeque<MessageId>),
}

/// Ids remembered; more than a server sends without an acknowledgement.
const SEEN: usize = 10_000;
const ACK_EVERY: Duration = Duration::from_millis(100);

impl Client {
    /// A client that has seen nothing.
    pub fn new(url: &str, device: &str, token: impl Fn() -> String + Send + Sync + 'static) -> Self {
        let (url, device) = (url.trim_end_matches('/').replacen("http", "ws", 1), device.to_owned());
        Self {
            url,
            token: Box::new(token),
            device,
            cursor: None,
            ack: true,
            outbox: None,
            unanswered: Vec::new(),
            seen: Default::default(),
        }
    }

    /// Where frames to send are put: `send`, `read`, `typing`. Answers are shown like every frame.
    pub fn outbox(&mut self) -> mpsc::Sender<ClientFrame> {
        let (say, said) = mpsc::channel(64);
        self.outbox = Some(said);
        say
    }

    /// Runs until a close code says to stop (42xx) or `on` answers `false`; answers that code. Every frame is shown to `on`,
    /// a `messages` frame without what was seen before.
    pub async fn run(&mut self, mut on: impl FnMut(ServerFrame) -> bool) -> u16 {
        let mut failures = 0u32;
        loop {
            let mut after = None;
            match self.session(&mut on, &mut after, &mut failures).await {
                Some(code) if (4200..4300).contains(&code) || code == 1000 => return code,
                _ => {}
            }
            // Twice as long after every failure, half of it by chance, so that a crowd does not come back as one.
            failures += 1;
            let most = 100u64 << failures.min(8);
            let chance = chance(failures);
            tokio::time::sleep(Duration::from_millis(after.unwrap_or(most / 2 + chance % (most / 2)))).await;
        }
    }

    /// One connection; answers its close code, 1000 where `on` had enough.
    async fn session(
        &mut self,
        on: &mut impl FnMut(ServerFrame) -> bool,
        after: &mut Option<u64>,
        failures: &mut u32,
    ) -> Option<u16> {
        let cursor = self.cursor.as_ref().map_or(String::new(), |cursor| format!("&cursor={cursor}"));
        let mut request = format!("{}/v1/ws?device={}{cursor}", self.url, self.device).into_client_request().ok()?;
        request.headers_mut().insert("authorization", format!("Bearer {}", (self.token)()).parse().ok()?);
        request.headers_mut().insert("sec-websocket-protocol", SUBPROTOCOL.parse().ok()?);
        let (mut socket, _) = connect_async(request).await.ok()?;
        let mut acked = self.cursor.clone();
        let mut tick = tokio::time::interval(ACK_EVERY);
        // Three heartbeats without a frame: the connection is dead and nobody said so.
        let mut silence = Duration::from_secs(75);
        let mut heard = tokio::time::Instant::now();
        let mut welcomed = false;
        loop {
            let frame = tokio::select! {
                frame = socket.next() => frame,
                Some(frame) = next(&mut self.outbox), if welcomed => {
                    // Kept first: a connection that breaks now takes nothing with it.
                    if matches!(frame, ClientFrame::Send { .. }) {
                        self.unanswered.push(frame.clone());
                    }
                    say(&mut socket, &frame).await?;
                    continue;
                }
                _ = tick.tick() => {
                    if self.ack && self.cursor != acked {
                        acked = self.cursor.clone();
                        say(&mut socket, &ClientFrame::Ack { cursor: acked.clone(), ids: Vec::new() }).await?;
                    }
                    if heard.elapsed() > silence {
                        return None;
                    }
                    continue;
                }
            };
            heard = tokio::time::Instant::now();
            match frame?.ok()? {
                Message::Text(text) => match serde_json::from_str(&text) {
                    Ok(ServerFrame::Ping) => say(&mut socket, &ClientFrame::Pong).await?,
                    Ok(ServerFrame::Messages { items }) => {
                        *failures = 0;
                        let items = items.into_iter().filter(|item| self.is_new(item)).collect::<Vec<_>>();
                        if !items.is_empty() && !on(ServerFrame::Messages { items }) {
                            let _ =
                                say(&mut socket, &ClientFrame::Ack { cursor: self.cursor.clone(), ids: vec![] }).await;
                            let _ = socket.close(None).await;
                            return Some(CloseCode::Normal.into());
                        }
                    }
                    Ok(frame) => {
                        match &frame {
                            ServerFrame::Welcome { cursor, recovered, heartbeat_ms, .. } => {
                                (*failures, welcomed) = (0, true);
                                silence = Duration::from_millis(heartbeat_ms * 3);
                                // Something is gone for good: what the server still has starts at its cursor.
                                if !recovered || self.cursor.is_none() {
                                    self.cursor = Some(cursor.clone());
                                }
                                // Whether these arrived is not known; a repeated ref is one message.
                                for said in &self.unanswered {
                                    say(&mut socket, said).await?;
                                }
                            }
                            ServerFrame::Accepted { client_ref: Some(answered), .. }
                            | ServerFrame::Error { client_ref: Some(answered), .. } => {
                                let is = |said: &ClientFrame| matches!(said, ClientFrame::Send { client_ref, .. } if client_ref == answered);
                                self.unanswered.retain(|said| !is(said));
                            }
                            ServerFrame::Reconnect { after_ms, .. } => *after = Some(*after_ms),
                            _ => {}
                        }
                        if !on(frame) {
                            let _ = socket.close(None).await;
                            return Some(CloseCode::Normal.into());
                        }
                    }
                    Err(_) => {} // A type that this client does not know yet.
                },
                Message::Close(frame) => return frame.map(|frame| frame.code.into()),
                _ => {}
            }
        }
    }

    /// Moves the cursor; says whether the item was never seen before.
    fn is_new(&mut self, item: &Item) -> bool {
        if let Some(cursor) = &item.cursor {
            self.cursor.get_or_insert_default().join(cursor);
        }
        let (ids, order) = &mut self.seen;
        if order.len() >= SEEN
            && let Some(oldest) = order.pop_front()
        {
            ids.remove(&oldest);
        }
        let new = ids.insert(item.id);
        if new {
            order.push_back(item.id);
        }
        new
    }
}

/// A number nobody can foretell, without a crate for it.
fn chance(failures: u32) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(failures)
}

/// The next frame to send; waits for ever where nobody sends any.
async fn next(outbox: &mut Option<mpsc::Receiver<ClientFrame>>) -> Option<ClientFrame> {
    match outbox {
        Some(outbox) => outbox.recv().await,
        None => std::future::pending().await,
    }
}

async fn say<S>(socket: &mut S, frame: &ClientFrame) -> Option<()>
where
    S: futures::Sink<Message> + Unpin,
{
    let text = serde_json::to_string(frame).ok()?;
    socket.send(Message::text(text)).await.ok()
}
