//! Forks: which of an inbox's rows are its entries. Pure.
//!
//! Whoever takes a partition over writes, with its first entry in an inbox, where it goes on from: its epoch, the number of
//! that entry, and the epoch of the entry before it. From the newest fork back, following the epoch that each one names, every
//! number belongs to exactly one epoch; a row of another epoch was written by an owner that had been overtaken, and is not in
//! the inbox (rules 1 and 2).

use schemas::{Epoch, Position};

/// Where an epoch's owner went on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fork {
    pub(super) epoch: Epoch,
    /// The number of its first entry.
    pub(super) n: u64,
    /// The epoch of the entry before that; 0 for the first of all.
    pub(super) prev: Epoch,
}

/// The forks that lead to the end of an inbox, newest first; and the epochs of the others, which count no more.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Forks(Vec<Fork>, Vec<Epoch>);

impl Forks {
    /// Of all forks that anybody wrote, those that count.
    pub(super) fn new(mut all: Vec<Fork>) -> Self {
        all.sort_unstable_by_key(|fork| std::cmp::Reverse(fork.epoch));
        let (mut path, mut aside, mut next) = (Vec::with_capacity(all.len()), Vec::new(), None);
        for fork in all {
            if next.is_none_or(|epoch| fork.epoch == epoch) {
                next = Some(fork.prev);
                path.push(fork);
            } else {
                aside.push(fork.epoch);
            }
        }
        Self(path, aside)
    }

    /// Epochs whose forks say nothing once another owner goes on after `end`: those that were passed over, and that of an owner
    /// who wrote nothing.
    pub(super) fn idle(&self, end: Position) -> Vec<Epoch> {
        let empty = self.0.iter().take_while(|fork| fork.n > end.n).map(|fork| fork.epoch);
        empty.chain(self.1.iter().copied()).collect()
    }

    /// Whether anybody ever wrote here.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The newest epoch that wrote here.
    pub(super) fn newest(&self) -> Epoch {
        self.0.first().map_or(Epoch(0), |fork| fork.epoch)
    }

    /// The epoch that the nth entry is of; `None` before the first fork that is known.
    pub(super) fn epoch(&self, n: u64) -> Option<Epoch> {
        self.0.iter().find(|fork| fork.n <= n).map(|fork| fork.epoch)
    }

    /// Whether this place is in the inbox, if a row stands there.
    pub(super) fn is_live(&self, at: Position) -> bool {
        self.epoch(at.n) == Some(at.epoch)
    }

    /// The number of the first entry after this place. For a reader whose place is not in the inbox that is where the fork
    /// went on, so that nothing is skipped.
    pub(super) fn after(&self, from: Position) -> u64 {
        let later = self.0.iter().rev().find(|fork| fork.epoch > from.epoch).map_or(u64::MAX, |fork| fork.n);
        // An epoch before all that are known may have been in the inbox: its fork went with what retention removed.
        let known = self.0.last().is_none_or(|first| from.epoch < first.epoch);
        if known || self.0.iter().any(|fork| fork.epoch == from.epoch) {
            from.n.saturating_add(1).min(later)
        } else {
            later
        }
    }

