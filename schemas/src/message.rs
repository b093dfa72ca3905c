//! A message, after everything about it that could be wrong has been checked.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{BroadcastId, ConversationId, MessageId, Party, Ref, Sender, Tenant, UserId},
    json::Json,
    position::Inbox,
    time::Timestamp,
    topic::{Partition, Topic, TopicPartition},
};

/// How urgent it is: its lane, and who goes first when both wait (R5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// First.
    High,
    /// The default.
    #[default]
    Normal,
    /// Last, but never starved.
    Low,
}

impl Priority {
    /// All three, most urgent first.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    /// A number that is never given to another: it stands in keys on disk.
    pub fn number(self) -> u8 {
        match self {
            Self::High => 0,
            Self::Normal => 1,
            Self::Low => 2,
        }
    }

    /// The word on the wire and in metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }
}

/// What the content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum ContentType {
    /// Plain text: tags were removed, nothing was escaped.
    #[default]
    Text,
    /// One JSON value, as text.
    Json,
}

/// What a person reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Text or JSON.
    pub content_type: ContentType,
    /// A title.
    pub subject: Option<String>,
    /// The text, or the JSON's text.
    pub body: String,
}

impl Content {
    /// That of what was deleted: nothing is said.
    pub fn empty() -> Self {
        Self { content_type: ContentType::Text, subject: None, body: String::new() }
    }
}

/// Which of the two modes a message is of (R1.12). A conversation id stands in chat and nowhere else (P1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// A notification: read-only for its recipient.
    OneWay,
    /// Part of a conversation.
    Chat(ConversationId),
    /// Another text for an older message of a conversation.
    Edit(ConversationId, MessageId),
    /// An older message of a conversation is taken back.
    Delete(ConversationId, MessageId),
    /// What happened to a conversation; the content says what ([`crate::conversation::Note`], as JSON).
    Note(ConversationId),
}

impl Kind {
    /// The conversation it belongs to.
    pub fn conversation(self) -> Option<ConversationId> {
        match self {
            Self::OneWay => None,
            Self::Chat(id) | Self::Edit(id, _) | Self::Delete(id, _) | Self::Note(id) => Some(id),
        }
    }

    /// The older message it is about.
    pub fn about(self) -> Option<MessageId> {
        match self {
            Self::Edit(_, of) | Self::Delete(_, of) => Some(of),
            Self::OneWay | Self::Chat(_) | Self::Note(_) => None,
        }
    }

    /// Whether its recipient may answer it: one-way is one-way (P12, R1.4).
    pub fn may_be_replied_to(self) -> bool {
        self.conversation().is_some()
    }

    /// The word on the wire.
    pub fn word(self) -> &'static str {
        match self {
            Self::OneWay => "one_way",
            Self::Chat(_) => "chat",
            Self::Edit(..) => "edit",
            Self::Delete(..) => "delete",
            Self::Note(_) => "note",
        }
    }
}

/// An accepted message. Immutable: what happens to it is told by facts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Its name.
    pub id: MessageId,
    /// One-way, or chat and where.
    pub kind: Kind,
    /// Who sent it, within the recipient's tenant.
    pub from: Sender,
    /// Who receives it.
    pub to: UserId,
    /// Its lane.
    pub priority: Priority,
    /// What it says.
    pub content: Content,
    /// The sender's own name for it.
    pub client_ref: Option<Ref>,
    /// The sender's own data, carried unread.
    pub metadata: Option<Json>,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// Not to be delivered before this.
    pub send_at: Option<Timestamp>,
    /// Not to be delivered after this, where its sender said so; else retention decides.
    pub expires_at: Option<Timestamp>,
    /// The broadcast it is one of.
    pub broadcast: Option<BroadcastId>,
    /// The W3C trace it belongs to (`traceparent`).
    pub trace: Option<String>,
    /// The first 16 bytes of SHA-256 over what its sender asked for: tells whether a repeated key repeats the body.
    pub fingerprint: [u8; 16],
}

impl Message {
    /// The tenant it belongs to.
    pub fn tenant(&self) -> &Tenant {
        &self.to.tenant
    }

    /// The mobile user of the message, who decides its partition, for one-way and chat alike.
    pub fn owner(&self) -> UserId {
        match (&self.to.party, &self.from) {
            (Party::Business(_), Sender::User(party @ Party::Mobile(_))) => {
                UserId { tenant: self.to.tenant.clone(), party: party.clone() }
            }
            _ => self.to.clone(),
        }
    }

    /// Its partition, of `count`.
    pub fn partition(&self, count: u16) -> Partition {
        match (&self.to.party, &self.from) {
            (Party::Business(_), Sender::User(Party::Mobile(_))) => Partition::of(&self.owner(), count),
            _ => Partition::of(&self.to, count),
        }
    }

    /// The inbox it is written to, of `count` partitions.
    pub fn inbox(&self, count: u16) -> Inbox {
        Inbox { user: self.to.clone(), partition: self.partition(count) }
    }

    /// Where its record stands in the log.
    pub fn lane(&self, count: u16) -> TopicPartition {
        TopicPartition { topic: Topic::Lane(self.priority), partition: self.partition(count) }
    }

    /// Whether its time has passed.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// Whether its time is still to come.
    pub fn is_scheduled(&self, now: Timestamp) -> bool {
        self.send_at.is_some_and(|at| at > now)
    }

    /// Bytes it takes while in flight, roughly: what byte bounds count.
    pub fn weight(&self) -> usize {
        256 + self.content.body.len()
            + self.content.subject.as_ref().map_or(0, String::len)
            + self.metadata.as_ref().map_or(0, |m| m.as_str().len())
    }
}
