//! What an owner knows of its part of the due-table, and from where to where its looks read. Pure.
//!
//! A row that is done with leaves a grave, and a server refuses a read that passes very many of them. So no look passes the
//! same graves again: rows that a look saw are asked for by their keys from then on, and it reads on behind them. What is
//! remembered goes with the process; a look that is refused then reads narrower pieces, until each passes few enough.

use std::collections::BTreeSet;

use schemas::{Epoch, Timestamp, port::Due};

use super::{BUCKET_MS, Row, bucket, kind};

/// Bits of an id that tell pieces apart: as many as a bucket's milliseconds leave of a number.
const ID_BITS: u32 = 108;
/// A piece that is as wide as any bucket.
pub(in super::super) const WHOLE: u128 = u128::MAX;

/// Where a row stands in its bucket: the order of the table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) struct Key {
    pub(in super::super) at: i64,
    pub(in super::super) id: Vec<u8>,
    pub(in super::super) kind: i32,
}

impl Key {
    /// Before all rows of a time.
    pub(in super::super) fn first_at(at: i64) -> Self {
        Self { at, id: Vec::new(), kind: i32::MIN }
    }

    pub(super) fn of_due(due: &Due) -> Self {
        Self { at: due.at.0, id: due.id.0.as_bytes().to_vec(), kind: kind(&due.kind) }
    }

    pub(super) fn of_row(row: &Row) -> Self {
        Self { at: row.0, id: row.1.clone(), kind: row.2 }
    }

    /// Right behind this row.
    fn behind(mut self) -> Self {
        self.kind = self.kind.saturating_add(1);
        self
    }

    /// Milliseconds since `base`, which is at most a bucket before it, and the first bits of the id.
    fn number(&self, base: i64) -> u128 {
        let mut id = [0; 16];
        id.iter_mut().zip(&self.id).for_each(|(to, from)| *to = *from);
        let ms = self.at.saturating_sub(base).clamp(0, BUCKET_MS);
        (u128::from(ms.unsigned_abs()) << ID_BITS) | (u128::from_be_bytes(id) >> (128 - ID_BITS))
    }

    /// The first key of this number.
    fn numbered(base: i64, number: u128) -> Self {
        let ms = i64::try_from(number >> ID_BITS).unwrap_or(BUCKET_MS);
        Self { at: base.saturating_add(ms), id: (number << (128 - ID_BITS)).to_be_bytes().to_vec(), kind: i32::MIN }
    }
}

/// A way through one bucket, piece by piece.
#[derive(Debug, Clone)]
pub(in super::super) struct Pass {
    pub(in super::super) bucket: i64,
    /// Where the next piece begins.
    pub(super) from: Key,
    end: Key,
    /// How wide a piece is at most.
    pub(in super::super) width: u128,
    /// Up to where all that stands was read; `None`: it is not known to be more than at the beginning.
    pub(in super::super) reached: Option<Key>,
}

impl Pass {
    /// Through what stands from `floor` on and before `end`.
    pub(in super::super) fn new(bucket: i64, floor: Key, end: Key, width: u128) -> Self {
        let start = |bucket: i64| Key::first_at(bucket.saturating_mul(BUCKET_MS));
        let (from, end) = (floor.max(start(bucket)), end.min(start(bucket.saturating_add(1))));
        Self { bucket, from, end, width: width.max(1), reached: None }
    }

    fn base(&self) -> i64 {
        self.bucket.saturating_mul(BUCKET_MS)
    }

    /// Up to where the next piece goes; `None`: the end was reached.
    pub(super) fn next(&self) -> Option<Key> {
        if self.from >= self.end {
            return None;
        }
        let (from, end) = (self.from.number(self.base()), self.end.number(self.base()));
        let cut = from.checked_add(self.width).filter(|cut| *cut < end);
        Some(cut.map_or_else(|| self.end.clone(), |cut| Key::numbered(self.base(), cut)))
    }

    /// All that stands before `to` was read; or, where there was no room for more, up to the last of these rows.
    pub(super) fn read(&mut self, to: Key, rows: &[Row], full: bool) {
        self.width = self.width.saturating_mul(2);
        let last = rows.last().map(|row| Key::of_row(row).behind());
        if let Some(last) = last.clone().filter(|_| full) {
            (self.from, self.reached) = (last.clone(), Some(last));
            return;
        }
        // Up to the end it may not be said: what others write there late is to be seen.
        self.reached = if to < self.end { Some(to.clone()) } else { last.or(self.reached.take()) };
        self.from = to;
    }

    /// The piece was refused: the next one is half as wide. `false`: it cannot be.
    pub(super) fn narrow(&mut self, to: &Key) -> bool {
        let wide = to.number(self.base()).saturating_sub(self.from.number(self.base()));
        self.width = (wide / 2).max(1);
        wide > 1
    }
}

