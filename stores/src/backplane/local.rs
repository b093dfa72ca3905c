//! The backplane in process: calls the node itself, with nothing in between, so hints reach it in the order in which the
//! calls were first polled.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use parking_lot::RwLock;
use schemas::{
    NodeId, Partition, SessionId, UserId,
    port::{Backplane, Hint, Landing, Missed, Node, PortResult, Signal, Whose},
    view::StatusChange,
};

use super::missed::Misses;

/// A backplane for a process that is the whole installation.
#[derive(Default)]
pub struct LocalBackplane {
    nodes: RwLock<HashMap<NodeId, Arc<dyn Node>>>,
    misses: Misses,
}

impl LocalBackplane {
    /// Without nodes.
    pub fn new() -> Self {
        Self::default()
    }

    fn node(&self, node: &NodeId) -> Option<Arc<dyn Node>> {
        self.nodes.read().get(node).cloned()
    }
}

#[async_trait]
impl Backplane for LocalBackplane {
    async fn attach(&self, node: NodeId, target: Arc<dyn Node>) -> PortResult<()> {
        self.nodes.write().insert(node, target);
        Ok(())
    }

    async fn detach(&self, node: &NodeId) -> PortResult<()> {
        self.nodes.write().remove(node);
        Ok(())
    }

    async fn deliver(&self, node: &NodeId, hints: Vec<Hint>) -> PortResult<Vec<Landing>> {
        match self.node(node) {
            Some(node) => Ok(node.deliver(hints).await),
            None => Ok(vec![Landing::Absent; hints.len()]),
        }
    }

    async fn notify(&self, node: &NodeId, notes: Vec<(UserId, StatusChange)>) -> PortResult<()> {
        if let Some(node) = self.node(node) {
            node.notify(notes).await;
        }
        Ok(())
    }

    async fn signal(&self, node: &NodeId, signals: Vec<(UserId, Signal)>) -> PortResult<()> {
        if let Some(node) = self.node(node) {
            node.signal(signals).await;
        }
        Ok(())
    }

    async fn supersede(&self, node: &NodeId, user: &UserId, session: SessionId) -> PortResult<()> {
        if let Some(node) = self.node(node) {
            node.supersede(user, session).await;
        }
        Ok(())
    }

    async fn compare(&self, _: &NodeId) -> PortResult<()> {
        self.misses.again(Whose::All);
        Ok(())
    }

    async fn taken_over(&self, partitions: &[Partition]) -> PortResult<()> {
        self.misses.again(Whose::Of(partitions.iter().copied().collect()));
        Ok(())
    }

    async fn missed(&self, seen: u64) -> Missed {
        self.misses.more_than(seen).await
    }
}
