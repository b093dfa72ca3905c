//! The fence: which owner's writes still count, by the epoch of the last takeover of each partition.
//!
//! Epochs stand on disk, and here as they will stand there when everything submitted so far is written. Whoever raises or
//! asks does so while nobody else can submit (`EmbeddedHistory::line`): a late owner's batch stands before the takeover,
//! where the newer owner finds it, or not at all.

use std::collections::HashMap;

use parking_lot::Mutex;
use schemas::{
    Epoch, Partition,
    port::{Entry, PortError, PortResult, Schedule},
};

use super::{
    keys,
    tables::{Tables, key, put, strange},
};
use crate::{OpenError, embedded::Write};

/// The last takeover of each partition that was ever taken over.
#[derive(Debug, Default)]
pub(super) struct Fence(Mutex<HashMap<Partition, Epoch>>);

impl Fence {
    /// Reads what stands on disk.
    pub(super) fn load(tables: &Tables) -> Result<Self, OpenError> {
        let read = || -> PortResult<HashMap<Partition, Epoch>> {
            let mut epochs = HashMap::new();
            for row in tables.meta.prefix(b"e") {
                let row = key(row)?;
                let partition = keys::parse_epoch(&row).ok_or_else(|| strange(&tables.meta))?;
                epochs.extend(tables.get(&tables.meta, &row)?.map(|epoch| (partition, epoch)));
            }
            Ok(epochs)
        };
        let damaged = |why: PortError| OpenError::Damaged { path: tables.engine.path().into(), why: why.to_string() };
        read().map(|epochs| Self(Mutex::new(epochs))).map_err(damaged)
    }

    /// The epochs that a takeover of these gives, and the rows that say so. [`Fence::raise`] makes them count.
    pub(super) fn next(&self, tables: &Tables, partitions: &[Partition]) -> (Vec<Epoch>, Vec<Write>) {
        let known = self.0.lock();
        let mut raised = HashMap::with_capacity(partitions.len());
        let mut give = |partition: &Partition| {
            let before = raised.get(partition).or_else(|| known.get(partition)).copied().unwrap_or_default();
            let epoch = Epoch(before.0.saturating_add(1));
            raised.insert(*partition, epoch);
            (epoch, put(&tables.meta, keys::epoch(*partition), &epoch))
        };
        partitions.iter().map(&mut give).unzip()
    }

    /// From now on nobody older than these writes.
    pub(super) fn raise(&self, partitions: &[Partition], epochs: &[Epoch]) {
        self.0.lock().extend(partitions.iter().copied().zip(epochs.iter().copied()));
    }

    /// Whether all of this may be written.
    pub(super) fn check(&self, entries: &[Entry], schedule: &Schedule) -> PortResult<()> {
        let known = self.0.lock();
        let of_entries = entries.iter().map(|entry| (entry.inbox.partition, entry.position.epoch));
        for (partition, epoch) in of_entries.chain(schedule.epochs.iter().copied()) {
            if let Some(last) = known.get(&partition).filter(|last| epoch < **last) {
                let (last, epoch) = (last.0, epoch.0);
                return Err(PortError::Fenced(format!(
                    "partition {partition} is in epoch {last}, and this was written in {epoch}"
                )));
            }
        }
        Ok(())
    }
}
