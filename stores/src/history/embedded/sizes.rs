//! How much is kept: counted as it is written, never by scanning.
//!
//! The counts go to disk now and then, so after a crash they may be off by what was recorded since; a repeated record is
//! counted twice. The due-table is counted afresh at every start while it is small.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use super::{
    keys,
    tables::{Tables, put},
};
use crate::{OpenError, embedded::Write};

/// Calls of `record` after which the counts are written: one small row in so many.
const EVERY: u64 = 64;
/// Rows of the due-table counted at a start: about 50 ms.
const COUNTED: usize = 100_000;

/// The counts.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    kept: AtomicI64,
    due: AtomicI64,
    calls: AtomicU64,
}

impl Sizes {
    pub(super) fn load(tables: &Tables) -> Result<Self, OpenError> {
        let damaged = |why: String| OpenError::Damaged { path: tables.engine.path().into(), why };
        let stored = tables.get(&tables.meta, b"n").map_err(|why| damaged(why.to_string()))?;
        let (kept, mut due): (i64, i64) = stored.unwrap_or_default();
        let counted = tables.due.prefix(keys::tagged(b'd', &[])).take(COUNTED).count();
        if counted < COUNTED {
            due = counted as i64;
        }
        Ok(Self { kept: kept.into(), due: due.into(), calls: AtomicU64::new(0) })
    }

    /// What is kept, and what is due.
    pub(super) fn now(&self) -> (u64, u64) {
        let count = |of: &AtomicI64| u64::try_from(of.load(Relaxed)).unwrap_or(0);
        (count(&self.kept), count(&self.due))
    }

    pub(super) fn add(&self, kept: i64, due: i64) {
        self.kept.fetch_add(kept, Relaxed);
        self.due.fetch_add(due, Relaxed);
    }

    /// Whether this call is one that writes the counts.
    pub(super) fn is_time(&self) -> bool {
        self.calls.fetch_add(1, Relaxed).is_multiple_of(EVERY)
    }

    pub(super) fn row(&self, tables: &Tables) -> Write {
        put(&tables.meta, *b"n", &(self.kept.load(Relaxed), self.due.load(Relaxed)))
    }
}
