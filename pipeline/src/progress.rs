//! Progress: how far each lane of an instance is done, told by its thread to the task that owns the consumer.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use schemas::Lane;
use tokio::sync::Notify;

/// The frontier of each lane: epochs below it are done.
#[derive(Default)]
pub(crate) struct Progress {
    frontiers: [AtomicU64; 3],
    awaited: AtomicBool,
    moved: Notify,
}

impl Progress {
    /// A lane's frontier stands here now.
    pub(crate) fn reached(&self, lane: Lane, frontier: u64) {
        let before = self.frontiers[usize::from(lane.number())].swap(frontier, Ordering::AcqRel);
        // Who does not wait for it looks when it comes by: a wake-up costs more than most epochs.
        if before != frontier && self.awaited.load(Ordering::Acquire) {
            self.moved.notify_one();
        }
    }

    /// A lane's frontier.
    pub(crate) fn of(&self, lane: Lane) -> u64 {
        self.frontiers[usize::from(lane.number())].load(Ordering::Acquire)
    }

    /// From now on, say when a frontier moves; or no longer.
    pub(crate) fn await_moves(&self, awaited: bool) {
        self.awaited.store(awaited, Ordering::Release);
    }

    /// Waits until a frontier has moved. May return early.
    pub(crate) async fn moved(&self) {
        self.moved.notified().await;
    }
}
