//! What travels on a channel: a frame with parts, in the internal codec.

use std::sync::Arc;

use schemas::{
    SessionId, UserId,
    port::{Hint, Landing, Signal},
    view::StatusChange,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Several parts that travel together.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Frame {
    /// The process that sends it, where answers go.
    pub(super) from: Uuid,
    pub(super) parts: Vec<Part>,
}

/// One thing that is said to a node, to a process, or to all.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Part {
    /// Offers hints; answered by `Landed`.
    Hints { ask: u64, hints: Arc<Vec<Hint>> },
    /// One landing per hint.
    Landed { ask: u64, landings: Vec<Landing> },
    /// Changes of status for senders; not answered.
    Notes(Vec<(UserId, StatusChange)>),
    /// A session was replaced; answered by `Done`.
    Supersede { ask: u64, user: UserId, session: SessionId },
    /// It was done.
    Done { ask: u64 },
    /// This process has the node's name now.
    Taken { by: Uuid },
    /// Hints may have been lost: compare.
    Compare,
    /// What happens now, for users and caches; not answered.
    Signals(Vec<(UserId, Signal)>),
}

impl Part {
    /// The question it puts.
    pub(super) fn asks(&self) -> Option<u64> {
        match self {
            Self::Hints { ask, .. } | Self::Supersede { ask, .. } => Some(*ask),
            _ => None,
        }
    }

    /// About how many bytes it takes.
    pub(super) fn bytes(&self) -> usize {
        /// A message's envelope, or a note.
        const EACH: usize = 192;
        match self {
            Self::Hints { hints, .. } => hints.iter().map(|hint| EACH + hint.message.content.body.len()).sum(),
            Self::Notes(notes) => notes.len() * EACH,
            Self::Signals(signals) => signals.len() * EACH,
            Self::Landed { landings, .. } => landings.len() + 16,
            _ => EACH,
        }
    }
}
