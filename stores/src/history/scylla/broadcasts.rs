//! Broadcasts: what was asked for stands in one row that only a transaction changes, its recipients in chunks beside it.
//!
//! The recipients are written first, under the name of this attempt; the header names the attempt, and of several doors that
//! begin the same broadcast at once one header stands. What the others wrote nobody reads, and it ends by its time to live.
//!
//! Where a transaction's answer is lost, the header is read and tells: that read finishes what was left half done.

use async_trait::async_trait;
use futures::{StreamExt, stream};
use schemas::{
    BroadcastId, Phone, Timestamp,
    port::{Asked, Broadcast, BroadcastState, Broadcasts, Expanding, PortError, PortResult},
};
use scylla::value::CqlValue::{BigInt, Blob, Int};
use uuid::Uuid;

use super::{
    ScyllaHistory,
    rows::{blob, unblob},
    session::{Write, broken},
    shared::{READS, Shared},
    statements::Pick,
};

/// Recipients of one row: eight bytes each.
const CHUNK: usize = 1_000;
/// Bytes of one recipient: its digits as a number.
const NUMBER: usize = 8;
/// How often progress is tried while others write theirs.
const TRIES: usize = 20;
/// How many lost answers of one call's transactions are made up for by reading: each may have taken
/// `limits.store.cql_ms`, and other broadcasts wait meanwhile.
const DOUBTS: usize = 2;

type Progress = (u64, BroadcastState);

/// A header as it stands.
struct Header {
    attempt: Vec<u8>,
    version: i32,
    broadcast: Broadcast,
}

/// What is not known of one call's transactions.
#[derive(Default)]
struct Doubt {
    /// Transactions whose answer was lost.
    lost: usize,
}

impl Doubt {
    /// Whether a transaction was applied. Where its answer is lost this says no, [`DOUBTS`] times: what stands is to be
    /// read next, and decides.
    fn applied(&mut self, answer: PortResult<bool>) -> PortResult<bool> {
        match answer {
            Err(PortError::Unknown(_)) if self.lost < DOUBTS => {
                self.lost += 1;
                Ok(false)
            }
            Err(why) => Err(self.told(why)),
            answered => answered,
        }
    }

    /// How the call's failure is told: of what may have happened it is not said that it did not.
    fn told(&self, why: PortError) -> PortError {
        if self.lost == 0 { why } else { PortError::Unknown(why.to_string()) }
    }
}

fn number(phone: &Phone) -> [u8; NUMBER] {
    // A phone number is its digits, fifteen at most.
    phone.to_string().trim_start_matches('+').parse().unwrap_or(0u64).to_be_bytes()
}

fn phone(bytes: &[u8]) -> Option<Phone> {
    let number = u64::from_be_bytes(bytes.try_into().ok()?);
    Phone::from_stored(&format!("+{number}"))
}

fn key(id: BroadcastId) -> Vec<u8> {
    id.0.as_bytes().to_vec()
}

impl Shared {
    async fn header(&self, id: BroadcastId) -> PortResult<Option<Header>> {
        type Row = (Option<Vec<u8>>, Option<Vec<u8>>, Option<i64>, Option<i32>, Option<Vec<u8>>);
        let row = self.cql.rows::<Row>(Pick::Broadcast, (key(id),)).await?.into_iter().next();
        let Some((Some(attempt), Some(asked), Some(recipients), Some(version), Some(progress))) = row else {
            return Ok(None);
        };
        let unread = |why: schemas::codec::Unreadable| broken("broadcasts", &why);
        let asked: Asked = unblob(&asked).map_err(unread)?;
        let (expanded, state): Progress = unblob(&progress).map_err(unread)?;
        let recipients = u64::try_from(recipients).unwrap_or(0);
        Ok(Some(Header { attempt, version, broadcast: Broadcast { id, asked, recipients, expanded, state } }))
    }

