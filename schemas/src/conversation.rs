//! Conversations: one thread a pair, and every rule of who may what in it. Pure and total: time, and what history knows of
//! an older message, are arguments.
//!
//! A conversation has one writer, the owner of its mobile user's partition, who applies what the lane High brings in the
//! order of the log ([`Conversation::apply`]): so two creators at once make one (P2), order is one for everyone, and counts
//! need no lock. Counts are arithmetic (rule 15): each side has the number of messages ever addressed to it and a mark on
//! that sequence; unread is their difference (P6). A mark only grows and never passes what was written.
//!
//! | | mobile user | who it is assigned to | who it began with | server key | anyone else |
//! |---|---|---|---|---|---|
//! | write, edit, delete | unless closed | unless closed or blocked | `AssignedElsewhere` | `NotPermitted` | `Stranger` |
//! | read, archive | yes | yes | `AssignedElsewhere` | `NotPermitted` | `Stranger` |
//! | close, reopen | `NotPermitted` | yes | `AssignedElsewhere` | yes | `Stranger` |
//! | assign | `NotPermitted` | yes | yes | yes | `Stranger` |
//! | block, unblock | yes | `NotPermitted` | `NotPermitted` | `NotPermitted` | `Stranger` |
//! | open | yes | yes | yes | `NotPermitted` | `Stranger` |

mod command;
mod parts;
mod refused;
mod turn;

use serde::{Deserialize, Serialize};

pub use command::{ChatCommand, Command, Pair, UpTo, first_of};
pub use parts::{Applied, Half, Side, Version};
pub use refused::{Refused, problem_of};
pub use turn::{Note, Original, Shown, Turn};

use crate::{
    ids::{ConversationId, MessageId, Name, Party, Sender, UserId},
    limits::ChatLimits,
    message::Content,
    position::Epoch,
    time::Timestamp,
    topic::Partition,
};

/// Who closed it, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    /// When.
    pub at: Timestamp,
    /// Who.
    pub by: Sender,
}

/// The last message, as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preview {
    /// The message.
    pub id: MessageId,
    /// Who wrote it.
    pub from: Sender,
    /// Its first characters ([`ChatLimits::preview_chars`]); `None` once it is deleted.
    pub text: Option<String>,
    /// When it was recorded.
    pub at: Timestamp,
}

/// A conversation, as its owner writes it: an absolute row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conversation {
    /// Its name, derived from its pair.
    pub id: ConversationId,
    /// The two it began with; they never change.
    pub pair: Pair,
    /// Who writes it: the partition of its mobile user.
    pub partition: Partition,
    /// Grows by every change.
    pub version: Version,
    /// Who answers for the business now.
    pub assigned_to: Name,
    /// When it was opened.
    pub created_at: Timestamp,
    /// When its last message or note was recorded; never goes back.
    pub last_at: Timestamp,
    /// The number of its last turn; 0 while there is none. Turns are numbered densely from 1.
    pub last_seq: u64,
    /// How it stands with the mobile user.
    pub mobile: Half,
    /// How it stands with the business.
    pub business: Half,
    /// Set while it is closed: nobody writes until it is reopened.
    pub closed: Option<Closed>,
    /// Whether the mobile user refuses what the business writes.
    pub blocked: bool,
    /// The last message.
    pub preview: Option<Preview>,
    /// How far its owner has come in the lane. Its owner's alone: not of the form in which a row is shown or cached, and kept
    /// beside it by a store ([`Conversation::kept`]).
    #[serde(skip)]
    pub applied: Option<Applied>,
}

/// What is done in a conversation, with what has to be known for it.
#[derive(Debug, Clone, PartialEq)]
pub enum Act<'a> {
    /// Only that it exists.
    Open,
    /// A message.
    Message {
        /// Its name.
        id: MessageId,
        /// What it says.
        content: &'a Content,
    },
    /// Another text for an older message.
    Edit {
        /// The older one, if this conversation has it.
        original: Option<&'a Original>,
        /// What it says now.
        content: &'a Content,
    },
    /// An older message is taken back.
    Delete {
        /// The older one, if this conversation has it.
        original: Option<&'a Original>,
    },
    /// Everything addressed to one's side is read up to this number of its sequence; more than there is means all.
    Read {
        /// The mark.
        mark: u64,
        /// The turn it was put at.
        seq: u64,
    },
    /// Put away, or taken out again.
    Archive(bool),
    /// Nobody writes any more.
    Close,
    /// They may again.
    Reopen,
    /// The business may not write, or may again.
    Block(bool),
    /// Somebody else answers for the business.
    Assign(Name),
}

