//! The due-table: rows of ten minutes stand together, so that what is done with leaves few graves where one looks.

use std::collections::BTreeSet;

use schemas::{
    MessageId, Partition, Timestamp,
    port::{Due, DueKind, PortResult},
};
use scylla::value::CqlValue::{BigInt, Text};

use super::{
    rows::unblob,
    session::{Write, broken},
    shared::{DueIndex, Shared},
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

/// A row of this time is being added.
pub(super) fn added(shared: &Shared, partition: Partition, at: Timestamp) {
    if let Some(index) = shared.due.lock().get_mut(&partition) {
        index.buckets.insert(bucket(at));
        index.floor = index.floor.min(at.0);
        index.fresh = index.fresh.min(at.0);
    }
}

/// A row as it stands.
pub(super) type Row = (i64, Vec<u8>, i32, Option<Vec<u8>>);

pub(super) fn id(bytes: &[u8]) -> PortResult<MessageId> {
    uuid::Uuid::from_slice(bytes).map(MessageId).map_err(|why| broken("due", &why))
}

impl Shared {
    /// Buckets of a partition that have rows. The owner knows them: nobody else adds any.
    async fn due_buckets(&self, partition: Partition) -> PortResult<DueIndex> {
        if let Some(index) = self.due.lock().get_mut(&partition) {
            index.fresh = i64::MAX;
            return Ok(index.clone());
        }
        let owned = self.mine.lock().contains_key(&partition);
        if owned {
            // Known from here on, so that what is added meanwhile is seen.
            let empty = DueIndex { buckets: BTreeSet::new(), floor: i64::MIN, fresh: i64::MAX };
            self.due.lock().entry(partition).or_insert(empty);
        }
        let buckets = self.buckets(&name(partition)).await;
        let mut due = self.due.lock();
        match buckets {
            Ok(buckets) => {
                let index = DueIndex { buckets: buckets.into_iter().collect(), floor: i64::MIN, fresh: i64::MAX };
                if let Some(known) = due.get_mut(&partition) {
                    known.buckets.extend(index.buckets);
                    return Ok(known.clone());
                }
                Ok(index)
            }
            Err(why) => {
                due.remove(&partition);
                Err(why)
            }
        }
    }

    pub(super) async fn due_rows(&self, partition: Partition, now: Timestamp, limit: usize) -> PortResult<Vec<Due>> {
        let index = self.due_buckets(partition).await?;
        let (mut found, mut first) = (Vec::<Row>::new(), None);
        let name = name(partition);
        for bucket in index.buckets.range(..=bucket(now)) {
            if found.len() >= limit {
                break;
            }
            let left = i32::try_from(limit - found.len()).unwrap_or(i32::MAX);
            let rows = self.cql.rows::<Row>(Pick::DueFrom, (&name, *bucket, index.floor, now.0, left)).await?;
            first = first.or(rows.first().map(|row| row.0));
            if rows.is_empty() && is_past(*bucket, self.clock.wall()) {
                self.bucket_gone(&name, *bucket).await?;
                if let Some(index) = self.due.lock().get_mut(&partition) {
                    index.buckets.remove(bucket);
                }
            }
            found.extend(rows);
        }
        if let (Some(first), Some(index)) = (first, self.due.lock().get_mut(&partition)) {
            // What was added since this look began stands behind it all the same.
            index.floor = first.min(index.fresh);
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
                // One whose place is not there yet is being scheduled at this moment.
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
    use super::*;

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
