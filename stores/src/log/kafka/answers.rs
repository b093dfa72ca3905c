//! The answers for what was appended: librdkafka calls once a record, and a call's records share one countdown, so that its
//! caller is woken once.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use parking_lot::Mutex;
use rdkafka::{
    ClientContext, Message as _, config::RDKafkaLogLevel, error::KafkaError, message::DeliveryResult,
    producer::ProducerContext, types::RDKafkaErrorCode as Code,
};
use schemas::{
    Clock, Offset,
    port::{PortError, PortResult},
};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::told::{self, Ear};

/// An outcome each, in order.
pub(crate) type Outcomes = Vec<PortResult<Offset>>;

/// Records of one call, counted down.
pub(crate) struct Part {
    outcomes: Mutex<Vec<PortResult<Offset>>>,
    left: AtomicUsize,
    done: Mutex<Option<oneshot::Sender<Outcomes>>>,
    // Given back when the last answer is there, also where nobody waits for it any more.
    _room: OwnedSemaphorePermit,
}

impl Part {
    /// So many records that share a countdown, and where the outcomes will be.
    pub(crate) fn new(count: usize, room: OwnedSemaphorePermit) -> (Arc<Self>, oneshot::Receiver<Outcomes>) {
        let (done, answers) = oneshot::channel();
        let part = Self {
            outcomes: Mutex::new(vec![Err(PortError::Unknown(String::new())); count]),
            left: AtomicUsize::new(count),
            done: Mutex::new(Some(done)),
            _room: room,
        };
        (Arc::new(part), answers)
    }

    pub(crate) fn answer(&self, index: usize, outcome: PortResult<Offset>) {
        self.outcomes.lock()[index] = outcome;
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(done) = self.done.lock().take()
        {
            // A caller that has gone needs no answer.
            let _ = done.send(std::mem::take(&mut *self.outcomes.lock()));
        }
    }
}

/// One record's place in its part.
pub(crate) struct Ticket {
    pub(crate) part: Arc<Part>,
    pub(crate) index: u32,
}

/// Takes the answers.
pub(crate) struct Answers {
    clock: Arc<dyn Clock>,
    pub(crate) ear: Ear,
    pub(crate) broken: AtomicBool,
    pub(crate) records: AtomicU64,
    pub(crate) requests: AtomicU64,
    // Handed over and not answered.
    pub(crate) waiting: AtomicUsize,
    // When the last good answer came, or the first of those that wait was handed over, ms.
    quiet_since: AtomicU64,
}

impl Answers {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            ear: Ear::default(),
            broken: AtomicBool::new(false),
            records: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            quiet_since: AtomicU64::new(0),
        }
    }

    pub(crate) fn handed_over(&self) {
        if self.waiting.fetch_add(1, Ordering::AcqRel) == 0 {
            self.heard_of();
        }
    }

    /// How long records have been waiting without an answer for any, ms; `None` where none waits.
    pub(crate) fn quiet_ms(&self) -> Option<u64> {
        let waits = self.waiting.load(Ordering::Acquire) > 0;
        waits.then(|| self.clock.mono().0.saturating_sub(self.quiet_since.load(Ordering::Acquire)))
    }

    fn heard_of(&self) {
        self.quiet_since.store(self.clock.mono().0, Ordering::Release);
    }
}

/// What was produced since the producer was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Produced {
    /// Records that are in the log.
    pub records: u64,
    /// Requests that they went in, as of at most a second ago.
    pub requests: u64,
}

/// The produce requests that librdkafka's statistics count: the sum over all brokers. They are a large JSON object of which
/// nothing else is wanted, so it is not read as one.
pub fn produce_requests(statistics: &[u8]) -> u64 {
    const KEY: &[u8] = b"\"Produce\":";
    let mut sum = 0;
    let mut rest = statistics;
    while let Some(at) = rest.windows(KEY.len()).position(|window| window == KEY) {
        rest = &rest[at + KEY.len()..];
        let digits = rest.iter().skip_while(|byte| **byte == b' ').take_while(|byte| byte.is_ascii_digit());
        sum += digits.fold(0, |n: u64, digit| n.wrapping_mul(10).wrapping_add(u64::from(digit - b'0')));
    }
    sum
}

impl ClientContext for Answers {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        told::log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.ear.heard(&error, reason);
        if error.rdkafka_error_code() == Some(Code::Fatal) {
            tracing::error!(%error, reason, "the producer is broken and will be replaced");
            self.broken.store(true, Ordering::Release);
        }
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.requests.store(produce_requests(statistics), Ordering::Relaxed);
    }
}

impl ProducerContext for Answers {
    type DeliveryOpaque = Box<Ticket>;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Box<Ticket>) {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        let outcome = match result {
            Ok(message) => {
                self.heard_of();
                let placed = told::placed(message.offset());
                self.records.fetch_add(u64::from(placed.is_ok()), Ordering::Relaxed);
                placed
            }
            Err((error, message)) => {
                let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
                if code == Code::Fatal {
                    self.broken.store(true, Ordering::Release);
                }
                Err(told::refused(code, message.topic(), message.payload().map_or(0, <[u8]>::len)))
            }
        };
        ticket.part.answer(ticket.index as usize, outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_requests_of_all_brokers_are_counted() {
        let statistics =
            br#"{"name":"x","brokers":{"a":{"req":{"Produce":12,"Fetch":3}},"b":{"req":{"Produce": 30}}}}"#;
        assert_eq!(produce_requests(statistics), 42);
        assert_eq!(produce_requests(b"{}"), 0);
    }
}
