//! A map that forgets: what was not used while half of its room filled up goes.

use std::{collections::HashMap, hash::Hash};

/// At most so many, in two generations.
#[derive(Debug)]
pub(super) struct Ages<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    half: usize,
}

impl<K: Hash + Eq + Clone, V> Ages<K, V> {
    pub(super) fn new(most: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), half: (most / 2).max(1) }
    }

    /// What is remembered; using it keeps it.
    pub(super) fn get(&mut self, key: &K) -> Option<&mut V> {
        if !self.young.contains_key(key) {
            let value = self.old.remove(key)?;
            self.put(key.clone(), value);
        }
        self.young.get_mut(key)
    }

    pub(super) fn put(&mut self, key: K, value: V) {
        if self.young.len() >= self.half && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.old.remove(&key);
        self.young.insert(key, value);
    }

    pub(super) fn remove(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }

    pub(super) fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_rest_goes() {
        let mut ages = Ages::new(8);
        for n in 0..100 {
            ages.put(n, n);
            assert_eq!(ages.get(&0), Some(&mut 0));
            assert_eq!(ages.get(&n), Some(&mut { n }));
        }
        assert!(ages.young.len() + ages.old.len() <= 9);
        assert!(ages.get(&3).is_none());
    }
}
