//! The offset ledger: which records of `outcomes` may be committed.
//!
//! Promises that an offset is given out only when it and every one before it is free: settled, and without a deadline that
//! still stands on it (§3.3). Remembers 16 bytes per record between the oldest held one and the newest read; that is bounded
//! by how long a deadline runs and by the bound on deadlines. Leaves the committing to who owns the consumer.

use std::collections::{BTreeMap, VecDeque};

use schemas::{Offset, Partition};

/// The records of one partition that are not yet released, in order.
#[derive(Debug, Default)]
struct Open {
    /// Offset and how many things hold it: one until it is settled, and one for each deadline.
    held: VecDeque<(Offset, u32)>,
    /// The next offset after the last released record.
    next: Option<Offset>,
    /// What was last given out by [`Ledger::moved`].
    told: Option<Offset>,
}

/// The ledgers of all partitions that are owned.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    open: BTreeMap<Partition, Open>,
}

impl Ledger {
    /// Starts a partition afresh.
    pub(super) fn open(&mut self, partition: Partition) {
        self.open.insert(partition, Open::default());
    }

    /// Forgets a partition.
    pub(super) fn close(&mut self, partition: Partition) {
        self.open.remove(&partition);
    }

    /// A record was read: it is held until [`Ledger::release`]. Says whether it is one to work on: not of a partition that
    /// is not owned, and not one that came before.
    pub(super) fn took(&mut self, partition: Partition, offset: Offset) -> bool {
        let Some(open) = self.open.get_mut(&partition) else { return false };
        let newest = open.held.back().map(|(offset, _)| offset.next()).or(open.next);
        if newest.is_some_and(|newest| offset < newest) {
            return false;
        }
        open.held.push_back((offset, 1));
        true
    }

    /// One thing more holds a record. Says whether the record is there to be held.
    pub(super) fn hold(&mut self, partition: Partition, offset: Offset) -> bool {
        self.entry(partition, offset).map(|holds| *holds += 1).is_some()
    }

    /// One thing less holds a record.
    pub(super) fn release(&mut self, partition: Partition, offset: Offset) {
        if let Some(holds) = self.entry(partition, offset) {
            *holds = holds.saturating_sub(1);
        }
        let Some(open) = self.open.get_mut(&partition) else { return };
        while let Some((offset, 0)) = open.held.front() {
            open.next = Some(offset.next());
            open.held.pop_front();
        }
    }

    /// The next offsets of the partitions where they have moved since this was last asked.
    pub(super) fn moved(&mut self) -> impl Iterator<Item = (Partition, Offset)> {
        self.open.iter_mut().filter(|(_, open)| open.next != open.told).filter_map(|(partition, open)| {
            open.told = open.next;
            open.next.map(|next| (*partition, next))
        })
    }

    /// Records that are held.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.open.values().map(|open| open.held.len()).sum()
    }

    fn entry(&mut self, partition: Partition, offset: Offset) -> Option<&mut u32> {
        let held = &mut self.open.get_mut(&partition)?.held;
        // Offsets are dense, so the place is the distance; a log that leaves gaps costs a search.
        let first = held.front()?.0;
        let guess = usize::try_from(offset.0.checked_sub(first.0)?).ok()?;
        let place = match held.get(guess) {
            Some((there, _)) if *there == offset => guess,
            _ => held.binary_search_by_key(&offset, |(offset, _)| *offset).ok()?,
        };
        held.get_mut(place).map(|(_, holds)| holds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: Partition = Partition(3);

    fn given(ledger: &mut Ledger) -> Vec<u64> {
        ledger.moved().map(|(_, offset)| offset.0).collect()
    }

    #[test]
    fn offsets_are_given_in_order_and_once() {
        let mut ledger = Ledger::default();
        ledger.open(P);
        for offset in [7, 8, 9] {
            assert!(ledger.took(P, Offset(offset)));
        }
        assert!(!ledger.took(P, Offset(8)), "it came before");
        assert!(!ledger.took(Partition(4), Offset(0)), "it is not owned");
        assert!(ledger.hold(P, Offset(7)));
        ledger.release(P, Offset(8));
        ledger.release(P, Offset(7));
        assert!(given(&mut ledger).is_empty(), "a deadline stands on 7");
        ledger.release(P, Offset(7));
        assert_eq!(given(&mut ledger), [9]);
        assert!(given(&mut ledger).is_empty());
        ledger.release(P, Offset(9));
        assert_eq!((given(&mut ledger), ledger.held()), (vec![10], 0));
        assert!(!ledger.hold(P, Offset(9)), "it is gone");
    }

    #[test]
    fn a_log_that_leaves_gaps_is_followed() {
        let mut ledger = Ledger::default();
        ledger.open(P);
        for offset in [2, 5, 11] {
            ledger.took(P, Offset(offset));
        }
        ledger.release(P, Offset(2));
        assert_eq!(given(&mut ledger), [3]);
        ledger.release(P, Offset(11));
        assert!(given(&mut ledger).is_empty());
        ledger.release(P, Offset(5));
        assert_eq!(given(&mut ledger), [12]);
    }
}
