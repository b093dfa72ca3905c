//! Who may change what an inbox counts: settling, recording and retention read a ledger and write it back, one at a time for
//! each inbox. Calls about different inboxes do not wait for each other: where a server is slow each takes a second or two, and
//! in one line they would take the sum.

use tokio::sync::{Mutex, MutexGuard};

/// Inboxes share a lock by the hash of their names: few enough that all may be held at once.
const LOCKS: u64 = 256;

/// The locks of this process.
pub(super) struct Ledgers(Vec<Mutex<()>>);

impl Default for Ledgers {
    fn default() -> Self {
        Self((0..LOCKS).map(|_| Mutex::default()).collect())
    }
}

impl Ledgers {
    /// Waits until nobody else changes the ledgers of these inboxes. Locks are taken in their order, so that two who need
    /// several never wait for each other.
    pub(super) async fn hold(&self, names: impl IntoIterator<Item = String>) -> Vec<MutexGuard<'_, ()>> {
        let places = names.into_iter().map(|name| xxhash_rust::xxh3::xxh3_64(name.as_bytes()) % LOCKS);
        let mut places: Vec<u64> = places.collect();
        places.sort_unstable();
        places.dedup();
        let mut held = Vec::with_capacity(places.len());
        for lock in places.into_iter().filter_map(|place| self.0.get(usize::try_from(place).ok()?)) {
            held.push(lock.lock().await);
        }
        held
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
