//! How long to wait before an act is repeated.

use std::time::Duration;

/// Doubles from 10 ms to 1 s: a store that restarts is met early, one that is away is not hammered.
#[derive(Debug, Default)]
pub(crate) struct Backoff(u32);

impl Backoff {
    /// The next wait.
    pub(crate) fn next(&mut self) -> Duration {
        let ms = (10_u64 << self.0.min(7)).min(1_000);
        self.0 += 1;
        Duration::from_millis(ms)
    }

    /// Waits it out.
    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep(self.next()).await;
    }

    /// How often it was asked.
    pub(crate) fn count(&self) -> u32 {
        self.0
    }
}
