//! Which rows count, whoever writes late: the columns, and a model of owners whose single reads and writes come in any order.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[test]
fn numbers_stand_in_order_and_apart_by_epoch() {
    let (one, two) = (column(7, Epoch(1)), column(7, Epoch(2)));
    assert!(one < two && two < column(8, Epoch(0)) && column(NUMBERS, Epoch(EPOCHS as u32)) == i64::MAX);
    assert_eq!(parsed(two), (7, Some(Epoch(2))));
    assert_eq!(parsed(bare(7)), (7, None));
    assert!(Path::is_bare(bare(7)) && !Path::is_bare(one));
}

#[test]
fn a_path_says_whose_each_number_is() {
    let mut path = Path::before(4);
    path.take(Epoch(2), 5);
    path.take(Epoch(3), 7);
    assert_eq!(
        [4, 5, 6, 7, 9].map(|seq| path.at(seq)),
        [bare(4), column(5, Epoch(2)), column(6, Epoch(2)), column(7, Epoch(3)), column(9, Epoch(3))]
    );
    assert_eq!(path.counts(column(6, Epoch(2))), Some(6));
    assert_eq!((path.counts(column(6, Epoch(3))), path.counts(column(7, Epoch(2)))), (None, None));
    assert_eq!((path.counts(bare(4)), path.counts(bare(5)), path.counts(column(4, Epoch(2)))), (Some(4), None, None));
    let same = path.clone();
    path.take(Epoch(2), 6);
    assert_eq!(path, same, "who was overtaken takes nothing");
    path.take(Epoch(4), 7);
    assert_eq!(path.forks, [(Epoch(2), 5), (Epoch(4), 7)], "3 wrote nothing");
}

#[test]
fn what_was_removed_needs_no_path() {
    let mut path = Path::default();
    for (epoch, first) in [(1, 1), (2, 10), (3, 20)] {
        path.take(Epoch(epoch), first);
    }
    path.forget(8);
    assert_eq!(path.forks.len(), 3, "the ninth is the first one's");
    path.forget(9);
    assert_eq!(path.forks, [(Epoch(2), 10), (Epoch(3), 20)]);
    path.forget(100);
    assert_eq!(path.forks, [(Epoch(3), 20)]);
}

#[test]
fn a_range_has_one_kind_of_columns() {
    let mut path = Path::before(10);
    path.take(Epoch(1), 11);
    assert_eq!(path.columns(true, 5, 20), ((5, 10), (5, 10)));
    assert_eq!(path.columns(true, 11, 20).0, (11, 20));
    assert_eq!(path.columns(false, 5, 20), ((11, 20), (column(11, Epoch(0)), column(20, Epoch(u32::MAX)))));
    assert_eq!(path.columns(false, 5, 9), ((5, 9), (5, 9)));
}

/// The cells of one conversation: of each the largest write time stands.
#[derive(Default)]
struct Cells {
    row: (Version, Row),
    turns: BTreeMap<i64, u32>,
}

/// A row: its last number, its version, and the path.
#[derive(Debug, Clone, Default, PartialEq)]
struct Row {
    last: u64,
    changed: Version,
    path: Path,
}

impl Cells {
    fn put(&mut self, row: &Row, from: Version) {
        if from > self.row.0 {
            self.row = (from, row.clone());
        }
    }

    /// What a reader sees: the turns from the first to the last, each by what it says.
    fn thread(&self) -> Vec<u32> {
        let row = &self.row.1;
        (1..=row.last).map(|seq| *self.turns.get(&row.path.at(seq)).expect("a number that nobody wrote")).collect()
    }
}

/// An owner in the midst of what it does, as single requests.
enum Doing {
    /// It has the partition, and nothing of the conversation.
    Nothing,
    /// It has read the row.
    Read(Row),
    /// It has sealed it, and was told; what it was told there is.
    Told(Row, Vec<u32>),
    /// It has written a turn, and not the row that counts it.
    Said(Row, Vec<u32>),
}

struct Owner {
    epoch: Epoch,
    doing: Doing,
}

impl Owner {
    /// Its next request.
    fn step(&mut self, cells: &mut Cells, next: &mut u32) {
        self.doing = match std::mem::replace(&mut self.doing, Doing::Nothing) {
            Doing::Nothing => Doing::Read(cells.row.1.clone()),
            Doing::Read(row) if row.path.newest() > self.epoch => Doing::Read(row),
            Doing::Read(mut row) => {
                // As it reads it, so it seals it; what it was told is what its path counts.
                let thread = (1..=row.last).map(|seq| cells.turns[&row.path.at(seq)]).collect();
                row.path.take(self.epoch, row.last + 1);
                cells.put(&row, sealed(row.changed, &row.path));
                Doing::Told(row, thread)
            }
            Doing::Told(row, mut thread) => {
                let after = Row { last: row.last + 1, changed: row.changed.next(self.epoch), path: row.path };
                *next += 1;
                cells.turns.insert(column(after.last, self.epoch), *next);
                thread.push(*next);
                Doing::Said(after, thread)
            }
            Doing::Said(after, thread) => {
                cells.put(&after, after.changed);
                Doing::Told(after, thread)
            }
        };
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    // Whatever of each owner's requests comes late: from the moment in which the newest owner has been told, the thread is
    // what it was told and what it added since; and at any moment every number that counts is there once.
    #[test]
    fn what_the_newest_owner_was_told_stands_whoever_writes_late(steps in proptest::collection::vec(0usize..8, 1..120)) {
        let (mut cells, mut next) = (Cells::default(), 0);
        let mut owners = vec![Owner { epoch: Epoch(1), doing: Doing::Nothing }];
        for step in steps {
            // One in eight is a takeover; else one of the last four owners goes on.
            if step == 7 {
                let epoch = Epoch(owners.len() as u32 + 1);
                owners.push(Owner { epoch, doing: Doing::Nothing });
            } else {
                let who = owners.len() - 1 - step.min(owners.len() - 1) % 4.min(owners.len());
                owners[who].step(&mut cells, &mut next);
            }
            let seen = cells.thread();
            match &owners[owners.len() - 1].doing {
                Doing::Told(_, thread) => prop_assert_eq!(&seen, thread),
                Doing::Said(_, thread) => prop_assert_eq!(&seen, &thread[..thread.len() - 1]),
                Doing::Nothing | Doing::Read(_) => {}
            }
        }
    }
}
