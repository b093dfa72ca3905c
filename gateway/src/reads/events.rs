//! `GET /v1/events`: the resumable feed of status changes, read from `outcomes` (rule 16). Oldest first over all partitions;
//! in order for each message's partition; a change may come twice and none is left out.

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::{Json, extract::State};
use ingest::{
    auth::{Caller, Who},
    http::Authed,
};
use schemas::{
    Code, Fact, MessageId, Offset, Partition, Problem, Reason, Topic, TopicPartition, What, codec,
    cursor::FeedCursor,
    port::{Fetch, Log, PortResult},
    view::StatusChange,
};
use serde::{Deserialize, Serialize};

use super::{Answer, Asked, page, query};
use crate::Gateway;

/// The longest a reader may wait for something new, ms: less than what proxies cut.
const WAIT_MAX_MS: u64 = 25_000;
/// Between looks while nothing comes that this node wrote itself.
const LOOK: Duration = Duration::from_millis(250);
/// Records read of one partition for one page: what is other tenants' is passed over, and the cursor moves with it.
const FETCH: Fetch = Fetch { records: 64, bytes: 256 * 1024 };
/// Rounds over all partitions for one page, so that a tenant with few messages among many need not ask too often.
const ROUNDS: usize = 16;

/// Which part of the feed.
#[derive(Debug, Deserialize)]
pub(crate) struct AskedEvents {
    cursor: Option<String>,
    limit: Option<usize>,
    wait_ms: Option<u64>,
    /// Also give each message's metadata.
    #[serde(default)]
    metadata: bool,
}

/// A piece of the feed.
#[derive(Debug, Serialize)]
pub(crate) struct Events {
    items: Vec<StatusChange>,
    /// From where to go on; always given.
    next_cursor: String,
    /// Whether there may be more now.
    more: bool,
}

/// Whether a fact is the caller's to know.
fn takes(caller: &Caller, fact: &Fact) -> bool {
    let ours = fact.inbox.user.tenant == caller.tenant && fact.what.status().is_some();
    ours && match caller.who {
        Who::Server | Who::Admin => true,
        _ => caller.sender().as_ref() == Some(&fact.from),
    }
}

fn change(fact: &Fact) -> Option<StatusChange> {
    let reason: Option<Reason> = match fact.what {
        What::Failed(reason) => Some(reason),
        _ => None,
    };
    let (id, at, client_ref) = (fact.id, fact.at, fact.client_ref.clone());
    Some(StatusChange { id, status: fact.what.status()?, at, reason, client_ref, metadata: None })
}

/// `GET /v1/events`.
pub(crate) async fn events(
    State(gateway): State<Arc<Gateway>>,
    Authed(caller): Authed,
    asked: Asked<AskedEvents>,
) -> Answer<Json<Events>> {
    if matches!(caller.who, Who::Mobile(_)) {
        return Err(Problem::new(Code::Forbidden, "the feed of events is for the business that sends").into());
    }
    let asked = query(asked)?;
    let limit = page(asked.limit)?;
    let clock = &gateway.parts.clock;
    let until = clock.mono().plus(asked.wait_ms.unwrap_or(0).min(WAIT_MAX_MS));
    let mut feed = Feed::open(&gateway, asked.cursor.as_deref()).await?;
    let (mut items, more) = loop {
        let flushed = gateway.gather.flushed.notified();
        let (items, more) = feed.page(gateway.parts.log.as_ref(), &caller, limit).await?;
        let left = Duration::from_millis(until.since(clock.mono()));
        if !items.is_empty() || more || left.is_zero() {
            break (items, more);
        }
        let _ = tokio::time::timeout(LOOK.min(left), flushed).await;
    };
    if asked.metadata {
        add_metadata(&gateway, &mut items).await?;
    }
    Ok(Json(Events { items, next_cursor: feed.at.to_string(), more }))
}

async fn add_metadata(gateway: &Gateway, items: &mut [StatusChange]) -> PortResult<()> {
    let ids: Vec<MessageId> = items.iter().map(|item| item.id).collect();
    let placed = gateway.parts.history.messages(&ids).await?;
    let known: HashMap<MessageId, _> = placed.into_iter().flatten().map(|p| (p.message.id, p.message)).collect();
    for item in items {
        item.metadata = known.get(&item.id).and_then(|message| message.metadata.clone());
    }
    Ok(())
}

struct Feed {
    at: FeedCursor,
}