/// What a permitted act came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It was so already: nothing is to be written.
    Nothing,
    /// The row alone.
    Row,
    /// The row: this side has read more, and the other is to be told of its messages with these numbers.
    Marked {
        /// Who read.
        side: Side,
        /// Just after this number of the side's sequence …
        after: u64,
        /// … up to this one …
        to: u64,
        /// … which stand at or before this turn.
        seq: u64,
    },
    /// The row and a turn, the one with the number `last_seq`: an entry for both sides.
    Turn(Option<Note>),
    /// The row, and an entry for the other devices of whoever did it.
    Own(Note),
}

impl Conversation {
    /// A new one. Nothing has been said in it.
    pub fn open(pair: Pair, partition: Partition, epoch: Epoch, now: Timestamp) -> Self {
        Self {
            id: pair.id(),
            partition,
            version: Version::default().next(epoch),
            assigned_to: pair.business.clone(),
            created_at: now,
            last_at: now,
            last_seq: 0,
            mobile: Half::default(),
            business: Half::default(),
            closed: None,
            blocked: false,
            preview: None,
            applied: None,
            pair,
        }
    }

    /// As a store keeps it: with what it does not show.
    pub fn kept(&self) -> (&Self, Option<Applied>) {
        (self, self.applied)
    }

    /// Reads [`Self::kept`].
    pub fn of_kept((row, applied): (Self, Option<Applied>)) -> Self {
        Self { applied, ..row }
    }

    /// How it stands with a side.
    pub fn half(&self, side: Side) -> &Half {
        match side {
            Side::Business => &self.business,
            Side::Mobile => &self.mobile,
        }
    }

    fn half_mut(&mut self, side: Side) -> &mut Half {
        match side {
            Side::Business => &mut self.business,
            Side::Mobile => &mut self.mobile,
        }
    }

    /// Who is there for a side now: in whose list it stands, and who receives what the other side writes.
    pub fn user(&self, side: Side) -> UserId {
        let party = match side {
            Side::Business => Party::Business(self.assigned_to.clone()),
            Side::Mobile => Party::Mobile(self.pair.mobile),
        };
        UserId { tenant: self.pair.tenant.clone(), party }
    }

    /// The side on which a user may see it: its two sides, and whoever it began with (R11.1).
    pub fn side_of(&self, user: &UserId) -> Option<Side> {
        (user.tenant == self.pair.tenant && self.is_party(&user.party)).then(|| Side::of(&user.party))
    }

    fn is_party(&self, party: &Party) -> bool {
        match party {
            Party::Mobile(phone) => *phone == self.pair.mobile,
            Party::Business(name) => *name == self.assigned_to || *name == self.pair.business,
        }
    }

    /// Whether somebody may act for a side: the person on it, and nobody else of the business.
    fn acting(&self, by: &Sender) -> Result<Side, Refused> {
        match by {
            Sender::Server => Err(Refused::NotPermitted),
            Sender::User(party) if !self.is_party(party) => Err(Refused::Stranger),
            Sender::User(Party::Business(name)) if *name != self.assigned_to => {
                Err(Refused::AssignedElsewhere(self.assigned_to.clone()))
            }
            Sender::User(party) => Ok(Side::of(party)),
        }
    }

    /// Whether somebody may act for the business as a whole.
    fn managing(&self, by: &Sender) -> Result<(), Refused> {
        match by {
            Sender::Server => Ok(()),
            by => match self.acting(by)? {
                Side::Business => Ok(()),
                Side::Mobile => Err(Refused::NotPermitted),
            },
        }
    }

    fn writing(&self, by: &Sender) -> Result<Side, Refused> {
        let side = self.acting(by)?;
        if self.closed.is_some() {
            return Err(Refused::Closed);
        }
        if side == Side::Business && self.blocked {
            return Err(Refused::Blocked);
        }
        Ok(side)
    }

