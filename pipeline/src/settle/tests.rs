//! What settling promises, against stores in memory and a clock that is turned by hand.

use std::{collections::HashMap, sync::atomic::Ordering};

use schemas::{
    Message, MessageId, Reason, Status,
    port::{Append, PortError},
    record::{self, Again},
    time::ManualClock,
};

use super::{
    telling::{Told, tellings},
    *,
};
use crate::memory::{MemoryDispatch, MemoryHistory, MemoryLog, PLACE, message, unavailable};

const ACK: u64 = 300;
const FIRST: u64 = 1_000;

/// A settler's worker with everything around it, driven by hand.
struct Bench {
    log: Arc<MemoryLog>,
    history: Arc<MemoryHistory>,
    clock: Arc<ManualClock>,
    limits: Arc<Limits>,
    handed: Arc<Handed>,
    worker: Worker,
    told: Told,
    /// The next record of `outcomes` to be read.
    read: HashMap<Partition, usize>,
    /// What was committed.
    committed: HashMap<Partition, usize>,
}

fn limits() -> Arc<Limits> {
    let mut limits = Limits::default();
    (limits.flow.ack_ms, limits.flow.retry_first_ms) = (ACK, FIRST);
    Arc::new(limits)
}

impl Bench {
    fn new() -> Self {
        let (log, history) = <(Arc<MemoryLog>, Arc<MemoryHistory>)>::default();
        let clock = Arc::new(ManualClock::at(Timestamp(1_000_000)));
        let (limits, handed) = (limits(), Arc::new(Handed::new(100)));
        let (worker, told) = hire(&log, &history, &clock, &limits, &handed);
        let (read, committed) = Default::default();
        Self { log, history, clock, limits, handed, worker, told, read, committed }
    }

    /// Keeps the `n`th message and gives it.
    fn keep(&self, n: u8) -> Arc<Message> {
        let message = message(n);
        self.history.keep(&message, Some(PLACE));
        message
    }

    fn fact(&self, message: &Message, round: u8, attempt: u8, what: What) -> Fact {
        Fact {
            id: message.id,
            inbox: message.inbox(4),
            position: PLACE,
            from: message.from.clone(),
            client_ref: None,
            at: self.clock.wall(),
            round,
            attempt: Attempt(attempt),
            device: None,
            what,
        }
    }

    /// These facts are appended and settled with all that follows at once.
    async fn say(&mut self, facts: Vec<Fact>) {
        for append in record::facts(facts) {
            self.log.push(append, self.clock.wall());
        }
        self.turn().await;
    }

    /// Settles until nothing new stands on `outcomes`.
    async fn turn(&mut self) {
        loop {
            let mut fresh = Vec::new();
            for record in self.log.all(Topic::Outcomes) {
                let read = self.read.entry(record.at.partition).or_default();
                if record.offset.0 as usize >= *read {
                    *read = record.offset.0 as usize + 1;
                    fresh.push(record);
                }
            }
            if fresh.is_empty() {
                break;
            }
            self.worker.gather(fresh);
            self.worker.settle().await.unwrap();
        }
        self.committed.extend(self.worker.watch.moved().map(|(p, offset)| (p, offset.0 as usize)));
    }

    /// So much time passes; what follows from it happens.
    async fn pass(&mut self, ms: u64) {
        self.clock.pass(ms);
        self.worker.expire().await.unwrap();
        self.turn().await;
    }

    /// The process dies and starts again: what was not committed is read again.
    async fn crash(&mut self) {
        self.handed = Arc::new(Handed::new(100));
        (self.worker, self.told) = hire(&self.log, &self.history, &self.clock, &self.limits, &self.handed);
        self.read = self.committed.clone();
        self.turn().await;
    }

    fn retries(&self) -> Vec<Again> {
        let tiers = schemas::tier::Tier::ALL.into_iter().map(Topic::Retry);
        tiers.flat_map(|tier| self.log.all(tier)).map(|r| schemas::codec::decode(&r.body).unwrap()).collect()
    }

