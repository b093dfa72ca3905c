//! What the parts of this adapter share: the session, the time, who owns what, and what is remembered.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use schemas::{
    Clock, ConversationId, Epoch, Inbox, MessageId, Millis, Partition, Position, State,
    limits::StoreLimits,
    port::{PortResult, Tail},
};
use scylla::value::CqlValue;

use super::{
    ages::Ages,
    conversations::Stand,
    counts::Counts,
    due::index::Index,
    forks::{Fork, Forks},
    keys::{self, Stamps},
    locks::Locks,
    retention::Rounds,
    rows::{EntryHead, Ledger, Place, unblob},
    session::{Cql, Write, broken},
    statements::Pick,
};
use crate::history::unconfirmed::Unconfirmed;

/// Rows of one CQL partition asked for at once by their keys: ScyllaDB takes a hundred in one restriction.
pub(super) const IDS: usize = 100;
/// Reads of one call on their way at once.
pub(super) const READS: usize = 32;
/// Buckets remembered as written to: some tens of bytes each.
const MARKS: usize = 100_000;

/// How old a look at the epochs may be when a write is answered, ms: two of those that come by themselves, and less than any
/// session of the log's lasts.
const LOOKED_MS: u64 = 2_000;
/// How long such a look may take.
const LOOK: Duration = Duration::from_secs(1);

/// What is remembered of a message while facts about it come in.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Known {
    pub(super) state: State,
    /// Its inbox and place, where it has one, and whether it is one-way.
    pub(super) place: Option<(Inbox, Position, bool)>,
}

type HeadRow = (i64, i32, Vec<u8>);

/// The head of an inbox.
#[derive(Debug, Clone, Default)]
pub(super) struct Head {
    pub(super) forks: Forks,
    pub(super) bucket: i64,
    pub(super) ledger: Ledger,
}

impl Head {
    /// Whether a row at this place is an entry that is kept.
    pub(super) fn has(&self, at: Position) -> bool {
        self.forks.is_live(at) && at.n > self.ledger.gone.n
    }
}

pub(super) struct Shared {
    pub(super) cql: Cql,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) stamps: Stamps,
    /// How long rows stand, s.
    pub(super) ttl: i32,
    /// Partitions that this process took over, with the epoch it was given, once the log has confirmed that they are its own.
    pub(super) mine: Mutex<BTreeMap<Partition, Epoch>>,
    /// The newest epoch known of a partition.
    pub(super) newest: Mutex<HashMap<Partition, Epoch>>,
    /// When the last look at all of them began that was answered.
    looked: Mutex<Millis>,
    pub(super) known: Mutex<Ages<MessageId, Known>>,
    /// The end of an inbox is sealed by one call at a time: two that found different ones would contradict each other.
    pub(super) sealing: Locks,
    /// So is a conversation.
    pub(super) taking: Locks,
    /// Rows that say of a bucket that it is used.
    pub(super) marks: Mutex<Ages<(String, i64), ()>>,
    /// What failed and was not repeated yet: nothing of its inbox or conversation is written after it.
    pub(super) unconfirmed: Unconfirmed,
    pub(super) due: Mutex<HashMap<Partition, Index>>,
    /// Conversations written lately: their versions, and who they were listed for.
    pub(super) talks: Mutex<Ages<ConversationId, Stand>>,
    /// Ledgers are read and written back: one at a time for each inbox.
    pub(super) ledgers: Locks,
    pub(super) rounds: Rounds,
    pub(super) counts: Counts,
}

impl Shared {
    pub(super) fn new(cql: Cql, clock: Arc<dyn Clock>, limits: &StoreLimits, ttl: i32) -> Self {
        Self {
            cql,
            stamps: Stamps::new(clock.clone()),
            clock,
            ttl,
            mine: Mutex::default(),
            newest: Mutex::default(),
            looked: Mutex::default(),
            known: Mutex::new(Ages::new(limits.cql_states)),
            sealing: Locks::default(),
            taking: Locks::default(),
            marks: Mutex::new(Ages::new(MARKS)),
            unconfirmed: Unconfirmed::default(),
            due: Mutex::default(),
            talks: Mutex::new(Ages::new(limits.cql_states / 2)),
            ledgers: Locks::default(),
            rounds: Rounds::default(),
            counts: Counts::default(),
        }
    }

    /// What this process owns as far as it knows now.
    pub(super) fn owned(&self) -> BTreeMap<Partition, Epoch> {
        self.mine.lock().clone()
    }

    /// The epoch to write with: that of this process's own takeover; else the one that stands.
    pub(super) async fn epoch(&self, partition: Partition) -> PortResult<Epoch> {
        if let Some(epoch) = self.mine.lock().get(&partition) {
            return Ok(*epoch);
        }
        let known = self.newest.lock().get(&partition).copied();
        if let Some((epoch, true)) = known.map(|epoch| (epoch, epoch > Epoch(0))) {
            return Ok(epoch);
        }
        self.look_at(partition).await
    }

