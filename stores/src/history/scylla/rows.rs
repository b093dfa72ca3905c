//! What stands in the columns that are ours alone: [`schemas::codec`] blobs.

use std::sync::Arc;

use schemas::{
    Inbox, Message, MessageId, Position, State, Timestamp,
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
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Ledger {
    /// One-way messages that are no longer unread: read, withdrawn, or removed before they were read.
    pub(super) seen: u64,
    /// The last entry that retention removed.
    pub(super) gone: Position,
    /// The one-way messages written up to there.
    pub(super) gone_one_way: u64,
    /// Messages counted ahead of their states, each with whether it counts as unread. The count is written first and the states
    /// after it; whoever finds one here whose state did not follow does not count it again.
    ahead: Vec<(MessageId, bool)>,
}

/// Messages kept as counted ahead although their states are not known to stand. They stand when their facts come again.
const AHEAD: usize = 1_000;

impl Ledger {
    /// Reads what stands in the column; earlier releases counted nothing ahead.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Unreadable> {
        unblob(bytes).or_else(|why| {
            let (seen, gone, gone_one_way) = unblob(bytes).map_err(|_| why)?;
            Ok(Self { seen, gone, gone_one_way, ahead: Vec::new() })
        })
    }

    /// Counts a message that was unread or not by its state and is so now. The state is to be written once this stands.
    pub(super) fn count(&mut self, id: MessageId, before: bool, unread: bool) {
        let there = self.ahead.iter_mut().find(|(there, _)| *there == id);
        if before == unread && there.is_none() {
            return;
        }
        let counted = there.as_ref().map_or(before, |there| there.1);
        match there {
            Some(there) => there.1 = unread,
            None => self.ahead.push((id, unread)),
        }
        match (counted, unread) {
            (true, false) => self.seen += 1,
            (false, true) => self.seen = self.seen.saturating_sub(1),
            _ => {}
        }
    }

    /// Forgets a message that is being removed; whether it counted as unread, where its state says so or not.
    pub(super) fn remove(&mut self, id: MessageId, unread: bool) -> bool {
        let at = self.ahead.iter().position(|(there, _)| *there == id);
        at.map_or(unread, |at| self.ahead.remove(at).1)
    }

    /// The messages counted ahead.
    pub(super) fn ahead(&self) -> impl Iterator<Item = MessageId> {
        self.ahead.iter().map(|(id, _)| *id)
    }

    /// Drops those whose states stand as they were counted; `unread` says what a state that stands says.
    pub(super) fn caught_up(&mut self, unread: impl Fn(MessageId) -> Option<bool>) {
        self.ahead.retain(|(id, counted)| unread(*id) != Some(*counted));
        self.ahead.drain(..self.ahead.len().saturating_sub(AHEAD));
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> MessageId {
        MessageId(uuid::Uuid::new_v4())
    }

    #[test]
    fn a_count_whose_states_did_not_follow_is_not_made_twice() {
        let (mut ledger, read, taken_back) = (Ledger::default(), id(), id());
        ledger.count(read, true, false);
        ledger.count(taken_back, true, false);
        assert_eq!(ledger.seen, 2);
        // The process died before it wrote the states: the facts come again, and one message comes to something else.
        ledger.count(read, true, false);
        ledger.count(taken_back, true, true);
        assert_eq!(ledger.seen, 1);
        // The states stand now.
        ledger.caught_up(|id| Some(id == taken_back));
        assert_eq!((ledger.seen, ledger.ahead().count()), (1, 0));
        ledger.count(taken_back, true, false);
        assert_eq!(ledger.seen, 2);
    }

    #[test]
    fn what_is_not_known_to_stand_is_kept_and_counts_when_it_is_removed() {
        let (mut ledger, read, unread) = (Ledger::default(), id(), id());
        ledger.count(read, true, false);
        ledger.caught_up(|_| None);
        ledger.caught_up(|_| Some(true));
        assert!(!ledger.remove(read, true), "it is counted already");
        assert!(ledger.remove(unread, true));
        assert_eq!(ledger.ahead().count(), 0);
        for _ in 0..2 * AHEAD {
            ledger.count(id(), true, false);
            ledger.caught_up(|_| None);
        }
        assert_eq!(ledger.ahead().count(), AHEAD);
    }

    #[test]
    fn what_an_earlier_release_wrote_is_read() {
        let (gone, mut ledger) = (schemas::cursor::place(2, 7), Ledger::default());
        (ledger.seen, ledger.gone, ledger.gone_one_way) = (5, gone, 6);
        assert_eq!(Ledger::read(&blob(&(5u64, gone, 6u64))), Ok(ledger.clone()));
        ledger.count(id(), true, false);
        assert_eq!(Ledger::read(&blob(&ledger)), Ok(ledger));
        assert!(Ledger::read(&[]).is_err() && Ledger::read(&[9, 9]).is_err());
    }
}
