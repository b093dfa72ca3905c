//! A history that two processes write to: with takeovers, and late owners that are refused, or left aside where it is told to
//! be a store that cannot know in time. An inbox is a chain; where it forks the newest owner's entry stands.
//!
//! Left aside, a late entry must be so from the moment in which the newer owner has read where it goes on from, also where it
//! has not written there yet: it relies on what it read. So reading an end pins it, for the takeover of who reads; without
//! that, three owners of which two are late lose messages.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use parking_lot::Mutex;
use schemas::{
    BroadcastId, ConversationId, Cursor, DeviceId, Epoch, Fact, Inbox, Message, MessageId, Partition, Phone, Position,
    State, Status, Timestamp, UserId, fact::Past, port::*,
};

use super::{
    Ice,
    talks::{self, Stands, Thread},
};
use crate::memory::MemoryHistory;

#[derive(Default)]
pub(super) struct Kept {
    epochs: BTreeMap<Partition, Epoch>,
    inboxes: BTreeMap<Inbox, BTreeMap<Position, Entry>>,
    /// Where the owner of each epoch goes on from, in inboxes that it has read.
    pins: BTreeMap<Inbox, BTreeMap<Epoch, Position>>,
    due: Vec<Due>,
    states: BTreeMap<MessageId, State>,
    pub(super) threads: BTreeMap<ConversationId, Thread>,
}

impl Kept {
    /// What a reader sees.
    pub(super) fn chain(&self, inbox: &Inbox) -> Vec<&Entry> {
        let Some(entries) = self.inboxes.get(inbox) else { return Vec::new() };
        let (mut chain, mut at) = (Vec::<&Entry>::new(), Position::START);
        let newest = self.pins.get(inbox).and_then(|pins| pins.last_key_value());
        if let Some((_, base)) = newest {
            let mut back = entries.get(base);
            while let Some(entry) = back {
                chain.push(entry);
                back = entries.get(&entry.prev);
            }
            chain.reverse();
            at = *base;
        }
        let epoch = newest.map(|(epoch, _)| *epoch);
        let follows =
            |entry: &Entry, at: Position| entry.prev == at && epoch.is_none_or(|epoch| entry.position.epoch == epoch);
        // Of several that follow the same entry the newest owner's stands.
        while let Some(next) = entries.values().filter(|e| follows(e, at)).max_by_key(|entry| entry.position) {
            chain.push(next);
            at = next.position;
        }
        chain
    }

    fn find(&self, id: MessageId) -> Option<&Entry> {
        // A sender's own copy is not where it is found.
        let own = |entry: &&Entry| entry.message.id == id && entry.inbox.user == entry.message.to;
        let all = self.inboxes.iter().filter(|(_, entries)| entries.values().any(|entry| own(&entry)));
        all.flat_map(|(inbox, _)| self.chain(inbox)).find(own)
    }

    /// New rows of the due-table: that of an expiry is known by its message and time alone.
    fn schedule(&mut self, schedule: &Schedule) {
        for due in &schedule.add {
            let stands = self.due.iter().any(|row| is_same(row, due)) || (due.is_send() && self.find(due.id).is_some());
            if !stands {
                self.due.push(due.clone());
            }
        }
    }

    /// Entries, and what is done with of the due-table.
    fn write(&mut self, entries: &[Entry], schedule: &Schedule) -> PortResult<()> {
        for entry in entries {
            self.inboxes.entry(entry.inbox.clone()).or_default().insert(entry.position, entry.clone());
            if let Some(end) = &entry.end {
                self.states.entry(entry.message.id).or_default().merge(end.clone());
            }
        }
        // Before rows are taken away it is looked whose they are: who was overtaken takes none, and is told.
        let is_late = |p: Partition| {
            let mut mine = schedule.epochs.iter().filter(|(of, _)| *of == p);
            mine.any(|(_, epoch)| self.epochs.get(&p).is_some_and(|last| epoch < last))
        };
        if schedule.done.iter().any(|due| is_late(due.partition)) {
            return Err(PortError::Fenced("overtaken".into()));
        }
        self.due.retain(|due| !schedule.done.iter().any(|done| is_same(done, due)));
        Ok(())
    }
}

fn is_same(one: &Due, other: &Due) -> bool {
    let name = |due: &Due| (due.partition, due.at, due.id, due.is_send());
    name(one) == name(other)
}

