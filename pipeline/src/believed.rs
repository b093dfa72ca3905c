//! What time it is, as far as the wall clock can be believed: by a clock that jumps forward all that is scheduled
//! would be sent and all history removed, and neither can be taken back.
//!
//! Compares the wall clock with monotonic time. Steps of up to [`STEP_MS`] are followed, as NTP makes them. After a
//! longer jump forward time goes on by monotonic time until the wall clock is back, or has stood there for so long
//! that it is believed. It is in the end, because it may be right: monotonic time does not count while a machine
//! sleeps, and a machine may start with a clock that is behind. The time is never ahead of the wall clock. Across a
//! restart nothing is known of a jump.

use schemas::{Clock, Millis, Timestamp, limits::FlowLimits};

/// Steps up to this are believed at once, ms: NTP steps what it finds off by seconds; five minutes early harm little.
const STEP_MS: u64 = 300_000;

/// By what time something is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Now {
    /// What is due, and what expires.
    pub(crate) due: Timestamp,
    /// What is old.
    pub(crate) old: Timestamp,
}

/// Two times by one wall clock: what removes believes a jump later than what sends.
#[derive(Debug)]
pub(crate) struct Times {
    sending: Believed,
    removing: Believed,
}

impl Times {
    /// Believes the wall clock as it stands.
    pub(crate) fn new(clock: &dyn Clock) -> Self {
        let here = Believed::new(clock.wall(), clock.mono());
        Self { sending: here, removing: here }
    }

    /// Looks at both clocks, and says in the log what is new about them.
    pub(crate) fn look(&mut self, clock: &dyn Clock, limits: &FlowLimits) -> Now {
        let (wall, mono) = (clock.wall(), clock.mono());
        let (send_ms, remove_ms) = (limits.jump_send_ms, limits.jump_remove_ms);
        match self.sending.look(wall, mono, send_ms) {
            Some(Turn::Forward(by_ms)) => tracing::warn!(
                %wall, by_s = by_ms / 1_000, sends_in_s = send_ms / 1_000, removes_in_s = remove_ms / 1_000,
                "the wall clock jumped forward and is not believed yet: messages are sent, expire and are removed by \
                 the time before; mend the clock, or restart the process to accept the new time"
            ),
            Some(Turn::Believed) => {
                tracing::warn!(%wall, "the wall clock stayed where it jumped to: messages go and expire by it now");
            }
            Some(Turn::Back) => {
                tracing::info!(%wall, "the wall clock is back: messages go and expire by it again");
            }
            None => {}
        }
        // What else it finds was told above.
        if self.removing.look(wall, mono, remove_ms) == Some(Turn::Believed) {
            tracing::warn!(%wall, "the wall clock stayed where it jumped to: retention removes by it now");
        }
        Now { due: self.sending.now(wall, mono), old: self.removing.now(wall, mono) }
    }
}

/// What a look found new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// The wall clock is ahead by so much, ms, and not believed yet.
    Forward(u64),
    /// It is not ahead any more.
    Back,
    /// It stood there long enough.
    Believed,
}

/// See the module.
#[derive(Debug, Clone, Copy)]
struct Believed {
    /// How far the wall clock was ahead of monotonic time when it was last believed, ms.
    ahead: i64,
    /// How far it is now and since when, where that is more than a step off.
    turned: Option<(i64, Millis)>,
}

impl Believed {
    fn new(wall: Timestamp, mono: Millis) -> Self {
        Self { ahead: ahead(wall, mono), turned: None }
    }

    /// Looks at both clocks. `stands_ms`: how long the wall clock has to stand after a jump to be believed.
    fn look(&mut self, wall: Timestamp, mono: Millis, stands_ms: u64) -> Option<Turn> {
        let seen = ahead(wall, mono);
        let before = self.turned.take();
        let held = before.is_some_and(|(to, _)| to > self.ahead);
        if seen.abs_diff(self.ahead) <= STEP_MS {
            self.ahead = seen;
            return held.then_some(Turn::Back);
        }
        // Somewhere else than at the last look is another jump.
        let stood = before.filter(|(to, _)| seen.abs_diff(*to) <= STEP_MS);
        let (to, since) = stood.unwrap_or((seen, mono));
        if mono.since(since) >= stands_ms {
            self.ahead = seen;
            return held.then_some(Turn::Believed);
        }
        self.turned = Some((to, since));
        match stood {
            None if seen > self.ahead => Some(Turn::Forward(seen.abs_diff(self.ahead))),
            None if held => Some(Turn::Back),
            _ => None,
        }
    }

    /// The wall clock where it is believed; behind it where it jumped forward.
    fn now(&self, wall: Timestamp, mono: Millis) -> Timestamp {
        wall.min(Timestamp(self.ahead).plus_ms(mono.0))
    }
}

