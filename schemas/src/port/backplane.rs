//! The Backplane port: hands batches to the node that holds a session, and brings the answer back. A hint, never the truth:
//! what it loses, the inbox still has (rule 5).

use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::PortResult;
use crate::{
    conversation::Version,
    fact::State,
    ids::{ConversationId, NodeId, Party, SessionId, UserId},
    message::Message,
    position::{Inbox, Position},
    tier::Attempt,
    time::Timestamp,
    topic::Partition,
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
    /// The number of its turn in its conversation ([`super::Entry::seq`]).
    pub seq: Option<u64>,
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

/// What is told as it happens and never kept: best effort, dropped first under pressure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Signal {
    /// Somebody types.
    Typing {
        /// Where.
        conversation: ConversationId,
        /// Who.
        by: Party,
    },
    /// Somebody has read up to a number of a conversation.
    Read {
        /// Where.
        conversation: ConversationId,
        /// Up to here.
        up_to: u64,
        /// Who.
        by: Party,
    },
    /// Somebody came or went.
    Presence {
        /// Who.
        user: Party,
        /// Whether it is connected.
        online: bool,
        /// When it was last connected, where it is not.
        last_seen: Option<Timestamp>,
    },
    /// A conversation in which the user has a part has changed: what caches know of it and of the user's lists is old.
    /// It is for the node, also where the user is not connected.
    Changed {
        /// Which.
        conversation: ConversationId,
        /// As it is now: what is cached with this version or a larger one is not old.
        version: Version,
    },
}

/// What the backplane brings to a node: implemented by the gateway.
#[async_trait]
pub trait Node: Send + Sync + 'static {
    /// Offers hints to the sessions here, in order; one landing per hint.
    async fn deliver(&self, hints: Vec<Hint>) -> Vec<Landing>;

    /// Changes of status for senders who are connected here. Best effort: dropped first under pressure (rule 16).
    async fn notify(&self, notes: Vec<(UserId, StatusChange)>);

    /// Signals for users who are connected here, and for this node's caches. Best effort.
    async fn signal(&self, _signals: Vec<(UserId, Signal)>) {}

    /// A newer session of the same device lives elsewhere: close this one and say why.
    async fn supersede(&self, user: &UserId, session: SessionId);
}

/// Inboxes of which hints may have been lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    /// Any.
    All,
    /// Those of these partitions.
    Of(BTreeSet<Partition>),
}

impl Whose {
    /// Whether an inbox of this partition may be one.
    pub fn has(&self, partition: Partition) -> bool {
        match self {
            Self::All => true,
            Self::Of(partitions) => partitions.contains(&partition),
        }
    }

    /// These, and those.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Of(mut some), Self::Of(mut others)) => {
                some.append(&mut others);
                Self::Of(some)
            }
            _ => Self::All,
        }
    }
}

/// What [`Backplane::missed`] says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missed {
    /// How often hints may have been lost.
    pub count: u64,
    /// Whose, since it was asked with an earlier count.
    pub whose: Whose,
}

/// The way to the nodes.
///
/// **Failure.** `Unavailable` and `Unknown` mean that a node did not answer in time: the attempt failed, the inbox has it.
/// While the carrier itself is away, other nodes are answered for as `Absent`: nobody is to blame, and when it is back all
/// nodes compare ([`Backplane::missed`]). A node of this very process is reached without it.
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

    /// Sends signals to a node; not answered. What an adapter does not carry is lost: caches then live as long as they may,
    /// and who reads sees it at the next look.
    async fn signal(&self, _node: &NodeId, _signals: Vec<(UserId, Signal)>) -> PortResult<()> {
        Ok(())
    }

    /// Tells a node that a session of its was replaced.
    async fn supersede(&self, node: &NodeId, user: &UserId, session: SessionId) -> PortResult<()>;

    /// Tells a node that hints to it may have been lost: its process compares ([`Backplane::missed`]). Not answered; one that is
    /// held still hears of it when it goes on.
    async fn compare(&self, node: &NodeId) -> PortResult<()>;

    /// Tells all nodes that these partitions have another owner: what the one before it still owed, nobody else knows of. Not
    /// answered.
    async fn taken_over(&self, partitions: &[Partition]) -> PortResult<()>;

    /// Waits until hints to the nodes of this process may have been lost more often than `seen` times, and says how often and
    /// whose since: what sessions were sent is to be compared with those inboxes. Never answers where none can be lost.
    async fn missed(&self, _seen: u64) -> Missed {
        std::future::pending().await
    }
}
