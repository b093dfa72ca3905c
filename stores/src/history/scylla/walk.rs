//! Walks: retention's way through the lists of inboxes, week by week, shard by shard and by name, a bounded piece a call. Pure.
//!
//! A call begins where the one before it ended, and ends before the first inbox that is to be visited again, which is always one
//! of the list it reads. So in a round every inbox of every list is visited, and a week is told to be clean only when all
//! of its inboxes were.

use super::writes::SHARDS;

/// Inboxes looked at in one call, most of them with nothing to remove: two small reads each.
pub(super) const LOOKS: i32 = 64;

/// Where a round stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stand {
    pub(super) week: i64,
    pub(super) shard: i32,
    /// After this one.
    pub(super) inbox: String,
}

impl Stand {
    /// Before everything of a week.
    pub(super) fn before(week: i64) -> Self {
        Self { week, shard: 0, inbox: String::new() }
    }
}

/// What an inbox came to that a walk met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Met {
    /// It is done with for this round.
    Done,
    /// Something of it was returned, or is still to be removed; and whether anything was removed now.
    Left { removed: bool },
    /// The call's bound was reached before it.
    Unseen,
}

/// The walk of one call.
#[derive(Debug)]
pub(super) struct Walk {
    /// Where it is; `None`: behind the last list.
    at: Option<Stand>,
    /// The weeks behind that one.
    weeks: std::vec::IntoIter<i64>,
    /// Before the first inbox that is to be visited again.
    again: Option<Stand>,
    /// Inboxes that it met.
    looks: usize,
    /// Whether everything of the week that was met so far was old and is gone.
    pub(super) clean: bool,
}

impl Walk {
    /// Goes on from where the last call ended, with what that knew of its week, through these weeks, oldest first.
    pub(super) fn new(from: Stand, clean: bool, mut weeks: Vec<i64>) -> Self {
        weeks.retain(|week| *week >= from.week);
        let mut weeks = weeks.into_iter();
        let first = weeks.next();
        let goes_on = first == Some(from.week);
        let at = if goes_on { Some(from) } else { first.map(Stand::before) };
        Self { at, weeks, again: None, looks: 0, clean: clean || !goes_on }
    }

    /// The list to be read next, from where on; `None`: the call ends here.
    pub(super) fn list(&self) -> Option<&Stand> {
        let ends = self.again.is_some() || self.looks >= LOOKS as usize;
        self.at.as_ref().filter(|_| !ends)
    }

    /// An inbox of this list was met, in the order of the list.
    pub(super) fn met(&mut self, inbox: String, what: Met) {
        let Some(at) = &mut self.at else { return };
        let stays = match what {
            Met::Done => false,
            // What was returned is to be settled by the next call, which begins there. When this one began there and removed
            // nothing it goes on all the same: nobody else's entries wait for it.
            Met::Left { removed } => removed || self.looks > 0,
            Met::Unseen => true,
        };
        if stays && self.again.is_none() {
            self.again = Some(at.clone());
        }
        at.inbox = inbox;
        self.looks += 1;
    }

    /// The list has no more; answers the week where that was its last one and everything of it is gone.
    pub(super) fn turn(&mut self) -> Option<i64> {
        let at = self.at.as_mut()?;
        at.inbox.clear();
        at.shard += 1;
        if at.shard < SHARDS {
            return None;
        }
        let week = at.week;
        self.at = self.weeks.next().map(Stand::before);
        std::mem::replace(&mut self.clean, true).then_some(week)
    }

