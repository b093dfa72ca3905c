//! The three flows of an instance, with ports that end when the test says so, in any order.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use proptest::prelude::*;
use schemas::{
    DeviceId, Inbox, Limits, MessageId, NodeId, Priority, Reason, SessionId, Timestamp, Topic, UserId, What, codec,
    limits::{ChatLimits, FlowLimits},
    port::{Dead, Dispatch, NodeLoad, Outcome, Place, PortResult, Presence, Routed, Taken},
    record::Again,
    tier::Tier,
    time::ManualClock,
};
use timely::worker::Worker;
use tokio::sync::mpsc::{Sender, channel};

use super::*;
use crate::{
    gauges::Counters,
    handed::Handed,
    item::Item,
    memory::{MemoryHistory, MemoryLog},
    progress::Progress,
    rim::Rim,
    shared::{Kit, Ports},
    testing::{self, Gate, fresh, message},
};

mod chat;

/// Everyone is connected but user 9.
#[derive(Default)]
struct Everywhere(Gate);

#[async_trait]
impl Presence for Everywhere {
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
        self.0.pass().await;
        let session = SessionId(message(1).id.0);
        let (node, device) = (NodeId::parse("n").unwrap(), DeviceId::parse("d").unwrap());
        let place = Place { node, device, session, number: 1 };
        Ok(users.iter().map(|u| if u.to_string().ends_with('9') { vec![] } else { vec![place.clone()] }).collect())
    }
    async fn heartbeat(&self, _: &NodeLoad) -> PortResult<()> {
        Ok(())
    }
    async fn nodes(&self) -> PortResult<Vec<NodeLoad>> {
        Ok(Vec::new())
    }
}

/// What comes to user 8 fails, what comes to user 7 finds nobody any more.
fn outcome_of(user: &UserId) -> Outcome {
    match user.to_string().as_bytes().last() {
        Some(b'8') => Outcome::Failed(Reason::NodeUnreachable),
        Some(b'7') => Outcome::Absent,
        _ => Outcome::Taken,
    }
}

#[derive(Default)]
struct Deliveries {
    gate: Gate,
    history: Arc<MemoryHistory>,
    handed: Mutex<Vec<(MessageId, UserId, Priority)>>,
    ended: Mutex<HashMap<MessageId, usize>>,
    early: Mutex<Vec<MessageId>>,
}

#[async_trait]
impl Dispatch for Deliveries {
    async fn deliver(&self, batch: Vec<Routed>) -> Vec<Outcome> {
        for routed in &batch {
            let message = &routed.hint.message;
            self.handed.lock().push((message.id, message.to.clone(), message.priority));
            // Rule 1: whatever was handed to history before this entry is durable now.
            let written = self.history.written.lock();
            let until = written.iter().position(|(entry, _)| entry.message.id == message.id);
            if until.is_none_or(|until| written[..=until].iter().any(|(_, durable)| !durable)) {
                self.early.lock().push(message.id);
            }
        }
        self.gate.pass().await;
        for routed in &batch {
            *self.ended.lock().entry(routed.hint.message.id).or_default() += 1;
        }
        batch.iter().map(|routed| outcome_of(&routed.hint.inbox.user)).collect()
    }
    async fn notify(&self, _: Vec<(UserId, schemas::view::StatusChange)>) {}
    async fn alarm(&self, _: &[Dead]) {}
}

/// An instance without its intake.
struct Bench {
    rim: Rim,
    feeds: Option<[(Sender<Feed>, Arc<Wake>); 3]>,
    epochs: [u64; 3],
    progress: Arc<Progress>,
    history: Arc<MemoryHistory>,
    log: Arc<MemoryLog>,
    deliveries: Arc<Deliveries>,
    clock: Arc<ManualClock>,
    gate: Gate,
    counters: Arc<Counters>,
    handed: Arc<Handed>,
}

fn limits() -> FlowLimits {
    let small = FlowLimits::default();
    FlowLimits { batch: 5, credits: 8, eager_batches: 2, window_ids: 10_000, tails: 4, ..small }
}

impl Bench {
    fn new(worker: &mut Worker, gate: Gate) -> Self {
        let history = Arc::new(MemoryHistory { gate: gate.clone(), ..MemoryHistory::default() });
        Self::over(worker, gate, history, Arc::default())
    }

