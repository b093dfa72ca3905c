//! What the sweep promises, against stores in memory and a clock that is turned by hand.

use schemas::{Message, Position, Status, fact::Past, port::Dead, tier::Attempt, time::ManualClock};

use super::*;
use crate::memory::{MemoryHistory, MemoryLog, PLACE, message, unavailable};

struct Bench {
    log: Arc<MemoryLog>,
    history: Arc<MemoryHistory>,
    clock: Arc<ManualClock>,
    fed: mpsc::Receiver<Vec<DueItem>>,
    ownership: Arc<Ownership>,
    crowd: Arc<Crowd>,
    sweep: Sweep,
}

/// All partitions, since their `n`th takeover.
fn all(n: u32) -> BTreeMap<Partition, Epoch> {
    (0..4).map(|p| (Partition(p), Epoch(n))).collect()
}

fn bench(rows: usize) -> Bench {
    bench_with_room(rows, 100)
}

fn bench_with_room(rows: usize, room: usize) -> Bench {
    let (log, history) = <(Arc<MemoryLog>, Arc<MemoryHistory>)>::default();
    let clock = Arc::new(ManualClock::at(Timestamp(1_000_000)));
    let mut limits = Limits::default();
    (limits.flow.due_rows, limits.flow.due_every_ms) = (rows, 1);
    let (feed, fed) = mpsc::channel(room);
    let crowd = Arc::new(Crowd::default());
    let ownership = Arc::new(Ownership::of(4));
    all(1).into_iter().for_each(|(partition, epoch)| ownership.took(partition, epoch));
    let sweep = Sweep::new(SweepParts {
        log: log.clone(),
        history: history.clone(),
        clock: clock.clone(),
        limits: Arc::new(limits),
        ownership: ownership.clone(),
        gates: crate::testing::gates(),
        crowd: crowd.clone(),
        feed,
        stop: CancellationToken::new(),
    });
    Bench { log, history, clock, fed, ownership, crowd, sweep }
}

impl Bench {
    fn scheduled(&self, n: u8, in_ms: u64) -> Due {
        self.scheduled_in(Priority::Normal, n, in_ms)
    }

    fn scheduled_in(&self, lane: Priority, n: u8, in_ms: u64) -> Due {
        let message = Arc::new(Message { priority: lane, ..(*message(n)).clone() });
        self.history.keep(&message, None);
        let (at, partition) = (self.clock.wall().plus_ms(in_ms), message.inbox(4).partition);
        let due = Due { partition, at, id: message.id, kind: DueKind::Send(message) };
        self.history.dues.lock().push(due.clone());
        due
    }

    fn expiring(&self, n: u8, in_ms: u64) -> Arc<Message> {
        let message = message(n);
        self.history.keep(&message, Some(PLACE));
        let (at, inbox) = (self.clock.wall().plus_ms(in_ms), message.inbox(4));
        let kind = DueKind::Expire { id: message.id, inbox: inbox.clone(), position: PLACE };
        self.history.dues.lock().push(Due { partition: inbox.partition, at, id: message.id, kind });
        message
    }

    fn happened(&self, id: MessageId, what: What) {
        self.happened_in(0, id, what);
    }

    fn happened_in(&self, round: u8, id: MessageId, what: What) {
        let past = Past { at: Timestamp(1), what, round, attempt: Attempt(0), device: None };
        self.history.facts.lock().entry(id).or_default().merge(past);
    }

    /// One look; what it fed.
    async fn look(&mut self) -> Vec<Due> {
        self.look_since(1).await
    }

    async fn look_since(&mut self, takeover: u32) -> Vec<Due> {
        self.sweep.look(&all(takeover)).await;
        std::iter::from_fn(|| self.fed.try_recv().ok()).flatten().map(|item| item.due).collect()
    }
}

#[tokio::test]
async fn a_scheduled_message_is_fed_when_due_and_once() {
    let mut bench = bench(1_000);
    let due = bench.scheduled(1, 5_000);
    assert!(bench.look().await.is_empty());
    bench.clock.pass(5_000);
    assert_eq!(bench.look().await, std::slice::from_ref(&due));
    assert!(bench.look().await.is_empty(), "it is in flight");
    // Recorded: the row is done with. The same message scheduled anew is another row.
    bench.history.dues.lock().clear();
    assert!(bench.look().await.is_empty());
    bench.history.dues.lock().push(due.clone());
    assert_eq!(bench.look().await, [due]);
}

#[tokio::test]
async fn a_partition_that_comes_back_feeds_what_is_still_there() {
    let mut bench = bench(1_000);
    let due = bench.scheduled(1, 0);
    assert_eq!(bench.look().await.len(), 1);
    bench.sweep.look(&BTreeMap::new()).await;
    assert_eq!(bench.look().await, std::slice::from_ref(&due));
    assert!(bench.look().await.is_empty());
    assert_eq!(bench.look_since(2).await, [due], "it went and came back between two looks");
}

