//! The pulse of a set-up as its clients feel it: how many messages a second arrive, and how long anybody saw nothing.

use std::{sync::Arc, time::Duration};

use schemas::{Millis, Timestamp};

use super::super::world::World;

/// How often it is felt.
const FEEL: Duration = Duration::from_millis(250);
/// Over how long a rate is taken, ms.
const OVER_MS: u64 = 2_000;
/// The part of the full rate that counts as full.
const FULL: f64 = 0.8;

/// Feels it.
pub(super) struct Pulse {
    world: Arc<World>,
}

/// From a moment on.
pub(super) struct Watch<'a> {
    pulse: &'a Pulse,
    since: Timestamp,
}

impl Pulse {
    pub(super) fn new(world: Arc<World>) -> Self {
        Self { world }
    }

    /// Messages that arrived at those who are awake since then, each with when, a list a person.
    fn arrivals(&self, since: Timestamp) -> Vec<Vec<Timestamp>> {
        let awake = self.world.people.iter().filter(|person| !person.sleeps);
        let arrivals = awake.map(|person| {
            let seen = person.seen.lock();
            let fresh = seen.iter().rev().take_while(|seen| seen.at >= since).map(|seen| seen.at);
            fresh.collect()
        });
        arrivals.collect()
    }

    fn rate(&self) -> f64 {
        let since = Timestamp(self.world.clock.wall().0 - OVER_MS as i64);
        self.arrivals(since).iter().map(Vec::len).sum::<usize>() as f64 * 1_000.0 / OVER_MS as f64
    }

    /// The rate and the longest silence while nothing breaks.
    pub(super) async fn calm(&self, for_so_long: Duration) -> (f64, u64) {
        let watch = self.watch();
        tokio::time::sleep(for_so_long).await;
        let all: usize = self.arrivals(watch.since).iter().map(Vec::len).sum();
        (all as f64 / for_so_long.as_secs_f64(), watch.silence_ms())
    }

    /// Begins to watch.
    pub(super) fn watch(&self) -> Watch<'_> {
        Watch { pulse: self, since: self.world.clock.wall() }
    }
}

impl Watch<'_> {
    /// Waits until messages arrive at the full rate, and from the backlog no faster; when that was. `None`: not in time.
    pub(super) async fn until_full(&self, rate: f64, patience: Duration) -> Option<Millis> {
        let clock = &self.pulse.world.clock;
        let until = clock.mono().plus(patience.as_millis() as u64);
        // A rate is of the time before it: what was before the fault does not count.
        let first = self.since.plus_ms(OVER_MS);
        while clock.mono() < until {
            if clock.wall() >= first && self.pulse.rate() >= FULL * rate {
                return Some(clock.mono());
            }
            tokio::time::sleep(FEEL).await;
        }
        None
    }

    /// The longest time that somebody who is awake saw nothing, ms.
    pub(super) fn silence_ms(&self) -> u64 {
        let now = self.pulse.world.clock.wall();
        let arrivals = self.pulse.arrivals(self.since);
        arrivals.into_iter().map(|times| longest(times, self.since, now)).max().unwrap_or(0)
    }
}

/// The longest gap between two of these, or to an end.
fn longest(mut times: Vec<Timestamp>, from: Timestamp, to: Timestamp) -> u64 {
    times.extend([from, to]);
    times.sort_unstable();
    times.windows(2).map(|pair| pair[1].ms_since(pair[0])).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_the_longest_gap_ends_included() {
        let times = |all: &[i64]| all.iter().map(|t| Timestamp(*t)).collect::<Vec<_>>();
        assert_eq!(longest(times(&[]), Timestamp(0), Timestamp(50)), 50);
        assert_eq!(longest(times(&[40, 10, 20]), Timestamp(0), Timestamp(50)), 20);
        assert_eq!(longest(times(&[10]), Timestamp(0), Timestamp(100)), 90);
    }
}
