//! The Dispatch port: what the pipeline decided is done through here. Implemented by `sinks`, with a deadline and a breaker
//! for every act.

use async_trait::async_trait;

use super::{Dead, Hint, Signal};
use crate::{
    fact::Reason,
    ids::{NodeId, UserId},
    topic::Partition,
    view::StatusChange,
};

/// A recorded message and the nodes where its user is; none: nobody is connected.
#[derive(Debug, Clone, PartialEq)]
pub struct Routed {
    /// The message.
    pub hint: Hint,
    /// Where to.
    pub nodes: Vec<NodeId>,
}

/// What became of one delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A session has taken charge: it will say `Sent`.
    Taken,
    /// Nobody is connected: it stays parked in the inbox.
    Absent,
    /// The attempt failed; the rule of [`crate::tier`] says what follows.
    Failed(Reason),
}

/// What acts.
#[async_trait]
pub trait Dispatch: Send + Sync + 'static {
    /// Delivers a batch; one outcome per message, in order. Never longer than its deadline: what did not answer by then
    /// failed. Deliveries to one node are handed over in the order in which these futures are first polled.
    async fn deliver(&self, batch: Vec<Routed>) -> Vec<Outcome>;

    /// Tells connected senders. Best effort; takes what it has room for and drops the rest (rule 16).
    async fn notify(&self, notes: Vec<(UserId, StatusChange)>);

    /// Tells connected users of what happens, and the caches of all nodes of what changed ([`Signal::Changed`]). Best effort.
    async fn signal(&self, _signals: Vec<(UserId, Signal)>) {}

    /// Tells all nodes that these partitions have another owner from here on: what the one before it owed to nodes it may have
    /// taken with it, so they look at the inboxes. Best effort.
    async fn taken_over(&self, _partitions: &[Partition]) {}

    /// Tells administrators of dead letters (R4.5): a log event, a metric, and what configuration names. Best effort.
    async fn alarm(&self, dead: &[Dead]);
}
