//! What tests are made of: small limits, messages by number, and one world in memory that answers as every port the gateway
//! stands on.

mod house;
mod talk;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use schemas::{
    Content, ContentType, Cursor, DeviceId, Epoch, Fact, Inbox, Kind, Limits, Message, MessageId, NodeId, Offset,
    Partition, Phone, Position, Priority, Sender, SessionId, State, Tenant, Timestamp, Topic, TopicPartition, UserId,
    codec,
    port::{
        Append, Backplane, Broadcast, BroadcastState, Broadcasts, Buried, Consumer, Cursors, Dead, DeadLetters, Due,
        Durability, Entry, Expanding, Facts, Fetch, Filter, Group, Hint, Inboxes, Known, Landing, Log, Missed, Node,
        NodeLoad, Order, Page, Place, Placed, PortError, PortResult, Presence, Record, Schedule, Settled, Span, Tail,
        Taken, Unread, Whose,
    },
    view::StatusChange,
};

pub(crate) use house::{House, phone, token, token_for, until};

pub(crate) const PHONE: &str = "+962790000001";

pub(crate) fn tenant() -> Tenant {
    Tenant::parse("acme").unwrap()
}

pub(crate) fn mobile(phone: &str) -> UserId {
    UserId::mobile(tenant(), Phone::from_stored(phone).unwrap())
}

pub(crate) fn message_to(phone: &str, n: u128) -> Message {
    let body = format!("message {n} \u{2713}");
    Message {
        id: MessageId(uuid::Uuid::from_u128(n)),
        kind: Kind::OneWay,
        from: Sender::Server,
        to: mobile(phone),
        priority: Priority::Normal,
        content: Content { content_type: ContentType::Text, subject: None, body },
        client_ref: None,
        metadata: None,
        accepted_at: Timestamp(1_000),
        send_at: None,
        expires_at: None,
        broadcast: None,
        trace: None,
        fingerprint: [0; 16],
    }
}

pub(crate) fn small_limits() -> Limits {
    let mut limits = Limits::default();
    limits.socket.unacked = 5;
    limits.socket.frame_items = 3;
    limits.socket.frame_bytes = 1_200;
    limits.socket.frames_per_second = 1_000_000;
    limits.flow.ack_ms = 1_000;
    limits
}

/// Everything behind the ports, in memory.
#[derive(Default)]
pub(crate) struct World {
    /// Conversations.
    pub(crate) talks: schemas::port::Talks,
    pub(crate) inner: Mutex<Inner>,
    node: Mutex<Option<Arc<dyn Node>>>,
    /// Partitions that got another owner, and who waits to hear of it.
    taken: Mutex<Vec<BTreeSet<Partition>>>,
    told: tokio::sync::Notify,
    /// Held for writing, nobody who registers is answered.
    pub(crate) answers: tokio::sync::RwLock<()>,
}

#[derive(Default)]
pub(crate) struct Inner {
    pub(crate) entries: BTreeMap<Inbox, Vec<Entry>>,
    pub(crate) states: HashMap<MessageId, State>,
    pub(crate) cursors: HashMap<(UserId, DeviceId), Cursor>,
    pub(crate) outcomes: BTreeMap<Partition, Vec<Record>>,
    pub(crate) places: Vec<(UserId, Place)>,
    pub(crate) loads: Vec<NodeLoad>,
    /// What the door appended to lanes.
    pub(crate) lane: Vec<Append>,
    /// Calls that fail from now on, by name.
    pub(crate) away: Vec<&'static str>,
    /// Whose ends were asked for, call by call.
    pub(crate) looked: Vec<Vec<Inbox>>,
    /// Whose inbox cannot be told of.
    pub(crate) unreadable: Option<UserId>,
    /// How many of these calls did.
    failed: std::sync::atomic::AtomicUsize,
}

impl Inner {
    fn check(&self, call: &'static str) -> PortResult<()> {
        if !self.away.contains(&call) {
            return Ok(());
        }
        self.failed.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Err(PortError::Unavailable(format!("{call} is away")))
    }

    fn placed(&self, id: MessageId) -> Option<Placed> {
        let entry = self.entries.values().flatten().find(|entry| entry.message.id == id)?;
        Some(Placed {
            message: entry.message.clone(),
            inbox: entry.inbox.clone(),
            position: Some(entry.position),
            prev: entry.prev,
            recorded_at: entry.recorded_at,
            seq: entry.seq,
            state: self.states.get(&id).cloned().unwrap_or_default(),
        })
    }

