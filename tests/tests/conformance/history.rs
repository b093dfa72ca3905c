//! The history's adapters.

#![allow(clippy::unwrap_used, reason = "a store that does not open ends its test")]

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use schemas::{Timestamp, limits::StoreLimits, port::History, time::ManualClock};
use stores::{Settings, Stores};
use tests::conformance::history::Installation;

use crate::embedded::copy;

/// The embedded stores on a folder of their own.
pub(crate) struct Embedded {
    folder: tempfile::TempDir,
    limits: StoreLimits,
    stores: Mutex<Option<Stores>>,
    pub(crate) clock: Arc<ManualClock>,
}

impl Embedded {
    pub(crate) async fn new() -> Self {
        Self::with(StoreLimits { free_bytes: 0, ..StoreLimits::default() }).await
    }

    /// With a queue so short that callers wait in line all the time.
    async fn tight() -> Self {
        Self::with(StoreLimits {
            free_bytes: 0,
            queue: 2,
            group_writes: 4,
            group_every_ms: 1,
            ..StoreLimits::default()
        })
        .await
    }

    async fn with(limits: StoreLimits) -> Self {
        let clock = Arc::new(ManualClock::at(Timestamp(1_800_000_000_000)));
        let stores = Mutex::new(None);
        let mut installation = Self { folder: tempfile::tempdir().unwrap(), limits, stores, clock };
        installation.open().await;
        installation
    }

    async fn open(&mut self) {
        let settings = Settings::folder(self.folder.path().into(), self.limits.clone(), 300_000);
        let stores = Stores::open(settings, self.clock.clone()).await.unwrap();
        *self.here() = Some(stores);
    }

    fn here(&self) -> std::sync::MutexGuard<'_, Option<Stores>> {
        self.stores.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rows written since it was opened.
    pub(crate) fn writes(&self) -> u64 {
        self.here().as_ref().and_then(Stores::stats).map_or(0, |stats| stats.writes)
    }
}

#[async_trait]
impl Installation for Embedded {
    fn history(&self) -> Arc<dyn History> {
        self.here().as_ref().map(|stores| stores.history.clone()).unwrap()
    }

    async fn restart(&mut self) {
        let stores = self.here().take().unwrap();
        stores.close().await;
        self.open().await;
    }

    async fn crash(&mut self) {
        // What is in the files while the process still runs is what it leaves when it is killed.
        let left = tempfile::tempdir().unwrap();
        copy(self.folder.path(), left.path());
        *self.here() = None;
        self.folder = left;
        self.open().await;
    }
}

tests::history_conformance!(embedded: Embedded::new());
tests::history_conformance!(embedded_with_a_short_queue: Embedded::tight());
