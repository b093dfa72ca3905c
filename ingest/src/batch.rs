//! `POST /v1/messages/batch`: a stream of messages in, a stream of results out, in order, one per item.
//!
//! The body is never whole in memory: it is cut into items as it comes, items go to the log in chunks, a few chunks at once, and
//! results are sent as soon as all before them are there. A malformed or too long item costs itself alone. When the stream
//! breaks, what was accepted is still answered and a last line says where and why it ended.
//!
//! Senders that read only after they have sent everything are served too: results wait for them up to a bound, past which the
//! body is read no further.

use std::{collections::VecDeque, fmt::Write as _, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use futures::{FutureExt as _, StreamExt as _, stream::FuturesOrdered};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use parking_lot::Mutex;
use schemas::{Code, Problem, Sender};
use tokio::sync::{Notify, OwnedSemaphorePermit};

use crate::{
    admission,
    auth::Caller,
    door::{Accepted, App, Door, Given, InWork},
    http::{self as edge, Authed, Media, NDJSON, Refusal},
    quota,
    split::{Piece, Splitter},
};

/// What is read and thrown away of a batch that is too large, bytes: more than a socket's buffers hold on both sides.
const LINGER_BYTES: usize = 16 * 1024 * 1024;
/// How long such a batch may stand still before it is cut, ms.
const LINGER_MS: u64 = 1_000;

/// Chunks in the log's hands at once: while one is synced the next ones are read.
const CHUNKS: usize = 4;

/// Accepts a batch.
pub(crate) async fn post_batch(
    State(App(door)): State<App>,
    Authed(caller): Authed,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let from = admission::may_send(&caller)?;
    let place = door.enter()?;
    let turn = door.batching.clone().try_acquire_owned().map_err(|_| {
        let detail = format!("{} batches are in work, which is the most", door.parts.limits.door.batches_at_once);
        Problem::new(Code::Overloaded, detail).retry_after_ms(1_000)
    })?;
    let media = edge::media(&headers, &[Media::Json, Media::Lines])?;
    let limits = &door.parts.limits.door;
    edge::check_length(&headers, limits.batch_bytes)?;
    if headers.contains_key("idempotency-key") {
        let detail = "a batch has no key of its own: give each item its `key`, then the whole batch can be sent again";
        return Err(Problem::new(Code::InvalidHeader, detail).at("Idempotency-Key").into());
    }
    let splitter = match media {
        Media::Lines => Splitter::lines(limits.body_bytes),
        Media::Json => Splitter::array(limits.body_bytes),
    };
    let mut reader = Reader {
        body,
        splitter,
        ready: VecDeque::new(),
        idle_ms: limits.idle_body_ms,
        bytes_left: limits.batch_bytes,
        items_left: limits.batch_items,
        items_max: limits.batch_items,
        bytes_max: limits.batch_bytes,
        end: None,
    };
    let size = (limits.batch_window / CHUNKS).max(1);
    // A body that is no batch at all is refused as a whole, with a status that says so.
    let first = reader.next_chunk(size).await;
    if let (None, Some(End::Problem(problem))) = (&first, &reader.end) {
        return Err(problem.clone().into());
    }
    let given = Given { key: None, trace: edge::traceparent(&headers).map(str::to_owned) };
    let spool = Spool::new(limits.batch_answer_bytes, limits.idle_body_ms);
    let answers = Body::from_stream(spool.clone().answers());
    let standing = door.quotas.standing(&caller).await;
    let run =
        Run { door: door.clone(), caller, from, given, reader, spool: Writer(spool), size, _places: (place, turn) };
    door.tasks.spawn(run.run(first));
    let durability = match door.parts.log.durability() {
        schemas::port::Durability::Disk => "disk",
        schemas::port::Durability::Replicated => "replicated",
        schemas::port::Durability::Process => "process",
    };
    let mut response = (StatusCode::OK, [(header::CONTENT_TYPE, NDJSON)], answers).into_response();
    let name = HeaderName::from_static("durability");
    response.headers_mut().insert(name, HeaderValue::from_static(durability));
    quota::write_headers(response.headers_mut(), &standing);
    Ok(response)
}

/// How the reading ended.
enum End {
    /// With the body.
    Whole,
    /// Before it.
    Problem(Problem),
}

/// Cuts a body into chunks of items.
struct Reader {
    body: Body,
    splitter: Splitter,
    ready: VecDeque<Piece>,
    idle_ms: u64,
    bytes_left: usize,
    items_left: usize,
    items_max: usize,
    bytes_max: usize,
    end: Option<End>,
}

impl Reader {
    /// The next items, at most `size`: as many as are there, waiting for one at least. `None` at the end, which
    /// `self.end` then tells. Cancel-safe: what was cut stays in `self`.
    async fn next_chunk(&mut self, size: usize) -> Option<Vec<Piece>> {
        loop {
            while self.ready.len() < size && self.end.is_none() {
                match self.splitter.next() {
                    Some(piece) => self.take(piece),
                    None => break,
                }
            }
            if self.ready.len() >= size || self.end.is_some() {
                break;
            }
            let piece = if self.ready.is_empty() {
                edge::next_piece(&mut self.body, self.idle_ms).await
            } else {
                match edge::next_piece(&mut self.body, self.idle_ms).now_or_never() {
                    Some(piece) => piece,
                    // Nothing more is there now: what is ready is not kept waiting.
                    None => break,
                }
            };
            match piece {
                Err(problem) => self.end = Some(End::Problem(problem)),
                Ok(None) => {
                    if let Some(piece) = self.splitter.finish() {
                        self.take(piece);
                    }
                    self.end.get_or_insert(End::Whole);
                }
                Ok(Some(bytes)) => match self.bytes_left.checked_sub(bytes.len()) {
                    Some(left) => {
                        self.bytes_left = left;
                        self.splitter.push(bytes);
                    }
                    None => {
                        let detail = format!("the batch is larger than {} bytes", self.bytes_max);
                        self.end = Some(End::Problem(Problem::new(Code::TooLarge, detail)));
                    }
                },
            }
        }
        (!self.ready.is_empty()).then(|| self.ready.drain(..).collect())
    }

    /// Reads on for a while and throws away: a connection that is closed while its client still writes is reset, and the
    /// answers under way would be lost with it.
    async fn linger(&mut self) {
        let mut left = LINGER_BYTES;
        while let Ok(Some(bytes)) = edge::next_piece(&mut self.body, LINGER_MS).await {
            match left.checked_sub(bytes.len()) {
                Some(less) => left = less,
                None => break,
            }
        }
    }

    fn take(&mut self, piece: Piece) {
        match piece {
            Piece::Broken(why) => self.end = Some(End::Problem(Problem::new(Code::InvalidJson, why))),
            _ if self.items_left == 0 => {
                let detail = format!("the batch has more than {} items: send the rest as another one", self.items_max);
                self.end = Some(End::Problem(Problem::new(Code::TooLarge, detail)));
            }
            piece => {
                self.items_left -= 1;
                self.ready.push_back(piece);
            }
        }
    }
}

/// One batch at work.
struct Run {
    door: Arc<Door>,
    caller: Arc<Caller>,
    from: Sender,
    given: Given,
    reader: Reader,
    spool: Writer,
    size: usize,
    _places: (InWork, OwnedSemaphorePermit),
}

impl Run {
    async fn run(mut self, first: Option<Vec<Piece>>) {
        let mut waiting = FuturesOrdered::new();
        let mut index = 0;
        let mut next = first;
        let stop = self.door.stop.clone();
        let mut stopped = false;
        loop {
            if let Some(chunk) = next.take() {
                let admitted = self.admit(chunk);
                waiting.push_back(self.door.submit(&self.caller, admitted, true).await);
            }
            let answers = tokio::select! {
                biased;
                Some(answers) = waiting.next(), if !waiting.is_empty() => answers,
                () = stop.cancelled(), if !stopped => {
                    // What was cut is still accepted and answered; the rest of the body is not read.
                    stopped = true;
                    let draining = Problem::new(Code::Draining, "this node goes away: send the rest to another");
                    self.reader.end.get_or_insert(End::Problem(draining.retry_after_ms(1_000)));
                    continue;
                }
                chunk = self.reader.next_chunk(self.size), if waiting.len() < CHUNKS => match chunk {
                    Some(chunk) => {
                        next = Some(chunk);
                        continue;
                    }
                    // All that was cut has been submitted: what is left is to answer it.
                    None => match waiting.next().await {
                        Some(answers) => answers,
                        None => break,
                    },
                },
            };
            let mut lines = BytesMut::with_capacity(answers.len() * 96);
            for answer in answers {
                write_line(&mut lines, index, &answer);
                index += 1;
            }
            if self.spool.write(lines).await.is_err() {
                // Nobody reads the answers any more, and what was accepted stays accepted.
                return;
            }
        }
        if let Some(End::Problem(problem)) = self.reader.end.take() {
            let mut last = BytesMut::new();
            let too_large = problem.code == Code::TooLarge;
            write_line(&mut last, index, &Err(problem));
            if self.spool.write(last).await.is_ok() && too_large {
                self.reader.linger().await;
            }
        }
    }

    fn admit(&self, chunk: Vec<Piece>) -> Vec<Result<admission::Admitted, Problem>> {
        let desk = self.door.desk(&self.caller, &self.from, &self.given);
        let max = self.door.parts.limits.door.body_bytes;
        let admit = |piece| match piece {
            Piece::Item(json) => desk.read(&json),
            Piece::TooLong => Err(Problem::new(Code::TooLarge, format!("the item is larger than {max} bytes"))),
            Piece::Broken(why) => Err(Problem::new(Code::InvalidJson, why)),
        };
        chunk.into_iter().map(admit).collect()
    }
}

fn write_line(out: &mut BytesMut, index: usize, answer: &Result<Accepted, Problem>) {
    // Writing to memory cannot fail.
    let _ = match answer {
        Ok(accepted) => {
            let Accepted { id, replayed, dry_run, .. } = accepted;
            let status = if dry_run.is_some() { 200 } else { 202 };
            let more = match (replayed, dry_run) {
                (true, _) => ",\"replayed\":true",
                (_, Some(_)) => ",\"dry_run\":true",
                _ => "",
            };
            writeln!(out, "{{\"index\":{index},\"status\":{status},\"id\":\"{id}\"{more}}}")
        }
        Err(problem) => {
            metrics::counter!("esh3ar_refused_total", "code" => problem.code.slug()).increment(1);
            let json = serde_json::to_string(problem).unwrap_or_default();
            writeln!(out, "{{\"index\":{index},\"status\":{},\"problem\":{json}}}", problem.code.status())
        }
    };
}

/// Answers on their way to a sender that may not read yet.
struct Spool {
    state: Mutex<Spooled>,
    readable: Notify,
    writable: Notify,
    max: usize,
    /// How long a full spool may stand still, ms.
    patience_ms: u64,
}

#[derive(Default)]
struct Spooled {
    bytes: BytesMut,
    /// Nothing more will be written.
    done: bool,
    /// Nobody will read more.
    gone: bool,
    /// Its end is not that of the answers.
    cut: bool,
}

impl Spool {
    fn new(max: usize, patience_ms: u64) -> Arc<Self> {
        let (readable, writable) = (Notify::new(), Notify::new());
        Arc::new(Self { state: Mutex::default(), readable, writable, max, patience_ms })
    }

    /// The stream of what is written.
    fn answers(self: Arc<Self>) -> impl futures::Stream<Item = std::io::Result<Bytes>> {
        futures::stream::unfold(Answers(self), |answers| async {
            loop {
                {
                    let mut state = answers.0.state.lock();
                    if !state.bytes.is_empty() {
                        let bytes = std::mem::take(&mut state.bytes).freeze();
                        answers.0.writable.notify_one();
                        drop(state);
                        return Some((Ok(bytes), answers));
                    }
                    if state.cut {
                        state.cut = false;
                        drop(state);
                        return Some((Err(std::io::Error::other("the answers were not read in time")), answers));
                    }
                    if state.done {
                        return None;
                    }
                }
                answers.0.readable.notified().await;
            }
        })
    }
}

/// The reading end: says so when it is dropped.
struct Answers(Arc<Spool>);

impl Drop for Answers {
    fn drop(&mut self) {
        self.0.state.lock().gone = true;
        self.0.writable.notify_one();
    }
}

/// The writing end: says so when it is dropped.
struct Writer(Arc<Spool>);

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.state.lock().done = true;
        self.0.readable.notify_one();
    }
}

/// The reader is gone.
struct Gone;

impl Writer {
    async fn write(&self, bytes: BytesMut) -> Result<(), Gone> {
        loop {
            {
                let mut state = self.0.state.lock();
                if state.gone {
                    return Err(Gone);
                }
                if state.bytes.len() < self.0.max {
                    state.bytes.extend_from_slice(&bytes);
                    self.0.readable.notify_one();
                    return Ok(());
                }
            }
            // A sender that never reads is cut off, and sees that it was: the answer breaks off and does not end.
            let patience = Duration::from_millis(self.0.patience_ms);
            if tokio::time::timeout(patience, self.0.writable.notified()).await.is_err() {
                self.0.state.lock().cut = true;
                return Err(Gone);
            }
        }
    }
}