    fn settle(&mut self, fact: &Fact) {
        self.states.entry(fact.id).or_default().merge(fact.into());
    }
}

impl World {
    /// Records a message at the end of its inbox; answers the hint a pipeline would give.
    pub(crate) fn record(&self, message: Message) -> Hint {
        let mut inner = self.inner.lock();
        let inbox = message.inbox(Log::partitions(self));
        let list = inner.entries.entry(inbox.clone()).or_default();
        let prev = list.last().map_or(Position::START, |entry| entry.position);
        let position = prev.next(prev.epoch.max(Epoch(1)));
        let message = Arc::new(message);
        let one_way = list.len() as u64 + 1;
        let recorded_at = Timestamp(2_000);
        let (of, what) = (inbox.clone(), message.clone());
        list.push(Entry { inbox: of, position, prev, one_way, recorded_at, message: what, end: None, seq: None });
        Hint {
            inbox,
            position,
            prev,
            seq: None,
            message,
            round: 0,
            attempt: Default::default(),
            state: State::default(),
        }
    }

    pub(crate) async fn deliver(&self, hints: Vec<Hint>) -> Vec<Landing> {
        let node = self.node.lock().clone().unwrap();
        node.deliver(hints).await
    }

    /// How many calls failed because they are away.
    pub(crate) fn failed(&self) -> usize {
        self.inner.lock().failed.load(std::sync::atomic::Ordering::SeqCst)
    }

    pub(crate) fn status(&self, id: MessageId) -> schemas::Status {
        self.inner.lock().states.get(&id).map(State::status).unwrap_or_default()
    }
}

fn rejected<T>() -> PortResult<T> {
    Err(PortError::Rejected("not part of this world".to_owned()))
}

#[async_trait]
impl Inboxes for World {
    async fn take_over(&self, _: &[Partition]) -> PortResult<Vec<Epoch>> {
        rejected()
    }
    fn owns(&self, _: &[(Partition, Epoch)]) {}
    async fn tails(&self, inboxes: &[Inbox]) -> PortResult<Vec<Tail>> {
        let mut inner = self.inner.lock();
        inner.check("tails")?;
        inner.looked.push(inboxes.to_vec());
        if inboxes.iter().any(|inbox| inner.unreadable.as_ref() == Some(&inbox.user)) {
            return Err(PortError::Unavailable("a row cannot be read".to_owned()));
        }
        let tail = |inbox| {
            let last = inner.entries.get(inbox).and_then(|list| list.last());
            last.map_or(Tail::default(), |entry| Tail { position: entry.position, one_way: entry.one_way })
        };
        Ok(inboxes.iter().map(tail).collect())
    }
    async fn known(&self, _: &[MessageId]) -> PortResult<Vec<Option<Known>>> {
        rejected()
    }
    async fn record(&self, _: &[Entry], _: &Schedule) -> PortResult<()> {
        rejected()
    }
    async fn due(&self, _: Partition, _: Timestamp, _: usize) -> PortResult<Vec<Due>> {
        rejected()
    }
    async fn read(&self, inbox: &Inbox, from: Position, limit: usize) -> PortResult<Span> {
        let inner = self.inner.lock();
        inner.check("read")?;
        let list = inner.entries.get(inbox).into_iter().flatten().filter(|entry| entry.position > from);
        let with = |entry: &Entry| (entry.clone(), inner.states.get(&entry.message.id).cloned().unwrap_or_default());
        let entries: Vec<_> = list.take(limit).map(with).collect();
        let passed_by_retention = entries.first().is_some_and(|(entry, _)| entry.prev > from);
        Ok(Span { entries, passed_by_retention })
    }
    async fn messages(&self, ids: &[MessageId]) -> PortResult<Vec<Option<Placed>>> {
        let inner = self.inner.lock();
        Ok(ids.iter().map(|id| inner.placed(*id)).collect())
    }
    async fn one_way(
        &self,
        inbox: &Inbox,
        order: Order,
        from: Option<Position>,
        limit: usize,
    ) -> PortResult<Page<(Entry, State), Position>> {
        let inner = self.inner.lock();
        let mut all: Vec<Entry> = inner.entries.get(inbox).cloned().unwrap_or_default();
        if order == Order::Newest {
            all.reverse();
        }
        let after = |entry: &Entry| match (order, from) {
            (_, None) => true,
            (Order::Oldest, Some(from)) => entry.position > from,
            (Order::Newest, Some(from)) => entry.position < from,
        };
        let mut rest: Vec<Entry> = all.into_iter().filter(after).collect();
        let more = rest.len() > limit;
        rest.truncate(limit);
        let next = rest.last().filter(|_| more).map(|entry| entry.position);
        Ok(Page { rows: rest.into_iter().map(|entry| (entry, State::default())).collect(), next })
    }
    async fn unread(&self, inbox: &Inbox) -> PortResult<Unread> {
        let inner = self.inner.lock();
        let list = inner.entries.get(inbox).into_iter().flatten();
        let unread = |entry: &&Entry| {
            inner.states.get(&entry.message.id).is_none_or(|state| state.status() != schemas::Status::Read)
        };
        Ok(Unread { one_way: list.filter(unread).count() as u64 })
    }
    async fn retain(&self, _: Partition, _: Timestamp, _: usize) -> PortResult<Vec<Placed>> {
        rejected()
    }
    async fn sizes(&self) -> PortResult<(u64, u64)> {
        rejected()
    }
}

