//! The ledger: which offsets stand behind which epoch, and which may therefore be committed. Pure.
//!
//! Promises that an offset is named only when every record before it in its partition is done, whatever lane it went
//! through: a tier's records go to three lanes with three frontiers (invariant 3). Rows of the due-table have no offset and
//! are counted by partition all the same, so that who gives a partition up knows when nothing of it is in flight. Bounded by
//! what is in flight.

use std::collections::{BTreeMap, VecDeque};

use schemas::{Lane, Offset, Partition, TopicPartition};

use crate::tenants::Slot;

/// The ledger of one instance.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    lanes: [PerLane; 3],
    at: BTreeMap<TopicPartition, VecDeque<Line>>,
    /// Due rows in flight: of which partition, in which epoch of which lane.
    due: Vec<(Partition, Lane, u64)>,
}

/// What is fed of one lane at once.
#[derive(Debug, Default)]
pub(crate) struct Fed {
    /// Items.
    pub(crate) count: usize,
    /// Their bytes.
    pub(crate) bytes: usize,
    /// Where their records end, run by run without a gap in the log: the next offsets to read.
    pub(crate) ends: Vec<(TopicPartition, Offset)>,
    /// Partitions of the rows of the due-table among them, each once.
    pub(crate) due: Vec<Partition>,
    /// Whose they are.
    pub(crate) tenants: Vec<(Slot, u32)>,
}

/// Records of one partition in one epoch of one lane.
#[derive(Debug)]
struct Line {
    lane: Lane,
    epoch: u64,
    next: Offset,
}

/// What was fed at once.
#[derive(Debug)]
struct Epoch {
    epoch: u64,
    count: usize,
    bytes: usize,
    tenants: Vec<(Slot, u32)>,
}

#[derive(Debug, Default)]
struct PerLane {
    epochs: VecDeque<Epoch>,
    frontier: u64,
    count: usize,
    bytes: usize,
}

fn index(lane: Lane) -> usize {
    usize::from(lane.number())
}

impl Ledger {
    /// An epoch of a lane is fed.
    pub(crate) fn fed(&mut self, lane: Lane, epoch: u64, fed: Fed) {
        let Fed { count, bytes, ends, due, tenants } = fed;
        let of = &mut self.lanes[index(lane)];
        of.epochs.push_back(Epoch { epoch, count, bytes, tenants });
        of.count += count;
        of.bytes += bytes;
        self.due.extend(due.into_iter().map(|partition| (partition, lane, epoch)));
        for (at, next) in ends {
            let lines = self.at.entry(at).or_default();
            // What was read at once is fed lane by lane: a line may come after one that stands behind it in the log.
            let place = lines.partition_point(|line| line.next <= next);
            lines.insert(place, Line { lane, epoch, next });
        }
    }

    /// A lane's frontier stands here: all its epochs below are done. Gives whose they were.
    pub(crate) fn reached(&mut self, lane: Lane, frontier: u64) -> Vec<(Slot, u32)> {
        let of = &mut self.lanes[index(lane)];
        if frontier <= of.frontier {
            return Vec::new();
        }
        of.frontier = frontier;
        let done = of.epochs.iter().take_while(|fed| fed.epoch < frontier).count();
        let mut whose = Vec::new();
        for Epoch { count, bytes, tenants, .. } in of.epochs.drain(..done) {
            of.count -= count;
            of.bytes -= bytes;
            whose.extend(tenants);
        }
        self.due.retain(|(_, of, epoch)| *of != lane || *epoch >= frontier);
        whose
    }

    /// Offsets that may be committed now and were not named before.
    pub(crate) fn done(&mut self) -> Vec<(TopicPartition, Offset)> {
        let (mut ready, frontiers) = (Vec::new(), [0, 1, 2].map(|i| self.lanes[i].frontier));
        self.at.retain(|at, lines| {
            let done = lines.iter().take_while(|line| line.epoch < frontiers[index(line.lane)]).count();
            if let Some(last) = lines.drain(..done).next_back() {
                ready.push((*at, last.next));
            }
            !lines.is_empty()
        });
        ready
    }

    /// Messages and bytes of a lane in flight.
    pub(crate) fn in_flight(&self, lane: Lane) -> (usize, usize) {
        let of = &self.lanes[index(lane)];
        (of.count, of.bytes)
    }

    /// Whether anything of this partition is in flight.
    pub(crate) fn holds(&self, partition: Partition) -> bool {
        self.due.iter().any(|(of, ..)| *of == partition)
            || self.at.iter().any(|(at, lines)| {
                at.partition == partition
                    && lines.iter().any(|line| line.epoch >= self.lanes[index(line.lane)].frontier)
            })
    }

    /// Whether nothing at all is in flight.
    pub(crate) fn is_empty(&self) -> bool {
        self.lanes.iter().all(|of| of.epochs.is_empty())
    }

