//! Where things stand: partitions of topics as small indexes in memory, and their keys on disk.

use schemas::{Offset, Partition, Topic, TopicPartition, port::PortError};

/// All partitions of all topics, numbered.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    topics: Vec<Topic>,
    // By `Topic::number`.
    places: [u8; 256],
    partitions: u16,
}

impl Layout {
    pub(crate) fn new(partitions: u16) -> Self {
        let topics: Vec<_> = Topic::all().collect();
        let mut places = [u8::MAX; 256];
        for (at, topic) in (0..).zip(&topics) {
            places[usize::from(topic.number())] = at;
        }
        Self { topics, places, partitions }
    }

    pub(crate) fn partitions(&self) -> u16 {
        self.partitions
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.topics.len() * usize::from(self.partitions)
    }

    /// The index of one.
    pub(crate) fn index(&self, at: TopicPartition) -> Result<usize, PortError> {
        if at.partition.0 >= self.partitions {
            return Err(PortError::Rejected(format!("{at} does not exist: there are {} partitions", self.partitions)));
        }
        let place = usize::from(self.places[usize::from(at.topic.number())]);
        Ok(place * usize::from(self.partitions) + usize::from(at.partition.0))
    }

    /// The one of an index.
    pub(crate) fn at(&self, index: usize) -> TopicPartition {
        let partitions = usize::from(self.partitions.max(1));
        TopicPartition { topic: self.topics[index / partitions], partition: Partition((index % partitions) as u16) }
    }

    /// The one of a topic's number and a partition as they stand in a key.
    pub(crate) fn find(&self, number: u8, partition: u16) -> Option<usize> {
        let place = self.places[usize::from(number)];
        (place != u8::MAX && partition < self.partitions)
            .then(|| usize::from(place) * usize::from(self.partitions) + usize::from(partition))
    }

    /// All of some topics and one partition number.
    pub(crate) fn of_partition<'a>(
        &'a self,
        topics: &'a [Topic],
        partition: Partition,
    ) -> impl Iterator<Item = usize> + 'a {
        topics.iter().filter_map(move |topic| self.index(TopicPartition { topic: *topic, partition }).ok())
    }
}

/// What the keys of one partition of one topic begin with.
pub(crate) fn prefix(at: TopicPartition) -> [u8; 3] {
    let [high, low] = at.partition.0.to_be_bytes();
    [at.topic.number(), high, low]
}

/// The key of a chunk: its last offset, so that one seek forward from an offset finds the chunk that holds it, and the last
/// key says where the partition ends.
pub(crate) fn chunk_key(at: TopicPartition, last: Offset) -> [u8; 11] {
    let mut key = [0; 11];
    key[..3].copy_from_slice(&prefix(at));
    key[3..].copy_from_slice(&last.0.to_be_bytes());
    key
}

/// The last offset in a chunk's key.
pub(crate) fn last_of(key: &[u8]) -> Option<Offset> {
    let bytes = key.get(3..11)?.try_into().ok()?;
    Some(Offset(u64::from_be_bytes(bytes)))
}

/// The key of a group's committed offset.
pub(crate) fn commit_key(group: &str, at: TopicPartition) -> Vec<u8> {
    let mut key = Vec::with_capacity(group.len() + 4);
    key.extend_from_slice(group.as_bytes());
    key.push(0);
    key.extend_from_slice(&prefix(at));
    key
}

/// Reads [`commit_key`]: the group, the topic's number and the partition.
pub(crate) fn read_commit_key(key: &[u8]) -> Option<(&str, u8, u16)> {
    let (name, rest) = key.split_last_chunk::<4>().map(|(name, rest)| (name, *rest))?;
    let [0, number, high, low] = rest else { return None };
    Some((std::str::from_utf8(name).ok()?, number, u16::from_be_bytes([high, low])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_partition_has_an_index_of_its_own_and_keys_read_back() {
        let layout = Layout::new(24);
        for index in 0..layout.count() {
            let at = layout.at(index);
            assert_eq!(layout.index(at), Ok(index));
            assert_eq!(layout.find(at.topic.number(), at.partition.0), Some(index));
            let key = commit_key("esh3ar.pipeline", at);
            assert_eq!(read_commit_key(&key), Some(("esh3ar.pipeline", at.topic.number(), at.partition.0)));
            assert_eq!(last_of(&chunk_key(at, Offset(77))), Some(Offset(77)));
        }
        assert!(layout.index(TopicPartition { topic: Topic::Dead, partition: Partition(24) }).is_err());
    }
}