#[async_trait]
impl Facts for World {
    async fn settle(&self, _: &[Fact]) -> PortResult<Vec<Settled>> {
        rejected()
    }
    async fn states(&self, ids: &[MessageId]) -> PortResult<Vec<State>> {
        let inner = self.inner.lock();
        Ok(ids.iter().map(|id| inner.states.get(id).cloned().unwrap_or_default()).collect())
    }
}

#[async_trait]
impl Cursors for World {
    async fn cursors(&self, user: &UserId) -> PortResult<Vec<(DeviceId, Cursor)>> {
        let inner = self.inner.lock();
        let own = inner.cursors.iter().filter(|((u, _), _)| u == user);
        Ok(own.map(|((_, device), cursor)| (device.clone(), cursor.clone())).collect())
    }
    async fn advance(&self, moves: &[(UserId, DeviceId, Cursor)]) -> PortResult<()> {
        let mut inner = self.inner.lock();
        for (user, device, cursor) in moves {
            inner.cursors.entry((user.clone(), device.clone())).or_default().join(cursor);
        }
        Ok(())
    }
}

#[async_trait]
impl DeadLetters for World {
    async fn bury(&self, _: &[Dead]) -> PortResult<()> {
        rejected()
    }
    async fn dead(&self, _: &Filter, _: Option<Buried>, _: usize) -> PortResult<Page<Dead, Buried>> {
        rejected()
    }
    async fn dead_letter(&self, _: MessageId) -> PortResult<Option<Dead>> {
        rejected()
    }
    async fn dead_count(&self) -> PortResult<u64> {
        rejected()
    }
    async fn forget_dead(&self, _: Timestamp, _: usize) -> PortResult<usize> {
        rejected()
    }
}

schemas::answers_from_talks!(World, talks);

#[async_trait]
impl Broadcasts for World {
    async fn begin(&self, _: &Broadcast, _: &[Phone]) -> PortResult<Broadcast> {
        rejected()
    }
    async fn broadcast(&self, _: schemas::BroadcastId) -> PortResult<Option<Broadcast>> {
        rejected()
    }
    async fn running(&self) -> PortResult<Expanding> {
        Ok(Expanding::default())
    }
    async fn recipients(&self, _: schemas::BroadcastId, _: u64, _: usize) -> PortResult<Vec<Phone>> {
        rejected()
    }
    async fn progress(&self, _: schemas::BroadcastId, _: u64, _: BroadcastState) -> PortResult<Broadcast> {
        rejected()
    }
}