/// The store, as one process sees it.
#[derive(Clone)]
pub(super) struct Store {
    pub(super) kept: Arc<Mutex<Kept>>,
    rest: Arc<MemoryHistory>,
    pub(super) ice: Ice,
    /// What this process took over last.
    pub(super) mine: Arc<Mutex<BTreeMap<Partition, Epoch>>>,
    /// The conversations that it wrote since.
    pub(super) stands: Arc<Mutex<Stands>>,
    pub(super) strict: bool,
    /// What is first polled is first written.
    line: Arc<tokio::sync::Mutex<()>>,
    /// Conversations that this process is writing: one batch at a time for each.
    busy: Arc<Mutex<BTreeMap<ConversationId, Arc<tokio::sync::Mutex<()>>>>>,
    pub(super) taking: Arc<tokio::sync::Mutex<()>>,
    /// Every so many writes fail; 0: none.
    faults: usize,
    writes: Arc<AtomicUsize>,
}

impl Store {
    pub(super) fn new(strict: bool, faults: usize) -> Self {
        let (kept, rest, mine, stands, line, busy, taking, writes) = Default::default();
        Self { kept, rest, mine, stands, line, busy, taking, ice: Ice::new(), strict, faults, writes }
    }

    pub(super) fn of(&self, ice: Ice) -> Self {
        Self {
            ice,
            mine: Arc::default(),
            stands: Arc::default(),
            line: Arc::default(),
            busy: Arc::default(),
            taking: Arc::default(),
            ..self.clone()
        }
    }

    pub(super) fn has(&self, message: &Message) -> bool {
        let (kept, id) = (self.kept.lock(), message.id);
        if let Some(of) = message.kind.conversation() {
            let both = kept.inboxes.keys().filter(|inbox| kept.chain(inbox).iter().any(|entry| entry.message.id == id));
            let said =
                kept.threads.get(&of).is_some_and(|thread| thread.said().iter().any(|turn| turn.message.id == id));
            return said && both.count() == 2;
        }
        let sends = |due: &Due| due.id == id && due.is_send();
        kept.find(id).is_some() || kept.due.iter().any(sends)
    }

    pub(super) fn status(&self, id: MessageId) -> Status {
        self.kept.lock().states.get(&id).map(State::status).unwrap_or_default()
    }

    pub(super) fn due(&self) -> Vec<Due> {
        self.kept.lock().due.clone()
    }

    pub(super) fn chains(&self) -> Vec<(Inbox, Vec<Entry>)> {
        let kept = self.kept.lock();
        kept.inboxes.keys().map(|inbox| (inbox.clone(), kept.chain(inbox).into_iter().cloned().collect())).collect()
    }
}

/// What the first step of a batch came to.
struct Begun {
    /// Whether the batch is to fail yet, and how.
    fails: Option<PortError>,
    /// Whether it is looked who owns the partitions before the second.
    strangers: bool,
}

impl Store {
    /// The first step of a batch, which is all of it where it is atomic.
    fn begin(&self, entries: &[Entry], schedule: &Schedule) -> PortResult<Begun> {
        let turn = self.writes.fetch_add(1, Ordering::SeqCst);
        let fails = self.faults > 0 && turn % self.faults == self.faults - 1;
        if fails && turn.is_multiple_of(2) {
            return Err(PortError::Unavailable("away".into()));
        }
        let mut kept = self.kept.lock();
        let of = entries.iter().map(|entry| (entry.inbox.partition, entry.position.epoch));
        let mut of = of.chain(schedule.epochs.iter().copied());
        let late = of.any(|(p, epoch)| kept.epochs.get(&p).is_some_and(|last| epoch < *last));
        if late && self.strict {
            return Err(PortError::Fenced("overtaken".into()));
        }
        let strangers = talks::strangers(&kept, entries, schedule);
        talks::record(&mut kept, &mut self.stands.lock(), entries, schedule);
        kept.schedule(schedule);
        if !self.halves(schedule) {
            kept.write(entries, schedule)?;
        }
        let fails = fails.then(|| match turn % 4 {
            1 => PortError::Unavailable("in the middle of it".into()),
            _ => PortError::Unknown("perhaps".into()),
        });
        Ok(Begun { fails, strangers })
    }

    /// The row of a conversation is written again when the entries of the batch before it stand.
    async fn alone(&self, schedule: &Schedule) -> Vec<tokio::sync::OwnedMutexGuard<()>> {
        let ids: BTreeSet<_> = schedule.conversations.iter().map(|row| row.id).collect();
        let mut held = Vec::with_capacity(ids.len());
        for id in ids {
            let one = self.busy.lock().entry(id).or_default().clone();
            held.push(one.lock_owned().await);
        }
        held
    }

