//! What requeueing promises, against stores in memory.

use schemas::{Inbox, Message, Partition, Priority, codec, fact::Past, record::LaneRecord, time::ManualClock};

use super::*;
use crate::memory::{MemoryHistory, MemoryLog, PLACE, message, unavailable};

struct Bench {
    log: MemoryLog,
    history: MemoryHistory,
    clock: ManualClock,
}

fn bench() -> Bench {
    Bench { log: MemoryLog::default(), history: MemoryHistory::default(), clock: ManualClock::at(Timestamp(50_000)) }
}

impl Bench {
    /// Buries the `n`th message.
    fn bury(&self, n: u8, reason: Reason) -> Dead {
        let message = message(n);
        self.history.keep(&message, Some(PLACE));
        self.happened(message.id, What::Failed(reason));
        let dead = Dead {
            id: message.id,
            at: Timestamp(i64::from(n)),
            reason,
            round: 0,
            attempts: 7,
            inbox: message.inbox(4),
            position: PLACE,
            requeued_at: None,
            message: Some(message),
        };
        self.history.letters.lock().insert((dead.id, 0), dead.clone());
        dead
    }

    fn happened(&self, id: MessageId, what: What) {
        let past = Past { at: Timestamp(1), what, round: 0, attempt: Attempt(6), device: None };
        self.history.facts.lock().entry(id).or_default().merge(past);
    }

    async fn requeue(&self, which: Which, dry_run: bool) -> Report {
        requeue(&self.log, &self.history, &self.clock, which, dry_run).await.unwrap()
    }

    fn copies(&self) -> Vec<Again> {
        let read = |record: schemas::port::Record| match codec::decode(&record.body).unwrap() {
            LaneRecord::Again(again) => again,
            LaneRecord::Accepted(_) | LaneRecord::Chat(_) => panic!("a requeued message is not accepted again"),
        };
        self.log.all(Topic::Lane(Priority::Normal)).into_iter().map(read).collect()
    }
}

/// R4.5: singly, by hand.
#[tokio::test]
async fn a_dead_letter_is_tried_again_in_a_new_round() {
    let bench = bench();
    let dead = bench.bury(1, Reason::NoAck);
    let report = bench.requeue(Which::Ids(vec![dead.id, dead.id]), false).await;
    assert_eq!((report.requeued, report.refused, &report.ids[..]), (1, 0, &[dead.id][..]));
    let [copy] = &bench.copies()[..] else { panic!() };
    assert_eq!((copy.round, copy.attempt, copy.position), (1, Attempt(0), PLACE));
    let facts = bench.log.facts();
    assert_eq!(facts.iter().map(|f| (f.what, f.round)).collect::<Vec<_>>(), [(What::Requeued, 1)]);
    assert_eq!(bench.history.letters.lock()[&(dead.id, 0)].requeued_at, Some(Timestamp(50_000)));
    // Once.
    let report = bench.requeue(Which::Ids(vec![dead.id]), false).await;
    assert_eq!((report.requeued, report.refused), (0, 1));
    assert!(report.refusals[0].why.starts_with("it was requeued at 1970-"), "{:?}", report.refusals);
    assert_eq!(bench.copies().len(), 1);
}

/// R4.5: in bulk, by filter and in pages, and nothing twice.
#[tokio::test]
async fn many_are_requeued_by_a_filter_and_none_twice() {
    let bench = bench();
    let template = bench.bury(1, Reason::NoAck);
    // More than a page, all of one message kept.
    for n in 0..(PAGE_MAX as i64 + 10) {
        let id = MessageId::fresh(Timestamp(n));
        let placed = schemas::port::Inboxes::messages(&bench.history, &[template.id]).await.unwrap().remove(0);
        bench.history.placed.lock().insert(id, placed.unwrap());
        let dead = Dead { id, at: Timestamp(n), ..template.clone() };
        bench.history.letters.lock().insert((id, 0), dead);
    }
    bench.bury(2, Reason::NodeUnreachable);
    let filter = Filter { reason: Some(Reason::NoAck), ..Filter::default() };
    let dry = bench.requeue(Which::Filter(filter.clone()), true).await;
    assert_eq!((dry.requeued, dry.refused, bench.copies().len()), (PAGE_MAX as u64 + 11, 0, 0));
    let report = bench.requeue(Which::Filter(filter.clone()), false).await;
    assert_eq!(Report { dry_run: true, ..report.clone() }, dry, "the dry run said what would be");
    assert_eq!((report.ids.len(), bench.copies().len()), (LISTED, PAGE_MAX + 11));
    assert_eq!(bench.requeue(Which::Filter(filter), false).await, Report::default());
    assert_eq!(bench.requeue(Which::Filter(Filter::default()), false).await.requeued, 1);
}

