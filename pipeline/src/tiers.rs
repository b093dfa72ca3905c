//! Tiers: retries that were read and are not due yet. Each tier's records are in due order, so only the first of each
//! partition is looked at; its partition is paused meanwhile, so that what is held is at most what one reading brought.

use std::collections::{BTreeMap, VecDeque};

use schemas::{Lane, Millis, Offset, Partition, TopicPartition};

use crate::item::Item;

/// A retry that waits.
#[derive(Debug)]
pub(crate) struct Held {
    /// When it is due.
    pub(crate) due: Millis,
    /// The lane it rides in.
    pub(crate) lane: Lane,
    /// The retry.
    pub(crate) item: Item,
    /// The offset after it.
    pub(crate) next: Offset,
}

/// All that wait.
#[derive(Debug, Default)]
pub(crate) struct Tiers(BTreeMap<TopicPartition, VecDeque<Held>>);

impl Tiers {
    /// Whether something of this partition waits: what comes after it must wait behind it.
    pub(crate) fn waits(&self, at: TopicPartition) -> bool {
        self.0.contains_key(&at)
    }

    /// Holds a retry. True: it is the first of its partition, which is to be paused.
    pub(crate) fn hold(&mut self, at: TopicPartition, held: Held) -> bool {
        let line = self.0.entry(at).or_default();
        line.push_back(held);
        line.len() == 1
    }

    /// Takes what is due and whose lane has room, in order within each partition. Also names the partitions of which nothing
    /// waits any more: they are to be resumed.
    pub(crate) fn take(
        &mut self,
        now: Millis,
        room: impl Fn(Lane) -> bool,
    ) -> (Vec<(TopicPartition, Held)>, Vec<TopicPartition>) {
        let (mut taken, mut empty) = (Vec::new(), Vec::new());
        self.0.retain(|at, line| {
            let due = line.iter().take_while(|held| held.due <= now && room(held.lane)).count();
            taken.extend(line.drain(..due).map(|held| (*at, held)));
            if line.is_empty() {
                empty.push(*at);
            }
            !line.is_empty()
        });
        (taken, empty)
    }

    /// When the next is due, of lanes that have room.
    pub(crate) fn next_due(&self, room: impl Fn(Lane) -> bool) -> Option<Millis> {
        self.0.values().filter_map(VecDeque::front).filter(|held| room(held.lane)).map(|held| held.due).min()
    }

    /// Another owns these now. Gives what waited.
    pub(crate) fn forget(&mut self, partitions: &[Partition]) -> Vec<Held> {
        let gone = self.0.extract_if(.., |at, _| partitions.contains(&at.partition));
        gone.flat_map(|(_, line)| line).collect()
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.0.values().map(VecDeque::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::again;
    use proptest::prelude::*;
    use schemas::{Topic, tier::Tier};

    proptest! {
        // Nothing lost, nothing doubled, order kept within a partition, nothing early.
        #[test]
        fn retries_come_when_due_and_in_order(waits in proptest::collection::vec((0u16..3, 0u64..50), 0..60), looks in proptest::collection::vec(0u64..30, 1..20)) {
            let mut tiers = Tiers::default();
            let at = |p| TopicPartition { topic: Topic::Retry(Tier::ALL[0]), partition: Partition(p) };
            let total = waits.len();
            for (n, (p, due)) in waits.into_iter().enumerate() {
                let first = !tiers.waits(at(p));
                let held = Held { due: Millis(due), lane: Lane::Normal, item: again(n as u64, 0, 1), next: Offset(n as u64) };
                prop_assert_eq!(tiers.hold(at(p), held), first);
            }
            let (mut now, mut came) = (Millis(0), 0);
            let mut last = BTreeMap::new();
            for pass in looks.into_iter().chain([50]) {
                now = now.plus(pass);
                let (taken, _) = tiers.take(now, |_| true);
                came += taken.len();
                for (at, held) in taken {
                    prop_assert!(held.due <= now);
                    prop_assert!(last.insert(at, held.next).is_none_or(|before| before < held.next));
                }
                prop_assert!(tiers.next_due(|_| true).is_none_or(|due| due > now));
            }
            prop_assert_eq!((came, tiers.len()), (total, 0));
        }
    }
}
