//! Keeps: the log, the history, presence and the backplane, behind the ports.
//!
//! [`Stores::open`] opens all four for one process on one data folder. What is wrong with the folder is said by
//! [`OpenError`]; what goes wrong with its disk later, once, by [`Stores::fatal`]. [`data`] looks at a folder nobody has
//! open.

pub mod backplane;
pub mod data;
pub mod embedded;
mod error;
pub mod history;
mod keeper;
pub mod log;
pub mod presence;
pub mod urls;

use std::{path::PathBuf, sync::Arc};

use schemas::{
    Clock,
    limits::StoreLimits,
    port::{Backplane, History, Log, Presence},
};
use tokio::sync::watch;

pub use error::OpenError;

use crate::{
    backplane::LocalBackplane, embedded::Engine, history::embedded::EmbeddedHistory, keeper::Keeper, log::EmbeddedLog,
    presence::LocalPresence,
};

/// What to open.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The data folder.
    pub data: PathBuf,
    /// Its bounds.
    pub limits: StoreLimits,
    /// How long a session's presence holds without being refreshed, ms.
    pub presence_ms: u64,
}

/// All that is kept.
pub struct Stores {
    /// The log.
    pub log: Arc<dyn Log>,
    /// The history.
    pub history: Arc<dyn History>,
    /// Presence.
    pub presence: Arc<dyn Presence>,
    /// The backplane.
    pub backplane: Arc<dyn Backplane>,
    kept: Arc<EmbeddedHistory>,
    keeper: Keeper,
    engine: Engine,
}

impl Stores {
    /// Opens a data folder, creating it if it is not there. Takes its lock until the last of what it gave is dropped.
    pub fn open(settings: Settings, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        let Settings { data, limits, presence_ms } = settings;
        let engine = Engine::open(&data, &limits)?;
        let log = EmbeddedLog::open(engine.clone(), clock.clone(), &limits)?;
        let kept = Arc::new(EmbeddedHistory::open(engine.clone(), clock.clone(), &limits)?);
        let keeper =
            Keeper::start(log.clone(), clock.clone()).map_err(OpenError::io("starting the keeper of", data))?;
        Ok(Self {
            log: Arc::new(log),
            history: kept.clone(),
            presence: Arc::new(LocalPresence::new(clock, presence_ms, limits.node_ms)),
            backplane: Arc::new(LocalBackplane::new()),
            kept,
            keeper,
            engine,
        })
    }

    /// Says why, once nothing can be written any more: the process is to end, and starting it again finds out what the disk
    /// holds.
    pub fn fatal(&self) -> watch::Receiver<Option<String>> {
        self.engine.fatal()
    }

    /// Counters since start.
    pub fn stats(&self) -> Stats {
        self.engine.stats()
    }

    /// Finishes what was submitted; everything after that is refused.
    pub async fn close(self) {
        self.keeper.stop().await;
        if let Err(error) = self.kept.flush().await {
            tracing::warn!(%error, "the last cursors were not written: those devices are sent a little twice");
        }
        self.engine.close().await;
    }
}

/// Counters of the embedded store since start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Syncs of the journal.
    pub syncs: u64,
    /// Groups of jobs that were written together.
    pub groups: u64,
    /// Jobs.
    pub jobs: u64,
    /// Rows written and removed.
    pub writes: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
}

#[cfg(test)]
mod tests {
    use schemas::{Partition, Timestamp, port::PortError, time::ManualClock};

    use super::*;

    #[tokio::test]
    async fn a_folder_is_let_go_on_close_and_opens_again() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::at(Timestamp(1_700_000_000_000)));
        let limits = StoreLimits { free_bytes: 0, ..StoreLimits::default() };
        let settings = Settings { data: dir.path().join("data"), limits, presence_ms: 300_000 };
        for epoch in 1..4 {
            let stores = Stores::open(settings.clone(), clock.clone()).unwrap();
            assert!(matches!(Stores::open(settings.clone(), clock.clone()).map(drop), Err(OpenError::Busy { .. })));
            let given = stores.history.take_over(&[Partition(3)]).await.unwrap();
            assert_eq!(given[0].0, epoch);
            assert!(stores.stats().syncs > 0 && stores.fatal().borrow().is_none());
            let log = stores.log.clone();
            stores.close().await;
            assert!(matches!(log.check().await, Err(PortError::Unavailable(_))));
        }
    }
}
