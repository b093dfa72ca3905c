//! Turns: who reads rows and writes them back, does so alone.

use tokio::sync::{Mutex, MutexGuard};

/// So many locks; what is read and written has a number, and shares the lock of its number.
pub(super) struct Turns(Vec<Mutex<()>>);

impl Turns {
    /// At least one.
    pub(super) fn new(count: usize) -> Self {
        Self((0..count.max(1)).map(|_| Mutex::default()).collect())
    }

    /// Waits for the turn of all of these. Always in the same order, so that two callers never wait for each other.
    pub(super) async fn take(&self, mut numbers: Vec<usize>) -> Vec<MutexGuard<'_, ()>> {
        numbers.iter_mut().for_each(|number| *number %= self.0.len());
        numbers.sort_unstable();
        numbers.dedup();
        let mut turns = Vec::with_capacity(numbers.len());
        for number in numbers {
            turns.push(self.0[number].lock().await);
        }
        turns
    }
}
