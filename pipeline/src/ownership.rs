//! Ownership: for which partitions this instance may act, and since which takeover. Told by the intake, asked by the flow and
//! the settler before and between their acts, and taken away by whoever learns first that a newer owner is there.
//!
//! Promises that work of a partition which is not held under the takeover it was read under is dropped: no write, no fact, no
//! hint and no commit comes of it after that was known. What was dropped stands behind no committed offset, because the
//! intake asks here too before it commits ([`Ownership::holds`] turns false before the work is dropped). What is under way
//! at that moment is the stores' to refuse (`PortError::Fenced`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    sync::atomic::{AtomicU32, Ordering},
};

use parking_lot::Mutex;
use schemas::{Epoch, Partition};
use tokio::sync::Notify;

use crate::item::Item;

/// What one instance owns. Every epoch of a takeover is above zero, which stands for "not held".
pub(crate) struct Ownership {
    epochs: Box<[AtomicU32]>,
    lost: Mutex<Vec<(Partition, Epoch)>>,
    told: Notify,
}

impl Ownership {
    /// Nothing is held yet, of so many partitions.
    pub(crate) fn of(partitions: u16) -> Self {
        let epochs = (0..partitions).map(|_| AtomicU32::new(0)).collect();
        Self { epochs, lost: Mutex::default(), told: Notify::new() }
    }

    /// It was taken over.
    pub(crate) fn took(&self, partition: Partition, epoch: Epoch) {
        if let Some(held) = self.epochs.get(usize::from(partition.0)) {
            held.store(epoch.0, Ordering::Release);
        }
    }

    /// It is given up: what is still in flight of it is dropped.
    pub(crate) fn gave_up(&self, partition: Partition) {
        self.took(partition, Epoch(0));
    }

    /// Whether it is held, since this takeover.
    pub(crate) fn holds(&self, partition: Partition, epoch: Epoch) -> bool {
        epoch.0 > 0 && self.epochs.get(usize::from(partition.0)).is_some_and(|at| at.load(Ordering::Acquire) == epoch.0)
    }

    /// Somebody was told that it is another's now, or that nothing can be done for it here. The intake hears of it once.
    pub(crate) fn lost(&self, partition: Partition, epoch: Epoch, why: &dyn Display) {
        let Some(held) = self.epochs.get(usize::from(partition.0)) else { return };
        if epoch.0 == 0 || held.compare_exchange(epoch.0, 0, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return;
        }
        metrics::counter!("esh3ar_partitions_lost_total").increment(1);
        tracing::warn!(%partition, epoch = epoch.0, %why, "a partition is not this instance's any more: its work is dropped");
        self.lost.lock().push((partition, epoch));
        self.told.notify_one();
    }

    /// What was lost since this was last asked.
    pub(crate) fn take_lost(&self) -> Vec<(Partition, Epoch)> {
        std::mem::take(&mut *self.lost.lock())
    }

    /// Waits until something was lost. A loss before the wait is not missed.
    pub(crate) async fn told(&self) {
        self.told.notified().await;
    }
}

/// Whose a batch is: each partition in it, with the one takeover that its items were read under.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Owners(Vec<(Partition, Epoch)>);

impl Owners {
    /// One partition.
    pub(crate) fn one(partition: Partition, epoch: Epoch) -> Self {
        Self(vec![(partition, epoch)])
    }

    /// Whose these items are. Items of partitions that are not held are removed; of a partition that was taken over between
    /// two of its items only those of the later takeover stay.
    pub(crate) fn of(items: &mut Vec<Item>, ownership: &Ownership) -> Self {
        let mut owners = Self::default();
        for item in items.iter() {
            match owners.0.iter_mut().find(|(partition, _)| *partition == item.partition) {
                Some((_, epoch)) => *epoch = item.epoch.max(*epoch),
                None => owners.0.push((item.partition, item.epoch)),
            }
        }
        let all = owners.0.len();
        let mixed = items.iter().any(|item| owners.epoch(item.partition) != Some(item.epoch));
        owners.0.retain(|(partition, epoch)| ownership.holds(*partition, *epoch));
        if mixed || owners.0.len() < all {
            items.retain(|item| owners.epoch(item.partition) == Some(item.epoch));
        }
        owners
    }

    fn epoch(&self, partition: Partition) -> Option<Epoch> {
        self.0.iter().find(|(at, _)| *at == partition).map(|(_, epoch)| *epoch)
    }

    /// Takes out the partitions that were lost meanwhile, and names them: everything of theirs is to be dropped.
    pub(crate) fn drop_lost(&mut self, ownership: &Ownership) -> Vec<Partition> {
        let mut gone = Vec::new();
        self.0.retain(|(partition, epoch)| {
            let held = ownership.holds(*partition, *epoch);
            if !held {
                gone.push(*partition);
            }
            held
        });
        gone
    }

    /// Whether any of it is still held.
    pub(crate) fn any_held(&self, ownership: &Ownership) -> bool {
        self.0.iter().any(|(partition, epoch)| ownership.holds(*partition, *epoch))
    }

    /// Nothing can be done for any of these here.
    pub(crate) fn lose(&self, ownership: &Ownership, why: &dyn Display) {
        self.0.iter().for_each(|(partition, epoch)| ownership.lost(*partition, *epoch, why));
    }

    /// One by one.
    pub(crate) fn each(&self) -> impl Iterator<Item = (Partition, Epoch)> + '_ {
        self.0.iter().copied()
    }

    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// As a store is told of them.
    pub(crate) fn epochs(&self) -> BTreeSet<(Partition, Epoch)> {
        self.0.iter().copied().collect()
    }
}

impl From<BTreeMap<Partition, Epoch>> for Owners {
    fn from(owned: BTreeMap<Partition, Epoch>) -> Self {
        Self(owned.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{fresh, message};

    fn item(partition: u16, epoch: u32) -> Item {
        Item { partition: Partition(partition), epoch: Epoch(epoch), ..fresh(message(1)) }
    }

    #[test]
    fn a_batch_keeps_what_is_held_under_its_own_takeover() {
        let ownership = Ownership::of(4);
        ownership.took(Partition(0), Epoch(3));
        ownership.took(Partition(1), Epoch(7));
        let mut items = vec![item(0, 2), item(0, 3), item(1, 7), item(2, 1), item(9, 1), item(0, 0)];
        let mut owners = Owners::of(&mut items, &ownership);
        assert_eq!(items.iter().map(|i| (i.partition.0, i.epoch.0)).collect::<Vec<_>>(), [(0, 3), (1, 7)]);
        assert!(owners.drop_lost(&ownership).is_empty());
        ownership.lost(Partition(1), Epoch(6), &"another takeover's news");
        assert!(owners.drop_lost(&ownership).is_empty());
        ownership.lost(Partition(1), Epoch(7), &"test");
        ownership.took(Partition(1), Epoch(8));
        assert_eq!(owners.drop_lost(&ownership), [Partition(1)], "held again, but not since the same takeover");
        assert_eq!(ownership.take_lost(), [(Partition(1), Epoch(7))]);
        assert!(owners.any_held(&ownership));
        ownership.gave_up(Partition(0));
        assert!(!owners.any_held(&ownership) && ownership.take_lost().is_empty(), "who gives up knows it");
    }
}
