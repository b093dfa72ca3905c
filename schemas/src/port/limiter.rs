//! The Limiter port: quotas, also where many doors share them. What a quota means is [`Bucket`], the same everywhere.

use std::sync::Arc;

use async_trait::async_trait;

/// One quota of one holder: so many in a window, filling evenly, all of it at once for whoever took nothing for a window.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Quota {
    /// Which quota and whose, e.g. `server-second/acme`; the same text is the same quota on every door.
    pub key: Arc<str>,
    /// How many in a window; at least one.
    pub tokens: u32,
    /// The window, ms.
    pub window_ms: u64,
}

impl Quota {
    /// The time in which one token comes, microseconds.
    pub fn every_us(&self) -> f64 {
        self.window_ms as f64 * 1_000.0 / f64::from(self.tokens.max(1))
    }
}

/// What was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// How many, at most as many as asked for; the same number from each quota.
    pub count: u32,
    /// Where fewer: the quota that had no more, by its place in the request, and when it may have one, ms, at least 1.
    pub refused: Option<(usize, u64)>,
}

/// Where a quota stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// How many are left now.
    pub remaining: u32,
    /// When there is at least one, ms; 0: now.
    pub wait_ms: u64,
}

/// Keeps quotas.
///
/// **Guarantee.** In any window what all doors are granted of a quota stays within 110 % of what one [`Bucket`] would grant,
/// and at a demand above the quota it reaches at least 90 % of it over a minute. **Failure.** None: where what is shared is
/// away, each door grants its share of the last known number of doors. **Cost.** A grant costs no request of its own: tokens
/// are leased ahead for many grants, and one request asks for many quotas.
#[async_trait]
pub trait Limiter: Send + Sync + 'static {
    /// Takes up to `count` from all of these quotas at once: the same number from each, or none from any.
    async fn take(&self, quotas: &[Quota], count: u32) -> Granted;

    /// Where these quotas stand, about a second old at most. Takes nothing.
    async fn look(&self, quotas: &[Quota]) -> Vec<Standing>;
}

/// A quota's state: when it will be full again, in microseconds of any clock that all who use it share (GCRA). An empty one
/// is full, so whoever took nothing for a window need not be remembered.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default)]
pub struct Bucket(pub f64);

impl Bucket {
    /// How many are left.
    pub fn remaining(self, quota: &Quota, now_us: f64) -> u32 {
        let every = quota.every_us();
        let taken = ((self.0 - now_us) / every).max(0.0);
        // A thousandth of a token is rounding, not use.
        (f64::from(quota.tokens.max(1)) - taken + 0.001).max(0.0) as u32
    }

    /// Takes up to `count`; says how many.
    pub fn take(&mut self, quota: &Quota, count: u32, now_us: f64) -> u32 {
        let granted = count.min(self.remaining(quota, now_us));
        if granted > 0 {
            self.charge(quota, granted, now_us);
        }
        granted
    }

    /// Takes so many whether they are there or not.
    pub fn charge(&mut self, quota: &Quota, count: u32, now_us: f64) {
        self.0 = self.0.max(now_us) + f64::from(count) * quota.every_us();
    }

    /// When `count` are there, ms, rounded up; 0: now.
    pub fn wait_ms(self, quota: &Quota, count: u32, now_us: f64) -> u64 {
        let full = quota.window_ms as f64 * 1_000.0;
        let wait = self.0.max(now_us) + f64::from(count) * quota.every_us() - full - now_us;
        if wait <= 0.001 * quota.every_us() { 0 } else { (wait / 1_000.0).ceil() as u64 }
    }

    /// Whether nothing is taken of it any more.
    pub fn is_full(self, now_us: f64) -> bool {
        self.0 <= now_us
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quota(tokens: u32, window_ms: u64) -> Quota {
        Quota { key: "q".into(), tokens, window_ms }
    }

    #[test]
    fn a_bucket_gives_its_tokens_and_fills_evenly() {
        let (quota, mut bucket) = (quota(10, 1_000), Bucket::default());
        let at = |ms: u64| ms as f64 * 1_000.0;
        assert_eq!(
            (bucket.take(&quota, 7, at(0)), bucket.take(&quota, 7, at(0)), bucket.take(&quota, 1, at(0))),
            (7, 3, 0)
        );
        assert_eq!((bucket.wait_ms(&quota, 1, at(0)), bucket.wait_ms(&quota, 10, at(0))), (100, 1_000));
        assert_eq!((bucket.remaining(&quota, at(99)), bucket.remaining(&quota, at(100))), (0, 1));
        assert_eq!((bucket.take(&quota, 9, at(350)), bucket.wait_ms(&quota, 1, at(350))), (3, 50));
        assert!(!bucket.is_full(at(1_299)) && bucket.is_full(at(1_350)));
        assert_eq!(bucket.remaining(&quota, at(99_000)), 10);
    }

    proptest! {
        /// Whatever is asked and when: over any stretch no more than the quota and what fills up meanwhile, and whoever
        /// waits as long as was said gets one.
        #[test]
        fn a_bucket_never_gives_more_than_fills_up(
            tokens in 1u32..5_000, window_ms in 1_000u64..4_000_000,
            steps in proptest::collection::vec((0u64..2_000_000, 0u32..6_000), 1..100),
        ) {
            let (quota, mut bucket) = (quota(tokens, window_ms), Bucket::default());
            let (mut now, mut given) = (0.0, 0u64);
            for (later_us, count) in steps {
                now += later_us as f64;
                let left = bucket.remaining(&quota, now);
                let granted = bucket.take(&quota, count, now);
                prop_assert_eq!(granted, count.min(left));
                given += u64::from(granted);
                let most = f64::from(tokens) + now / quota.every_us();
                prop_assert!(given as f64 <= most + 0.01, "{given} of {most}");
                let wait = bucket.wait_ms(&quota, 1, now);
                prop_assert_eq!(wait == 0, bucket.remaining(&quota, now) > 0);
                prop_assert!(bucket.remaining(&quota, now + wait as f64 * 1_000.0) > 0);
            }
        }
    }
}
