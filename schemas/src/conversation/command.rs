//! Commands: everything that is asked of a conversation and is no message. They ride lane High of the conversation's
//! partition, and its owner applies them in the order of the log.

use serde::{Deserialize, Serialize};

use super::{Act, Conversation, Half, Note, Original, Side};
use crate::{
    ids::{ConversationId, MessageId, Name, Party, Ref, Sender, Tenant, UserId},
    message::{Content, ContentType, Kind, Message, Priority},
    phone::Phone,
    time::Timestamp,
    topic::Partition,
};

/// The two of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Pair {
    /// Whose conversation it is.
    pub tenant: Tenant,
    /// Who it began with on the side of the business.
    pub business: Name,
    /// The mobile user.
    pub mobile: Phone,
}

impl Pair {
    /// The one conversation of the two (P2).
    pub fn id(&self) -> ConversationId {
        ConversationId::of_pair(&self.tenant, &self.business, self.mobile)
    }

    /// The mobile user.
    pub fn mobile(&self) -> UserId {
        UserId::mobile(self.tenant.clone(), self.mobile)
    }

    /// The business user.
    pub fn business(&self) -> UserId {
        UserId::business(self.tenant.clone(), self.business.clone())
    }

    /// The name of what somebody says or asks here under a key of its own (a `ref`, an idempotency key): repeats are one, and
    /// other people's keys are other names.
    pub fn name(&self, from: &Sender, key: &str) -> MessageId {
        MessageId::of_key(&self.tenant, &format!("chat/{}/{from}", self.business), key, &self.mobile())
    }

    /// The partition that writes it, of `count`.
    pub fn partition(&self, count: u16) -> Partition {
        Partition::of(&self.mobile(), count)
    }

    /// The pair of a person and whoever it is to be with; `None`: not one of each side.
    pub fn of(tenant: &Tenant, one: &Party, other: &Party) -> Option<Self> {
        match (one, other) {
            (Party::Business(business), Party::Mobile(mobile)) | (Party::Mobile(mobile), Party::Business(business)) => {
                Some(Self { tenant: tenant.clone(), business: business.clone(), mobile: *mobile })
            }
            _ => None,
        }
    }
}

/// Up to where something is read: a turn's number, or the name of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UpTo {
    /// The number of a turn; past the end means the end.
    Seq(u64),
    /// A message of the conversation.
    Id(MessageId),
}

// In JSON a number or a UUID as text; internally a variant. Serde's `untagged` would not do for both.
impl Serialize for UpTo {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Seq(seq) if s.is_human_readable() => s.serialize_u64(*seq),
            Self::Id(id) if s.is_human_readable() => id.serialize(s),
            Self::Seq(seq) => (Some(*seq), None::<MessageId>).serialize(s),
            Self::Id(id) => (None::<u64>, Some(*id)).serialize(s),
        }
    }
}

impl<'de> Deserialize<'de> for UpTo {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Wire {
            Seq(u64),
            Id(MessageId),
        }
        if d.is_human_readable() {
            return Ok(match Wire::deserialize(d)? {
                Wire::Seq(seq) => Self::Seq(seq),
                Wire::Id(id) => Self::Id(id),
            });
        }
        match <(Option<u64>, Option<MessageId>)>::deserialize(d)? {
            (Some(seq), _) => Ok(Self::Seq(seq)),
            (None, Some(id)) => Ok(Self::Id(id)),
            (None, None) => Err(serde::de::Error::custom("neither a number nor a message")),
        }
    }
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// The conversation is to exist.
    Open,
    /// An own message is to say something else.
    Edit {
        /// Which.
        of: MessageId,
        /// What it says now.
        content: Content,
    },
    /// An own message is taken back.
    Delete {
        /// Which.
        of: MessageId,
    },
    /// Everything addressed to one's side up to here is read.
    Read {
        /// Up to here.
        up_to: UpTo,
    },
    /// Put away (`true`), or taken out again.
    Archive(bool),
    /// Nobody is to write.
    Close,
    /// They may again.
    Reopen,
    /// The business is not to write (`true`), or may again.
    Block(bool),
    /// Somebody else is to answer for the business.
    Assign {
        /// Who.
        to: Name,
    },
}