    /// Some stores take their time, so that who asks is frozen here now and then.
    pub(super) async fn linger(&self) {
        match self.writes.load(Ordering::SeqCst) % 3 {
            0 => tokio::time::sleep(std::time::Duration::from_millis(3)).await,
            _ => tokio::task::yield_now().await,
        }
    }

    fn halves(&self, schedule: &Schedule) -> bool {
        let plain = schedule.conversations.is_empty() && schedule.add.is_empty() && schedule.completed.is_empty();
        !self.strict && !plain
    }

    /// The second step, with time in between for others to write.
    async fn finish(
        &self,
        entries: &[Entry],
        schedule: &Schedule,
        Begun { fails, strangers }: Begun,
    ) -> PortResult<()> {
        if self.halves(schedule) {
            if strangers {
                self.ice.thawed().await;
                let kept = self.kept.lock();
                let mut of = schedule.epochs.iter().copied();
                if of.any(|(p, epoch)| kept.epochs.get(&p).is_some_and(|last| epoch < *last)) {
                    return Err(PortError::Fenced("overtaken before the entries".into()));
                }
            }
            if let Some(why @ PortError::Unavailable(_)) = fails {
                return Err(why);
            }
            self.linger().await;
            self.ice.thawed().await;
            self.kept.lock().write(entries, schedule)?;
        }
        self.ice.thawed().await;
        fails.map_or(Ok(()), |_| Err(PortError::Unknown("perhaps".into())))
    }
}

