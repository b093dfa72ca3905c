//! The log on the embedded engine.
//!
//! | keyspace | key | value |
//! |---|---|---|
//! | `log.N` (one a segment) | topic number, partition, last offset (big-endian) | a chunk of records ([`chunk`]) |
//! | `log.segments` | N | when it began, and where each partition began in it |
//! | `log.groups` | group, 0, topic number, partition | the next offset the group reads |
//!
//! An append gets its offsets when it is submitted, under one lock that also gives it its place in the engine's queue, so
//! the order of offsets is the order of the journal. Readers see a record when the sync of its group is done, from memory
//! ([`tail`]) or, when they are behind, from disk ([`segments`]). Opening looks at one key a partition.

mod append;
mod chunk;
mod consumer;
mod groups;
mod inbox;
pub(crate) mod layout;
mod segments;
mod spread;
mod tail;
#[cfg(test)]
mod tests;

pub(crate) use chunk::decode;

use std::sync::{Arc, atomic::Ordering};

use async_trait::async_trait;
use schemas::{
    Clock, Offset, Timestamp, Topic, TopicPartition,
    limits::StoreLimits,
    port::{Append, Consumer, Durability, Fetch, Group, Log as LogPort, PortError, PortResult, Record},
};

use self::{
    append::Heads,
    consumer::Member,
    groups::Groups,
    layout::Layout,
    segments::Segments,
    tail::{Found, Tails},
};
use crate::{OpenError, embedded::Engine};

/// What the log's parts share.
pub(crate) struct Log {
    engine: Engine,
    clock: Arc<dyn Clock>,
    limits: StoreLimits,
    layout: Layout,
    heads: Heads,
    tails: Tails,
    segments: Segments,
    groups: Groups,
    // One at a time: it looks, and then it removes.
    retaining: tokio::sync::Mutex<()>,
}

impl Log {
    /// Reads from disk on a thread that may wait for it.
    async fn read_disk(self: &Arc<Self>, index: usize, from: u64, end: u64, max: Fetch) -> PortResult<Vec<Record>> {
        let log = self.clone();
        let read = tokio::task::spawn_blocking(move || log.segments.read(index, from, end, max));
        read.await.unwrap_or_else(|_| Err(PortError::Unavailable("reading the log was interrupted".into())))
    }
}

/// The log of this installation.
#[derive(Clone)]
pub struct EmbeddedLog(Arc<Log>);

/// What one pass of retention did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retained {
    /// Segments removed.
    pub segments: usize,
    /// Bytes that were appended to them.
    pub bytes: u64,
}

impl EmbeddedLog {
    /// Opens the log on an engine.
    pub fn open(engine: Engine, clock: Arc<dyn Clock>, limits: &StoreLimits) -> Result<Self, OpenError> {
        let layout = Layout::new(limits.partitions);
        let (segments, ends) = Segments::open(&engine, &layout, clock.wall())?;
        let groups = Groups::open(&engine, &layout)?;
        let newest = segments.newest();
        let newest = newest
            .ok_or_else(|| OpenError::Damaged { path: engine.path().into(), why: "the log has no segment".into() })?;
        let heads = Heads::new(ends.clone(), newest);
        let tails = Tails::new(ends, limits.tail_bytes);
        let limits = limits.clone();
        let retaining = tokio::sync::Mutex::default();
        Ok(Self(Arc::new(Log { engine, clock, limits, layout, heads, tails, segments, groups, retaining })))
    }

    /// Begins a new segment when the newest is full or old, and removes the oldest while they are too old or too many and
    /// every group has passed them. To be called now and then.
    pub async fn retain(&self, now: Timestamp) -> PortResult<Retained> {
        let _alone = self.0.retaining.lock().await;
        self.roll(now).await?;
        let mut done = Retained::default();
        while let Some((oldest, next, bytes)) = self.0.segments.oldest() {
            let old = now.ms_since(next.created_at) >= self.0.limits.log_retention_ms;
            let many = bytes > self.0.limits.log_retention_bytes;
            if !(old || many) || !self.0.groups.passed(&oldest.starts, &next.starts) {
                break;
            }
            self.0.segments.remove(&oldest).await?;
            done.segments += 1;
            done.bytes += oldest.bytes.load(Ordering::Relaxed);
        }
        Ok(done)
    }

    async fn roll(&self, now: Timestamp) -> PortResult<()> {
        let Some(newest) = self.0.segments.newest() else { return Ok(()) };
        let bytes = newest.bytes.load(Ordering::Relaxed);
        // An eighth: what is too old is removed at most an eighth too late.
        let old = now.ms_since(newest.created_at) >= (self.0.limits.log_retention_ms / 8).max(1);
        if bytes < self.0.limits.segment_bytes && !(old && bytes > 0) {
            return Ok(());
        }
        let log = self.0.clone();
        let prepared = tokio::task::spawn_blocking(move || log.segments.prepare()).await;
        let prepared = prepared.map_err(|_| PortError::Unavailable("making a segment was interrupted".into()))?;
        let prepared = prepared.map_err(|error| PortError::Unavailable(error.to_string()))?;
        self.0.heads.roll(&self.0.segments, prepared, now)?.wait().await
    }
}

#[async_trait]
impl LogPort for EmbeddedLog {
    async fn append(&self, records: Vec<Append>) -> Vec<PortResult<Offset>> {
        append::append(&self.0, records).await
    }

    async fn read(&self, at: TopicPartition, from: Offset, max: Fetch) -> PortResult<Vec<Record>> {
        let index = self.0.layout.index(at)?;
        let from = from.0.max(self.0.segments.start(index));
        match self.0.tails.read(index, from, max) {
            Found::Records(records) => Ok(records),
            Found::End => Ok(Vec::new()),
            Found::OnDisk(end) => self.0.read_disk(index, from, end, max).await,
        }
    }

    async fn bounds(&self, at: TopicPartition) -> PortResult<(Offset, Offset)> {
        let index = self.0.layout.index(at)?;
        // The start first: it never passes an end that is read later.
        let start = self.0.segments.start(index);
        Ok((Offset(start), Offset(self.0.tails.end(index))))
    }

    async fn committed(&self, group: Group, at: &[TopicPartition]) -> PortResult<Vec<Option<Offset>>> {
        at.iter().map(|at| Ok(self.0.groups.committed(group, self.0.layout.index(*at)?).map(Offset))).collect()
    }

    async fn join(&self, group: Group, topics: &[Topic]) -> PortResult<Box<dyn Consumer>> {
        Ok(Box::new(Member::join(self.0.clone(), group, topics)?))
    }

    fn partitions(&self) -> u16 {
        self.0.layout.partitions()
    }

    fn durability(&self) -> Durability {
        Durability::Disk
    }

    async fn check(&self) -> PortResult<()> {
        self.0.engine.check()
    }
}
