//! Facts: what happened to a message, written once each, and what they add up to.
//!
//! Facts travel on `outcomes`, are merged by the partition's owner and may come late, twice or in any order: [`State::merge`]
//! gives the same state whatever the order (R10.2), so nobody needs a lock.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{DeviceId, MessageId, Ref, Sender},
    position::{Inbox, Position},
    status::Status,
    tier::Attempt,
    time::Timestamp,
};

/// Why a message failed, or an attempt did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Devices kept connecting and none acknowledged.
    NoAck,
    /// The node that holds the session did not answer in time.
    NodeUnreachable,
    /// Its `expires_at` or its retention passed.
    Expired,
    /// Its sender took it back.
    Cancelled,
    /// A function dropped it.
    Dropped,
    /// The same key came before with another body.
    IdempotencyConflict,
    /// The record could not be read.
    Unreadable,
    /// What it asks is not permitted.
    NotPermitted,
    /// The recipient is not known and the tenant takes only known ones.
    UnknownRecipient,
    /// The content is not valid.
    InvalidContent,
    /// There is no such conversation, or its sender has no part in it.
    UnknownConversation,
    /// The conversation has no such message.
    UnknownMessage,
    /// The conversation is closed.
    ConversationClosed,
    /// The mobile user has blocked the conversation.
    Blocked,
    /// Somebody else answers for the business now.
    AssignedElsewhere,
    /// The time in which the message could be edited or deleted was over.
    EditTooLate,
    /// The message is deleted.
    MessageDeleted,
    /// The message was edited as often as it may be.
    TooManyEdits,
}

impl Reason {
    /// Whether another attempt may help. What R4.8 lists never is tried again.
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::NoAck | Self::NodeUnreachable)
    }

    /// The word on the wire.
    pub fn word(self) -> &'static str {
        match self {
            Self::NoAck => "no_ack",
            Self::NodeUnreachable => "node_unreachable",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::Dropped => "dropped",
            Self::IdempotencyConflict => "idempotency_conflict",
            Self::Unreadable => "unreadable",
            Self::NotPermitted => "not_permitted",
            Self::UnknownRecipient => "unknown_recipient",
            Self::InvalidContent => "invalid_content",
            Self::UnknownConversation => "unknown_conversation",
            Self::UnknownMessage => "unknown_message",
            Self::ConversationClosed => "conversation_closed",
            Self::Blocked => "blocked",
            Self::AssignedElsewhere => "assigned_elsewhere",
            Self::EditTooLate => "edit_too_late",
            Self::MessageDeleted => "message_deleted",
            Self::TooManyEdits => "too_many_edits",
        }
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// A session put it on its socket.
    Sent,
    /// Nobody was connected; it waits in the inbox.
    Parked,
    /// An attempt failed.
    AttemptFailed(Reason),
    /// A device acknowledged it.
    Delivered,
    /// A person opened it.
    Read,
    /// Given up.
    Failed(Reason),
    /// An administrator started a new round.
    Requeued,
    /// Its sender asks to take it back: the owner decides, and answers with `Failed(Cancelled)` or not at all (rule 9).
    CancelAsked,
}

impl What {
    /// The status this gives, if it gives one.
    pub fn status(self) -> Option<Status> {
        match self {
            Self::Sent => Some(Status::Sent),
            Self::Delivered => Some(Status::Delivered),
            Self::Read => Some(Status::Read),
            Self::Failed(_) => Some(Status::Failed),
            Self::Parked | Self::AttemptFailed(_) | Self::Requeued | Self::CancelAsked => None,
        }
    }
}

/// One thing that happened to one message: a record of `outcomes` holds a list of these, of one partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// The message.
    pub id: MessageId,
    /// The inbox it stands in.
    pub inbox: Inbox,
    /// Where it stands there; [`Position::START`] while it has no place.
    pub position: Position,
    /// Who sent it: who is told.
    pub from: Sender,
    /// The sender's own name for it.
    pub client_ref: Option<Ref>,
    /// When it happened.
    pub at: Timestamp,
    /// Which round: 0, and one more for every requeue.
    pub round: u8,
    /// Which attempt of that round.
    pub attempt: Attempt,
    /// The device it happened on.
    pub device: Option<DeviceId>,
    /// What happened.
    pub what: What,
}

