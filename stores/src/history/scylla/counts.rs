//! Counts: how much is kept, for metrics. Counted as it is written, never by scanning.
//!
//! Every process has a row of its own for what it added and took away, written a moment later; the sum of all rows is the
//! count. A crash makes it wrong by what was not written yet, a repeated record is counted twice.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use schemas::port::PortResult;
use scylla::value::CqlValue;
use uuid::Uuid;

use super::{
    session::{Cql, Write},
    statements::Pick,
};

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counted {
    Kept,
    Due,
    Dead,
}

impl Counted {
    const ALL: [Self; 3] = [Self::Kept, Self::Due, Self::Dead];

    fn name(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Due => "due",
            Self::Dead => "dead",
        }
    }
}

/// What this process added and took away.
#[derive(Debug)]
pub(super) struct Counts {
    process: Uuid,
    now: [AtomicI64; 3],
    written: [AtomicI64; 3],
}

impl Default for Counts {
    fn default() -> Self {
        Self { process: Uuid::new_v4(), now: Default::default(), written: Default::default() }
    }
}

impl Counts {
    pub(super) fn add(&self, of: Counted, by: i64) {
        self.now[of as usize].fetch_add(by, Relaxed);
    }

    /// Everybody's together.
    pub(super) async fn total(&self, cql: &Cql, of: Counted) -> PortResult<u64> {
        let rows = cql.pages::<(Uuid, i64)>(Pick::Counts, (of.name(),)).await?;
        let others: i64 = rows.into_iter().filter(|row| row.0 != self.process).map(|row| row.1).sum();
        Ok(u64::try_from(others + self.now[of as usize].load(Relaxed)).unwrap_or(0))
    }

    /// Writes what changed.
    pub(super) async fn flush(&self, cql: &Cql) -> PortResult<()> {
        for of in Counted::ALL {
            let now = self.now[of as usize].load(Relaxed);
            if now != self.written[of as usize].load(Relaxed) {
                let values =
                    vec![CqlValue::Text(of.name().into()), CqlValue::Uuid(self.process), CqlValue::BigInt(now)];
                cql.send(&[Write::new(Pick::Count, values)]).await?;
                self.written[of as usize].store(now, Relaxed);
            }
        }
        Ok(())
    }
}
