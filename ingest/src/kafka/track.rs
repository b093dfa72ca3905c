//! Which records are done, and so how far each partition may be committed: never past one that is not.

use std::collections::{BTreeMap, BTreeSet};

use schemas::port::Spot;

/// What came of each partition and is not committed.
#[derive(Debug, Default)]
pub(super) struct Track {
    spots: BTreeMap<Spot, Line>,
}

/// One partition.
#[derive(Debug, Default)]
struct Line {
    /// Records that came and are not done.
    open: BTreeSet<u64>,
    /// One more than the last that came.
    end: u64,
    /// The next one to read, as it was committed last.
    committed: Option<u64>,
}

impl Track {
    /// A record came.
    pub(super) fn came(&mut self, spot: &Spot, offset: u64) {
        let line = match self.spots.get_mut(spot) {
            Some(line) => line,
            None => self.spots.entry(spot.clone()).or_default(),
        };
        line.open.insert(offset);
        line.end = line.end.max(offset + 1);
    }

    /// A record is accepted durably, or kept durably among the rejected.
    pub(super) fn done(&mut self, spot: &Spot, offset: u64) {
        if let Some(line) = self.spots.get_mut(spot) {
            line.open.remove(&offset);
        }
    }

    /// A partition is another's now.
    pub(super) fn lost(&mut self, spot: &Spot) {
        self.spots.remove(spot);
    }

    /// What can be committed and is not yet.
    pub(super) fn due(&self) -> Vec<(Spot, u64)> {
        let due = self.spots.iter().filter_map(|(spot, line)| {
            let next = line.open.first().copied().unwrap_or(line.end);
            (line.committed != Some(next) && next > 0).then(|| (spot.clone(), next))
        });
        due.collect()
    }

    /// It was committed.
    pub(super) fn committed(&mut self, due: &[(Spot, u64)]) {
        for (spot, next) in due {
            if let Some(line) = self.spots.get_mut(spot) {
                line.committed = Some(*next);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spot() -> Spot {
        Spot { topic: "ingress".into(), partition: 0 }
    }

    #[test]
    fn a_commit_stops_before_what_is_not_done() {
        let (mut track, at) = (Track::default(), spot());
        for offset in [10, 11, 15] {
            track.came(&at, offset);
        }
        track.done(&at, 11);
        assert_eq!(track.due(), [(at.clone(), 10)]);
        track.done(&at, 10);
        assert_eq!(track.due(), [(at.clone(), 15)], "offsets may have gaps");
        track.done(&at, 15);
        let due = track.due();
        assert_eq!(due, [(at.clone(), 16)]);
        track.committed(&due);
        assert_eq!(track.due(), []);
        track.lost(&at);
        track.done(&at, 10);
        assert_eq!(track.due(), []);
    }

    proptest! {
        /// Invariant 3: no offset is committed past unfinished work, and when all is done everything is committed.
        #[test]
        fn nothing_is_committed_past_unfinished_work(order in Just((0u64..30).collect::<Vec<_>>()).prop_shuffle(), cut in 0usize..30) {
            let (mut track, at) = (Track::default(), spot());
            (0..30).for_each(|offset| track.came(&at, offset));
            for (count, offset) in order.iter().enumerate() {
                track.done(&at, *offset);
                let unfinished = order[count + 1..].iter().min();
                for (_, next) in track.due() {
                    prop_assert!(unfinished.is_none_or(|least| next <= *least));
                }
                if count == cut {
                    let due = track.due();
                    track.committed(&due);
                }
            }
            let left = track.due();
            prop_assert!(left.is_empty() || left == [(at, 30)]);
        }
    }
}