/// A fact as a message keeps it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Past {
    /// When.
    pub at: Timestamp,
    /// What.
    pub what: What,
    /// In which round.
    pub round: u8,
    /// In which attempt.
    pub attempt: Attempt,
    /// On which device.
    pub device: Option<DeviceId>,
}

impl From<&Fact> for Past {
    fn from(fact: &Fact) -> Self {
        Self { at: fact.at, what: fact.what, round: fact.round, attempt: fact.attempt, device: fact.device.clone() }
    }
}

/// What all facts about one message add up to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct State {
    /// Its facts, oldest first; of equal facts the first one known.
    pub past: Vec<Past>,
}

impl State {
    /// 64: ten devices' sendings and acknowledgements and every attempt of two rounds fit; past that what repeats a status is
    /// dropped, latest first, then the facts that give none. The status stays exact, and so does the attempt (P4): how
    /// often it failed outlives the many devices it was sent to.
    pub const MAX_PAST: usize = 64;

    /// Adds a fact. Says whether the status changed. Merging the same facts in any order gives the same status and times
    /// (as long as [`State::MAX_PAST`] is not passed).
    pub fn merge(&mut self, fact: Past) -> bool {
        let before = self.status();
        let twin = |p: &Past| {
            p.what == fact.what && p.round == fact.round && p.attempt == fact.attempt && p.device == fact.device
        };
        match self.past.iter().position(twin) {
            // Told twice: the earlier time is the true one.
            Some(i) if fact.at < self.past[i].at => {
                self.past[i].at = fact.at;
                self.past.sort();
            }
            Some(_) => {}
            None => {
                let i = self.past.partition_point(|p| *p < fact);
                self.past.insert(i, fact);
            }
        }
        if self.past.len() > Self::MAX_PAST {
            let repeats = |p: &Past| p.what.status().is_some_and(|status| self.first(status) != Some(p));
            let spare = self
                .past
                .iter()
                .rposition(repeats)
                .or_else(|| self.past.iter().position(|p| p.what.status().is_none()));
            if let Some(i) = spare {
                self.past.remove(i);
            }
        }
        self.status() != before
    }

    /// The highest rank any fact has given.
    pub fn status(&self) -> Status {
        self.past.iter().filter_map(|p| p.what.status()).max().unwrap_or_default()
    }

    /// The first fact that gave this status.
    pub fn first(&self, status: Status) -> Option<&Past> {
        self.past.iter().find(|p| p.what.status() == Some(status))
    }

    /// When the present status began, if any fact gave it.
    pub fn status_at(&self) -> Option<Timestamp> {
        self.first(self.status()).map(|p| p.at)
    }

    /// Why it failed, while that is where it stands.
    pub fn reason(&self) -> Option<Reason> {
        match self.first(self.status())?.what {
            What::Failed(reason) => Some(reason),
            _ => None,
        }
    }

    /// The present round.
    pub fn round(&self) -> u8 {
        self.past.iter().map(|p| p.round).max().unwrap_or(0)
    }

    /// The attempt that is due in the present round: one more than the last that failed (P4: it only grows).
    pub fn attempt(&self) -> Attempt {
        let round = self.round();
        let failed = self.past.iter().filter(|p| p.round == round && matches!(p.what, What::AttemptFailed(_)));
        failed.map(|p| Attempt(p.attempt.0.saturating_add(1))).max().unwrap_or_default().min(Attempt::LAST)
    }

    /// Whether nothing more is to be tried in this round: the recipient has it, or the round ended in failure.
    pub fn is_done(&self, round: u8) -> bool {
        self.past.iter().any(|p| match p.what {
            What::Delivered | What::Read => true,
            What::Failed(_) => p.round >= round,
            _ => false,
        })
    }

