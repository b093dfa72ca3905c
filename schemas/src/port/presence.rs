//! The Presence port: where a user is now. It lapses by itself, so a dead node is forgotten without anyone's help.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::PortResult;
use crate::ids::{DeviceId, NodeId, SessionId, UserId};

/// One session of one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The node that holds it.
    pub node: NodeId,
    /// The device.
    pub device: DeviceId,
    /// The session.
    pub session: SessionId,
    /// Larger than every earlier one's of this device: the newer session wins.
    pub number: u64,
}

/// What registering answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// This session's number.
    pub number: u64,
    /// The session of the same device that this one replaces: tell its node to close it. A session that was registered
    /// again after a newer one of its device had come is told of itself: it is the one to be closed.
    pub replaced: Option<Place>,
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeLoad {
    /// The node.
    pub node: NodeId,
    /// Where clients reach it.
    pub address: String,
    /// Sessions it holds.
    pub sessions: u64,
    /// Sessions it can hold.
    pub room: u64,
}

/// Where users are.
///
/// **Guarantees.** A session that registered is found until it is removed, replaced, not refreshed for the presence time, or
/// its node's heartbeat lapsed. A failure means only that the answer is not known: delivery then waits for catch-up.
/// **While what keeps it is away**, sessions of this very process are taken and found as ever; of the others nothing is known,
/// and they are answered as not connected. When it is back every node is told to compare what its sessions were sent with
/// their inboxes ([`super::Backplane::missed`]), so that nobody misses what was parked meanwhile, and no attempt is charged.
/// **Cost.** [`Presence::locate`] is one request for the whole batch.
#[async_trait]
pub trait Presence: Send + Sync + 'static {
    /// Registers a session; an older one of the same device is replaced.
    async fn register(&self, user: &UserId, node: &NodeId, device: &DeviceId, session: SessionId) -> PortResult<Taken>;

    /// Keeps sessions for another presence time.
    async fn refresh(&self, sessions: &[(UserId, SessionId)]) -> PortResult<()>;

    /// Removes a session; nothing if it was replaced already.
    async fn remove(&self, user: &UserId, session: SessionId) -> PortResult<()>;

    /// Where each of these users is; empty where it is not connected.
    async fn locate(&self, users: &[UserId]) -> PortResult<Vec<Vec<Place>>>;

    /// A node says that it lives, and how loaded it is.
    async fn heartbeat(&self, load: &NodeLoad) -> PortResult<()>;

    /// The nodes that live.
    async fn nodes(&self) -> PortResult<Vec<NodeLoad>>;

    /// Waits until sessions registered through this process may have been forgotten more often than `seen` times, and says
    /// how often: they are to be registered again. Never answers where that cannot happen.
    async fn lapsed(&self, _seen: u64) -> u64 {
        std::future::pending().await
    }
}