    /// Applies an act, in the order of the log. Refused: nothing is changed. Else the row has a larger version, unless
    /// nothing changed.
    pub fn apply(
        &mut self,
        by: &Sender,
        act: &Act<'_>,
        limits: &ChatLimits,
        epoch: Epoch,
        now: Timestamp,
    ) -> Result<Change, Refused> {
        let change = match act {
            Act::Open => match by {
                Sender::User(party) if self.is_party(party) => Change::Nothing,
                Sender::User(_) => return Err(Refused::Stranger),
                Sender::Server => return Err(Refused::NotPermitted),
            },
            Act::Message { id, content } => {
                let side = self.writing(by)?;
                self.half_mut(side.other()).to += 1;
                self.half_mut(Side::Business).archived = false;
                self.half_mut(Side::Mobile).archived = false;
                let text = Some(preview(&content.body, limits));
                self.preview = Some(Preview { id: *id, from: by.clone(), text, at: now });
                self.turn(now, true, None)
            }
            Act::Edit { original, content } => {
                let original = self.own(by, *original, limits, now)?;
                if original.deleted {
                    return Err(Refused::Deleted);
                }
                if original.edits >= limits.edits {
                    return Err(Refused::TooManyEdits);
                }
                self.reword(original.id, Some(preview(&content.body, limits)));
                self.turn(now, false, None)
            }
            Act::Delete { original } => {
                let original = self.own(by, *original, limits, now)?;
                if original.deleted {
                    return Ok(Change::Nothing);
                }
                self.reword(original.id, None);
                self.turn(now, false, None)
            }
            Act::Read { mark, seq } => {
                let side = self.acting(by)?;
                let seq = (*seq).min(self.last_seq);
                let half = self.half_mut(side);
                let (after, to) = (half.read, (*mark).min(half.to));
                if to <= after {
                    return Ok(Change::Nothing);
                }
                half.read = to;
                half.read_seq = half.read_seq.max(seq);
                Change::Marked { side, after, to, seq }
            }
            Act::Archive(archived) => {
                let side = self.acting(by)?;
                let half = self.half_mut(side);
                if half.archived == *archived {
                    return Ok(Change::Nothing);
                }
                half.archived = *archived;
                Change::Own(if *archived { Note::Archived } else { Note::Unarchived })
            }
            Act::Close => {
                self.managing(by)?;
                if self.closed.is_some() {
                    return Ok(Change::Nothing);
                }
                self.closed = Some(Closed { at: now, by: by.clone() });
                self.turn(now, true, Some(Note::Closed))
            }
            Act::Reopen => {
                self.managing(by)?;
                if self.closed.take().is_none() {
                    return Ok(Change::Nothing);
                }
                self.turn(now, true, Some(Note::Reopened))
            }
            Act::Block(block) => {
                match by {
                    Sender::User(party) if !self.is_party(party) => return Err(Refused::Stranger),
                    Sender::User(Party::Mobile(_)) => {}
                    _ => return Err(Refused::NotPermitted),
                }
                if self.blocked == *block {
                    return Ok(Change::Nothing);
                }
                self.blocked = *block;
                Change::Own(if *block { Note::Blocked } else { Note::Unblocked })
            }
            Act::Assign(to) => {
                match by {
                    // Whoever it began with may take it back, or hand it on.
                    Sender::User(Party::Business(name)) if *name == self.pair.business => {}
                    by => self.managing(by)?,
                }
                if *to == self.assigned_to {
                    return Ok(Change::Nothing);
                }
                let from = std::mem::replace(&mut self.assigned_to, to.clone());
                // It is new to whoever has it now.
                self.business.archived = false;
                self.turn(now, true, Some(Note::Assigned { from, to: to.clone() }))
            }
        };
        if change != Change::Nothing {
            self.version = self.version.next(epoch);
        }
        Ok(change)
    }

    /// The other side was told what this one has read, durably. The next row that is written says so; it is no change.
    pub fn told(&mut self, side: Side, up_to: u64) {
        let half = self.half_mut(side);
        half.told = half.told.max(up_to.min(half.read));
    }

    fn turn(&mut self, now: Timestamp, moves: bool, note: Option<Note>) -> Change {
        self.last_seq += 1;
        if moves {
            self.last_at = self.last_at.max(now);
        }
        Change::Turn(note)
    }

    /// An older message that is one's own and young enough.
    fn own<'a>(
        &self,
        by: &Sender,
        original: Option<&'a Original>,
        limits: &ChatLimits,
        now: Timestamp,
    ) -> Result<&'a Original, Refused> {
        self.writing(by)?;
        let original = original.ok_or(Refused::NoSuchMessage)?;
        if original.conversation != self.id {
            return Err(Refused::NoSuchMessage);
        }
        if original.from != *by {
            return Err(Refused::NotYours);
        }
        if now.ms_since(original.at) > limits.edit_ms {
            return Err(Refused::TooLate);
        }
        Ok(original)
    }

    fn reword(&mut self, id: MessageId, text: Option<String>) {
        if let Some(preview) = self.preview.as_mut().filter(|preview| preview.id == id) {
            preview.text = text;
        }
    }

    /// Takes from the counts what retention removed: what nobody can read any more is not unread, and is not shown.
    pub fn forget(&mut self, up_to: u64, to_mobile: u64, to_business: u64) {
        self.mobile.read = self.mobile.read.max(to_mobile.min(self.mobile.to));
        self.business.read = self.business.read.max(to_business.min(self.business.to));
        if up_to >= self.last_seq {
            self.preview = None;
        }
    }
}

fn preview(body: &str, limits: &ChatLimits) -> String {
    body.chars().take(limits.preview_chars).collect()
}

#[cfg(test)]
mod tests;
