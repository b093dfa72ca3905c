//! Facts: merged without order, each with its outcome, and counted exactly.

use std::collections::HashMap;

use proptest::prelude::*;
use schemas::{
    DeviceId, Fact, Inbox, MessageId, Position, Reason, State, Status, Timestamp, What,
    fact::Past,
    port::{Entry, History, Order, Schedule},
    tier::Attempt,
};

use super::{Installation, kit::*};

/// One outcome a fact, in order: whether it changed the status, and what all facts up to it add up to.
pub async fn every_fact_has_its_outcome(bed: &mut dyn Installation) {
    let (history, inbox) = (bed.history(), inbox(&tenant(), 1));
    let written = entries(&inbox, 2);
    record(&*history, &written).await;
    let facts = [
        fact(&written[0], What::Sent, 1),
        fact(&written[1], What::Parked, 1),
        fact(&written[0], What::Delivered, 2),
        fact(&written[0], What::Sent, 1),
        fact(&written[0], What::Failed(Reason::NoAck), 3),
        fact(&written[1], What::Read, 4),
    ];
    let settled = history.settle(&facts).await.unwrap();
    let changed: Vec<_> = settled.iter().map(|settled| settled.changed).collect();
    assert_eq!(changed, [true, false, true, false, false, true]);
    let status: Vec<_> = settled.iter().map(|settled| settled.state.status()).collect();
    let (p, s, d, r) = (Status::Pending, Status::Sent, Status::Delivered, Status::Read);
    assert_eq!(status, [s, p, d, d, d, r]);
    let states = history.states(&[written[1].message.id, written[0].message.id]).await.unwrap();
    assert_eq!(states, [settled[5].state.clone(), settled[4].state.clone()]);
    assert!(history.settle(&[]).await.unwrap().is_empty());
}

/// They wait for it, and the message is found with them.
pub async fn facts_before_the_message_are_kept(bed: &mut dyn Installation) {
    let (history, inbox) = (bed.history(), inbox(&tenant(), 1));
    let written = entries(&inbox, 1);
    let early = placeless(&written[0].message, &inbox, What::Sent, 1);
    history.settle(&[early]).await.unwrap();
    record(&*history, &written).await;
    let placed = history.messages(&[written[0].message.id]).await.unwrap().remove(0).unwrap();
    assert_eq!(placed.state.status(), Status::Sent);
    let span = history.read(&inbox, schemas::Position::START, 1).await.unwrap();
    assert_eq!(span.entries[0].1.status(), Status::Sent);
}

/// An answered settle is as durable as the log.
pub async fn settled_facts_survive_a_crash(bed: &mut dyn Installation) {
    let inbox = inbox(&tenant(), 1);
    let written = entries(&inbox, 3);
    record(&*bed.history(), &written).await;
    let facts: Vec<_> = written.iter().map(|entry| fact(entry, What::Read, 1)).collect();
    bed.history().settle(&facts).await.unwrap();
    bed.crash().await;
    let history = bed.history();
    let ids: Vec<_> = written.iter().map(|entry| entry.message.id).collect();
    assert!(history.states(&ids).await.unwrap().iter().all(|state| state.status() == Status::Read));
    assert_eq!(history.unread(&inbox).await.unwrap().one_way, 0);
}

/// Something that happens to the nth of a few messages.
fn happenings() -> impl Strategy<Value = Vec<(usize, i64, What, u8, Option<u8>)>> {
    let what = prop_oneof![
        Just(What::Sent),
        Just(What::Parked),
        Just(What::Delivered),
        Just(What::Read),
        Just(What::AttemptFailed(Reason::NoAck)),
        Just(What::Failed(Reason::NoAck)),
        Just(What::Failed(Reason::Expired)),
    ];
    proptest::collection::vec((0usize..4, 0i64..50, what, 0u8..3, proptest::option::of(0u8..2)), 0..40)
}

fn happened(written: &[Entry], (n, ms, what, attempt, device): (usize, i64, What, u8, Option<u8>)) -> Fact {
    let device = device.map(|number| DeviceId::parse(&format!("device-{number}")).expect("a device"));
    Fact { attempt: Attempt(attempt), device, ..fact(&written[n % written.len()], what, ms) }
}