/// How far the wall clock is ahead of monotonic time, ms.
fn ahead(wall: Timestamp, mono: Millis) -> i64 {
    wall.0.saturating_sub(i64::try_from(mono.0).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use schemas::time::ManualClock;

    use super::*;

    const START: Timestamp = Timestamp(1_700_000_000_000);
    const HOLD_MS: u64 = 600_000;
    const MONTH_MS: i64 = 31 * 24 * 3_600_000;

    /// One clock, looked at now and then.
    struct Bench(ManualClock, Believed);

    impl Bench {
        fn new() -> Self {
            let clock = ManualClock::at(START);
            let believed = Believed::new(clock.wall(), clock.mono());
            Self(clock, believed)
        }

        /// Lets time pass and turns the clock; what is told, and how far the believed time is from the wall clock.
        fn look(&mut self, pass_ms: u64, jump_ms: i64) -> (Option<Turn>, i64) {
            let Self(clock, believed) = self;
            clock.pass(pass_ms);
            clock.jump(jump_ms);
            let turn = believed.look(clock.wall(), clock.mono(), HOLD_MS);
            (turn, believed.now(clock.wall(), clock.mono()).0 - clock.wall().0)
        }
    }

    #[test]
    fn a_step_is_followed_at_once() {
        let mut bench = Bench::new();
        let step = STEP_MS as i64;
        for jump in [step, -step, 1, -step, step] {
            assert_eq!(bench.look(1_000, jump), (None, 0));
        }
        assert_eq!(bench.look(1_000, step + 1), (Some(Turn::Forward(STEP_MS + 1)), -step - 1));
    }

    #[test]
    fn a_jump_forward_is_told_once_and_believed_when_it_has_stood() {
        let mut bench = Bench::new();
        assert_eq!(bench.look(500, MONTH_MS), (Some(Turn::Forward(MONTH_MS as u64)), -MONTH_MS));
        assert_eq!(bench.look(HOLD_MS - 1, 0), (None, -MONTH_MS));
        assert_eq!(bench.look(1, 0), (Some(Turn::Believed), 0));
        assert_eq!(bench.look(HOLD_MS, 0), (None, 0));
    }

    #[test]
    fn a_clock_that_is_mended_meanwhile_is_believed_at_once() {
        let mut bench = Bench::new();
        bench.look(500, MONTH_MS);
        assert_eq!(bench.look(HOLD_MS - 1, -MONTH_MS), (Some(Turn::Back), 0));
        assert_eq!(bench.look(HOLD_MS, MONTH_MS), (Some(Turn::Forward(MONTH_MS as u64)), -MONTH_MS), "it waits anew");
    }

    #[test]
    fn each_jump_has_to_stand_by_itself() {
        let mut bench = Bench::new();
        bench.look(500, MONTH_MS / 2);
        let on = bench.look(HOLD_MS - 1, MONTH_MS / 2);
        assert_eq!(on, (Some(Turn::Forward(MONTH_MS as u64)), -MONTH_MS));
        assert_eq!(bench.look(HOLD_MS - 1, 0), (None, -MONTH_MS));
        assert_eq!(bench.look(1, 0), (Some(Turn::Believed), 0));
    }

    #[test]
    fn a_clock_turned_back_is_followed_and_costs_nothing_when_it_is_mended() {
        let mut bench = Bench::new();
        assert_eq!(bench.look(500, -MONTH_MS), (None, 0));
        assert_eq!(bench.look(HOLD_MS - 1, MONTH_MS), (None, 0));
        bench.look(500, -MONTH_MS);
        assert_eq!(bench.look(HOLD_MS, 0), (None, 0), "it stood, so forward again is a jump");
        assert_eq!(bench.look(500, MONTH_MS), (Some(Turn::Forward(MONTH_MS as u64)), -MONTH_MS));
    }

    proptest! {
        // Whatever the wall clock does: never ahead of it, not by a jump that is new, and by it once it is left alone.
        #[test]
        fn a_jump_is_believed_late_but_is(
            jumps in proptest::collection::vec((0..HOLD_MS, prop_oneof![-MONTH_MS..MONTH_MS, -1_000i64..1_000]), 1..40),
        ) {
            let mut bench = Bench::new();
            for (pass, jump) in jumps {
                let before = bench.1.ahead;
                let (turn, off) = bench.look(pass, jump);
                prop_assert!(off <= 0);
                if let Some(Turn::Forward(by)) = turn {
                    prop_assert!(bench.1.ahead == before && off == -(by as i64));
                }
            }
            bench.look(0, 0);
            prop_assert_eq!(bench.look(HOLD_MS, 0).1, 0);
        }
    }
}