#[async_trait]
impl Inboxes for Store {
    async fn take_over(&self, partitions: &[Partition]) -> PortResult<Vec<Epoch>> {
        self.ice.thawed().await;
        let mut kept = self.kept.lock();
        let mut raise = |p: &Partition| {
            let epoch = kept.epochs.entry(*p).or_default();
            epoch.0 += 1;
            *epoch
        };
        Ok(partitions.iter().map(&mut raise).collect())
    }
    fn owns(&self, partitions: &[(Partition, Epoch)]) {
        self.stands.lock().forget();
        self.mine.lock().extend(partitions.iter().copied());
    }
    async fn tails(&self, inboxes: &[Inbox]) -> PortResult<Vec<Tail>> {
        // For who owned them when it asked: a takeover that comes while it is frozen is another's question.
        let mine = self.mine.lock().clone();
        self.linger().await;
        self.ice.thawed().await;
        let tails = {
            let mut kept = self.kept.lock();
            for inbox in inboxes.iter().filter(|_| !self.strict) {
                let end = kept.chain(inbox).last().map_or(Position::START, |entry| entry.position);
                let epoch = mine.get(&inbox.partition).copied().unwrap_or_default();
                let pins = kept.pins.entry(inbox.clone()).or_default();
                // Who reads late reads what the newer one has.
                if pins.keys().all(|newer| *newer < epoch) {
                    pins.insert(epoch, end);
                }
            }
            let tail = |inbox| {
                kept.chain(inbox).last().map_or(Tail::default(), |e| Tail { position: e.position, one_way: e.one_way })
            };
            inboxes.iter().map(tail).collect()
        };
        self.ice.thawed().await;
        Ok(tails)
    }
    async fn known(&self, ids: &[MessageId]) -> PortResult<Vec<Option<Known>>> {
        self.ice.thawed().await;
        let known = {
            let kept = self.kept.lock();
            let one = |id: &MessageId| {
                let at = |e: &Entry| Known { fingerprint: e.message.fingerprint, position: Some(e.position) };
                let due = || {
                    let mut due = kept.due.iter();
                    due.find(|due| due.id == *id && due.is_send())
                        .map(|_| Known { fingerprint: [0; 16], position: None })
                };
                kept.find(*id).map(at).or_else(due)
            };
            ids.iter().map(one).collect()
        };
        self.ice.thawed().await;
        Ok(known)
    }
    async fn record(&self, entries: &[Entry], schedule: &Schedule) -> PortResult<()> {
        let line = self.line.lock().await;
        let _talks = self.alone(schedule).await;
        self.ice.thawed().await;
        let allowed = self.stands.lock().allows(entries, schedule);
        let begun = match allowed {
            true => self.begin(entries, schedule),
            false => Err(PortError::Unavailable("an earlier row is not confirmed yet".into())),
        };
        self.stands.lock().ended(entries, schedule, begun.is_ok());
        // Nobody of this process writes to an inbox between the rows that lead to its entries and these.
        let _line = (!schedule.add.is_empty()).then_some(line);
        let outcome = self.finish(entries, schedule, begun?).await;
        if outcome.is_err() {
            self.stands.lock().ended(entries, schedule, false);
        }
        outcome
    }
    async fn due(&self, partition: Partition, now: Timestamp, limit: usize) -> PortResult<Vec<Due>> {
        self.ice.thawed().await;
        let mut due = self.kept.lock().due.clone();
        due.sort_by_key(|due| (due.at, due.id));
        Ok(due.into_iter().filter(|due| due.partition == partition && due.at <= now).take(limit).collect())
    }
    async fn read(&self, _: &Inbox, _: Position, _: usize) -> PortResult<Span> {
        Ok(Span { entries: Vec::new(), passed_by_retention: false })
    }
    async fn messages(&self, ids: &[MessageId]) -> PortResult<Vec<Option<Placed>>> {
        self.ice.thawed().await;
        let kept = self.kept.lock();
        let one = |id: &MessageId| {
            let state = kept.states.get(id).cloned().unwrap_or_default();
            let placed = |message: &Arc<schemas::Message>, inbox, position, prev| {
                let (message, recorded_at, state) = (message.clone(), Timestamp(0), state.clone());
                Placed { message, inbox, position, prev, recorded_at, seq: None, state }
            };
            let entry = kept.find(*id).map(|e| placed(&e.message, e.inbox.clone(), Some(e.position), e.prev));
            entry.or_else(|| {
                kept.due.iter().filter(|due| due.id == *id).find_map(|due| match &due.kind {
                    DueKind::Send(message) => {
                        Some(placed(message, message.inbox(super::PARTITIONS), None, Position::START))
                    }
                    DueKind::Expire { .. } => None,
                })
            })
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
    async fn retain(&self, _: Partition, _: Timestamp, _: usize) -> PortResult<Vec<Placed>> {
        Ok(Vec::new())
    }
    async fn sizes(&self) -> PortResult<(u64, u64)> {
        Ok((0, 0))
    }
}

#[async_trait]
impl Facts for Store {
    async fn settle(&self, facts: &[Fact]) -> PortResult<Vec<Settled>> {
        self.ice.thawed().await;
        let mut kept = self.kept.lock();
        let one = |fact: &Fact| {
            let state = kept.states.entry(fact.id).or_default();
            let changed = state.merge(Past::from(fact));
            Settled { changed, state: state.clone() }
        };
        Ok(facts.iter().map(one).collect())
    }
    async fn states(&self, ids: &[MessageId]) -> PortResult<Vec<State>> {
        let kept = self.kept.lock();
        Ok(ids.iter().map(|id| kept.states.get(id).cloned().unwrap_or_default()).collect())
    }
}

#[async_trait]
impl Cursors for Store {
    async fn cursors(&self, user: &UserId) -> PortResult<Vec<(DeviceId, Cursor)>> {
        self.rest.cursors(user).await
    }
    async fn advance(&self, moves: &[(UserId, DeviceId, Cursor)]) -> PortResult<()> {
        self.rest.advance(moves).await
    }
}

#[async_trait]
impl DeadLetters for Store {
    async fn bury(&self, dead: &[Dead]) -> PortResult<()> {
        self.ice.thawed().await;
        self.rest.bury(dead).await
    }
    async fn dead(&self, filter: &Filter, from: Option<Buried>, limit: usize) -> PortResult<Page<Dead, Buried>> {
        self.rest.dead(filter, from, limit).await
    }
    async fn dead_letter(&self, id: MessageId) -> PortResult<Option<Dead>> {
        self.rest.dead_letter(id).await
    }
    async fn dead_count(&self) -> PortResult<u64> {
        self.rest.dead_count().await
    }
    async fn forget_dead(&self, before: Timestamp, limit: usize) -> PortResult<usize> {
        self.rest.forget_dead(before, limit).await
    }
}

#[async_trait]
impl Broadcasts for Store {
    async fn begin(&self, broadcast: &Broadcast, recipients: &[Phone]) -> PortResult<Broadcast> {
        self.rest.begin(broadcast, recipients).await
    }
    async fn broadcast(&self, id: BroadcastId) -> PortResult<Option<Broadcast>> {
        self.rest.broadcast(id).await
    }
    async fn running(&self) -> PortResult<Expanding> {
        self.rest.running().await
    }
    async fn recipients(&self, id: BroadcastId, from: u64, limit: usize) -> PortResult<Vec<Phone>> {
        self.rest.recipients(id, from, limit).await
    }
    async fn progress(&self, id: BroadcastId, expanded: u64, state: BroadcastState) -> PortResult<Broadcast> {
        self.rest.progress(id, expanded, state).await
    }
}
