//! Intake: the task of an instance that owns its consumer. Reads, feeds the lanes' flows and the settler, and commits.
//!
//! Promises that an offset is committed only when everything behind it is done ([`Ledger`]), that what is in flight stays
//! within its bounds (the partitions of a lane at its bound are paused), that a retry waits out its tier without holding
//! anything else, and that a partition is given up only after what was fed of it is done or the drain time has passed.

mod owning;

use std::{collections::BTreeMap, sync::Arc, sync::atomic::Ordering, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use schemas::{
    Clock, Epoch, Lane, Limits, Millis, Offset, Partition, Priority, Topic, TopicPartition,
    port::{Consumer, DueKind, Event, Fetch, Group, History, Log, Record},
    tier::Tier,
};
use tokio::sync::mpsc::{Receiver, Sender};
use tokio_util::sync::CancellationToken;

use crate::{
    decode,
    gauges::Counters,
    item::{DueItem, Fresh, Item, Work},
    ledger::Ledger,
    operators::source::Feed,
    progress::Progress,
    settle::SettlerHandle,
    tiers::{Held, Tiers},
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
pub(crate) struct Parts {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) history: Arc<dyn History>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) stop: CancellationToken,
}

/// The way into one lane's flow.
pub(crate) struct LaneIn {
    pub(crate) feeds: Sender<Feed>,
    pub(crate) bell: Arc<Wake>,
    pub(crate) epoch: u64,
    pub(crate) paused: bool,
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
    bytes: usize,
    ends: Vec<(TopicPartition, Offset)>,
}

impl Gathered {
    fn add(&mut self, at: TopicPartition, next: Offset, item: Item) {
        self.bytes += item.weight();
        self.items.push(item);
        // Records of a partition come together: the last one is nearly always it.
        match self.ends.last_mut() {
            Some(last) if last.0 == at => last.1 = next,
            _ => self.ends.push((at, next)),
        }
    }
}

/// The instance's dataflow has ended.
#[derive(Debug)]
pub(crate) struct Gone;