    fn whats(&self, id: MessageId) -> Vec<What> {
        self.history.state(id).past.iter().map(|p| p.what).collect()
    }
}

fn hire(
    log: &Arc<MemoryLog>,
    history: &Arc<MemoryHistory>,
    clock: &Arc<ManualClock>,
    limits: &Arc<Limits>,
    handed: &Arc<Handed>,
) -> (Worker, Told) {
    let (teller, told) = tellings();
    let (limits, handed) = (limits.clone(), handed.clone());
    let (log, history, clock) = (log.clone(), history.clone(), clock.clone());
    let (ownership, gates) = (crate::testing::owning(1), crate::testing::gates());
    let parts = worker::Parts { log, history, clock, limits, handed, ownership, gates };
    let mut worker = Worker::new(parts, teller, CancellationToken::new());
    worker.assign((0..4).map(|p| (Partition(p), Epoch(1))).collect());
    (worker, told)
}

/// R4.1, R4.2, R4.5, R4.7: a phone that never acknowledges is tried after 1, 2, 4, 8, 16 and 32 s, then the message is
/// buried, administrators are told, and every attempt is in its history.
#[tokio::test]
async fn six_retries_then_the_dead_letters() {
    let mut bench = Bench::new();
    let message = bench.keep(1);
    for attempt in 0..=6 {
        bench.say(vec![bench.fact(&message, 0, attempt, What::Sent)]).await;
        assert_eq!(bench.worker.watch.armed(), 1, "attempt {attempt}");
        bench.pass(ACK - 1).await;
        assert_eq!(bench.retries().len(), usize::from(attempt), "not before its deadline");
        bench.pass(1).await;
        bench.pass(FIRST << attempt).await;
    }
    let retries = bench.retries();
    let delays = [1_000, 2_000, 4_000, 8_000, 16_000, 32_000];
    for (n, (again, delay)) in retries.iter().zip(delays).enumerate() {
        assert_eq!((again.attempt.0 as usize, again.round, again.position), (n + 1, 0, PLACE));
        let failed = bench
            .history
            .state(message.id)
            .past
            .into_iter()
            .find(|p| p.what == What::AttemptFailed(Reason::NoAck) && usize::from(p.attempt.0) == n);
        assert_eq!(again.due_at, failed.unwrap().at.plus_ms(delay));
    }
    assert_eq!(retries.len(), 6);
    let state = bench.history.state(message.id);
    assert_eq!((state.status(), state.reason()), (Status::Failed, Some(Reason::NoAck)));
    let letter = bench.history.letters.lock().get(&(message.id, 0)).cloned().unwrap();
    assert_eq!((letter.attempts, letter.reason, letter.position), (7, Reason::NoAck, PLACE));
    assert_eq!(bench.log.all(Topic::Dead).len(), 1);
    let alarms = std::iter::from_fn(|| bench.told.administrators.try_recv().ok());
    assert_eq!(alarms.map(|dead| dead.len()).collect::<Vec<_>>(), [1]);
    assert_eq!((bench.worker.watch.held(), bench.worker.watch.armed()), (0, 0), "everything may be committed");
}

/// R4.4: an acknowledgement in between sets Delivered and stops the retries, at every moment it may come.
#[tokio::test]
async fn an_acknowledgement_in_between_stops_the_retries() {
    for after in 0..3 {
        let mut bench = Bench::new();
        let message = bench.keep(1);
        for attempt in 0..after {
            bench.say(vec![bench.fact(&message, 0, attempt, What::Sent)]).await;
            bench.pass(ACK).await;
            bench.pass(FIRST << attempt).await;
        }
        bench.say(vec![bench.fact(&message, 0, after, What::Sent)]).await;
        bench.say(vec![bench.fact(&message, 0, after, What::Delivered)]).await;
        bench.pass(100 * ACK).await;
        assert_eq!(bench.retries().len(), usize::from(after));
        // The retry that was on its tier already finds it delivered; one that a session says was sent changes nothing.
        bench.say(vec![bench.fact(&message, 0, after + 1, What::Sent)]).await;
        bench.pass(100 * ACK).await;
        assert_eq!((bench.retries().len(), bench.worker.watch.held()), (usize::from(after), 0));
        assert_eq!(bench.history.state(message.id).status(), Status::Delivered);
    }
}

