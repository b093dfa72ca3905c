//! Temporary.
#![allow(clippy::all, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, unreachable_pub, dead_code)]
pub mod conformance {
    pub mod history;
}
use std::sync::Arc;
use async_trait::async_trait;
use schemas::{Clock, Millis, Timestamp, limits::StoreLimits, port::History};
use stores::{history::scylla::{ScyllaHistory, schema}, urls::Address};
use conformance::history::Installation;
use tokio::sync::{Mutex, MutexGuard, OnceCell};
struct Real(std::time::Instant);
impl Clock for Real {
    fn wall(&self) -> Timestamp { Timestamp(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64) }
    fn mono(&self) -> Millis { Millis(self.0.elapsed().as_millis() as u64) }
}
async fn shared() -> &'static str {
    static ADDRESS: OnceCell<String> = OnceCell::const_new();
    ADDRESS.get_or_init(|| async {
        let a = format!("scylla://{}/esh3ar?replication=1", std::env::var("ESH3AR_TEST_CQL").unwrap());
        schema::apply(&Address::parse(&a).unwrap(), &StoreLimits::default()).await.unwrap();
        a
    }).await
}
async fn open(a: &str) -> Arc<ScyllaHistory> {
    ScyllaHistory::open(&Address::parse(a).unwrap(), &StoreLimits::default(), Arc::new(Real(std::time::Instant::now()))).await.unwrap()
}
struct Cluster { history: Arc<ScyllaHistory>, _alone: MutexGuard<'static, ()> }
impl Cluster {
    async fn new() -> Self {
        static ALONE: Mutex<()> = Mutex::const_new(());
        let alone = ALONE.lock().await;
        Self { history: open(shared().await).await, _alone: alone }
    }
}
#[async_trait]
impl Installation for Cluster {
    fn history(&self) -> Arc<dyn History> { self.history.clone() }
    async fn another(&self) -> Arc<dyn History> { open(shared().await).await }
    async fn restart(&mut self) { self.history.close().await.unwrap(); self.crash().await; }
    async fn crash(&mut self) { self.history = open(shared().await).await; }
}
crate::history_conformance!(cassandra: Cluster::new());