#[tokio::test]
async fn more_than_a_look_s_rows_are_all_fed_once_as_they_are_done_with() {
    let mut bench = bench(2);
    let mut left: Vec<_> = (1..40).map(|n| bench.scheduled(n, u64::from(n % 7))).collect();
    bench.clock.pass(10);
    let mut fed = Vec::new();
    while !left.is_empty() {
        let new = bench.look().await;
        for due in new {
            assert!(left.contains(&due) && !fed.contains(&due.id), "fed twice");
            fed.push(due.id);
        }
        // Some of those in flight are recorded, the newest first.
        let Some(id) = fed.iter().rev().find(|id| left.iter().any(|due| due.id == **id)).copied() else { continue };
        left.retain(|due| due.id != id);
        bench.history.dues.lock().retain(|due| due.id != id);
    }
    assert_eq!(fed.len(), 39);
}

/// What a look sees does not say what it cannot see: a row in flight beyond the end of a full look is not forgotten.
#[test]
fn a_row_in_flight_beyond_a_full_look_is_not_forgotten() {
    let row = |n: u8, at: i64| {
        let message = message(n);
        Due { partition: Partition(0), at: Timestamp(at), id: message.id, kind: DueKind::Send(message) }
    };
    let mut swept = Swept::default();
    swept.fed.insert(row(9, 50).id, Timestamp(50));
    let older = vec![row(1, 10), row(2, 20)];
    assert_eq!(swept.fresh(older.clone(), 2).len(), 2);
    assert!(swept.fed.contains_key(&row(9, 50).id));
    assert_eq!(swept.fresh(vec![row(9, 50)], 2), [], "still in flight");
    swept.fresh(older, 3);
    assert!(swept.fed.is_empty(), "a look that was not full saw everything");
}

#[tokio::test]
async fn a_full_flow_holds_up_nothing_that_expires() {
    let mut bench = bench_with_room(1_000, 1);
    let rows: Vec<_> = (1..20).map(|n| bench.scheduled(n, 0)).collect();
    let partitions = rows.iter().map(|due| due.partition).collect::<std::collections::BTreeSet<_>>();
    let expired: Vec<_> = (20..40).map(|n| bench.expiring(n, 0)).collect();
    bench.sweep.look(&all(1)).await;
    assert_eq!(bench.log.facts().len(), expired.len());
    let mut fed = Vec::new();
    for _ in 0..partitions.len() {
        fed.extend(bench.look().await.into_iter().map(|due| due.id));
    }
    fed.sort();
    assert_eq!(fed, rows.iter().map(|due| due.id).collect::<Vec<_>>(), "each once, as there was room");
}

/// A full lane keeps no other's scheduled messages back, and has its own once there is room.
#[tokio::test]
async fn what_is_due_of_a_full_lane_waits_and_nothing_else_does() {
    let mut bench = bench(1_000);
    let low: Vec<_> = (1..20).map(|n| bench.scheduled_in(Priority::Low, n, 0).id).collect();
    let high: Vec<_> = (20..40).map(|n| bench.scheduled_in(Priority::High, n, 0).id).collect();
    let look = async |bench: &mut Bench| bench.look().await.into_iter().map(|due| due.id).collect::<HashSet<_>>();
    bench.crowd.set(Priority::Low, true);
    assert_eq!(look(&mut bench).await, high.iter().copied().collect());
    assert!(look(&mut bench).await.is_empty());
    bench.crowd.set(Priority::Low, false);
    assert_eq!(look(&mut bench).await, low.iter().copied().collect(), "each once");
    assert!(look(&mut bench).await.is_empty());
}

#[tokio::test]
async fn a_scheduled_message_that_was_taken_back_is_not_fed() {
    let mut bench = bench(1_000);
    let due = bench.scheduled(1, 0);
    bench.happened(due.id, What::Failed(Reason::Cancelled));
    assert!(bench.look().await.is_empty());
    assert!(bench.history.dues.lock().is_empty(), "its row is done with");
}

/// Its owner ended it as it recorded it, and died before the entry stood or anybody was told: the flow does it again.
#[tokio::test]
async fn a_scheduled_message_that_ended_for_an_owner_before_us_is_fed() {
    // Or it was delivered from an entry that does not stand.
    for what in [What::Failed(Reason::Expired), What::Failed(Reason::Dropped), What::Delivered] {
        let mut bench = bench(1_000);
        let due = bench.scheduled(1, 0);
        bench.happened(due.id, what);
        assert_eq!(bench.look().await.iter().map(|due| due.id).collect::<Vec<_>>(), [due.id]);
        assert_eq!(bench.history.dues.lock().len(), 1, "its row stays until the flow is done with it");
    }
}

