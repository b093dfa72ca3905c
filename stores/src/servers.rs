//! Servers: which adapter speaks to which, in one place. An adapter that this build does not have is refused with how to
//! build it in.

use std::sync::Arc;

use futures::future::BoxFuture;
use schemas::{
    Clock, Timestamp,
    limits::StoreLimits,
    port::{Backplane, Cache, History, Ingress, Limiter, Log, PortResult, Presence},
};
use tokio::sync::watch;

use crate::{OpenError, Settings, urls::Address};

/// Days that rows of a history stand where its address does not say: 30 of retention and a week more.
const TTL_DAYS: u64 = 37;
/// The most that an address may say: ten years, of the twenty that a server takes.
pub const MOST_TTL_DAYS: u64 = 3_650;

/// Asks a server for its time.
type AskTime = Box<dyn Fn() -> BoxFuture<'static, PortResult<Timestamp>> + Send + Sync>;

/// What was opened at servers, as far as it has to be asked and closed.
#[derive(Default)]
pub(crate) struct Servers {
    closing: Vec<BoxFuture<'static, ()>>,
    /// The identity of the log, where servers keep it.
    #[cfg_attr(
        not(all(feature = "kafka", feature = "scylla")),
        allow(dead_code, reason = "compared where there are both")
    )]
    log: Option<String>,
    clocks: Vec<(&'static str, AskTime)>,
    /// Who says that nothing can be written any more.
    fatal: Vec<watch::Receiver<Option<String>>>,
    /// The Redis of presence, for the cache that is to be there too.
    #[cfg(feature = "redis")]
    redis: Option<(Address, crate::redis::Redis)>,
}

/// What nodes find each other by: three adapters over one connection.
pub(crate) struct Reach {
    pub(crate) presence: Arc<dyn Presence>,
    pub(crate) backplane: Arc<dyn Backplane>,
    pub(crate) limiter: Arc<dyn Limiter>,
}

// Without an adapter's feature nothing is asked of what it would be given.
#[cfg_attr(not(all(feature = "kafka", feature = "scylla", feature = "redis")), allow(unused_variables))]
impl Servers {
    pub(crate) async fn log(
        &mut self,
        address: Option<&Address>,
        limits: &StoreLimits,
        clock: &Arc<dyn Clock>,
    ) -> Result<Option<Arc<dyn Log>>, OpenError> {
        let Some(address) = address else { return Ok(None) };
        #[cfg(feature = "kafka")]
        {
            let log = crate::log::kafka::KafkaLog::open(address, limits, clock.clone()).await?;
            self.log = Some(log.identity());
            let closing = log.clone();
            self.closing.push(Box::pin(async move { closing.close().await }));
            Ok(Some(log))
        }
        #[cfg(not(feature = "kafka"))]
        Err(OpenError::NotBuilt { what: "Kafka", feature: "kafka" })
    }

    pub(crate) async fn history(
        &mut self,
        address: Option<&Address>,
        limits: &StoreLimits,
        clock: &Arc<dyn Clock>,
    ) -> Result<Option<Arc<dyn History>>, OpenError> {
        let Some(address) = address else { return Ok(None) };
        #[cfg(feature = "scylla")]
        {
            let history = crate::history::scylla::ScyllaHistory::open(address, limits, clock.clone()).await?;
            if let Some(log) = &self.log {
                history.belongs_to(log, address).await?;
            }
            self.fatal.push(history.fatal());
            let closing = history.clone();
            self.closing.push(Box::pin(async move {
                if let Err(why) = closing.close().await {
                    tracing::warn!(%why, "the last cursors were not written: those devices are sent a little twice");
                }
            }));
            Ok(Some(history))
        }
        #[cfg(not(feature = "scylla"))]
        Err(OpenError::NotBuilt { what: "ScyllaDB", feature: "scylla" })
    }

    pub(crate) async fn presence(
        &mut self,
        address: Option<&Address>,
        settings: &Settings,
        clock: &Arc<dyn Clock>,
    ) -> Result<Option<Reach>, OpenError> {
        let Some(address) = address else { return Ok(None) };
        #[cfg(feature = "redis")]
        {
            use crate::{backplane::RedisBackplane, limiter::RedisLimiter, presence::RedisPresence};
            let redis = Self::redis(address, settings, clock).await?;
            self.redis = Some((address.clone(), redis.clone()));
            let asked = redis.clone();
            let ask = move || {
                let redis = asked.clone();
                Box::pin(async move { redis.time().await }) as BoxFuture<'static, _>
            };
            self.clocks.push(("Redis", Box::new(ask)));
            Ok(Some(Reach {
                presence: Arc::new(RedisPresence::new(redis.clone(), settings.presence_ms, settings.limits.node_ms)),
                backplane: Arc::new(RedisBackplane::open(redis.clone(), settings.deliver_ms).await),
                limiter: RedisLimiter::new(redis),
            }))
        }
        #[cfg(not(feature = "redis"))]
        Err(OpenError::NotBuilt { what: "Redis", feature: "redis" })
    }