    /// One of the list of those being expanded; `None`: it never began, or is over.
    async fn running_one(&self, id: BroadcastId, at: Timestamp) -> PortResult<Option<Broadcast>> {
        let found = self.header(id).await?.map(|header| header.broadcast);
        let Some(there) = found.filter(|there| there.asked.accepted_at == at) else { return Ok(None) };
        if there.state == BroadcastState::Running {
            return Ok(Some(there));
        }
        // Its end was written and this row's was not. Where it cannot be removed now, the next look comes by again.
        if let Err(why) = self.cql.send(&[self.running_gone(id, at)]).await {
            tracing::debug!(broadcast = %id, %why, "a broadcast that is over could not be taken off the list yet");
        }
        Ok(None)
    }

    fn running_gone(&self, id: BroadcastId, at: Timestamp) -> Write {
        Write::new(Pick::RunningGone, vec![BigInt(at.0), Blob(key(id))])
    }
}

#[async_trait]
impl Broadcasts for ScyllaHistory {
    async fn begin(&self, broadcast: &Broadcast, recipients: &[Phone]) -> PortResult<Broadcast> {
        let (shared, id) = (&self.shared, broadcast.id);
        if let Some(there) = shared.header(id).await? {
            return Ok(there.broadcast);
        }
        let begun = Broadcast { recipients: recipients.len() as u64, ..broadcast.clone() };
        let attempt = Uuid::new_v4().as_bytes().to_vec();
        let chunk = |(number_of, phones): (i32, &[Phone])| {
            let phones: Vec<u8> = phones.iter().flat_map(number).collect();
            let values = vec![Blob(key(id)), Blob(attempt.clone()), Int(number_of), Blob(phones), Int(shared.ttl)];
            Write::new(Pick::Recipients, values)
        };
        shared.cql.send_all((0..).zip(recipients.chunks(CHUNK)).map(chunk).collect()).await?;
        if begun.state == BroadcastState::Running {
            // Before the header, so that no broadcast that stands is forgotten; one without a header is passed over.
            let row = vec![BigInt(begun.asked.accepted_at.0), Blob(key(id)), Int(shared.ttl)];
            shared.cql.send(&[Write::new(Pick::Running, row)]).await?;
        }
        let progress: Progress = (begun.expanded, begun.state);
        let count = i64::try_from(begun.recipients).unwrap_or(i64::MAX);
        let values = (key(id), attempt, blob(&begun.asked), count, blob(&progress), shared.ttl);
        let mut doubt = Doubt::default();
        if doubt.applied(shared.cql.decide(Pick::Begin, values).await)? {
            return Ok(begun);
        }
        // Another's attempt stands, or it is not known whether this one does: what stands is the answer. While it
        // cannot be read, nobody may say that nothing happened.
        let found = shared.header(id).await.map_err(|why| PortError::Unknown(why.to_string()))?;
        let found = found.map(|header| header.broadcast);
        found.ok_or_else(|| PortError::Unknown("a broadcast is not there, and may have been begun".into()))
    }

    async fn broadcast(&self, id: BroadcastId) -> PortResult<Option<Broadcast>> {
        Ok(self.shared.header(id).await?.map(|header| header.broadcast))
    }

    async fn running(&self) -> PortResult<Expanding> {
        let shared = &self.shared;
        let rows = shared.cql.pages::<(i64, Vec<u8>)>(Pick::AllRunning, ()).await?;
        let asked = rows.into_iter().map(async |(at, name)| match Uuid::from_slice(&name).map(BroadcastId) {
            Ok(id) => (id, shared.running_one(id, Timestamp(at)).await),
            Err(why) => (BroadcastId(Uuid::nil()), Err(broken("running", &why))),
        });
        let read: Vec<(BroadcastId, PortResult<Option<Broadcast>>)> =
            stream::iter(asked).buffered(READS).collect().await;
        let mut found = Expanding::default();
        for (id, row) in read {
            found.add(id, row);
        }
        Ok(found)
    }

