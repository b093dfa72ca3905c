//! The Log port: ordered, durable, replayable records per partition, and committed offsets per group.

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{PortError, PortResult};
use crate::{
    ids::{MessageId, Tenant},
    message::Priority,
    tier::Attempt,
    time::Timestamp,
    topic::{Offset, Partition, Topic, TopicPartition},
};

/// What routing and reading need of a record without its body.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Headers {
    /// The message.
    pub id: Option<MessageId>,
    /// Whose it is.
    pub tenant: Option<Tenant>,
    /// Its lane.
    pub priority: Option<Priority>,
    /// Which attempt.
    pub attempt: Attempt,
    /// The W3C trace it belongs to.
    pub traceparent: Option<String>,
}

/// A record to be appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Append {
    /// Where to.
    pub at: TopicPartition,
    /// What is known without the body.
    pub headers: Headers,
    /// The body ([`crate::codec`]; JSON on public topics).
    pub body: Bytes,
}

/// A record as it stands in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Where it stands.
    pub at: TopicPartition,
    /// Its number there.
    pub offset: Offset,
    /// When it was appended (wall time of the log).
    pub appended_at: Timestamp,
    /// What is known without the body.
    pub headers: Headers,
    /// The body.
    pub body: Bytes,
}

/// How much to read at once. At least one record comes if there is one, whatever its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetch {
    /// Records at most.
    pub records: usize,
    /// Bytes of bodies at most.
    pub bytes: usize,
}

/// What an accepted append survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// A power cut: it was synced to this disk.
    Disk,
    /// The loss of a server: in-sync replicas have it.
    Replicated,
    /// The process at most.
    Process,
}

/// Who reads: the members of a group share the partition numbers, and the group's committed offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Group(pub &'static str);

/// What a consumer meets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// These partition numbers are this member's now, in all topics it joined with, from their committed offsets on.
    Assigned(Vec<Partition>),
    /// These are to be given up: stop feeding, finish what is in flight, commit, then [`Consumer::release`].
    Revoked(Vec<Partition>),
    /// Records, in order within each partition; never of a paused one.
    Records(Vec<Record>),
}

/// The log.
///
/// **Guarantees.** Records of one partition have dense offsets from zero in the order they were appended; one caller's
/// records of one call keep their order. An `Ok` append is durable as [`Log::durability`] says and never lost. Nothing is
/// readable before it is durable. Where the adapter keeps the groups itself, retention never removes what a group that has
/// committed here has not yet passed; where a server keeps both (Kafka), what is old goes, read or not, and the adapter's page
/// says how to choose its age and what warns before.
///
/// **Failure.** Each record of a call has its own outcome; `Unknown` may have been appended. After `Unavailable` or
/// `Rejected` it was not and will not appear.
#[async_trait]
pub trait Log: Send + Sync + 'static {
    /// Appends. Answers when all are durable or refused, one outcome per record, in order. May wait for room; bounded by
    /// the adapter's queue.
    async fn append(&self, records: Vec<Append>) -> Vec<PortResult<Offset>>;

    /// Reads from an offset on, without waiting. An offset below the start reads from the start; at the end: nothing.
    async fn read(&self, at: TopicPartition, from: Offset, max: Fetch) -> PortResult<Vec<Record>>;

    /// The first offset kept and the one the next append will get.
    async fn bounds(&self, at: TopicPartition) -> PortResult<(Offset, Offset)>;

    /// The bounds of many, in their order. Who asks about more than one asks here: an adapter may ask its server once.
    async fn bounds_of(&self, at: &[TopicPartition]) -> PortResult<Vec<(Offset, Offset)>> {
        let mut bounds = Vec::with_capacity(at.len());
        for at in at {
            bounds.push(self.bounds(*at).await?);
        }
        Ok(bounds)
    }

    /// The next offset a group will read, for each; `None` where it never committed.
    async fn committed(&self, group: Group, at: &[TopicPartition]) -> PortResult<Vec<Option<Offset>>>;

    /// Joins a group. All members join with the same topics. Partition numbers are spread over the members; a number is
    /// owned in all topics by one member at a time.
    async fn join(&self, group: Group, topics: &[Topic]) -> PortResult<Box<dyn Consumer>>;

    /// How many partitions each topic has.
    fn partitions(&self) -> u16;

    /// What an `Ok` append survives.
    fn durability(&self) -> Durability;

    /// Whether it can take an append now; `Full` where there is no room.
    async fn check(&self) -> PortResult<()>;
}

/// One member of a group.
#[async_trait]
pub trait Consumer: Send {
    /// Waits for the next event. Cancel-safe: what was not returned comes again.
    async fn poll(&mut self, max: Fetch) -> PortResult<Event>;

    /// Stops records of these until [`Consumer::resume`].
    fn pause(&mut self, at: &[TopicPartition]);

    /// Lets records of these come again.
    fn resume(&mut self, at: &[TopicPartition]);

    /// Commits the next offsets to read. A commit of a partition that is no longer this member's is refused. Durable soon
    /// after, and never before what was written earlier through the same adapter.
    async fn commit(&mut self, offsets: &[(TopicPartition, Offset)]) -> PortResult<()>;

    /// Gives up revoked partitions: another member may have them now.
    async fn release(&mut self, partitions: &[Partition]) -> PortResult<()>;

    /// Leaves the group, giving up everything.
    async fn leave(self: Box<Self>) -> PortResult<()>;
}

impl From<PortError> for crate::problem::Problem {
    fn from(error: PortError) -> Self {
        use crate::problem::{Code, Problem};
        match error {
            PortError::Rejected(why) => Problem::new(Code::Internal, why),
            PortError::Unavailable(why) | PortError::Fenced(why) => {
                Problem::new(Code::Unavailable, why).retry_after_ms(1_000)
            }
            PortError::Full(why) => Problem::new(Code::DiskFull, why).retry_after_ms(10_000),
            PortError::Unknown(why) => Problem::new(Code::Unknown, why).retry_after_ms(1_000),
        }
    }
}
