//! In-memory stand-ins of the ports for this crate's tests: they keep what they are given, can be told to fail, and say
//! when something came.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use parking_lot::Mutex;
use schemas::{
    BroadcastId, Content, ContentType, Cursor, DeviceId, Epoch, Fact, Kind, Message, MessageId, Offset, Partition,
    Phone, Position, Priority, Sender, State, Timestamp, Topic, TopicPartition, UserId, codec, fact::Past, port::*,
    position::Inbox,
};
use tokio::sync::Notify;

/// What the next calls of a kind meet, in order; past that they succeed.
#[derive(Default)]
pub(crate) struct Faults {
    fates: Mutex<HashMap<&'static str, VecDeque<PortResult<()>>>>,
    away: Mutex<HashSet<&'static str>>,
    panics: Mutex<HashSet<&'static str>>,
}

impl Faults {
    /// The next call without a fate of its own yet fails so.
    pub(crate) fn next(&self, call: &'static str, error: PortError) {
        self.fates.lock().entry(call).or_default().push_back(Err(error));
    }

    /// From now on every call of a kind fails, or no longer.
    pub(crate) fn set_away(&self, call: &'static str, away: bool) {
        let mut calls = self.away.lock();
        if away {
            calls.insert(call)
        } else {
            calls.remove(call)
        };
    }

    /// From now on every call of a kind panics.
    pub(crate) fn set_panics(&self, call: &'static str) {
        self.panics.lock().insert(call);
    }

    /// The next call without a fate of its own yet succeeds.
    pub(crate) fn pass(&self, call: &'static str) {
        self.fates.lock().entry(call).or_default().push_back(Ok(()));
    }

    fn meet(&self, call: &'static str) -> PortResult<()> {
        assert!(!self.panics.lock().contains(call), "{call} panics, as a test asked");
        if self.away.lock().contains(call) {
            return Err(unavailable());
        }
        self.fates.lock().get_mut(call).and_then(VecDeque::pop_front).unwrap_or(Ok(()))
    }
}

pub(crate) fn unavailable() -> PortError {
    PortError::Unavailable("away".into())
}

/// The log.
#[derive(Default)]
pub(crate) struct MemoryLog {
    records: Mutex<BTreeMap<TopicPartition, Vec<Record>>>,
    pub(crate) committed: Mutex<HashMap<TopicPartition, Offset>>,
    pub(crate) faults: Faults,
    came: Notify,
}

impl MemoryLog {
    pub(crate) fn all(&self, topic: Topic) -> Vec<Record> {
        let records = self.records.lock();
        records.iter().filter(|(at, _)| at.topic == topic).flat_map(|(_, records)| records.clone()).collect()
    }

    pub(crate) fn facts(&self) -> Vec<Fact> {
        let decode = |record: Record| codec::decode::<Vec<Fact>>(&record.body).unwrap();
        self.all(Topic::Outcomes).into_iter().flat_map(decode).collect()
    }

    /// Waits until the log satisfies this.
    pub(crate) async fn until(&self, satisfied: impl Fn(&Self) -> bool) {
        loop {
            let came = self.came.notified();
            if satisfied(self) {
                return;
            }
            came.await;
        }
    }

    /// What this appends, as a consumer would read it.
    pub(crate) fn push(&self, append: Append, at: Timestamp) -> Record {
        let mut records = self.records.lock();
        let records = records.entry(append.at).or_default();
        let offset = Offset(records.len() as u64);
        let record = Record { at: append.at, offset, appended_at: at, headers: append.headers, body: append.body };
        records.push(record.clone());
        self.came.notify_waiters();
        record
    }
}

