//! Intake: the task of an instance that owns its consumer. Reads, feeds the lanes' flows and the settler, and commits.
//!
//! Promises that an offset is committed only when everything behind it is done ([`Ledger`]) and the partition is still held
//! ([`Ownership`]), that what is in flight stays within its bounds (the partitions of a lane at its bound are paused), and
//! that a retry waits out its tier without holding anything else. Partitions come and go while the others go on (`owning`).

mod orders;
mod owning;

use std::{collections::BTreeMap, future::Future, sync::Arc, sync::atomic::Ordering, time::Duration};

use schemas::{
    Clock, Epoch, Lane, Limits, Millis, Offset, Partition, Priority, Topic, TopicPartition,
    port::{Consumer, Dispatch, DueKind, Event, Fetch, Group, History, Log, PortError, Record},
    tier::{Attempt, Tier},
};
use tokio::sync::mpsc::{Receiver, Sender};
use tokio_util::sync::CancellationToken;

use self::orders::Told;
use crate::{
    crowd::Crowd,
    decode,
    gate::Gates,
    gauges::Counters,
    item::{DueItem, Fresh, Item, Work},
    ledger::{Fed, Ledger},
    operators::source::Feed,
    ownership::Ownership,
    progress::Progress,
    settle::SettlerHandle,
    steady::Steady,
    tenants::Kind,
    tiers::{Held, Tiers},
    trace,
    wake::Wake,
};

/// The group whose members share the partition numbers.
pub const GROUP: Group = Group("esh3ar.pipeline");

/// How often an idle instance looks whether the settler has offsets to commit, ms.
const IDLE_LOOK_MS: u64 = 1_000;

/// Every topic an instance reads: whoever owns a partition number owns it in all of them (rule 3).
fn topics() -> Vec<Topic> {
    let lanes = Priority::ALL.into_iter().map(Topic::Lane);
    lanes.chain(Tier::ALL.into_iter().map(Topic::Retry)).chain([Topic::Outcomes]).collect()
}

/// What an intake works with.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) history: Arc<dyn History>,
    pub(crate) dispatch: Arc<dyn Dispatch>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) crowd: Arc<Crowd>,
    pub(crate) ownership: Arc<Ownership>,
    pub(crate) gates: Arc<Gates>,
    pub(crate) stop: CancellationToken,
}

/// The way into one lane's flow.
pub(crate) struct LaneIn {
    pub(crate) feeds: Sender<Feed>,
    pub(crate) bell: Arc<Wake>,
    pub(crate) epoch: u64,
}

/// A partition that is this instance's.
#[derive(Debug, Clone, Copy)]
struct Owned {
    epoch: Epoch,
    /// The ends of its lanes when it was taken over: what is before them, an earlier owner may have begun with.
    ends: [Offset; 3],
}

/// What was read of one lane.
#[derive(Default)]
struct Gathered {
    items: Vec<Item>,
    fed: Fed,
}

impl Gathered {
    fn add(&mut self, at: TopicPartition, next: Offset, item: Item) {
        self.push(item);
        // Records of a partition come together: the last run is nearly always theirs. One ends where a record of another lane
        // stands in between, which may be done later than this lane's.
        match self.fed.ends.last_mut() {
            Some((there, end)) if *there == at && end.next() == next => *end = next,
            _ => self.fed.ends.push((at, next)),
        }
    }

    fn add_due(&mut self, item: Item) {
        if !self.fed.due.contains(&item.partition) {
            self.fed.due.push(item.partition);
        }
        self.push(item);
    }

    fn push(&mut self, item: Item) {
        self.fed.count += 1;
        self.fed.bytes += item.weight();
        self.items.push(item);
    }
}

/// The instance's dataflow has ended.
#[derive(Debug)]
pub(crate) struct Gone;

/// What happens next.
enum Next {
    Stop,
    Event(Result<Event, PortError>),
    Due(Vec<DueItem>),
    Taken(Vec<Partition>),
    TakenOver(owning::TakenOver),
    Look,
}

/// The task.
pub(crate) struct Intake {
    parts: Parts,
    consumer: Box<dyn Consumer>,
    lanes: [LaneIn; 3],
    settler: Arc<SettlerHandle>,
    due: Receiver<Vec<DueItem>>,
    ledger: Ledger,
    tiers: Tiers,
    /// Those that are fed, and those of them that are being given up.
    owned: BTreeMap<Partition, Owned>,
    owning: owning::Owning,
    /// What the settler is still to be told; until it has taken that, `outcomes` is paused.
    orders: orders::Orders,
    uncommitted: BTreeMap<TopicPartition, Offset>,
    committed_at: Millis,
    steady: Steady,
}