/// What happens next.
enum Next {
    Stop,
    Event(Result<Event, schemas::port::PortError>),
    Due(Vec<DueItem>),
    Taken,
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
    owned: BTreeMap<Partition, Owned>,
    /// The settler is full: `outcomes` is paused until it has taken these.
    taking: Option<BoxFuture<'static, ()>>,
    uncommitted: BTreeMap<TopicPartition, Offset>,
    committed_at: Millis,
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
            taking: None,
            uncommitted: BTreeMap::new(),
            committed_at: parts.clock.mono(),
            parts,
        };
        loop {
            intake.look().await?;
            match intake.next().await {
                Next::Stop => return intake.leave().await,
                Next::Event(Ok(Event::Records(records))) => intake.records(records).await?,
                Next::Event(Ok(Event::Assigned(partitions))) => intake.assigned(partitions).await,
                Next::Event(Ok(Event::Revoked(partitions))) => intake.revoked(partitions).await,
                Next::Event(Err(why)) => {
                    tracing::warn!(%why, "the log cannot be read: trying again");
                    tokio::time::sleep(Duration::from_millis(intake.flow().commit_every_ms)).await;
                }
                Next::Due(rows) => intake.due(rows).await?,
                Next::Taken => intake.settler_has_room(),
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
        let tick = if self.ledger.is_empty() && self.uncommitted.is_empty() {
            self.committed_at.plus(IDLE_LOOK_MS)
        } else {
            self.committed_at.plus(self.flow().commit_every_ms)
        };
        let retry = self.tiers.next_due(|lane| !self.lanes[index(lane)].paused);
        let look = tokio::time::sleep(Duration::from_millis(retry.map_or(tick, |due| due.min(tick)).since(now)));
        let max = Fetch { records: self.flow().fetch_records, bytes: self.flow().fetch_bytes };
        let crowded = self.lanes.iter().any(|lane| lane.paused);
        let Self { parts, consumer, due, taking, .. } = self;
        let taken = async {
            match taking {
                Some(taking) => taking.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = parts.stop.cancelled() => Next::Stop,
            () = taken => Next::Taken,
            event = consumer.poll(max) => Next::Event(event),
            Some(rows) = due.recv(), if !crowded => Next::Due(rows),
            () = parts.progress.moved(), if crowded => Next::Look,
            () = look => Next::Look,
        }
    }

    /// Looks at everything that time and progress change: what is done, who may go on, which retries are due, what can be
    /// committed.
    async fn look(&mut self) -> Result<(), Gone> {
        self.catch_up();
        self.balance();
        self.retries().await?;
        let now = self.parts.clock.mono();
        if now.since(self.committed_at) >= self.flow().commit_every_ms {
            self.committed_at = now;
            self.commit().await;
            self.tell();
        }
        Ok(())
    }

    /// Takes note of how far the lanes are.
    fn catch_up(&mut self) {
        for lane in Priority::ALL {
            self.ledger.reached(lane, self.parts.progress.of(lane));
        }
    }

    /// Pauses the partitions of lanes that are at a bound, resumes those of lanes that are at half of it again.
    fn balance(&mut self) {
        let (most, most_bytes) = (self.flow().in_flight, self.flow().in_flight_bytes);
        for lane in Priority::ALL {
            let (count, bytes) = self.ledger.in_flight(lane);
            let (full, easy) = (count >= most || bytes >= most_bytes, count <= most / 2 && bytes <= most_bytes / 2);
            let at = self.of_topic(Topic::Lane(lane));
            let paused = &mut self.lanes[index(lane)].paused;
            if full && !*paused {
                *paused = true;
                self.consumer.pause(&at);
            } else if easy && *paused {
                *paused = false;
                self.consumer.resume(&at);
            }
        }
        self.parts.progress.await_moves(self.lanes.iter().any(|lane| lane.paused));
    }

    fn of_topic(&self, topic: Topic) -> Vec<TopicPartition> {
        self.owned.keys().map(|partition| TopicPartition { topic, partition: *partition }).collect()
    }

    /// Feeds retries that are due.
    async fn retries(&mut self) -> Result<(), Gone> {
        let now = self.parts.clock.mono();
        let (taken, empty) = self.tiers.take(now, |lane| !self.lanes[index(lane)].paused);
        if taken.is_empty() && empty.is_empty() {
            return Ok(());
        }
        let mut lanes = [const { Gathered { items: Vec::new(), bytes: 0, ends: Vec::new() } }; 3];
        for (at, held) in taken {
            lanes[index(held.lane)].add(at, held.next, held.item);
        }
        self.consumer.resume(&empty);
        self.feed(lanes).await
    }

    /// Sorts records: lanes to their flows, retries until they are due, outcomes to the settler.
    async fn records(&mut self, records: Vec<Record>) -> Result<(), Gone> {
        let (wall, mono) = (self.parts.clock.wall(), self.parts.clock.mono());
        let first_ms = self.flow().retry_first_ms;
        let mut lanes: [Gathered; 3] = Default::default();
        let (mut outcomes, mut waiting) = (Vec::new(), Vec::new());
        for record in records {
            let Some(owned) = self.owned.get(&record.at.partition) else { continue };
            let next = record.offset.next();
            match record.at.topic {
                Topic::Lane(lane) => {
                    let replay = record.offset < owned.ends[index(lane)];
                    lanes[index(lane)].add(record.at, next, decode::lane_record(&record, owned.epoch, replay, wall));
                }
                Topic::Retry(_) => {
                    let wait = decode::still_to_wait(&record, first_ms, wall);
                    let (lane, item) = decode::tier_record(&record, owned.epoch, wall);
                    if wait == 0 && !self.tiers.waits(record.at) {
                        lanes[index(lane)].add(record.at, next, item);
                    } else if self.tiers.hold(record.at, Held { due: mono.plus(wait), lane, item, next }) {
                        waiting.push(record.at);
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
        let (settler, before) = (self.settler.clone(), self.taking.take());
        let mut taking = async move {
            if let Some(before) = before {
                before.await;
            }
            settler.take(records).await;
        }
        .boxed();
        if (&mut taking).now_or_never().is_none() {
            self.consumer.pause(&self.of_topic(Topic::Outcomes));
            self.taking = Some(taking);
        }
    }

    fn settler_has_room(&mut self) {
        self.taking = None;
        self.consumer.resume(&self.of_topic(Topic::Outcomes));
    }

    /// Feeds scheduled messages that are due into their lanes. They have no offset: their rows say that they are not done.
    async fn due(&mut self, rows: Vec<DueItem>) -> Result<(), Gone> {
        let mut lanes: [Gathered; 3] = Default::default();
        for DueItem { due } in rows {
            let Some(owned) = self.owned.get(&due.partition) else { continue };
            let DueKind::Send(message) = due.kind.clone() else { continue };
            let (lane, partition) = (message.priority, due.partition);
            let due = Some(Box::new(due));
            let work = Work::Fresh(Fresh { message, replay: false, end: None, conflict: false, due });
            let item = Item { partition, epoch: owned.epoch, work };
            lanes[index(lane)].bytes += item.weight();
            lanes[index(lane)].items.push(item);
        }
        self.feed(lanes).await
    }

    /// Feeds the lanes, an epoch each.
    async fn feed(&mut self, lanes: [Gathered; 3]) -> Result<(), Gone> {
        for (lane, gathered) in Priority::ALL.into_iter().zip(lanes) {
            let Gathered { items, bytes, ends } = gathered;
            if items.is_empty() {
                continue;
            }
            let of = &mut self.lanes[index(lane)];
            let epoch = of.epoch;
            of.epoch += 1;
            self.ledger.fed(lane, epoch, (items.len(), bytes), ends);
            // The bound on what is in flight is above; this one only keeps a stalled thread from being fed for ever.
            of.feeds.send(Feed { epoch, items }).await.map_err(|_| Gone)?;
            of.bell.ring();
        }
        Ok(())
    }

    /// Commits what is done.
    async fn commit(&mut self) {
        let done = self.ledger.done().into_iter().chain(self.settler.done());
        self.uncommitted.extend(done.filter(|(at, _)| self.owned.contains_key(&at.partition)));
        if self.uncommitted.is_empty() {
            return;
        }
        let offsets: Vec<_> = self.uncommitted.iter().map(|(at, next)| (*at, *next)).collect();
        match self.consumer.commit(&offsets).await {
            Ok(()) => self.uncommitted.clear(),
            // It is kept and tried again; at worst it is done again after a restart.
            Err(why) => tracing::warn!(%why, "offsets could not be committed"),
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

fn index(lane: Lane) -> usize {
    usize::from(lane.number())
}

#[cfg(test)]
mod tests;
