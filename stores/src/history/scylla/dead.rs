//! The dead-letter index: by day and shard, newest first, and by id. Dead letters are few; each is kept whole.
//!
//! A day has sixteen shards: four by tenant, so that a tenant's list reads four of them, times four by id, so that one
//! tenant's bad day is not one CQL partition.

use std::collections::HashMap;

use async_trait::async_trait;
use futures::future::try_join_all;
use schemas::{
    MessageId, Tenant, Timestamp,
    port::{Buried, Dead, DeadLetters, Filter, Page, PortResult},
};
use scylla::value::CqlValue::{BigInt, Blob, Boolean, Int, Text};
use uuid::Uuid;

use super::{
    ScyllaHistory,
    counts::Counted,
    rows::{blob, unblob},
    session::{Write, broken},
    shared::Shared,
    statements::Pick,
};

const DAY_MS: i64 = 24 * 3_600_000;
/// Shards of a day, by tenant and by id.
const BY_TENANT: u64 = 4;
const BY_ID: u64 = 4;
/// The list of days.
const DAYS: &str = "dead";
/// Rows looked at for one page of a filtered list: past that the page ends early and says where the next goes on.
const LOOKED: usize = 10_000;
/// Letters removed at once.
const STEP_GONE: usize = 100;
/// Rows of one shard read at once, at least.
const STEP: usize = 16;

fn day(at: Timestamp) -> i64 {
    at.0.div_euclid(DAY_MS)
}

fn shard(tenant: &Tenant, id: MessageId) -> i32 {
    let by_tenant = xxhash_rust::xxh3::xxh3_64(tenant.as_str().as_bytes()) % BY_TENANT;
    let by_id = xxhash_rust::xxh3::xxh3_64(id.0.as_bytes()) % BY_ID;
    (by_tenant * BY_ID + by_id) as i32
}

/// The shards in which a filter's letters stand.
fn shards(filter: &Filter) -> Vec<i32> {
    let tenant = filter.tenant.as_ref().or(filter.user.as_ref().map(|user| &user.tenant));
    match tenant {
        None => (0..(BY_TENANT * BY_ID) as i32).collect(),
        Some(tenant) => {
            let first = (xxhash_rust::xxh3::xxh3_64(tenant.as_str().as_bytes()) % BY_TENANT * BY_ID) as i32;
            (first..first + BY_ID as i32).collect()
        }
    }
}

/// Where a list stands: time, id, round.
type Place = (i64, [u8; 16], i32);

/// After every letter of a filter that is to be listed.
fn start(filter: &Filter, from: Option<Buried>) -> Place {
    let from = from.map_or((i64::MAX, [u8::MAX; 16], i32::MAX), |(at, id)| (at.0, *id.0.as_bytes(), i32::MIN));
    filter.until.map_or(from, |until| from.min((until.0, [0; 16], i32::MIN)))
}

/// One shard's rows, newest first, read a piece at a time.
struct Lane {
    shard: i32,
    rows: std::collections::VecDeque<(Place, Dead)>,
    from: Place,
    all: bool,
}

/// A letter's row by id.
#[derive(Debug, Clone)]
struct Named {
    round: i32,
    at: i64,
    tenant: Tenant,
    waits: bool,
}

impl Shared {
    async fn named(&self, id: MessageId) -> PortResult<Vec<Named>> {
        type Row = (i32, Option<i64>, Option<String>, Option<bool>);
        let key = id.0.as_bytes().to_vec();
        let rows = self.cql.rows::<Row>(Pick::DeadNames, (key,)).await?;
        let mut named = Vec::with_capacity(rows.len());
        for (round, at, tenant, waits) in rows {
            let (Some(at), Some(tenant)) = (at, tenant) else { continue };
            let tenant = tenant.parse().map_err(|why| broken("dead_by_id", &why))?;
            named.push(Named { round, at, tenant, waits: waits.unwrap_or(false) });
        }
        Ok(named)
    }

