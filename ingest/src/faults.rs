//! What stands in the way of single broadcasts: how long one that erred waits, and when it is told of one that stands still. No
//! other waits with it.

use std::collections::HashMap;

use schemas::{BroadcastId, Millis};

/// How long a broadcast that erred waits at first, ms.
const FIRST_WAIT_MS: u64 = 1_000;
/// And at most, each time that it errs again without having got on being twice the last, ms: so long after the end of a fault
/// it goes on at the latest.
pub(crate) const LONGEST_WAIT_MS: u64 = 30_000;
/// How often one that stands still is told of, ms: it may stay so until all processes are newer ones.
const TELL_EVERY_MS: u64 = 10 * 60_000;

/// The faults of running broadcasts.
#[derive(Default)]
pub(crate) struct Faults(HashMap<BroadcastId, Fault>);

#[derive(Default)]
struct Fault {
    /// How long it waits, ms; 0: it has not erred.
    wait_ms: u64,
    until: Millis,
    /// When it was last told of.
    told: Option<Millis>,
}

impl Faults {
    /// Whether this one is to be left alone still.
    pub(crate) fn waits(&self, id: BroadcastId, now: Millis) -> bool {
        self.0.get(&id).is_some_and(|fault| now < fault.until)
    }

    /// It erred, and waits; `got_on`: after it had come further.
    pub(crate) fn erred(&mut self, id: BroadcastId, got_on: bool, now: Millis) {
        let fault = self.0.entry(id).or_default();
        let again = if got_on { 0 } else { fault.wait_ms * 2 };
        fault.wait_ms = again.clamp(FIRST_WAIT_MS, LONGEST_WAIT_MS);
        fault.until = now.plus(fault.wait_ms);
    }

    /// Nothing stands in its way.
    pub(crate) fn went(&mut self, id: BroadcastId) {
        self.0.remove(&id);
    }

    /// Whether it is to be told of now, which then counts as told.
    pub(crate) fn is_due(&mut self, id: BroadcastId, now: Millis) -> bool {
        let fault = self.0.entry(id).or_default();
        let due = fault.told.is_none_or(|at| now.since(at) >= TELL_EVERY_MS);
        if due {
            fault.told = Some(now);
        }
        due
    }

    /// How long until the next of those that wait is to be tried, ms.
    pub(crate) fn next_ms(&self, now: Millis) -> Option<u64> {
        self.0.values().filter(|fault| now < fault.until).map(|fault| fault.until.since(now)).min()
    }

    /// Forgets those that run no more.
    pub(crate) fn keep(&mut self, running: impl Fn(BroadcastId) -> bool) {
        self.0.retain(|id, _| running(*id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: BroadcastId = BroadcastId(uuid::Uuid::from_u128(1));
    const OTHER: BroadcastId = BroadcastId(uuid::Uuid::from_u128(2));

    #[test]
    fn what_errs_waits_longer_each_time_until_it_gets_on_and_nobody_waits_with_it() {
        let (mut faults, mut now) = (Faults::default(), Millis(5));
        assert_eq!(faults.next_ms(now), None);
        for wait_ms in [1_000, 2_000, 4_000, 8_000, 16_000, LONGEST_WAIT_MS, LONGEST_WAIT_MS] {
            faults.erred(ONE, false, now);
            assert!(faults.waits(ONE, now.plus(wait_ms - 1)) && !faults.waits(OTHER, now));
            assert_eq!(faults.next_ms(now), Some(wait_ms));
            now = now.plus(wait_ms);
            assert!(!faults.waits(ONE, now));
            assert_eq!(faults.next_ms(now), None, "who may be tried is not waited for");
        }
        faults.erred(ONE, true, now);
        faults.erred(OTHER, false, now.plus(500));
        assert_eq!(faults.next_ms(now), Some(FIRST_WAIT_MS));
        faults.went(ONE);
        assert!(!faults.waits(ONE, now) && faults.waits(OTHER, now));
        faults.keep(|id| id == ONE);
        assert!(faults.0.is_empty());
    }

    #[test]
    fn what_stands_still_is_told_once_in_a_while() {
        let mut faults = Faults::default();
        assert!(faults.is_due(ONE, Millis(5)));
        faults.erred(ONE, false, Millis(6));
        assert!(!faults.is_due(ONE, Millis(4 + TELL_EVERY_MS)));
        assert!(faults.is_due(OTHER, Millis(6)), "each by itself");
        assert!(faults.is_due(ONE, Millis(5 + TELL_EVERY_MS)));
        faults.keep(|id| id == ONE);
        assert_eq!(faults.0.keys().collect::<Vec<_>>(), [&ONE]);
    }
}
