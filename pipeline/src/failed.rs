//! How it is told that a part has ended by itself: once, by whoever is first. Who hears it ends the process, which is started
//! again and does what was not committed; a part that is gone in silence would look like one that has nothing to do.

use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;
use tokio::sync::watch;

/// Tells it.
#[derive(Debug, Clone)]
pub(crate) struct Failed(watch::Sender<Option<String>>);

impl Failed {
    /// With who hears it.
    pub(crate) fn channel() -> (Self, watch::Receiver<Option<String>>) {
        let (told, heard) = watch::channel(None);
        (Self(told), heard)
    }

    /// Tells why, unless something was told before.
    pub(crate) fn tell(&self, why: impl Into<String>) {
        self.0.send_if_modified(|told| {
            let first = told.is_none();
            told.get_or_insert_with(|| why.into());
            first
        });
    }

    /// Does something, and tells where that panics. The panic itself was logged where it happened.
    pub(crate) async fn watch(self, what: &'static str, task: impl Future<Output = ()>) {
        if AssertUnwindSafe(task).catch_unwind().await.is_err() {
            self.tell(format!("{what} panicked; the log has its last words"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_is_told_and_an_end_in_peace_is_none() {
        let (failed, heard) = Failed::channel();
        failed.clone().watch("this", async {}).await;
        assert_eq!(*heard.borrow(), None);
        failed.clone().watch("this", async { panic!("as asked") }).await;
        failed.watch("that", async { panic!("as asked") }).await;
        assert_eq!(heard.borrow().as_deref(), Some("this panicked; the log has its last words"));
    }
}