    /// An epoch of a partition was met; answers the newest that is known.
    pub(super) fn met(&self, partition: Partition, epoch: Epoch) -> Epoch {
        let mut newest = self.newest.lock();
        let known = newest.entry(partition).or_default();
        *known = (*known).max(epoch);
        *known
    }

    /// A write time for rows that are written and removed by whoever owns the partition: of its own takeover, else of the one
    /// that stands.
    pub(super) async fn owner_stamp(&self, partition: Partition) -> PortResult<i64> {
        let own = self.mine.lock().get(&partition).copied();
        let epoch = match own {
            Some(epoch) => epoch,
            None => self.stored_epoch(partition).await?,
        };
        Ok(self.stamps.next(epoch))
    }

    /// The epoch that stands.
    pub(super) async fn stored_epoch(&self, partition: Partition) -> PortResult<Epoch> {
        let rows = self.cql.rows::<(i32,)>(Pick::Epoch, (i32::from(partition.0),)).await?;
        Ok(Epoch(rows.first().map_or(0, |row| u32::try_from(row.0).unwrap_or(0))))
    }

    /// Looks at a partition's epoch now; answers the newest that is known.
    pub(super) async fn look_at(&self, partition: Partition) -> PortResult<Epoch> {
        let epoch = self.stored_epoch(partition).await?;
        Ok(self.met(partition, epoch))
    }

    /// A write time for rows of this partition.
    pub(super) async fn stamp(&self, partition: Partition) -> PortResult<i64> {
        Ok(self.stamps.next(self.epoch(partition).await?))
    }

    /// Says that an overtaken owner writes.
    pub(super) fn fence(&self, partition: Partition, epoch: Epoch) -> PortResult<()> {
        let owned = self.mine.lock().get(&partition).copied();
        let newest = self.newest.lock().get(&partition).copied();
        match owned.max(newest.filter(|_| owned.is_some())) {
            Some(newest) if newest > epoch => Err(super::writes::overtaken(partition, newest, epoch)),
            _ => Ok(()),
        }
    }

    /// Looks whether partitions that this process owns were taken over by another: a few keys, once a second.
    pub(super) async fn look_for_newer(&self) {
        let began = self.clock.mono();
        let mine: Vec<Partition> = self.mine.lock().keys().copied().collect();
        let looks = mine.into_iter().map(async |partition| {
            // One that fails is asked again at the next look.
            self.look_at(partition).await.is_ok()
        });
        let all = futures::future::join_all(looks).await.into_iter().all(|answered| answered);
        if all {
            let mut looked = self.looked.lock();
            *looked = (*looked).max(began);
        }
    }

    /// Looks, unless that was done lately. A process that was held still for longer than its session lasts was overtaken
    /// meanwhile and does not know it: what it has just written is hidden behind the ends that the newer owner sealed, and
    /// nobody must be told of it as if it stood. A history that is slow to say so delays no write for long.
    pub(super) async fn look_again(&self) {
        let looked = *self.looked.lock();
        if self.clock.mono().since(looked) > LOOKED_MS {
            let _in_time = tokio::time::timeout(LOOK, self.look_for_newer()).await;
        }
    }

    /// Drops what was learnt as the owner of these partitions: others may have written since.
    pub(super) fn forget(&self, partitions: &[Partition]) {
        self.known.lock().clear();
        self.talks.lock().clear();
        self.unconfirmed.forget(partitions);
        self.due.lock().retain(|partition, _| !partitions.contains(partition));
    }

    /// Rows that say of a bucket that it is used; nothing where that was said lately.
    pub(super) fn mark(&self, name: String, bucket: i64, rows: &mut Vec<Write>) {
        let key = (name, bucket);
        if self.marks.lock().get(&key).is_none() {
            rows.push(Write::new(Pick::AddBucket, vec![CqlValue::Text(key.0), CqlValue::BigInt(bucket)]));
        }
    }

    /// Remembers it, once it is written.
    pub(super) fn marked(&self, name: String, bucket: i64) {
        self.marks.lock().put((name, bucket), ());
    }

    pub(super) async fn buckets(&self, name: &str) -> PortResult<Vec<i64>> {
        let rows = self.cql.pages::<(i64,)>(Pick::Buckets, (name,)).await?;
        Ok(rows.into_iter().map(|row| row.0).collect())
    }

    pub(super) async fn head(&self, inbox: &str) -> PortResult<Head> {
        type Row = (Option<i32>, Option<i64>, Option<i32>, Option<i64>, Option<Vec<u8>>);
        let rows = self.cql.rows::<Row>(Pick::Head, (inbox,)).await?;
        let (mut forks, mut head) = (Vec::with_capacity(rows.len()), Head::default());
        for (epoch, n, prev, bucket, ledger) in rows {
            head.bucket = bucket.unwrap_or(0);
            if let Some(ledger) = ledger {
                head.ledger = Ledger::read(&ledger).map_err(|why| broken("inboxes", &why))?;
            }
            if let (Some(epoch), Some(n), Some(prev)) = (epoch, n, prev) {
                let at = keys::position(n, epoch);
                forks.push(Fork { epoch: at.epoch, n: at.n, prev: keys::position(0, prev).epoch });
            }
        }
        head.forks = Forks::new(forks);
        Ok(head)
    }

