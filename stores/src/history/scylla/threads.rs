//! Threads: which rows of `turns` and `changes` count. Pure.
//!
//! The number of a turn and the epoch of who wrote it stand in one column, so that what a late owner writes is another row.
//! A conversation's row says from which number on each epoch's turns count: its path. Whoever takes a conversation over
//! writes the row with its own epoch before it is told of it, with a path on which older owners add nothing; the row is one
//! cell, so what is counted and whose it is change together.
//!
//! Numbers that were written before there were epochs in the column stand there bare; they are smaller than any with one.

use schemas::{Epoch, conversation::Version};
use serde::{Deserialize, Serialize};

/// Bits of a column that tell the epoch, as many as in a [`Version`].
const EPOCH_BITS: u32 = 23;
const EPOCHS: i64 = (1 << EPOCH_BITS) - 1;
/// The largest number that fits beside an epoch: more than the changes a version counts.
const NUMBERS: u64 = (1 << 40) - 1;

/// The column of a turn.
pub(super) fn column(seq: u64, epoch: Epoch) -> i64 {
    let seq = i64::try_from(seq.min(NUMBERS)).unwrap_or(0);
    (seq << EPOCH_BITS) | (i64::from(epoch.0) & EPOCHS)
}

/// A number without an epoch, as it was written before.
fn bare(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}

/// The number of the turn in a column, and whose it is; `None`: it is a bare number.
fn parsed(column: i64) -> (u64, Option<Epoch>) {
    let number = |n: i64| u64::try_from(n).unwrap_or(0);
    if column <= EPOCHS {
        return (number(column), None);
    }
    (number(column >> EPOCH_BITS), u32::try_from(column & EPOCHS).ok().map(Epoch))
}

/// Whose turns count, from which number on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Path {
    /// Up to here they are bare.
    bare: u64,
    /// Epochs, oldest first, each with its first number.
    forks: Vec<(Epoch, u64)>,
}

impl Path {
    /// That of a row which was written before there were paths.
    pub(super) fn before(last: u64) -> Self {
        Self { bare: last, forks: Vec::new() }
    }

    /// The epoch of the last owner that wrote or sealed.
    pub(super) fn newest(&self) -> Epoch {
        self.forks.last().map_or(Epoch(0), |fork| fork.0)
    }

    /// An owner of this epoch goes on with this number. Nothing changes where it, or a newer one, is there already.
    pub(super) fn take(&mut self, epoch: Epoch, first: u64) {
        if self.newest() >= epoch {
            return;
        }
        // Epochs all of whose numbers are given anew say nothing any more.
        self.forks.retain(|fork| fork.1 < first);
        self.bare = self.bare.min(first.saturating_sub(1));
        self.forks.push((epoch, first));
    }

    /// Everything up to here was removed: whose it was need not be known.
    pub(super) fn forget(&mut self, gone: u64) {
        let spent = self.forks.windows(2).take_while(|two| two[1].1 <= gone.saturating_add(1)).count();
        self.forks.drain(..spent);
    }

    /// The column of the row that counts at this number.
    pub(super) fn at(&self, seq: u64) -> i64 {
        match self.forks.iter().rev().find(|fork| fork.1 <= seq) {
            Some((epoch, _)) if seq > self.bare => column(seq, *epoch),
            _ => bare(seq),
        }
    }

    /// The number of the turn in a column, if it counts.
    pub(super) fn counts(&self, column: i64) -> Option<u64> {
        let (seq, _) = parsed(column);
        (self.at(seq) == column).then_some(seq)
    }

    /// Whether a column has a bare number.
    pub(super) fn is_bare(column: i64) -> bool {
        parsed(column).1.is_none()
    }

    /// Cuts a range of numbers that is read upwards (`up`) or downwards so that it has one kind of columns, and tells which.
    pub(super) fn columns(&self, up: bool, low: u64, high: u64) -> ((u64, u64), (i64, i64)) {
        let bare_first = if up { low <= self.bare } else { high <= self.bare };
        if bare_first {
            let high = high.min(self.bare);
            ((low, high), (bare(low), bare(high)))
        } else {
            let low = low.max(self.bare + 1);
            ((low, high), (column(low, Epoch(0)), column(high, Epoch(u32::MAX))))
        }
    }
}

/// The version under which readers are shown a row: with the epoch of who sealed it, where that wrote nothing yet.
pub(super) fn sealed(version: Version, path: &Path) -> Version {
    version.under(path.newest())
}

#[cfg(test)]
#[path = "threads/tests.rs"]
mod tests;
