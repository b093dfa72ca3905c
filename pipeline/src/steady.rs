//! A wall clock that does not jump: what waits by times that stand in records must wait neither shorter nor much longer
//! because somebody turned the clock.
//!
//! Goes on from a moment at which it agreed with the wall clock, by monotonic time. Where the two differ, the wall clock was
//! turned, and a record may bear the time of before or after: who cannot tell which believes the shortest age that any of
//! them gives ([`Steady::age`]). Once all that was written before the last turn is past, it agrees again. Across a restart
//! nothing is known of a jump.

use schemas::{Millis, Timestamp};

/// Differences up to this are the time between two looks at two clocks, ms.
const TOLERANCE_MS: u64 = 50;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Steady {
    agreed: (Timestamp, Millis),
    /// When the wall clock was last turned, while what was written before may still wait.
    turned: Option<Millis>,
    /// How far ahead of this one the wall clock is, ms, and the least of that since it was first turned.
    ahead: i64,
    least: i64,
}

impl Steady {
    /// Agrees with the wall clock now.
    pub(crate) fn new(wall: Timestamp, mono: Millis) -> Self {
        Self { agreed: (wall, mono), turned: None, ahead: 0, least: 0 }
    }

    /// Looks at both clocks. `past_ms`: after so long, what was written before a turn is past.
    pub(crate) fn look(&mut self, wall: Timestamp, mono: Millis, past_ms: u64) {
        let ahead = wall.0.saturating_sub(self.at(mono).0);
        if ahead.abs_diff(self.ahead) > TOLERANCE_MS {
            self.turned = Some(mono);
            self.ahead = ahead;
            self.least = self.least.min(ahead);
        } else if self.turned.is_none_or(|turned| mono.since(turned) >= past_ms) {
            *self = Self::new(wall, mono);
        }
    }

    /// How long ago something was written that bears this time, ms: never longer than it is.
    pub(crate) fn age(&self, written: Timestamp, mono: Millis) -> u64 {
        Timestamp(self.at(mono).0.saturating_add(self.least)).ms_since(written)
    }

    fn at(&self, mono: Millis) -> Timestamp {
        self.agreed.0.plus_ms(mono.since(self.agreed.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use schemas::{Clock as _, time::ManualClock};

    proptest! {
        // Whatever the wall clock does while a process runs, nothing is thought older than it is; and a while after the last
        // jump everything new is known exactly.
        #[test]
        fn nothing_is_older_than_it_is(steps in proptest::collection::vec((0u64..5_000, prop_oneof![4 => Just(0i64), 1 => -7_200_000i64..-1_000, 1 => 1_000i64..7_200_000]), 1..60)) {
            let clock = ManualClock::at(Timestamp(1_700_000_000_000));
            let mut steady = Steady::new(clock.wall(), clock.mono());
            let mut written = Vec::new();
            for (pass, jump) in steps {
                written.push((clock.wall(), clock.mono()));
                clock.pass(pass);
                clock.jump(jump);
                steady.look(clock.wall(), clock.mono(), 64_000);
                for (at, since) in &written {
                    let true_age = clock.mono().since(*since);
                    // What waits on a tier is younger than the time after which a jump is past.
                    if true_age < 32_000 {
                        prop_assert!(steady.age(*at, clock.mono()) <= true_age + TOLERANCE_MS);
                    }
                }
            }
            for _ in 0..3 {
                clock.pass(64_000);
                steady.look(clock.wall(), clock.mono(), 64_000);
            }
            let at = clock.wall();
            clock.pass(1_000);
            prop_assert_eq!(steady.age(at, clock.mono()), 1_000);
        }
    }
}
