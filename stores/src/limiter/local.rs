//! Quotas in this process: a bucket for each, spread over shards. One that is full again needs no remembering, so what is
//! kept is who took something within the last window; past the bound the one that is nearest to full is forgotten.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use parking_lot::Mutex;
use schemas::{
    Clock,
    port::{Bucket, Granted, Limiter, Quota, Standing},
};
use xxhash_rust::xxh3::Xxh3DefaultBuilder;

/// Enough that two cores seldom wait for the same one.
const SHARDS: usize = 16;
/// Buckets looked at to find one to forget: enough to find a good one, few enough not to be felt.
const SAMPLE: usize = 16;

type Shard = Mutex<HashMap<Arc<str>, Bucket, Xxh3DefaultBuilder>>;

/// A limiter for a process that is the only door.
pub struct LocalLimiter {
    shards: Vec<Shard>,
    hasher: Xxh3DefaultBuilder,
    clock: Arc<dyn Clock>,
    each: usize,
}

impl LocalLimiter {
    /// Remembers so many holders.
    pub fn new(clock: Arc<dyn Clock>, holders: usize) -> Self {
        let shards = (0..SHARDS).map(|_| Shard::default()).collect();
        Self { shards, hasher: Xxh3DefaultBuilder::new(), clock, each: (holders / SHARDS).max(1) }
    }

    fn now_us(&self) -> f64 {
        // One more, so that the time before the start is not now.
        (self.clock.mono().0.saturating_add(1)) as f64 * 1_000.0
    }

    fn with<T>(&self, quota: &Quota, act: impl FnOnce(&mut Bucket) -> T) -> T {
        use std::hash::BuildHasher;
        let mut shard = self.shards[self.hasher.hash_one(&quota.key) as usize % SHARDS].lock();
        if let Some(bucket) = shard.get_mut(&quota.key) {
            return act(bucket);
        }
        if shard.len() >= self.each {
            make_room(&mut shard);
        }
        act(shard.entry(quota.key.clone()).or_default())
    }

    fn standing(&self, quota: &Quota, now: f64) -> Standing {
        use std::hash::BuildHasher;
        let shard = self.shards[self.hasher.hash_one(&quota.key) as usize % SHARDS].lock();
        let bucket = shard.get(&quota.key).copied().unwrap_or_default();
        Standing { remaining: bucket.remaining(quota, now), wait_ms: bucket.wait_ms(quota, 1, now) }
    }

    /// Takes at once: nothing here waits.
    pub(crate) fn take_now(&self, quotas: &[Quota], count: u32) -> Granted {
        let now = self.now_us();
        let mut granted = Granted { count, refused: None };
        // Others take at the same time: what was there a moment ago may be gone. What was taken is given back then.
        for (place, quota) in quotas.iter().enumerate() {
            let (took, wait) = self.with(quota, |bucket| {
                let took = bucket.take(quota, granted.count, now);
                (took, bucket.wait_ms(quota, 1, now))
            });
            if took < granted.count {
                for earlier in &quotas[..place] {
                    let back = f64::from(granted.count - took) * earlier.every_us();
                    self.with(earlier, |bucket| bucket.0 -= back);
                }
                granted = Granted { count: took, refused: Some((place, wait.max(1))) };
            }
        }
        granted
    }

    /// Takes so many whether they are there or not: they were granted elsewhere.
    #[cfg(feature = "redis")]
    pub(crate) fn charge(&self, quotas: &[Quota], count: u32) {
        let now = self.now_us();
        for quota in quotas {
            self.with(quota, |bucket| {
                bucket.charge(quota, count, now);
                // No deeper than empty: a share that was outgrown is not owed for ever.
                bucket.0 = bucket.0.min(now + quota.window_ms as f64 * 1_000.0);
            });
        }
    }
}

/// Of a few, forgets the one that is nearest to full again: the fewest tokens are given twice for it.
fn make_room(shard: &mut HashMap<Arc<str>, Bucket, Xxh3DefaultBuilder>) {
    let some = shard.iter().take(SAMPLE);
    let nearest = some.min_by(|(_, a), (_, b)| a.0.total_cmp(&b.0)).map(|(key, _)| key.clone());
    if let Some(key) = nearest {
        shard.remove(&key);
    }
}

#[async_trait]
impl Limiter for LocalLimiter {
    async fn take(&self, quotas: &[Quota], count: u32) -> Granted {
        self.take_now(quotas, count)
    }

    async fn look(&self, quotas: &[Quota]) -> Vec<Standing> {
        let now = self.now_us();
        quotas.iter().map(|quota| self.standing(quota, now)).collect()
    }
}

#[cfg(test)]
mod tests {
    use schemas::{Timestamp, time::ManualClock};

    use super::*;

    fn quota(key: &str, tokens: u32, window_ms: u64) -> Quota {
        Quota { key: key.into(), tokens, window_ms }
    }

    #[test]
    fn what_one_quota_refuses_is_given_back_to_the_others() {
        let limiter = LocalLimiter::new(Arc::new(ManualClock::at(Timestamp(0))), 100);
        let both = [quota("own", 10, 60_000), quota("all", 4, 1_000)];
        assert_eq!(limiter.take_now(&both, 7), Granted { count: 4, refused: Some((1, 250)) });
        assert_eq!(limiter.standing(&both[0], limiter.now_us()).remaining, 6);
        assert_eq!(limiter.take_now(&both, 1).count, 0);
        assert_eq!(limiter.standing(&both[0], limiter.now_us()).remaining, 6);
    }

    #[test]
    fn holders_are_bounded_and_those_who_took_most_are_remembered() {
        let limiter = LocalLimiter::new(Arc::new(ManualClock::at(Timestamp(0))), SHARDS * 4);
        let greedy = quota("greedy", 100, 60_000);
        assert_eq!(limiter.take_now(std::slice::from_ref(&greedy), 100).count, 100);
        for n in 0..10_000 {
            limiter.take_now(&[quota(&format!("h{n}"), 100, 60_000)], 1);
        }
        assert!(limiter.shards.iter().map(|shard| shard.lock().len()).sum::<usize>() <= SHARDS * 4);
        assert_eq!(limiter.take_now(&[greedy], 1).count, 0);
    }
}