    pub(crate) async fn cache(
        &mut self,
        address: &Address,
        settings: &Settings,
        clock: &Arc<dyn Clock>,
    ) -> Result<Arc<dyn Cache>, OpenError> {
        #[cfg(feature = "redis")]
        {
            let shared = self.redis.as_ref().filter(|(there, _)| there == address).map(|(_, redis)| redis.clone());
            let redis = match shared {
                Some(redis) => redis,
                None => Self::redis(address, settings, clock).await?,
            };
            Ok(Arc::new(crate::cache::RedisCache::new(redis, &settings.chat)))
        }
        #[cfg(not(feature = "redis"))]
        Err(OpenError::NotBuilt { what: "Redis", feature: "redis" })
    }

    #[cfg(feature = "redis")]
    async fn redis(
        address: &Address,
        settings: &Settings,
        clock: &Arc<dyn Clock>,
    ) -> Result<crate::redis::Redis, OpenError> {
        use crate::redis::Redis;
        match Redis::with(address, settings.redis.clone(), clock.clone()).await {
            // Nothing waits for Redis, so neither does a start: what a process holds itself goes on without it.
            Err(why) if why.may_pass() => {
                tracing::warn!("{why}. This process goes on without it until it answers");
                Redis::away(address, settings.redis.clone(), clock.clone())
            }
            opened => opened,
        }
    }

    pub(crate) fn clocks(&self) -> Vec<(&'static str, BoxFuture<'static, PortResult<Timestamp>>)> {
        self.clocks.iter().map(|(name, ask)| (*name, ask())).collect()
    }

    pub(crate) fn fatal(&self) -> Vec<watch::Receiver<Option<String>>> {
        self.fatal.clone()
    }

    pub(crate) async fn close(self) {
        futures::future::join_all(self.closing).await;
    }
}

/// How many days rows of a history of servers stand, by its address (`ttl_days`). Past that they are gone, whether retention
/// has come by or not: what is to be kept must be kept for less. Refuses what is no number of days.
pub fn ttl_days(history: &Address) -> Result<u64, OpenError> {
    let days = history.number("ttl_days")?.unwrap_or(TTL_DAYS);
    if (1..=MOST_TTL_DAYS).contains(&days) {
        return Ok(days);
    }
    Err(OpenError::Address(format!("`{history}`: `ttl_days` is to be 1 to {MOST_TTL_DAYS}, and is {days}")))
}

/// What a history of servers was asked.
pub(crate) fn traffic() -> Option<crate::Traffic> {
    #[cfg(feature = "scylla")]
    {
        use crate::history::scylla::ScyllaHistory;
        let (rows, requests) = ScyllaHistory::written();
        Some(crate::Traffic { rows, requests, reads: ScyllaHistory::reads() })
    }
    #[cfg(not(feature = "scylla"))]
    None
}

/// Joins the readers of a log's `ingress` topics.
#[cfg_attr(not(feature = "kafka"), allow(unused_variables))]
pub(crate) async fn ingress(
    address: Option<&Address>,
    limits: &StoreLimits,
) -> Result<Option<Box<dyn Ingress>>, OpenError> {
    let Some(address) = address else { return Ok(None) };
    #[cfg(feature = "kafka")]
    {
        crate::log::kafka::ingress::KafkaIngress::open(address, limits).await.map(Some)
    }
    #[cfg(not(feature = "kafka"))]
    Err(OpenError::NotBuilt { what: "Kafka", feature: "kafka" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_history_stand_as_long_as_its_address_says() {
        let days = |text: &str| ttl_days(&Address::parse(text).unwrap()).map_err(|why| why.to_string());
        assert_eq!(days("scylla://a:1/k"), Ok(37));
        assert_eq!(days("scylla://a:1/k?ttl_days=3650"), Ok(3_650));
        for wrong in ["0", "3651", "a week"] {
            let said = days(&format!("scylla://u:hush@a:1/k?ttl_days={wrong}")).unwrap_err();
            assert!(said.contains("`ttl_days`") && said.contains(wrong) && !said.contains("hush"), "{said}");
        }
    }
}
