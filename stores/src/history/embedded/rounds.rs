//! Rounds: which inboxes retention looks at next, and when there is nothing to look for.
//!
//! A round visits every inbox of a partition once. It learns the age of the oldest entry that stays, so until that one is
//! old there is nothing to do; and as in a busy installation there is always one that has just become old, a round begins at
//! most once in [`STEP_MS`] of the time up to which it removes. Kept in memory: after a restart a first round learns again.

use std::collections::HashMap;

use parking_lot::Mutex;
use schemas::{Partition, Timestamp, port::Entry};

/// A minute: entries may stay so much longer, against a retention of days, and one seek an inbox is spent a minute.
const STEP_MS: u64 = 60_000;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Round {
    /// Where it goes on; empty: it has ended.
    at: Vec<u8>,
    /// Up to which time it removes.
    before: Timestamp,
    /// The oldest entry that it left so far, or that was recorded since it began.
    oldest: Timestamp,
}

/// The rounds of all partitions.
#[derive(Debug, Default)]
pub(super) struct Rounds(Mutex<HashMap<Partition, Round>>);

impl Rounds {
    /// Where to look for what is older than `before`; empty: from the beginning. `None`: there is nothing to be found.
    pub(super) fn begin(&self, partition: Partition, before: Timestamp) -> Option<Vec<u8>> {
        let mut rounds = self.0.lock();
        if let Some(round) = rounds.get(&partition) {
            if !round.at.is_empty() {
                return Some(round.at.clone());
            }
            let just_looked = round.oldest >= round.before && before.ms_since(round.before) < STEP_MS;
            if round.oldest >= before || just_looked {
                return None;
            }
        }
        rounds.insert(partition, Round { at: Vec::new(), before, oldest: Timestamp(i64::MAX) });
        Some(Vec::new())
    }

    /// How far a call came, and the oldest entry that it left.
    pub(super) fn end(&self, partition: Partition, next: Vec<u8>, oldest: Option<Timestamp>) {
        if let Some(round) = self.0.lock().get_mut(&partition) {
            round.at = next;
            round.oldest = round.oldest.min(oldest.unwrap_or(round.oldest));
        }
    }

    /// Entries are being recorded: what was learnt holds no longer if one of them is older.
    pub(super) fn note(&self, entries: &[Entry]) {
        let mut rounds = self.0.lock();
        if rounds.is_empty() {
            return;
        }
        for entry in entries {
            if let Some(round) = rounds.get_mut(&entry.inbox.partition) {
                round.oldest = round.oldest.min(entry.recorded_at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: Partition = Partition(1);
    const NOON: Timestamp = Timestamp(1_000_000_000);

    #[test]
    fn nothing_is_looked_for_before_the_oldest_is_old() {
        let rounds = Rounds::default();
        assert_eq!(rounds.begin(P, NOON), Some(vec![]));
        rounds.end(P, vec![7], Some(NOON.plus_ms(90_000)));
        assert_eq!(rounds.begin(P, NOON), Some(vec![7]), "a round goes on where it was");
        rounds.end(P, vec![], Some(NOON.plus_ms(100_000)));
        assert_eq!(rounds.begin(P, NOON.plus_ms(90_000)), None);
        assert_eq!(rounds.begin(P, NOON.plus_ms(90_001)), Some(vec![]));
    }

    #[test]
    fn a_round_begins_once_a_minute_while_something_grows_old_all_the_time() {
        let rounds = Rounds::default();
        rounds.begin(P, NOON);
        rounds.end(P, vec![], Some(NOON.plus_ms(10)));
        assert_eq!(rounds.begin(P, NOON.plus_ms(59_999)), None);
        assert_eq!(rounds.begin(P, NOON.plus_ms(60_000)), Some(vec![]));
    }

    #[test]
    fn what_is_left_old_is_looked_for_at_once() {
        let rounds = Rounds::default();
        rounds.begin(P, NOON);
        rounds.end(P, vec![], Some(Timestamp(NOON.0 - 1)));
        assert_eq!(rounds.begin(P, NOON), Some(vec![]), "it waits to be settled");
    }
}
