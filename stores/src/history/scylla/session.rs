//! The session: sending what is written in few requests, reading, and saying of every failure whether it happened.
//!
//! A request carries many rows: rows of one CQL partition become one mutation, and rows of a few partitions travel
//! together unlogged, which costs a server half of what single inserts cost (docs/cql.md has the figures). Everything sent
//! is idempotent, because every row has its own write time and is written whole.

use std::{collections::BTreeSet, time::Duration};

use futures::{StreamExt, TryStreamExt, stream};
use schemas::{
    limits::StoreLimits,
    port::{PortError, PortResult},
};
use scylla::{
    client::session::Session,
    deserialize::row::DeserializeRow,
    errors::{DbError, ExecutionError, RequestAttemptError},
    response::query_result::QueryResult,
    serialize::row::SerializeRow,
    statement::{
        batch::{Batch, BatchType},
        prepared::PreparedStatement,
    },
    value::CqlValue,
};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{
    connecting::{Fault, connect},
    statements::{Pick, Statements},
};
use crate::{OpenError, urls::Address};

/// Rows of one request: past some tens more rows make it no cheaper, and a lost request repeats fewer.
pub(super) const ROWS: usize = 60;
/// CQL partitions of one request. Cassandra writes the mutations of a batch one after the other, each with a wait for its sync:
/// with 57 a request took 62 ms where ten took 18, and cost twice the CPU a row. One or two cost more than ten, too.
pub(super) const PARTITIONS: usize = 10;
/// Bytes of one request of several rows: a server refuses batches of 50 KiB (Cassandra's default), its own count included.
pub(super) const BYTES: usize = 32 * 1024;
/// What a row weighs besides its values.
const ROW_BYTES: usize = 96;
/// Rows of one page of a read.
const PAGE: i32 = 256;
/// Before a request is repeated by itself: with [`StoreLimits::cql_ms`] all of it takes less than the dataflow waits.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(200)];

/// One row to be written.
#[derive(Debug, Clone)]
pub(super) struct Write {
    pub(super) pick: Pick,
    pub(super) values: Vec<CqlValue>,
    pub(super) weight: usize,
}

impl Write {
    pub(super) fn new(pick: Pick, values: Vec<CqlValue>) -> Self {
        let weight = values.iter().map(weight).sum::<usize>() + ROW_BYTES;
        Self { pick, values, weight }
    }
}

fn weight(value: &CqlValue) -> usize {
    match value {
        CqlValue::Blob(bytes) => bytes.len() + 4,
        CqlValue::Text(text) => text.len() + 4,
        CqlValue::Uuid(_) => 20,
        _ => 12,
    }
}

/// Cuts rows into requests, in order; a unit's rows stay together unless they are too many for any request. `home` tells CQL
/// partitions apart.
pub(super) fn cut(units: impl IntoIterator<Item = Vec<Write>>, home: impl Fn(&Write) -> u64) -> Vec<Vec<Write>> {
    let (mut requests, mut open, mut bytes) = (Vec::new(), Vec::<Write>::new(), 0);
    let mut homes = BTreeSet::new();
    for unit in units {
        let heavy: usize = unit.iter().map(|row| row.weight).sum();
        let of_unit: BTreeSet<u64> = unit.iter().map(&home).collect();
        let together = homes.union(&of_unit).count();
        let full = bytes + heavy > BYTES || open.len() + unit.len() > ROWS || together > PARTITIONS;
        if !open.is_empty() && full {
            requests.push(std::mem::take(&mut open));
            bytes = 0;
            homes.clear();
        }
        if heavy > BYTES {
            // A row alone is no batch and may be of any size.
            requests.extend(unit.into_iter().map(|row| vec![row]));
            continue;
        }
        bytes += heavy;
        homes.extend(of_unit);
        open.extend(unit);
    }
    if !open.is_empty() {
        requests.push(open);
    }
    requests
}

/// A connected cluster.
pub(super) struct Cql {
    pub(super) session: Session,
    pub(super) statements: Statements,
    pub(super) timeout: Duration,
    /// Requests on their way at once: what a cluster in trouble makes wait, waits here.
    gate: Semaphore,
}

impl Cql {
    /// Connects and prepares every statement.
    pub(super) async fn open(address: &Address, limits: &StoreLimits) -> Result<Self, OpenError> {
        let session = connect(address, limits).await?;
        super::schema::checked(&session, address).await?;
        let statements = Statements::prepare(&session, &address.path).await.map_err(|fault| {
            fault.at(address, |why| {
                format!("the tables are not as this release needs them ({why}): run `esh3ar schema apply`")
            })
        })?;
        let timeout = Duration::from_millis(limits.cql_ms);
        Ok(Self { session, statements, timeout, gate: Semaphore::new(limits.cql_requests.max(1)) })
    }

