//! Telling those who wait for it: senders of changes, administrators of dead letters. Each kind has a queue of its own; what finds
//! no room is dropped (rule 16), because it stands elsewhere and a slow dispatch must delay no fact.

use std::sync::Arc;

use schemas::{
    UserId,
    port::{Dead, Dispatch},
    view::StatusChange,
};
use tokio::sync::mpsc;

/// Tellings of a kind that wait for a slow dispatch.
const WAITING: usize = 64;

/// The ways to those who are told: many notes take no place from the dead letters.
pub(super) struct Teller {
    pub(super) senders: mpsc::Sender<Vec<(UserId, StatusChange)>>,
    pub(super) administrators: mpsc::Sender<Vec<Dead>>,
}

/// Their ends.
pub(super) struct Told {
    pub(super) senders: mpsc::Receiver<Vec<(UserId, StatusChange)>>,
    pub(super) administrators: mpsc::Receiver<Vec<Dead>>,
}

pub(super) fn tellings() -> (Teller, Told) {
    let ((notes, senders), (dead, administrators)) = (mpsc::channel(WAITING), mpsc::channel(WAITING));
    (Teller { senders: notes, administrators: dead }, Told { senders, administrators })
}

/// Tells, so that a slow dispatch delays no fact.
pub(super) async fn tell(dispatch: Arc<dyn Dispatch>, told: Told) {
    let Told { mut senders, mut administrators } = told;
    let notes = async {
        while let Some(notes) = senders.recv().await {
            dispatch.notify(notes).await;
        }
    };
    let alarms = async {
        while let Some(dead) = administrators.recv().await {
            dispatch.alarm(&dead).await;
        }
    };
    tokio::join!(notes, alarms);
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use schemas::port::{Outcome, Routed};
    use tokio::sync::Notify;

    use super::*;

    /// Nobody takes its notes.
    #[derive(Default)]
    struct Slow {
        alarmed: Notify,
    }

    #[async_trait]
    impl Dispatch for Slow {
        async fn deliver(&self, _: Vec<Routed>) -> Vec<Outcome> {
            Vec::new()
        }
        async fn notify(&self, _: Vec<(UserId, StatusChange)>) {
            std::future::pending().await
        }
        async fn alarm(&self, _: &[Dead]) {
            self.alarmed.notify_one();
        }
    }

    /// R4.5: however many notes wait, administrators are told.
    #[tokio::test]
    async fn notes_that_nobody_takes_keep_no_dead_letter_back() {
        let (teller, told) = tellings();
        while teller.senders.try_send(Vec::new()).is_ok() {}
        let dispatch = Arc::new(Slow::default());
        let telling = tokio::spawn(tell(dispatch.clone(), told));
        teller.administrators.try_send(Vec::new()).unwrap();
        let alarmed = tokio::time::timeout(std::time::Duration::from_secs(10), dispatch.alarmed.notified());
        alarmed.await.expect("administrators are told");
        telling.abort();
    }
}
