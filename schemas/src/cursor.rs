//! Cursors: opaque to clients, exact to us.

use std::{collections::BTreeMap, fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{
    ids::BadName,
    position::{Epoch, Position},
    topic::{Offset, Partition},
};

/// Up to where a device has its user's inbox: a position for each partition that writes to it (one for a mobile user).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cursor(pub BTreeMap<Partition, Position>);

/// The most partitions one cursor names: as many as an installation may have.
const MAX_PARTS: usize = 1024;

impl Cursor {
    /// A cursor of one inbox.
    pub fn at(partition: Partition, position: Position) -> Self {
        Self(BTreeMap::from([(partition, position)]))
    }

    /// The position in one partition's inbox; the start where it names none.
    pub fn position(&self, partition: Partition) -> Position {
        self.0.get(&partition).copied().unwrap_or(Position::START)
    }

    /// Moves forward to `position`; a cursor never goes back. Says whether it moved.
    pub fn advance(&mut self, partition: Partition, position: Position) -> bool {
        let here = self.0.entry(partition).or_insert(Position::START);
        let moved = position > *here;
        if moved {
            *here = position;
        }
        moved
    }

    /// Takes the larger of the two in every partition (rule 6: a stored cursor only grows).
    pub fn join(&mut self, other: &Self) {
        for (partition, position) in &other.0 {
            self.advance(*partition, *position);
        }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(1 + self.0.len() * 14);
        bytes.push(b'i');
        for (partition, position) in &self.0 {
            bytes.extend_from_slice(&partition.0.to_be_bytes());
            bytes.extend_from_slice(&position.to_bytes());
        }
        f.write_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for Cursor {
    type Err = BadName;
    fn from_str(text: &str) -> Result<Self, BadName> {
        const BAD: BadName = BadName { what: "cursor", rule: "is not one that this service gave" };
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| BAD)?;
        let Some((b'i', rest)) = bytes.split_first() else { return Err(BAD) };
        if rest.len() % 14 != 0 || rest.len() / 14 > MAX_PARTS {
            return Err(BAD);
        }
        let mut parts = BTreeMap::new();
        for part in rest.chunks_exact(14) {
            let [a, b, place @ ..] = part else { return Err(BAD) };
            let place: [u8; 12] = place.try_into().map_err(|_| BAD)?;
            parts.insert(Partition(u16::from_be_bytes([*a, *b])), Position::from_bytes(place));
        }
        if parts.len() * 14 != rest.len() { Err(BAD) } else { Ok(Self(parts)) }
    }
}

/// Up to where a reader has the feed of status changes: the next offset of each partition of `outcomes`, and how many
/// facts of that record were already given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FeedCursor(pub BTreeMap<Partition, (Offset, u16)>);

impl fmt::Display for FeedCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(1 + self.0.len() * 12);
        bytes.push(b'e');
        for (partition, (offset, within)) in &self.0 {
            bytes.extend_from_slice(&partition.0.to_be_bytes());
            bytes.extend_from_slice(&offset.0.to_be_bytes());
            bytes.extend_from_slice(&within.to_be_bytes());
        }
        f.write_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for FeedCursor {
    type Err = BadName;
    fn from_str(text: &str) -> Result<Self, BadName> {
        const BAD: BadName = BadName { what: "cursor", rule: "is not one that this feed gave" };
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| BAD)?;
        let Some((b'e', rest)) = bytes.split_first() else { return Err(BAD) };
        if rest.len() % 12 != 0 || rest.len() / 12 > MAX_PARTS {
            return Err(BAD);
        }
        let mut parts = BTreeMap::new();
        for part in rest.chunks_exact(12) {
            let [a, b, offset @ .., c, d] = part else { return Err(BAD) };
            let offset: [u8; 8] = offset.try_into().map_err(|_| BAD)?;
            let place = (Offset(u64::from_be_bytes(offset)), u16::from_be_bytes([*c, *d]));
            parts.insert(Partition(u16::from_be_bytes([*a, *b])), place);
        }
        if parts.len() * 12 != rest.len() { Err(BAD) } else { Ok(Self(parts)) }
    }
}

impl Serialize for Cursor {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cursor {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// A place in one inbox's numbering, for tests and tools.
pub fn place(epoch: u32, n: u64) -> Position {
    Position { epoch: Epoch(epoch), n }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn cursors_round_trip(parts in proptest::collection::btree_map(0u16..24, (0u32..9, 0u64..u64::MAX), 0..24)) {
            let cursor = Cursor(parts.into_iter().map(|(p, (e, n))| (Partition(p), place(e, n))).collect());
            prop_assert_eq!(cursor.to_string().parse::<Cursor>().unwrap(), cursor);
        }

        #[test]
        fn any_text_is_a_cursor_or_refused(text in ".{0,64}") {
            if let Ok(cursor) = text.parse::<Cursor>() { prop_assert_eq!(cursor.to_string().parse::<Cursor>().unwrap(), cursor); }
            if let Ok(cursor) = text.parse::<FeedCursor>() { prop_assert_eq!(cursor.to_string().parse::<FeedCursor>().unwrap(), cursor); }
        }

        #[test]
        fn a_cursor_only_grows(moves in proptest::collection::vec((0u32..4, 0u64..50), 1..40)) {
            let mut cursor = Cursor::default();
            for (epoch, n) in moves {
                let before = cursor.position(Partition(0));
                cursor.advance(Partition(0), place(epoch, n));
                prop_assert!(cursor.position(Partition(0)) >= before);
            }
        }
    }
}