impl Intake {
    /// Joins the group and works until it is stopped. Says whether everything in flight was done in time.
    pub(crate) async fn run(
        parts: Parts,
        lanes: [LaneIn; 3],
        settler: SettlerHandle,
        due: Receiver<Vec<DueItem>>,
    ) -> Result<bool, Gone> {
        let Some(consumer) = owning::join(&parts).await else {
            settler.stop().await;
            return Ok(true);
        };
        let mut intake = Self {
            consumer,
            lanes,
            settler: Arc::new(settler),
            due,
            ledger: Ledger::default(),
            tiers: Tiers::default(),
            owned: BTreeMap::new(),
            owning: owning::Owning::default(),
            orders: orders::Orders::default(),
            uncommitted: BTreeMap::new(),
            committed_at: parts.clock.mono(),
            steady: Steady::new(parts.clock.wall(), parts.clock.mono()),
            parts,
        };
        loop {
            intake.look().await?;
            match intake.next().await {
                Next::Stop => return intake.leave().await,
                Next::Event(Ok(Event::Records(records))) => intake.records(records).await?,
                Next::Event(Ok(Event::Assigned(partitions))) => intake.assigned(partitions),
                Next::Event(Ok(Event::Revoked(partitions))) => intake.revoked(&partitions),
                Next::Event(Err(why)) => {
                    tracing::warn!(%why, "the log cannot be read: trying again");
                    intake.unreadable(&why);
                    tokio::time::sleep(Duration::from_millis(intake.flow().commit_every_ms)).await;
                }
                Next::Due(rows) => intake.due(rows).await?,
                Next::Taken(settled) => intake.settler_has_room(&settled),
                Next::TakenOver(taken) => intake.taken_over(taken).await,
                Next::Look => {}
            }
        }
    }

    fn flow(&self) -> &schemas::limits::FlowLimits {
        &self.parts.limits.flow
    }

    /// Waits for what comes next.
    async fn next(&mut self) -> Next {
        let now = self.parts.clock.mono();
        let going = !self.owning.is_still();
        let tick = if self.ledger.is_empty() && self.uncommitted.is_empty() && !going {
            self.committed_at.plus(IDLE_LOOK_MS)
        } else {
            self.committed_at.plus(self.flow().commit_every_ms)
        };
        let retry = self.tiers.next_due(|lane| !self.parts.crowd.is_full(lane));
        let look = tokio::time::sleep(Duration::from_millis(retry.map_or(tick, |due| due.min(tick)).since(now)));
        let max = Fetch { records: self.flow().fetch_records, bytes: self.flow().fetch_bytes };
        let awaits_room = self.parts.crowd.is_any_full();
        let Self { parts, consumer, due, orders, owning, .. } = self;
        tokio::select! {
            () = parts.stop.cancelled() => Next::Stop,
            settled = orders.taken() => Next::Taken(settled),
            taken = owning.next_taken_over() => Next::TakenOver(taken),
            () = parts.ownership.told() => Next::Look,
            event = consumer.poll(max) => Next::Event(event),
            Some(rows) = due.recv() => Next::Due(rows),
            () = parts.progress.moved(), if awaits_room || going => Next::Look,
            () = look => Next::Look,
        }
    }

    /// Looks at everything that time and progress change: what is done, who may go on, which retries are due, what can be
    /// committed.
    async fn look(&mut self) -> Result<(), Gone> {
        self.catch_up();
        self.forget_lost();
        self.balance();
        self.retries().await?;
        let now = self.parts.clock.mono();
        if now.since(self.committed_at) >= self.flow().commit_every_ms {
            self.committed_at = now;
            self.commit().await;
            self.tell();
        }
        self.give_up(now).await;
        Ok(())
    }

    /// Takes note of how far the lanes are.
    fn catch_up(&mut self) {
        for lane in Priority::ALL {
            for (slot, n) in self.ledger.reached(lane, self.parts.progress.of(lane)) {
                self.parts.counters.tenants.add(slot, lane, Kind::InFlight, -i64::from(n));
            }
        }
    }

    /// Pauses the partitions of lanes that are at a bound, resumes those of lanes that are at half of it again.
    fn balance(&mut self) {
        let (most, most_bytes) = (self.flow().in_flight, self.flow().in_flight_bytes);
        for lane in Priority::ALL {
            let (count, bytes) = self.ledger.in_flight(lane);
            let (full, easy) = (count >= most || bytes >= most_bytes, count <= most / 2 && bytes <= most_bytes / 2);
            let at = self.of_topic(Topic::Lane(lane));
            let paused = self.parts.crowd.is_full(lane);
            if full && !paused {
                self.parts.crowd.set(lane, true);
                self.consumer.pause(&at);
            } else if easy && paused {
                self.parts.crowd.set(lane, false);
                self.consumer.resume(&at);
            }
        }
        let awaited = self.parts.crowd.is_any_full() || !self.owning.is_still();
        self.parts.progress.await_moves(awaited);
    }