    async fn refill(&self, day: i64, lane: &mut Lane, step: usize) -> PortResult<()> {
        if lane.all || !lane.rows.is_empty() {
            return Ok(());
        }
        let (at, id, round) = lane.from;
        let most = i32::try_from(step).unwrap_or(i32::MAX);
        type Row = (i64, Vec<u8>, i32, Option<Vec<u8>>);
        let values = (day, lane.shard, at, id.to_vec(), round, most);
        let rows = self.cql.rows::<Row>(Pick::DeadFrom, values).await?;
        lane.all = rows.len() < step;
        for (at, id, round, letter) in rows {
            let id = id.try_into().unwrap_or([0; 16]);
            lane.from = (at, id, round);
            let letter = unblob(&letter.unwrap_or_default()).map_err(|why| broken("dead", &why))?;
            lane.rows.push_back(((at, id, round), letter));
        }
        Ok(())
    }

    async fn letters(&self, filter: &Filter, from: Option<Buried>, limit: usize) -> PortResult<Page<Dead, Buried>> {
        let (start, since) = (start(filter, from), filter.since.unwrap_or(Timestamp(i64::MIN)));
        let (mut rows, mut last, mut looked) = (Vec::new(), None, 0);
        let step = limit.clamp(STEP, 200);
        let days = self.buckets(DAYS).await?;
        for day in days.into_iter().rev().filter(|it| *it <= day(Timestamp(start.0)) && *it >= day(since)) {
            let lane = |shard| Lane { shard, rows: Default::default(), from: start, all: false };
            let mut lanes: Vec<Lane> = shards(filter).into_iter().map(lane).collect();
            loop {
                try_join_all(lanes.iter_mut().map(|lane| self.refill(day, lane, step))).await?;
                let newest = lanes.iter_mut().filter(|lane| !lane.rows.is_empty());
                let Some(lane) = newest.max_by_key(|lane| lane.rows.front().map(|row| row.0)) else { break };
                let Some((_, dead)) = lane.rows.pop_front() else { break };
                if dead.at < since {
                    return Ok(Page { rows, next: None });
                }
                // One row more than fits says whether there is a next page.
                if rows.len() == limit.max(1) || looked == LOOKED {
                    return Ok(Page { rows, next: last });
                }
                looked += 1;
                last = Some((dead.at, dead.id));
                if filter.takes(&dead) {
                    rows.push(dead);
                }
            }
        }
        Ok(Page { rows, next: None })
    }

    async fn bury_one(&self, dead: &Dead) -> PortResult<()> {
        let (id, round) = (dead.id.0.as_bytes().to_vec(), i32::from(dead.round));
        let tenant = &dead.inbox.user.tenant;
        let there = self.named(dead.id).await?.into_iter().find(|named| named.round == round);
        let waits = dead.requeued_at.is_none();
        let (day, shard) = (day(dead.at), shard(tenant, dead.id));
        let mut rows = Vec::with_capacity(4);
        self.mark(DAYS.into(), day, &mut rows);
        let letter = vec![
            BigInt(day),
            Int(shard),
            BigInt(dead.at.0),
            Blob(id.clone()),
            Int(round),
            Blob(blob(dead)),
            Int(self.ttl),
        ];
        let name = vec![
            Blob(id.clone()),
            Int(round),
            BigInt(dead.at.0),
            Text(tenant.to_string()),
            Boolean(waits),
            Int(self.ttl),
        ];
        // The name first: a letter that nobody finds by its id could not be replaced.
        self.cql.send(&[Write::new(Pick::DeadName, name)]).await?;
        rows.push(Write::new(Pick::Dead, letter));
        self.cql.send_all(rows).await?;
        if let Some(old) = there.as_ref().filter(|old| old.at != dead.at.0) {
            self.cql.send(&[self.letter_gone(dead.id, old)]).await?;
        }
        self.marked(DAYS.into(), day);
        self.counts.add(Counted::Dead, i64::from(waits) - i64::from(there.is_some_and(|old| old.waits)));
        Ok(())
    }

    fn letter_gone(&self, id: MessageId, named: &Named) -> Write {
        let (day, shard) = (day(Timestamp(named.at)), shard(&named.tenant, id));
        let key = vec![BigInt(day), Int(shard), BigInt(named.at), Blob(id.0.as_bytes().to_vec()), Int(named.round)];
        Write::new(Pick::DeadGone, key)
    }

