//! The whole pipeline on a log in memory: what is read, fed, held back, committed and given up.

mod room;

use std::{
    collections::{BTreeSet, HashSet},
    sync::atomic::AtomicBool,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use schemas::{
    DeviceId, Fact, MessageId, NodeId, Reason, SessionId, Timestamp, UserId, What,
    limits::FlowLimits,
    port::{
        Append, Dead, Dispatch, Durability, NodeLoad, Outcome, Place, PortError, PortResult, Presence, Routed, Taken,
    },
    record,
    time::ManualClock,
};
use tokio::sync::{Notify, watch};

use super::*;
use crate::{
    Gauges, Pipeline,
    memory::{MemoryHistory, MemoryLog},
    testing::message,
};

/// The log in memory, with one consumer that owns all four partitions, and gives them up when told.
#[derive(Default)]
struct OneReader {
    log: MemoryLog,
    came: Arc<Notify>,
    revoke: Arc<Mutex<Vec<Vec<Partition>>>>,
    commits: Arc<Mutex<Vec<(TopicPartition, Offset)>>>,
    paused: Arc<Mutex<HashSet<TopicPartition>>>,
    released: Arc<Mutex<Vec<Partition>>>,
}

struct Reader {
    log: Arc<OneReader>,
    assigned: bool,
    next: BTreeMap<TopicPartition, Offset>,
}

/// The log as a port: its consumers need it for as long as they live.
struct Joinable(Arc<OneReader>);

#[async_trait]
impl Log for Joinable {
    async fn append(&self, records: Vec<Append>) -> Vec<PortResult<Offset>> {
        let answers = self.0.log.append(records).await;
        self.0.came.notify_one();
        answers
    }
    async fn read(&self, at: TopicPartition, from: Offset, max: Fetch) -> PortResult<Vec<Record>> {
        self.0.log.read(at, from, max).await
    }
    async fn bounds(&self, at: TopicPartition) -> PortResult<(Offset, Offset)> {
        self.0.log.bounds(at).await
    }
    async fn committed(&self, _: Group, at: &[TopicPartition]) -> PortResult<Vec<Option<Offset>>> {
        let commits = self.0.commits.lock();
        Ok(at.iter().map(|at| commits.iter().rev().find(|(a, _)| a == at).map(|c| c.1)).collect())
    }
    async fn join(&self, _: Group, topics: &[Topic]) -> PortResult<Box<dyn Consumer>> {
        assert_eq!(topics.len(), 10, "three lanes, six tiers, outcomes");
        let mut next = BTreeMap::new();
        for topic in topics {
            for p in 0..4 {
                next.insert(TopicPartition { topic: *topic, partition: Partition(p) }, Offset(0));
            }
        }
        for (at, offset) in self.0.commits.lock().iter() {
            next.insert(*at, *offset);
        }
        Ok(Box::new(Reader { log: self.0.clone(), assigned: false, next }))
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
impl Consumer for Reader {
    async fn poll(&mut self, max: Fetch) -> PortResult<Event> {
        if !std::mem::replace(&mut self.assigned, true) {
            return Ok(Event::Assigned((0..4).map(Partition).collect()));
        }
        loop {
            let came = self.log.came.clone();
            let came = came.notified();
            if let Some(partitions) = self.log.revoke.lock().pop() {
                self.next.retain(|at, _| !partitions.contains(&at.partition));
                return Ok(Event::Revoked(partitions));
            }
            for (at, next) in &mut self.next {
                if self.log.paused.lock().contains(at) {
                    continue;
                }
                let records = self.log.log.read(*at, *next, max).await?;
                if let Some(last) = records.last() {
                    *next = last.offset.next();
                    return Ok(Event::Records(records));
                }
            }
            came.await;
        }
    }
    fn pause(&mut self, at: &[TopicPartition]) {
        self.log.paused.lock().extend(at.iter().copied());
    }
    fn resume(&mut self, at: &[TopicPartition]) {
        let mut paused = self.log.paused.lock();
        paused.retain(|paused| !at.contains(paused));
        drop(paused);
        self.log.came.notify_one();
    }
    async fn commit(&mut self, offsets: &[(TopicPartition, Offset)]) -> PortResult<()> {
        for (at, _) in offsets {
            if self.log.released.lock().contains(&at.partition) {
                return Err(PortError::Rejected("not yours".into()));
            }
        }
        self.log.commits.lock().extend(offsets.iter().copied());
        self.log.came.notify_waiters();
        Ok(())
    }
    async fn release(&mut self, partitions: &[Partition]) -> PortResult<()> {
        self.log.released.lock().extend(partitions.iter().copied());
        Ok(())
    }
    async fn leave(self: Box<Self>) -> PortResult<()> {
        Ok(())
    }
}

/// Users up to 4 are connected, others are not; while it is away nobody knows.
#[derive(Default)]
struct Some5(AtomicBool);

#[async_trait]
impl Presence for Some5 {
    async fn register(&self, _: &UserId, _: &NodeId, _: &DeviceId, _: SessionId) -> PortResult<Taken> {
        Ok(Taken { number: 1, replaced: None })
    }
    async fn refresh(&self, _: &[(UserId, SessionId)]) -> PortResult<()> {
        Ok(())
    }
    async fn remove(&self, _: &UserId, _: SessionId) -> PortResult<()> {
        Ok(())
    }
    async fn locate(&self, users: &[UserId]) -> PortResult<Vec<Vec<Place>>> {
        if self.0.load(Ordering::SeqCst) {
            return Err(PortError::Unavailable("presence is away".into()));
        }
        let session = SessionId(message(1).id.0);
        let (node, device) = (NodeId::parse("n").unwrap(), DeviceId::parse("d").unwrap());
        let place = Place { node, device, session, number: 1 };
        let connected = |u: &&UserId| u.to_string().as_bytes().last().is_some_and(|last| *last < b'5');
        Ok(users.iter().map(|u| if connected(&u) { vec![place.clone()] } else { vec![] }).collect())
    }
    async fn heartbeat(&self, _: &NodeLoad) -> PortResult<()> {
        Ok(())
    }
    async fn nodes(&self) -> PortResult<Vec<NodeLoad>> {
        Ok(Vec::new())
    }
}

/// Takes what comes, or fails it the first so many times.
#[derive(Default)]
struct Node {
    failures: Mutex<usize>,
    taken: Mutex<Vec<(MessageId, u8)>>,
    attempts: Mutex<Vec<u8>>,
    alarms: Mutex<Vec<Dead>>,
    /// Partitions of which nodes were told that they have another owner.
    new_owner: Mutex<BTreeSet<Partition>>,
    seen: watch::Sender<usize>,
}

#[async_trait]
impl Dispatch for Node {
    async fn deliver(&self, batch: Vec<Routed>) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for Routed { hint, .. } in batch {
            self.attempts.lock().push(hint.attempt.0);
            let mut failures = self.failures.lock();
            if *failures > 0 {
                *failures -= 1;
                outcomes.push(Outcome::Failed(Reason::NodeUnreachable));
            } else {
                self.taken.lock().push((hint.message.id, hint.attempt.0));
                outcomes.push(Outcome::Taken);
            }
        }
        self.seen.send_modify(|n| *n += outcomes.len());
        outcomes
    }
    async fn notify(&self, _: Vec<(UserId, schemas::view::StatusChange)>) {}
    async fn taken_over(&self, partitions: &[Partition]) {
        self.new_owner.lock().extend(partitions);
    }
    async fn alarm(&self, dead: &[Dead]) {
        self.alarms.lock().extend(dead.iter().cloned());
        self.seen.send_modify(|n| *n += 1);
    }
}

struct House {
    log: Arc<OneReader>,
    history: Arc<MemoryHistory>,
    node: Arc<Node>,
    presence: Arc<Some5>,
    clock: Arc<ManualClock>,
    limits: FlowLimits,
}

impl House {
    fn new() -> Self {
        let limits = FlowLimits { retry_first_ms: 1, commit_every_ms: 1, drain_ms: 2_000, ..FlowLimits::default() };
        let clock = Arc::new(ManualClock::at(Timestamp(1_000_000)));
        Self {
            log: Arc::default(),
            history: Arc::default(),
            node: Arc::default(),
            presence: Arc::default(),
            clock,
            limits,
        }
    }

    fn start(&self) -> Pipeline {
        let parts = crate::Parts {
            log: Arc::new(Joinable(self.log.clone())),
            history: self.history.clone(),
            presence: self.presence.clone(),
            dispatch: self.node.clone(),
            clock: self.clock.clone(),
            limits: Arc::new(Limits { flow: self.limits.clone(), ..Limits::default() }),
            instances: 1,
            functions: Vec::new(),
        };
        crate::start(parts, tokio::runtime::Handle::current()).unwrap()
    }

    async fn accept(&self, numbers: impl IntoIterator<Item = u64>) {
        let records = numbers.into_iter().map(|n| record::accepted(&message(n), 4)).collect();
        for answer in self.log.log.append(records).await {
            answer.unwrap();
        }
        self.log.came.notify_one();
    }

    /// Lets time pass until this holds; the deadline is real and generous.
    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = tokio::time::timeout(Duration::from_secs(20), async {
            while !holds(self) {
                self.clock.pass(1);
                // A yield in real time, not a wait for something: the condition is what is waited for.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        assert!(deadline.await.is_ok(), "not within 20 s: {what}");
    }

    /// Whether everything in the lanes is committed.
    fn committed(&self) -> bool {
        let commits = self.log.commits.lock();
        let ends = self.log.log.all(Topic::Lane(Priority::Normal));
        ends.iter().all(|record| commits.iter().any(|(at, next)| *at == record.at && *next > record.offset))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accepted_recorded_delivered_committed() {
    let house = House::new();
    house.accept(0..500).await;
    let pipeline = house.start();
    house.accept(500..1_000).await;
    house.until("all is committed", House::committed).await;
    let connected = (0..1_000).filter(|n| n % 10 < 5).count();
    assert_eq!(house.node.taken.lock().len(), connected);
    let parked: HashSet<MessageId> =
        house.log.log.facts().into_iter().filter(|f: &Fact| f.what == What::Parked).map(|f| f.id).collect();
    assert_eq!(parked.len(), 1_000 - connected);
    assert_eq!(house.history.written.lock().len(), 1_000);
    let Gauges { recorded, .. } = pipeline.gauges();
    assert_eq!(recorded, [0, 1_000, 0]);
    assert!(pipeline.failed().borrow().is_none());
    house.until("nodes hear of the new owner", |house| house.node.new_owner.lock().len() == 4).await;
    assert!(pipeline.stop().await, "drained in time");
}

/// In silence it would look like one that has nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_settler_or_a_sweep_that_panics_ends_the_pipeline() {
    for (call, who) in [("settle", "the settler"), ("due", "the sweep")] {
        let house = House::new();
        house.history.faults.set_panics(call);
        house.accept(0..10).await;
        let pipeline = house.start();
        house.until("it is told", |_| pipeline.failed().borrow().as_ref().is_some_and(|why| why.contains(who))).await;
        pipeline.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_recorded_before_a_crash_is_not_recorded_again() {
    let house = House::new();
    house.accept((0..50).map(|n| n * 10)).await;
    let pipeline = house.start();
    house.until("all is committed", House::committed).await;
    pipeline.stop().await;
    // As if the last commits had been lost.
    house.log.commits.lock().clear();
    let pipeline = house.start();
    house.until("all is committed again", House::committed).await;
    assert_eq!(house.history.written.lock().len(), 50, "one entry each");
    assert_eq!(house.node.taken.lock().len(), 100, "offered again: the session knows what it sent");
    assert!(pipeline.stop().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r4_2_six_retries_then_the_dead_letters() {
    let house = House::new();
    *house.node.failures.lock() = 7;
    house.accept([0]).await;
    let pipeline = house.start();
    house.until("it is buried", |house| !house.node.alarms.lock().is_empty()).await;
    assert_eq!(*house.node.attempts.lock(), [0, 1, 2, 3, 4, 5, 6]);
    house
        .until("its status is failed", |house| house.history.state(message(0).id).status() == schemas::Status::Failed)
        .await;
    assert_eq!(house.history.letters.lock().len(), 1);
    assert_eq!(house.log.log.all(Topic::Dead).len(), 1);
    assert!(pipeline.stop().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_cannot_be_read_is_buried_and_passed() {
    let house = House::new();
    let mut broken = record::accepted(&message(1), 4);
    broken.body = bytes::Bytes::from_static(b"\x01garbage");
    house.log.log.append(vec![broken]).await;
    house.accept([2]).await;
    let pipeline = house.start();
    house.until("all is committed", House::committed).await;
    let dead: Vec<_> = house.history.letters.lock().values().map(|d| (d.id, d.reason)).collect();
    assert_eq!(dead, [(message(1).id, Reason::Unreadable)]);
    assert_eq!(house.node.taken.lock().len(), 1);
    assert!(pipeline.stop().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_is_given_up_after_what_is_in_flight_is_done() {
    let house = House::new();
    house.accept(0..200).await;
    let pipeline = house.start();
    house.until("it works", |house| house.history.written.lock().len() > 10).await;
    house.log.revoke.lock().push(vec![Partition(1), Partition(2)]);
    house.log.came.notify_one();
    house.until("they are released", |house| house.log.released.lock().len() == 2).await;
    // Whatever was recorded of them is committed: nothing was cut off.
    let commits: BTreeMap<_, _> = house.log.commits.lock().iter().copied().collect();
    for record in house.log.log.all(Topic::Lane(Priority::Normal)) {
        let recorded = house.history.written.lock().iter().any(|(e, _)| Some(e.message.id) == record.headers.id);
        if recorded && [1, 2].contains(&record.at.partition.0) {
            assert!(commits.get(&record.at).is_some_and(|next| *next > record.offset));
        }
    }
    assert!(pipeline.stop().await);
}

/// R6.2: what the dataflow rests on is away, for longer than a breaker takes to open. Nothing is committed, nothing dropped,
/// what is in flight stays within its bound, and all flows within seconds of its return.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r6_2_a_store_that_is_away_pauses_the_flow_and_loses_nothing() {
    for (call, of_history) in [("record", true), ("take_over", true), ("append", false)] {
        let mut house = House::new();
        house.limits = FlowLimits { in_flight: 64, fetch_records: 16, ..house.limits };
        // Users 5 to 9 are not connected: that they wait is a fact for the log.
        house.accept((0..400).map(|n| n * 10 + 5)).await;
        let faults = if of_history { &house.history.faults } else { &house.log.log.faults };
        faults.set_away(call, true);
        let pipeline = house.start();
        let before = house.clock.mono();
        house.until("the breaker has opened and refused", |house| house.clock.mono().since(before) > 1_500).await;
        let committed = house.log.commits.lock().iter().map(|(_, next)| next.0).max().unwrap_or(0);
        assert_eq!(committed, 0, "{call}: nothing is committed past what is not done");
        let in_flight = pipeline.gauges().in_flight;
        assert!(in_flight.iter().sum::<u64>() <= 64 + 16, "{call}: {in_flight:?} in flight");
        faults.set_away(call, false);
        let back = house.clock.mono();
        house.until("all is committed", House::committed).await;
        assert!(house.clock.mono().since(back) < 5_000, "{call}: it flows within seconds");
        assert_eq!(house.history.written.lock().len(), 400, "{call}: each is recorded once");
        let parked = house.log.log.facts().iter().filter(|fact| fact.what == What::Parked).count();
        assert_eq!(parked, 400, "{call}");
        assert!(pipeline.stop().await, "{call}");
    }
}

/// Rule 5: a presence that is away costs no attempt; who is connected is offered the newest message once it is back, and
/// reads the others from the inbox.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_presence_that_is_away_charges_no_attempt_and_delivers_when_it_is_back() {
    let house = House::new();
    house.presence.0.store(true, Ordering::SeqCst);
    house.accept(0..100).await;
    let pipeline = house.start();
    house.until("all is recorded, parked and committed", House::committed).await;
    let charged = |house: &House| house.log.log.facts().iter().any(|fact| fact.what != What::Parked);
    assert!(!charged(&house) && house.node.taken.lock().is_empty());
    house.until("one hint a user is remembered", |_| pipeline.gauges().unlocated == 10).await;
    house.presence.0.store(false, Ordering::SeqCst);
    house.until("the five that are connected are offered", |house| house.node.taken.lock().len() == 5).await;
    let newest: HashSet<_> = (0..5).map(|user| message(90 + user).id).collect();
    assert_eq!(house.node.taken.lock().iter().map(|(id, _)| *id).collect::<HashSet<_>>(), newest);
    house.until("nobody is waited for", |_| pipeline.gauges().unlocated == 0).await;
    assert!(!charged(&house));
    assert!(pipeline.stop().await);
}

/// A partition that cannot be taken over holds up no other, and can be given up meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_takeover_that_hangs_holds_up_nobody_and_can_be_given_up() {
    let house = House::new();
    house.history.out_of_reach.lock().insert(Partition(2));
    house.accept(0..200).await;
    let pipeline = house.start();
    let others = |house: &House| {
        let commits = house.log.commits.lock();
        let records = house.log.log.all(Topic::Lane(Priority::Normal));
        let done = |record: &Record| commits.iter().any(|(at, next)| *at == record.at && *next > record.offset);
        records.iter().all(|record| done(record) == (record.at.partition != Partition(2)))
    };
    house.until("the others are committed", others).await;
    house.log.revoke.lock().push(vec![Partition(2)]);
    house.log.came.notify_one();
    house.until("it is released", |house| *house.log.released.lock() == [Partition(2)]).await;
    assert!(pipeline.stop().await);
}

/// A commit that is refused for one partition, because it is another's, holds up no other's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_commit_costs_its_partition_only() {
    let house = House::new();
    // To the log partition 1 is not this member's any more, and it has not said so yet.
    house.log.released.lock().push(Partition(1));
    house.accept(0..200).await;
    let pipeline = house.start();
    let others = |house: &House| {
        let commits = house.log.commits.lock();
        let records = house.log.log.all(Topic::Lane(Priority::Normal));
        let done = |record: &Record| commits.iter().any(|(at, next)| *at == record.at && *next > record.offset);
        records.iter().all(|record| done(record) == (record.at.partition != Partition(1)))
    };
    house.until("the others are committed", others).await;
    assert!(pipeline.failed().borrow().is_none());
    pipeline.stop().await;
}
