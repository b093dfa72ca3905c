//! The cache in Redis: shared by processes, and missed by nobody while it is away.

use super::*;
use schemas::{
    ConversationId,
    conversation::Version,
    port::{CacheKey, Kept, Turns},
};

fn page(version: u64) -> Arc<Kept> {
    Arc::new(Kept::Turns(Turns { version: Version(version), rows: Vec::new(), next: None }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_process_keeps_another_is_given() {
    let address = address(false).await;
    let process = async || RedisCache::new(open(&address).await, &ChatLimits::default());
    let (here, there) = (process().await, process().await);
    let key = CacheKey::Turns(ConversationId(uuid::Uuid::from_u128(1)));
    here.put(vec![(key.clone(), page(3), 60_000)]).await;
    assert_eq!(there.get(std::slice::from_ref(&key)).await, [Some(page(3))]);
    there.forget(std::slice::from_ref(&key)).await;
    assert_eq!(here.get(&[key]).await, [None]);
}

/// R8.7: nobody waits for it, and it is used again by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r8_7_a_redis_that_is_away_has_nothing_and_keeps_nobody_waiting() {
    let own = Nodes::start("redis", &[]).await;
    let redis = open(&format!("redis://{}/{}", own.hosts(), prefix())).await;
    let cache = RedisCache::new(redis.clone(), &ChatLimits::default());
    let key = CacheKey::Turns(ConversationId(uuid::Uuid::from_u128(1)));
    cache.put(vec![(key.clone(), page(1), 60_000)]).await;
    own.kill(1).await;
    until("it is known to be away", async || {
        cache.get(std::slice::from_ref(&key)).await;
        !redis.is_here()
    })
    .await;
    let began = Instant::now();
    for version in 0..1_000 {
        assert_eq!(cache.get(std::slice::from_ref(&key)).await, [None]);
        cache.put(vec![(key.clone(), page(version), 60_000)]).await;
        cache.forget(std::slice::from_ref(&key)).await;
    }
    assert!(began.elapsed() < Duration::from_secs(10), "3,000 calls took {:?}", began.elapsed());
    own.restart(1).await;
    until("it is used again", async || {
        cache.put(vec![(key.clone(), page(9), 60_000)]).await;
        cache.get(std::slice::from_ref(&key)).await == [Some(page(9))]
    })
    .await;
    own.stop().await;
}
