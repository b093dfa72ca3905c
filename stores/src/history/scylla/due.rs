//! The due-table: rows of ten minutes stand together, so that what is done with leaves few graves where one looks.

use std::collections::BTreeSet;

use schemas::{
    Epoch, MessageId, Partition, Timestamp,
    port::{Due, DueKind, PortResult},
};
use scylla::value::CqlValue::{BigInt, Text};

use super::{
    rows::unblob,
    session::{Write, broken},
    shared::Shared,
    statements::Pick,
};

/// Ten minutes: at a hundred rows a second in one partition, 60,000 rows, and as many graves at most, stand together.
const BUCKET_MS: i64 = 600_000;
/// How long after its end a bucket that is empty is taken away.
const PAST_MS: u64 = 3_600_000;

pub(super) fn bucket(at: Timestamp) -> i64 {
    at.0.div_euclid(BUCKET_MS)
}

/// Whether a bucket ended so long ago that it may be taken away once it is empty.
pub(super) fn is_past(bucket: i64, now: Timestamp) -> bool {
    now.ms_since(Timestamp(bucket.saturating_add(1).saturating_mul(BUCKET_MS))) > PAST_MS
}

pub(super) fn name(partition: Partition) -> String {
    format!("due/{}", partition.0)
}

/// Ids that never got a place.
pub(super) fn loose(partition: Partition) -> String {
    format!("loose/{}", partition.0)
}

pub(super) fn kind(kind: &DueKind) -> i32 {
    match kind {
        DueKind::Send(_) => 0,
        DueKind::Expire { .. } => 1,
    }
}

/// What the owner of a partition knows of its part of the due-table, to which nobody else adds.
#[derive(Debug, Clone)]
pub(super) struct Index {
    /// Of which takeover this is.
    epoch: Epoch,
    /// Buckets that have rows.
    buckets: BTreeSet<i64>,
    /// Whether those that stood at the takeover are among them.
    whole: bool,
    /// Nothing stands before this time.
    floor: i64,
    /// The earliest time that was added since the last look began.
    fresh: i64,
}

impl Index {
    /// What is known at a takeover.
    fn new(epoch: Epoch) -> Self {
        Self { epoch, buckets: BTreeSet::new(), whole: false, floor: i64::MIN, fresh: i64::MAX }
    }

    /// A row of this time is being added, or stands by now.
    fn added(&mut self, at: Timestamp) {
        self.buckets.insert(bucket(at));
        self.floor = self.floor.min(at.0);
        self.fresh = self.fresh.min(at.0);
    }

    /// Drops a bucket that a look found empty; not one that was added to since.
    fn drop(&mut self, bucket: i64) -> bool {
        self::bucket(Timestamp(self.fresh)) > bucket && self.buckets.remove(&bucket)
    }

    /// Looks, where everything is known; what was found is told to [`Index::looked`].
    fn look(&mut self) -> Option<Self> {
        self.whole.then(|| {
            self.fresh = i64::MAX;
            self.clone()
        })
    }

    /// The first row that a look saw, where it saw one. What was added since it began stands behind it all the same.
    fn looked(&mut self, look: &Self, first: Option<i64>) {
        if let Some(first) = first
            && self.epoch == look.epoch
        {
            self.floor = first.min(self.fresh);
        }
    }
}

/// A row of this time is being added, or stands by now.
pub(super) fn added(shared: &Shared, partition: Partition, at: Timestamp) {
    if let Some(index) = shared.due.lock().get_mut(&partition) {
        index.added(at);
    }
}

/// A row as it stands.
pub(super) type Row = (i64, Vec<u8>, i32, Option<Vec<u8>>);

pub(super) fn id(bytes: &[u8]) -> PortResult<MessageId> {
    uuid::Uuid::from_slice(bytes).map(MessageId).map_err(|why| broken("due", &why))
}

impl Shared {
    /// Buckets of a partition that have rows.
    async fn due_buckets(&self, partition: Partition) -> PortResult<Index> {
        let own = self.mine.lock().get(&partition).copied();
        if let Some(own) = own {
            // Known from here on, so that what is added meanwhile is seen.
            let mut due = self.due.lock();
            let index = due.entry(partition).or_insert_with(|| Index::new(own));
            if index.epoch != own {
                *index = Index::new(own);
            }
            if let Some(look) = index.look() {
                return Ok(look);
            }
        }
        let buckets = self.buckets(&name(partition)).await?;
        let mut found = Index { buckets: buckets.into_iter().collect(), ..Index::new(own.unwrap_or_default()) };
        if let Some(index) = self.due.lock().get_mut(&partition).filter(|index| index.epoch == found.epoch) {
            index.buckets.append(&mut found.buckets);
            index.whole = true;
            found = index.look().unwrap_or(found);
        }
        Ok(found)
    }

