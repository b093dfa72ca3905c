//! The rules of the Limiter port, for any adapter.

use std::sync::Arc;

use async_trait::async_trait;
use schemas::port::{Limiter, Quota, Standing};

/// Makes a limiter, and lets time pass for it.
#[async_trait]
pub trait Maker: Send {
    /// Makes it.
    async fn open(&mut self) -> Arc<dyn Limiter>;
    /// Lets so much time pass.
    async fn pass(&mut self, ms: u64);
    /// A window that is short enough to be waited for, ms.
    fn window_ms(&self) -> u64;
}

/// One test of each rule.
#[macro_export]
macro_rules! limiter_conformance {
    ($adapter:ident, $make:expr) => {
        $crate::rules!(limiter, $adapter, $make;
            a_quota_gives_its_tokens_and_no_more,
            all_quotas_are_held_to_at_once,
            holders_share_nothing,
            a_quota_fills_again_evenly,
            a_look_takes_nothing,
            many_at_once_get_no_more_than_there_is,
        );
    };
}

/// So slow that nothing fills up during a test.
const HOUR_MS: u64 = 3_600_000;

fn quota(key: &str, tokens: u32, window_ms: u64) -> Quota {
    Quota { key: key.into(), tokens, window_ms }
}

/// As many as there are, and then a time at which there may be one.
pub async fn a_quota_gives_its_tokens_and_no_more(mut maker: impl Maker) {
    let limiter = maker.open().await;
    let ten = [quota("a", 10, HOUR_MS)];
    assert_eq!(limiter.take(&ten, 7).await.count, 7);
    let granted = limiter.take(&ten, 7).await;
    assert_eq!((granted.count, granted.refused.map(|(place, _)| place)), (3, Some(0)));
    let granted = limiter.take(&ten, 1).await;
    let (_, wait_ms) = granted.refused.expect("nothing is left");
    assert!(granted.count == 0 && (1..=HOUR_MS / 10).contains(&wait_ms), "{wait_ms}");
    assert_eq!(limiter.take(&ten, 0).await.refused, None, "nothing is always there");
}

/// The same number from each; what one lacks is not taken from the others.
pub async fn all_quotas_are_held_to_at_once(mut maker: impl Maker) {
    let limiter = maker.open().await;
    let both = [quota("own", 100, HOUR_MS), quota("all", 4, HOUR_MS)];
    let granted = limiter.take(&both, 7).await;
    assert_eq!((granted.count, granted.refused.map(|(place, _)| place)), (4, Some(1)));
    assert_eq!(limiter.take(&both, 1).await.count, 0);
    let left = limiter.take(&both[..1], 100).await.count;
    assert_eq!(left, 96);
}

/// Another key is another quota.
pub async fn holders_share_nothing(mut maker: impl Maker) {
    let limiter = maker.open().await;
    for key in ["a", "b", "c"] {
        assert_eq!(limiter.take(&[quota(key, 5, HOUR_MS)], 9).await.count, 5);
    }
}

/// Half of it is there again after half of the window, and all of it, not more, after more than one.
pub async fn a_quota_fills_again_evenly(mut maker: impl Maker) {
    let limiter = maker.open().await;
    let window_ms = maker.window_ms();
    let twenty = [quota("a", 20, window_ms)];
    assert_eq!(limiter.take(&twenty, 99).await.count, 20);
    maker.pass(window_ms / 2).await;
    let half = limiter.take(&twenty, 99).await.count;
    assert!((9..=15).contains(&half), "{half} of 20 after half of the window");
    maker.pass(window_ms * 3 / 2).await;
    let all = limiter.take(&twenty, 99).await.count;
    assert!((19..=22).contains(&all), "{all} of 20 after a whole window");
}

/// Where a quota stands can be seen, by whoever took nothing too.
pub async fn a_look_takes_nothing(mut maker: impl Maker) {
    let limiter = maker.open().await;
    let (taken, whole) = (quota("taken", 10, HOUR_MS), quota("whole", 10, HOUR_MS));
    assert_eq!(limiter.take(std::slice::from_ref(&taken), 3).await.count, 3);
    let both = [taken.clone(), whole];
    for _ in 0..3 {
        let stand = limiter.look(&both).await;
        assert_eq!(stand, [Standing { remaining: 7, wait_ms: 0 }, Standing { remaining: 10, wait_ms: 0 }]);
    }
    limiter.take(std::slice::from_ref(&taken), 10).await;
    let stand = limiter.look(&[taken]).await[0];
    assert!(stand.remaining == 0 && stand.wait_ms > 0, "{stand:?}");
    assert_eq!(limiter.look(&[]).await, []);
}

/// Callers at the same time share what there is.
pub async fn many_at_once_get_no_more_than_there_is(mut maker: impl Maker) {
    let limiter = maker.open().await;
    let calls = (0..200).map(|n| {
        let limiter = limiter.clone();
        let quotas = [quota(&format!("own{}", n % 5), 1_000, HOUR_MS), quota("all", 100, HOUR_MS)];
        tokio::spawn(async move { limiter.take(&quotas, 1 + n % 3).await.count })
    });
    let granted = futures::future::join_all(calls).await.into_iter().map(Result::unwrap).sum::<u32>();
    assert_eq!(granted, 100);
}
