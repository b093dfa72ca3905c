//! The history's adapters.

#![allow(clippy::unwrap_used, reason = "a store that does not open ends its test")]

use std::sync::Arc;

use async_trait::async_trait;
use schemas::{Timestamp, limits::StoreLimits, port::History, time::ManualClock};
use stores::{Settings, Stores};
use tests::conformance::history::Installation;

use crate::embedded::copy;

/// The embedded stores on a folder of their own.
struct Embedded {
    folder: tempfile::TempDir,
    limits: StoreLimits,
    stores: Option<Stores>,
}

impl Embedded {
    async fn new() -> Self {
        Self::with(StoreLimits { free_bytes: 0, ..StoreLimits::default() })
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
    }

    fn with(limits: StoreLimits) -> Self {
        let mut installation = Self { folder: tempfile::tempdir().unwrap(), limits, stores: None };
        installation.open();
        installation
    }

    fn open(&mut self) {
        let settings = Settings { data: self.folder.path().into(), limits: self.limits.clone(), presence_ms: 300_000 };
        let clock = Arc::new(ManualClock::at(Timestamp(1_800_000_000_000)));
        self.stores = Some(Stores::open(settings, clock).unwrap());
    }
}

#[async_trait]
impl Installation for Embedded {
    fn history(&self) -> Arc<dyn History> {
        self.stores.as_ref().map(|stores| stores.history.clone()).unwrap()
    }

    async fn restart(&mut self) {
        self.stores.take().unwrap().close().await;
        self.open();
    }

    async fn crash(&mut self) {
        // What is in the files while the process still runs is what it leaves when it is killed.
        let left = tempfile::tempdir().unwrap();
        copy(self.folder.path(), left.path());
        self.stores = None;
        self.folder = left;
        self.open();
    }
}

tests::history_conformance!(embedded: Embedded::new());
tests::history_conformance!(embedded_with_a_short_queue: Embedded::tight());
