//! Marks: numbers that change whenever a user's list does, so that a cached list is known to be old without reading it.
//!
//! A number counts for many users at once: one more change than a user's own makes a list be read once too often, and no
//! more. They begin anew with every start, which is why each start has a number of its own in them.

use std::sync::atomic::{AtomicU64, Ordering};

use schemas::{
    UserId,
    conversation::Side,
    port::{PortResult, Schedule},
};
use xxhash_rust::xxh3::xxh3_64;

use super::ThreadMoves;

/// Numbers: 128 KiB; of 10,000 users who write at once, about every second one has a number for itself.
const NUMBERS: usize = 16_384;

/// The marks of this start.
pub(super) struct Marks {
    start: u64,
    /// What changes every list.
    all: AtomicU64,
    users: Box<[AtomicU64]>,
}

impl Default for Marks {
    fn default() -> Self {
        let start = uuid::Uuid::new_v4().as_u64_pair().0;
        Self { start, all: AtomicU64::new(0), users: (0..NUMBERS).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl Marks {
    fn number(&self, user: &UserId) -> Option<&AtomicU64> {
        let name = xxh3_64(user.to_string().as_bytes());
        self.users.get((name % NUMBERS as u64) as usize)
    }

    /// The mark of a user's lists.
    pub(super) fn of(&self, user: &UserId) -> u64 {
        let own = self.number(user).map_or(0, |number| number.load(Ordering::Acquire));
        let all = self.all.load(Ordering::Acquire);
        let mut bytes = [0; 24];
        for (place, part) in bytes.chunks_exact_mut(8).zip([self.start, all, own]) {
            place.copy_from_slice(&part.to_be_bytes());
        }
        xxh3_64(&bytes)
    }

    fn change(&self, user: &UserId) {
        if let Some(number) = self.number(user) {
            number.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// All lists have changed.
    pub(super) fn change_all(&self) {
        self.all.fetch_add(1, Ordering::AcqRel);
    }

    /// Ends a writing, however it ended: whoever could read it by then read it under the mark before.
    pub(super) fn end<T>(&self, schedule: &Schedule, moves: &ThreadMoves, ended: PortResult<T>) -> PortResult<T> {
        // Rows that were passed over may be those of a call that nobody waited for.
        for row in &schedule.conversations {
            for user in Side::BOTH.map(|side| row.user(side)).into_iter().chain([row.pair.business()]) {
                self.change(&user);
            }
        }
        // Also who has it no more.
        for (user, _) in &moves.unread {
            self.change(user);
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_changes_with_its_list_and_with_every_start() {
        let (marks, user) = (Marks::default(), "acme/business:sara".parse().unwrap());
        let first = marks.of(&user);
        assert_eq!(marks.of(&user), first);
        marks.change(&user);
        let second = marks.of(&user);
        marks.change_all();
        let all = [first, second, marks.of(&user), Marks::default().of(&user)];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }
}
