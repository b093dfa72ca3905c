//! Places whose write failed and was not repeated yet: nothing of their inbox, and no later row of their conversation, is
//! written before that. A later entry would stand behind a gap, where no reader and no new owner finds it; a later row would
//! count a turn that is not there, and the earlier one, repeated, would be passed over with its turn.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    hash::Hash,
};

use parking_lot::Mutex;
use schemas::{
    ConversationId, Epoch, Inbox, Position,
    conversation::Version,
    port::{Entry, PortError, PortResult, Schedule},
};

/// What is written in order: in which line it stands, and where.
trait Place: Copy + Ord + Hash {
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
struct Failed<K, V>(HashMap<K, BTreeSet<V>>);

impl<K: Clone + Eq + Hash, V: Place> Failed<K, V> {
    /// Whether what is earlier in the lines of these, of the same owner, stands or is among them.
    fn allow<'a>(&self, batch: impl Iterator<Item = (&'a K, V)> + Clone) -> bool
    where
        K: 'a,
    {
        if self.0.is_empty() {
            return true;
        }
        let mine: HashSet<(&K, V)> = batch.clone().collect();
        let mut early = batch.filter(|(line, place)| {
            let before = self.0.get(*line).into_iter().flatten();
            let mut before = before.filter(|it| it.epoch() == place.epoch() && *it < place);
            before.any(|it| !mine.contains(&(*line, *it)))
        });
        early.next().is_none()
    }

    fn ended<'a>(&mut self, batch: impl Iterator<Item = (&'a K, V)>, stands: bool)
    where
        K: 'a,
    {
        if stands && self.0.is_empty() {
            return;
        }
        for (line, place) in batch {
            if !stands {
                self.0.entry(line.clone()).or_default().insert(place);
            } else if let Some(places) = self.0.get_mut(line) {
                places.retain(|it| it.epoch() >= place.epoch() && *it != place);
                if places.is_empty() {
                    self.0.remove(line);
                }
            }
        }
    }
}

/// What failed of one process's writes.
#[derive(Debug)]
pub(super) struct Unconfirmed {
    entries: Mutex<Failed<Inbox, Position>>,
    rows: Mutex<Failed<ConversationId, Version>>,
}

impl Default for Unconfirmed {
    fn default() -> Self {
        Self { entries: Mutex::new(Failed(HashMap::new())), rows: Mutex::new(Failed(HashMap::new())) }
    }
}

fn places(entries: &[Entry]) -> impl Iterator<Item = (&Inbox, Position)> + Clone {
    entries.iter().map(|entry| (&entry.inbox, entry.position))
}

fn rows(schedule: &Schedule) -> impl Iterator<Item = (&ConversationId, Version)> + Clone {
    schedule.conversations.iter().map(|row| (&row.id, row.version))
}

impl Unconfirmed {
    /// Whether these may be written now. Those that may not are to be told as failed by [`Unconfirmed::ended`].
    pub(super) fn allow(&self, entries: &[Entry], schedule: &Schedule) -> PortResult<()> {
        let early = |of: &str| PortError::Unavailable(format!("an earlier write to this {of} is not confirmed yet"));
        if !self.entries.lock().allow(places(entries)) {
            return Err(early("inbox"));
        }
        if !self.rows.lock().allow(rows(schedule)) {
            return Err(early("conversation"));
        }
        Ok(())
    }

    /// How the write of these ended.
    pub(super) fn ended(&self, entries: &[Entry], schedule: &Schedule, stands: bool) {
        self.entries.lock().ended(places(entries), stands);
        self.rows.lock().ended(rows(schedule), stands);
    }

    /// Whoever takes partitions over goes on from what stands in their inboxes.
    #[cfg(feature = "scylla")]
    pub(super) fn forget(&self, partitions: &[schemas::Partition]) {
        self.entries.lock().0.retain(|inbox, _| !partitions.contains(&inbox.partition));
    }
}

#[cfg(test)]
mod tests {
    use schemas::{Epoch, Partition};

    use super::{super::testing::conversation, *};

    fn batch(epoch: u32, count: u64) -> Schedule {
        let mut row = conversation(Epoch(epoch));
        (1..count).for_each(|_| row.version = row.version.next(Epoch(epoch)));
        Schedule { conversations: vec![row], ..Schedule::default() }
    }

    #[test]
    fn nothing_is_written_after_a_row_that_failed_until_that_was_repeated() {
        let failed = Unconfirmed::default();
        failed.ended(&[], &batch(1, 3), false);
        assert!(failed.allow(&[], &batch(1, 4)).is_err(), "its turns would stand without those before them");
        failed.ended(&[], &batch(1, 4), false);
        assert!(failed.allow(&[], &batch(1, 5)).is_err());
        failed.allow(&[], &batch(1, 3)).unwrap();
        failed.allow(&[], &batch(2, 4)).unwrap();
        let both = Schedule {
            conversations: [batch(1, 3), batch(1, 4)].into_iter().flat_map(|it| it.conversations).collect(),
            ..Schedule::default()
        };
        failed.allow(&[], &both).unwrap();
        failed.ended(&[], &batch(1, 3), true);
        assert!(failed.allow(&[], &batch(1, 5)).is_err(), "what had to wait comes first");
        failed.allow(&[], &batch(1, 4)).unwrap();
    }

    #[test]
    fn an_entry_waits_for_the_place_before_it_also_where_its_conversation_is_another() {
        let inbox = Inbox { user: "acme/business:sara".parse().unwrap(), partition: Partition(0) };
        let at = |n| (&inbox, Position { epoch: Epoch(1), n });
        let mut failed = Failed(HashMap::new());
        failed.ended([at(4)].into_iter(), false);
        assert!(!failed.allow([at(5)].into_iter()), "it would stand behind a gap");
        assert!(failed.allow([at(4), at(5)].into_iter()));
        failed.ended([at(4)].into_iter(), true);
        assert!(failed.allow([at(5)].into_iter()));
    }

    #[test]
    fn a_newer_owner_s_row_forgets_what_an_older_one_did_not_get_done() {
        let failed = Unconfirmed::default();
        failed.ended(&[], &batch(1, 3), false);
        failed.ended(&[], &batch(2, 4), true);
        assert!(failed.rows.lock().0.is_empty());
    }
}