    /// Epochs whose forks say nothing any more once everything up to `gone` was removed.
    pub(super) fn spent(&self, gone: u64) -> Vec<Epoch> {
        self.0.iter().skip_while(|fork| fork.n > gone).skip(1).map(|fork| fork.epoch).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use schemas::cursor::place;

    use super::*;

    /// Rows as they stand after owners came and went: each epoch goes on from some entry of the one before it, whose owner
    /// may have written on afterwards. With the forks they wrote.
    fn rows() -> impl Strategy<Value = (Vec<(Position, Position)>, Vec<Fork>)> {
        proptest::collection::vec((1u64..6, 0u64..4), 1..5).prop_map(|epochs| {
            let (mut rows, mut forks, mut tail) = (Vec::new(), Vec::new(), Position::START);
            let last = epochs.len() - 1;
            for (i, (written, late)) in epochs.into_iter().enumerate() {
                let epoch = Epoch(i as u32 + 1);
                forks.push(Fork { epoch, n: tail.n + 1, prev: tail.epoch });
                for _ in 0..written {
                    rows.push((tail.next(epoch), tail));
                    tail = tail.next(epoch);
                }
                let mut stale = tail;
                for _ in 0..if i == last { 0 } else { late } {
                    rows.push((stale.next(epoch), stale));
                    stale = stale.next(epoch);
                }
            }
            (rows, forks)
        })
    }

    /// The definition: what is reached from the tail by `prev`.
    fn walked(rows: &[(Position, Position)]) -> Vec<Position> {
        let (mut found, mut at) = (Vec::new(), rows.last().map_or(Position::START, |row| row.0));
        while let Some((position, prev)) = rows.iter().find(|row| row.0 == at) {
            found.push(*position);
            at = *prev;
        }
        found.reverse();
        found
    }

    proptest! {
        #[test]
        fn what_the_tail_does_not_reach_is_not_in_the_inbox((rows, forks) in rows(), from in 0usize..20) {
            let (whole, forks) = (walked(&rows), Forks::new(forks));
            let live: Vec<_> = rows.iter().map(|row| row.0).filter(|at| forks.is_live(*at)).collect();
            prop_assert_eq!(&live, &whole);
            // From any row on, also from one that is not in the inbox.
            let from = rows[from % rows.len()].0;
            let rest: Vec<_> = whole.iter().copied().filter(|at| *at > from).collect();
            let read: Vec<_> = whole.iter().copied().filter(|at| at.n >= forks.after(from)).collect();
            prop_assert_eq!(read, rest);
        }
    }

    #[test]
    fn an_owner_that_woke_up_late_in_an_inbox_it_had_not_touched_is_passed_over() {
        let fork = |epoch, n, prev| Fork { epoch: Epoch(epoch), n, prev: Epoch(prev) };
        // 6 goes on from (4,100); 5, who had read the end at 99, writes its first entry afterwards.
        let forks = Forks::new(vec![fork(4, 1, 0), fork(6, 101, 4), fork(5, 100, 4)]);
        assert!(forks.is_live(place(4, 100)) && !forks.is_live(place(5, 100)) && forks.is_live(place(6, 101)));
        assert_eq!(forks.after(place(5, 100)), 101);
    }

    #[test]
    fn a_reader_at_a_dead_place_is_given_what_comes_after_it_in_the_order_of_places() {
        let fork = |epoch, n, prev| Fork { epoch: Epoch(epoch), n, prev: Epoch(prev) };
        let forks = Forks::new(vec![fork(1, 1, 0), fork(2, 2, 1), fork(3, 4, 1)]);
        assert_eq!(forks.after(place(2, 2)), 4, "1.3 stands before 2.2");
        assert_eq!((forks.after(place(1, 2)), forks.after(place(1, 9))), (3, 4));
        assert_eq!(forks.after(place(3, 4)), 5);
    }

    #[test]
    fn owners_who_wrote_nothing_leave_nothing() {
        let fork = |epoch, n, prev| Fork { epoch: Epoch(epoch), n, prev: Epoch(prev) };
        let forks = Forks::new(vec![fork(1, 1, 0), fork(2, 6, 1), fork(3, 6, 1)]);
        assert_eq!(forks.idle(place(1, 5)), [Epoch(3), Epoch(2)]);
        assert_eq!(forks.idle(place(3, 6)), [Epoch(2)]);
    }

    #[test]
    fn what_is_removed_needs_no_forks() {
        let fork = |epoch, n, prev| Fork { epoch: Epoch(epoch), n, prev: Epoch(prev) };
        let forks = Forks::new(vec![fork(1, 1, 0), fork(2, 10, 1), fork(3, 20, 2)]);
        assert_eq!(forks.spent(5), []);
        assert_eq!(forks.spent(10), [Epoch(1)]);
        assert_eq!(forks.spent(25), [Epoch(2), Epoch(1)]);
    }
}
