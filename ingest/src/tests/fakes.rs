//! Stand-ins for the log and for history.

use std::{
    collections::{HashMap, HashSet},
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

use async_trait::async_trait;
use parking_lot::Mutex;
use schemas::{
    BroadcastId, Cursor, DeviceId, Epoch, Fact, Inbox, Message, MessageId, Offset, Partition, Phone, Position, State,
    Timestamp, Topic, TopicPartition, UserId, codec, port::*, record::LaneRecord,
};

/// Keeps what is appended.
#[derive(Default)]
pub(super) struct FakeLog {
    pub(super) records: Mutex<Vec<Append>>,
    /// What every append answers, if not `Ok`.
    pub(super) fault: Mutex<Option<PortError>>,
    /// Appends let through before the fault.
    pub(super) spared: AtomicUsize,
    /// Waiting in every lane, besides nothing.
    pub(super) waiting: AtomicU64,
    pub(super) calls: AtomicUsize,
}

impl FakeLog {
    /// The messages in the order of their append.
    pub(super) fn messages(&self) -> Vec<Message> {
        let read = |record: &Append| match codec::decode::<LaneRecord>(&record.body).unwrap() {
            LaneRecord::Accepted(message) => message,
            LaneRecord::Again(_) | LaneRecord::Chat(_) => panic!("the door appends accepted messages only"),
        };
        self.records.lock().iter().map(read).collect()
    }
}

/// Quotas by buckets that nobody forgets.
pub(super) struct Buckets {
    held: Mutex<HashMap<std::sync::Arc<str>, Bucket>>,
    clock: std::sync::Arc<dyn schemas::Clock>,
}

impl Buckets {
    pub(super) fn new(clock: std::sync::Arc<dyn schemas::Clock>) -> Self {
        Self { held: Mutex::default(), clock }
    }

    fn now(&self) -> f64 {
        (self.clock.mono().0 + 1) as f64 * 1_000.0
    }
}

#[async_trait]
impl Limiter for Buckets {
    async fn take(&self, quotas: &[Quota], count: u32) -> Granted {
        let (mut held, now) = (self.held.lock(), self.now());
        let left = quotas.iter().map(|q| held.entry(q.key.clone()).or_default().remaining(q, now));
        let (place, least) = left.enumerate().min_by_key(|(_, left)| *left).unwrap_or((0, count));
        let granted = least.min(count);
        for quota in quotas {
            held.entry(quota.key.clone()).or_default().take(quota, granted, now);
        }
        let wait = held[&quotas[place].key].wait_ms(&quotas[place], 1, now).max(1);
        Granted { count: granted, refused: (granted < count).then_some((place, wait)) }
    }

    async fn look(&self, quotas: &[Quota]) -> Vec<Standing> {
        let (held, now) = (self.held.lock(), self.now());
        let bucket = |quota: &Quota| held.get(&quota.key).copied().unwrap_or_default();
        let look =
            |q: &Quota| Standing { remaining: bucket(q).remaining(q, now), wait_ms: bucket(q).wait_ms(q, 1, now) };
        quotas.iter().map(look).collect()
    }
}

fn not_faked<T>() -> PortResult<T> {
    Err(PortError::Rejected("not faked".to_owned()))
}

#[async_trait]
impl Log for FakeLog {
    async fn append(&self, records: Vec<Append>) -> Vec<PortResult<Offset>> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let mut kept = self.records.lock();
        let fault = self.fault.lock().clone();
        let one = |record| match &fault {
            Some(why) if self.spared.load(Ordering::SeqCst) == 0 => Err(why.clone()),
            _ => {
                if fault.is_some() {
                    self.spared.fetch_sub(1, Ordering::SeqCst);
                }
                kept.push(record);
                Ok(Offset(kept.len() as u64))
            }
        };
        records.into_iter().map(one).collect()
    }
    async fn read(&self, _: TopicPartition, _: Offset, _: Fetch) -> PortResult<Vec<Record>> {
        not_faked()
    }
    async fn bounds(&self, at: TopicPartition) -> PortResult<(Offset, Offset)> {
        let first = at.partition == Partition(0) && matches!(at.topic, Topic::Lane(_));
        let waiting = if first { self.waiting.load(Ordering::SeqCst) } else { 0 };
        Ok((Offset(5), Offset(10 + waiting)))
    }
    async fn committed(&self, group: Group, at: &[TopicPartition]) -> PortResult<Vec<Option<Offset>>> {
        assert_eq!(group, crate::lanes::PIPELINE);
        Ok(vec![Some(Offset(10)); at.len()])
    }
    async fn join(&self, _: Group, _: &[Topic]) -> PortResult<Box<dyn Consumer>> {
        not_faked()
    }
    fn partitions(&self) -> u16 {
        4
    }
    fn durability(&self) -> Durability {
        Durability::Disk
    }
    async fn check(&self) -> PortResult<()> {
        Ok(())
    }
}

/// Keeps broadcasts.
#[derive(Default)]
pub(super) struct FakeHistory {
    /// Conversations.
    pub(super) talks: schemas::port::Talks,
    /// Messages by id, beside those of conversations.
    pub(super) placed: Mutex<HashMap<MessageId, Placed>>,
    /// What was refused after it was accepted.
    pub(super) refused: Mutex<HashMap<MessageId, schemas::Reason>>,
    pub(super) broadcasts: Mutex<HashMap<BroadcastId, (Broadcast, Vec<Phone>)>>,
    /// `progress` calls that fail before one is kept: as if the process had died between append and progress.
    pub(super) forgets: AtomicUsize,
    /// Broadcasts whose recipients cannot be read, and how often that was tried.
    pub(super) broken: Mutex<HashMap<BroadcastId, usize>>,
    /// Broadcasts whose headers cannot be read among those that run.
    pub(super) unread: Mutex<HashSet<BroadcastId>>,
}

