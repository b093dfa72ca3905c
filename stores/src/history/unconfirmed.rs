//! Rows of conversations whose write failed and was not repeated yet: nothing of their conversation is written after them, as
//! nothing of an inbox is after such a place. A later row would count a turn that is not there, and the earlier one, repeated,
//! would be passed over with its turn.

use std::collections::{BTreeSet, HashMap};

use parking_lot::Mutex;
use schemas::{
    ConversationId,
    conversation::Version,
    port::{PortError, PortResult, Schedule},
};

/// The versions of such rows.
#[derive(Debug, Default)]
pub(super) struct Unconfirmed(Mutex<HashMap<ConversationId, BTreeSet<Version>>>);

impl Unconfirmed {
    /// Whether these may be written now: each conversation's earlier rows of the same owner stand, or are among these. Those
    /// that may not have failed themselves.
    pub(super) fn allow(&self, schedule: &Schedule) -> PortResult<()> {
        let early = self.early(schedule);
        if early.is_err() {
            self.ended(schedule, false);
        }
        early
    }

    fn early(&self, schedule: &Schedule) -> PortResult<()> {
        let failed = self.0.lock();
        if failed.is_empty() {
            return Ok(());
        }
        for row in &schedule.conversations {
            let before = failed.get(&row.id).into_iter().flatten();
            let before = before.filter(|it| it.epoch() == row.version.epoch() && **it < row.version);
            let mine = |it: &Version| schedule.conversations.iter().any(|own| own.id == row.id && own.version == *it);
            if before.into_iter().any(|it| !mine(it)) {
                return Err(PortError::Unavailable(
                    "an earlier write to this conversation is not confirmed yet".into(),
                ));
            }
        }
        Ok(())
    }

    /// How the write of these ended.
    pub(super) fn ended(&self, schedule: &Schedule, stands: bool) {
        let mut failed = self.0.lock();
        for row in &schedule.conversations {
            if !stands {
                failed.entry(row.id).or_default().insert(row.version);
            } else if let Some(versions) = failed.get_mut(&row.id) {
                versions.retain(|it| it.epoch() >= row.version.epoch() && *it != row.version);
                if versions.is_empty() {
                    failed.remove(&row.id);
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
        let rows = Unconfirmed::default();
        rows.ended(&batch(1, 3), false);
        assert!(rows.allow(&batch(1, 4)).is_err(), "its turns would stand without those before them");
        assert!(rows.allow(&batch(1, 5)).is_err());
        rows.allow(&batch(1, 3)).unwrap();
        rows.allow(&batch(2, 4)).unwrap();
        let both = Schedule {
            conversations: [batch(1, 3), batch(1, 4)].into_iter().flat_map(|it| it.conversations).collect(),
            ..Schedule::default()
        };
        rows.allow(&both).unwrap();
        rows.ended(&batch(1, 3), true);
        assert!(rows.allow(&batch(1, 5)).is_err(), "what had to wait comes first");
        rows.allow(&batch(1, 4)).unwrap();
    }

    #[test]
    fn a_newer_owner_s_row_forgets_what_an_older_one_did_not_get_done() {
        let rows = Unconfirmed::default();
        rows.ended(&batch(1, 3), false);
        rows.ended(&batch(2, 4), true);
        assert!(rows.0.lock().is_empty());
    }
}
