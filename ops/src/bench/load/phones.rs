//! Many phones: each reads its frames, takes the time of every item, and acknowledges a cursor every 100 ms, or as often as it
//! is told to.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use futures::{SinkExt, StreamExt};
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use tokio_tungstenite::{
    client_async_with_config,
    tungstenite::{Message, client::IntoClientRequest, protocol::WebSocketConfig},
};

use super::super::measure::histogram;
use crate::clock::SystemClock;

/// How long a phone gathers before it acknowledges.
pub(crate) const ACKNOWLEDGE: Duration = Duration::from_millis(100);

/// What was counted at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counts {
    /// Items that came.
    pub(crate) items: u64,
    /// Frames they came in.
    pub(crate) frames: u64,
    /// Acknowledgements sent.
    pub(crate) acks: u64,
}

/// What phones tell: how many items and frames came, and how long each took since it was meant to be sent.
pub(crate) struct Watch {
    clock: SystemClock,
    /// Items that came.
    pub(crate) items: AtomicU64,
    /// Frames they came in.
    pub(crate) frames: AtomicU64,
    /// Acknowledgements that phones sent.
    pub(crate) acks: AtomicU64,
    /// Messages that senders sent to these phones.
    pub(crate) sent: AtomicU64,
    shards: Vec<Mutex<Histogram<u64>>>,
}

impl Watch {
    /// Latencies are taken with this clock, which the senders use too.
    pub(crate) fn new(clock: SystemClock) -> Arc<Self> {
        let shards = (0..16).map(|_| Mutex::new(histogram())).collect();
        let zero = AtomicU64::default;
        Arc::new(Self { clock, items: zero(), frames: zero(), acks: zero(), sent: zero(), shards })
    }

    /// What came so far.
    pub(crate) fn counts(&self) -> Counts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts { items: of(&self.items), frames: of(&self.frames), acks: of(&self.acks) }
    }

    /// Messages sent that have not come.
    pub(crate) fn under_way(&self) -> u64 {
        self.sent.load(Ordering::Relaxed).saturating_sub(self.items.load(Ordering::Relaxed))
    }

    /// Latencies so far, µs, and starts anew: what came before is warm-up.
    pub(crate) fn take(&self) -> Histogram<u64> {
        let mut all = histogram();
        for shard in &self.shards {
            let one = std::mem::replace(&mut *shard.lock(), histogram());
            let _ = all.add(one);
        }
        all
    }

    fn frame(&self, shard: usize, text: &str) {
        let now = self.clock.micros();
        let mut items = 0;
        {
            let mut shard = self.shards[shard % self.shards.len()].lock();
            for piece in text.split("\"content\":\"").skip(1) {
                items += 1;
                if let Some(sent) = piece.get(..16).and_then(|digits| digits.parse::<u64>().ok()) {
                    shard.saturating_record(now.saturating_sub(sent).max(1));
                }
            }
        }
        self.items.fetch_add(items, Ordering::Relaxed);
        self.frames.fetch_add(u64::from(items > 0), Ordering::Relaxed);
    }
}

/// Connected phones; they hang up when this is dropped.
pub(crate) struct Phones {
    tasks: tokio::task::JoinSet<()>,
}

impl Phones {
    /// Connects one phone per token, a few at a time.
    pub(crate) async fn connect(address: &str, tokens: Vec<String>, watch: Option<Arc<Watch>>) -> Result<Self> {
        Self::connect_that(address, tokens, watch, ACKNOWLEDGE).await
    }

    /// The same, of phones that acknowledge so long after a frame what has come by then.
    pub(crate) async fn connect_that(
        address: &str,
        tokens: Vec<String>,
        watch: Option<Arc<Watch>>,
        acknowledge: Duration,
    ) -> Result<Self> {
        let mut tasks = tokio::task::JoinSet::new();
        for (wave, tokens) in tokens.chunks(64).enumerate() {
            let opened = tokens.iter().map(|token| open(address, token, "bench"));
            for (n, socket) in futures::future::join_all(opened).await.into_iter().enumerate() {
                let socket = socket.with_context(|| format!("phone {} could not connect", wave * 64 + n))?;
                tasks.spawn(listen(socket, watch.clone(), wave * 64 + n, acknowledge));
            }
        }
        Ok(Self { tasks })
    }

    /// How many still hold their line.
    pub(crate) fn holding(&mut self) -> usize {
        while self.tasks.try_join_next().is_some() {}
        self.tasks.len()
    }
}

pub(super) type Socket = tokio_tungstenite::WebSocketStream<tokio::net::TcpStream>;

pub(super) async fn open(address: &str, token: &str, device: &str) -> Result<Socket> {
    let mut request = format!("ws://{address}/v1/ws?device={device}").into_client_request()?;
    request.headers_mut().insert("authorization", format!("Bearer {token}").parse()?);
    let stream = tokio::net::TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let config =
        WebSocketConfig::default().read_buffer_size(1024).write_buffer_size(0).max_write_buffer_size(64 * 1024);
    let (socket, _) = client_async_with_config(request, stream, Some(config)).await?;
    Ok(socket)
}

/// Acknowledges up to here; false: the line is dead.
async fn acknowledges(socket: &mut Socket, watch: Option<&Watch>, cursor: &str) -> bool {
    if let Some(watch) = watch {
        watch.acks.fetch_add(1, Ordering::Relaxed);
    }
    socket.send(Message::text(format!("{{\"type\":\"ack\",\"cursor\":\"{cursor}\"}}"))).await.is_ok()
}

async fn listen(mut socket: Socket, watch: Option<Arc<Watch>>, n: usize, acknowledge: Duration) {
    let (mut cursor, mut due) = (None::<String>, None::<tokio::time::Instant>);
    loop {
        let wait = async {
            match due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let message = tokio::select! {
            message = socket.next() => message,
            () = wait => {
                due = None;
                let Some(cursor) = cursor.take() else { continue };
                if !acknowledges(&mut socket, watch.as_deref(), &cursor).await { return }
                continue;
            }
        };
        match message {
            Some(Ok(Message::Text(text))) if text.starts_with("{\"type\":\"messages\"") => {
                if let Some(watch) = &watch {
                    watch.frame(n, &text);
                }
                let last = text.rsplit("\"cursor\":\"").next().and_then(|rest| rest.split('"').next());
                let Some(last) = last else { continue };
                if acknowledge.is_zero() {
                    // A timer would gather what comes within its tick.
                    if !acknowledges(&mut socket, watch.as_deref(), last).await {
                        return;
                    }
                    continue;
                }
                cursor = Some(last.to_owned());
                due = due.or_else(|| Some(tokio::time::Instant::now() + acknowledge));
            }
            Some(Ok(Message::Text(text))) if text.contains("\"ping\"") => {
                if socket.send(Message::text("{\"type\":\"pong\"}")).await.is_err() {
                    return;
                }
            }
            Some(Ok(_)) => {}
            _ => return,
        }
    }
}