#[tokio::test]
async fn a_late_acknowledgement_between_the_deadline_and_the_look_is_seen() {
    let mut bench = Bench::new();
    let message = bench.keep(1);
    bench.say(vec![bench.fact(&message, 0, 0, What::Sent)]).await;
    // Merged by nobody here, but known to history by the time the deadline is judged.
    let late = bench.fact(&message, 0, 0, What::Delivered);
    schemas::port::Facts::settle(bench.history.as_ref(), &[late]).await.unwrap();
    bench.pass(ACK).await;
    assert!(bench.retries().is_empty());
    assert_eq!(bench.worker.watch.held(), 0);
}

#[tokio::test]
async fn devices_that_keep_connecting_use_up_no_retries_before_their_time() {
    let mut bench = Bench::new();
    let message = bench.keep(1);
    bench.say(vec![bench.fact(&message, 0, 0, What::Sent)]).await;
    bench.pass(ACK).await;
    assert_eq!(bench.retries().len(), 1);
    // The device is back at once and is sent it by catch-up, many times, while the retry waits for its second.
    for _ in 0..5 {
        bench.say(vec![bench.fact(&message, 0, 1, What::Sent)]).await;
        bench.pass(150).await;
    }
    assert_eq!(bench.retries().len(), 1, "750 ms: the retry is not even due");
    // The retry comes and finds it sent on that connection: one deadline, from when it was due.
    bench.pass(250).await;
    bench.say(vec![bench.fact(&message, 0, 1, What::Sent)]).await;
    bench.pass(ACK - 1).await;
    assert_eq!(bench.retries().len(), 1);
    bench.pass(1).await;
    assert_eq!(bench.retries().iter().map(|again| again.attempt.0).collect::<Vec<_>>(), [1, 2]);
}

#[tokio::test]
async fn a_crash_arms_again_what_was_waited_for() {
    let mut bench = Bench::new();
    let (first, second) = (bench.keep(1), bench.keep(2));
    bench.say(vec![bench.fact(&first, 0, 0, What::Sent), bench.fact(&second, 0, 0, What::Sent)]).await;
    bench.say(vec![bench.fact(&second, 0, 0, What::Delivered)]).await;
    bench.crash().await;
    assert_eq!(bench.worker.watch.armed(), 1, "only the one that nobody acknowledged");
    bench.pass(ACK).await;
    assert_eq!(bench.retries().iter().map(|again| again.id).collect::<Vec<_>>(), [first.id]);
    bench.crash().await;
    assert_eq!((bench.worker.watch.armed(), bench.worker.watch.held()), (0, 0), "its attempt failed already");
    bench.pass(100 * ACK).await;
    assert_eq!(bench.retries().len(), 1);
}

#[tokio::test]
async fn a_crash_between_the_retry_and_its_fact_repeats_and_loses_nothing() {
    let mut bench = Bench::new();
    let message = bench.keep(1);
    bench.say(vec![bench.fact(&message, 0, 0, What::Sent)]).await;
    // The tier's record became durable, then the process died: the same record again is what a replay makes.
    bench.clock.pass(ACK);
    let placed = schemas::port::Inboxes::messages(bench.history.as_ref(), &[message.id]).await.unwrap();
    let missed = crate::watch::Missed { id: message.id, round: 0, attempt: Attempt(0) };
    let verdict = missed::verdict(&missed, Reason::NoAck, placed[0].as_ref(), bench.clock.wall(), FIRST);
    let missed::Verdict::Retry(tier, again, _) = verdict else { panic!("{verdict:?}") };
    bench.log.push(missed::on_tier(tier, &again), bench.clock.wall());
    bench.crash().await;
    assert_eq!(bench.worker.watch.armed(), 1);
    // The retry is delivered before the old deadline falls again, and takes its place.
    bench.say(vec![bench.fact(&message, 0, 1, What::Sent)]).await;
    bench.pass(ACK).await;
    assert_eq!(bench.retries().iter().map(|again| again.attempt.0).collect::<Vec<_>>(), [1, 2]);
}

