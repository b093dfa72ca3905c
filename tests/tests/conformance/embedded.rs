//! Makers of the adapters that live in the process.

use std::{fs, path::Path, sync::Arc};

use async_trait::async_trait;
use schemas::{
    Clock, Timestamp,
    limits::{ChatLimits, StoreLimits},
    port::{Backplane, Cache, Limiter, Log, Presence},
    time::ManualClock,
};
use stores::{
    backplane::LocalBackplane, cache::LocalCache, embedded::Engine, limiter::LocalLimiter, log::EmbeddedLog,
    presence::LocalPresence,
};
use tests::conformance;

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::at(Timestamp(1_700_000_000_000)))
}

/// Embedded logs on a folder of their own.
pub(crate) struct EmbeddedLogs {
    folder: tempfile::TempDir,
    clock: Arc<ManualClock>,
    limits: StoreLimits,
    open: Option<(Engine, EmbeddedLog)>,
}

impl EmbeddedLogs {
    pub(crate) fn new() -> Self {
        let limits = StoreLimits { partitions: 6, log_retention_ms: 60_000, free_bytes: 0, ..StoreLimits::default() };
        Self { folder: tempfile::tempdir().unwrap(), clock: clock(), limits, open: None }
    }

    /// With bounds so narrow that everything meets them: next to nothing in memory, short queues, small groups.
    pub(crate) fn tight() -> Self {
        let mut logs = Self::new();
        let narrow = StoreLimits { tail_bytes: 2_000, queue: 3, group_writes: 4, group_every_ms: 1, ..logs.limits };
        logs.limits = StoreLimits { segment_bytes: 4_000, ..narrow };
        logs
    }
}

#[async_trait]
impl conformance::log::Maker for EmbeddedLogs {
    async fn open(&mut self) -> Arc<dyn Log> {
        let engine = Engine::open(self.folder.path(), &self.limits).unwrap();
        let log = EmbeddedLog::open(engine.clone(), self.clock.clone(), &self.limits).unwrap();
        self.open = Some((engine, log.clone()));
        Arc::new(log)
    }

    async fn close(&mut self) {
        let (engine, log) = self.open.take().expect("it is open");
        drop(log);
        engine.close().await;
    }

    async fn lose(&mut self) {
        // What is in the files while the process still runs is what it leaves when it is killed.
        let left = tempfile::tempdir().unwrap();
        copy(self.folder.path(), left.path());
        self.open = None;
        self.folder = left;
    }

    async fn pass(&mut self, ms: u64) {
        self.clock.pass(ms);
        let (_, log) = self.open.as_ref().expect("it is open");
        log.retain(self.clock.wall()).await.unwrap();
    }

    fn retention_ms(&self) -> u64 {
        self.limits.log_retention_ms
    }
}

/// Copies a folder as it is now.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, to) = entry.map(|entry| (entry.path(), to.join(entry.file_name()))).unwrap();
        if path.is_dir() { copy(&path, &to) } else { fs::copy(&path, &to).map(drop).unwrap() }
    }
}

/// Presences in this process.
pub(crate) struct LocalPresences(Arc<ManualClock>);

impl LocalPresences {
    pub(crate) fn new() -> Self {
        Self(clock())
    }
}

#[async_trait]
impl conformance::presence::Maker for LocalPresences {
    async fn open(&mut self) -> Arc<dyn Presence> {
        Arc::new(LocalPresence::new(self.0.clone(), 300_000, 45_000))
    }

    async fn pass(&mut self, ms: u64) {
        self.0.pass(ms);
    }

    fn presence_ms(&self) -> u64 {
        300_000
    }

    fn node_ms(&self) -> u64 {
        45_000
    }
}

/// Backplanes in this process.
pub(crate) struct LocalBackplanes;

#[async_trait]
impl conformance::backplane::Maker for LocalBackplanes {
    async fn open(&mut self) -> Arc<dyn Backplane> {
        Arc::new(LocalBackplane::new())
    }
}

/// Limiters in this process.
pub(crate) struct LocalLimiters(Arc<ManualClock>);

impl LocalLimiters {
    pub(crate) fn new() -> Self {
        Self(clock())
    }
}

#[async_trait]
impl conformance::limiter::Maker for LocalLimiters {
    async fn open(&mut self) -> Arc<dyn Limiter> {
        Arc::new(LocalLimiter::new(self.0.clone(), 1_000))
    }

    async fn pass(&mut self, ms: u64) {
        self.0.pass(ms);
    }

    fn window_ms(&self) -> u64 {
        60_000
    }
}

/// Caches in this process.
pub(crate) struct LocalCaches(Arc<ManualClock>);

impl LocalCaches {
    pub(crate) fn new() -> Self {
        Self(clock())
    }
}

#[async_trait]
impl conformance::cache::Maker for LocalCaches {
    async fn open(&mut self, limits: ChatLimits) -> Arc<dyn Cache> {
        Arc::new(LocalCache::new(self.0.clone(), &limits))
    }

    async fn pass(&mut self, ms: u64) {
        self.0.pass(ms);
    }
}
