//! Whose turn it is: several processes see the same running broadcasts, and one of them expands each.
//!
//! Nobody is asked: who makes progress has the turn, and everybody sees the progress in history. A process takes a broadcast
//! that it accepted itself at once, and another one's when it has stood still for a while, each after a wait of its own; when
//! it sees progress that is not its own, it gives the turn away. Two that take it at the same moment append the same records
//! with the same ids, which costs and harms nobody.

use std::collections::HashMap;

use schemas::{BroadcastId, Millis};

/// What a process knows of running broadcasts.
pub(crate) struct Turns {
    /// How long one must stand still before it is taken over, ms; 0: this process is the only one.
    patience_ms: u64,
    seen: HashMap<BroadcastId, Seen>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    expanded: u64,
    /// Since when it could have gone on and did not.
    since: Millis,
    mine: bool,
}

impl Turns {
    /// Knowing of none.
    pub(crate) fn new(patience_ms: u64) -> Self {
        Self { patience_ms, seen: HashMap::new() }
    }

    /// A look at a running broadcast: whether this process is to go on with it. `own`: it was accepted here.
    pub(crate) fn is_mine(&mut self, id: BroadcastId, expanded: u64, own: bool, now: Millis) -> bool {
        let patience_ms = self.patience_ms;
        let seen = self.seen.entry(id).or_insert(Seen { expanded, since: now, mine: false });
        if seen.expanded != expanded {
            *seen = Seen { expanded, since: now, mine: false };
        }
        seen.mine |= own || now.since(seen.since) >= patience_ms;
        seen.mine
    }

    /// It could not have gone on: its lane has no room. Standing still says nothing then.
    pub(crate) fn had_no_room(&mut self, id: BroadcastId, now: Millis) {
        if let Some(seen) = self.seen.get_mut(&id) {
            seen.since = now;
        }
    }

    /// This process brought it this far.
    pub(crate) fn went(&mut self, id: BroadcastId, expanded: u64, now: Millis) {
        if let Some(seen) = self.seen.get_mut(&id) {
            (seen.expanded, seen.since) = (expanded, now);
        }
    }

    /// Forgets those that run no more.
    pub(crate) fn keep(&mut self, running: impl Fn(BroadcastId) -> bool) {
        self.seen.retain(|id, _| running(*id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: BroadcastId = BroadcastId(uuid::Uuid::from_u128(7));

    #[test]
    fn a_process_alone_has_every_turn() {
        let mut turns = Turns::new(0);
        assert!(turns.is_mine(ID, 0, false, Millis(0)));
        assert!(turns.is_mine(ID, 500, false, Millis(0)));
    }

    #[test]
    fn another_s_broadcast_is_taken_when_it_stands_still_and_given_away_when_it_goes_on() {
        let mut turns = Turns::new(10_000);
        assert!(!turns.is_mine(ID, 0, false, Millis(0)));
        assert!(!turns.is_mine(ID, 500, false, Millis(9_000)), "it goes on");
        assert!(!turns.is_mine(ID, 500, false, Millis(18_999)));
        turns.had_no_room(ID, Millis(18_999));
        assert!(!turns.is_mine(ID, 500, false, Millis(28_998)), "nobody could have gone on");
        assert!(turns.is_mine(ID, 500, false, Millis(28_999)));
        turns.went(ID, 1_000, Millis(29_000));
        assert!(turns.is_mine(ID, 1_000, false, Millis(29_001)), "its own progress keeps the turn");
        assert!(!turns.is_mine(ID, 1_500, false, Millis(29_002)), "another one has come back");
        turns.keep(|_| false);
        assert!(turns.is_mine(ID, 1_500, true, Millis(29_003)), "accepted here");
    }

    proptest! {
        /// However two processes look and die, a broadcast is finished, and no recipient is passed over.
        #[test]
        fn a_broadcast_is_finished_whoever_dies(steps in proptest::collection::vec((0usize..2, 0u64..4_000, any::<bool>()), 1..60)) {
            let mut here = [Turns::new(10_000), Turns::new(11_000)];
            let (mut now, mut expanded, mut known) = (0, 0_u64, [false; 2]);
            let all = steps.iter().copied().chain((0..40).map(|_| (0, 1_000, false)));
            for (who, wait, dies) in all {
                now += wait;
                if dies {
                    here[who] = Turns::new(10_000 + who as u64 * 1_000);
                    known[who] = true;
                }
                let own = who == 0 && !known[0];
                if here[who].is_mine(ID, expanded, own, Millis(now)) {
                    expanded += 10;
                    here[who].went(ID, expanded, Millis(now));
                }
                known[who] = true;
            }
            prop_assert!(expanded >= 100, "{expanded}");
        }
    }
}
