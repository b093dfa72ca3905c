//! What stands in the rows.

use std::sync::Arc;

use schemas::{
    Conversation, Inbox, Message, Partition, Position, Timestamp,
    codec::{self, Unreadable},
    message::Kind,
    port::Entry,
};
use serde::{Deserialize, Serialize};

/// What an entry adds to its message and its key. It stands before the message, so that it can be read without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) prev: Position,
    pub(super) one_way: u64,
    pub(super) recorded_at: Timestamp,
    /// 1: the message itself is one-way; more: the number of its turn, and 1; 0: neither.
    kind: u64,
}

impl Head {
    pub(super) fn of(entry: &Entry) -> Self {
        Self {
            prev: entry.prev,
            one_way: entry.one_way,
            recorded_at: entry.recorded_at,
            kind: match (entry.message.kind, entry.seq) {
                (Kind::OneWay, _) => 1,
                (_, Some(seq)) => seq + 1,
                (_, None) => 0,
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

    /// Reads the head of an entry's row and leaves the message alone.
    pub(super) fn read(row: &[u8]) -> Result<Self, Unreadable> {
        match row.split_first() {
            None => Err(Unreadable::Empty),
            Some((&codec::VERSION, rest)) => {
                postcard::take_from_bytes(rest).map(|(head, _)| head).map_err(|_| Unreadable::Form)
            }
            Some((&version, _)) => Err(Unreadable::Version(version)),
        }
    }

    pub(super) fn entry(self, inbox: Inbox, position: Position, message: Arc<Message>) -> Entry {
        let (Self { prev, one_way, recorded_at, .. }, seq) = (self, self.seq());
        Entry { inbox, position, prev, one_way, recorded_at, seq, message, end: None }
    }
}

/// Where the message of an id is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Place {
    /// In an inbox.
    Placed { inbox: Inbox, position: Position, notice: bool },
    /// It has no place yet, and gets none if it is cancelled before its time.
    Scheduled { partition: Partition },
}

/// A scheduled message: when it was recorded, and what it is.
pub(super) type Body = (Timestamp, Arc<Message>);

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

/// Reads the row of a conversation, which is written as [`Conversation::kept`]; one from before rows said how far the lane was
/// applied says nothing of it.
pub(super) fn conversation(row: &[u8]) -> Result<Conversation, Unreadable> {
    codec::decode(row).map(Conversation::of_kept).or_else(|_| codec::decode(row))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::testing;
    use schemas::{Epoch, Offset, conversation::Applied};

    #[test]
    fn a_conversation_is_read_with_and_without_how_far_the_lane_was_applied() {
        let row = testing::conversation(Epoch(2));
        assert_eq!(conversation(&codec::encode(&row)), Ok(row.clone()));
        assert_eq!(conversation(&codec::encode(&row.kept())), Ok(row.clone()));
        let applied = Some(Applied { offset: Offset(0), accepted_at: Timestamp(0) });
        let row = Conversation { applied, ..row };
        assert_eq!(conversation(&codec::encode(&row.kept())), Ok(row));
    }

    #[test]
    fn the_head_is_read_without_the_message() {
        let head = Head { prev: Position::START, one_way: 300, recorded_at: Timestamp(-5), kind: 1 };
        let row = codec::encode(&(head, "whatever stands behind it"));
        assert_eq!(Head::read(&row), Ok(head));
        assert_eq!(Head::read(&[]), Err(Unreadable::Empty));
        assert_eq!(Head::read(&[9, 1]), Err(Unreadable::Version(9)));
        assert_eq!(Head::read(&row[..3]), Err(Unreadable::Form));
    }
}
