//! What people are shown: a message as the API and the socket give it.

use serde::{Deserialize, Serialize};

use crate::{
    conversation::{Conversation, Preview, Shown, Side},
    cursor::Cursor,
    fact::{Past, Reason, State},
    ids::{ConversationId, MessageId, Party, Ref, Sender, UserId},
    json::Json,
    message::{ContentType, Message, Priority},
    status::Status,
    time::Timestamp,
};

/// A message with its status. Field order is the order on the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// Its name.
    pub id: MessageId,
    /// `one_way` or `chat`.
    pub kind: String,
    /// Who sent it.
    pub from: Sender,
    /// Who receives it.
    pub to: Party,
    /// The conversation, in chat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<ConversationId>,
    /// A title.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// What it says.
    pub content: String,
    /// `text` or `json`.
    pub content_type: ContentType,
    /// Its lane.
    pub priority: Priority,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// The recipient's cursor once this is read, where it stands in an inbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<Cursor>,
    /// Where it stands.
    pub status: Status,
    /// Since when, if later than its acceptance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_at: Option<Timestamp>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The sender's own name for it (shown to its sender alone).
    #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
    pub client_ref: Option<Ref>,
    /// The sender's own data (shown to its sender alone).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Json>,
    /// When it is to be sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_at: Option<Timestamp>,
    /// When it expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// The message that an edit or a deletion is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<MessageId>,
    /// Its number in its conversation, where it is a message, an edit, a deletion or a note of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// When it was given the text it has, if it was edited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edited_at: Option<Timestamp>,
    /// When it was deleted; its content is empty since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<Timestamp>,
}

impl Item {
    /// As its recipient is shown it.
    pub fn for_recipient(message: &Message, state: &State, cursor: Option<Cursor>) -> Self {
        Self {
            id: message.id,
            kind: message.kind.word().to_owned(),
            from: message.from.clone(),
            to: message.to.party.clone(),
            conversation_id: message.kind.conversation(),
            subject: message.content.subject.clone(),
            content: message.content.body.clone(),
            content_type: message.content.content_type,
            priority: message.priority,
            accepted_at: message.accepted_at,
            cursor,
            status: state.status(),
            status_at: state.status_at(),
            reason: state.reason(),
            client_ref: None,
            metadata: None,
            send_at: None,
            expires_at: message.expires_at,
            about: message.kind.about(),
            seq: None,
            edited_at: None,
            deleted_at: None,
        }
    }

    /// As its sender is shown it.
    pub fn for_sender(message: &Message, state: &State) -> Self {
        let client_ref = message.client_ref.clone();
        let metadata = message.metadata.clone();
        Self { client_ref, metadata, send_at: message.send_at, ..Self::for_recipient(message, state, None) }
    }

    /// As a user is shown it in a list of its conversation's messages: with its newest text.
    pub fn of_turn(shown: &Shown, user: &UserId) -> Self {
        let message = &shown.turn.message;
        let own = message.from == Sender::User(user.party.clone());
        let item = if own {
            Self::for_sender(message, &shown.state)
        } else {
            Self::for_recipient(message, &shown.state, None)
        };
        let content = shown.content();
        Self {
            content: content.map(|content| content.body.clone()).unwrap_or_default(),
            content_type: content.map_or(ContentType::Text, |content| content.content_type),
            subject: content.and_then(|content| content.subject.clone()),
            seq: Some(shown.turn.seq),
            edited_at: shown.edited.as_ref().map(|(at, _)| *at).filter(|_| shown.deleted_at.is_none()),
            deleted_at: shown.deleted_at,
            ..item
        }
    }
}

/// Where a conversation stands for whoever asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Open, and in the list.
    Active,
    /// Put away by whoever asks.
    Archived,
    /// Nobody writes until it is reopened.
    Closed,
}

/// A conversation, as one of its sides is shown it. Field order is the order on the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Thread {
    /// Its name.
    pub id: ConversationId,
    /// Who it began with on the side of the business.
    pub business: Party,
    /// The mobile user.
    pub mobile: Party,
    /// Who answers for the business now.
    pub assigned_to: Party,
    /// `active`, `archived` or `closed`.
    pub status: Standing,
    /// Whether the mobile user refuses what the business writes.
    pub blocked: bool,
    /// Messages that the asker has yet to read.
    pub unread: u64,
    /// The number of its last message, edit, deletion or note.
    pub last_seq: u64,
    /// Up to which number the asker has read.
    pub read_seq: u64,
    /// Up to which number the other side has read.
    pub other_read_seq: u64,
    /// When it was opened.
    pub created_at: Timestamp,
    /// When its last message or note was recorded.
    pub last_at: Timestamp,
    /// Its last message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Preview>,
    /// Whether the other side is connected, where it lets that be known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub online: Option<bool>,
    /// When the other side was last connected, where it lets that be known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Timestamp>,
}

impl Thread {
    /// As this side is shown it; presence is not known here.
    pub fn of(conversation: &Conversation, side: Side) -> Self {
        let (own, other) = (conversation.half(side), conversation.half(side.other()));
        let status = match (&conversation.closed, own.archived) {
            (Some(_), _) => Standing::Closed,
            (None, true) => Standing::Archived,
            (None, false) => Standing::Active,
        };
        Self {
            id: conversation.id,
            business: Party::Business(conversation.pair.business.clone()),
            mobile: Party::Mobile(conversation.pair.mobile),
            assigned_to: Party::Business(conversation.assigned_to.clone()),
            status,
            blocked: conversation.blocked,
            unread: own.unread(),
            last_seq: conversation.last_seq,
            read_seq: own.read_seq,
            other_read_seq: other.read_seq,
            created_at: conversation.created_at,
            last_at: conversation.last_at,
            last: conversation.preview.clone(),
            online: None,
            last_seen: None,
        }
    }
}

/// A change of status, as a sender's socket and the feed of events tell it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusChange {
    /// The message.
    pub id: MessageId,
    /// Where it stands now.
    pub status: Status,
    /// Since when.
    pub at: Timestamp,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The sender's own name for it.
    #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
    pub client_ref: Option<Ref>,
    /// The sender's own data, where the feed was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Json>,
}

/// A message's whole story (`GET /v1/messages/{id}/trace`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// The message.
    pub id: MessageId,
    /// Where it stands.
    pub status: Status,
    /// The W3C trace it belongs to.
    pub traceparent: Option<String>,
    /// Every stage with its time, oldest first.
    pub stages: Vec<Stage>,
}

/// One stage of a message's way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// When.
    pub at: Timestamp,
    /// What happened: `accepted`, `recorded`, `sent`, `parked`, `attempt_failed`, `delivered`, `read`, `failed`, `requeued`.
    pub stage: String,
    /// Which attempt, where one is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u8>,
    /// On which device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The rule that stopped it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

impl From<&Past> for Stage {
    fn from(past: &Past) -> Self {
        use crate::fact::What;
        let (stage, reason) = match past.what {
            What::Sent => ("sent", None),
            What::Parked => ("parked", None),
            What::AttemptFailed(reason) => ("attempt_failed", Some(reason)),
            What::Delivered => ("delivered", None),
            What::Read => ("read", None),
            What::Failed(reason) => ("failed", Some(reason)),
            What::Requeued => ("requeued", None),
            What::CancelAsked => ("cancel_asked", None),
        };
        let device = past.device.as_ref().map(ToString::to_string);
        Self { at: past.at, stage: stage.to_owned(), attempt: Some(past.attempt.0), device, reason }
    }
}
