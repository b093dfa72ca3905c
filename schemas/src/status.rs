//! Where a message stands, and the only moves it can make.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A message's status, in order of rank: it is the highest rank any fact has given it and never goes back. A late
/// acknowledgement corrects a failure, because `Delivered` outranks `Failed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Durable; the recipient is not reached yet (R9.1).
    #[default]
    Pending,
    /// Handed to a connected device's session (R9.2).
    Sent,
    /// Given up, with a reason (R9.5).
    Failed,
    /// A device acknowledged it (R9.3).
    Delivered,
    /// A person opened it (R9.4).
    Read,
}

impl Status {
    /// All of them, lowest rank first.
    pub const ALL: [Self; 5] = [Self::Pending, Self::Sent, Self::Failed, Self::Delivered, Self::Read];

    /// Whether a message that stands here may come to stand at `next` (P3).
    pub fn may_become(self, next: Self) -> bool {
        next > self
    }

    /// Whether the recipient has it, so that nothing more is tried.
    pub fn is_reached(self) -> bool {
        self >= Self::Delivered
    }

    /// Whether no delivery is tried any more.
    pub fn is_settled(self) -> bool {
        self >= Self::Failed
    }

    /// The word on the wire.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Sent => "sent",
            Self::Failed => "failed",
            Self::Delivered => "delivered",
            Self::Read => "read",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}
