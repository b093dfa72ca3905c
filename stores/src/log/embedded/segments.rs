//! Segments: the log on disk is cut by time into keyspaces, each with the chunks of all partitions appended while it was the
//! newest. Retention drops the oldest whole, which costs the same whatever it holds.
//!
//! A segment's row says where each partition began in it; it is written before the segment's first record, so a segment
//! without a row is empty, and a segment ends where the next begins. Removing goes the other way: the row first.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use fjall::Keyspace;
use parking_lot::RwLock;
use schemas::{
    Offset, Timestamp, codec,
    port::{Fetch, PortError, PortResult, Record},
};
use serde::{Deserialize, Serialize};

use super::{
    chunk,
    layout::{Layout, chunk_key, last_of, prefix},
    tail::Taking,
};
use crate::{
    OpenError,
    embedded::{Engine, Pending, Shape, Write},
};

/// One of them.
pub(crate) struct Segment {
    pub(crate) number: u64,
    pub(crate) created_at: Timestamp,
    /// The first offset of each partition, by index.
    pub(crate) starts: Vec<u64>,
    /// Bytes appended to it.
    pub(crate) bytes: AtomicU64,
    pub(crate) chunks: Keyspace,
}

/// A segment's row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    created_at: Timestamp,
    /// Topic number, partition, first offset, where that is not zero.
    starts: Vec<(u8, u16, u64)>,
    /// Bytes of the segment before.
    before: u64,
}

/// All of them, oldest first, never none.
pub(crate) struct Segments {
    engine: Engine,
    layout: Layout,
    rows: Keyspace,
    list: RwLock<Vec<Arc<Segment>>>,
}

impl Segments {
    /// Finds the segments of a data folder and where each partition ends. Looks at one key a partition, never at records.
    pub(crate) fn open(engine: &Engine, layout: &Layout, now: Timestamp) -> Result<(Self, Vec<u64>), OpenError> {
        let rows = engine.keyspace("log.segments", Shape::Rows)?;
        let mut known = read_rows(engine, &rows)?;
        drop_strays(engine, &known)?;
        if known.is_empty() {
            let row = Row { created_at: now, starts: Vec::new(), before: 0 };
            // Not waited for: it stands before every record in the order of writes.
            let submitted = engine.submit(vec![put_row(&rows, 0, &row)]);
            submitted.map_err(|error| {
                let source = std::io::Error::new(std::io::ErrorKind::StorageFull, error.to_string());
                OpenError::io("writing the first segment of the log in", engine.path())(source)
            })?;
            known.insert(0, row);
        }
        let mut list = Vec::with_capacity(known.len());
        for (number, row) in &known {
            let chunks = engine.keyspace_named(&keyspace_name(*number), Shape::Appended)?;
            let mut starts = vec![0; layout.count()];
            for (topic, partition, start) in &row.starts {
                if let Some(index) = layout.find(*topic, *partition) {
                    starts[index] = *start;
                }
            }
            let bytes = match known.get(&(number + 1)) {
                Some(next) => next.before,
                None => chunks.disk_space(),
            };
            let bytes = AtomicU64::new(bytes);
            list.push(Arc::new(Segment { number: *number, created_at: row.created_at, starts, bytes, chunks }));
        }
        let Some(newest) = list.last() else { return Err(damaged(engine, "it has no segment".into())) };
        let ends = ends(newest, layout).map_err(OpenError::engine(engine.path()))?;
        let list = RwLock::new(list);
        Ok((Self { engine: engine.clone(), layout: layout.clone(), rows, list }, ends))
    }

    pub(crate) fn newest(&self) -> Option<Arc<Segment>> {
        self.list.read().last().cloned()
    }

    /// The first offset kept of a partition.
    pub(crate) fn start(&self, index: usize) -> u64 {
        self.list.read().first().map_or(0, |segment| segment.starts[index])
    }

    /// The oldest and the one after it, and the bytes of all.
    pub(crate) fn oldest(&self) -> Option<(Arc<Segment>, Arc<Segment>, u64)> {
        let list = self.list.read();
        let [oldest, next, ..] = list.as_slice() else { return None };
        let bytes = list.iter().map(|segment| segment.bytes.load(Ordering::Relaxed)).sum();
        Some((oldest.clone(), next.clone(), bytes))
    }

    /// Makes the keyspace of the next segment. Slow: it touches the disk.
    pub(crate) fn prepare(&self) -> Result<(u64, Keyspace), OpenError> {
        let number = self.newest().map_or(0, |newest| newest.number + 1);
        Ok((number, self.engine.keyspace_named(&keyspace_name(number), Shape::Appended)?))
    }

    /// Makes the next segment the newest. Called while nobody can append, with the next offset of each partition.
    pub(crate) fn roll(
        &self,
        (number, chunks): (u64, Keyspace),
        starts: Vec<u64>,
        now: Timestamp,
    ) -> PortResult<(Arc<Segment>, Pending)> {
        let before = self.newest().map_or(0, |newest| newest.bytes.load(Ordering::Relaxed));
        let named = starts.iter().enumerate().filter(|(_, start)| **start > 0).map(|(index, start)| {
            let at = self.layout.at(index);
            (at.topic.number(), at.partition.0, *start)
        });
        let row = Row { created_at: now, starts: named.collect(), before };
        let pending = self.engine.submit(vec![put_row(&self.rows, number, &row)])?;
        let segment = Arc::new(Segment { number, created_at: now, starts, bytes: AtomicU64::new(0), chunks });
        self.list.write().push(segment.clone());
        Ok((segment, pending))
    }

