//! How often hints to the nodes of this process may have been lost, and who waits to be told.

use tokio::sync::watch;

/// It counts; whoever has seen less is told.
#[derive(Default)]
pub(super) struct Missed(watch::Sender<u64>);

impl Missed {
    /// Once more.
    pub(super) fn again(&self) {
        self.0.send_modify(|count| *count += 1);
    }

    /// Waits until it was more often than `seen` times, and says how often.
    pub(super) async fn more_than(&self, seen: u64) -> u64 {
        let mut counts = self.0.subscribe();
        // The sender lives as long as this does.
        counts.wait_for(|count| *count > seen).await.map_or(seen, |count| *count)
    }
}