#[async_trait]
impl Log for World {
    async fn append(&self, records: Vec<Append>) -> Vec<PortResult<Offset>> {
        let mut inner = self.inner.lock();
        let mut outcomes = Vec::new();
        for record in records {
            if let Err(why) = inner.check("append") {
                outcomes.push(Err(why));
                continue;
            }
            if record.at.topic != Topic::Outcomes {
                inner.lane.push(record);
                outcomes.push(Ok(Offset(inner.lane.len() as u64)));
                continue;
            }
            for fact in codec::decode::<Vec<Fact>>(&record.body).unwrap() {
                inner.settle(&fact);
            }
            let list = inner.outcomes.entry(record.at.partition).or_default();
            let offset = Offset(list.len() as u64);
            let (at, headers, body) = (record.at, record.headers, record.body);
            list.push(Record { at, offset, appended_at: Timestamp(3_000), headers, body });
            outcomes.push(Ok(offset));
        }
        outcomes
    }
    async fn read(&self, at: TopicPartition, from: Offset, max: Fetch) -> PortResult<Vec<Record>> {
        let inner = self.inner.lock();
        let list = inner.outcomes.get(&at.partition).into_iter().flatten();
        Ok(list.filter(|record| record.offset >= from).take(max.records).cloned().collect())
    }
    async fn bounds(&self, at: TopicPartition) -> PortResult<(Offset, Offset)> {
        let end = self.inner.lock().outcomes.get(&at.partition).map_or(0, Vec::len);
        Ok((Offset(0), Offset(end as u64)))
    }
    async fn committed(&self, _: Group, at: &[TopicPartition]) -> PortResult<Vec<Option<Offset>>> {
        Ok(vec![None; at.len()])
    }
    async fn join(&self, _: Group, _: &[Topic]) -> PortResult<Box<dyn Consumer>> {
        rejected()
    }
    fn partitions(&self) -> u16 {
        4
    }
    fn durability(&self) -> Durability {
        Durability::Process
    }
    async fn check(&self) -> PortResult<()> {
        Ok(())
    }
}

#[async_trait]
impl Presence for World {
    async fn register(&self, user: &UserId, node: &NodeId, device: &DeviceId, session: SessionId) -> PortResult<Taken> {
        let taken = {
            let mut inner = self.inner.lock();
            inner.check("register")?;
            let older = inner.places.iter().position(|(u, place)| u == user && place.device == *device);
            let replaced = older.map(|i| inner.places.remove(i).1);
            let number = replaced.as_ref().map_or(1, |place| place.number + 1);
            inner.places.push((user.clone(), Place { node: node.clone(), device: device.clone(), session, number }));
            Taken { number, replaced }
        };
        let _answers = self.answers.read().await;
        Ok(taken)
    }
    async fn refresh(&self, _: &[(UserId, SessionId)]) -> PortResult<()> {
        self.inner.lock().check("refresh")
    }
    async fn remove(&self, user: &UserId, session: SessionId) -> PortResult<()> {
        let mut inner = self.inner.lock();
        inner.check("remove")?;
        inner.places.retain(|(u, place)| u != user || place.session != session);
        Ok(())
    }
    async fn locate(&self, users: &[UserId]) -> PortResult<Vec<Vec<Place>>> {
        let inner = self.inner.lock();
        let of = |user: &UserId| inner.places.iter().filter(|(u, _)| u == user).map(|(_, p)| p.clone()).collect();
        Ok(users.iter().map(of).collect())
    }
    async fn heartbeat(&self, load: &NodeLoad) -> PortResult<()> {
        let mut inner = self.inner.lock();
        inner.check("heartbeat")?;
        inner.loads = vec![load.clone()];
        Ok(())
    }
    async fn nodes(&self) -> PortResult<Vec<NodeLoad>> {
        Ok(self.inner.lock().loads.clone())
    }
}

#[async_trait]
impl Backplane for World {
    async fn attach(&self, _: NodeId, target: Arc<dyn Node>) -> PortResult<()> {
        *self.node.lock() = Some(target);
        Ok(())
    }
    async fn detach(&self, _: &NodeId) -> PortResult<()> {
        *self.node.lock() = None;
        Ok(())
    }
    async fn deliver(&self, _: &NodeId, hints: Vec<Hint>) -> PortResult<Vec<Landing>> {
        Ok(Self::deliver(self, hints).await)
    }
    async fn notify(&self, _: &NodeId, notes: Vec<(UserId, StatusChange)>) -> PortResult<()> {
        let node = self.node.lock().clone().unwrap();
        node.notify(notes).await;
        Ok(())
    }
    async fn supersede(&self, _: &NodeId, user: &UserId, session: SessionId) -> PortResult<()> {
        let node = self.node.lock().clone().unwrap();
        node.supersede(user, session).await;
        Ok(())
    }
    async fn compare(&self, _: &NodeId) -> PortResult<()> {
        Ok(())
    }
    async fn taken_over(&self, partitions: &[Partition]) -> PortResult<()> {
        self.taken.lock().push(partitions.iter().copied().collect());
        self.told.notify_waiters();
        Ok(())
    }
    async fn missed(&self, seen: u64) -> Missed {
        loop {
            let told = self.told.notified();
            let (taken, seen) = (self.taken.lock().clone(), seen as usize);
            if let Some(whose) = taken.iter().skip(seen).cloned().map(Whose::Of).reduce(Whose::and) {
                return Missed { count: taken.len() as u64, whose };
            }
            told.await;
        }
    }
}