/// Rule 8: what is not reached when its time has passed is Failed(Expired); what is settled stays as it is.
#[tokio::test]
async fn an_expired_message_fails_unless_it_was_settled() {
    let table = [
        (None, true),
        (Some(What::Parked), true),
        (Some(What::Sent), true),
        (Some(What::Delivered), false),
        (Some(What::Read), false),
        (Some(What::Failed(Reason::Cancelled)), false),
    ];
    for (before, fails) in table {
        let mut bench = bench(1_000);
        let message = bench.expiring(1, 100);
        if let Some(what) = before {
            bench.happened(message.id, what);
        }
        bench.look().await;
        assert!(bench.log.facts().is_empty(), "its time is still to come");
        bench.clock.pass(100);
        bench.look().await;
        let whats: Vec<_> = bench.log.facts().iter().map(|fact| (fact.id, fact.what)).collect();
        let expected = if fails { vec![(message.id, What::Failed(Reason::Expired))] } else { vec![] };
        assert_eq!(whats, expected, "{before:?}");
        assert!(bench.history.dues.lock().is_empty());
    }
}

/// A new round of a message that had failed ends like the first, though its status was Failed all the while.
#[tokio::test]
async fn a_requeued_message_that_waits_expires_in_its_round() {
    let mut bench = bench(1_000);
    let message = bench.expiring(1, 100);
    bench.happened(message.id, What::Failed(Reason::NoAck));
    bench.happened_in(1, message.id, What::Requeued);
    bench.happened_in(1, message.id, What::Parked);
    bench.clock.pass(100);
    bench.look().await;
    let whats: Vec<_> = bench.log.facts().iter().map(|fact| (fact.id, fact.round, fact.what)).collect();
    assert_eq!(whats, [(message.id, 1, What::Failed(Reason::Expired))]);
}

/// A store may write the row before the message, and an owner may die in between.
#[tokio::test]
async fn the_row_of_a_message_that_is_not_there_yet_stays() {
    let mut bench = bench(1_000);
    let (late, other) = (bench.expiring(1, 0), bench.expiring(2, 0));
    bench.history.placed.lock().remove(&late.id);
    bench.look().await;
    assert_eq!(bench.log.facts().iter().map(|fact| fact.id).collect::<Vec<_>>(), [other.id]);
    bench.clock.pass(MISSING_MS - 1);
    bench.look().await;
    assert_eq!(bench.history.dues.lock().len(), 1);
    bench.history.keep(&late, Some(PLACE));
    bench.look().await;
    assert_eq!(
        bench.log.facts().last().map(|fact| (fact.id, fact.what)),
        Some((late.id, What::Failed(Reason::Expired)))
    );
    assert!(bench.history.dues.lock().is_empty());
}

#[tokio::test]
async fn the_row_of_a_message_that_never_comes_goes() {
    let mut bench = bench(1_000);
    let gone = bench.expiring(1, 0);
    bench.history.placed.lock().remove(&gone.id);
    bench.look().await;
    bench.clock.pass(MISSING_MS - 1);
    bench.look_since(2).await;
    assert_eq!(bench.history.dues.lock().len(), 1);
    bench.clock.pass(MISSING_MS - 1);
    bench.look_since(2).await;
    assert_eq!(bench.history.dues.lock().len(), 1, "whoever takes the partition over waits anew");
    bench.clock.pass(1);
    bench.look_since(2).await;
    assert!(bench.history.dues.lock().is_empty() && bench.log.facts().is_empty());
}

#[tokio::test]
async fn a_row_stays_until_its_fact_is_durable() {
    let mut bench = bench(1_000);
    bench.expiring(1, 0);
    bench.history.faults.next("record", unavailable());
    bench.look().await;
    assert_eq!((bench.log.facts().len(), bench.history.dues.lock().len()), (1, 1));
    bench.look().await;
    assert_eq!((bench.log.facts().len(), bench.history.dues.lock().len()), (2, 0), "said twice is the same as once");
}

/// An owner that was overtaken may have nothing to do but this: whoever hands out partitions is to hear of it.
#[tokio::test]
async fn an_overtaken_owner_hears_of_it() {
    let mut bench = bench(1_000);
    let partition = bench.expiring(1, 0).inbox(4).partition;
    bench.history.faults.next("record", PortError::Fenced("overtaken".into()));
    bench.look().await;
    assert_eq!(bench.ownership.take_lost(), [(partition, Epoch(1))]);
    assert_eq!(bench.history.dues.lock().len(), 1, "the row is the newer owner's");
}