/// Settles in batches of these sizes, over and over.
async fn settle_in(history: &dyn History, facts: &[Fact], sizes: &[usize]) -> Vec<bool> {
    let (mut changed, mut rest, mut turn) = (Vec::new(), facts, 0);
    while !rest.is_empty() {
        let (batch, later) = rest.split_at(sizes[turn % sizes.len()].min(rest.len()));
        changed.extend(history.settle(batch).await.unwrap().into_iter().map(|settled| settled.changed));
        (rest, turn) = (later, turn + 1);
    }
    changed
}

/// P3, P8: a store adds nothing to the rule of `State::merge` and takes nothing from it.
pub async fn p3_p8_any_order_any_batches_any_repeats_give_the_merged_state(bed: &mut dyn Installation) {
    let (history, tenant) = (bed.history(), tenant());
    let user = std::sync::atomic::AtomicU32::new(0);
    let input = (happenings(), proptest::collection::vec(1usize..9, 1..4), any::<u64>());
    property(&input, async |(happenings, sizes, seed)| {
        let inbox = inbox(&tenant, user.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let written = entries(&inbox, 4);
        record(&*history, &written).await;
        let facts: Vec<_> = happenings.into_iter().map(|happening| happened(&written, happening)).collect();
        let mut model = HashMap::<MessageId, State>::new();
        let expected: Vec<bool> =
            facts.iter().map(|fact| model.entry(fact.id).or_default().merge(fact.into())).collect();
        assert_eq!(settle_in(&*history, &facts, &sizes).await, expected, "what changed");
        let ids: Vec<_> = written.iter().map(|entry| entry.message.id).collect();
        let states = history.states(&ids).await.unwrap();
        for (id, state) in ids.iter().zip(&states) {
            assert_eq!(state, &model.get(id).cloned().unwrap_or_default());
        }
        // The same again in another order, as after a crash: nothing changes.
        let mut again = facts;
        for i in 1..again.len() {
            again.swap(i, (seed.rotate_left(i as u32) % (i as u64 + 1)) as usize);
        }
        assert!(settle_in(&*history, &again, &sizes).await.iter().all(|changed| !changed), "a repeat changes nothing");
        assert_eq!(history.states(&ids).await.unwrap(), states);
    });
}

async fn unread(history: &dyn History, inbox: &Inbox) -> u64 {
    history.unread(inbox).await.unwrap().one_way
}

/// P6: after any facts in any batches, recorded and told as often as one likes.
pub async fn p6_unread_is_what_was_not_read(bed: &mut dyn Installation) {
    let (history, tenant) = (bed.history(), tenant());
    let user = std::sync::atomic::AtomicU32::new(0);
    let input = (happenings(), proptest::collection::vec(1usize..9, 1..4), 0usize..40);
    property(&input, async |(happenings, sizes, again)| {
        let inbox = inbox(&tenant, user.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let written = entries(&inbox, 4);
        record(&*history, &written).await;
        let facts: Vec<_> = happenings.into_iter().map(|happening| happened(&written, happening)).collect();
        settle_in(&*history, &facts, &sizes).await;
        record(&*history, &written[..2]).await;
        settle_in(&*history, &facts[again.min(facts.len())..], &sizes).await;
        let is_unread = |entry: &&Entry| {
            let state = merged(facts.iter().filter(|fact| fact.id == entry.message.id));
            state.status() != Status::Read && !state.is_withdrawn()
        };
        assert_eq!(unread(&*history, &inbox).await, written.iter().filter(is_unread).count() as u64);
    });
}

/// A cancelled or expired message is never shown, so it must not stay on a badge; a late acknowledgement shows that
/// somebody has it after all.
pub async fn what_was_withdrawn_is_not_unread(bed: &mut dyn Installation) {
    let (history, inbox) = (bed.history(), inbox(&tenant(), 1));
    let written = entries(&inbox, 3);
    record(&*history, &written).await;
    history.settle(&[fact(&written[0], What::Failed(Reason::Expired), 1)]).await.unwrap();
    history.settle(&[fact(&written[1], What::Failed(Reason::NoAck), 1)]).await.unwrap();
    assert_eq!(unread(&*history, &inbox).await, 2, "what failed for want of an answer is still in the inbox");
    let late = Fact { at: Timestamp(NOON.0 + 5), ..fact(&written[0], What::Delivered, 0) };
    history.settle(std::slice::from_ref(&late)).await.unwrap();
    assert_eq!(unread(&*history, &inbox).await, 3);
    history.settle(&[late, fact(&written[0], What::Read, 6)]).await.unwrap();
    assert_eq!(unread(&*history, &inbox).await, 2);
}

/// The entry with how it ended.
fn ended(entry: &Entry) -> Entry {
    Entry { end: Some(Past::from(&fact(entry, What::Failed(Reason::Dropped), 0))), ..entry.clone() }
}

/// What a function dropped has its entry and its end in one write: a reader of that very moment passes over it.
pub async fn what_ended_before_it_was_recorded_is_never_seen_without_its_end(bed: &mut dyn Installation) {
    let (history, inbox) = (bed.history(), inbox(&tenant(), 1));
    let written = entries(&inbox, 240);
    let given: Vec<_> =
        written.iter().map(|entry| if entry.position.n % 3 == 0 { ended(entry) } else { entry.clone() }).collect();
    let nothing = Schedule::default();
    let writing = futures::future::join_all(given.chunks(4).map(|call| history.record(call, &nothing)));
    let reading = async {
        let mut seen = 0;
        while seen < written.len() {
            let span = history.read(&inbox, Position::START, 1_000).await.unwrap();
            assert!(span.entries.iter().all(|(entry, state)| state.is_withdrawn() == (entry.position.n % 3 == 0)));
            seen = span.entries.len();
            assert_eq!(entries_of(span), written[..seen], "the state says it, and the entry does not");
            let page = history.one_way(&inbox, Order::Newest, None, 9).await.unwrap();
            assert!(page.rows.iter().all(|(entry, state)| state.is_withdrawn() == (entry.position.n % 3 == 0)));
            tokio::task::yield_now().await;
        }
    };
    let (outcomes, ()) = futures::join!(writing, reading);
    assert!(outcomes.iter().all(Result::is_ok));
    assert_eq!(unread(&*history, &inbox).await, 160);
    let ids = [written[2].message.id, written[0].message.id];
    drop(history);
    bed.crash().await;
    let history = bed.history();
    let found = history.messages(&ids).await.unwrap();
    let reasons: Vec<_> = found.into_iter().map(|placed| placed.unwrap().state.reason()).collect();
    assert_eq!(reasons, [Some(Reason::Dropped), None]);
    assert_eq!(history.states(&ids).await.unwrap()[0].past, [ended(&written[2]).end.unwrap()]);
    assert_eq!(unread(&*history, &inbox).await, 160);
}

/// Recorded twice, told once more as a fact, or told before it was recorded: it is one message that is not unread, until
/// somebody says that it was received after all.
pub async fn an_end_is_counted_once_whatever_comes_before_and_after(bed: &mut dyn Installation) {
    let (history, inbox) = (bed.history(), inbox(&tenant(), 1));
    let written = entries(&inbox, 4);
    let early = placeless(&written[1].message, &inbox, What::Failed(Reason::Dropped), 0);
    history.settle(&[early]).await.unwrap();
    let given = [written[0].clone(), ended(&written[1]), ended(&written[2]), written[3].clone()];
    for again in [&given[..], &given[1..3], &given[..2]] {
        record(&*history, again).await;
        assert_eq!(unread(&*history, &inbox).await, 2);
    }
    let told = fact(&written[2], What::Failed(Reason::Dropped), 0);
    assert!(!history.settle(&[told]).await.unwrap()[0].changed);
    assert_eq!(unread(&*history, &inbox).await, 2);
    let late = fact(&written[2], What::Delivered, 9);
    history.settle(&[late]).await.unwrap();
    record(&*history, &given).await;
    assert_eq!(unread(&*history, &inbox).await, 3);
    assert_eq!(history.states(&[written[2].message.id]).await.unwrap()[0].status(), Status::Delivered);
}