impl Feed {
    async fn open(gateway: &Gateway, cursor: Option<&str>) -> Result<Self, Problem> {
        let given = cursor.filter(|text| !text.is_empty());
        let given: Option<FeedCursor> = given
            .map(str::parse)
            .transpose()
            .map_err(|why: schemas::ids::BadName| Problem::new(Code::InvalidCursor, why.to_string()).at("cursor"))?;
        let mut at = FeedCursor::default();
        for p in (0..gateway.partitions).map(Partition) {
            let (first, end) = gateway.parts.log.bounds(outcomes(p)).await?;
            let place = match given.as_ref().and_then(|given| given.0.get(&p)) {
                Some((offset, _)) if *offset < first => {
                    let detail = "changes after this cursor are no longer kept: start again without one";
                    return Err(Problem::new(Code::CursorExpired, detail).at("cursor"));
                }
                Some((offset, _)) if *offset > end => {
                    let detail = "`cursor` lies beyond the end of the feed";
                    return Err(Problem::new(Code::InvalidCursor, detail).at("cursor"));
                }
                Some(place) => *place,
                None => (first, 0),
            };
            at.0.insert(p, place);
        }
        Ok(Self { at })
    }

    /// The next changes, at most `limit`, and whether there may be more.
    async fn page(&mut self, log: &dyn Log, caller: &Caller, limit: usize) -> PortResult<(Vec<StatusChange>, bool)> {
        let mut items = Vec::new();
        for _ in 0..ROUNDS {
            let mut pieces = Vec::new();
            for (p, (offset, within)) in &self.at.0 {
                let records = log.read(outcomes(*p), *offset, FETCH).await?;
                if !records.is_empty() {
                    pieces.push(Piece::new(*p, *within, &records, caller));
                }
            }
            if pieces.is_empty() {
                return Ok((items, false));
            }
            self.merge(&mut pieces, limit, &mut items);
            if items.len() >= limit {
                return Ok((items, true));
            }
        }
        Ok((items, true))
    }

    /// Takes the oldest of all pieces' next changes until the page is full, and moves the cursor behind what was taken.
    fn merge(&mut self, pieces: &mut [Piece], limit: usize, items: &mut Vec<StatusChange>) {
        while items.len() < limit {
            let oldest = pieces.iter_mut().filter(|piece| piece.head.is_some());
            let Some(piece) = oldest.min_by_key(|piece| piece.head) else { break };
            let Some(next) = piece.take() else { break };
            self.at.0.insert(piece.partition, (next.offset, next.within));
            items.push(next.change);
        }
        for piece in pieces.iter().filter(|piece| piece.head.is_none()) {
            self.at.0.insert(piece.partition, (piece.end, 0));
        }
    }
}

/// What was read of one partition.
struct Piece {
    partition: Partition,
    changes: std::iter::Peekable<std::vec::IntoIter<Next>>,
    head: Option<schemas::Timestamp>,
    end: Offset,
}

struct Next {
    change: StatusChange,
    /// The place behind it.
    offset: Offset,
    within: u16,
}

impl Piece {
    fn new(partition: Partition, skip: u16, records: &[schemas::port::Record], caller: &Caller) -> Self {
        let mut changes = Vec::new();
        let mut end = Offset(0);
        for (n, record) in records.iter().enumerate() {
            end = record.offset.next();
            // A record that this release cannot read is passed over: the truth is `GET`.
            let facts: Vec<Fact> = codec::decode(&record.body).unwrap_or_default();
            let skip = if n == 0 { usize::from(skip) } else { 0 };
            for (i, fact) in facts.iter().enumerate().skip(skip).filter(|(_, fact)| takes(caller, fact)) {
                if let Some(change) = change(fact) {
                    // The cursor counts to 65,535 within a record; a larger one is given again from there.
                    let within = u16::try_from(i + 1).unwrap_or(u16::MAX);
                    changes.push(Next { change, offset: record.offset, within });
                }
            }
        }
        let mut changes = changes.into_iter().peekable();
        let head = changes.peek().map(|next| next.change.at);
        Self { partition, changes, head, end }
    }

    fn take(&mut self) -> Option<Next> {
        let next = self.changes.next();
        self.head = self.changes.peek().map(|next| next.change.at);
        next
    }
}

fn outcomes(partition: Partition) -> TopicPartition {
    TopicPartition { topic: Topic::Outcomes, partition }
}
