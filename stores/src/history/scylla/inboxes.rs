//! Inboxes: takeover, recording, and everything found by id or at the end of an inbox.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use schemas::{
    Epoch, Inbox, MessageId, Partition, Position, State, Timestamp,
    port::{Due, Entry, Inboxes, Known, Order, Page, Placed, PortError, PortResult, Schedule, Span, Tail, Unread},
};

use scylla::value::CqlValue::{BigInt, Int, Text};

use super::{
    ScyllaHistory,
    counts::Counted,
    keys,
    reading::Found,
    retention,
    rows::{EntryHead, Place, unblob},
    session::{Write, broken},
    shared::{Head, IDS, READS, Shared},
    statements::Pick,
    writes,
};

/// How far from where a late owner wrote it an entry is looked for: more than what was on its way when it was overtaken.
pub(super) const NEAR: u64 = 128;
/// How often a takeover is tried while others take the same partition over.
const TRIES: usize = 20;

impl Shared {
    /// Raises a partition's epoch.
    async fn raise(&self, partition: Partition) -> PortResult<Epoch> {
        let column = i32::from(partition.0);
        for _ in 0..TRIES {
            let before = self.cql.rows::<(i32,)>(Pick::Epoch, (column,)).await?.first().map(|row| row.0);
            let next = before.unwrap_or(0).saturating_add(1);
            let raised = match before {
                None => self.cql.decide(Pick::FirstEpoch, (column, next)).await,
                Some(before) => self.cql.decide(Pick::NextEpoch, (next, column, before)).await,
            };
            match raised {
                Ok(true) => return Ok(Epoch(u32::try_from(next).unwrap_or(0))),
                // Somebody else raised it, or it is not known whether this did: an epoch that nobody uses does no harm.
                Ok(false) | Err(PortError::Unknown(_)) => {}
                Err(why) => return Err(why),
            }
        }
        Err(PortError::Unavailable(format!("partition {partition} is being taken over by others all the time")))
    }

    /// The ends of inboxes, for who owned these partitions when it asked. A takeover that ends while the question waits is
    /// another's: sealed under it, an end would shut out an owner that came in between and is rightful.
    pub(super) async fn ends(&self, inboxes: &[Inbox], owned: &BTreeMap<Partition, Epoch>) -> PortResult<Vec<Tail>> {
        let asked = inboxes.iter().cloned().map(|inbox| async move {
            let name = keys::inbox(&inbox);
            match owned.get(&inbox.partition) {
                Some(own) => self.sealed_end(&name, *own).await,
                None => self.end(&name, &self.head(&name).await?).await,
            }
        });
        stream::iter(asked).buffered(READS).try_collect().await
    }

    /// The end of an inbox for its owner: sealed once a takeover, before it is told. From then on the chain goes on from here, and
    /// whatever older owners write afterwards is not in the inbox, also while the owner has written nothing yet. So what was
    /// told to be there stays there, whoever comes next.
    async fn sealed_end(&self, name: &str, own: Epoch) -> PortResult<Tail> {
        let alone = self.sealing.hold([name.to_owned()]).await;
        let head = self.head(name).await?;
        if head.forks.newest() >= own {
            drop(alone);
            return self.end(name, &head).await;
        }
        let end = self.end(name, &head).await?;
        let (first, stamp) = (end.position.next(own), self.stamps.next(own));
        let mut rows = vec![writes::fork_row(name, first, end.position, stamp)];
        for idle in head.forks.idle(end.position) {
            let epoch = i32::try_from(idle.0).unwrap_or(i32::MAX);
            rows.push(Write::new(Pick::ForkGone, vec![BigInt(stamp), Text(name.to_owned()), Int(epoch)]));
        }
        self.cql.send(&rows).await?;
        Ok(end)
    }

    /// The head of an inbox as it was sealed for its owner.
    pub(super) async fn sealed_head(&self, inbox: &Inbox, owned: &BTreeMap<Partition, Epoch>) -> PortResult<Head> {
        let name = keys::inbox(inbox);
        let head = self.head(&name).await?;
        match owned.get(&inbox.partition) {
            Some(own) if head.forks.newest() < *own => {
                self.sealed_end(&name, *own).await?;
                self.head(&name).await
            }
            _ => Ok(head),
        }
    }

