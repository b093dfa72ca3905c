//! Tails: the ends of the inboxes that this instance writes, from which the next positions are given.
//!
//! Bounded, and exact: an end is forgotten only when everything written after it is durable and nobody is about to use it, so
//! that reading it again tells the same. An end learnt under an earlier takeover of its partition is not believed.
//!
//! Ends are read when an inbox is first touched after a takeover. Until that moment a late owner, who does not know yet that
//! it was overtaken, may still have written there from the records that are now ours, and what it wrote stands: messages
//! accepted by then are doubtful, and history is asked whether it has them. What it writes later never stands.

use std::collections::HashMap;

use schemas::{Epoch, Inbox, Position, Timestamp, port::Tail};

use crate::ages::Fold;

/// How far the clocks of who accepts and who records may be apart, ms.
pub(crate) const SKEW_MS: u64 = 60_000;

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
    /// Where it stood when it was read: what an earlier owner wrote beyond that is not in the inbox.
    read: Position,
    /// What was accepted by then may have been recorded by the owner before us.
    doubtful_until: Option<Timestamp>,
}

impl Slot {
    fn unknown(epoch: Epoch) -> Self {
        Self { tail: None, epoch, pins: 0, write: 0, read: Position::START, doubtful_until: None }
    }
}

/// Whether an end was written by an earlier owner than this one.
pub(crate) fn is_inherited(tail: &Tail, epoch: Epoch) -> bool {
    tail.position != Position::START && tail.position.epoch < epoch
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

    /// What a read told at this time; believed where nothing is known yet.
    pub(crate) fn learn(&mut self, inbox: &Inbox, epoch: Epoch, tail: Tail, now: Timestamp) {
        let slot = self.slot(inbox, epoch);
        // What was read under an earlier takeover tells nothing of this one.
        if slot.epoch == epoch && slot.tail.is_none() {
            slot.tail = Some(tail);
            slot.read = tail.position;
            slot.doubtful_until = is_inherited(&tail, epoch).then(|| now.plus_ms(SKEW_MS));
        }
    }

    /// Whether a message that was accepted then may have been recorded by the owner before us.
    pub(crate) fn doubts(&mut self, inbox: &Inbox, epoch: Epoch, accepted_at: Timestamp) -> bool {
        self.slot(inbox, epoch).doubtful_until.is_some_and(|until| accepted_at <= until)
    }

    /// Lets go of an end without using it.
    pub(crate) fn unpin(&mut self, inbox: &Inbox, epoch: Epoch) {
        let slot = self.slot(inbox, epoch);
        slot.pins = slot.pins.saturating_sub(1);
    }

    /// Whether the inbox, as far as its end is known here, reaches this place. One that lies beyond it was written by a late
    /// owner after the end was read: it is not in the inbox, and never will be once this owner has written there.
    pub(crate) fn reaches(&mut self, inbox: &Inbox, epoch: Epoch, position: Position) -> bool {
        let slot = self.slot(inbox, epoch);
        if position.epoch < epoch { position <= slot.read } else { slot.tail.is_some_and(|t| position <= t.position) }
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
            let slot = self.old.remove(inbox).unwrap_or(Slot::unknown(epoch));
            self.young.insert(inbox.clone(), slot);
        }
        let slot = self.young.entry(inbox.clone()).or_insert(Slot::unknown(epoch));
        if slot.epoch < epoch {
            slot.tail = None;
            slot.doubtful_until = None;
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
                    tails.learn(&inbox(who), Epoch(1), durable.get(&who).copied().unwrap_or_default(), Timestamp(0));
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
        tails.learn(&inbox(1), Epoch(1), Tail::default(), Timestamp(0));
        assert_eq!(tails.give(&inbox(1), Epoch(1), true, 1).position.n, 1);
        assert!(!tails.pin(&inbox(1), Epoch(1)));
        assert!(tails.pin(&inbox(1), Epoch(3)), "another may have written between");
        tails.learn(&inbox(1), Epoch(1), Tail::default(), Timestamp(0));
        assert!(tails.pin(&inbox(1), Epoch(3)), "an answer to the earlier takeover tells nothing");
        let theirs = Tail { position: Position { epoch: Epoch(2), n: 7 }, one_way: 7 };
        tails.learn(&inbox(1), Epoch(3), theirs, Timestamp(1_000));
        assert!(
            !tails.reaches(&inbox(1), Epoch(3), Position { epoch: Epoch(2), n: 8 }),
            "written after the end was read"
        );
        assert!(tails.reaches(&inbox(1), Epoch(3), Position { epoch: Epoch(2), n: 7 }));
        assert!(
            tails.doubts(&inbox(1), Epoch(3), Timestamp(900)) && !tails.doubts(&inbox(1), Epoch(3), Timestamp(62_000))
        );
        assert_eq!(tails.give(&inbox(1), Epoch(3), true, 2).position, Position { epoch: Epoch(3), n: 8 });
    }
}