    /// On what another life of the process has left.
    fn over(worker: &mut Worker, gate: Gate, history: Arc<MemoryHistory>, log: Arc<MemoryLog>) -> Self {
        Self::with(worker, gate, history, log, ChatLimits { kept: 4, ..ChatLimits::default() })
    }

    fn with(
        worker: &mut Worker,
        gate: Gate,
        history: Arc<MemoryHistory>,
        log: Arc<MemoryLog>,
        chat: ChatLimits,
    ) -> Self {
        let deliveries = Deliveries { gate: gate.clone(), history: history.clone(), ..Deliveries::default() };
        let deliveries = Arc::new(deliveries);
        let (progress, counters) = (Arc::new(Progress::default()), Arc::new(Counters::new(10)));
        let clock = Arc::new(ManualClock::at(Timestamp(1_000)));
        let handed = Arc::new(Handed::new(10_000));
        let ports = Ports {
            log: log.clone(),
            history: history.clone(),
            presence: Arc::new(Everywhere(gate.clone())),
            dispatch: deliveries.clone(),
        };
        let kit = Kit {
            ports,
            clock: clock.clone(),
            limits: Arc::new(Limits { flow: limits(), chat, ..Limits::default() }),
            handed: handed.clone(),
            progress: progress.clone(),
            counters: counters.clone(),
            ownership: crate::testing::owning(1),
            gates: crate::testing::gates(),
            functions: Arc::new([]),
        };
        let rim = Rim::new();
        let shared = Shared::new(kit, rim.clone());
        let feeds = Priority::ALL.map(|lane| {
            let (send, receive) = channel(1_000);
            let bell = worker.dataflow_named(lane.word(), |scope| flow(scope, lane, &shared, receive));
            (send, bell)
        });
        let (feeds, epochs) = (Some(feeds), [0; 3]);
        Self { rim, feeds, epochs, progress, history, log, deliveries, clock, gate, counters, handed }
    }

    /// Feeds an epoch of a lane; gives its number.
    fn feed(&mut self, lane: usize, items: Vec<Item>) -> u64 {
        let epoch = self.epochs[lane];
        self.epochs[lane] += 1;
        let (send, bell) = &self.feeds.as_ref().unwrap()[lane];
        send.try_send(Feed { epoch, items }).ok().unwrap();
        bell.ring();
        epoch
    }

    fn turn(&self, worker: &mut Worker) {
        for _ in 0..20 {
            self.rim.turn();
            worker.step();
        }
    }

    /// Lets everything end that still waits, and closes the lanes.
    fn finish(&mut self, worker: &mut Worker) {
        for (_, bell) in self.feeds.take().into_iter().flatten() {
            bell.ring();
        }
        self.turn(worker);
        while self.gate.let_go(7) {
            self.turn(worker);
        }
    }

    fn ways_of(&self) -> BTreeMap<MessageId, Vec<&'static str>> {
        let mut ways = BTreeMap::<_, Vec<_>>::new();
        for (id, times) in self.deliveries.ended.lock().iter() {
            ways.entry(*id).or_default().extend(vec!["delivered"; *times]);
        }
        for fact in self.log.facts() {
            if fact.what == What::Parked {
                ways.entry(fact.id).or_default().push("parked");
            }
        }
        for record in self.log.all(Topic::Retry(Tier::ALL[0])) {
            let again: Again = codec::decode(&record.body).unwrap();
            assert_eq!(again.attempt.0, 1);
            ways.entry(again.id).or_default().push("retried");
        }
        ways
    }
}

/// Runs on this thread, with a runtime whose timers exist and are not waited for.
fn bench<T: Send + 'static>(gate: Gate, test: impl FnOnce(&mut Worker, Bench) -> T + Send + Sync + 'static) -> T {
    timely::execute_directly(move |worker| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
        let _entered = runtime.enter();
        let bench = Bench::new(worker, gate);
        let verdict = test(worker, bench);
        // A test that failed leaves work behind: without this its dataflows would be waited for.
        worker.installed_dataflows().into_iter().for_each(|flow| worker.drop_dataflow(flow));
        verdict
    })
}

#[derive(Debug, Clone)]
enum Step {
    Feed(Vec<u64>),
    LetGo(usize),
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => proptest::collection::vec(0u64..120, 1..12).prop_map(Step::Feed),
        5 => any::<usize>().prop_map(Step::LetGo),
        1 => (1u64..5).prop_map(Step::Pass),
    ];
    proptest::collection::vec(step, 1..80)
}