/// What the owner of a partition knows of its part of the due-table, to which nobody else adds.
#[derive(Debug, Clone)]
pub(in super::super) struct Index {
    /// Of which takeover this is.
    pub(super) epoch: Epoch,
    /// Buckets that have rows.
    pub(super) buckets: BTreeSet<i64>,
    /// Whether those that stood at the takeover are among them.
    pub(super) whole: bool,
    /// Rows before the floor: those that looks saw, and of which none has found yet that they are gone.
    pub(super) seen: BTreeSet<Key>,
    /// Nothing else stands before this.
    pub(super) floor: Key,
    /// The earliest that was added since the last look began.
    fresh: Option<Key>,
    /// How wide a piece the servers read.
    pub(super) width: u128,
}

impl Index {
    /// What is known at a takeover.
    pub(super) fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            buckets: BTreeSet::new(),
            whole: false,
            seen: BTreeSet::new(),
            floor: Key::first_at(i64::MIN),
            fresh: None,
            width: WHOLE,
        }
    }

    /// A row is being added, or stands by now.
    pub(super) fn added(&mut self, key: Key) {
        self.buckets.insert(bucket(Timestamp(key.at)));
        self.begin_at(key.clone());
        self.fresh = self.fresh.take().into_iter().chain([key]).min();
    }

    fn begin_at(&mut self, key: Key) {
        if key < self.floor {
            // They are read again.
            self.seen.split_off(&key);
            self.floor = key;
        }
    }

    /// Drops a bucket that a look found empty; not one that was added to since.
    pub(super) fn drop(&mut self, bucket: i64) -> bool {
        let fresh = self.fresh.as_ref().map_or(i64::MAX, |key| self::bucket(Timestamp(key.at)));
        fresh > bucket && self.buckets.remove(&bucket)
    }

    /// Looks, where everything is known; what was found is told to [`Index::asked`] and [`Index::read`].
    pub(super) fn look(&mut self) -> Option<Self> {
        self.whole.then(|| {
            self.fresh = None;
            self.clone()
        })
    }

    /// These of the rows that were seen a look asked for, and these stand.
    pub(super) fn asked(&mut self, look: &Self, asked: &[Key], standing: &BTreeSet<Key>) {
        if self.epoch == look.epoch {
            asked.iter().filter(|key| !standing.contains(*key)).for_each(|key| {
                self.seen.remove(key);
            });
        }
    }

    /// A look read these rows, and all that stands up to where its way has come. What was added since it began stands behind
    /// the floor all the same.
    pub(super) fn read(&mut self, look: &Self, rows: &[Row], pass: &Pass) {
        if self.epoch != look.epoch {
            return;
        }
        self.width = pass.width;
        if let Some(reached) = pass.reached.clone() {
            self.seen.extend(rows.iter().map(Key::of_row));
            self.floor = self.fresh.iter().cloned().chain([reached]).min().unwrap_or_else(|| self.floor.clone());
            self.seen.split_off(&self.floor);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What happens to a row, and when a look begins, has asked for what was seen, reads a piece, and ends.
    #[derive(Debug, Clone)]
    enum Act {
        Write(i64, u8),
        Stand(usize),
        Begin,
        Piece,
        Refuse,
        End,
        Done(usize),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let one = prop_oneof![
            3 => (0i64..40, 0u8..4).prop_map(|(tick, id)| Act::Write(tick * BUCKET_MS / 8, id)),
            3 => (0usize..8).prop_map(Act::Stand),
            2 => Just(Act::Begin),
            4 => Just(Act::Piece),
            1 => Just(Act::Refuse),
            2 => Just(Act::End),
            2 => (0usize..8).prop_map(Act::Done),
        ];
        proptest::collection::vec(one, 0..120)
    }

    fn row(key: &Key) -> Row {
        (key.at, key.id.clone(), key.kind, None)
    }

    fn key(at: i64, id: u8) -> Key {
        Key { at, id: vec![id; 16], kind: 0 }
    }

    const END: i64 = 100 * BUCKET_MS;

    proptest! {
        // However writes and looks overlap, and wherever a look is cut or given up, the next one comes to every row that stood,
        // and was known to stand, before it began: by its key or by reading on.
        #[test]
        fn a_look_comes_to_every_row_that_stands(acts in acts(), limit in 1usize..6) {
            let mut index = Index { whole: true, ..Index::new(Epoch(1)) };
            let (mut on_their_way, mut standing) = (Vec::new(), BTreeSet::new());
            let mut look: Option<(Index, Option<Pass>)> = None;
            for act in acts {
                match act {
                    Act::Write(at, id) => {
                        index.added(key(at, id));
                        on_their_way.push(key(at, id));
                    }
                    Act::Stand(which) if which < on_their_way.len() => {
                        let key = on_their_way.swap_remove(which);
                        standing.insert(key.clone());
                        index.added(key);
                    }
                    Act::Begin => {
                        let begun = index.look().unwrap();
                        for key in &standing {
                            let comes = begun.seen.contains(key) || *key >= begun.floor;
                            prop_assert!(comes && begun.buckets.contains(&bucket(Timestamp(key.at))), "{key:?}");
                        }
                        prop_assert!(begun.seen.iter().all(|key| *key < begun.floor));
                        let asked: Vec<_> = begun.seen.iter().take(limit).cloned().collect();
                        index.asked(&begun, &asked, &standing);
                        look = Some((begun, None));
                    }
                    Act::Piece => {
                        let Some((begun, pass)) = &mut look else { continue };
                        let next = |after: Option<i64>| {
                            let later = |b: &&i64| after.is_none_or(|after| **b > after);
                            let quarter = u128::from(BUCKET_MS.unsigned_abs() / 4) << ID_BITS;
                            let pass = |b: &i64| Pass::new(*b, begun.floor.clone(), Key::first_at(END), quarter);
                            begun.buckets.iter().find(later).map(pass)
                        };
                        let ended = pass.as_ref().filter(|pass| pass.next().is_none()).map(|pass| pass.bucket);
                        if pass.is_none() || ended.is_some() {
                            *pass = next(ended);
                        }
                        let Some((pass, to)) = pass.as_mut().and_then(|pass| pass.next().map(|to| (pass, to))) else {
                            continue;
                        };
                        let rows: Vec<_> = standing.range(pass.from.clone()..to.clone()).take(limit).map(row).collect();
                        pass.read(to, &rows, rows.len() == limit);
                        index.read(begun, &rows, pass);
                    }
                    Act::Refuse => {
                        let Some((_, Some(pass))) = &mut look else { continue };
                        if let Some(to) = pass.next() {
                            pass.narrow(&to);
                        }
                    }
                    Act::End => look = None,
                    Act::Done(which) => {
                        if let Some(key) = standing.iter().nth(which).cloned() {
                            standing.remove(&key);
                        }
                    }
                    Act::Stand(_) => {}
                }
            }
        }

        // Whatever is refused, a way comes to its end, and each of its pieces passes what servers let it pass.
        #[test]
        fn a_way_through_many_graves_comes_to_its_end(
            at in 0i64..BUCKET_MS, prefix in any::<u64>(), spread in 0u32..40, graves in 1u128..5_000,
        ) {
            const MOST: usize = 100;
            let id = |n: u128| (u128::from(prefix) << 64) | (n << (24 + spread));
            let all: BTreeSet<_> = (0..graves).map(|n| Key { at, id: id(n).to_be_bytes().to_vec(), kind: 1 }).collect();
            let mut pass = Pass::new(0, Key::first_at(i64::MIN), Key::first_at(END), WHOLE);
            let (mut asked, mut came) = (0, 0);
            while let Some(to) = pass.next() {
                asked += 1;
                prop_assert!(to > pass.from && asked < 10_000, "{pass:?}");
                let passed = all.range(pass.from.clone()..to.clone()).count();
                if passed > MOST {
                    prop_assert!(pass.narrow(&to));
                } else {
                    came += passed;
                    pass.read(to, &[], false);
                }
            }
            prop_assert_eq!(came, all.len());
        }
    }

    #[test]
    fn rows_of_one_time_are_passed_once() {
        let mut index = Index { whole: true, ..Index::new(Epoch(1)) };
        (0..9).for_each(|id| index.added(key(5, id)));
        let look = index.look().unwrap();
        let mut pass = Pass::new(0, look.floor.clone(), Key::first_at(6), WHOLE);
        let (to, rows) = (pass.next().unwrap(), [row(&key(5, 0)), row(&key(5, 1)), row(&key(5, 2))]);
        pass.read(to, &rows, true);
        index.read(&look, &rows, &pass);
        let look = index.look().unwrap();
        assert_eq!((look.floor.clone(), look.seen.len()), (key(5, 2).behind(), 3));
        // The first stays, the others are done with.
        index.asked(&look, &[key(5, 0), key(5, 1), key(5, 2)], &BTreeSet::from([key(5, 0)]));
        assert_eq!(index.look().unwrap().seen, BTreeSet::from([key(5, 0)]));
    }

    #[test]
    fn what_was_added_since_a_look_began_is_not_dropped_with_its_bucket() {
        let mut index = Index { whole: true, ..Index::new(Epoch(1)) };
        index.added(key(5, 0));
        assert!(index.look().is_some() && index.drop(0) && index.buckets.is_empty());
        index.added(key(5, 0));
        assert!(!index.drop(0) && index.buckets.contains(&0));
    }

    #[test]
    fn a_row_that_nothing_can_part_from_others_is_told_so() {
        let mut pass = Pass::new(0, key(5, 7), key(5, 7).behind(), WHOLE);
        let to = pass.next().unwrap();
        assert!(!pass.narrow(&to));
    }
}