    fn of_topic(&self, topic: Topic) -> Vec<TopicPartition> {
        self.owned.keys().map(|partition| TopicPartition { topic, partition: *partition }).collect()
    }

    /// Feeds retries that are due.
    async fn retries(&mut self) -> Result<(), Gone> {
        let now = self.parts.clock.mono();
        let (taken, empty) = self.tiers.take(now, |lane| !self.parts.crowd.is_full(lane));
        if taken.is_empty() && empty.is_empty() {
            return Ok(());
        }
        let mut lanes: [Gathered; 3] = Default::default();
        for (at, held) in taken {
            let tenants = &self.parts.counters.tenants;
            tenants.add(tenants.slot(held.item.tenant()), held.lane, Kind::RetryWaiting, -1);
            lanes[index(held.lane)].add(at, held.next, held.item);
        }
        self.consumer.resume(&empty);
        self.feed(lanes).await
    }

    /// Sorts records: lanes to their flows, retries until they are due, outcomes to the settler.
    async fn records(&mut self, records: Vec<Record>) -> Result<(), Gone> {
        let (wall, mono) = (self.parts.clock.wall(), self.parts.clock.mono());
        let first_ms = self.flow().retry_first_ms;
        // Twice the longest delay after a jump nothing waits that was written before it.
        let past_ms = Tier::ALL.iter().map(|tier| 2 * tier.delay_ms(first_ms)).max().unwrap_or_default();
        self.steady.look(wall, mono, past_ms);
        let mut lanes: [Gathered; 3] = Default::default();
        let (mut outcomes, mut waiting) = (Vec::new(), Vec::new());
        for record in records {
            // What is being given up is not fed any more: its next owner reads it again.
            let fed = self.owned.get(&record.at.partition).filter(|_| !self.owning.goes(record.at.partition));
            let Some(owned) = fed else { continue };
            let next = record.offset.next();
            match record.at.topic {
                Topic::Lane(lane) => {
                    let replay = record.offset < owned.ends[index(lane)];
                    lanes[index(lane)].add(record.at, next, decode::lane_record(&record, owned.epoch, replay, wall));
                }
                Topic::Retry(_) => {
                    let age = self.steady.age(record.appended_at, mono);
                    let wait = decode::still_to_wait(&record, first_ms, age);
                    let (lane, item) = decode::tier_record(&record, owned.epoch, wall);
                    let goes_on = wait == 0 && !self.parts.crowd.is_full(lane);
                    if goes_on && !self.tiers.waits(record.at) {
                        lanes[index(lane)].add(record.at, next, item);
                    } else {
                        let tenants = &self.parts.counters.tenants;
                        tenants.add(tenants.slot(item.tenant()), lane, Kind::RetryWaiting, 1);
                        if self.tiers.hold(record.at, Held { due: mono.plus(wait), lane, item, next }) {
                            waiting.push(record.at);
                        }
                    }
                }
                Topic::Outcomes => outcomes.push(record),
                Topic::Dead => {}
            }
        }
        if !waiting.is_empty() {
            self.consumer.pause(&waiting);
        }
        if !outcomes.is_empty() {
            self.outcomes(outcomes);
        }
        self.feed(lanes).await
    }

    /// Gives facts to the settler. Where it has no room, `outcomes` is paused and nothing else waits for it.
    fn outcomes(&mut self, records: Vec<Record>) {
        let settler = self.settler.clone();
        self.tell_settler(async move {
            settler.take(records).await;
            Vec::new()
        });
    }

    /// Tells the settler something, after what it was told before.
    fn tell_settler(&mut self, order: impl Future<Output = Vec<Partition>> + Send + 'static) {
        match self.orders.tell(order) {
            Told::All(settled, true) => self.settler_has_room(&settled),
            Told::All(settled, false) => self.owning.settled(&settled),
            Told::Waits => self.consumer.pause(&self.of_topic(Topic::Outcomes)),
        }
    }

    fn settler_has_room(&mut self, settled: &[Partition]) {
        self.owning.settled(settled);
        self.consumer.resume(&self.of_topic(Topic::Outcomes));
    }

    /// Feeds scheduled messages that are due into their lanes. They have no offset: their rows say that they are not done. The
    /// sweep brings none of a lane that is full; what it brought a moment before goes in, two looks' rows at most.
    async fn due(&mut self, rows: Vec<DueItem>) -> Result<(), Gone> {
        let mut lanes: [Gathered; 3] = Default::default();
        for DueItem { due, epoch } in rows {
            if self.owning.goes(due.partition) || self.owned.get(&due.partition).is_none_or(|o| o.epoch != epoch) {
                continue;
            }
            let DueKind::Send(message) = due.kind.clone() else { continue };
            let (lane, partition) = (message.priority, due.partition);
            let due = Some(Box::new(due));
            let work = Work::Fresh(Fresh { message, replay: false, end: None, conflict: false, due });
            lanes[index(lane)].add_due(Item { partition, epoch, offset: None, work });
        }
        self.feed(lanes).await
    }

