//! Presence, the backplane and shared quotas on Redis: one server, and a cluster of three.

mod away;
mod cached;
mod ears;
mod frames;
mod people;
mod refusals;
mod shared;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use ops::clock::SystemClock;
use schemas::{
    NodeId, Partition, SessionId, UserId,
    limits::{ChatLimits, RedisLimits},
    port::{Backplane, Cache, Hint, Landing, Limiter, Missed, Node, PortResult, Presence, Signal},
    view::StatusChange,
};
use stores::{
    backplane::RedisBackplane, cache::RedisCache, limiter::RedisLimiter, presence::RedisPresence, redis::Redis,
    urls::Address,
};
use tests::{conformance, harness::stack::Nodes};
use tokio::sync::OnceCell;

/// One Redis, shared by the tests of this process that do it no harm; each takes a prefix of its own.
async fn shared() -> &'static Nodes {
    static NODES: OnceCell<Nodes> = OnceCell::const_new();
    NODES.get_or_init(|| Nodes::start("redis", &[])).await
}

/// One cluster, shared in the same way.
async fn cluster() -> &'static Nodes {
    static NODES: OnceCell<Nodes> = OnceCell::const_new();
    NODES.get_or_init(|| Nodes::start("redis", &["--cluster", "--nodes", "3"])).await
}

/// A prefix that no other test has.
fn prefix() -> String {
    format!("t{}:", uuid::Uuid::new_v4().simple())
}

async fn open(address: &str) -> Redis {
    Redis::open(&Address::parse(address).unwrap(), Arc::new(SystemClock::new())).await.unwrap()
}

/// The same for rules that say nothing of a late answer: a machine that pauses for a moment breaks none of them.
async fn patient(address: &str) -> Redis {
    let limits = RedisLimits { command_ms: 5_000, ..RedisLimits::default() };
    Redis::with(&Address::parse(address).unwrap(), limits, Arc::new(SystemClock::new())).await.unwrap()
}

/// An address with a prefix of its own.
async fn address(on_cluster: bool) -> String {
    let (scheme, nodes) = if on_cluster { ("redis-cluster", cluster().await) } else { ("redis", shared().await) };
    format!("{scheme}://{}/{}", nodes.hosts(), prefix())
}

/// Waits for what is not answered; the time it took.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) -> Duration {
    let began = Instant::now();
    let due = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), due).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
    began.elapsed()
}

/// Presences with a prefix of their own. Their time is Redis's: it is waited for.
struct Presences(bool);

const PRESENCE_MS: u64 = 3_000;
const NODE_MS: u64 = 2_400;

#[async_trait]
impl conformance::presence::Maker for Presences {
    async fn open(&mut self) -> Arc<dyn Presence> {
        Arc::new(RedisPresence::new(patient(&address(self.0).await).await, PRESENCE_MS, NODE_MS))
    }

    async fn pass(&mut self, ms: u64) {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    fn presence_ms(&self) -> u64 {
        PRESENCE_MS
    }

    fn node_ms(&self) -> u64 {
        NODE_MS
    }
}

/// Registrations at one process and questions at another: nothing that a process knows by heart answers them.
struct Apart {
    here: RedisPresence,
    there: RedisPresence,
}

#[async_trait]
impl Presence for Apart {
    async fn register(
        &self,
        user: &UserId,
        node: &NodeId,
        device: &schemas::DeviceId,
        session: SessionId,
    ) -> PortResult<schemas::port::Taken> {
        self.here.register(user, node, device, session).await
    }
    async fn refresh(&self, sessions: &[(UserId, SessionId)]) -> PortResult<()> {
        self.here.refresh(sessions).await
    }
    async fn remove(&self, user: &UserId, session: SessionId) -> PortResult<()> {
        self.here.remove(user, session).await
    }
    async fn locate(&self, users: &[UserId]) -> PortResult<Vec<Vec<schemas::port::Place>>> {
        // It reads the nodes' table anew, which it otherwise does once a second.
        self.there.nodes().await?;
        self.there.locate(users).await
    }
    async fn heartbeat(&self, load: &schemas::port::NodeLoad) -> PortResult<()> {
        self.here.heartbeat(load).await
    }
    async fn nodes(&self) -> PortResult<Vec<schemas::port::NodeLoad>> {
        self.there.nodes().await
    }
}

struct PresencesApart;

#[async_trait]
impl conformance::presence::Maker for PresencesApart {
    async fn open(&mut self) -> Arc<dyn Presence> {
        let address = address(false).await;
        let one = async || RedisPresence::new(patient(&address).await, PRESENCE_MS, NODE_MS);
        Arc::new(Apart { here: one().await, there: one().await })
    }

