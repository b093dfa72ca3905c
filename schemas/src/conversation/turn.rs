//! Turns: what a conversation's log consists of.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Version;
use crate::{
    fact::State,
    ids::{ConversationId, MessageId, Name, Sender},
    message::{Content, Kind, Message},
    time::Timestamp,
};

/// One row of a conversation's log, as its owner writes it: a message, an edit, a deletion or a note. The kind of its
/// message says which.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// The conversation.
    pub conversation: ConversationId,
    /// Its number there, from 1.
    pub seq: u64,
    /// Messages addressed to the mobile user up to here, this one counted.
    pub to_mobile: u64,
    /// Messages addressed to the business up to here, this one counted.
    pub to_business: u64,
    /// The conversation's version with it: what tells a late owner's turn from the present one's.
    pub version: Version,
    /// When it was recorded.
    pub recorded_at: Timestamp,
    /// What was said, by whom and to whom. The bytes never change: edits and deletions are turns of their own.
    pub message: Arc<Message>,
    /// The number of the turn that an edit or a deletion is about.
    pub of: Option<u64>,
}

impl Turn {
    /// The message that an edit or a deletion is about.
    pub fn about(&self) -> Option<MessageId> {
        self.message.kind.about()
    }

    /// Whether readers are shown it as a row of its own: edits and deletions are shown in what they are about.
    pub fn is_shown(&self) -> bool {
        self.about().is_none()
    }

    /// What an edit or deletion of it has to know.
    pub fn original(&self, edits: u32, deleted: bool) -> Original {
        Original {
            conversation: self.conversation,
            id: self.message.id,
            seq: self.seq,
            from: self.message.from.clone(),
            at: self.recorded_at,
            edits,
            deleted,
        }
    }
}

/// A turn as readers are shown it: with what became of it, and its newest text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shown {
    /// The row as it was written.
    pub turn: Turn,
    /// What became of its message: the ticks.
    pub state: State,
    /// The newest text and since when, if it was edited and not deleted since.
    pub edited: Option<(Timestamp, Content)>,
    /// When it was deleted, if it was. Its text is not shown then.
    pub deleted_at: Option<Timestamp>,
    /// How often it was edited.
    pub edits: u32,
}

impl Shown {
    /// A turn as its edits and deletions make it: each with when it was recorded, in the order of their turns.
    pub fn of(turn: Turn, state: State, changes: impl IntoIterator<Item = (Timestamp, Kind, Content)>) -> Self {
        let mut shown = Self { turn, state, edited: None, deleted_at: None, edits: 0 };
        for (at, kind, content) in changes {
            if matches!(kind, Kind::Delete(..)) {
                shown.deleted_at = shown.deleted_at.or(Some(at));
            } else {
                shown.edits += 1;
                shown.edited = Some((at, content));
            }
        }
        shown
    }

    /// What it says now; `None` once it is deleted.
    pub fn content(&self) -> Option<&Content> {
        match (&self.deleted_at, &self.edited) {
            (Some(_), _) => None,
            (None, Some((_, content))) => Some(content),
            (None, None) => Some(&self.turn.message.content),
        }
    }

    /// What an edit or deletion of it has to know; `None`: it is no message.
    pub fn original(&self) -> Option<Original> {
        let is_message = matches!(self.turn.message.kind, Kind::Chat(_));
        is_message.then(|| self.turn.original(self.edits, self.deleted_at.is_some()))
    }
}

/// What an edit or a deletion has to know of the message that it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Original {
    /// Its conversation.
    pub conversation: ConversationId,
    /// Its name.
    pub id: MessageId,
    /// The number of its turn.
    pub seq: u64,
    /// Who wrote it.
    pub from: Sender,
    /// When it was recorded.
    pub at: Timestamp,
    /// How often it was edited.
    pub edits: u32,
    /// Whether it is deleted.
    pub deleted: bool,
}

/// What is noted: in the thread for both sides, or for the other devices of whoever did it. The content of a note's message,
/// as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "note", rename_all = "snake_case")]
pub enum Note {
    /// Somebody else answers for the business.
    Assigned {
        /// Who did until now.
        from: Name,
        /// Who does now.
        to: Name,
    },
    /// Nobody writes any more.
    Closed,
    /// They may again.
    Reopened,
    /// Put away (for one's own devices).
    Archived,
    /// Taken out again (for one's own devices).
    Unarchived,
    /// The business may not write (for one's own devices).
    Blocked,
    /// It may again (for one's own devices).
    Unblocked,
}