    /// It is another's now: what is still in flight of it is not committed.
    pub(crate) fn forget(&mut self, partition: Partition) {
        self.at.retain(|at, _| at.partition != partition);
        self.due.retain(|(of, ..)| *of != partition);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use schemas::{Priority, Topic, tier::Tier};

    #[derive(Debug, Clone)]
    enum Move {
        Feed { lane: usize, at: Vec<(usize, u64)> },
        Reach { lane: usize, by: u64 },
        Done,
    }

    fn moves() -> impl Strategy<Value = Move> {
        prop_oneof![
            (0usize..3, proptest::collection::vec((0usize..4, 1u64..5), 0..3))
                .prop_map(|(lane, at)| Move::Feed { lane, at }),
            (0usize..3, 1u64..3).prop_map(|(lane, by)| Move::Reach { lane, by }),
            Just(Move::Done),
        ]
    }

    fn fed(ends: impl IntoIterator<Item = (TopicPartition, Offset)>) -> Fed {
        Fed { count: 1, bytes: 10, ends: ends.into_iter().collect(), ..Fed::default() }
    }

    #[test]
    fn what_is_given_up_unfinished_is_never_committed() {
        let at = TopicPartition { topic: Topic::Lane(Lane::High), partition: Partition(1) };
        let mut ledger = Ledger::default();
        ledger.fed(Lane::High, 0, fed([(at, Offset(1))]));
        assert!(ledger.holds(Partition(1)) && !ledger.holds(Partition(2)));
        ledger.forget(Partition(1));
        assert!(!ledger.holds(Partition(1)), "what is in flight is dropped by who has it");
        assert_eq!(ledger.in_flight(Lane::High), (1, 10), "and takes room until then");
        ledger.reached(Lane::High, 1);
        assert!(ledger.done().is_empty() && ledger.is_empty());
    }

    /// What one reading of a tier brings goes to several lanes, which are fed one after the other.
    #[test]
    fn records_that_were_read_at_once_are_named_in_their_order_whatever_lane_they_ride() {
        let at = TopicPartition { topic: Topic::Retry(Tier::ALL[0]), partition: Partition(1) };
        let mut ledger = Ledger::default();
        ledger.fed(Lane::High, 0, fed([(at, Offset(2)), (at, Offset(4))]));
        ledger.fed(Lane::Low, 0, fed([(at, Offset(1)), (at, Offset(3))]));
        ledger.reached(Lane::High, 1);
        assert_eq!(ledger.done(), [], "the first of them is in flight");
        ledger.reached(Lane::Low, 1);
        assert_eq!(ledger.done(), [(at, Offset(4))]);
    }

    #[test]
    fn a_due_row_in_flight_holds_its_partition() {
        let mut ledger = Ledger::default();
        ledger.fed(Lane::Low, 0, Fed { due: vec![Partition(3)], ..fed([]) });
        ledger.fed(Lane::Normal, 0, Fed { due: vec![Partition(3), Partition(4)], ..fed([]) });
        ledger.reached(Lane::Low, 1);
        assert!(ledger.holds(Partition(3)) && ledger.holds(Partition(4)));
        ledger.reached(Lane::Normal, 1);
        assert!(!ledger.holds(Partition(3)) && !ledger.holds(Partition(4)));
    }

    proptest! {
        // Invariant 3: no offset is committed past unfinished work; at the end every offset is.
        #[test]
        fn no_offset_is_named_past_unfinished_work(moves in proptest::collection::vec(moves(), 1..100)) {
            let place = |n: usize| TopicPartition {
                topic: Topic::Retry(Tier::ALL[n % 2]), partition: Partition((n / 2) as u16),
            };
            let mut ledger = Ledger::default();
            let (mut ends, mut epochs, mut frontiers) = ([0u64; 4], [0u64; 3], [0u64; 3]);
            // Every record: where, offset, lane, epoch.
            let mut records = Vec::<(usize, u64, usize, u64)>::new();
            let mut committed = [0u64; 4];
            let mut check = |ledger: &mut Ledger, records: &[(usize, u64, usize, u64)], frontiers: [u64; 3]| {
                for (at, next) in ledger.done() {
                    let n = (0..4).find(|n| place(*n) == at).unwrap();
                    prop_assert!(next.0 > committed[n], "it only grows");
                    committed[n] = next.0;
                }
                for (n, offset, lane, epoch) in records {
                    if *offset < committed[*n] { prop_assert!(*epoch < frontiers[*lane]); }
                }
                Ok(committed)
            };
            for step in moves {
                match step {
                    Move::Feed { lane, at } => {
                        let mut fed = BTreeMap::new();
                        for (n, records_fed) in at {
                            for _ in 0..records_fed {
                                records.push((n, ends[n], lane, epochs[lane]));
                                ends[n] += 1;
                            }
                            fed.insert(place(n), Offset(ends[n]));
                        }
                        ledger.fed(Priority::ALL[lane], epochs[lane], super::tests::fed(fed));
                        epochs[lane] += 1;
                    }
                    Move::Reach { lane, by } => {
                        frontiers[lane] = (frontiers[lane] + by).min(epochs[lane]);
                        ledger.reached(Priority::ALL[lane], frontiers[lane]);
                        let left = (epochs[lane] - frontiers[lane]) as usize;
                        prop_assert_eq!(ledger.in_flight(Priority::ALL[lane]), (left, left * 10));
                    }
                    Move::Done => { check(&mut ledger, &records, frontiers)?; }
                }
            }
            for lane in Priority::ALL { ledger.reached(lane, u64::MAX); }
            prop_assert_eq!(check(&mut ledger, &records, [u64::MAX; 3])?, ends);
            prop_assert!(ledger.is_empty());
        }
    }
}
