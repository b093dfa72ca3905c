//! Why something is not done in a conversation: a problem for whoever is still waiting, a reason in the message's facts for
//! whoever is not.

use crate::{
    fact::Reason,
    ids::Name,
    problem::{Code, Problem},
};

/// A refusal. None of them is tried again (R4.8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// There is no such conversation, or it is other people's: the two are not told apart.
    Stranger,
    /// This side may not do that.
    NotPermitted,
    /// It is closed.
    Closed,
    /// The mobile user has blocked the business.
    Blocked,
    /// Somebody else answers for the business now.
    AssignedElsewhere(Name),
    /// The conversation has no such message.
    NoSuchMessage,
    /// Somebody else's message.
    NotYours,
    /// The time in which it could be edited or deleted is over.
    TooLate,
    /// It is deleted.
    Deleted,
    /// It was edited as often as it may be.
    TooManyEdits,
}

impl Refused {
    /// The problem it is answered with.
    pub fn code(&self) -> Code {
        match self {
            Self::Stranger | Self::NoSuchMessage => Code::NotFound,
            Self::NotPermitted => Code::Forbidden,
            Self::Closed => Code::ConversationClosed,
            Self::Blocked => Code::Blocked,
            Self::AssignedElsewhere(_) => Code::AssignedElsewhere,
            Self::NotYours => Code::NotYourMessage,
            Self::TooLate => Code::EditTooLate,
            Self::Deleted => Code::MessageDeleted,
            Self::TooManyEdits => Code::TooManyEdits,
        }
    }

    /// The reason that stands in the facts of what was refused after it was accepted.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Stranger => Reason::UnknownConversation,
            Self::NotPermitted | Self::NotYours => Reason::NotPermitted,
            Self::Closed => Reason::ConversationClosed,
            Self::Blocked => Reason::Blocked,
            Self::AssignedElsewhere(_) => Reason::AssignedElsewhere,
            Self::NoSuchMessage => Reason::UnknownMessage,
            Self::TooLate => Reason::EditTooLate,
            Self::Deleted => Reason::MessageDeleted,
            Self::TooManyEdits => Reason::TooManyEdits,
        }
    }

    /// What a reason in the facts of a chat message or command says, as far as it says it; who somebody else is, it does not.
    pub fn of(reason: Reason) -> Option<Self> {
        Some(match reason {
            Reason::UnknownConversation => Self::Stranger,
            Reason::NotPermitted => Self::NotPermitted,
            Reason::ConversationClosed => Self::Closed,
            Reason::Blocked => Self::Blocked,
            Reason::UnknownMessage => Self::NoSuchMessage,
            Reason::EditTooLate => Self::TooLate,
            Reason::MessageDeleted => Self::Deleted,
            Reason::TooManyEdits => Self::TooManyEdits,
            _ => return None,
        })
    }

    /// The answer to whoever asked.
    pub fn problem(&self) -> Problem {
        let detail = match self {
            Self::Stranger => "there is no such conversation".to_owned(),
            Self::NotPermitted => "this side of a conversation may not do that".to_owned(),
            Self::Closed => "the conversation is closed: the business can reopen it".to_owned(),
            Self::Blocked => "the mobile user has blocked this conversation".to_owned(),
            Self::AssignedElsewhere(name) => format!("this conversation is assigned to business:{name}"),
            Self::NoSuchMessage => "the conversation has no such message".to_owned(),
            Self::NotYours => "only whoever wrote a message may edit or delete it".to_owned(),
            Self::TooLate => "the time in which this message could be edited or deleted is over".to_owned(),
            Self::Deleted => "the message is deleted".to_owned(),
            Self::TooManyEdits => "the message was edited as often as it may be".to_owned(),
        };
        Problem::new(self.code(), detail)
    }
}

/// The problem that a reason in the facts of a chat message or command stands for, for a door that waited for it; `None`
/// where the reason is none of chat's.
pub fn problem_of(reason: Reason) -> Option<Code> {
    Some(match reason {
        Reason::UnknownConversation | Reason::UnknownMessage => Code::NotFound,
        Reason::NotPermitted => Code::Forbidden,
        Reason::ConversationClosed => Code::ConversationClosed,
        Reason::Blocked => Code::Blocked,
        Reason::AssignedElsewhere => Code::AssignedElsewhere,
        Reason::EditTooLate => Code::EditTooLate,
        Reason::MessageDeleted => Code::MessageDeleted,
        Reason::TooManyEdits => Code::TooManyEdits,
        Reason::IdempotencyConflict => Code::IdempotencyConflict,
        _ => return None,
    })
}
