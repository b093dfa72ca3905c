//! Who has what: the brokers give and take partitions of topics one by one, a consumer is told of whole partition numbers.
//! Pure: decides what is told and when, and what may be committed; `member` acts.
//!
//! A number is told as assigned when it is held in all topics, and as revoked as soon as it is asked back or lost in one. It is
//! given up when its owner released it. What is lost (the group has gone on without this member) is nobody's to hold: its
//! owner is told, and may commit nothing.

use std::collections::BTreeMap;

use schemas::{Partition, port::PortError};

/// What the consumer was told last about a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Told {
    #[default]
    Nothing,
    Assigned,
    /// And it has not released it yet.
    Revoked,
}

#[derive(Debug, Clone, Copy, Default)]
struct Number {
    /// Bits of the topics that the brokers gave.
    held: u32,
    /// Bits of those that they ask back.
    asked: u32,
    told: Told,
    /// Since it was told as assigned, some of it went without being released.
    lost: bool,
}

/// The numbers of one member.
#[derive(Debug, Default)]
pub(crate) struct Owned {
    topics: usize,
    numbers: BTreeMap<Partition, Number>,
}

impl Owned {
    /// Of a member that reads so many topics, at most 32.
    pub(crate) fn new(topics: usize) -> Self {
        Self { topics, numbers: BTreeMap::new() }
    }

    fn all(&self) -> u32 {
        1u32.checked_shl(self.topics as u32).map_or(u32::MAX, |bit| bit - 1)
    }

    /// The brokers gave these.
    pub(crate) fn gained(&mut self, places: impl IntoIterator<Item = (usize, Partition)>) {
        for (topic, partition) in places {
            let number = self.numbers.entry(partition).or_default();
            number.held |= 1 << topic;
            number.asked &= !(1 << topic);
        }
    }

    /// The brokers ask these back, and wait.
    pub(crate) fn asked(&mut self, places: impl IntoIterator<Item = (usize, Partition)>) {
        for (topic, partition) in places {
            let number = self.numbers.entry(partition).or_default();
            number.asked |= number.held & (1 << topic);
        }
    }

    /// These were given back, or are gone.
    pub(crate) fn gone(&mut self, places: impl IntoIterator<Item = (usize, Partition)>) {
        for (topic, partition) in places {
            let Some(number) = self.numbers.get_mut(&partition) else { continue };
            number.held &= !(1 << topic);
            number.asked &= !(1 << topic);
            number.lost |= number.told != Told::Nothing;
        }
    }

    /// All is gone.
    pub(crate) fn all_gone(&mut self) {
        for number in self.numbers.values_mut() {
            (number.held, number.asked) = (0, 0);
            number.lost |= number.told != Told::Nothing;
        }
    }

    /// Whether what is asked back was released, so that it can be given.
    pub(crate) fn released_all(&self) -> bool {
        self.numbers.values().all(|number| number.asked == 0 || number.told == Told::Nothing)
    }

    /// What the consumer is to be told now: first what it is to give up. It counts as told.
    pub(crate) fn tell(&mut self) -> Option<Tell> {
        let all = self.all();
        let mut told = Vec::new();
        for (partition, number) in &mut self.numbers {
            if number.told == Told::Assigned && (number.held != all || number.asked != 0 || number.lost) {
                number.told = Told::Revoked;
                told.push(*partition);
            }
        }
        if !told.is_empty() {
            return Some(Tell::Revoked(told));
        }
        for (partition, number) in &mut self.numbers {
            if number.told == Told::Nothing && number.held == all && number.asked == 0 {
                (number.told, number.lost) = (Told::Assigned, false);
                told.push(*partition);
            }
        }
        (!told.is_empty()).then_some(Tell::Assigned(told))
    }

    /// The consumer gives these up.
    pub(crate) fn released(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            if let Some(number) = self.numbers.get_mut(partition)
                && number.told == Told::Revoked
            {
                (number.told, number.lost) = (Told::Nothing, false);
            }
        }
        self.numbers.retain(|_, number| number.held != 0 || number.told != Told::Nothing);
    }

    /// Whether offsets of it may be committed.
    pub(crate) fn may_commit(&self, partition: Partition) -> Result<(), PortError> {
        match self.numbers.get(&partition) {
            Some(Number { lost: true, .. }) => {
                Err(PortError::Fenced(format!("partition {partition} was lost: the group went on without this member")))
            }
            Some(Number { told: Told::Assigned | Told::Revoked, .. }) => Ok(()),
            _ => Err(PortError::Rejected(format!("partition {partition} is not this member's"))),
        }
    }
}

