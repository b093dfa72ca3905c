//! What is sent: counters since the process began, for figures and for the bench.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::statements::{NAMES, Pick};

static ROWS: AtomicU64 = AtomicU64::new(0);
static REQUESTS: AtomicU64 = AtomicU64::new(0);
static READS: [AtomicU64; NAMES.len()] = [const { AtomicU64::new(0) }; NAMES.len()];

/// One request of so many rows is being sent.
pub(super) fn count(rows: usize) {
    ROWS.fetch_add(rows as u64, Relaxed);
    REQUESTS.fetch_add(1, Relaxed);
}

/// One request that reads is being sent.
pub(super) fn read(pick: Pick) {
    if let Some(count) = READS.get(pick as usize) {
        count.fetch_add(1, Relaxed);
    }
}

/// Rows written, and requests they were written in.
pub(super) fn written() -> (u64, u64) {
    (ROWS.load(Relaxed), REQUESTS.load(Relaxed))
}

/// Requests that read, by the name of their statement, where there were any.
pub(super) fn reads() -> Vec<(&'static str, u64)> {
    let counts = NAMES.iter().zip(&READS).map(|(name, count)| (*name, count.load(Relaxed)));
    counts.filter(|(_, count)| *count > 0).collect()
}
