//! The chain: which of an inbox's rows, met in key order, are its entries.
//!
//! Each entry names the one before it. An owner that lost its partition may still have written rows of its old epoch: they
//! sort before the next epoch's, whose first entry reaches back over them, so they are not in the inbox. A row that names a
//! row which is not there is a break: nothing from there on is given out (rules 1 and 2).

use schemas::Position;

/// Entries gathered from a place on.
#[derive(Debug)]
pub(super) struct Chain<T> {
    from: Position,
    entries: Vec<(Position, T)>,
}

impl<T> Chain<T> {
    /// A chain that goes on from just after `from`.
    pub(super) fn after(from: Position) -> Self {
        Self { from, entries: Vec::new() }
    }

    /// The place of the last entry.
    pub(super) fn end(&self) -> Position {
        self.entries.last().map_or(self.from, |(position, _)| *position)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Takes the next row in key order; `false`: the chain is broken here and the row is not part of it.
    pub(super) fn push(&mut self, position: Position, prev: Position, row: T) -> bool {
        if !self.reach(prev) {
            return false;
        }
        self.entries.push((position, row));
        true
    }

    /// Makes the chain end where a following entry says that it does. What it reaches over goes; `false`: what it names
    /// is not here. A place before the start is fine: the start itself was reached over, or removed by retention.
    pub(super) fn reach(&mut self, prev: Position) -> bool {
        if prev > self.end() {
            return false;
        }
        let kept = self.entries.partition_point(|(position, _)| *position <= prev);
        let whole = prev <= self.from || self.entries[..kept].last().is_some_and(|(position, _)| *position == prev);
        // On a break, too, what stands after the named place is known not to be in the inbox.
        self.entries.truncate(kept);
        whole
    }

    pub(super) fn into_entries(self) -> Vec<(Position, T)> {
        self.entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use schemas::cursor::place;

    /// Rows as they stand after owners came and went: each epoch goes on from some entry of the one before it, and its
    /// owner may have written on afterwards.
    fn rows() -> impl Strategy<Value = Vec<(Position, Position)>> {
        proptest::collection::vec((1u64..6, 0u64..4), 1..5).prop_map(|epochs| {
            let (mut rows, mut tail) = (Vec::new(), Position::START);
            for (epoch, (written, late)) in epochs.into_iter().enumerate() {
                for _ in 0..written {
                    let next = tail.next(schemas::Epoch(epoch as u32 + 1));
                    rows.push((next, tail));
                    tail = next;
                }
                let mut stale = tail;
                for _ in 0..late {
                    let next = stale.next(schemas::Epoch(epoch as u32 + 1));
                    rows.push((next, stale));
                    stale = next;
                }
            }
            // The last epoch's owner is alive: what it wrote is the truth.
            let end = rows.iter().position(|(position, _)| *position == tail).unwrap();
            rows.truncate(end + 1);
            rows
        })
    }

    /// The definition: what is reached from the tail by `prev`.
    fn walked(rows: &[(Position, Position)]) -> Vec<Position> {
        let (mut found, mut at) = (Vec::new(), rows.last().map_or(Position::START, |row| row.0));
        while let Some((position, prev)) = rows.iter().find(|row| row.0 == at) {
            found.push(*position);
            at = *prev;
        }
        found.reverse();
        found
    }

    fn gathered(from: Position, rows: &[(Position, Position)]) -> Vec<Position> {
        let mut chain = Chain::after(from);
        for (position, prev) in rows.iter().filter(|row| row.0 > from) {
            if !chain.push(*position, *prev, ()) {
                break;
            }
        }
        chain.into_entries().into_iter().map(|(position, ())| position).collect()
    }

    proptest! {
        #[test]
        fn what_the_tail_does_not_reach_is_not_in_the_inbox(rows in rows(), from in 0usize..20) {
            let whole = walked(&rows);
            prop_assert_eq!(&gathered(Position::START, &rows), &whole);
            // From any row on, also from one that was reached over.
            let from = rows[from % rows.len()].0;
            let rest: Vec<_> = whole.into_iter().filter(|position| *position > from).collect();
            prop_assert_eq!(gathered(from, &rows), rest);
        }

        #[test]
        fn nothing_behind_a_missing_row_is_given_out(rows in rows(), gone in 0usize..20) {
            let whole = walked(&rows);
            let gone = whole[gone % whole.len()];
            let left: Vec<_> = rows.into_iter().filter(|row| row.0 != gone).collect();
            let before: Vec<_> = whole.iter().copied().take_while(|position| *position < gone).collect();
            let given = gathered(Position::START, &left);
            prop_assert_eq!(&given[..before.len().min(given.len())], &before[..]);
            prop_assert!(given.iter().all(|position| *position < gone || !whole.contains(position)));
        }
    }

    #[test]
    fn an_epoch_that_goes_on_from_the_start_itself_clears_what_was_before() {
        let rows = [(place(1, 1), Position::START), (place(1, 2), place(1, 1)), (place(2, 1), Position::START)];
        assert_eq!(gathered(Position::START, &rows), [place(2, 1)]);
        assert_eq!(gathered(place(1, 1), &rows), [place(2, 1)], "the reader's own place was reached over");
    }
}