    /// Removes the oldest. Records that a reader is in the middle of stay until it is done.
    pub(crate) async fn remove(&self, oldest: &Segment) -> PortResult<()> {
        let key = oldest.number.to_be_bytes().to_vec();
        self.engine.write(vec![Write::Remove { from: self.rows.clone(), key }]).await?;
        self.list.write().retain(|segment| segment.number != oldest.number);
        let dropped = self.engine.database().delete_keyspace(oldest.chunks.clone());
        dropped.map_err(|error| PortError::Unavailable(format!("an old segment could not be removed: {error:?}")))
    }

    /// Reads from disk, up to `end`. Slow. What stands before something that cannot be read is read; from there on it is refused.
    pub(crate) fn read(&self, index: usize, from: u64, end: u64, max: Fetch) -> PortResult<Vec<Record>> {
        let mut taken = Taking::new(max);
        match self.take(index, from, end, &mut taken) {
            Err(why) if taken.records.is_empty() => Err(why),
            _ => Ok(taken.records),
        }
    }

    fn take(&self, index: usize, from: u64, end: u64, taken: &mut Taking) -> PortResult<()> {
        let at = self.layout.at(index);
        let list = self.list.read().clone();
        let from = from.max(list.first().map_or(0, |segment| segment.starts[index]));
        // The newest that began at or before the offset holds it.
        let first = list.iter().rposition(|segment| segment.starts[index] <= from).unwrap_or_default();
        let mut next = from;
        for segment in &list[first..] {
            let upper = chunk_key(at, Offset(u64::MAX));
            for row in segment.chunks.range(chunk_key(at, Offset(next))..=upper) {
                let (key, value) = row.into_inner().map_err(|error| unreadable(at, next, &format!("{error:?}")))?;
                let last = last_of(&key).ok_or_else(|| unreadable(at, next, "its key is not one"))?;
                let chunk = chunk::decode(at, last, Bytes::from(value));
                let chunk = chunk.ok_or_else(|| unreadable(at, next, "it is not what this release writes"))?;
                if chunk.base > next {
                    return Err(unreadable(at, next, "records before it are missing"));
                }
                for record in &chunk.records[(next - chunk.base) as usize..] {
                    if record.offset.0 >= end || !taken.take(record) {
                        return Ok(());
                    }
                    next += 1;
                }
            }
            if next >= end {
                break;
            }
        }
        if taken.records.is_empty() && next < end && self.start(index) <= next {
            return Err(unreadable(at, next, "it is missing"));
        }
        Ok(())
    }
}

/// Where each partition ends: after the last key of the newest segment, or where that segment began.
fn ends(newest: &Segment, layout: &Layout) -> fjall::Result<Vec<u64>> {
    let mut ends = newest.starts.clone();
    for (index, end) in ends.iter_mut().enumerate() {
        let last = newest.chunks.prefix(prefix(layout.at(index))).next_back();
        if let Some(last) = last.map(fjall::Guard::key).transpose()?.as_deref().and_then(last_of) {
            *end = last.0 + 1;
        }
    }
    Ok(ends)
}

fn read_rows(engine: &Engine, rows: &Keyspace) -> Result<BTreeMap<u64, Row>, OpenError> {
    let mut known = BTreeMap::new();
    for row in rows.iter() {
        let (key, value) = row.into_inner().map_err(OpenError::engine(engine.path()))?;
        let number = <[u8; 8]>::try_from(&*key).map(u64::from_be_bytes);
        let number = number.map_err(|_| damaged(engine, "a segment of the log has no number".into()))?;
        let row = codec::decode(&value).map_err(|e| damaged(engine, format!("the row of segment {number}: {e}")))?;
        known.insert(number, row);
    }
    let gap = known.keys().zip(known.keys().skip(1)).find(|(a, b)| *a + 1 != **b);
    match gap {
        Some((before, _)) => Err(damaged(engine, format!("the log's segment {} is missing", before + 1))),
        None => Ok(known),
    }
}

/// Drops what a crash left: a segment whose row was not written yet, or removed already.
fn drop_strays(engine: &Engine, known: &BTreeMap<u64, Row>) -> Result<(), OpenError> {
    for name in engine.database().list_keyspace_names() {
        let number = name.strip_prefix("log.").and_then(|n| n.parse::<u64>().ok());
        if number.is_some_and(|number| !known.contains_key(&number)) {
            let stray = engine.keyspace_named(&name, Shape::Appended)?;
            engine.database().delete_keyspace(stray).map_err(OpenError::engine(engine.path()))?;
        }
    }
    Ok(())
}

fn put_row(rows: &Keyspace, number: u64, row: &Row) -> Write {
    Write::Put { to: rows.clone(), key: number.to_be_bytes().to_vec(), value: codec::encode(row) }
}

fn keyspace_name(number: u64) -> String {
    format!("log.{number}")
}

fn damaged(engine: &Engine, why: String) -> OpenError {
    OpenError::Damaged { path: engine.path().into(), why }
}

fn unreadable(at: schemas::TopicPartition, offset: u64, why: &str) -> PortError {
    PortError::Rejected(format!(
        "record {offset} of {at} cannot be read: {why}. Stop, then look at the data folder with `esh3ar data check`"
    ))
}