impl Command {
    /// The word in logs and metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Edit { .. } => "edit",
            Self::Delete { .. } => "delete",
            Self::Read { .. } => "read",
            Self::Archive(true) => "archive",
            Self::Archive(false) => "unarchive",
            Self::Close => "close",
            Self::Reopen => "reopen",
            Self::Block(true) => "block",
            Self::Block(false) => "unblock",
            Self::Assign { .. } => "assign",
        }
    }

    /// Whether it leaves something under its own name, so that a repeat is known by it. The others say what is to be so, and
    /// saying it twice changes nothing.
    pub fn is_named(&self) -> bool {
        !matches!(self, Self::Open | Self::Read { .. })
    }

    /// The older message it is about.
    pub fn about(&self) -> Option<MessageId> {
        match self {
            Self::Edit { of, .. } | Self::Delete { of } | Self::Read { up_to: UpTo::Id(of) } => Some(*of),
            _ => None,
        }
    }

    /// The note that it makes for one's own devices alone, if it is of that kind.
    pub fn own(&self) -> Option<Note> {
        match self {
            Self::Archive(true) => Some(Note::Archived),
            Self::Archive(false) => Some(Note::Unarchived),
            Self::Block(true) => Some(Note::Blocked),
            Self::Block(false) => Some(Note::Unblocked),
            _ => None,
        }
    }

    /// As an act of [`Conversation::apply`]. `original`: the message it is about; `mark`: what `Read` stands for
    /// and at which turn, as [`ChatCommand::mark`] has it.
    pub fn act<'a>(&'a self, original: Option<&'a Original>, (mark, seq): (u64, u64)) -> Act<'a> {
        match self {
            Self::Open => Act::Open,
            Self::Edit { content, .. } => Act::Edit { original, content },
            Self::Delete { .. } => Act::Delete { original },
            Self::Read { .. } => Act::Read { mark, seq },
            Self::Archive(archived) => Act::Archive(*archived),
            Self::Close => Act::Close,
            Self::Reopen => Act::Reopen,
            Self::Block(block) => Act::Block(*block),
            Self::Assign { to } => Act::Assign(to.clone()),
        }
    }
}

/// A command as it stands in the log. Refused commands become `Failed` facts under the command's name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatCommand {
    /// Its name, also that of the edit, deletion or note it makes. From a key where its sender gave one, so that a repeat
    /// is one ([`MessageId::of_key`] with the conversation's mobile user as recipient).
    pub id: MessageId,
    /// The conversation, by its pair: what `Open` makes, and where the owner is found.
    pub pair: Pair,
    /// Who asks.
    pub by: Sender,
    /// What.
    pub command: Command,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// The sender's own name for it.
    pub client_ref: Option<Ref>,
    /// The W3C trace it belongs to.
    pub trace: Option<String>,
    /// Of what was asked: tells whether a repeated key repeats the command.
    pub fingerprint: [u8; 16],
}

impl ChatCommand {
    /// Whether the conversation shows that it was done, or was so already: what a door waits for (rule 14). Edits,
    /// deletions and refusals do not show there: they are found by the command's name, as messages and their states are.
    /// `mark`: what `Read` stands for, as [`ChatCommand::mark`] has it.
    pub fn shows(&self, conversation: &Conversation, mark: u64) -> bool {
        let side = self.side();
        match &self.command {
            Command::Open => true,
            Command::Edit { .. } | Command::Delete { .. } => false,
            Command::Read { .. } => {
                side.is_some_and(|side| conversation.half(side).read >= mark.min(conversation.half(side).to))
            }
            Command::Archive(archived) => side.is_some_and(|side| conversation.half(side).archived == *archived),
            Command::Close => conversation.closed.is_some(),
            Command::Reopen => conversation.closed.is_none(),
            Command::Block(block) => conversation.blocked == *block,
            Command::Assign { to } => conversation.assigned_to == *to,
        }
    }

    /// The side that asks; `None`: a server key.
    pub fn side(&self) -> Option<Side> {
        match &self.by {
            Sender::Server => None,
            Sender::User(party) => Some(Side::of(party)),
        }
    }

