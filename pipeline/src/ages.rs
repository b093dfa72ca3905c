//! A map that forgets by itself: two generations, turned by time or when the young one is full.
//!
//! Remembers an entry for at least `every_ms` unless more than `most / 2` newer ones came, and never holds more than `most`.
//! Both generations keep their room, so that no insert has to rehash (a rehash of a million entries stalls its thread).

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::{BuildHasher, Hash, Hasher},
};

use schemas::Millis;

/// Hashes keys that are random already (UUIDs) or short. Seeded for each process: nobody outside can choose collisions.
#[derive(Clone)]
pub(crate) struct Fold(u64);

impl Default for Fold {
    fn default() -> Self {
        Self(RandomState::new().hash_one(0x9e37_79b9_7f4a_7c15_u64) | 1)
    }
}

impl BuildHasher for Fold {
    type Hasher = Folded;
    fn build_hasher(&self) -> Folded {
        Folded(self.0)
    }
}

/// The state of one hash: each eight bytes are folded in by one wide multiplication.
pub(crate) struct Folded(u64);

impl Folded {
    fn fold(&mut self, word: u64) {
        let wide = u128::from(self.0 ^ word).wrapping_mul(0xa076_1d64_78bd_642f_e703_7ed1_a0b4_28db);
        self.0 = (wide as u64) ^ ((wide >> 64) as u64) ^ word.rotate_left(23);
    }
}

impl Hasher for Folded {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.fold(u64::from_le_bytes(*word)));
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            self.fold(u64::from_le_bytes(last));
        }
    }
    fn write_u8(&mut self, n: u8) {
        self.fold(u64::from(n));
    }
    fn write_u16(&mut self, n: u16) {
        self.fold(u64::from(n));
    }
    fn write_u64(&mut self, n: u64) {
        self.fold(n);
    }
    fn write_usize(&mut self, n: usize) {
        self.fold(n as u64);
    }
    fn finish(&self) -> u64 {
        // The table takes its tag from the high bits and its place from the low ones: both must depend on all.
        self.0 ^ (self.0 >> 32)
    }
}

/// The map.
pub(crate) struct Ages<K, V> {
    young: HashMap<K, V, Fold>,
    old: HashMap<K, V, Fold>,
    turned_at: Millis,
    every_ms: u64,
    half: usize,
}

impl<K: Hash + Eq, V> Ages<K, V> {
    /// An empty one with room for `most`.
    pub(crate) fn new(most: usize, every_ms: u64) -> Self {
        let half = (most / 2).max(1);
        let room = || HashMap::with_capacity_and_hasher(half, Fold::default());
        Self { young: room(), old: room(), turned_at: Millis(0), every_ms, half }
    }

    /// Lets time pass.
    pub(crate) fn at(&mut self, now: Millis) {
        let passed = now.since(self.turned_at);
        if passed >= self.every_ms {
            self.turn(now);
        }
        if passed >= 2 * self.every_ms {
            self.old.clear();
        }
    }

    fn turn(&mut self, now: Millis) {
        std::mem::swap(&mut self.young, &mut self.old);
        self.young.clear();
        self.turned_at = now;
    }

    /// Finds an entry.
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    /// Adds or replaces an entry.
    pub(crate) fn insert(&mut self, key: K, value: V, now: Millis) {
        if self.young.len() >= self.half {
            self.turn(now);
        }
        self.young.insert(key, value);
    }

    /// Forgets an entry, and gives what was known.
    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let (young, old) = (self.young.remove(key), self.old.remove(key));
        young.or(old)
    }

    /// How many entries there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_remembers_as_long_as_it_says_and_stays_small(adds in proptest::collection::vec((0u64..500, 0u64..20), 1..300)) {
            let (most, every) = (64, 100);
            let mut ages = Ages::new(most, every);
            let mut now = Millis(0);
            let mut added = Vec::new();
            for (key, pass) in adds {
                now = now.plus(pass);
                ages.at(now);
                ages.insert(key, (), now);
                added.push((key, now));
                prop_assert!(ages.len() <= most);
                // What is younger than a turn, and not pushed out by half a room of newer ones, is known.
                for (key, at) in added.iter().rev().take(most / 2) {
                    if now.since(*at) < every { prop_assert!(ages.get(key).is_some()); }
                }
            }
            let last = added[added.len() - 1].0;
            ages.at(now.plus(every - 1));
            prop_assert!(ages.get(&last).is_some());
            ages.at(now.plus(3 * every));
            prop_assert!(ages.get(&last).is_none());
        }
    }
}
