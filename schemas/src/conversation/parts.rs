//! What a conversation's row is made of: its sides, how it stands with each of them, and its version.

use serde::{Deserialize, Serialize};

use crate::{ids::Party, position::Epoch, time::Timestamp, topic::Offset};

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

/// How far the lane was applied to a conversation: the last of its records that changed the row. Whatever of this conversation
/// stands before it in the lane was decided, also what changed nothing or was refused and left no trace, so that it is not
/// decided anew when it is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Applied {
    /// Where it stands.
    pub offset: Offset,
    /// The latest moment in which something that was applied so far was accepted: a lane that was made anew, and counts from
    /// zero again, brings what is younger.
    pub accepted_at: Timestamp,
}

impl Applied {
    /// Whether what stands there, and was accepted then, was decided. `skew_ms`: by how much the clocks of doors may differ.
    pub fn covers(self, offset: Offset, accepted_at: Timestamp, skew_ms: u64) -> bool {
        offset <= self.offset && accepted_at <= self.accepted_at.plus_ms(skew_ms)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_before_it_is_covered_and_what_is_too_young_is_not() {
        let applied = Applied { offset: Offset(7), accepted_at: Timestamp(1_000) };
        for (offset, at, covered) in
            [(7, 1_000, true), (0, 1_500, true), (8, 900, false), (3, 1_501, false), (7, i64::MIN, true)]
        {
            assert_eq!(applied.covers(Offset(offset), Timestamp(at), 500), covered, "{offset} at {at}");
        }
    }
}