#[async_trait]
impl Broadcasts for FakeHistory {
    async fn begin(&self, broadcast: &Broadcast, recipients: &[Phone]) -> PortResult<Broadcast> {
        let mut all = self.broadcasts.lock();
        Ok(all.entry(broadcast.id).or_insert_with(|| (broadcast.clone(), recipients.to_vec())).0.clone())
    }
    async fn broadcast(&self, id: BroadcastId) -> PortResult<Option<Broadcast>> {
        Ok(self.broadcasts.lock().get(&id).map(|(b, _)| b.clone()))
    }
    async fn running(&self) -> PortResult<Expanding> {
        let (all, torn) = (self.broadcasts.lock(), self.unread.lock());
        let running = all.values().filter(|(b, _)| b.state == BroadcastState::Running);
        let mut running: Vec<Broadcast> = running.map(|(b, _)| b.clone()).collect();
        running.sort_by_key(|b| (b.asked.accepted_at, b.id));
        let mut found = Expanding::default();
        for b in running {
            let is_torn = torn.contains(&b.id);
            found.add(b.id, if is_torn { Err(PortError::Rejected("torn".to_owned())) } else { Ok(Some(b)) });
        }
        Ok(found)
    }
    async fn recipients(&self, id: BroadcastId, from: u64, limit: usize) -> PortResult<Vec<Phone>> {
        if let Some(tries) = self.broken.lock().get_mut(&id) {
            *tries += 1;
            return Err(PortError::Unavailable("broken".to_owned()));
        }
        let all = self.broadcasts.lock();
        Ok(all[&id].1.iter().skip(from as usize).take(limit).copied().collect())
    }
    async fn progress(&self, id: BroadcastId, expanded: u64, state: BroadcastState) -> PortResult<Broadcast> {
        if self.forgets.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
            return Err(PortError::Unavailable("away".to_owned()));
        }
        let mut all = self.broadcasts.lock();
        let (kept, _) = all.get_mut(&id).unwrap();
        kept.expanded = kept.expanded.max(expanded);
        if kept.state == BroadcastState::Running {
            kept.state = state;
        }
        Ok(kept.clone())
    }
}

schemas::answers_from_talks!(FakeHistory, talks);

#[async_trait]
impl Inboxes for FakeHistory {
    async fn take_over(&self, _: &[Partition]) -> PortResult<Vec<Epoch>> {
        not_faked()
    }
    fn owns(&self, _: &[(Partition, Epoch)]) {}
    async fn tails(&self, _: &[Inbox]) -> PortResult<Vec<Tail>> {
        not_faked()
    }
    async fn known(&self, _: &[MessageId]) -> PortResult<Vec<Option<Known>>> {
        not_faked()
    }
    async fn record(&self, _: &[Entry], _: &Schedule) -> PortResult<()> {
        not_faked()
    }
    async fn due(&self, _: Partition, _: Timestamp, _: usize) -> PortResult<Vec<Due>> {
        not_faked()
    }
    async fn read(&self, _: &Inbox, _: Position, _: usize) -> PortResult<Span> {
        not_faked()
    }
    async fn messages(&self, ids: &[MessageId]) -> PortResult<Vec<Option<Placed>>> {
        let placed = self.placed.lock();
        Ok(ids.iter().map(|id| placed.get(id).cloned()).collect())
    }
    async fn one_way(
        &self,
        _: &Inbox,
        _: Order,
        _: Option<Position>,
        _: usize,
    ) -> PortResult<Page<(Entry, State), Position>> {
        not_faked()
    }
    async fn unread(&self, _: &Inbox) -> PortResult<Unread> {
        not_faked()
    }
    async fn retain(&self, _: Partition, _: Timestamp, _: usize) -> PortResult<Vec<Placed>> {
        not_faked()
    }
    async fn sizes(&self) -> PortResult<(u64, u64)> {
        not_faked()
    }
}

#[async_trait]
impl Facts for FakeHistory {
    async fn settle(&self, _: &[Fact]) -> PortResult<Vec<Settled>> {
        not_faked()
    }
    async fn states(&self, ids: &[MessageId]) -> PortResult<Vec<State>> {
        let refused = self.refused.lock();
        let state = |id: &MessageId| {
            let mut state = State::default();
            if let Some(reason) = refused.get(id) {
                let (at, what) = (Timestamp(1), schemas::What::Failed(*reason));
                state.merge(schemas::fact::Past { at, what, round: 0, attempt: Default::default(), device: None });
            }
            state
        };
        Ok(ids.iter().map(state).collect())
    }
}

#[async_trait]
impl Cursors for FakeHistory {
    async fn cursors(&self, _: &UserId) -> PortResult<Vec<(DeviceId, Cursor)>> {
        not_faked()
    }
    async fn advance(&self, _: &[(UserId, DeviceId, Cursor)]) -> PortResult<()> {
        not_faked()
    }
}

#[async_trait]
impl DeadLetters for FakeHistory {
    async fn bury(&self, _: &[Dead]) -> PortResult<()> {
        not_faked()
    }
    async fn dead(&self, _: &Filter, _: Option<Buried>, _: usize) -> PortResult<Page<Dead, Buried>> {
        not_faked()
    }
    async fn dead_letter(&self, _: MessageId) -> PortResult<Option<Dead>> {
        not_faked()
    }
    async fn dead_count(&self) -> PortResult<u64> {
        not_faked()
    }
    async fn forget_dead(&self, _: Timestamp, _: usize) -> PortResult<usize> {
        not_faked()
    }
}
