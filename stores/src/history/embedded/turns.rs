//! Turns: who reads rows of a partition and writes them back, does so alone.

use schemas::Partition;
use tokio::sync::{Mutex, MutexGuard};

/// One lock a partition.
pub(super) struct Turns(Vec<Mutex<()>>);

impl Turns {
    pub(super) fn new(partitions: u16) -> Self {
        Self((0..partitions.max(1)).map(|_| Mutex::default()).collect())
    }

    /// Waits for the turn of all of these. Always in the same order, so that two callers never wait for each other.
    pub(super) async fn take(&self, partitions: impl Iterator<Item = Partition>) -> Vec<MutexGuard<'_, ()>> {
        let mut numbers: Vec<usize> = partitions.map(|p| usize::from(p.0) % self.0.len()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let mut turns = Vec::with_capacity(numbers.len());
        for number in numbers {
            turns.push(self.0[number].lock().await);
        }
        turns
    }
}