/// What a consumer is told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Tell {
    Assigned(Vec<Partition>),
    Revoked(Vec<Partition>),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const P: Partition = Partition(3);

    #[test]
    fn a_number_is_assigned_when_it_is_held_in_all_topics() {
        let mut owned = Owned::new(3);
        owned.gained([(0, P), (2, P)]);
        assert_eq!(owned.tell(), None);
        assert!(matches!(owned.may_commit(P), Err(PortError::Rejected(_))));
        owned.gained([(1, P)]);
        assert_eq!(owned.tell(), Some(Tell::Assigned(vec![P])));
        assert_eq!((owned.tell(), owned.may_commit(P)), (None, Ok(())));
    }

    #[test]
    fn a_number_asked_back_in_one_topic_is_revoked_and_given_when_it_is_released() {
        let mut owned = Owned::new(2);
        owned.gained([(0, P), (1, P)]);
        owned.tell();
        owned.asked([(1, P)]);
        assert!(!owned.released_all());
        assert_eq!(owned.tell(), Some(Tell::Revoked(vec![P])));
        assert_eq!(owned.may_commit(P), Ok(()), "the last offsets");
        assert!(!owned.released_all());
        owned.released(&[P]);
        assert!(owned.released_all());
        assert!(matches!(owned.may_commit(P), Err(PortError::Rejected(_))));
        owned.gone([(1, P)]);
        assert_eq!(owned.tell(), None, "one topic alone is nothing");
        owned.gained([(1, P)]);
        assert_eq!(owned.tell(), Some(Tell::Assigned(vec![P])));
    }

    #[test]
    fn a_number_that_was_lost_commits_nothing_and_comes_back_only_after_it_was_released() {
        let mut owned = Owned::new(1);
        owned.gained([(0, P)]);
        owned.tell();
        owned.all_gone();
        owned.gained([(0, P)]);
        assert!(matches!(owned.may_commit(P), Err(PortError::Fenced(_))));
        assert_eq!(owned.tell(), Some(Tell::Revoked(vec![P])));
        assert_eq!(owned.tell(), None);
        assert!(matches!(owned.may_commit(P), Err(PortError::Fenced(_))));
        owned.released(&[P]);
        assert_eq!(owned.tell(), Some(Tell::Assigned(vec![P])));
        assert_eq!(owned.may_commit(P), Ok(()));
    }

    #[test]
    fn what_was_never_told_needs_no_release() {
        let mut owned = Owned::new(2);
        owned.gained([(0, P)]);
        owned.asked([(0, P)]);
        assert!(owned.released_all());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Whatever the brokers do, a consumer hears of each number in turns, assigned then revoked, and is assigned only what is
        /// held in all topics at that moment.
        #[test]
        fn a_consumer_hears_in_turns(steps in prop::collection::vec((0u8..6, 0usize..3, 0u16..3), 1..80)) {
            let mut owned = Owned::new(3);
            let mut held = std::collections::BTreeSet::new();
            let mut has = std::collections::BTreeMap::<Partition, bool>::new();
            for (what, topic, partition) in steps {
                let place = (topic, Partition(partition));
                match what {
                    0 | 1 => { held.insert(place); owned.gained([place]) }
                    2 => owned.asked([place]),
                    3 => { held.remove(&place); owned.gone([place]) }
                    4 if topic == 0 => { held.clear(); owned.all_gone() }
                    _ => {
                        let revoked: Vec<_> = has.iter().filter(|(_, has)| !**has).map(|(p, _)| *p).collect();
                        owned.released(&revoked);
                        has.retain(|_, has| *has);
                    }
                }
                while let Some(tell) = owned.tell() {
                    match tell {
                        Tell::Assigned(partitions) => for p in partitions {
                            prop_assert!((0..3).all(|t| held.contains(&(t, p))));
                            prop_assert_eq!(has.insert(p, true), None);
                            prop_assert!(owned.may_commit(p).is_ok());
                        },
                        Tell::Revoked(partitions) => for p in partitions {
                            prop_assert_eq!(has.insert(p, false), Some(true));
                        },
                    }
                }
                for (p, has) in &has {
                    if *has {
                        prop_assert!((0..3).all(|t| held.contains(&(t, *p))));
                    }
                }
            }
        }
    }
}