    /// Which of these places have their entries: a row alone proves nothing, as it is written first and an owner may have died
    /// in between. What stands in one bucket of an inbox is asked for together.
    async fn standing(
        &self,
        places: &HashMap<MessageId, Place>,
        heads: &HashMap<Inbox, Head>,
    ) -> PortResult<HashSet<MessageId>> {
        let mut buckets = HashMap::<_, Vec<(Position, MessageId)>>::new();
        for (id, place) in places {
            if let (Some(inbox), Some(at)) = (&place.inbox, place.position)
                && heads.get(inbox).is_some_and(|head| head.has(at))
            {
                buckets.entry((inbox, keys::bucket(at.n))).or_default().push((at, *id));
            }
        }
        let mut asked = Vec::new();
        for ((inbox, bucket), all) in &buckets {
            asked.extend(all.chunks(IDS).map(|some| (keys::inbox(inbox), *bucket, some.to_vec())));
        }
        let found = stream::iter(asked).map(|(inbox, bucket, some)| async move {
            let stand = self.entries_at(&inbox, bucket, some.iter().map(|(at, _)| *at)).await?;
            Ok(some.into_iter().filter(|(at, _)| stand.contains(at)).map(|(_, id)| id).collect::<Vec<_>>())
        });
        let found: Vec<Vec<MessageId>> = found.buffer_unordered(READS).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// The places at these numbers of one bucket where somebody wrote an entry; at most [`IDS`] are asked for.
    pub(super) async fn entries_at(
        &self,
        inbox: &str,
        bucket: i64,
        places: impl Iterator<Item = Position>,
    ) -> PortResult<HashSet<Position>> {
        let numbers: BTreeSet<i64> = places.map(|at| keys::columns(at).0).collect();
        let numbers: Vec<i64> = numbers.into_iter().collect();
        let rows = self.cql.rows::<(i64, i32)>(Pick::EntriesAt, (inbox, bucket, numbers)).await?;
        Ok(rows.into_iter().map(|(n, epoch)| keys::position(n, epoch)).collect())
    }

    /// An entry near the place that an id's row names and where it does not stand: a late owner that wrote it again may have
    /// been the last to say where.
    async fn near(&self, inbox: &Inbox, at: Position, head: &Head, id: MessageId) -> PortResult<Option<Found>> {
        if at.n <= head.ledger.gone.n || head.forks.is_live(at) {
            return Ok(None);
        }
        let from = at.n.saturating_sub(NEAR).max(1);
        let entries = self.gather(&keys::inbox(inbox), head, from, NEAR as usize * 2).await?;
        Ok(entries.into_iter().find(|found| found.message.id == id))
    }

    async fn heads_of(&self, places: &HashMap<MessageId, Place>) -> PortResult<HashMap<Inbox, Head>> {
        let placed = places.values().filter(|place| place.position.is_some());
        let inboxes: HashSet<Inbox> = placed.filter_map(|place| place.inbox.clone()).collect();
        self.heads(inboxes).await
    }

    async fn known_one(
        &self,
        id: MessageId,
        place: &Place,
        heads: &HashMap<Inbox, Head>,
        standing: &HashSet<MessageId>,
    ) -> PortResult<Option<Known>> {
        let Some(head) = place.head else { return Ok(None) };
        let fingerprint = head.fingerprint;
        if let (Some(inbox), Some(at)) = (&place.inbox, place.position)
            && let Some(head) = heads.get(inbox)
        {
            if standing.contains(&id) {
                return Ok(Some(Known { fingerprint, position: Some(at) }));
            }
            if let Some(found) = self.near(inbox, at, head, id).await? {
                return Ok(Some(Known { fingerprint, position: Some(found.position) }));
            }
        }
        let gone = |head: &Head| place.position.is_some_and(|at| at.n <= head.ledger.gone.n);
        let removed = place.inbox.as_ref().and_then(|inbox| heads.get(inbox)).is_some_and(gone);
        // Scheduled, and perhaps recorded by an owner that had been overtaken.
        Ok((place.body.is_some() && !removed).then_some(Known { fingerprint, position: None }))
    }

    pub(super) async fn known_ids(&self, ids: &[MessageId]) -> PortResult<Vec<Option<Known>>> {
        let places = self.places(ids).await?;
        self.known_by(ids, places).await
    }

    /// The same, by the rows of these ids.
    pub(super) async fn known_by(
        &self,
        ids: &[MessageId],
        places: HashMap<MessageId, Place>,
    ) -> PortResult<Vec<Option<Known>>> {
        if places.is_empty() {
            return Ok(vec![None; ids.len()]);
        }
        let owned = self.owned();
        // What is told to be there must stay there: the ends of these inboxes are sealed first.
        let mut older = HashSet::new();
        for (inbox, at) in places.values().filter_map(|place| place.inbox.as_ref().zip(place.position)) {
            if owned.get(&inbox.partition).is_some_and(|own| at.epoch < *own) {
                older.insert(inbox.clone());
            }
        }
        if !older.is_empty() {
            self.ends(&older.into_iter().collect::<Vec<_>>(), &owned).await?;
        }
        let heads = self.heads_of(&places).await?;
        {
            // Who asks is about to record them: facts that came before are to be merged with those that follow, but not those of
            // who used the key before.
            let mut known = self.known.lock();
            for (id, place) in places.iter().filter(|(_, place)| !retention::is_gone(place, &heads)) {
                if known.get(id).is_none() {
                    known.put(*id, super::shared::Known { state: place.state.clone(), place: None });
                }
            }
        }
        let standing = self.standing(&places, &heads).await?;
        let asked: Vec<_> = ids.iter().map(|id| (*id, places.get(id).cloned())).collect();
        let asked = asked.into_iter().map(|(id, place)| {
            let (heads, standing) = (&heads, &standing);
            async move {
                match place {
                    Some(place) => self.known_one(id, &place, heads, standing).await,
                    None => Ok(None),
                }
            }
        });
        stream::iter(asked).buffered(READS).try_collect().await
    }

    async fn placed_one(
        &self,
        id: MessageId,
        place: &Place,
        heads: &HashMap<Inbox, Head>,
    ) -> PortResult<Option<Placed>> {
        type Row = (Option<Vec<u8>>, Option<Vec<u8>>);
        let (Some(inbox), Some(known)) = (&place.inbox, place.head) else { return Ok(None) };
        if let Some(at) = place.position {
            let Some(head) = heads.get(inbox) else { return Ok(None) };
            if at.n <= head.ledger.gone.n {
                return Ok(None);
            }
            if head.has(at) {
                let (n, epoch) = keys::columns(at);
                let values = (keys::inbox(inbox), keys::bucket(at.n), n, epoch);
                let row = self.cql.rows::<Row>(Pick::EntryAt, values).await?.into_iter().next();
                if let Some((Some(head), Some(body))) = row {
                    let unread = |why: schemas::codec::Unreadable| broken("entries_by_inbox", &why);
                    let head: EntryHead = unblob(&head).map_err(unread)?;
                    let (EntryHead { prev, recorded_at, .. }, seq) = (head, head.seq());
                    let message = unblob(&body).map_err(unread)?;
                    let (inbox, state) = (inbox.clone(), place.state.clone());
                    return Ok(Some(Placed { message, inbox, position: Some(at), prev, recorded_at, seq, state }));
                }
            }
            if let Some(Found { position, head, message }) = self.near(inbox, at, head, id).await? {
                let (inbox, state, prev, recorded_at) =
                    (inbox.clone(), place.state.clone(), head.prev, head.recorded_at);
                let (position, seq) = (Some(position), head.seq());
                return Ok(Some(Placed { message, inbox, position, prev, recorded_at, seq, state }));
            }
        }
        let placed = |message| Placed {
            message,
            inbox: inbox.clone(),
            position: None,
            prev: Position::START,
            recorded_at: known.recorded_at,
            seq: None,
            state: place.state.clone(),
        };
        Ok(place.body.clone().map(placed))
    }

    async fn placed(&self, ids: &[MessageId]) -> PortResult<Vec<Option<Placed>>> {
        let places = self.places(ids).await?;
        let heads = self.heads_of(&places).await?;
        let asked: Vec<_> = ids.iter().map(|id| (*id, places.get(id).cloned())).collect();
        let asked = asked.into_iter().map(|(id, place)| {
            let heads = &heads;
            async move {
                match place {
                    Some(place) => self.placed_one(id, &place, heads).await,
                    None => Ok(None),
                }
            }
        });
        stream::iter(asked).buffered(READS).try_collect().await
    }

    /// What became of ids that are kept.
    pub(super) async fn kept_states(&self, ids: &[MessageId]) -> PortResult<Vec<State>> {
        let mut places = self.places(ids).await?;
        let heads = self.heads_of(&places).await?;
        let gone = |place: &Place| {
            let head = place.inbox.as_ref().and_then(|inbox| heads.get(inbox));
            head.zip(place.position).is_some_and(|(head, at)| at.n <= head.ledger.gone.n)
        };
        places.retain(|_, place| !gone(place));
        Ok(ids.iter().map(|id| places.get(id).map(|place| place.state.clone()).unwrap_or_default()).collect())
    }
}

#[async_trait]
impl Inboxes for ScyllaHistory {
    async fn take_over(&self, partitions: &[Partition]) -> PortResult<Vec<Epoch>> {
        let shared = &self.shared;
        let raised = stream::iter(partitions.to_vec()).map(|partition| shared.raise(partition)).buffered(READS);
        let epochs: Vec<Epoch> = raised.try_collect().await?;
        for (partition, epoch) in partitions.iter().zip(&epochs) {
            shared.met(*partition, *epoch);
        }
        Ok(epochs)
    }

