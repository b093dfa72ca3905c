//! What stands in the columns that are ours alone: [`schemas::codec`] blobs.

use std::sync::Arc;

use schemas::{
    Inbox, Message, Position, State, Timestamp,
    codec::{self, Unreadable},
    message::Kind,
    port::Entry,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// What an entry adds to its message and its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EntryHead {
    pub(super) prev: Position,
    pub(super) one_way: u64,
    pub(super) recorded_at: Timestamp,
    /// 1: the message itself is one-way; more: the number of its turn, and 1; 0: neither.
    kind: u64,
}

impl EntryHead {
    pub(super) fn of(entry: &Entry) -> Self {
        Self {
            prev: entry.prev,
            one_way: entry.one_way,
            recorded_at: entry.recorded_at,
            kind: match entry.seq {
                _ if is_notice(&entry.message) => 1,
                Some(seq) => seq + 1,
                None => 0,
            },
        }
    }

    /// Whether the message itself is one-way.
    pub(super) fn is_notice(self) -> bool {
        self.kind == 1
    }

    /// The number of its turn.
    pub(super) fn seq(self) -> Option<u64> {
        self.kind.checked_sub(1).filter(|seq| *seq > 0)
    }

    pub(super) fn entry(self, inbox: Inbox, position: Position, message: Arc<Message>) -> Entry {
        let (Self { prev, one_way, recorded_at, .. }, seq) = (self, self.seq());
        Entry { inbox, position, prev, one_way, recorded_at, seq, message, end: None }
    }
}

/// Whether a message counts as unread until it is opened.
pub(super) fn is_notice(message: &Message) -> bool {
    matches!(message.kind, Kind::OneWay)
}

/// Whether this is where the message is found by its id: a sender's own copy is not.
pub(super) fn is_own(entry: &Entry) -> bool {
    entry.inbox.user == entry.message.to
}

/// What is known of an id without reading its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PlaceHead {
    pub(super) recorded_at: Timestamp,
    pub(super) fingerprint: [u8; 16],
    pub(super) notice: bool,
}

/// What is known of an inbox besides its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Ledger {
    /// One-way messages that are no longer unread: read, withdrawn, or removed before they were read.
    pub(super) seen: u64,
    /// The last entry that retention removed.
    pub(super) gone: Position,
    /// The one-way messages written up to there.
    pub(super) gone_one_way: u64,
}

/// A row of `places`.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Place {
    pub(super) inbox: Option<Inbox>,
    /// `None` while it is scheduled, or while only facts are known.
    pub(super) position: Option<Position>,
    pub(super) head: Option<PlaceHead>,
    pub(super) state: State,
    /// The message, where it was scheduled.
    pub(super) body: Option<Arc<Message>>,
}

/// Bytes of a column.
pub(super) fn blob<T: Serialize>(value: &T) -> Vec<u8> {
    codec::encode(value).into()
}

/// Reads [`blob`].
pub(super) fn unblob<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Unreadable> {
    codec::decode(bytes)
}
