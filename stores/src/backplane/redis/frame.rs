//! What travels on a channel: a frame with parts, in the internal codec.

use std::sync::Arc;

use schemas::{
    MessageId, Partition, Reason, Ref, SessionId, Status, Timestamp, UserId,
    json::Json,
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
    Notes(Vec<(UserId, Note)>),
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
    /// These partitions have another owner.
    TakenOver(Vec<Partition>),
}

/// A change of status with every field in its place: the public form leaves out those that are empty, which the internal codec
/// cannot read back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Note {
    id: MessageId,
    status: Status,
    at: Timestamp,
    reason: Option<Reason>,
    client_ref: Option<Ref>,
    metadata: Option<Json>,
}

impl From<StatusChange> for Note {
    fn from(StatusChange { id, status, at, reason, client_ref, metadata }: StatusChange) -> Self {
        Self { id, status, at, reason, client_ref, metadata }
    }
}

impl From<Note> for StatusChange {
    fn from(Note { id, status, at, reason, client_ref, metadata }: Note) -> Self {
        Self { id, status, at, reason, client_ref, metadata }
    }
}

impl Part {
    /// Changes of status for senders.
    pub(super) fn notes(notes: Vec<(UserId, StatusChange)>) -> Self {
        Self::Notes(notes.into_iter().map(|(user, change)| (user, change.into())).collect())
    }

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

#[cfg(test)]
mod tests {
    use schemas::codec;

    use super::*;

    /// What the public form leaves out is there again.
    #[test]
    fn a_note_comes_back_as_it_went() {
        let user: UserId = "acme/business:sara".parse().unwrap();
        let id = MessageId::fresh(Timestamp(1_700_000_000_000));
        let bare = StatusChange {
            id,
            status: Status::Delivered,
            at: Timestamp(5),
            reason: None,
            client_ref: None,
            metadata: None,
        };
        let full = StatusChange {
            reason: Some(Reason::NoAck),
            client_ref: Some(Ref::parse("mine").unwrap()),
            metadata: Some(Json::parse(r#"{"a":1}"#).unwrap()),
            ..bare
        };
        for change in [bare, full] {
            let frame = Frame { from: Uuid::nil(), parts: vec![Part::notes(vec![(user.clone(), change.clone())])] };
            let read: Frame = codec::decode(&codec::encode(&frame)).unwrap();
            let Some(Part::Notes(notes)) = read.parts.into_iter().next() else { panic!("notes came") };
            assert_eq!(StatusChange::from(notes[0].1.clone()), change);
        }
    }
}