    async fn recipients(&self, id: BroadcastId, from: u64, limit: usize) -> PortResult<Vec<Phone>> {
        let Some(header) = self.shared.header(id).await? else { return Ok(Vec::new()) };
        let whole = i32::try_from(from / CHUNK as u64).unwrap_or(i32::MAX);
        let until = from.saturating_add(limit as u64).min(header.broadcast.recipients);
        let last = i32::try_from(until / CHUNK as u64).unwrap_or(i32::MAX);
        let asked = (key(id), header.attempt, whole, last);
        let rows = self.shared.cql.pages::<(i32, Option<Vec<u8>>)>(Pick::Chunks, asked).await?;
        let mut phones = Vec::with_capacity(limit.min(CHUNK));
        let mut skip = usize::try_from(from % CHUNK as u64).unwrap_or(0) * NUMBER;
        for (chunk, row) in (whole..).zip(rows) {
            if row.0 != chunk {
                break;
            }
            let row = row.1.unwrap_or_default();
            for bytes in row.get(skip..).unwrap_or_default().chunks(NUMBER).take(limit - phones.len()) {
                phones.push(phone(bytes).ok_or_else(|| broken("recipients", &"a number is none"))?);
            }
            skip = 0;
        }
        Ok(phones)
    }

    async fn progress(&self, id: BroadcastId, expanded: u64, state: BroadcastState) -> PortResult<Broadcast> {
        let shared = &self.shared;
        let mut doubt = Doubt::default();
        for _ in 0..TRIES {
            let found = shared.header(id).await.map_err(|why| doubt.told(why))?;
            let Some(Header { version, mut broadcast, .. }) = found else {
                return Err(PortError::Rejected(format!("there is no broadcast {id}")));
            };
            let before = broadcast.clone();
            broadcast.expanded = broadcast.expanded.max(expanded).min(broadcast.recipients);
            // What is over stays as it ended.
            if broadcast.state == BroadcastState::Running {
                broadcast.state = state;
            }
            let told: Progress = (broadcast.expanded, broadcast.state);
            let values = (shared.ttl, version.wrapping_add(1), blob(&told), key(id), version);
            // Nothing new needs no write; nor does what a transaction wrote whose answer was lost.
            if broadcast == before || doubt.applied(shared.cql.decide(Pick::Progress, values).await)? {
                if broadcast.state != BroadcastState::Running {
                    let row = shared.running_gone(id, broadcast.asked.accepted_at);
                    shared.cql.send(&[row]).await?;
                }
                return Ok(broadcast);
            }
        }
        Err(doubt.told(PortError::Unavailable(format!("broadcast {id} is being written by others all the time"))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unknown() -> PortResult<bool> {
        Err(PortError::Unknown("no answer".into()))
    }

    fn away() -> PortError {
        PortError::Unavailable("away".into())
    }

    #[test]
    fn a_lost_answer_is_looked_for_and_not_told_until_there_are_too_many() {
        let mut doubt = Doubt::default();
        for _ in 0..DOUBTS {
            assert_eq!(doubt.applied(unknown()), Ok(false), "what stands is read");
            assert_eq!(doubt.applied(Ok(false)), Ok(false));
        }
        assert!(matches!(doubt.applied(unknown()), Err(PortError::Unknown(_))));
        assert_eq!(doubt.applied(Ok(true)), Ok(true));
    }

    #[test]
    fn a_failure_is_told_as_it_is_unless_something_before_it_may_have_happened() {
        let mut doubt = Doubt::default();
        assert_eq!(doubt.applied(Err(away())), Err(away()));
        assert_eq!(doubt.told(away()), away());
        assert_eq!(doubt.applied(unknown()), Ok(false));
        assert!(matches!(doubt.applied(Err(away())), Err(PortError::Unknown(_))));
        assert!(matches!(doubt.told(away()), PortError::Unknown(_)));
    }
}
