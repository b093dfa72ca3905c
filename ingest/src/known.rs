//! What the door remembers, so that it need not ask or compute again: numbering-plan answers, and the keys it accepted within
//! the last day. Both are bounded, and forgetting costs time and never correctness: history knows every key (rule 2).

use std::time::Duration;

use moka::{policy::EvictionPolicy, sync::Cache};
use schemas::{Code, Message, MessageId, Phone, Problem, Timestamp, limits::DoorLimits, phone::BadPhone};

/// How long an accepted key is remembered: as long as the draft of `Idempotency-Key` advises to publish, a day.
const KEYS_FOR: Duration = Duration::from_secs(24 * 3_600);
/// Longer texts are not numbers and are not remembered.
const PHONE_BYTES: usize = 16;

/// Answers of [`Phone::parse`], remembered.
pub struct Phones(Cache<Box<str>, Result<Phone, BadPhone>>);

impl Phones {
    /// Remembers as many as the limits say.
    pub fn new(limits: &DoorLimits) -> Self {
        Self(Cache::builder().max_capacity(limits.known_phones).eviction_policy(EvictionPolicy::lru()).build())
    }

    /// The number, checked.
    pub fn check(&self, text: &str) -> Result<Phone, BadPhone> {
        if text.len() > PHONE_BYTES {
            return Phone::parse(text);
        }
        if let Some(answer) = self.0.get(text) {
            return answer;
        }
        let answer = Phone::parse(text);
        self.0.insert(text.into(), answer);
        answer
    }
}

/// What an accepted key stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kept {
    fingerprint: [u8; 16],
    accepted_at: Timestamp,
}

/// Keyed messages whose append the log has confirmed.
#[derive(Clone)]
pub struct Keys(Cache<MessageId, Kept>);

impl Keys {
    /// Remembers as many as the limits say.
    pub fn new(limits: &DoorLimits) -> Self {
        let cache = Cache::builder().max_capacity(limits.known_keys).time_to_live(KEYS_FOR);
        Self(cache.eviction_policy(EvictionPolicy::lru()).build())
    }

    /// Whether this message is here already: when it was accepted; a refusal where its key came with another body.
    pub fn seen(&self, message: &Message) -> Result<Option<Timestamp>, Problem> {
        if !message.id.is_keyed() {
            return Ok(None);
        }
        match self.0.get(&message.id) {
            None => Ok(None),
            Some(kept) if kept.fingerprint == message.fingerprint => Ok(Some(kept.accepted_at)),
            Some(_) => Err(conflict()),
        }
    }

    /// The log has it.
    pub fn keep(&self, id: MessageId, fingerprint: [u8; 16], accepted_at: Timestamp) {
        if id.is_keyed() {
            self.0.insert(id, Kept { fingerprint, accepted_at });
        }
    }
}

/// The refusal of a key that came before with another body.
pub fn conflict() -> Problem {
    let detail = "this key came before with another body; a key names one message for as long as it is kept";
    Problem::new(Code::IdempotencyConflict, detail).at("/key")
}
