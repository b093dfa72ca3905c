//! The cache in this process: bounded by its memory, the least recently used goes first.

use std::sync::Arc;

use async_trait::async_trait;
use moka::sync::Cache as Map;
use schemas::{
    Clock, Millis,
    limits::ChatLimits,
    port::{Cache, CacheKey, Kept},
};

/// Bytes of an entry beside its page: key, place in the order, times.
const ENTRY: usize = 256;

/// A page and until when it may be given.
type Page = (Arc<Kept>, Millis);

/// The cache of one process.
pub struct LocalCache {
    pages: Map<CacheKey, Page>,
    clock: Arc<dyn Clock>,
    page_bytes: usize,
}

impl LocalCache {
    /// Empty.
    pub fn new(clock: Arc<dyn Clock>, limits: &ChatLimits) -> Self {
        let pages = Map::builder()
            .weigher(|_: &CacheKey, (page, _): &Page| u32::try_from(page.bytes() + ENTRY).unwrap_or(u32::MAX))
            .max_capacity(limits.cache_bytes as u64)
            .build();
        Self { pages, clock, page_bytes: limits.cache_page_bytes }
    }

    /// Bytes that are kept, about.
    pub fn bytes(&self) -> u64 {
        self.pages.run_pending_tasks();
        self.pages.weighted_size()
    }
}

#[async_trait]
impl Cache for LocalCache {
    async fn get(&self, keys: &[CacheKey]) -> Vec<Option<Arc<Kept>>> {
        let now = self.clock.mono();
        let give = |key| match self.pages.get(key) {
            Some((page, until)) if now < until => Some(page),
            Some(_) => {
                self.pages.invalidate(key);
                None
            }
            None => None,
        };
        keys.iter().map(give).collect()
    }

    async fn put(&self, pages: Vec<(CacheKey, Arc<Kept>, u64)>) {
        let now = self.clock.mono();
        for (key, page, ms) in pages {
            if page.bytes() <= self.page_bytes {
                self.pages.insert(key, (page, now.plus(ms)));
            } else {
                // What was there is older.
                self.pages.invalidate(&key);
            }
        }
    }

    async fn forget(&self, keys: &[CacheKey]) {
        for key in keys {
            self.pages.invalidate(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::{ConversationId, Timestamp, conversation::Version, port::Turns, time::ManualClock};

    #[tokio::test]
    async fn memory_is_bounded_by_bytes() {
        let clock = Arc::new(ManualClock::at(Timestamp(0)));
        let limits = ChatLimits { cache_bytes: 100 * ENTRY, ..ChatLimits::default() };
        let cache = LocalCache::new(clock, &limits);
        let page = Arc::new(Kept::Turns(Turns { version: Version(1), rows: Vec::new(), next: None }));
        for n in 0..1_000 {
            let key = CacheKey::Turns(ConversationId(uuid::Uuid::from_u128(n)));
            cache.put(vec![(key, page.clone(), 1_000)]).await;
        }
        assert!(cache.bytes() <= 100 * ENTRY as u64, "{}", cache.bytes());
    }
}
