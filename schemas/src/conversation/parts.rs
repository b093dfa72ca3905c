//! What a conversation's row is made of: its sides, how it stands with each of them, and its version.

use serde::{Deserialize, Serialize};

use crate::{ids::Party, position::Epoch};

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Who works for the business.
    Business,
    /// The person behind the phone number.
    Mobile,
}

impl Side {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Business, Self::Mobile];

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::Business => Self::Mobile,
            Self::Mobile => Self::Business,
        }
    }

    /// The side of a user.
    pub fn of(party: &Party) -> Self {
        match party {
            Party::Mobile(_) => Self::Mobile,
            Party::Business(_) => Self::Business,
        }
    }
}

/// A number that grows by every change of a conversation and tells a late owner's change from the present one's: the epoch
/// of the owner stands above a count of changes that goes on across epochs. A store keeps the row with the larger one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Version(pub u64);

impl Version {
    /// 40 bits of changes: ten thousand a second for three years; 23 bits of epochs above them keep it positive as an `i64`.
    const BITS: u32 = 40;
    const CHANGES: u64 = (1 << Self::BITS) - 1;

    /// The one after this, by an owner of this epoch.
    pub fn next(self, epoch: Epoch) -> Self {
        let epoch = u64::from(epoch.0).min((1 << 23) - 1).max(self.0 >> Self::BITS);
        Self(epoch << Self::BITS | ((self.0 & Self::CHANGES) + 1).min(Self::CHANGES))
    }

    /// The same count under an owner of this epoch, where that is a newer one: below whatever that owner gives next.
    pub fn under(self, epoch: Epoch) -> Self {
        let epoch = u64::from(epoch.0).min((1 << 23) - 1);
        Self(self.0.max(epoch << Self::BITS | (self.0 & Self::CHANGES)))
    }

    /// The epoch of the owner that gave it.
    pub fn epoch(self) -> Epoch {
        Epoch(u32::try_from(self.0 >> Self::BITS).unwrap_or(u32::MAX))
    }
}

/// How a conversation stands with one of its sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Half {
    /// Messages ever addressed to it.
    pub to: u64,
    /// How many of them are read: the first so many.
    pub read: u64,
    /// The turn that the mark was put at.
    pub read_seq: u64,
    /// Up to which of them the other side was told so, durably: `Read` facts for those are in the log.
    pub told: u64,
    /// Whether it has put the conversation away; a new message brings it back.
    pub archived: bool,
}

impl Half {
    /// Messages that it has yet to read (P6).
    pub fn unread(&self) -> u64 {
        self.to.saturating_sub(self.read)
    }
}
