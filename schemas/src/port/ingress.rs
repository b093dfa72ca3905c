//! The Ingress port: records that businesses produce to topics of their own, as they stand, and the topic of those that were
//! not taken.

use async_trait::async_trait;
use bytes::Bytes;

use super::{Fetch, PortResult};
use crate::{problem::Problem, time::Timestamp};

/// One partition of a topic of a business.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Spot {
    /// The topic's name without the prefix of the installation: `ingress`, or `ingress.acme`.
    pub topic: std::sync::Arc<str>,
    /// Which of its partitions.
    pub partition: u32,
}

/// A record as it was produced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raw {
    /// Where it stands.
    pub spot: Spot,
    /// Its number there.
    pub offset: u64,
    /// Its timestamp, as its producer or the broker gave it; with the offset it tells a record of a topic that was made anew
    /// from the one that stood there before.
    pub at: Timestamp,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its headers, in order, repeated ones too.
    pub headers: Vec<(String, Bytes)>,
    /// Its value.
    pub value: Option<Bytes>,
}

/// What a reader meets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrival {
    /// Records, in order within each partition; never of a paused topic.
    Records(Vec<Raw>),
    /// These partitions are no longer this reader's: what it has of them is another's to read again.
    Lost(Vec<Spot>),
}

/// One of the readers that share the topics of businesses.
///
/// **Guarantees.** Each partition has one reader at a time, from its group's committed offset on; a topic that is made while
/// it runs is found within a minute. A record that is not committed is read again, by whoever has its partition then.
/// **Cost.** Polling reads what was fetched ahead, within the bounds of [`Fetch`].
#[async_trait]
pub trait Ingress: Send + Sync {
    /// Waits for the next arrival. Cancel-safe: what was not returned comes again.
    async fn poll(&mut self, max: Fetch) -> PortResult<Arrival>;

    /// Stops records of a topic until [`Ingress::resume`].
    fn pause(&mut self, topic: &str) -> PortResult<()>;

    /// Lets records of a topic come again.
    fn resume(&mut self, topic: &str) -> PortResult<()>;

    /// Commits the next offsets to read. One of a partition that is no longer this reader's is passed over.
    async fn commit(&mut self, next: &[(Spot, u64)]) -> PortResult<()>;

    /// Keeps records that cannot be taken, each with why, where their sender finds them: the value, the key and the headers
    /// as they were, but for credentials. One outcome each, once they are as durable as the log.
    async fn reject(&mut self, records: &[(Raw, Problem)]) -> Vec<PortResult<()>>;

    /// Leaves, giving up every partition.
    async fn leave(self: Box<Self>) -> PortResult<()>;
}