    /// Feeds the lanes, an epoch each.
    async fn feed(&mut self, lanes: [Gathered; 3]) -> Result<(), Gone> {
        for (lane, gathered) in Priority::ALL.into_iter().zip(lanes) {
            let Gathered { items, mut fed } = gathered;
            if items.is_empty() {
                continue;
            }
            let tenants = &self.parts.counters.tenants;
            fed.tenants = tenants.tally(items.iter().map(Item::tenant));
            for (slot, n) in &fed.tenants {
                tenants.add(*slot, lane, Kind::InFlight, i64::from(*n));
                tenants.add(*slot, lane, Kind::Waiting, i64::from(*n));
            }
            if trace::on() {
                told_accepted(lane, &items);
            }
            let of = &mut self.lanes[index(lane)];
            let epoch = of.epoch;
            of.epoch += 1;
            self.ledger.fed(lane, epoch, fed);
            // The bound on what is in flight is above; this one only keeps a stalled thread from being fed for ever.
            of.feeds.send(Feed { epoch, items }).await.map_err(|_| Gone)?;
            of.bell.ring();
        }
        Ok(())
    }

    /// Commits what is done, of partitions that are still held: what was dropped because they were lost counts as done in
    /// the ledger, and it does so only after they stopped being held.
    async fn commit(&mut self) {
        let done = self.ledger.done().into_iter().chain(self.settler.done());
        self.uncommitted.extend(done);
        let (owned, ownership) = (&self.owned, &self.parts.ownership);
        let held = |partition| owned.get(&partition).is_some_and(|owned| ownership.holds(partition, owned.epoch));
        self.uncommitted.retain(|at, _| held(at.partition));
        if self.uncommitted.is_empty() {
            return;
        }
        let offsets: Vec<_> = self.uncommitted.iter().map(|(at, next)| (*at, *next)).collect();
        match self.commit_within(&offsets).await {
            Ok(()) => self.uncommitted.clear(),
            Err(PortError::Fenced(_) | PortError::Rejected(_)) => self.commit_one_by_one(&offsets).await,
            // It is kept and tried again; at worst it is done again after a restart.
            Err(why) => tracing::warn!(%why, "offsets could not be committed"),
        }
    }

    async fn commit_within(&mut self, offsets: &[(TopicPartition, Offset)]) -> Result<(), PortError> {
        // Half of what leaving may take, so that a log that hangs does not use up all of it.
        let within = Duration::from_millis(self.flow().drain_ms / 2);
        let answer = tokio::time::timeout(within, self.consumer.commit(offsets)).await;
        answer.unwrap_or_else(|_| Err(PortError::Unknown("the log did not answer in time".into())))
    }

    /// One of them is not this member's any more: the others must not wait for it.
    async fn commit_one_by_one(&mut self, offsets: &[(TopicPartition, Offset)]) {
        let mut by_partition = BTreeMap::<Partition, Vec<_>>::new();
        offsets.iter().for_each(|(at, next)| by_partition.entry(at.partition).or_default().push((*at, *next)));
        for (partition, offsets) in by_partition {
            match self.commit_within(&offsets).await {
                Err(why @ (PortError::Fenced(_) | PortError::Rejected(_))) => {
                    if let Some(owned) = self.owned.get(&partition) {
                        self.parts.ownership.lost(partition, owned.epoch, &why);
                    }
                }
                Err(why) => {
                    tracing::warn!(%why, "offsets could not be committed");
                    continue;
                }
                Ok(()) => {}
            }
            self.uncommitted.retain(|at, _| at.partition != partition);
        }
    }

    /// Says what is in flight.
    fn tell(&self) {
        let counters = &self.parts.counters;
        for lane in Priority::ALL {
            let (count, _) = self.ledger.in_flight(lane);
            counters.of(lane).in_flight.store(count as u64, Ordering::Relaxed);
        }
        counters.retries_waiting.store(self.tiers.len() as u64, Ordering::Relaxed);
        counters.armed.store(self.settler.armed(), Ordering::Relaxed);
    }
}

/// Messages that a lane brought.
fn told_accepted(lane: Lane, items: &[Item]) {
    for item in items {
        if let Work::Fresh(fresh) = &item.work {
            trace::reached(trace::Stage::Accepted, &fresh.message, lane, Attempt::default());
        }
    }
}

fn index(lane: Lane) -> usize {
    usize::from(lane.number())
}

#[cfg(test)]
mod tests;
