//! The whole pipeline on a log in memory: what is read, fed, held back, committed and given up.

use std::collections::HashSet;

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

/// Users up to 4 are connected, others are not.
struct Some5;

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
    async fn alarm(&self, dead: &[Dead]) {
        self.alarms.lock().extend(dead.iter().cloned());
        self.seen.send_modify(|n| *n += 1);
    }
}

struct House {
    log: Arc<OneReader>,
    history: Arc<MemoryHistory>,
    node: Arc<Node>,
    clock: Arc<ManualClock>,
    limits: FlowLimits,
}

impl House {
    fn new() -> Self {
        let limits = FlowLimits { retry_first_ms: 1, commit_every_ms: 1, drain_ms: 2_000, ..FlowLimits::default() };
        let clock = Arc::new(ManualClock::at(Timestamp(1_000_000)));
        Self { log: Arc::default(), history: Arc::default(), node: Arc::default(), clock, limits }
    }

    fn start(&self) -> Pipeline {
        let parts = crate::Parts {
            log: Arc::new(Joinable(self.log.clone())),
            history: self.history.clone(),
            presence: Arc::new(Some5),
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
    assert!(pipeline.stop().await, "drained in time");
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
async fn what_is_in_flight_is_bounded_and_goes_on() {
    let mut house = House::new();
    house.limits = FlowLimits { in_flight: 64, fetch_records: 16, ..house.limits };
    house.history = Arc::new(MemoryHistory { gate: crate::testing::Gate::closed(), ..MemoryHistory::default() });
    house.accept(0..400).await;
    let pipeline = house.start();
    let lane = |house: &House| house.log.paused.lock().iter().any(|at| at.topic == Topic::Lane(Priority::Normal));
    house.until("the lane is paused", lane).await;
    house
        .until("all is committed", |house| {
            while house.history.gate.let_go(0) {}
            house.committed()
        })
        .await;
    assert_eq!(house.history.written.lock().len(), 400);
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
