//! What is owed to a node that did not answer for what it was handed: that it compares what its sessions were sent with their
//! inboxes. No attempt may follow that would show it the message: another node of the same user took it, or it is the copy of
//! what that user wrote itself, which is offered once. A node that is held still hears of it when it goes on.

use std::{collections::HashSet, sync::Arc, time::Duration};

use parking_lot::Mutex;
use schemas::{NodeId, port::Backplane, vital};

/// How long what is owed to a node is gathered, ms.
const GATHER: Duration = Duration::from_millis(1_000);

/// The nodes that are to be told.
pub(crate) struct Owed {
    backplane: Arc<dyn Backplane>,
    nodes: Mutex<HashSet<NodeId>>,
}

impl Owed {
    pub(crate) fn new(backplane: Arc<dyn Backplane>) -> Arc<Self> {
        Arc::new(Self { backplane, nodes: Mutex::default() })
    }

    /// It did not answer for something that is in its users' inboxes. Told once for all that comes within a moment.
    pub(crate) fn to(self: &Arc<Self>, node: &NodeId) {
        if self.nodes.lock().insert(node.clone()) {
            tokio::spawn(vital::task("telling a node what it is owed", self.clone().tell(node.clone())));
        }
    }

    async fn tell(self: Arc<Self>, node: NodeId) {
        loop {
            tokio::time::sleep(GATHER).await;
            // Before it is told: what is owed from here on is told again.
            self.nodes.lock().remove(&node);
            match self.backplane.compare(&node).await {
                Ok(()) => return,
                Err(why) => tracing::debug!(%node, %why, "a node could not be told to compare"),
            }
            if !self.nodes.lock().insert(node.clone()) {
                return;
            }
        }
    }
}