#[tokio::test]
async fn ports_that_fail_are_asked_again_and_nothing_is_released_before() {
    let mut bench = Bench::new();
    let message = bench.keep(1);
    for call in ["settle", "messages", "bury"] {
        bench.history.faults.next(call, unavailable());
        bench.history.faults.next(call, PortError::Unknown("timed out".into()));
    }
    bench.log.faults.next("append", unavailable());
    bench.log.faults.next("append", PortError::Unknown("timed out".into()));
    for attempt in 0..=6 {
        bench.say(vec![bench.fact(&message, 0, attempt, What::Sent)]).await;
        bench.pass(ACK + (FIRST << attempt)).await;
    }
    // The append whose fate was unknown stands there twice; it says the same.
    let attempts: Vec<_> = bench.retries().iter().map(|again| again.attempt.0).collect();
    assert_eq!(attempts, [1, 1, 2, 3, 4, 5, 6]);
    assert_eq!(bench.history.letters.lock().len(), 1);
    assert_eq!(bench.worker.watch.held(), 0);
}

#[tokio::test]
async fn a_fact_that_history_refuses_costs_itself_only() {
    let mut bench = Bench::new();
    let messages = [bench.keep(1), bench.keep(2)];
    let reject = || PortError::Rejected("too strange".into());
    // The whole call, then the first fact alone.
    bench.history.faults.next("settle", reject());
    bench.history.faults.next("settle", reject());
    let facts: Vec<_> = messages.iter().map(|m| bench.fact(m, 0, 0, What::Delivered)).collect();
    for append in record::facts(facts) {
        bench.log.push(append, bench.clock.wall());
    }
    bench.turn().await;
    let statuses = messages.each_ref().map(|m| bench.history.state(m.id).status());
    assert!(statuses.contains(&Status::Pending) && statuses.contains(&Status::Delivered), "{statuses:?}");
    assert_eq!(bench.worker.watch.held(), 0);
}

#[tokio::test]
async fn a_record_that_cannot_be_read_stops_nobody() {
    let mut bench = Bench::new();
    let message = bench.keep(1);
    let at = TopicPartition { topic: Topic::Outcomes, partition: message.inbox(4).partition };
    bench.log.push(Append { at, headers: Default::default(), body: "junk".into() }, Timestamp(0));
    bench.say(vec![bench.fact(&message, 0, 0, What::Read)]).await;
    assert_eq!(bench.history.state(message.id).status(), Status::Read);
    assert_eq!(bench.committed[&at.partition], 2);
}

/// Rule 9: what the owner decides about taking back.
#[tokio::test]
async fn a_cancel_is_granted_while_nobody_has_it() {
    let cancelled = What::Failed(Reason::Cancelled);
    // What happened before, whether dispatch has it, and whether the cancel is granted.
    let table: &[(&[What], bool, bool, &str)] = &[
        (&[], false, true, "accepted or scheduled"),
        (&[What::Parked], false, true, "parked"),
        (&[], true, false, "on its way to a socket"),
        (&[What::Sent], false, false, "with a device"),
        (&[What::Sent, What::Delivered], false, false, "acknowledged"),
        (&[What::Failed(Reason::Expired)], false, false, "given up"),
    ];
    for (before, handed, granted, case) in table {
        let mut bench = Bench::new();
        let message = bench.keep(1);
        let facts = before.iter().map(|what| bench.fact(&message, 0, 0, *what)).collect();
        bench.say(facts).await;
        if *handed {
            assert!(bench.handed.hand(message.id, message.accepted_at, bench.clock.mono()));
        }
        bench.say(vec![bench.fact(&message, 0, 0, What::CancelAsked)]).await;
        assert_eq!(bench.whats(message.id).contains(&cancelled), *granted, "{case}");
        if *granted {
            assert!(
                !bench.handed.hand(message.id, message.accepted_at, bench.clock.mono()),
                "{case}: it must not go out any more"
            );
            assert!(bench.history.state(message.id).is_withdrawn());
        }
        if *handed {
            continue;
        }
        // Asked again, by the sender or by a replay: decided already.
        bench.crash().await;
        bench.say(vec![bench.fact(&message, 0, 0, What::CancelAsked)]).await;
        let count = bench.whats(message.id).iter().filter(|what| **what == cancelled).count();
        assert_eq!(count, usize::from(*granted), "{case}");
    }
}

