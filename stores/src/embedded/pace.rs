//! Pace: how long the writer lets jobs gather before it takes the next group. A pure rule; waiting is the queue's.
//!
//! A sync costs the disk's time and some 50 µs of CPU whatever it carries, so at load few syncs with much in each are wanted,
//! and a lone appender wants none of that. What tells them apart: while a lone appender's sync runs nobody else comes, as it
//! waits for the answer itself. Whoever came during one of the last few syncs shows that there are several, and then a short
//! wait after a sync makes the next one serve more of them.

use std::time::Duration;

use super::queue::Bounds;

/// Syncs in a row during which nobody came, after which the next job is not kept waiting.
const CALM: u32 = 8;
/// Rows of a group from which on the whole pause is made: a group of that size takes about a millisecond to write anyway.
const LARGE: usize = 256;
/// Jobs that somebody waits for which end a short pause: with so many in one sync its cost is small for each.
const ENOUGH: usize = 8;

/// A group as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wrote {
    /// Jobs that somebody waits for.
    pub(crate) urgent: usize,
    /// Rows.
    pub(crate) writes: usize,
    /// Whether such jobs came while it was being written, before anybody was answered.
    pub(crate) came: bool,
}

/// How long jobs gather.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gather {
    /// From the end of the last sync.
    pub(crate) pause: Duration,
    /// Jobs that somebody waits for which end the pause; a full group does too.
    pub(crate) enough: usize,
    /// How long jobs that nobody waits for then wait for one that somebody does.
    pub(crate) patience: Duration,
}

/// What was seen of late.
#[derive(Debug)]
pub(crate) struct Pace {
    bounds: Bounds,
    calm: u32,
    last: Wrote,
}

impl Pace {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { bounds, calm: CALM, last: Wrote { urgent: 0, writes: 0, came: false } }
    }

    /// A group was written.
    pub(crate) fn wrote(&mut self, group: Wrote) {
        self.calm = if group.came || group.urgent > 1 { 0 } else { self.calm.saturating_add(1) };
        self.last = group;
    }

    /// What that means for the next.
    pub(crate) fn gather(&self) -> Gather {
        let every = self.bounds.every;
        let (pause, enough) = match self.calm {
            CALM.. => (Duration::ZERO, 1),
            _ if self.last.writes >= LARGE => (every, usize::MAX),
            _ => (every / 2, self.last.urgent.max(ENOUGH)),
        };
        // Where nobody has waited for the last group, nobody may come soon.
        let patience = if self.last.urgent > 0 { every * 2 } else { Duration::ZERO };
        Gather { pause, enough, patience }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { writes: 16_384, bytes: 1 << 23, every: Duration::from_millis(2) };

    fn after(groups: impl IntoIterator<Item = (usize, usize, bool)>) -> Gather {
        let mut pace = Pace::new(BOUNDS);
        groups.into_iter().for_each(|(urgent, writes, came)| pace.wrote(Wrote { urgent, writes, came }));
        pace.gather()
    }

    #[test]
    fn a_lone_appender_never_waits() {
        let alone = [(1, 1, false); 20];
        for n in 0..20 {
            assert_eq!(after(alone[..n].iter().copied()).pause, Duration::ZERO);
        }
    }

    #[test]
    fn several_wait_a_little_and_many_a_little_longer() {
        let ms = Duration::from_millis;
        let cases = [
            (vec![(1, 1, true)], ms(1), 8),
            (vec![(2, 2, false)], ms(1), 8),
            (vec![(30, 200, true)], ms(1), 30),
            (vec![(30, 2_000, true)], ms(2), usize::MAX),
            // One who is alone now, and was not a moment ago.
            (vec![(1, 1, true), (1, 1, false), (1, 1, false)], ms(1), 8),
        ];
        for (groups, pause, enough) in cases {
            let gather = after(groups.clone());
            assert_eq!((gather.pause, gather.enough), (pause, enough), "{groups:?}");
        }
        let calmed = std::iter::once((9, 9, true)).chain([(1, 1, false); 8]);
        assert_eq!(after(calmed).pause, Duration::ZERO, "they have gone");
    }

    #[test]
    fn what_nobody_waits_for_is_patient_only_while_others_come() {
        assert_eq!(after([(0, 5, false)]).patience, Duration::ZERO);
        assert_eq!(after([(1, 5, false)]).patience, Duration::from_millis(4));
    }
}