    /// Whether nothing more is to be tried: its present round is done. One that was requeued stays Failed meanwhile.
    pub fn is_over(&self) -> bool {
        self.is_done(self.round())
    }

    /// Whether its entry is passed over in catch-up: expired or cancelled before anyone had it.
    pub fn is_withdrawn(&self) -> bool {
        self.status() == Status::Failed
            && matches!(
                self.reason(),
                Some(Reason::Expired | Reason::Cancelled | Reason::Dropped | Reason::IdempotencyConflict)
            )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whats() -> impl Strategy<Value = What> {
        prop_oneof![
            Just(What::Sent),
            Just(What::Parked),
            Just(What::Delivered),
            Just(What::Read),
            Just(What::AttemptFailed(Reason::NoAck)),
            Just(What::Failed(Reason::NoAck)),
            Just(What::Failed(Reason::Expired)),
        ]
    }

    fn pasts() -> impl Strategy<Value = Vec<Past>> {
        let past = (0i64..50, whats(), 0u8..2, 0u8..7).prop_map(|(at, what, round, attempt)| Past {
            at: Timestamp(at),
            what,
            round,
            attempt: Attempt(attempt),
            device: None,
        });
        proptest::collection::vec(past, 0..30)
    }

    fn merged<'a>(facts: impl IntoIterator<Item = &'a Past>) -> State {
        let mut state = State::default();
        for fact in facts {
            state.merge(fact.clone());
        }
        state
    }

    proptest! {
        #[test]
        fn p3_status_never_goes_back(facts in pasts()) {
            let mut state = State::default();
            for fact in facts {
                let before = state.status();
                let moved = state.merge(fact);
                prop_assert_eq!(moved, before.may_become(state.status()));
                prop_assert!(state.status() >= before);
            }
        }

        #[test]
        fn p8_the_same_fact_twice_is_the_same_as_once(facts in pasts()) {
            prop_assert_eq!(merged(facts.iter().chain(facts.iter())), merged(facts.iter()));
        }

        #[test]
        fn the_order_of_arrival_does_not_matter(facts in pasts(), seed in any::<u64>()) {
            let mut shuffled = facts.clone();
            let len = shuffled.len();
            for i in 1..len { shuffled.swap(i, (seed.rotate_left(i as u32) % (i as u64 + 1)) as usize); }
            prop_assert_eq!(merged(&facts), merged(&shuffled));
        }

        #[test]
        fn p4_the_attempt_only_grows_within_a_round(facts in pasts()) {
            let mut state = State::default();
            for fact in facts {
                let (round, attempt) = (state.round(), state.attempt());
                state.merge(fact);
                prop_assert!(state.round() > round || state.attempt() >= attempt);
                prop_assert!(state.attempt() <= Attempt::LAST);
            }
        }
    }

    #[test]
    fn p4_attempts_are_known_however_many_devices_it_was_sent_to() {
        let mut state = State::default();
        for attempt in (0..=6).map(Attempt) {
            for device in 0..20 {
                let device = DeviceId::parse(&format!("d{device}")).ok();
                state.merge(Past { at: Timestamp(1), what: What::Sent, round: 0, attempt, device });
            }
            assert_eq!(state.attempt(), attempt);
            let what = What::AttemptFailed(Reason::NoAck);
            state.merge(Past { at: Timestamp(2), what, round: 0, attempt, device: None });
        }
        assert_eq!((state.past.len(), state.status()), (State::MAX_PAST, Status::Sent));
    }

    #[test]
    fn a_late_acknowledgement_corrects_a_failure() {
        let past = |at, what| Past { at: Timestamp(at), what, round: 0, attempt: Attempt(0), device: None };
        let state = merged(&[past(1, What::Sent), past(5, What::Failed(Reason::NoAck)), past(9, What::Delivered)]);
        assert_eq!((state.status(), state.status_at(), state.reason()), (Status::Delivered, Some(Timestamp(9)), None));
    }
}
