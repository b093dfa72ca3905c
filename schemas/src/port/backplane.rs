//! The Backplane port: hands batches to the node that holds a session, and brings the answer back. A hint, never the truth:
//! what it loses, the inbox still has (rule 5).

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::PortResult;
use crate::{
    fact::State,
    ids::{NodeId, SessionId, UserId},
    message::Message,
    position::{Inbox, Position},
    tier::Attempt,
    view::StatusChange,
};

/// One recorded message for one user's sessions on a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hint {
    /// Whose inbox.
    pub inbox: Inbox,
    /// Its place there.
    pub position: Position,
    /// The entry before it; a session that was last sent another reads the gap first.
    pub prev: Position,
    /// The message.
    pub message: Arc<Message>,
    /// Which round.
    pub round: u8,
    /// Which attempt.
    pub attempt: Attempt,
    /// What was known of it when it was routed (empty for a new one).
    pub state: State,
}

/// What became of a hint on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Landing {
    /// A session of the user has taken charge of it: it will put it on its socket and say so with a `Sent` fact.
    Taken,
    /// No session of the user is here any more.
    Absent,
}

/// What the backplane brings to a node: implemented by the gateway.
#[async_trait]
pub trait Node: Send + Sync + 'static {
    /// Offers hints to the sessions here, in order; one landing per hint.
    async fn deliver(&self, hints: Vec<Hint>) -> Vec<Landing>;

    /// Changes of status for senders who are connected here. Best effort: dropped first under pressure (rule 16).
    async fn notify(&self, notes: Vec<(UserId, StatusChange)>);

    /// A newer session of the same device lives elsewhere: close this one and say why.
    async fn supersede(&self, user: &UserId, session: SessionId);
}

/// The way to the nodes.
///
/// **Failure.** `Unavailable` and `Unknown` mean that a node did not answer in time: the attempt failed, the inbox has it.
#[async_trait]
pub trait Backplane: Send + Sync + 'static {
    /// Makes a node reachable under its name, replacing an earlier one of that name.
    async fn attach(&self, node: NodeId, target: Arc<dyn Node>) -> PortResult<()>;

    /// Takes it off.
    async fn detach(&self, node: &NodeId) -> PortResult<()>;

    /// Offers hints to a node and waits for its answer. A node that is not there answers `Absent` to all.
    async fn deliver(&self, node: &NodeId, hints: Vec<Hint>) -> PortResult<Vec<Landing>>;

    /// Sends changes of status to a node; not answered.
    async fn notify(&self, node: &NodeId, notes: Vec<(UserId, StatusChange)>) -> PortResult<()>;

    /// Tells a node that a session of its was replaced.
    async fn supersede(&self, node: &NodeId, user: &UserId, session: SessionId) -> PortResult<()>;
}
