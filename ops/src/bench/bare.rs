//! What the same work costs without the work: a process of this binary that is nothing but axum routes over the same listener,
//! the same runtime and the same socket settings. It takes singles and batches, pushes every message of a batch to its
//! recipient's WebSocket at once, hands what one socket sends to the other, keeps nothing and promises nothing.

use std::{collections::HashMap, io::Write as _, process::Stdio, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use axum::{
    Router,
    extract::{
        State,
        ws::{Message, WebSocket, WebSocketUpgrade},
    },
    http::{HeaderMap, StatusCode, header},
    response::Response,
    routing::{get, post},
};
use parking_lot::Mutex;
use schemas::limits::SocketLimits;
use tokio::sync::mpsc;

use crate::serve::{Bounds, Serving};

/// Frames that wait for one socket; past that the batch waits.
const MAILBOX: usize = 256;
/// Connections it holds.
const CONNECTIONS: usize = 20_000;

/// The sockets by their phone's number, which is its token here.
type Sockets = Arc<Mutex<HashMap<String, mpsc::Sender<String>>>>;

/// A running one; ended when it is dropped.
pub(crate) struct Bare {
    child: std::process::Child,
    /// Where it listens.
    pub(crate) address: String,
}

impl Bare {
    /// Starts one. Blocks for a moment.
    pub(crate) fn start() -> Result<Self> {
        use std::io::BufRead as _;
        let mut command = std::process::Command::new(std::env::current_exe()?);
        let mut child = command.args(["bench", "--serve-bare"]).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.take().context("no standard output")?).read_line(&mut line)?;
        Ok(Self { child, address: line.trim().to_owned() })
    }

    /// The process, for `/proc`.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What it does: serves until it is killed, and says first where.
pub async fn serve() -> Result<()> {
    let sockets = Sockets::default();
    let router = Router::new()
        .route("/v1/messages", post(single))
        .route("/v1/messages/batch", post(batch))
        .route("/v1/ws", get(connect))
        .with_state(sockets);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", listener.local_addr()?)?;
        out.flush()?;
    }
    let _serving = Serving::start(listener, router, Bounds { connections: CONNECTIONS, head_ms: 60_000 })?;
    std::future::pending().await
}

/// Pushes the content to its recipient.
async fn single(State(sockets): State<Sockets>, body: String) -> StatusCode {
    hand_over(&sockets, &body, 0).await;
    StatusCode::ACCEPTED
}

/// Pushes each line's content to its recipient and answers a line for each.
async fn batch(State(sockets): State<Sockets>, body: String) -> String {
    let mut answers = String::new();
    for (index, line) in body.lines().enumerate() {
        hand_over(&sockets, line, index).await;
        answers.push_str(&format!("{{\"index\":{index},\"status\":202}}\n"));
    }
    answers
}

async fn connect(State(sockets): State<Sockets>, headers: HeaderMap, upgrade: WebSocketUpgrade) -> Response {
    let limits = SocketLimits::default();
    let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let number = token.trim_start_matches("Bearer ").to_owned();
    let (send, mailbox) = mpsc::channel(MAILBOX);
    sockets.lock().insert(number, send);
    // As the gateway sets its own.
    let upgrade = upgrade
        .read_buffer_size(limits.read_buffer_bytes)
        .write_buffer_size(4 * 1024)
        .max_write_buffer_size(limits.write_buffer_bytes)
        .max_message_size(limits.frame_bytes)
        .max_frame_size(limits.frame_bytes);
    upgrade.on_upgrade(move |socket| async move {
        tokio::spawn(push(socket, mailbox, sockets, Duration::from_millis(limits.heartbeat_ms)));
    })
}

/// The content of a draft, or of what is said to another socket, becomes a message there.
async fn hand_over(sockets: &Sockets, draft: &str, cursor: usize) {
    let field = |name: &str| draft.split_once(name).and_then(|(_, rest)| rest.split('"').next());
    let (Some(to), Some(content)) = (field("\"to\":\""), field("\"content\":\"")) else { return };
    let frame = format!("{{\"type\":\"messages\",\"items\":[{{\"content\":\"{content}\",\"cursor\":\"{cursor}\"}}]}}");
    let mailbox = sockets.lock().get(to).cloned();
    if let Some(mailbox) = mailbox {
        let _ = mailbox.send(frame).await;
    }
}

/// One socket: what comes for it, what it says to others, and a heartbeat.
async fn push(mut socket: WebSocket, mut mailbox: mpsc::Receiver<String>, others: Sockets, heartbeat: Duration) {
    let mut beat = tokio::time::interval(heartbeat);
    loop {
        let frame = tokio::select! {
            frame = mailbox.recv() => match frame {
                Some(frame) => frame,
                None => return,
            },
            _ = beat.tick() => "{\"type\":\"ping\"}".to_owned(),
            message = socket.recv() => match message {
                Some(Ok(Message::Text(frame))) if frame.starts_with("{\"type\":\"send\"") => {
                    hand_over(&others, &frame, 1).await;
                    continue;
                }
                Some(Ok(_)) => continue,
                _ => return,
            },
        };
        if socket.send(Message::text(frame)).await.is_err() {
            return;
        }
    }
}