fn expected(id: MessageId, user: &UserId, ways: &BTreeMap<MessageId, Vec<&'static str>>) -> bool {
    let ways = ways.get(&id).map_or(&[][..], Vec::as_slice);
    match (user.to_string().as_bytes().last(), outcome_of(user)) {
        (Some(b'9'), _) => ways == ["parked"],
        (_, Outcome::Taken) => ways == ["delivered"],
        (_, Outcome::Absent) => ways == ["delivered", "parked"],
        (_, Outcome::Failed(_)) => ways == ["delivered", "retried"],
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    // Invariant 3, 4 and 5 for the flow: whatever ends in whatever order, no frontier passes unfinished work, nothing is
    // lost, nothing doubled, the order within (recipient, lane) is the log's, positions are dense and releases in order.
    #[test]
    fn whatever_ends_in_whatever_order(steps in steps()) {
        let verdict = bench(Gate::closed(), move |worker, mut bench| -> Result<(), TestCaseError> {
            // First occurrences: the id's user, lane, epoch.
            let mut fed = Vec::<(MessageId, UserId, usize, u64)>::new();
            let mut seen = HashSet::new();
            for step in steps {
                match step {
                    Step::Feed(numbers) => for lane in 0..3 {
                        // A message's lane is part of what it is: the same number always comes in the same lane.
                        let items: Vec<_> = numbers.iter().filter(|n| (*n / 10) as usize % 3 == lane).map(|n| {
                            let mut message = message(*n);
                            message.priority = Priority::ALL[lane];
                            message
                        }).collect();
                        if items.is_empty() { continue; }
                        let names: Vec<_> = items.iter().map(|m| (m.id, m.to.clone())).collect();
                        let epoch = bench.feed(lane, items.into_iter().map(fresh).collect());
                        for (id, user) in names { if seen.insert(id) { fed.push((id, user, lane, epoch)); } }
                    },
                    Step::LetGo(which) => { bench.gate.let_go(which); }
                    Step::Pass(ms) => bench.clock.pass(ms),
                }
                bench.turn(worker);
                let ways = bench.ways_of();
                for (id, user, lane, epoch) in &fed {
                    let done = expected(*id, user, &ways);
                    let frontier = bench.progress.of(Priority::ALL[*lane]);
                    prop_assert!(done || frontier <= *epoch, "epoch {epoch} was passed before its work was done");
                }
            }
            bench.finish(worker);
            let ways = bench.ways_of();
            for (id, user, ..) in &fed {
                prop_assert!(expected(*id, user, &ways), "{user} {:?}", ways.get(id));
            }
            prop_assert!(Priority::ALL.into_iter().all(|lane| bench.progress.of(lane) == u64::MAX));
            prop_assert!(!worker.has_dataflows(), "the flows have ended");
            prop_assert_eq!(&*bench.deliveries.early.lock(), &Vec::<MessageId>::new());
            // The order of handing over, within a recipient and lane, is the order of feeding.
            let mut lines = BTreeMap::<(UserId, Priority), Vec<MessageId>>::new();
            for (id, user, priority) in bench.deliveries.handed.lock().iter() {
                lines.entry((user.clone(), *priority)).or_default().push(*id);
            }
            for ((user, priority), line) in lines {
                let due: Vec<_> = fed.iter()
                    .filter(|(_, u, lane, _)| *u == user && Priority::ALL[*lane] == priority).map(|f| f.0).collect();
                prop_assert_eq!(line, due);
            }
            // Positions: dense in every inbox, in the order of writing, each pointing at the one before.
            let mut ends = HashMap::<Inbox, schemas::Position>::new();
            for (entry, durable) in bench.history.written.lock().iter() {
                let end = ends.entry(entry.inbox.clone()).or_default();
                prop_assert!(*durable && entry.prev == *end && entry.position.n == end.n + 1);
                *end = entry.position;
            }
            Ok(())
        });
        verdict?;
    }
}

#[test]
fn an_unconfirmed_write_is_repeated_and_nothing_overtakes_it() {
    bench(Gate::default(), |worker, mut bench| {
        bench.history.faults.next("record", schemas::port::PortError::Unavailable("busy".into()));
        for n in 0..4 {
            bench.feed(0, vec![fresh(message(n * 10))]);
            bench.turn(worker);
        }
        // On a busy machine the first may have been repeated by now: then they are released after it, else not at all.
        let told = [0, 10, 20, 30].map(|n| message(n).id);
        let handed: Vec<_> = bench.deliveries.handed.lock().iter().map(|h| h.0).collect();
        let repeated = bench.history.written.lock().iter().any(|(entry, _)| entry.message.id == told[0]);
        assert_eq!(if repeated { 0 } else { handed.len() }, 0, "three later writes wait for the first");
        assert!(told.starts_with(&handed), "nothing overtakes the first");
        for (_, bell) in bench.feeds.take().into_iter().flatten() {
            bell.ring();
        }
        while worker.has_dataflows() {
            bench.rim.turn();
            worker.step_or_park(None);
        }
        let handed: Vec<_> = bench.deliveries.handed.lock().iter().map(|h| h.0).collect();
        assert_eq!(handed, told);
    });
}

#[test]
fn what_expired_is_recorded_and_failed_and_never_sent() {
    bench(Gate::default(), |worker, mut bench| {
        let mut late = message(1);
        late.expires_at = Some(Timestamp(500));
        bench.feed(1, vec![fresh(late.clone()), fresh(message(11))]);
        bench.finish(worker);
        assert_eq!(bench.history.written.lock().len(), 2);
        let ends: Vec<_> =
            bench.history.written.lock().iter().map(|(e, _)| e.end.as_ref().map(|end| end.what)).collect();
        assert_eq!(ends, [Some(What::Failed(Reason::Expired)), None], "its end is recorded with it");
        let facts = bench.log.facts();
        assert_eq!((facts[0].id, facts[0].what), (late.id, What::Failed(Reason::Expired)));
        assert_eq!(bench.deliveries.handed.lock().iter().map(|h| h.0).collect::<Vec<_>>(), [message(11).id]);
    });
}

#[test]
fn a_retry_reads_the_state_first() {
    bench(Gate::default(), |worker, mut bench| {
        bench.feed(1, vec![fresh(message(1)), fresh(message(2))]);
        bench.turn(worker);
        let past = schemas::fact::Past {
            at: Timestamp(1),
            what: What::Delivered,
            round: 0,
            attempt: Default::default(),
            device: None,
        };
        bench.history.facts.lock().entry(message(1).id).or_default().merge(past);
        bench.feed(1, vec![testing::again(1, 0, 1), testing::again(2, 0, 1), testing::again(2, 0, 1)]);
        bench.finish(worker);
        let ended = bench.deliveries.ended.lock();
        assert_eq!(ended[&message(1).id], 1, "delivered meanwhile: nothing more is tried (R4.4)");
        assert_eq!(ended[&message(2).id], 2, "tried again, once per attempt");
        assert_eq!(bench.counters.of(Priority::Normal).repeats.load(std::sync::atomic::Ordering::Relaxed), 1);
    });
}

#[test]
fn the_same_name_with_another_body_is_buried_apart() {
    bench(Gate::default(), |worker, mut bench| {
        let mut other = message(1);
        other.fingerprint = [9; 16];
        bench.feed(1, vec![fresh(message(1)), fresh(other)]);
        bench.finish(worker);
        let letters = bench.history.letters.lock();
        let dead = letters.values().next().unwrap();
        assert_eq!((letters.len(), dead.reason), (1, Reason::IdempotencyConflict));
        assert_ne!(dead.id, message(1).id, "the original keeps its name and its status");
        assert_eq!(bench.deliveries.handed.lock().len(), 1);
        assert_eq!(bench.log.all(Topic::Dead).len(), 1);
        assert!(bench.log.facts().is_empty());
    });
}

#[test]
fn a_cancelled_message_is_not_handed_over() {
    bench(Gate::closed(), |worker, mut bench| {
        bench.feed(1, vec![fresh(message(1)), fresh(message(2))]);
        bench.turn(worker);
        assert!(bench.handed.withdraw(message(1).id, schemas::Millis(0)), "it waits for history: not too late");
        bench.finish(worker);
        assert_eq!(bench.deliveries.handed.lock().iter().map(|h| h.0).collect::<Vec<_>>(), [message(2).id]);
        assert!(!bench.handed.withdraw(message(2).id, schemas::Millis(0)), "too late");
    });
}
