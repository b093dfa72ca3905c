//! Pairs who talk, each side on a socket of its own: a phone writes at its turn, the business answers at once. A content
//! begins with the microsecond at which the phone's message was meant to be sent, also in the answer, and then says whose it
//! is: so both ways are timed by the same clock, and one's own copies are told from what the other side wrote.

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
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use super::{
    super::measure::histogram,
    content, number,
    phones::{Socket, open},
};
use crate::clock::SystemClock;

/// Messages that wait for one socket; a load that is not kept up with waits here, and its time runs.
const MAILBOX: usize = 256;
/// Bytes of a content.
const BYTES: usize = 100;

/// What pairs tell.
pub(crate) struct Tally {
    clock: SystemClock,
    /// Messages handed to sockets.
    pub(crate) said: AtomicU64,
    /// Messages that the other side's first device has.
    pub(crate) heard: AtomicU64,
    /// Frames that were refused.
    pub(crate) refused: AtomicU64,
    refusal: Mutex<Option<String>>,
    /// From the phone to the business, and there and back, µs.
    times: [Mutex<Histogram<u64>>; 2],
}

impl Tally {
    /// Nothing yet.
    pub(crate) fn new(clock: SystemClock) -> Arc<Self> {
        let zero = AtomicU64::default;
        let times = [(); 2].map(|()| Mutex::new(histogram()));
        Arc::new(Self { clock, said: zero(), heard: zero(), refused: zero(), refusal: Mutex::default(), times })
    }

    /// The times so far, there and there and back, and starts anew: what came before is warm-up.
    pub(crate) fn take(&self) -> [Histogram<u64>; 2] {
        [0, 1].map(|n| std::mem::replace(&mut *self.times[n].lock(), histogram()))
    }

    /// Messages said that the other side has not heard.
    pub(crate) fn under_way(&self) -> u64 {
        self.said.load(Ordering::Relaxed).saturating_sub(self.heard.load(Ordering::Relaxed))
    }

    /// Fails with the first refusal, if there was one.
    pub(crate) fn check(&self) -> Result<()> {
        let refused = self.refused.load(Ordering::Relaxed);
        let why = self.refusal.lock().clone().unwrap_or_default();
        anyhow::ensure!(refused == 0, "{refused} frames were refused, the first with: {why}");
        Ok(())
    }
}

/// Who sits at a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seat {
    /// The phone that writes.
    Phone,
    /// Another device of it, which only listens.
    Beside,
    /// The business user, and whether it answers.
    Business(bool),
}

/// Connected pairs; they hang up when this is dropped.
pub(crate) struct Talkers {
    _tasks: tokio::task::JoinSet<()>,
    writers: Vec<mpsc::Sender<String>>,
    tally: Arc<Tally>,
}

/// How pairs talk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    /// Who begins: the phone, or the business.
    pub(crate) phone_begins: bool,
    /// Whether the business answers.
    pub(crate) answers: bool,
    /// Devices of each phone.
    pub(crate) devices: usize,
}

/// The business user of the `n`th pair.
pub(crate) fn business(n: usize) -> String {
    format!("b{n}")
}

impl Talkers {
    /// Connects pairs, each as the tokens of (phone, business user).
    pub(crate) async fn connect(
        address: &str,
        tokens: Vec<(String, String)>,
        manner: Manner,
        tally: &Arc<Tally>,
    ) -> Result<Self> {
        let mut tasks = tokio::task::JoinSet::new();
        let mut writers = Vec::with_capacity(tokens.len());
        for (wave, tokens) in tokens.chunks(32).enumerate() {
            let opened = tokens.iter().map(async |(phone, business)| {
                let mut phones = Vec::with_capacity(manner.devices);
                for device in 0..manner.devices {
                    phones.push(open(address, phone, &format!("bench{device}")).await?);
                }
                Ok::<_, anyhow::Error>((phones, open(address, business, "bench").await?))
            });
            for (n, sockets) in futures::future::join_all(opened).await.into_iter().enumerate() {
                let n = wave * 32 + n;
                let (phones, office) = sockets.with_context(|| format!("pair {n} could not connect"))?;
                let (to_business, to_phone) = (format!("business:{}", business(n)), number(n));
                let (write, outgoing) = mpsc::channel(MAILBOX);
                let (_, silent) = mpsc::channel(1);
                let (mut mine, mut theirs) = (Some(outgoing), Some(silent));
                if !manner.phone_begins {
                    std::mem::swap(&mut mine, &mut theirs);
                }
                writers.push(write);
                for (device, socket) in phones.into_iter().enumerate() {
                    let seat = if device == 0 { Seat::Phone } else { Seat::Beside };
                    let lines = mine.take_if(|_| device == 0);
                    tasks.spawn(sit(socket, seat, to_business.clone(), lines, tally.clone()));
                }
                tasks.spawn(sit(office, Seat::Business(manner.answers), to_phone, theirs, tally.clone()));
            }
        }
        Ok(Self { _tasks: tasks, writers, tally: tally.clone() })
    }

