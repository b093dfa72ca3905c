//! The log on Kafka.

mod anew;
mod broker;
mod group;
mod refusals;
mod retention;
mod start;

use std::sync::Arc;

use async_trait::async_trait;
use ops::clock::SystemClock;
use schemas::{limits::StoreLimits, port::Log};
use stores::{
    OpenError,
    log::kafka::{KafkaLog, topics},
    urls::Address,
};
use tests::{conformance, harness::stack};

const PARTITIONS: u16 = 4;

fn limits() -> StoreLimits {
    StoreLimits { partitions: PARTITIONS, ..StoreLimits::default() }
}

/// A prefix that no other test has.
fn prefix() -> String {
    format!("t{}.", uuid::Uuid::new_v4().simple())
}

fn address(hosts: &str, prefix: &str, options: &str) -> Address {
    Address::parse(&format!("kafka://{hosts}/{prefix}?{options}")).unwrap()
}

async fn open(address: &Address) -> Result<Arc<KafkaLog>, OpenError> {
    KafkaLog::open(address, &limits(), Arc::new(SystemClock::new())).await
}

/// The topics of a prefix of its own on the shared broker.
async fn installation(options: &str) -> Address {
    let address = address(&stack::kafka().await.hosts(), &prefix(), options);
    topics::create(&address, &limits()).await.unwrap();
    address
}

/// Logs with a prefix of their own.
struct KafkaLogs {
    address: Address,
    open: Option<Arc<KafkaLog>>,
}

impl KafkaLogs {
    async fn new() -> Self {
        Self { address: installation("").await, open: None }
    }
}

#[async_trait]
impl conformance::log::Maker for KafkaLogs {
    async fn open(&mut self) -> Arc<dyn Log> {
        let log = open(&self.address).await.unwrap();
        self.open = Some(log.clone());
        log
    }

    async fn close(&mut self) {
        self.open.take().unwrap().close().await;
    }

    async fn lose(&mut self) {
        // Nothing of it is on this side: what was not answered may or may not be there.
        self.open = None;
    }

    async fn pass(&mut self, _: u64) {}

    fn retention_ms(&self) -> u64 {
        limits().log_retention_ms
    }

    fn retention_waits(&self) -> bool {
        false
    }
}

mod log {
    use super::*;
    tests::log_conformance!(kafka, KafkaLogs::new().await);
}