    /// Writes rows in one request. One row, or rows of one CQL partition, stand whole or not at all.
    ///
    /// Never as a logged batch, which would hold rows of several partitions together: Cassandra keeps its log on two other
    /// nodes that it believes alive and waits for both, so of three nodes the two that live would take none from the moment in
    /// which one dies until they believe it, which is some twenty seconds.
    pub(super) async fn send(&self, rows: &[Write]) -> PortResult<()> {
        let _room = self.gate.acquire().await.map_err(|_| closed())?;
        metrics_of(rows.len());
        let outcome = match rows {
            [] => return Ok(()),
            [row] => self.session.execute_unpaged(self.statements.get(row.pick), &row.values).await,
            rows => {
                let mut batch = Batch::new(BatchType::Unlogged);
                batch.set_is_idempotent(true);
                for row in rows {
                    batch.append_statement(self.statements.get(row.pick).clone());
                }
                let values: Vec<_> = rows.iter().map(|row| &row.values).collect();
                self.session.batch(&batch, values).await
            }
        };
        outcome.map(drop).map_err(|why| written(&why))
    }

    /// The same, tried some times. Of a call's many requests those alone are repeated that failed: where a cluster has too much to
    /// do, and each request may fail, all of them would never succeed together.
    pub(super) async fn insist(&self, rows: Vec<Write>) -> PortResult<()> {
        for pause in PAUSES {
            match self.send(&rows).await {
                Err(PortError::Unavailable(_) | PortError::Unknown(_)) => tokio::time::sleep(pause).await,
                answered => return answered,
            }
        }
        self.send(&rows).await
    }

    /// Writes rows in as few requests as they fit in, at once and in no order.
    pub(super) async fn send_all(&self, rows: Vec<Write>) -> PortResult<()> {
        self.send_units(rows.into_iter().map(|row| vec![row])).await
    }

    /// The same; rows of a unit go in one request.
    pub(super) async fn send_units(&self, units: impl IntoIterator<Item = Vec<Write>>) -> PortResult<()> {
        stream::iter(self.cut(units)).map(|rows| self.insist(rows)).buffer_unordered(16).try_collect().await
    }

    /// Cuts rows into requests, in order; a unit's rows stay together.
    pub(super) fn cut(&self, units: impl IntoIterator<Item = Vec<Write>>) -> Vec<Vec<Write>> {
        cut(units, |row| self.statements.home(row))
    }

    /// Room for a request that reads, which is counted.
    async fn reading(&self, pick: Pick) -> PortResult<SemaphorePermit<'_>> {
        let room = self.gate.acquire().await.map_err(|_| closed())?;
        super::traffic::read(pick);
        Ok(room)
    }

    /// Reads rows of one CQL partition: few, or at most as many as the statement's limit.
    pub(super) async fn rows<R>(&self, pick: Pick, values: impl SerializeRow) -> PortResult<Vec<R>>
    where
        R: for<'frame, 'metadata> DeserializeRow<'frame, 'metadata>,
    {
        let _room = self.reading(pick).await?;
        let found = self.session.execute_unpaged(self.statements.get(pick), values).await.map_err(|why| read(&why))?;
        rows_of(found)
    }

    /// The same; `None`: the servers gave it up, as they do where too many rows that were removed are passed on the way.
    pub(super) async fn piece<R>(&self, pick: Pick, values: impl SerializeRow) -> PortResult<Option<Vec<R>>>
    where
        R: for<'frame, 'metadata> DeserializeRow<'frame, 'metadata>,
    {
        let _room = self.reading(pick).await?;
        match self.session.execute_unpaged(self.statements.get(pick), values).await {
            Ok(found) => rows_of(found).map(Some),
            Err(ExecutionError::LastAttemptError(RequestAttemptError::DbError(DbError::ReadFailure { .. }, _))) => {
                Ok(None)
            }
            Err(why) => Err(read(&why)),
        }
    }

    /// Reads many rows, a page at a time.
    pub(super) async fn pages<R>(&self, pick: Pick, values: impl SerializeRow) -> PortResult<Vec<R>>
    where
        R: for<'frame, 'metadata> DeserializeRow<'frame, 'metadata> + 'static,
    {
        let _room = self.reading(pick).await?;
        let statement = self.statements.get(pick).clone();
        let pager = tokio::time::timeout(self.timeout, self.session.execute_iter(statement, values)).await;
        let pager = pager.map_err(|_| slow())?.map_err(|why| PortError::Unavailable(why.to_string()))?;
        let rows = pager.rows_stream::<R>().map_err(|why| strange(&why))?;
        rows.try_collect().await.map_err(|why| PortError::Unavailable(why.to_string()))
    }

    /// Runs a statement whose condition decides; answers whether it was applied.
    pub(super) async fn decide(&self, pick: Pick, values: impl SerializeRow) -> PortResult<bool> {
        let _room = self.reading(pick).await?;
        let found =
            self.session.execute_unpaged(self.statements.get(pick), values).await.map_err(|why| written(&why))?;
        let found = found.into_rows_result().map_err(|why| strange(&why))?;
        // The servers answer different columns besides this one: it is found by its name.
        let at = found.column_specs().get_by_name("[applied]").map_or(0, |(index, _)| index);
        let row = found.maybe_first_row::<scylla::value::Row>().map_err(|why| strange(&why))?;
        let applied = row.and_then(|row| row.columns.into_iter().nth(at).flatten());
        Ok(matches!(applied, Some(CqlValue::Boolean(true))))
    }
}