    /// The mark that reading up to a turn stands for: everything, where that is the last one or past it; else what that turn
    /// says was addressed to the side up to there.
    pub fn mark(side: Side, half: &Half, last_seq: u64, up_to: u64, counts: Option<(u64, u64)>) -> u64 {
        match counts {
            _ if up_to >= last_seq => half.to,
            Some((to_mobile, _)) if side == Side::Mobile => to_mobile,
            Some((_, to_business)) => to_business,
            None => 0,
        }
    }

    /// The message that tells of it in inboxes and in the thread. `note`: what [`super::Change`] said.
    pub fn message(&self, conversation: &Conversation, note: Option<&Note>) -> Message {
        let id = conversation.id;
        let (kind, content) = match (&self.command, note) {
            (Command::Edit { of, content }, _) => (Kind::Edit(id, *of), content.clone()),
            (Command::Delete { of }, _) => (Kind::Delete(id, *of), Content::empty()),
            (_, note) => (Kind::Note(id), note.map_or_else(Content::empty, noted)),
        };
        let to = match self.side() {
            Some(side) if self.command.own().is_some() => conversation.user(side),
            Some(side) => conversation.user(side.other()),
            None => conversation.user(Side::Mobile),
        };
        Message {
            id: self.id,
            kind,
            from: self.by.clone(),
            to,
            priority: Priority::High,
            content,
            client_ref: self.client_ref.clone(),
            metadata: None,
            accepted_at: self.accepted_at,
            send_at: None,
            expires_at: None,
            broadcast: None,
            trace: self.trace.clone(),
            fingerprint: self.fingerprint,
        }
    }
}

fn noted(note: &Note) -> Content {
    let body = serde_json::to_string(note).unwrap_or_default();
    Content { content_type: ContentType::Json, subject: None, body }
}

/// The pair of the conversation that a first message opens: its own two. `None`: the conversation that the message names is
/// another pair's, so it must be there already.
pub fn first_of(message: &Message) -> Option<Pair> {
    let (Kind::Chat(id), Sender::User(from)) = (message.kind, &message.from) else { return None };
    Pair::of(&message.to.tenant, from, &message.to.party).filter(|pair| pair.id() == id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn asked(command: Command) -> ChatCommand {
        let pair = Pair {
            tenant: "acme".parse().unwrap(),
            business: "sara".parse().unwrap(),
            mobile: Phone::from_stored("+962790000001").unwrap(),
        };
        let (by, fingerprint): (Sender, _) = ("business:sara".parse().unwrap(), [1; 16]);
        let id = pair.name(&by, "k");
        ChatCommand { id, pair, by, command, accepted_at: Timestamp(1), client_ref: None, trace: None, fingerprint }
    }

    proptest! {
        #[test]
        fn commands_round_trip(seq in any::<u64>(), n in any::<u128>(), archived in any::<bool>()) {
            let id = MessageId(uuid::Uuid::from_u128(n));
            for command in [
                Command::Read { up_to: UpTo::Seq(seq) },
                Command::Read { up_to: UpTo::Id(id) },
                Command::Archive(archived),
                Command::Edit { of: id, content: Content::empty() },
                Command::Assign { to: Name::parse("omar").unwrap() },
            ] {
                let asked = asked(command);
                let bytes = crate::codec::encode(&asked);
                prop_assert_eq!(&crate::codec::decode::<ChatCommand>(&bytes).unwrap(), &asked);
                let json = serde_json::to_string(&asked).unwrap();
                prop_assert_eq!(&serde_json::from_str::<ChatCommand>(&json).unwrap(), &asked);
            }
        }
    }

    #[test]
    fn a_key_names_one_thing_of_one_person_in_one_conversation() {
        let (one, other) = (asked(Command::Open), asked(Command::Open).pair);
        assert_eq!(one.id, other.name(&one.by, "k"));
        assert!(one.id.is_keyed());
        let omar = Pair { business: "omar".parse().unwrap(), ..other.clone() };
        let mobile: Sender = "+962790000001".parse().unwrap();
        assert!(
            [omar.name(&one.by, "k"), other.name(&mobile, "k"), other.name(&one.by, "l")]
                .iter()
                .all(|id| *id != one.id)
        );
    }
}
