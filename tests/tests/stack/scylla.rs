//! The history on a CQL cluster: the suite of its port on a real Cassandra, unchanged, and what only a real server can teach.
//!
//! Creating tables costs seconds, so there is one keyspace for all cases; they make up tenants of their own, and run one at
//! a time, because they count what is kept.

mod graves;
mod older;
mod trouble;

use std::sync::Arc;

use async_trait::async_trait;
use ops::clock::SystemClock;
use schemas::{limits::StoreLimits, port::History};
use stores::{
    history::scylla::{ScyllaHistory, schema},
    urls::Address,
};
use tests::{conformance::history::Installation, harness::stack::Nodes};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

/// One Cassandra with our tables, shared by the tests of this process that do it no harm.
async fn shared() -> &'static str {
    static ADDRESS: OnceCell<String> = OnceCell::const_new();
    let start = || async {
        let address = match std::env::var("ESH3AR_TEST_CQL") {
            // A server that runs already, for working on this adapter.
            Ok(host) => format!("scylla://{host}/esh3ar?replication=1"),
            Err(_) => format!("scylla://{}/esh3ar?replication=1", Nodes::start("cassandra", &[]).await.hosts()),
        };
        schema::apply(&Address::parse(&address).unwrap(), &StoreLimits::default()).await.unwrap();
        address
    };
    ADDRESS.get_or_init(start).await
}

async fn open(address: &str) -> Arc<ScyllaHistory> {
    let address = Address::parse(address).unwrap();
    ScyllaHistory::open(&address, &StoreLimits::default(), Arc::new(SystemClock::new())).await.unwrap()
}

/// A handle to the shared cluster.
struct Cluster {
    history: Arc<ScyllaHistory>,
    _alone: MutexGuard<'static, ()>,
}

impl Cluster {
    async fn new() -> Self {
        static ALONE: Mutex<()> = Mutex::const_new(());
        let alone = ALONE.lock().await;
        Self { history: open(shared().await).await, _alone: alone }
    }
}

#[async_trait]
impl Installation for Cluster {
    fn history(&self) -> Arc<dyn History> {
        self.history.clone()
    }

    async fn another(&self) -> Arc<dyn History> {
        open(shared().await).await
    }

    fn cases(&self) -> u32 {
        40
    }

    fn long_cases(&self) -> u32 {
        10
    }

    async fn restart(&mut self) {
        self.history.close().await.unwrap();
        self.crash().await;
    }

    async fn crash(&mut self) {
        // Nothing is closed and nothing finished: what is in the servers is what it leaves.
        self.history = open(shared().await).await;
    }
}

tests::history_conformance!(cassandra: Cluster::new());
