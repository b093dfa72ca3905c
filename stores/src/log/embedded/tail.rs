//! The tail: the newest records of each partition, in memory, so that a consumer that keeps up reads without touching the
//! disk; and where each partition ends for readers, which moves only when records are durable.
//!
//! One bound for all partitions together: the oldest chunk of any leaves first.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use schemas::port::{Fetch, Record};

use super::{chunk::Chunk, inbox::Inbox};

#[derive(Default)]
struct Partition {
    chunks: VecDeque<Arc<Chunk>>,
    watchers: Vec<Arc<Inbox>>,
}

struct Slot {
    state: Mutex<Partition>,
    // Changed under the lock of `state`; read without it.
    end: AtomicU64,
}

#[derive(Default)]
struct Kept {
    order: VecDeque<(usize, usize)>,
    bytes: usize,
}

/// The tails of all partitions.
pub(crate) struct Tails {
    slots: Vec<Slot>,
    // Only the writer thread comes here.
    kept: Mutex<Kept>,
    bound: usize,
}

/// What reading from memory answers.
pub(crate) enum Found {
    /// These; they may be fewer than there are.
    Records(Vec<Record>),
    /// There is nothing at or after this offset yet.
    End,
    /// They are older than what memory holds, and stand on disk before this offset.
    OnDisk(u64),
}

impl Tails {
    pub(crate) fn new(ends: Vec<u64>, bound: usize) -> Self {
        let slot = |end| Slot { state: Mutex::default(), end: AtomicU64::new(end) };
        Self { slots: ends.into_iter().map(slot).collect(), kept: Mutex::default(), bound }
    }

    /// Where a partition ends for readers.
    pub(crate) fn end(&self, index: usize) -> u64 {
        self.slots[index].end.load(Ordering::Acquire)
    }

    /// Lets readers have a chunk that is durable, and wakes who waits for it. Called in the order of the offsets.
    pub(crate) fn publish(&self, index: usize, chunk: Chunk) {
        let (bytes, end) = (chunk.bytes(), chunk.end());
        {
            let mut state = self.slots[index].state.lock();
            state.chunks.push_back(Arc::new(chunk));
            self.slots[index].end.store(end, Ordering::Release);
            for watcher in &state.watchers {
                watcher.ready(index);
            }
        }
        let mut kept = self.kept.lock();
        kept.order.push_back((index, bytes));
        kept.bytes += bytes;
        while kept.bytes > self.bound {
            let Some((oldest, bytes)) = kept.order.pop_front() else { break };
            kept.bytes -= bytes;
            self.slots[oldest].state.lock().chunks.pop_front();
        }
    }

    /// Reads from memory.
    pub(crate) fn read(&self, index: usize, from: u64, max: Fetch) -> Found {
        let chunks: Vec<Arc<Chunk>> = {
            let state = self.slots[index].state.lock();
            let end = self.slots[index].end.load(Ordering::Acquire);
            if from >= end {
                return Found::End;
            }
            match state.chunks.front() {
                Some(first) if first.base <= from => {}
                _ => return Found::OnDisk(end),
            }
            let at = state.chunks.partition_point(|chunk| chunk.end() <= from);
            let last = from.saturating_add(max.records.max(1) as u64);
            state.chunks.range(at..).take_while(|chunk| chunk.base < last).cloned().collect()
        };
        // Records are cloned outside the lock that the writer thread needs.
        let mut taken = Taking::new(max);
        for chunk in chunks {
            let skip = from.saturating_sub(chunk.base) as usize;
            for record in &chunk.records[skip..] {
                if !taken.take(record) {
                    return Found::Records(taken.records);
                }
            }
        }
        Found::Records(taken.records)
    }

    /// Bytes kept.
    #[cfg(test)]
    pub(crate) fn kept_bytes(&self) -> usize {
        self.kept.lock().bytes
    }

    /// Has an inbox told of what is published from now on.
    pub(crate) fn watch(&self, index: usize, inbox: &Arc<Inbox>) {
        self.slots[index].state.lock().watchers.push(inbox.clone());
    }

    /// Ends that.
    pub(crate) fn unwatch(&self, index: usize, inbox: &Arc<Inbox>) {
        self.slots[index].state.lock().watchers.retain(|watcher| !Arc::ptr_eq(watcher, inbox));
    }
}

/// Takes records up to a bound; the first always, whatever its size.
pub(crate) struct Taking {
    pub(crate) records: Vec<Record>,
    max: Fetch,
    bytes: usize,
}

impl Taking {
    pub(crate) fn new(max: Fetch) -> Self {
        Self { records: Vec::new(), max, bytes: 0 }
    }

    /// Whether it was taken.
    pub(crate) fn take(&mut self, record: &Record) -> bool {
        let over = self.records.len() >= self.max.records || self.bytes + record.body.len() > self.max.bytes;
        if over && !self.records.is_empty() {
            return false;
        }
        self.bytes += record.body.len();
        self.records.push(record.clone());
        true
    }

    /// What may still be taken.
    pub(crate) fn left(&self) -> Fetch {
        Fetch {
            records: self.max.records.saturating_sub(self.records.len()),
            bytes: self.max.bytes.saturating_sub(self.bytes),
        }
    }

    /// Adds what was taken elsewhere within [`Taking::left`].
    pub(crate) fn extend(&mut self, records: Vec<Record>) {
        self.bytes += records.iter().map(|record| record.body.len()).sum::<usize>();
        self.records.extend(records);
    }
}