#[tokio::test]
async fn a_parked_message_can_be_taken_back_though_it_was_handed() {
    let mut bench = Bench::new();
    let message = bench.keep(1);
    assert!(bench.handed.hand(message.id, message.accepted_at, bench.clock.mono()));
    bench.say(vec![bench.fact(&message, 0, 0, What::Parked)]).await;
    bench.say(vec![bench.fact(&message, 0, 0, What::CancelAsked)]).await;
    assert_eq!(bench.history.state(message.id).reason(), Some(Reason::Cancelled));
}

/// R9.6: a business sender is told the last of what changed at once, and not twice.
#[tokio::test]
async fn senders_are_told_of_changes_once() {
    let mut bench = Bench::new();
    let message = bench.keep(1);
    let facts = vec![bench.fact(&message, 0, 0, What::Sent), bench.fact(&message, 0, 0, What::Delivered)];
    bench.say(facts.clone()).await;
    bench.say(facts).await;
    let mut server = bench.fact(&bench.keep(2), 0, 0, What::Delivered);
    server.from = schemas::Sender::Server;
    bench.say(vec![server]).await;
    assert!(bench.told.administrators.try_recv().is_err());
    let told: Vec<_> = std::iter::from_fn(|| bench.told.senders.try_recv().ok()).collect();
    let [notes] = &told[..] else { panic!("{} tellings", told.len()) };
    let [(user, change)] = &notes[..] else { panic!("{notes:?}") };
    assert_eq!((user.to_string(), change.status), ("acme/business:sara".to_owned(), Status::Delivered));
}

/// The whole task, with its sweep, through its handle.
#[tokio::test]
async fn a_settler_takes_settles_gives_up_and_stops() {
    let (log, history) = <(Arc<MemoryLog>, Arc<MemoryHistory>)>::default();
    let (dispatch, clock) = (Arc::new(MemoryDispatch::default()), Arc::new(ManualClock::at(Timestamp(5))));
    let (feed, _fed) = mpsc::channel(4);
    let bench = Bench::new();
    let parts = SettlerParts {
        log: log.clone(),
        history: history.clone(),
        dispatch: dispatch.clone(),
        clock: clock.clone(),
        limits: limits(),
        handed: Arc::new(Handed::new(10)),
        ownership: crate::testing::owning(1),
        gates: crate::testing::gates(),
        crowd: Arc::default(),
        feed,
        failed: Failed::channel().0,
    };
    let settler = Settler::start(parts, &tokio::runtime::Handle::current());
    let message = message(1);
    history.keep(&message, Some(PLACE));
    let p = message.inbox(4).partition;
    let said = |what| {
        let append = record::facts(vec![bench.fact(&message, 0, 0, what)]).remove(0);
        log.push(append, Timestamp(5))
    };
    let at = TopicPartition { topic: Topic::Outcomes, partition: p };
    settler.take(vec![said(What::Parked)]).await;
    settler.assign(vec![(p, Epoch(1))]).await;
    assert!(settler.done().is_empty(), "what came before the assignment is not its own");
    settler.take(vec![log.all(Topic::Outcomes).remove(0), said(What::Delivered), said(What::Read)]).await;
    let sent = {
        let other = (2..50).map(crate::memory::message).find(|m| m.inbox(4).partition == p).unwrap();
        history.keep(&other, Some(PLACE));
        let append = record::facts(vec![bench.fact(&other, 0, 0, What::Sent)]).remove(0);
        log.push(append, Timestamp(5))
    };
    settler.take(vec![sent]).await;
    // The deadline runs in the settler's own time; the clock is turned and the tier's record comes.
    dispatch.told.notified().await;
    // An answer comes after everything before it.
    settler.revoke(vec![]).await;
    assert_eq!((settler.armed(), settler.done()), (1, vec![(at, Offset(3))]));
    clock.pass(ACK);
    log.until(|log| log.all(Topic::Retry(schemas::tier::Tier::ALL[0])).len() == 1 && log.facts().len() == 5).await;
    settler.revoke(vec![p]).await;
    assert_eq!(settler.done(), [(at, Offset(4))], "the offset is free once what follows is durable");
    assert!(settler.done().is_empty());
    assert_eq!((settler.armed(), history.state(message.id).status()), (0, Status::Read));
    assert!(history.settles.load(Ordering::SeqCst) <= 2, "what waits together is settled together");
    settler.stop().await;
}

