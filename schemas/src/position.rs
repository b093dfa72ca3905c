//! Places in an inbox.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{ids::UserId, topic::Partition};

/// Who owned a partition when: raised by every takeover, so that a late owner's writes are told from the present one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Epoch(pub u32);

/// A place in one inbox. `n` is dense: the first is 1 and each entry stands one after the entry before it, across epochs
/// too. Order is by epoch, then by `n`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
pub struct Position {
    /// The epoch of the owner that gave it.
    pub epoch: Epoch,
    /// Its number.
    pub n: u64,
}

impl Position {
    /// Before every entry.
    pub const START: Self = Self { epoch: Epoch(0), n: 0 };

    /// The place after this one, given by an owner of this epoch.
    pub fn next(self, epoch: Epoch) -> Self {
        Self { epoch, n: self.n + 1 }
    }

    /// Twelve bytes that sort as positions do.
    pub fn to_bytes(self) -> [u8; 12] {
        let mut out = [0; 12];
        out[..4].copy_from_slice(&self.epoch.0.to_be_bytes());
        out[4..].copy_from_slice(&self.n.to_be_bytes());
        out
    }

    /// Reads [`Position::to_bytes`].
    pub fn from_bytes(bytes: [u8; 12]) -> Self {
        let [a, b, c, d, n @ ..] = bytes;
        Self { epoch: Epoch(u32::from_be_bytes([a, b, c, d])), n: u64::from_be_bytes(n) }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch.0, self.n)
    }
}

/// One inbox: a user's entries of one partition. A mobile user has one, in its own partition, so it has one writer; a
/// business user is written to from many and has one inbox per partition.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Inbox {
    /// Whose it is.
    pub user: UserId,
    /// The partition that writes it.
    pub partition: Partition,
}