#[tokio::test]
async fn a_clock_that_jumps_forth_and_back_loses_no_row() {
    let mut bench = bench(1_000);
    let due = bench.scheduled(1, 3_600_000);
    bench.clock.jump(-3_600_000);
    assert!(bench.look().await.is_empty());
    bench.clock.jump(7_200_000);
    assert!(bench.look().await.is_empty(), "not early by the jump");
    bench.clock.jump(-3_600_000);
    assert!(bench.look().await.is_empty());
    bench.clock.pass(3_600_000);
    assert_eq!(bench.look().await, [due]);
}

#[tokio::test]
async fn by_a_clock_that_jumps_forward_nothing_is_sent_or_expires_until_it_has_stood() {
    let mut bench = bench(1_000);
    let (month, hold) = (31 * 24 * 3_600_000_i64, Limits::default().flow.jump_send_ms);
    let (soon, later) = (bench.scheduled(1, 60_000), bench.scheduled(2, 7 * 24 * 3_600_000));
    bench.expiring(3, 7 * 24 * 3_600_000);
    bench.clock.jump(month);
    assert!(bench.look().await.is_empty());
    bench.clock.pass(60_000);
    assert_eq!(bench.look().await, [soon], "time goes on");
    bench.clock.pass(hold - 60_001);
    bench.clock.jump(-month);
    assert!(bench.look().await.is_empty(), "mended");
    bench.clock.pass(hold);
    assert!(bench.look().await.is_empty());
    bench.clock.jump(month);
    assert!(bench.look().await.is_empty());
    assert!(bench.log.facts().is_empty());
    bench.clock.pass(hold);
    assert_eq!(bench.look().await, [later], "it may be right: the machine may have slept");
    assert_eq!(bench.log.facts().len(), 1);
}

#[tokio::test]
async fn what_retention_passes_unreached_fails_first_and_is_said_once() {
    let mut bench = bench(1_000);
    let (waiting, read) = (message(1), message(2));
    for message in [&waiting, &read] {
        bench.history.keep(message, Some(PLACE));
        bench.history.old.lock().push(message.id);
    }
    bench.happened(read.id, What::Read);
    for _ in 0..3 {
        bench.look().await;
        bench.clock.pass(1_000);
    }
    let facts = bench.log.facts();
    assert_eq!(facts.iter().map(|f| (f.id, f.what)).collect::<Vec<_>>(), [(waiting.id, What::Failed(Reason::Expired))]);
    // Settled, it is found no more.
    bench.happened(waiting.id, facts[0].what);
    bench.look().await;
    assert_eq!((bench.log.facts().len(), bench.history.state(waiting.id).status()), (1, Status::Failed));
}

#[tokio::test]
async fn by_a_clock_that_jumps_forward_nothing_is_removed_until_it_has_stood_for_longer() {
    let mut bench = bench(1_000);
    let (month, limits) = (31 * 24 * 3_600_000_u64, Limits::default());
    let hold = limits.flow.jump_remove_ms;
    let before = |bench: &Bench, behind_ms: u64| minus(bench.clock.wall(), limits.message.retention_ms + behind_ms);
    let letter = dead(1, bench.clock.wall());
    bench.history.letters.lock().insert((letter.id, 0), letter);
    bench.look().await;
    assert_eq!(*bench.history.removed_before.lock(), Some(before(&bench, 0)));
    bench.clock.jump(month as i64);
    bench.look().await;
    for pass in [limits.flow.jump_send_ms, hold - limits.flow.jump_send_ms - FORGET_EVERY_MS] {
        bench.clock.pass(pass);
        bench.look().await;
        assert_eq!(*bench.history.removed_before.lock(), Some(before(&bench, month)));
        assert_eq!(bench.history.letters.lock().len(), 1);
    }
    bench.clock.pass(FORGET_EVERY_MS);
    bench.look().await;
    assert_eq!(*bench.history.removed_before.lock(), Some(before(&bench, 0)));
    assert!(bench.history.letters.lock().is_empty());
}

fn dead(n: u8, at: Timestamp) -> Dead {
    Dead {
        id: message(n).id,
        at,
        reason: Reason::NoAck,
        round: 0,
        attempts: 7,
        inbox: message(n).inbox(4),
        position: Position::START,
        requeued_at: None,
        message: None,
    }
}

#[tokio::test]
async fn dead_letters_are_forgotten_after_their_time() {
    let mut bench = bench(1_000);
    let kept = Limits::default().store.dead_ms;
    let (old, young) = (dead(1, minus(bench.clock.wall(), kept + 1)), dead(2, minus(bench.clock.wall(), kept)));
    for dead in [old, young] {
        bench.history.letters.lock().insert((dead.id, 0), dead);
    }
    bench.look().await;
    assert_eq!(bench.history.letters.lock().keys().map(|(id, _)| *id).collect::<Vec<_>>(), [message(2).id]);
}
