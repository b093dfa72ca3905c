//! What people are shown: a message as the API and the socket give it.

use serde::{Deserialize, Serialize};

use crate::{
    cursor::Cursor,
    fact::{Past, Reason, State},
    ids::{ConversationId, MessageId, Party, Ref, Sender},
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
        }
    }

    /// As its sender is shown it.
    pub fn for_sender(message: &Message, state: &State) -> Self {
        let client_ref = message.client_ref.clone();
        let metadata = message.metadata.clone();
        Self { client_ref, metadata, send_at: message.send_at, ..Self::for_recipient(message, state, None) }
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