    /// The last entry of an inbox that stands there unbroken.
    pub(super) async fn end(&self, inbox: &str, head: &Head) -> PortResult<Tail> {
        /// Rows looked at from the end of a bucket: what was on its way when an owner died is fewer.
        const LOOKED: i32 = 64;
        let gone = Tail { position: head.ledger.gone, one_way: head.ledger.gone_one_way };
        if head.forks.is_empty() {
            return Ok(gone);
        }
        for bucket in (keys::bucket(gone.position.n + 1)..=head.bucket).rev() {
            let mut from = keys::first_of(bucket + 1) - 1;
            let mut most = LOOKED;
            loop {
                let start = i64::try_from(from).unwrap_or(i64::MAX);
                let rows = self.cql.rows::<HeadRow>(Pick::HeadsDown, (inbox, bucket, start, most)).await?;
                let all = rows.len() < most as usize;
                let lowest = rows.last().map_or(0, |row| keys::position(row.0, row.1).n);
                let mut live: Vec<_> = rows.into_iter().map(|row| (keys::position(row.0, row.1), row.2)).collect();
                live.retain(|(at, _)| head.has(*at));
                live.reverse();
                // Up to the first number that is missing.
                let whole = live.windows(2).take_while(|two| two[1].0.n == two[0].0.n + 1).count();
                if let Some((position, row)) = live.into_iter().nth(whole) {
                    let row: EntryHead = unblob(&row).map_err(|why| broken("entries_by_inbox", &why))?;
                    return Ok(Tail { position, one_way: row.one_way });
                }
                if all {
                    break;
                }
                // Late owners wrote more than that: on behind them.
                if lowest == from {
                    most *= 4;
                }
                from = lowest;
            }
        }
        Ok(gone)
    }

    /// The rows of ids; those that are not there are missing.
    pub(super) async fn places(&self, ids: &[MessageId]) -> PortResult<HashMap<MessageId, Place>> {
        type Row =
            (uuid::Uuid, Option<String>, Option<i32>, Option<i64>, Option<Vec<u8>>, Option<Vec<u8>>, Option<Vec<u8>>);
        let asked = by_slot(ids);
        let found: Vec<Vec<Row>> = stream::iter(asked)
            .map(|(slot, ids)| self.cql.rows::<Row>(Pick::Places, (slot, ids)))
            .buffer_unordered(READS)
            .try_collect()
            .await?;
        let unread = |why: &dyn std::fmt::Display| broken("places", why);
        let mut places = HashMap::with_capacity(ids.len());
        for (id, inbox, epoch, n, head, state, body) in found.into_iter().flatten() {
            let place = Place {
                inbox: inbox.and_then(|text| keys::parse_inbox(&text)),
                position: n.zip(epoch).map(|(n, epoch)| keys::position(n, epoch)),
                head: head.map(|bytes| unblob(&bytes)).transpose().map_err(|why| unread(&why))?,
                state: state.map(|bytes| unblob(&bytes)).transpose().map_err(|why| unread(&why))?.unwrap_or_default(),
                body: body.map(|bytes| unblob(&bytes)).transpose().map_err(|why| unread(&why))?,
            };
            places.insert(MessageId(id), place);
        }
        Ok(places)
    }

    /// What became of ids, without looking whether they still stand.
    pub(super) async fn states_of(&self, ids: &[MessageId]) -> PortResult<HashMap<MessageId, State>> {
        let asked = by_slot(ids);
        let found: Vec<Vec<(uuid::Uuid, Option<Vec<u8>>)>> = stream::iter(asked)
            .map(|(slot, ids)| self.cql.rows(Pick::States, (slot, ids)))
            .buffer_unordered(READS)
            .try_collect()
            .await?;
        let mut states = HashMap::with_capacity(ids.len());
        for (id, state) in found.into_iter().flatten() {
            if let Some(bytes) = state {
                states.insert(MessageId(id), unblob(&bytes).map_err(|why| broken("places", &why))?);
            }
        }
        Ok(states)
    }

    /// The heads of inboxes.
    pub(super) async fn heads(&self, inboxes: HashSet<Inbox>) -> PortResult<HashMap<Inbox, Head>> {
        stream::iter(inboxes)
            .map(|inbox| async move {
                let head = self.head(&keys::inbox(&inbox)).await?;
                Ok((inbox, head))
            })
            .buffer_unordered(READS)
            .try_collect()
            .await
    }
}

/// Ids by the slot they stand in, so many at once.
pub(super) fn by_slot(ids: &[MessageId]) -> Vec<(i64, Vec<uuid::Uuid>)> {
    let mut slots = HashMap::<i64, BTreeSet<uuid::Uuid>>::new();
    for id in ids {
        slots.entry(keys::slot(*id)).or_default().insert(id.0);
    }
    let mut asked = Vec::with_capacity(slots.len());
    for (slot, ids) in slots {
        let ids: Vec<_> = ids.into_iter().collect();
        asked.extend(ids.chunks(IDS).map(|ids| (slot, ids.to_vec())));
    }
    asked
}
