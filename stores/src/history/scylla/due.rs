//! The due-table: rows of ten minutes stand together, so that what is done with leaves few graves where one looks. Where it
//! leaves many all the same, a look passes them once, in pieces that the servers read ([`index`]).
//!
//! Graves are not taken away with one range deletion: its write time would be later than that of a row which an owner that
//! was overtaken is still writing, and whose message then is known and never sent.

pub(super) mod index;

use futures::{StreamExt, TryStreamExt, stream};
use schemas::{
    MessageId, Partition, Timestamp,
    port::{Due, DueKind, PortError, PortResult},
};
use scylla::value::CqlValue::{BigInt, Text};

use self::index::{Index, Key, Pass};
use super::{
    rows::unblob,
    session::{Write, broken},
    shared::{IDS, READS, Shared},
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

/// A row is being added, or stands by now.
pub(super) fn added(shared: &Shared, due: &Due) {
    if let Some(index) = shared.due.lock().get_mut(&due.partition) {
        index.added(Key::of_due(due));
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
        let mut found = Index::new(own.unwrap_or_default());
        found.buckets.extend(buckets);
        if let Some(index) = self.due.lock().get_mut(&partition).filter(|index| index.epoch == found.epoch) {
            index.buckets.append(&mut found.buckets);
            index.whole = true;
            found = index.look().unwrap_or(found);
        }
        Ok(found)
    }

    pub(super) async fn due_rows(&self, partition: Partition, now: Timestamp, limit: usize) -> PortResult<Vec<Due>> {
        let look = self.due_buckets(partition).await?;
        let name = name(partition);
        let mut found = self.due_seen(partition, &look, now, limit).await?;
        for bucket in look.buckets.range(..=bucket(now)) {
            if found.len() >= limit {
                break;
            }
            let is_empty = !found.iter().any(|row| self::bucket(Timestamp(row.0)) == *bucket);
            let (from, end) = (look.floor.clone(), Key::first_at(now.0.saturating_add(1)));
            let mut pass = Pass::new(*bucket, from, end, look.width);
            let before = found.len();
            while found.len() < limit
                && let Some(rows) = self.due_piece(&name, &mut pass, limit - found.len()).await?
            {
                if let Some(index) = self.due.lock().get_mut(&partition) {
                    index.read(&look, &rows, &pass);
                }
                found.extend(rows);
            }
            let is_empty = is_empty && found.len() == before && is_past(*bucket, self.clock.wall().min(now));
            if is_empty && self.due.lock().get_mut(&partition).is_some_and(|index| index.drop(*bucket)) {
                self.bucket_gone(&name, *bucket).await?;
            }
        }
        self.due_of(partition, found).await
    }

    /// Of the rows that looks saw before, those that still stand, oldest first.
    async fn due_seen(&self, partition: Partition, look: &Index, now: Timestamp, limit: usize) -> PortResult<Vec<Row>> {
        let asked: Vec<_> = look.seen.iter().filter(|key| key.at <= now.0).take(limit).cloned().collect();
        let name = name(partition);
        let of_one_bucket = asked.chunk_by(|a, b| bucket(Timestamp(a.at)) == bucket(Timestamp(b.at)));
        let pieces = of_one_bucket.flat_map(|keys| keys.chunks(IDS)).map(|keys| {
            let bucket = keys.first().map_or(0, |key| bucket(Timestamp(key.at)));
            let keys: Vec<_> = keys.iter().map(|key| (key.at, key.id.clone(), key.kind)).collect();
            self.cql.rows::<Row>(Pick::DueAt, (name.clone(), bucket, keys))
        });
        let pieces: Vec<_> = pieces.collect();
        let found: Vec<Vec<Row>> = stream::iter(pieces).buffered(READS).try_collect().await?;
        let found: Vec<Row> = found.into_iter().flatten().collect();
        if let Some(index) = self.due.lock().get_mut(&partition) {
            index.asked(look, &asked, &found.iter().map(Key::of_row).collect());
        }
        Ok(found)
    }

    /// The rows of the next piece of a bucket, at most `left`; none where it was refused, and the next is narrower. `None`:
    /// the way has come to its end.
    pub(super) async fn due_piece(&self, name: &str, pass: &mut Pass, left: usize) -> PortResult<Option<Vec<Row>>> {
        let Some(to) = pass.next() else { return Ok(None) };
        let most = i32::try_from(left).unwrap_or(i32::MAX);
        let (from, bucket) = (&pass.from, pass.bucket);
        let values = (name, bucket, from.at, &from.id, from.kind, to.at, &to.id, to.kind, most);
        match self.cql.piece::<Row>(Pick::DueFrom, values).await? {
            Some(rows) => {
                let full = rows.len() >= left;
                pass.read(to, &rows, full);
                Ok(Some(rows))
            }
            None if pass.narrow(&to) => Ok(Some(Vec::new())),
            None => Err(PortError::Unavailable("a piece of `due` is refused by the servers, however narrow".into())),
        }
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
