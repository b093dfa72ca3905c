//! What is sent: counters since the process began, for figures and for the bench.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

static ROWS: AtomicU64 = AtomicU64::new(0);
static REQUESTS: AtomicU64 = AtomicU64::new(0);

/// One request of so many rows is being sent.
pub(super) fn count(rows: usize) {
    ROWS.fetch_add(rows as u64, Relaxed);
    REQUESTS.fetch_add(1, Relaxed);
}

/// Rows written, and requests they were written in.
pub(super) fn written() -> (u64, u64) {
    (ROWS.load(Relaxed), REQUESTS.load(Relaxed))
}