    async fn pass(&mut self, ms: u64) {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    fn presence_ms(&self) -> u64 {
        PRESENCE_MS
    }

    fn node_ms(&self) -> u64 {
        NODE_MS
    }
}

/// Two processes: nodes are attached at one and called from the other, so that everything goes through Redis.
struct Across {
    here: RedisBackplane,
    there: RedisBackplane,
}

#[async_trait]
impl Backplane for Across {
    async fn attach(&self, node: NodeId, target: Arc<dyn Node>) -> PortResult<()> {
        self.there.attach(node, target).await
    }
    async fn detach(&self, node: &NodeId) -> PortResult<()> {
        self.there.detach(node).await
    }
    async fn deliver(&self, node: &NodeId, hints: Vec<Hint>) -> PortResult<Vec<Landing>> {
        self.here.deliver(node, hints).await
    }
    async fn notify(&self, node: &NodeId, notes: Vec<(UserId, StatusChange)>) -> PortResult<()> {
        self.here.notify(node, notes).await
    }
    async fn signal(&self, node: &NodeId, signals: Vec<(UserId, Signal)>) -> PortResult<()> {
        self.here.signal(node, signals).await
    }
    async fn supersede(&self, node: &NodeId, user: &UserId, session: SessionId) -> PortResult<()> {
        self.here.supersede(node, user, session).await
    }
    async fn compare(&self, node: &NodeId) -> PortResult<()> {
        self.here.compare(node).await
    }
    async fn taken_over(&self, partitions: &[Partition]) -> PortResult<()> {
        self.here.taken_over(partitions).await
    }
    async fn missed(&self, seen: u64) -> Missed {
        self.there.missed(seen).await
    }
}

struct Backplanes(bool);

#[async_trait]
impl conformance::backplane::Maker for Backplanes {
    async fn open(&mut self) -> Arc<dyn Backplane> {
        let address = address(self.0).await;
        let one = async || RedisBackplane::open(patient(&address).await, 5_000).await;
        Arc::new(Across { here: one().await, there: one().await })
    }
}

/// One process that is all: its nodes are reached without Redis.
struct BackplanesAlone;

#[async_trait]
impl conformance::backplane::Maker for BackplanesAlone {
    async fn open(&mut self) -> Arc<dyn Backplane> {
        Arc::new(RedisBackplane::open(patient(&address(false).await).await, 5_000).await)
    }
}

struct Limiters(bool);

#[async_trait]
impl conformance::limiter::Maker for Limiters {
    async fn open(&mut self) -> Arc<dyn Limiter> {
        RedisLimiter::new(patient(&address(self.0).await).await)
    }

    async fn pass(&mut self, ms: u64) {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    fn window_ms(&self) -> u64 {
        4_000
    }
}

/// Caches at two processes: what one keeps the other gives.
struct Caches(bool);

#[async_trait]
impl conformance::cache::Maker for Caches {
    async fn open(&mut self, limits: ChatLimits) -> Arc<dyn Cache> {
        Arc::new(RedisCache::new(patient(&address(self.0).await).await, &limits))
    }

    async fn pass(&mut self, ms: u64) {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
}

mod cache {
    use super::*;
    tests::cache_conformance!(redis, Caches(false));
    tests::cache_conformance!(redis_cluster, Caches(true));
}

mod presence {
    use super::*;
    tests::presence_conformance!(redis, Presences(false));
    tests::presence_conformance!(redis_cluster, Presences(true));
    tests::presence_conformance!(redis_from_another_process, PresencesApart);
}

mod backplane {
    use super::*;
    tests::backplane_conformance!(redis, Backplanes(false));
    tests::backplane_conformance!(redis_cluster, Backplanes(true));
    tests::backplane_conformance!(redis_same_process, BackplanesAlone);
}

mod limiter {
    use super::*;
    tests::limiter_conformance!(redis, Limiters(false));
    tests::limiter_conformance!(redis_cluster, Limiters(true));
}