    /// Says so many messages a second for so long, by turns, open loop. Answers come on top of them.
    pub(crate) async fn talk(&self, rate: f64, how_long: Duration) -> Result<()> {
        let (clock, pairs) = (self.tally.clock, self.writers.len());
        let start = clock.micros() + 20_000;
        let all = (how_long.as_secs_f64() * rate) as u64;
        for k in 0..all {
            let meant = start + (k as f64 / rate * 1e6) as u64;
            let now = clock.micros();
            if meant > now {
                tokio::time::sleep(Duration::from_micros(meant - now)).await;
            }
            let text = content(meant, BYTES, k);
            // A mailbox that is full makes the load wait; the message's time runs on.
            let writer = self.writers.get(k as usize % pairs).context("no pairs")?;
            writer.send(text).await.context("a socket has ended")?;
            self.tally.said.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Waits until everything that was said was heard, at most so long; what was not.
    pub(crate) async fn settle(&self, most: Duration) -> u64 {
        let until = self.tally.clock.micros() + most.as_micros() as u64;
        while self.tally.under_way() > 0 && self.tally.clock.micros() < until {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.tally.under_way()
    }
}

/// The frame that says a text, under a name that no other has.
fn frame(seat: Seat, to: &str, text: &str, n: u64, run: &str) -> String {
    let whose = if seat == Seat::Phone { 'P' } else { 'B' };
    let (stamp, rest) = text.split_at(16.min(text.len()));
    format!(
        "{{\"type\":\"send\",\"ref\":\"{run}{n}\",\"to\":\"{to}\",\"content\":\"{stamp} {whose}{}\"}}",
        rest.trim_start()
    )
}

async fn sit(mut socket: Socket, seat: Seat, to: String, mut lines: Option<mpsc::Receiver<String>>, tally: Arc<Tally>) {
    let run = uuid::Uuid::new_v4().simple().to_string();
    let (mut cursor, mut due, mut sent) = (None::<String>, None::<tokio::time::Instant>, 0_u64);
    loop {
        let wait = async {
            match due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let line = async {
            match &mut lines {
                Some(lines) => lines.recv().await,
                None => std::future::pending().await,
            }
        };
        let message = tokio::select! {
            message = socket.next() => message,
            line = line => {
                match line {
                    Some(text) => {
                        sent += 1;
                        if socket.send(Message::text(frame(seat, &to, &text, sent, &run))).await.is_err() { return }
                    }
                    None => lines = None,
                }
                continue;
            }
            () = wait => {
                due = None;
                let Some(cursor) = cursor.take() else { continue };
                let ack = format!("{{\"type\":\"ack\",\"cursor\":\"{cursor}\"}}");
                if socket.send(Message::text(ack)).await.is_err() { return }
                continue;
            }
        };
        match message {
            Some(Ok(Message::Text(text))) if text.starts_with("{\"type\":\"messages\"") => {
                for stamp in heard(&tally, seat, &text) {
                    sent += 1;
                    tally.said.fetch_add(1, Ordering::Relaxed);
                    let answer = content(stamp, BYTES, sent);
                    if socket.send(Message::text(frame(seat, &to, &answer, sent, &run))).await.is_err() {
                        return;
                    }
                }
                if let Some(last) = text.rsplit("\"cursor\":\"").next().and_then(|rest| rest.split('"').next()) {
                    cursor = Some(last.to_owned());
                    due = due.or_else(|| Some(tokio::time::Instant::now() + Duration::from_millis(100)));
                }
            }
            Some(Ok(Message::Text(text))) if text.starts_with("{\"type\":\"error\"") => {
                tally.refused.fetch_add(1, Ordering::Relaxed);
                tally.refusal.lock().get_or_insert_with(|| text.to_string());
            }
            Some(Ok(Message::Text(text))) if text.contains("\"type\":\"ping\"") => {
                if socket.send(Message::text("{\"type\":\"pong\"}")).await.is_err() {
                    return;
                }
            }
            Some(Ok(_)) => {}
            _ => return,
        }
    }
}

/// Takes the times of what the other side wrote; the stamps that are to be answered.
fn heard(tally: &Tally, seat: Seat, text: &str) -> Vec<u64> {
    let (other, times) = match seat {
        Seat::Phone => (b'B', &tally.times[1]),
        Seat::Business(_) => (b'P', &tally.times[0]),
        Seat::Beside => return Vec::new(),
    };
    let now = tally.clock.micros();
    let mut answers = Vec::new();
    for piece in text.split("\"content\":\"").skip(1) {
        let stamp = piece.get(..16).and_then(|digits| digits.parse::<u64>().ok());
        let Some(stamp) = stamp.filter(|_| piece.as_bytes().get(17) == Some(&other)) else { continue };
        tally.heard.fetch_add(1, Ordering::Relaxed);
        times.lock().saturating_record(now.saturating_sub(stamp).max(1));
        if seat == Seat::Business(true) {
            answers.push(stamp);
        }
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_s_own_copy_is_not_heard_and_the_other_side_is() {
        let tally = Tally::new(SystemClock::new());
        let text = content(1, BYTES, 7);
        let said = frame(Seat::Phone, "business:b1", &text, 1, "r");
        let item = said.split("\"content\":\"").nth(1).unwrap().split('"').next().unwrap();
        let frame = format!("{{\"type\":\"messages\",\"items\":[{{\"content\":\"{item}\"}}]}}");
        assert!(heard(&tally, Seat::Phone, &frame).is_empty());
        assert_eq!(tally.heard.load(Ordering::Relaxed), 0);
        assert_eq!(heard(&tally, Seat::Business(true), &frame), [1]);
        assert!(heard(&tally, Seat::Business(false), &frame).is_empty());
        assert_eq!((tally.heard.load(Ordering::Relaxed), tally.take()[0].len()), (2, 2));
    }
}