fn rows_of<R>(found: QueryResult) -> PortResult<Vec<R>>
where
    R: for<'frame, 'metadata> DeserializeRow<'frame, 'metadata>,
{
    let found = found.into_rows_result().map_err(|why| strange(&why))?;
    let rows = found.rows::<R>().map_err(|why| strange(&why))?;
    rows.collect::<Result<_, _>>().map_err(|why| strange(&why))
}

/// Statements are prepared with these: every one may be repeated.
pub(super) async fn prepare(session: &Session, text: &str) -> Result<PreparedStatement, Fault> {
    let mut prepared = session.prepare(text).await?;
    prepared.set_is_idempotent(true);
    prepared.set_page_size(PAGE);
    Ok(prepared)
}

fn metrics_of(rows: usize) {
    super::traffic::count(rows);
}

fn closed() -> PortError {
    PortError::Unavailable("the history is being closed".into())
}

fn slow() -> PortError {
    PortError::Unavailable("the history did not answer in time".into())
}

fn strange(why: &dyn std::fmt::Display) -> PortError {
    PortError::Unavailable(format!("the history answered what was not asked: {why}"))
}

/// A row whose bytes this release cannot read.
pub(super) fn broken(table: &str, why: &dyn std::fmt::Display) -> PortError {
    PortError::Unavailable(format!("a row of `{table}` cannot be read: {why}"))
}

/// A read that failed did nothing: asking again may help.
fn read(why: &ExecutionError) -> PortError {
    PortError::Unavailable(why.to_string())
}

/// Whether a write that failed may have happened. Nothing here is a reason to give a message up, so nothing is rejected that
/// a mended cluster would take.
fn written(why: &ExecutionError) -> PortError {
    let text = why.to_string();
    match why {
        ExecutionError::BadQuery(_) => PortError::Rejected(text),
        ExecutionError::EmptyPlan | ExecutionError::ConnectionPoolError(_) | ExecutionError::PrepareError(_) => {
            PortError::Unavailable(text)
        }
        ExecutionError::LastAttemptError(RequestAttemptError::DbError(error, _)) => match error {
            DbError::WriteTimeout { .. } | DbError::WriteFailure { .. } | DbError::ServerError => {
                PortError::Unknown(text)
            }
            _ => PortError::Unavailable(text),
        },
        ExecutionError::LastAttemptError(RequestAttemptError::UnableToAllocStreamId) => PortError::Unavailable(text),
        _ => PortError::Unknown(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(bytes: usize) -> Write {
        Write::new(Pick::Entry, vec![CqlValue::Blob(vec![0; bytes])])
    }

    fn together(_: &Write) -> u64 {
        0
    }

    #[test]
    fn requests_are_neither_too_long_nor_too_heavy_and_units_stay_whole() {
        let units = (0..100).map(|n| vec![row(10), row(if n % 10 == 0 { 9_000 } else { 200 })]);
        let requests = cut(units, together);
        assert_eq!(requests.iter().map(Vec::len).sum::<usize>(), 200);
        for request in &requests {
            assert!(request.len() <= ROWS && request.len() % 2 == 0, "{}", request.len());
            assert!(request.iter().map(|row| row.weight).sum::<usize>() <= BYTES);
        }
        assert!(cut(Vec::new(), together).is_empty());
    }

    #[test]
    fn a_row_too_heavy_for_a_batch_goes_alone() {
        let requests = cut([vec![row(10)], vec![row(10), row(60_000)], vec![row(10)]], together);
        assert_eq!(requests.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1, 1]);
    }

    #[test]
    fn a_request_goes_to_few_partitions_and_takes_all_that_is_of_one() {
        let of = |bytes: usize| vec![row(bytes)];
        // The length stands for the partition: 30 of one row each, 50 rows of one, and two that were there before.
        let units = (1..31).map(of).chain((0..50).map(|_| of(99))).chain([of(29), of(30)]);
        let requests = cut(units, |row| row.weight as u64);
        assert_eq!(requests.iter().map(Vec::len).collect::<Vec<_>>(), [10, 10, 10, 52]);
    }
}