    /// Where the next call goes on; `None`: the round has ended.
    pub(super) fn end(self) -> Option<Stand> {
        self.again.or(self.at)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    /// Inboxes by where they stand, each with its old entries: whether they were received.
    type Lists = BTreeMap<Stand, Vec<bool>>;

    /// What the calls of a round have in common.
    #[derive(Debug, Clone, Copy)]
    struct Bounds {
        /// Entries of a call.
        limit: usize,
        /// Inboxes of a page.
        page: usize,
        /// Whether what was returned is settled by the next call.
        settles: bool,
    }

    /// One call, as it is made of a walk; answers the weeks that were said to be gone.
    fn call(lists: &mut Lists, walk: &mut Walk, bounds: Bounds, seen: &mut BTreeSet<Stand>) -> Vec<i64> {
        let (mut left, mut gone) = (bounds.limit, Vec::new());
        while let Some(at) = walk.list().cloned() {
            let here = |it: &&Stand| (it.week, it.shard) == (at.week, at.shard) && it.inbox > at.inbox;
            let page: Vec<Stand> = lists.keys().filter(here).take(bounds.page).cloned().collect();
            if page.is_empty() {
                gone.extend(walk.turn());
            }
            for inbox in page {
                let Some(old) = lists.get_mut(&inbox) else { continue };
                let what = match old.len() {
                    0 => Met::Done,
                    _ if left == 0 => Met::Unseen,
                    all => {
                        seen.insert(inbox.clone());
                        let looked = all.min(left);
                        left -= looked;
                        let removed = old.iter().take(looked).take_while(|received| **received).count();
                        old.drain(..removed);
                        if bounds.settles {
                            old.iter_mut().take(looked - removed).for_each(|received| *received = true);
                        }
                        walk.clean &= old.is_empty();
                        if old.is_empty() { Met::Done } else { Met::Left { removed: removed > 0 } }
                    }
                };
                walk.met(inbox.inbox, what);
                if what == Met::Unseen {
                    break;
                }
            }
        }
        gone
    }

    proptest! {
        // However lists are cut into pages and calls, a round visits every inbox, and no list goes that leads to one.
        #[test]
        fn no_inbox_is_missed_before_a_round_ends(
            inboxes in proptest::collection::vec(
                (0i64..3, 0..SHARDS, 0u32..1_000, proptest::collection::vec(any::<bool>(), 0..4)),
                0..200,
            ),
            limit in 1usize..40,
            page in 1usize..80,
            settles in any::<bool>(),
        ) {
            let at = |week, shard, number| Stand { week, shard, inbox: format!("{number}") };
            let mut lists: Lists = inboxes.into_iter().map(|it| (at(it.0, it.1, it.2), it.3)).collect();
            let whole = lists.iter().filter(|(_, old)| !old.is_empty()).map(|(at, _)| at.clone());
            let whole: BTreeSet<Stand> = whole.collect();
            let weeks: BTreeSet<i64> = lists.keys().map(|at| at.week).collect();
            let bounds = Bounds { limit, page, settles };
            let (mut from, mut clean, mut seen, mut calls) = (Some(Stand::before(i64::MIN)), true, BTreeSet::new(), 0);
            while let Some(at) = from {
                calls += 1;
                prop_assert!(calls < 10_000, "it never ends");
                let mut walk = Walk::new(at, clean, weeks.iter().copied().collect());
                for week in call(&mut lists, &mut walk, bounds, &mut seen) {
                    prop_assert!(lists.iter().all(|(at, old)| at.week != week || old.is_empty()), "{week} is not gone");
                }
                clean = walk.clean;
                from = walk.end();
            }
            prop_assert_eq!(seen, whole);
        }
    }

    #[test]
    fn an_inbox_that_a_call_did_not_come_to_is_the_next_ones_first() {
        let mut walk = Walk::new(Stand { week: 5, shard: 2, inbox: "m".into() }, true, vec![4, 5, 6]);
        walk.met("n".into(), Met::Done);
        assert_eq!(walk.turn(), None);
        // In the list of another shard, whose names begin anew.
        walk.met("a".into(), Met::Done);
        walk.met("b".into(), Met::Unseen);
        assert_eq!((walk.list(), walk.clean), (None, true));
        assert_eq!(walk.end(), Some(Stand { week: 5, shard: 3, inbox: "a".into() }));
    }

    #[test]
    fn who_waits_to_be_settled_holds_nobody_else_up() {
        let from = Stand { week: 5, shard: 2, inbox: "m".into() };
        for (removed, next) in [(true, "m"), (false, "n")] {
            let mut walk = Walk::new(from.clone(), true, vec![5]);
            walk.met("n".into(), Met::Left { removed });
            assert_eq!(walk.list().is_none(), removed);
            assert_eq!(walk.end().map(|at| at.inbox).as_deref(), Some(next));
        }
    }
}