    fn owns(&self, partitions: &[(Partition, Epoch)]) {
        let shared = &self.shared;
        shared.forget(&partitions.iter().map(|(partition, _)| *partition).collect::<Vec<_>>());
        let mut mine = shared.mine.lock();
        for (partition, epoch) in partitions {
            mine.insert(*partition, *epoch);
            shared.met(*partition, *epoch);
        }
    }

    async fn tails(&self, inboxes: &[Inbox]) -> PortResult<Vec<Tail>> {
        let owned = self.shared.owned();
        self.shared.ends(inboxes, &owned).await
    }

    async fn known(&self, ids: &[MessageId]) -> PortResult<Vec<Option<Known>>> {
        self.shared.known_ids(ids).await
    }

    async fn record(&self, entries: &[Entry], schedule: &Schedule) -> PortResult<()> {
        let rows = schedule.add.len() + schedule.done.len() + schedule.conversations.len();
        if entries.is_empty() && rows == 0 {
            return Ok(());
        }
        self.recorder.record(entries, schedule).await
    }

    async fn due(&self, partition: Partition, now: Timestamp, limit: usize) -> PortResult<Vec<Due>> {
        self.shared.due_rows(partition, now, limit).await
    }

    async fn read(&self, inbox: &Inbox, from: Position, limit: usize) -> PortResult<Span> {
        self.shared.forward(inbox, from, limit).await
    }

    async fn messages(&self, ids: &[MessageId]) -> PortResult<Vec<Option<Placed>>> {
        self.shared.placed(ids).await
    }

    async fn one_way(
        &self,
        inbox: &Inbox,
        order: Order,
        from: Option<Position>,
        limit: usize,
    ) -> PortResult<Page<(Entry, State), Position>> {
        self.shared.notices(inbox, order, from, limit).await
    }

    async fn unread(&self, inbox: &Inbox) -> PortResult<Unread> {
        let name = keys::inbox(inbox);
        let head = self.shared.head(&name).await?;
        let end = self.shared.end(&name, &head).await?;
        Ok(Unread { one_way: end.one_way.saturating_sub(head.ledger.seen) })
    }

    async fn retain(&self, partition: Partition, before: Timestamp, limit: usize) -> PortResult<Vec<Placed>> {
        self.shared.sweep(partition, before, limit).await
    }

    async fn sizes(&self) -> PortResult<(u64, u64)> {
        let (cql, counts) = (&self.shared.cql, &self.shared.counts);
        futures::try_join!(counts.total(cql, Counted::Kept), counts.total(cql, Counted::Due))
    }
}