    /// The oldest letters of a day before a time, of each shard so many.
    async fn oldest(&self, day: i64, before: Timestamp, limit: usize) -> PortResult<Vec<Dead>> {
        type Row = (i64, Vec<u8>, i32, Option<Vec<u8>>);
        let most = i32::try_from(limit).unwrap_or(i32::MAX);
        let asked = (0..(BY_TENANT * BY_ID) as i32)
            .map(|shard| self.cql.rows::<Row>(Pick::DeadOldest, (day, shard, before.0, most)));
        let rows = try_join_all(asked).await?.into_iter().flatten();
        let letter = |row: Row| unblob::<Dead>(&row.3.unwrap_or_default()).map_err(|why| broken("dead", &why));
        let mut letters = rows.map(letter).collect::<PortResult<Vec<Dead>>>()?;
        letters.sort_by_key(|dead| (dead.at, dead.id, dead.round));
        Ok(letters)
    }

    async fn forgotten(&self, before: Timestamp, limit: usize) -> PortResult<usize> {
        let mut gone = 0;
        for day in self.buckets(DAYS).await?.into_iter().filter(|it| *it <= day(before)) {
            while gone < limit {
                let step = (limit - gone).min(STEP_GONE);
                let mut letters = self.oldest(day, before, step).await?;
                letters.truncate(step);
                let mut rows = Vec::with_capacity(2 * letters.len());
                for dead in &letters {
                    let (round, at, waits) = (i32::from(dead.round), dead.at.0, dead.requeued_at.is_none());
                    let named = Named { round, at, tenant: dead.inbox.user.tenant.clone(), waits };
                    rows.push(self.letter_gone(dead.id, &named));
                    let name = vec![Blob(dead.id.0.as_bytes().to_vec()), Int(round)];
                    rows.push(Write::new(Pick::DeadNameGone, name));
                }
                self.cql.send_all(rows).await?;
                gone += letters.len();
                let waited = letters.iter().filter(|dead| dead.requeued_at.is_none()).count();
                self.counts.add(Counted::Dead, -(waited as i64));
                if letters.len() < step {
                    break;
                }
            }
            if gone >= limit {
                break;
            }
            if (day + 1) * DAY_MS <= before.0 {
                self.bucket_gone(DAYS, day).await?;
            }
        }
        Ok(gone)
    }
}

#[async_trait]
impl DeadLetters for ScyllaHistory {
    async fn bury(&self, dead: &[Dead]) -> PortResult<()> {
        // Of several rows of one name in one call the last one counts.
        let mut named = HashMap::<(Uuid, u8), &Dead>::with_capacity(dead.len());
        for dead in dead {
            named.insert((dead.id.0, dead.round), dead);
        }
        let _alone = self.burying.lock().await;
        for chunk in named.into_values().collect::<Vec<_>>().chunks(32) {
            try_join_all(chunk.iter().map(|dead| self.shared.bury_one(dead))).await?;
        }
        Ok(())
    }

    async fn dead(&self, filter: &Filter, from: Option<Buried>, limit: usize) -> PortResult<Page<Dead, Buried>> {
        self.shared.letters(filter, from, limit).await
    }

    async fn dead_letter(&self, id: MessageId) -> PortResult<Option<Dead>> {
        let named = self.shared.named(id).await?;
        let Some(latest) = named.into_iter().max_by_key(|named| named.round) else { return Ok(None) };
        let (day, shard) = (day(Timestamp(latest.at)), shard(&latest.tenant, id));
        let key = (day, shard, latest.at, id.0.as_bytes().to_vec(), latest.round);
        let row = self.shared.cql.rows::<(Option<Vec<u8>>,)>(Pick::DeadAt, key).await?.into_iter().next();
        let letter = row.and_then(|row| row.0);
        letter.map(|bytes| unblob(&bytes)).transpose().map_err(|why| broken("dead", &why))
    }

    async fn dead_count(&self) -> PortResult<u64> {
        self.shared.counts.total(&self.shared.cql, Counted::Dead).await
    }

    async fn forget_dead(&self, before: Timestamp, limit: usize) -> PortResult<usize> {
        let _alone = self.burying.lock().await;
        self.shared.forgotten(before, limit).await
    }
}