/// Deadlines are counted in time that does not jump, an hour forth or two back.
#[tokio::test]
async fn a_clock_that_is_turned_moves_no_deadline() {
    let mut bench = Bench::new();
    let message = bench.keep(1);
    bench.say(vec![bench.fact(&message, 0, 0, What::Sent)]).await;
    for jump in [3_600_000, -7_200_000] {
        bench.clock.jump(jump);
        bench.pass(ACK / 2 - 1).await;
        assert!(bench.retries().is_empty());
    }
    bench.pass(2).await;
    assert_eq!(bench.retries().len(), 1);
}

/// Of several partitions one is another owner's by now: its facts are dropped, nothing of it is released, the others go on.
#[tokio::test]
async fn a_partition_that_was_overtaken_is_dropped_and_the_others_go_on() {
    let bench = Bench::new();
    let Bench { log, history, clock, limits, handed, .. } = &bench;
    let ownership = crate::testing::owning(1);
    let parts = worker::Parts {
        log: log.clone(),
        history: history.clone(),
        clock: clock.clone(),
        limits: limits.clone(),
        handed: handed.clone(),
        ownership: ownership.clone(),
        gates: crate::testing::gates(),
    };
    let (teller, _told) = tellings();
    let mut worker = Worker::new(parts, teller, CancellationToken::new());
    worker.assign((0..4).map(|p| (Partition(p), Epoch(1))).collect());
    let mut all: Vec<_> = (1..50).map(|n| bench.keep(n)).collect();
    all.sort_by_key(|message| message.inbox(4).partition);
    let (mine, theirs) = (all.remove(0), all.pop().unwrap());
    let (p, q) = (mine.inbox(4).partition, theirs.inbox(4).partition);
    assert!(p < q);
    let facts = vec![bench.fact(&mine, 0, 0, What::Delivered), bench.fact(&theirs, 0, 0, What::Delivered)];
    let records: Vec<_> = record::facts(facts).into_iter().map(|append| log.push(append, Timestamp(5))).collect();
    // Together they are refused; alone the first partitions are taken and the other is refused.
    history.faults.next("settle", PortError::Fenced("overtaken".into()));
    history.faults.pass("settle");
    history.faults.next("settle", PortError::Fenced("overtaken".into()));
    worker.gather(records);
    worker.settle().await.unwrap();
    assert_eq!(ownership.take_lost(), [(q, Epoch(1))]);
    assert_eq!(worker.moved().iter().map(|(at, _)| *at).collect::<Vec<_>>(), [p], "nothing of the other is committed");
    assert_eq!(history.state(mine.id).status(), Status::Delivered);
    assert_eq!(history.state(theirs.id).status(), Status::Pending);
}
