//! The machine's clocks, read here and nowhere else.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use schemas::{Clock, Millis, Timestamp};

/// Wall time from the system, monotonic time from when this was made.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// Starts counting.
    #[allow(clippy::disallowed_methods, clippy::new_without_default)]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }

    /// Monotonic time in microseconds, for latencies.
    pub fn micros(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods)]
    fn wall(&self) -> Timestamp {
        let now = SystemTime::now();
        // A clock set before 1970 counts backwards, so that its records still keep their order.
        let ms = match now.duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_millis()).unwrap_or(i64::MAX),
        };
        Timestamp(ms)
    }

    fn mono(&self) -> Millis {
        Millis(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_tells_this_century_and_never_goes_back() {
        let clock = SystemClock::new();
        assert!(clock.wall() > Timestamp::parse("2020-01-01T00:00:00Z").unwrap());
        let first = clock.mono();
        assert!(clock.mono() >= first);
    }
}