#[async_trait]
impl Log for MemoryLog {
    async fn append(&self, records: Vec<Append>) -> Vec<PortResult<Offset>> {
        let one = |record| match self.faults.meet("append") {
            Ok(()) => Ok(self.push(record, Timestamp(0)).offset),
            Err(PortError::Unknown(why)) => {
                self.push(record, Timestamp(0));
                Err(PortError::Unknown(why))
            }
            Err(error) => Err(error),
        };
        records.into_iter().map(one).collect()
    }
    async fn read(&self, at: TopicPartition, from: Offset, max: Fetch) -> PortResult<Vec<Record>> {
        let records = self.records.lock();
        Ok(records.get(&at).into_iter().flatten().skip(from.0 as usize).take(max.records).cloned().collect())
    }
    async fn bounds(&self, at: TopicPartition) -> PortResult<(Offset, Offset)> {
        Ok((Offset(0), Offset(self.records.lock().get(&at).map_or(0, Vec::len) as u64)))
    }
    async fn committed(&self, _: Group, at: &[TopicPartition]) -> PortResult<Vec<Option<Offset>>> {
        let committed = self.committed.lock();
        Ok(at.iter().map(|at| committed.get(at).copied()).collect())
    }
    async fn join(&self, _: Group, _: &[Topic]) -> PortResult<Box<dyn Consumer>> {
        Err(PortError::Rejected("nobody joins in these tests".into()))
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

/// History.
#[derive(Default)]
pub(crate) struct MemoryHistory {
    /// Conversations.
    pub(crate) talks: schemas::port::Talks,
    pub(crate) placed: Mutex<BTreeMap<MessageId, Placed>>,
    pub(crate) facts: Mutex<BTreeMap<MessageId, State>>,
    pub(crate) dues: Mutex<Vec<Due>>,
    pub(crate) letters: Mutex<BTreeMap<(MessageId, u8), Dead>>,
    /// Messages that retention finds.
    pub(crate) old: Mutex<Vec<MessageId>>,
    /// Before when the last look of retention removes.
    pub(crate) removed_before: Mutex<Option<Timestamp>>,
    pub(crate) settles: AtomicUsize,
    /// Partitions that cannot be taken over now.
    pub(crate) out_of_reach: Mutex<HashSet<Partition>>,
    pub(crate) faults: Faults,
    /// Entries in the order in which they were handed in, with whether they are durable.
    pub(crate) written: Mutex<Vec<(Entry, bool)>>,
    /// Holds reads and writes up, where a test decides when they end.
    pub(crate) gate: crate::testing::Gate,
    /// Writes end in the order in which they were handed in, as an engine with one queue has it: what a crash leaves is
    /// then a beginning of what was written. Without it they end as the gate has it.
    pub(crate) line: Mutex<Option<Arc<tokio::sync::Mutex<()>>>>,
}

impl MemoryHistory {
    /// Keeps a message, at a place or scheduled.
    pub(crate) fn keep(&self, message: &Arc<Message>, position: Option<Position>) {
        let placed = Placed {
            message: message.clone(),
            inbox: message.inbox(4),
            position,
            prev: Position::START,
            recorded_at: message.accepted_at,
            seq: None,
            state: State::default(),
        };
        self.placed.lock().insert(message.id, placed);
    }

    pub(crate) fn state(&self, id: MessageId) -> State {
        self.facts.lock().get(&id).cloned().unwrap_or_default()
    }
}

#[async_trait]
impl Inboxes for MemoryHistory {
    async fn take_over(&self, partitions: &[Partition]) -> PortResult<Vec<Epoch>> {
        self.faults.meet("take_over")?;
        if partitions.iter().any(|partition| self.out_of_reach.lock().contains(partition)) {
            return Err(unavailable());
        }
        Ok(vec![Epoch(1); partitions.len()])
    }
    fn owns(&self, _: &[(Partition, Epoch)]) {}
    async fn tails(&self, inboxes: &[Inbox]) -> PortResult<Vec<Tail>> {
        self.gate.pass().await;
        let written = self.written.lock();
        let tail = |inbox: &Inbox| {
            let last = written.iter().rev().find(|(entry, durable)| *durable && entry.inbox == *inbox);
            last.map_or(Tail::default(), |(last, _)| Tail { position: last.position, one_way: last.one_way })
        };
        Ok(inboxes.iter().map(tail).collect())
    }
    async fn known(&self, ids: &[MessageId]) -> PortResult<Vec<Option<Known>>> {
        let placed = self.placed.lock();
        let known = |p: &Placed| Known { fingerprint: p.message.fingerprint, position: p.position };
        Ok(ids.iter().map(|id| placed.get(id).map(known)).collect())
    }
    async fn record(&self, entries: &[Entry], schedule: &Schedule) -> PortResult<()> {
        // In line from the first poll on, durable once it ends: as an engine with one queue does it.
        self.faults.meet("record")?;
        self.written.lock().extend(entries.iter().map(|entry| (entry.clone(), false)));
        let line = self.line.lock().clone();
        let _turn = match line {
            Some(line) => Some(line.lock_owned().await),
            None => None,
        };
        self.gate.pass().await;
        for (entry, durable) in &mut *self.written.lock() {
            *durable |= entries.contains(entry);
        }
        for entry in entries {
            let (inbox, recorded_at) = (entry.inbox.clone(), entry.recorded_at);
            let (message, position, prev) = (entry.message.clone(), Some(entry.position), entry.prev);
            // The sender's own copy is not where a message is found by its id.
            if inbox.user != message.to {
                continue;
            }
            let placed = Placed { message, inbox, position, prev, recorded_at, seq: None, state: State::default() };
            self.placed.lock().insert(entry.message.id, placed);
        }
        self.talks.record(schedule);
        let mut dues = self.dues.lock();
        dues.retain(|due| !schedule.done.contains(due));
        dues.extend(schedule.add.iter().cloned());
        Ok(())
    }
    async fn due(&self, partition: Partition, now: Timestamp, limit: usize) -> PortResult<Vec<Due>> {
        self.faults.meet("due")?;
        let mut dues = self.dues.lock();
        dues.sort_by_key(|due| (due.at, due.id));
        Ok(dues.iter().filter(|due| due.partition == partition && due.at <= now).take(limit).cloned().collect())
    }
    async fn read(&self, _: &Inbox, _: Position, _: usize) -> PortResult<Span> {
        Ok(Span { entries: Vec::new(), passed_by_retention: false })
    }
    async fn messages(&self, ids: &[MessageId]) -> PortResult<Vec<Option<Placed>>> {
        self.faults.meet("messages")?;
        let (placed, facts) = (self.placed.lock(), self.facts.lock());
        let one = |id| {
            let state = facts.get(id).cloned().unwrap_or_default();
            placed.get(id).map(|placed| Placed { state, ..placed.clone() })
        };
        Ok(ids.iter().map(one).collect())
    }
    async fn one_way(
        &self,
        _: &Inbox,
        _: Order,
        _: Option<Position>,
        _: usize,
    ) -> PortResult<Page<(Entry, State), Position>> {
        Ok(Page { rows: Vec::new(), next: None })
    }
    async fn unread(&self, _: &Inbox) -> PortResult<Unread> {
        Ok(Unread::default())
    }
    async fn retain(&self, partition: Partition, before: Timestamp, _: usize) -> PortResult<Vec<Placed>> {
        *self.removed_before.lock() = Some(before);
        let old = self.old.lock().clone();
        let found = self.messages(&old).await?.into_iter().flatten();
        Ok(found.filter(|p| p.inbox.partition == partition && !p.state.is_over()).collect())
    }
    async fn sizes(&self) -> PortResult<(u64, u64)> {
        Ok((0, 0))
    }
}

#[async_trait]
impl Facts for MemoryHistory {
    async fn settle(&self, facts: &[Fact]) -> PortResult<Vec<Settled>> {
        let fault = match self.faults.meet("settle") {
            Err(error) if !matches!(error, PortError::Unknown(_)) => return Err(error),
            fault => fault,
        };
        self.settles.fetch_add(1, Ordering::SeqCst);
        let mut states = self.facts.lock();
        let one = |fact: &Fact| {
            let state = states.entry(fact.id).or_default();
            let changed = state.merge(Past::from(fact));
            Settled { changed, state: state.clone() }
        };
        let settled = facts.iter().map(one).collect();
        fault.map(|()| settled)
    }
    async fn states(&self, ids: &[MessageId]) -> PortResult<Vec<State>> {
        Ok(ids.iter().map(|id| self.state(*id)).collect())
    }
}

#[async_trait]
impl Cursors for MemoryHistory {
    async fn cursors(&self, _: &UserId) -> PortResult<Vec<(DeviceId, Cursor)>> {
        Ok(Vec::new())
    }
    async fn advance(&self, _: &[(UserId, DeviceId, Cursor)]) -> PortResult<()> {
        Ok(())
    }
}

#[async_trait]
impl DeadLetters for MemoryHistory {
    async fn bury(&self, dead: &[Dead]) -> PortResult<()> {
        self.faults.meet("bury")?;
        self.letters.lock().extend(dead.iter().map(|dead| ((dead.id, dead.round), dead.clone())));
        Ok(())
    }
    async fn dead(&self, filter: &Filter, from: Option<Buried>, limit: usize) -> PortResult<Page<Dead, Buried>> {
        let letters = self.letters.lock();
        let mut rows: Vec<_> = letters.values().filter(|dead| filter.takes(dead)).cloned().collect();
        rows.sort_by_key(|dead| std::cmp::Reverse((dead.at, dead.id)));
        rows.retain(|dead| from.is_none_or(|from| (dead.at, dead.id) < from));
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| more).map(|dead| (dead.at, dead.id));
        Ok(Page { rows, next })
    }
    async fn dead_letter(&self, id: MessageId) -> PortResult<Option<Dead>> {
        Ok(self.letters.lock().range((id, 0)..=(id, u8::MAX)).next_back().map(|(_, dead)| dead.clone()))
    }
    async fn dead_count(&self) -> PortResult<u64> {
        Ok(self.letters.lock().len() as u64)
    }
    async fn forget_dead(&self, before: Timestamp, limit: usize) -> PortResult<usize> {
        let mut letters = self.letters.lock();
        let old: Vec<_> =
            letters.iter().filter(|(_, dead)| dead.at < before).map(|(key, _)| *key).take(limit).collect();
        old.iter().for_each(|key| drop(letters.remove(key)));
        Ok(old.len())
    }
}

schemas::answers_from_talks!(MemoryHistory, talks);

#[async_trait]
impl Broadcasts for MemoryHistory {
    async fn begin(&self, broadcast: &Broadcast, _: &[Phone]) -> PortResult<Broadcast> {
        Ok(broadcast.clone())
    }
    async fn broadcast(&self, _: BroadcastId) -> PortResult<Option<Broadcast>> {
        Ok(None)
    }
    async fn running(&self) -> PortResult<Expanding> {
        Ok(Expanding::default())
    }
    async fn recipients(&self, _: BroadcastId, _: u64, _: usize) -> PortResult<Vec<Phone>> {
        Ok(Vec::new())
    }
    async fn progress(&self, _: BroadcastId, _: u64, _: BroadcastState) -> PortResult<Broadcast> {
        Err(PortError::Rejected("no broadcast".into()))
    }
}

/// Who would tell people: keeps what they would be told.
#[derive(Default)]
pub(crate) struct MemoryDispatch {
    pub(crate) notes: Mutex<Vec<(UserId, schemas::view::StatusChange)>>,
    pub(crate) alarms: Mutex<Vec<Dead>>,
    pub(crate) told: Notify,
}

#[async_trait]
impl Dispatch for MemoryDispatch {
    async fn deliver(&self, batch: Vec<Routed>) -> Vec<Outcome> {
        vec![Outcome::Absent; batch.len()]
    }
    async fn notify(&self, notes: Vec<(UserId, schemas::view::StatusChange)>) {
        self.notes.lock().extend(notes);
        self.told.notify_one();
    }
    async fn alarm(&self, dead: &[Dead]) {
        self.alarms.lock().extend(dead.iter().cloned());
        self.told.notify_one();
    }
}

/// A message to the `n`th user, with `n` for an id.
pub(crate) fn message(n: u8) -> Arc<Message> {
    let id: MessageId = format!("00000000-0000-7000-8000-0000000000{n:02x}").parse().unwrap();
    Arc::new(Message {
        id,
        kind: Kind::OneWay,
        from: "business:sara".parse::<Sender>().unwrap(),
        to: format!("acme/+9627900000{n:02}").parse().unwrap(),
        priority: Priority::Normal,
        content: Content { content_type: ContentType::Text, subject: None, body: "hello".into() },
        client_ref: None,
        metadata: None,
        accepted_at: Timestamp(0),
        send_at: None,
        expires_at: None,
        broadcast: None,
        trace: None,
        fingerprint: [n; 16],
    })
}

/// The place of every message here.
pub(crate) const PLACE: Position = Position { epoch: Epoch(1), n: 1 };