#[tokio::test]
async fn what_cannot_be_requeued_is_refused_with_its_reason() {
    let bench = bench();
    for (reason, why) in [
        (Reason::IdempotencyConflict, "its key belongs to another message"),
        (Reason::Unreadable, "it cannot be read"),
        (Reason::Cancelled, "its sender took it back"),
        (Reason::Expired, "its time had passed"),
    ] {
        let dead = bench.bury(1, reason);
        let report = bench.requeue(Which::Ids(vec![dead.id]), false).await;
        assert!(report.requeued == 0 && report.refusals[0].why.starts_with(why), "{reason:?}: {report:?}");
        bench.history.facts.lock().clear();
    }
    let nowhere = Dead { position: Position::START, ..bench.bury(2, Reason::NotPermitted) };
    bench.history.letters.lock().insert((nowhere.id, 0), nowhere.clone());
    let late = bench.bury(3, Reason::NoAck);
    bench.happened(late.id, What::Delivered);
    let gone = bench.bury(4, Reason::NoAck);
    bench.history.placed.lock().remove(&gone.id);
    let past = bench.bury(5, Reason::NoAck);
    if let Some(placed) = bench.history.placed.lock().get_mut(&past.id) {
        let message = Message { expires_at: Some(Timestamp(49_999)), ..(*placed.message).clone() };
        placed.message = std::sync::Arc::new(message);
    }
    let ids = vec![nowhere.id, late.id, gone.id, past.id, message(9).id];
    let report = bench.requeue(Which::Ids(ids), false).await;
    let whys: Vec<_> = report.refusals.iter().map(|refused| refused.why.split([',', ':']).next().unwrap()).collect();
    assert_eq!(report.refused, 5);
    for why in [
        "its time has passed",
        "it was never recorded",
        "its recipient has got it meanwhile",
        "the message is no longer kept",
        "there is no dead letter of this id",
    ] {
        assert!(whys.contains(&why), "{whys:?}");
    }
    assert!(bench.copies().is_empty() && bench.log.facts().is_empty());
}

#[tokio::test]
async fn a_failure_marks_nothing_that_was_not_copied() {
    let bench = bench();
    let dead = bench.bury(1, Reason::NoAck);
    for copied in [false, true] {
        // The fact fails, then, with the fact done, the copy.
        if copied {
            bench.log.faults.pass("append");
        }
        bench.log.faults.next("append", unavailable());
        let report = bench.requeue(Which::Ids(vec![dead.id]), false).await;
        assert_eq!((report.requeued, report.refused), (0, 1), "{report:?}");
        assert_eq!(bench.history.letters.lock()[&(dead.id, 0)].requeued_at, None);
    }
    bench.history.faults.next("bury", unavailable());
    // Copied and not marked: the call fails, and the next one repeats the same round.
    let failed = requeue(&bench.log, &bench.history, &bench.clock, Which::Ids(vec![dead.id]), false).await;
    assert!(failed.is_err());
    let report = bench.requeue(Which::Ids(vec![dead.id]), false).await;
    assert_eq!(report.requeued, 1);
    let copies = bench.copies();
    assert!(copies.len() == 2 && copies[0].round == 1 && copies[1].round == 1, "the same round: known by its number");
}

#[tokio::test]
async fn a_letter_of_another_tenant_is_out_of_the_filter_s_reach() {
    let bench = bench();
    let dead = bench.bury(1, Reason::NoAck);
    let foreign = Inbox { user: "other/+962790000001".parse().unwrap(), partition: Partition(0) };
    bench.history.letters.lock().insert((dead.id, 0), Dead { inbox: foreign, ..dead });
    let filter = Filter { tenant: Some("acme".parse().unwrap()), ..Filter::default() };
    assert_eq!(bench.requeue(Which::Filter(filter), false).await, Report::default());
}
