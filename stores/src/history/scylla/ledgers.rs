//! Who may change what an inbox counts: settling, recording and retention read a ledger and write it back, one at a time for
//! each inbox. Calls about different inboxes do not wait for each other: where a server is slow each takes a second or two, and
//! in one line they would take the sum.

use tokio::sync::MutexGuard;

use crate::history::turns::Turns;

/// Inboxes share a lock by the hash of their names: few enough that all may be held at once.
const LOCKS: usize = 256;

/// The locks of this process.
pub(super) struct Ledgers(Turns);

impl Default for Ledgers {
    fn default() -> Self {
        Self(Turns::new(LOCKS))
    }
}

impl Ledgers {
    /// Waits until nobody else changes the ledgers of these inboxes.
    pub(super) async fn hold(&self, names: impl IntoIterator<Item = String>) -> Vec<MutexGuard<'_, ()>> {
        let number = |name: String| (xxhash_rust::xxh3::xxh3_64(name.as_bytes()) % LOCKS as u64) as usize;
        self.0.take(names.into_iter().map(number).collect()).await
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn who_changes_one_inbox_waits_for_who_else_does_and_for_nobody_else() {
        let ledgers = Ledgers::default();
        let held = ledgers.hold(["a".into(), "b".into(), "a".into()]).await;
        assert!(ledgers.hold(["c".into(), "d".into()]).now_or_never().is_some());
        assert!(ledgers.hold(["c".into(), "b".into()]).now_or_never().is_none());
        drop(held);
        assert!(ledgers.hold(["c".into(), "b".into()]).now_or_never().is_some());
        // Everything at once, in any order, is no deadlock.
        let all = || (0..2_000).map(|n| n.to_string());
        let (first, second) = (ledgers.hold(all()), ledgers.hold(all().rev()));
        futures::future::join(first.map(drop), second.map(drop)).await;
    }
}
