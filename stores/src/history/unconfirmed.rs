//! Places whose write failed and was not repeated yet: nothing of their inbox, and no later row of their conversation, is
//! written before that. A later entry would stand behind a gap, where no reader and no new owner finds it; a later row would
//! count a turn that is not there, and the earlier one, repeated, would be passed over with its turn.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
};

use parking_lot::Mutex;
use schemas::{
    ConversationId, Epoch, Inbox, Position,
    conversation::Version,
    port::{Entry, PortError, PortResult, Schedule},
};

/// What is written in order: in which line it stands, and where.
pub(super) trait Place: Copy + Ord {
    /// Whose it is.
    fn epoch(self) -> Epoch;
}

impl Place for Version {
    fn epoch(self) -> Epoch {
        Self::epoch(self)
    }
}

impl Place for Position {
    fn epoch(self) -> Epoch {
        self.epoch
    }
}

/// The places that failed, by their lines.
#[derive(Debug)]
pub(super) struct Unconfirmed<K, V>(Mutex<HashMap<K, BTreeSet<V>>>);

/// Rows of conversations.
pub(super) type Rows = Unconfirmed<ConversationId, Version>;
/// Entries of inboxes.
pub(super) type Entries = Unconfirmed<Inbox, Position>;

/// The rows of a batch.
pub(super) fn rows(schedule: &Schedule) -> impl Iterator<Item = (&ConversationId, Version)> + Clone {
    schedule.conversations.iter().map(|row| (&row.id, row.version))
}

/// The entries of a batch.
pub(super) fn places(entries: &[Entry]) -> impl Iterator<Item = (&Inbox, Position)> + Clone {
    entries.iter().map(|entry| (&entry.inbox, entry.position))
}

impl<K, V> Default for Unconfirmed<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash, V: Place> Unconfirmed<K, V> {
    /// Whether these may be written now: what is earlier in their lines, of the same owner, stands or is among these. Those
    /// that may not are to be told as failed by [`Unconfirmed::ended`].
    pub(super) fn allow<'a>(&self, batch: impl Iterator<Item = (&'a K, V)> + Clone) -> PortResult<()>
    where
        K: 'a,
    {
        let failed = self.0.lock();
        if failed.is_empty() {
            return Ok(());
        }
        let mine: HashMap<&K, BTreeSet<V>> = batch.clone().fold(HashMap::new(), |mut mine, (line, place)| {
            mine.entry(line).or_insert_with(BTreeSet::new).insert(place);
            mine
        });
        for (line, place) in batch {
            let before = failed.get(line).into_iter().flatten();
            let mut before = before.filter(|it| it.epoch() == place.epoch() && **it < place);
            if before.any(|it| !mine.get(line).is_some_and(|mine| mine.contains(it))) {
                return Err(PortError::Unavailable("an earlier write to the same place is not confirmed yet".into()));
            }
        }
        Ok(())
    }

    /// How the write of these ended.
    pub(super) fn ended<'a>(&self, batch: impl Iterator<Item = (&'a K, V)>, stands: bool)
    where
        K: 'a,
    {
        let mut failed = self.0.lock();
        if stands && failed.is_empty() {
            return;
        }
        for (line, place) in batch {
            if !stands {
                failed.entry(line.clone()).or_default().insert(place);
            } else if let Some(places) = failed.get_mut(line) {
                places.retain(|it| it.epoch() >= place.epoch() && *it != place);
                if places.is_empty() {
                    failed.remove(line);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::{Conversation, Epoch, Name, Partition, Phone, Tenant, Timestamp, conversation::Pair};

    use super::*;

    fn batch(epoch: u32, count: u64) -> Schedule {
        let pair = Pair {
            tenant: Tenant::parse("acme").unwrap(),
            business: Name::parse("sara").unwrap(),
            mobile: Phone::from_stored("+962790000001").unwrap(),
        };
        let mut row = Conversation::open(pair, Partition(0), Epoch(epoch), Timestamp(0));
        (1..count).for_each(|_| row.version = row.version.next(Epoch(epoch)));
        Schedule { conversations: vec![row], ..Schedule::default() }
    }

    #[test]
    fn nothing_is_written_after_a_row_that_failed_until_that_was_repeated() {
        let failed = Rows::default();
        failed.ended(rows(&batch(1, 3)), false);
        assert!(failed.allow(rows(&batch(1, 4))).is_err(), "its turns would stand without those before them");
        failed.ended(rows(&batch(1, 4)), false);
        assert!(failed.allow(rows(&batch(1, 5))).is_err());
        failed.allow(rows(&batch(1, 3))).unwrap();
        failed.allow(rows(&batch(2, 4))).unwrap();
        let both = Schedule {
            conversations: [batch(1, 3), batch(1, 4)].into_iter().flat_map(|it| it.conversations).collect(),
            ..Schedule::default()
        };
        failed.allow(rows(&both)).unwrap();
        failed.ended(rows(&batch(1, 3)), true);
        assert!(failed.allow(rows(&batch(1, 5))).is_err(), "what had to wait comes first");
        failed.allow(rows(&batch(1, 4))).unwrap();
    }

    #[test]
    fn an_entry_waits_for_the_place_before_it_also_where_its_conversation_is_another() {
        let (failed, inbox) =
            (Entries::default(), Inbox { user: "acme/business:sara".parse().unwrap(), partition: Partition(0) });
        let at = |n| [(&inbox, Position { epoch: Epoch(1), n })].into_iter();
        failed.ended(at(4), false);
        assert!(failed.allow(at(5)).is_err(), "it would stand behind a gap");
        failed.allow(at(4).chain(at(5))).unwrap();
        failed.ended(at(4), true);
        failed.allow(at(5)).unwrap();
    }

    #[test]
    fn a_newer_owner_s_row_forgets_what_an_older_one_did_not_get_done() {
        let failed = Rows::default();
        failed.ended(rows(&batch(1, 3)), false);
        failed.ended(rows(&batch(2, 4)), true);
        assert!(failed.0.lock().is_empty());
    }
}