    pub(super) async fn due_rows(&self, partition: Partition, now: Timestamp, limit: usize) -> PortResult<Vec<Due>> {
        let look = self.due_buckets(partition).await?;
        let (mut found, mut first) = (Vec::<Row>::new(), None);
        let name = name(partition);
        for bucket in look.buckets.range(..=bucket(now)) {
            if found.len() >= limit {
                break;
            }
            let left = i32::try_from(limit - found.len()).unwrap_or(i32::MAX);
            let rows = self.cql.rows::<Row>(Pick::DueFrom, (&name, *bucket, look.floor, now.0, left)).await?;
            first = first.or(rows.first().map(|row| row.0));
            let is_empty = rows.is_empty() && is_past(*bucket, self.clock.wall());
            if is_empty && self.due.lock().get_mut(&partition).is_some_and(|index| index.drop(*bucket)) {
                self.bucket_gone(&name, *bucket).await?;
            }
            found.extend(rows);
        }
        if let Some(index) = self.due.lock().get_mut(&partition) {
            index.looked(&look, first);
        }
        self.due_of(partition, found).await
    }

    async fn due_of(&self, partition: Partition, found: Vec<Row>) -> PortResult<Vec<Due>> {
        let sends = found.iter().filter(|row| row.2 == 0).map(|row| id(&row.1)).collect::<PortResult<Vec<_>>>()?;
        let mut places = if sends.is_empty() { Default::default() } else { self.places(&sends).await? };
        let mut rows = Vec::with_capacity(found.len());
        for (at, name, kind, value) in found {
            let id = id(&name)?;
            let kind = if kind == 0 {
                // One that is not known by its id yet is being scheduled, or its owner died while it was; one that was recorded
                // without its row is done with by whoever recorded it.
                let Some(message) = places.remove(&id).and_then(|place| place.body) else { continue };
                DueKind::Send(message)
            } else {
                let (inbox, position) = unblob(&value.unwrap_or_default()).map_err(|why| broken("due", &why))?;
                DueKind::Expire { id, inbox, position }
            };
            rows.push(Due { partition, at: Timestamp(at), id, kind });
        }
        Ok(rows)
    }

    /// An empty bucket that nobody adds to any more.
    pub(super) async fn bucket_gone(&self, name: &str, bucket: i64) -> PortResult<()> {
        self.marks.lock().remove(&(name.to_owned(), bucket));
        self.cql.send(&[Write::new(Pick::BucketGone, vec![Text(name.to_owned()), BigInt(bucket)])]).await
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What happens to a row of this time, and when a look begins and ends.
    #[derive(Debug, Clone)]
    enum Act {
        Write(i64),
        Stand(usize),
        Begin,
        End,
        Done(usize),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let one = prop_oneof![
            (0i64..40).prop_map(|tick| Act::Write(tick * BUCKET_MS / 8)),
            (0usize..8).prop_map(Act::Stand),
            Just(Act::Begin),
            Just(Act::End),
            (0usize..8).prop_map(Act::Done),
        ];
        proptest::collection::vec(one, 0..80)
    }

    proptest! {
        // However writes and looks overlap, a look sees every row that stood, and was known to stand, before it began.
        #[test]
        fn a_look_sees_every_row_that_stands(acts in acts()) {
            let mut index = Index { whole: true, ..Index::new(Epoch(1)) };
            let (mut on_their_way, mut standing, mut look) = (Vec::new(), BTreeSet::new(), None);
            for act in acts {
                match act {
                    Act::Write(at) => {
                        index.added(Timestamp(at));
                        on_their_way.push(at);
                    }
                    Act::Stand(which) if which < on_their_way.len() => {
                        let at = on_their_way.swap_remove(which);
                        standing.insert(at);
                        index.added(Timestamp(at));
                    }
                    Act::Begin => {
                        let begun = index.look().unwrap();
                        let seen = |at: &&i64| **at >= begun.floor && begun.buckets.contains(&bucket(Timestamp(**at)));
                        let first = standing.iter().find(seen).copied();
                        prop_assert_eq!(first, standing.first().copied());
                        look = Some((begun, first));
                    }
                    Act::End => {
                        let Some((begun, first)) = look.take() else { continue };
                        index.looked(&begun, first);
                    }
                    Act::Done(which) => {
                        let Some(at) = standing.iter().nth(which).copied() else { continue };
                        standing.remove(&at);
                    }
                    Act::Stand(_) => {}
                }
            }
        }
    }

    #[test]
    fn what_was_added_since_a_look_began_is_not_dropped_with_its_bucket() {
        let mut index = Index { whole: true, ..Index::new(Epoch(1)) };
        index.added(Timestamp(5));
        assert!(index.look().is_some() && index.drop(0) && index.buckets.is_empty());
        index.added(Timestamp(5));
        assert!(!index.drop(0) && index.buckets.contains(&0));
    }

    #[test]
    fn a_bucket_is_past_an_hour_after_its_end() {
        let noon = Timestamp(1_800_000_000_000);
        let here = bucket(noon);
        assert_eq!((bucket(Timestamp(-1)), bucket(Timestamp(0)), bucket(noon.plus_ms(599_999))), (-1, 0, here));
        assert!(!is_past(here, noon.plus_ms(600_000 + 3_600_000)));
        assert!(is_past(here, noon.plus_ms(600_001 + 3_600_000)));
        assert!(!is_past(i64::MAX, noon));
    }
}
