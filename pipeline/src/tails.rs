//! Tails: the ends of the inboxes that this instance writes, from which the next positions are given.
//!
//! Bounded, and exact: an end is forgotten only when everything written after it is durable and nobody is about to use it, so
//! that reading it again tells the same. An end learnt under an earlier takeover of its partition is not believed.

use std::collections::HashMap;

use schemas::{Epoch, Inbox, Position, port::Tail};

use crate::ages::Fold;

/// The ends in memory.
pub(crate) struct Tails {
    young: HashMap<Inbox, Slot, Fold>,
    old: HashMap<Inbox, Slot, Fold>,
    half: usize,
    released: u64,
}

struct Slot {
    /// `None` until it was read.
    tail: Option<Tail>,
    /// The takeover it was learnt under.
    epoch: Epoch,
    /// Batches that are about to use it.
    pins: u32,
    /// The last write that moved it.
    write: u64,
}

/// A place that was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Given {
    /// The place.
    pub(crate) position: Position,
    /// The one before it.
    pub(crate) prev: Position,
    /// One-way messages so far.
    pub(crate) one_way: u64,
}

impl Tails {
    /// Keeps at most `most`, and those in use.
    pub(crate) fn new(most: usize) -> Self {
        Self { young: HashMap::default(), old: HashMap::default(), half: (most / 2).max(1), released: 0 }
    }

    /// Holds an end for a batch that will use it. True: it is not known and must be read.
    pub(crate) fn pin(&mut self, inbox: &Inbox, epoch: Epoch) -> bool {
        let slot = self.slot(inbox, epoch);
        slot.pins += 1;
        slot.tail.is_none()
    }

    /// What a read told; believed where nothing is known yet.
    pub(crate) fn learn(&mut self, inbox: &Inbox, epoch: Epoch, tail: Tail) {
        let slot = self.slot(inbox, epoch);
        slot.tail.get_or_insert(tail);
    }

    /// Lets go of an end without using it.
    pub(crate) fn unpin(&mut self, inbox: &Inbox, epoch: Epoch) {
        let slot = self.slot(inbox, epoch);
        slot.pins = slot.pins.saturating_sub(1);
    }

    /// Uses a held end: gives the next place, which this write will fill.
    pub(crate) fn give(&mut self, inbox: &Inbox, epoch: Epoch, one_way: bool, write: u64) -> Given {
        let slot = self.slot(inbox, epoch);
        slot.pins = slot.pins.saturating_sub(1);
        slot.write = write;
        let before = slot.tail.unwrap_or_default();
        let after = Tail { position: before.position.next(epoch), one_way: before.one_way + u64::from(one_way) };
        slot.tail = Some(after);
        Given { position: after.position, prev: before.position, one_way: after.one_way }
    }

    /// All writes below this number are durable.
    pub(crate) fn release(&mut self, below: u64) {
        self.released = below;
    }

    fn slot(&mut self, inbox: &Inbox, epoch: Epoch) -> &mut Slot {
        if !self.young.contains_key(inbox) && self.young.len() >= self.half {
            self.turn();
        }
        // Turning may have brought it back among the young: it was in use.
        if !self.young.contains_key(inbox) {
            let slot = self.old.remove(inbox).unwrap_or(Slot { tail: None, epoch, pins: 0, write: 0 });
            self.young.insert(inbox.clone(), slot);
        }
        let slot = self.young.entry(inbox.clone()).or_insert(Slot { tail: None, epoch, pins: 0, write: 0 });
        if slot.epoch < epoch {
            slot.tail = None;
            slot.epoch = epoch;
        }
        slot
    }

    fn turn(&mut self) {
        let released = self.released;
        let mut gone = std::mem::replace(&mut self.old, std::mem::take(&mut self.young));
        gone.retain(|_, slot| slot.pins > 0 || slot.write >= released);
        self.young = gone;
    }

    /// How many are kept.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use schemas::Partition;
    use std::collections::HashMap;

    fn inbox(n: u16) -> Inbox {
        Inbox { user: format!("acme/+96279000{n:04}").parse().unwrap(), partition: Partition(0) }
    }

    proptest! {
        // Whatever is forgotten and read again, positions stay dense.
        #[test]
        fn positions_are_dense_however_little_is_kept(
            uses in proptest::collection::vec((0u16..12, 0u8..3, any::<bool>()), 1..200), most in 2usize..8,
        ) {
            let mut tails = Tails::new(most);
            let mut durable = HashMap::<u16, Tail>::new();
            let mut writing = std::collections::VecDeque::<(u64, u16, Tail)>::new();
            let (mut write, mut released, mut held) = (1_u64, 1_u64, 0);
            for (who, settle, one_way) in uses {
                if tails.pin(&inbox(who), Epoch(1)) {
                    tails.learn(&inbox(who), Epoch(1), durable.get(&who).copied().unwrap_or_default());
                }
                let given = tails.give(&inbox(who), Epoch(1), one_way, write);
                let last = writing.iter().rev().find(|w| w.1 == who).map(|w| w.2);
                let last = last.or(durable.get(&who).copied()).unwrap_or_default();
                prop_assert_eq!(given.prev, last.position);
                prop_assert_eq!(given.position.n, last.position.n + 1);
                prop_assert_eq!(given.one_way, last.one_way + u64::from(one_way));
                writing.push_back((write, who, Tail { position: given.position, one_way: given.one_way }));
                write += 1;
                for _ in 0..settle {
                    if let Some((n, who, tail)) = writing.pop_front() {
                        durable.insert(who, tail);
                        released = n + 1;
                        tails.release(released);
                    }
                }
                held = held.max((write - released) as usize);
                prop_assert!(tails.len() <= most + 2 * held + 2, "{} kept, {} held", tails.len(), held);
            }
        }
    }

    #[test]
    fn an_end_of_an_earlier_takeover_is_read_again() {
        let mut tails = Tails::new(10);
        assert!(tails.pin(&inbox(1), Epoch(1)));
        tails.learn(&inbox(1), Epoch(1), Tail::default());
        assert_eq!(tails.give(&inbox(1), Epoch(1), true, 1).position.n, 1);
        assert!(!tails.pin(&inbox(1), Epoch(1)));
        assert!(tails.pin(&inbox(1), Epoch(3)), "another may have written between");
    }
}
