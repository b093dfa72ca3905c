//! The link: one connection to a Redis or to a cluster, and the task that makes a new one whenever it was given up.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use ::redis::{
    Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, RedisFuture, RedisResult, ServerErrorKind, Value,
    aio::{AsyncPushSender, ConnectionLike, MultiplexedConnection},
    cluster_async::ClusterConnection,
    cluster_routing::{MultipleNodeRoutingInfo, ResponsePolicy, RoutingInfo},
    from_redis_value,
};
use schemas::vital;

use super::{Inner, address::Target, chance};

/// The first wait between attempts; it doubles up to the bound.
const FIRST_MS: u64 = 50;
/// A Redis that stays away is spoken of once in so many attempts.
const SPOKEN: u32 = 60;

/// A connection. Clones share it; commands of all of them travel together.
#[derive(Clone)]
pub(crate) enum Link {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Link {
    pub(super) async fn connect(target: &Target) -> RedisResult<Self> {
        if target.is_cluster() {
            return target.cluster(None)?.get_async_connection().await.map(Self::Cluster);
        }
        let config = target.config(None::<Never>);
        target.single()?.get_multiplexed_async_connection_with_config(&config).await.map(Self::Single)
    }

    /// A connection whose pushes go to `pushed`.
    pub(super) async fn listen(target: &Target, pushed: impl AsyncPushSender) -> RedisResult<Self> {
        if target.is_cluster() {
            return target.cluster(Some(Box::new(pushed)))?.get_async_connection().await.map(Self::Cluster);
        }
        let config = target.config(Some(pushed));
        target.single()?.get_multiplexed_async_connection_with_config(&config).await.map(Self::Single)
    }

    pub(super) async fn ask<T: FromRedisValue>(&mut self, command: &Cmd) -> RedisResult<T> {
        Ok(from_redis_value(self.req_packed_command(command).await?)?)
    }

    /// Whether all of it answers: on a cluster every primary.
    pub(super) async fn probe(&mut self) -> RedisResult<()> {
        let ping = ::redis::cmd("PING");
        match self {
            Self::Single(link) => link.req_packed_command(&ping).await.map(drop),
            Self::Cluster(link) => {
                let all = MultipleNodeRoutingInfo::AllMasters;
                link.route_command(ping, RoutingInfo::MultiNode((all, Some(ResponsePolicy::AllSucceeded))))
                    .await
                    .map(drop)
            }
        }
    }

    pub(super) async fn subscribe(&mut self, channels: &[String]) -> RedisResult<()> {
        match self {
            Self::Single(link) => link.subscribe(channels).await,
            Self::Cluster(link) => {
                // Each channel has a slot of its own.
                for channel in channels {
                    link.ssubscribe(channel).await?;
                }
                Ok(())
            }
        }
    }

    pub(super) async fn unsubscribe(&mut self, channels: &[String]) -> RedisResult<()> {
        match self {
            Self::Single(link) => link.unsubscribe(channels).await,
            Self::Cluster(link) => {
                for channel in channels {
                    link.sunsubscribe(channel).await?;
                }
                Ok(())
            }
        }
    }
}

/// For connections without pushes.
enum Never {}

impl AsyncPushSender for Never {
    fn send(&self, _: ::redis::PushInfo) -> Result<(), ::redis::aio::SendError> {
        match *self {}
    }
}

impl ConnectionLike for Link {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Single(link) => link.req_packed_command(cmd),
            Self::Cluster(link) => link.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        cmd: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Single(link) => link.req_packed_commands(cmd, offset, count),
            Self::Cluster(link) => link.req_packed_commands(cmd, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Single(link) => link.get_db(),
            Self::Cluster(link) => link.get_db(),
        }
    }
}

/// Whether a failure says something of the connection or the server, and not of what was asked.
pub(super) fn is_broken(why: &RedisError) -> bool {
    match why.kind() {
        ErrorKind::UnexpectedReturnType | ErrorKind::Client | ErrorKind::Extension => {
            // The login was withdrawn, or a failover is under way and the server says so in its own words.
            matches!(why.code(), Some("NOAUTH" | "WRONGPASS" | "UNKILLABLE" | "MISCONF" | "NOREPLICAS"))
        }
        ErrorKind::Server(kind) => matches!(
            kind,
            ServerErrorKind::BusyLoading
                | ServerErrorKind::ReadOnly
                | ServerErrorKind::MasterDown
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::Moved
                | ServerErrorKind::Ask
                | ServerErrorKind::TryAgain
        ),
        _ => true,
    }
}

/// Makes a new connection whenever the old one was given up, as long as anybody holds the handle.
pub(super) fn keep(inner: &Arc<Inner>) {
    tokio::spawn(vital::task("what connects to Redis", run(Arc::downgrade(inner))));
}

async fn run(weak: Weak<Inner>) {
    loop {
        // Waits without holding what it keeps: the last handle's drop ends this task within a moment.
        loop {
            let Some(inner) = weak.upgrade() else { return };
            if inner.link.read().is_none() {
                break;
            }
            let _ = tokio::time::timeout(Duration::from_secs(1), inner.failed.notified()).await;
        }
        let (mut wait, mut tries) = (FIRST_MS, 0u32);
        loop {
            let Some(inner) = weak.upgrade() else { return };
            match inner.connect().await {
                Ok(link) => {
                    inner.put(link);
                    inner.returns.send_modify(|n| *n += 1);
                    tracing::info!(redis = %inner.target.address, "Redis answers again");
                    break;
                }
                Err(why) => {
                    if tries.is_multiple_of(SPOKEN) {
                        tracing::warn!(redis = %inner.target.address, %why, "Redis cannot be reached");
                    }
                    tries = tries.wrapping_add(1);
                    let most = inner.limits.reconnect_ms.max(1);
                    drop(inner);
                    // Half of it at random, so that nodes do not come all at once.
                    tokio::time::sleep(Duration::from_millis(wait / 2 + chance(wait / 2 + 1))).await;
                    wait = (wait * 2).min(most);
                }
            }
        }
    }
}
