//! What is read and written back, one at a time for each name: what an inbox counts (settling, recording and retention do that),
//! and what is sealed for an owner, the end of an inbox or the row of a conversation. Calls about different ones do not wait for
//! each other: where a server is slow each takes a second or two, and in one line they would take the sum.

use tokio::sync::MutexGuard;

use crate::history::turns::Turns;

/// Names share a lock by their hash: few enough that all may be held at once.
const LOCKS: usize = 256;

/// The locks of this process for one purpose.
pub(super) struct Locks(Turns);

impl Default for Locks {
    fn default() -> Self {
        Self(Turns::new(LOCKS))
    }
}

impl Locks {
    /// Waits until nobody else holds one of these names.
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
    async fn who_holds_a_name_is_waited_for_by_who_asks_for_it_and_by_nobody_else() {
        let locks = Locks::default();
        let held = locks.hold(["a".into(), "b".into(), "a".into()]).await;
        assert!(locks.hold(["c".into(), "d".into()]).now_or_never().is_some());
        assert!(locks.hold(["c".into(), "b".into()]).now_or_never().is_none());
        drop(held);
        assert!(locks.hold(["c".into(), "b".into()]).now_or_never().is_some());
        // Everything at once, in any order, is no deadlock.
        let all = || (0..2_000).map(|n| n.to_string());
        let (first, second) = (locks.hold(all()), locks.hold(all().rev()));
        futures::future::join(first.map(drop), second.map(drop)).await;
    }
}
