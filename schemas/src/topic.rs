//! Topics, partitions and offsets: where records stand in the log.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{ids::UserId, message::Priority, tier::Tier};

/// One of the three lanes of accepted messages.
pub type Lane = Priority;

/// A partition number. It is owned as one, in all topics at once (rule 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Partition(pub u16);

impl Partition {
    /// Where a mobile user's records go, of `count` partitions (XXH3-64 of the user's text form, modulo the count). Fixed
    /// for the life of an installation: changing it would give an inbox two writers.
    pub fn of(user: &UserId, count: u16) -> Self {
        let hash = xxhash_rust::xxh3::xxh3_64(user.to_string().as_bytes());
        Self((hash % u64::from(count.max(1))) as u16)
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A record's number in its partition: dense from zero, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Offset(pub u64);

impl Offset {
    /// The one after this.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A topic of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// Accepted messages of one priority: `esh3ar.messages.high` and so on.
    Lane(Lane),
    /// Messages waiting out one delay: `esh3ar.retry.1s` and so on.
    Retry(Tier),
    /// Facts about messages: `esh3ar.outcomes`.
    Outcomes,
    /// Messages given up: `esh3ar.dead`.
    Dead,
}

impl Topic {
    /// Every topic of an installation, in the order of their numbers.
    pub fn all() -> impl Iterator<Item = Self> {
        let lanes = Priority::ALL.into_iter().map(Self::Lane);
        let tiers = Tier::ALL.into_iter().map(Self::Retry);
        lanes.chain(tiers).chain([Self::Outcomes, Self::Dead])
    }

    /// The name in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lane(Priority::High) => "esh3ar.messages.high",
            Self::Lane(Priority::Normal) => "esh3ar.messages.normal",
            Self::Lane(Priority::Low) => "esh3ar.messages.low",
            Self::Retry(tier) => tier.topic(),
            Self::Outcomes => "esh3ar.outcomes",
            Self::Dead => "esh3ar.dead",
        }
    }

    /// Finds a topic by its name, with or without the prefix `esh3ar.`.
    pub fn parse(name: &str) -> Option<Self> {
        Self::all().find(|topic| topic.name() == name || topic.name().strip_prefix("esh3ar.") == Some(name))
    }

    /// A number that is never given to another topic: it stands in keys on disk.
    pub fn number(self) -> u8 {
        match self {
            Self::Lane(lane) => lane.number(),
            Self::Retry(tier) => 8 + tier.index() as u8,
            Self::Outcomes => 16,
            Self::Dead => 17,
        }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One partition of one topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// The topic.
    pub topic: Topic,
    /// Which of its partitions.
    pub partition: Partition,
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn topics_have_names_and_numbers_of_their_own() {
        let names: HashSet<_> = Topic::all().map(Topic::name).collect();
        let numbers: HashSet<_> = Topic::all().map(Topic::number).collect();
        assert_eq!((names.len(), numbers.len()), (11, 11));
        assert!(Topic::all().all(|topic| Topic::parse(topic.name()) == Some(topic)));
    }

    #[test]
    fn a_user_s_partition_never_moves() {
        let user: UserId = "acme/+962790000001".parse().unwrap();
        assert_eq!(
            Partition::of(&user, 24),
            Partition(3),
            "the number stands in every data folder: it must not change"
        );
    }
}
