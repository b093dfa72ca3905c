//! The cache in Redis, shared by many processes: a value a page, with its time. While Redis is away nothing is kept, and
//! nobody waits for it.

use std::sync::Arc;

use async_trait::async_trait;
use schemas::{
    codec,
    limits::ChatLimits,
    port::{Cache, CacheKey, Kept},
};

use crate::redis::Redis;

/// Bytes of one page at once on its way: what is read is bounded too, whoever wrote it.
const MOST: usize = 16 * 1024 * 1024;

/// The cache of many processes.
pub struct RedisCache {
    redis: Redis,
    page_bytes: usize,
}

impl RedisCache {
    /// In this Redis.
    pub fn new(redis: Redis, limits: &ChatLimits) -> Self {
        Self { redis, page_bytes: limits.cache_page_bytes.min(MOST) }
    }

    fn name(&self, key: &CacheKey) -> String {
        self.redis.name(&format!("cache:{key}"))
    }

    async fn one(&self, key: &CacheKey) -> Option<Arc<Kept>> {
        let mut get = ::redis::cmd("GET");
        get.arg(self.name(key));
        let bytes: Option<Vec<u8>> = self.redis.ask(&get).await.ok()?;
        // What another release wrote is not there for this one.
        bytes.and_then(|bytes| codec::decode(&bytes).ok()).map(Arc::new)
    }

    async fn set(&self, key: &CacheKey, page: &Kept, ms: u64) {
        let bytes = if page.bytes() <= self.page_bytes { codec::encode(page) } else { bytes::Bytes::new() };
        if bytes.is_empty() || ms == 0 {
            return self.drop(key).await;
        }
        let mut set = ::redis::cmd("SET");
        set.arg(self.name(key)).arg(&bytes[..]).arg("PX").arg(ms);
        // It says of which moment it is: one that was not kept is only read anew.
        let _ = self.redis.ask::<()>(&set).await;
    }

    async fn drop(&self, key: &CacheKey) {
        let mut gone = ::redis::cmd("UNLINK");
        gone.arg(self.name(key));
        let _ = self.redis.ask::<u64>(&gone).await;
    }
}

#[async_trait]
impl Cache for RedisCache {
    async fn get(&self, keys: &[CacheKey]) -> Vec<Option<Arc<Kept>>> {
        // Commands of one connection travel together, and on a cluster each finds its own place.
        futures::future::join_all(keys.iter().map(|key| self.one(key))).await
    }

    async fn put(&self, pages: Vec<(CacheKey, Arc<Kept>, u64)>) {
        futures::future::join_all(pages.iter().map(|(key, page, ms)| self.set(key, page, *ms))).await;
    }

    async fn forget(&self, keys: &[CacheKey]) {
        futures::future::join_all(keys.iter().map(|key| self.drop(key))).await;
    }
}
