//! What becomes of a message, by what history knows of it and what it asks for.

use super::*;
use crate::{
    item::Asked,
    testing::{fresh, message},
};
use proptest::prelude::*;
use schemas::{
    ChatCommand, Conversation, Epoch, Message, Partition, What,
    conversation::{Act, Command, Pair},
    fact::Past,
    port::Tail,
};
use std::{collections::HashMap, sync::Arc};

/// What was decided for one message, in words.
fn decided(plan: &Plan) -> Vec<&'static str> {
    let mut words = Vec::new();
    words.extend(plan.entries.iter().map(|_| "entry"));
    words.extend(plan.schedule.add.iter().map(|due| match due.kind {
        DueKind::Send(_) => "scheduled",
        DueKind::Expire { .. } => "expires",
    }));
    words.extend(plan.schedule.done.iter().map(|_| "row done"));
    words.extend(plan.steps.iter().map(|step| match step {
        Step::Offer(_) => "offer",
        Step::Again(_) => "again",
        Step::Fail(_, reason) => reason.word(),
        Step::Bury(_) => "bury",
        Step::Done(_) => "then row done",
        Step::Refuse(_) | Step::Marked(_) | Step::Tell(..) => "chat",
    }));
    words.extend((0..plan.repeats).map(|_| "repeat"));
    words
}

fn plan(items: Vec<Item>, found: &Found, tails: &mut Tails) -> Plan {
    let items = items.into_iter().map(|item| {
        let Work::Fresh(fresh) = &item.work else { return (None, item) };
        let inbox = Inbox { user: fresh.message.to.clone(), partition: Partition(0) };
        if tails.pin(&inbox, Epoch(1)) {
            let known = found.known.values().filter_map(|known| known.position);
            let position = known.chain(found.due.values().filter_map(|due| due.position)).max().unwrap_or_default();
            tails.learn(&inbox, Epoch(1), Tail { position, one_way: position.n }, Timestamp(0));
        }
        (Some(inbox), item)
    });
    let items = items.collect();
    let (threads, chat, retention_ms) = (&mut Threads::new(10), &ChatLimits::default(), 10_000);
    Placing { lane: Lane::Normal, now: Timestamp(1_000), write: 1, found, tails, threads, chat, retention_ms }
        .plan(items)
}

fn one(change: impl FnOnce(&mut Message, &mut Fresh)) -> Item {
    let (mut item, mut message) = (fresh(message(1)), message(1));
    if let Work::Fresh(fresh) = &mut item.work {
        change(&mut message, fresh);
        fresh.message = Arc::new(message);
    }
    item
}

fn known(fingerprint: [u8; 16], placed: bool) -> Found {
    let position = placed.then_some(Position { epoch: Epoch(1), n: 4 });
    let known = Known { fingerprint, position };
    Found { known: HashMap::from([(message(1).id, known)]), ..Found::default() }
}

fn due_row() -> Option<Box<Due>> {
    let kind = DueKind::Send(Arc::new(message(1)));
    Some(Box::new(Due { partition: Partition(0), at: Timestamp(900), id: message(1).id, kind }))
}

fn due_found(position: Option<Position>, what: Option<What>) -> Found {
    let mut state = State::default();
    if let Some(what) = what {
        state.merge(Past { at: Timestamp(1), what, round: 0, attempt: Attempt(0), device: None });
    }
    let message = Arc::new(message(1));
    let inbox = Inbox { user: message.to.clone(), partition: Partition(0) };
    let id = message.id;
    let (prev, recorded_at) = (Position::START, Timestamp(1));
    let placed = Placed { message, inbox, position, prev, recorded_at, seq: None, state };
    Found { due: HashMap::from([(id, placed)]), ..Found::default() }
}

#[test]
fn what_becomes_of_a_message() {
    let same = message(1).fingerprint;
    let at = |ms| Some(Timestamp(ms));
    let nothing = Found::default;
    let table: Vec<(&str, Item, Found, &[&str])> = vec![
        ("new", one(|_, _| {}), nothing(), &["entry", "offer"]),
        ("with an end", one(|m, _| m.expires_at = at(2_000)), nothing(), &["entry", "expires", "offer"]),
        (
            "with an end in retention's time",
            one(|m, _| m.expires_at = at(11_000)),
            nothing(),
            &["entry", "expires", "offer"],
        ),
        ("with an end past retention", one(|m, _| m.expires_at = at(11_001)), nothing(), &["entry", "offer"]),
        (
            "expired",
            one(|m, f| {
                m.expires_at = at(1);
                f.end = Some(Reason::Expired)
            }),
            nothing(),
            &["entry", "expired"],
        ),
        ("dropped", one(|_, f| f.end = Some(Reason::Dropped)), nothing(), &["entry", "dropped"]),
        ("scheduled", one(|m, _| m.send_at = at(2_000)), nothing(), &["scheduled"]),
        ("scheduled for now", one(|m, _| m.send_at = at(1_000)), nothing(), &["entry", "offer", "then row done"]),
        (
            "scheduled, replayed",
            one(|m, f| {
                m.send_at = at(2_000);
                f.replay = true
            }),
            known(same, false),
            &["scheduled"],
        ),
        (
            "with an end, replayed",
            one(|m, f| {
                m.expires_at = at(2_000);
                f.replay = true
            }),
            known(same, true),
            &["expires", "again"],
        ),
        ("scheduled again", one(|m, _| m.send_at = at(2_000)), known(same, false), &["repeat"]),
        ("key again", one(|_, _| {}), known(same, true), &["repeat"]),
        ("key with another body", one(|_, _| {}), known([7; 16], true), &["bury"]),
        ("key with another body at once", one(|_, f| f.conflict = true), nothing(), &["bury"]),
        ("replayed", one(|_, f| f.replay = true), known(same, true), &["again"]),
        ("replayed, not recorded", one(|_, f| f.replay = true), nothing(), &["entry", "offer"]),
        (
            "replayed, dropped",
            one(|_, f| {
                f.replay = true;
                f.end = Some(Reason::Dropped)
            }),
            known(same, true),
            &["dropped"],
        ),
        ("due", one(|_, f| f.due = due_row()), due_found(None, None), &["entry", "offer", "then row done"]),
        (
            "due, recorded before",
            one(|_, f| f.due = due_row()),
            due_found(Some(Position::START), None),
            &["again", "then row done"],
        ),
        (
            "due, cancelled",
            one(|_, f| f.due = due_row()),
            due_found(None, Some(What::Failed(Reason::Cancelled))),
            &["row done"],
        ),
        (
            "due, recorded as expired by an owner that told nobody",
            one(|_, f| {
                f.due = due_row();
                f.end = Some(Reason::Expired);
            }),
            due_found(Some(Position::START), Some(What::Failed(Reason::Expired))),
            &["expired", "then row done"],
        ),
        (
            "due, expired for an owner whose entry does not stand",
            one(|_, f| {
                f.due = due_row();
                f.end = Some(Reason::Expired);
            }),
            due_found(None, Some(What::Failed(Reason::Expired))),
            &["entry", "expired", "then row done"],
        ),
        (
            "due, dropped by an owner whose entry does not stand, and not dropped now",
            one(|_, f| f.due = due_row()),
            due_found(None, Some(What::Failed(Reason::Dropped))),
            &["entry", "dropped", "then row done"],
        ),
        (
            "due, delivered from an entry that does not stand",
            one(|_, f| f.due = due_row()),
            due_found(None, Some(What::Delivered)),
            &["entry", "again", "then row done"],
        ),
        (
            "due, delivered",
            one(|_, f| f.due = due_row()),
            due_found(Some(Position::START), Some(What::Delivered)),
            &["again", "then row done"],
        ),
    ];
    for (case, item, found, words) in table {
        assert_eq!(decided(&plan(vec![item], &found, &mut Tails::new(10))), words, "{case}");
    }
}

proptest! {
    // Nothing lost, nothing doubled: each message comes to exactly one thing, and what gets a place gets the next one.
    #[test]
    fn each_message_comes_to_one_thing(cases in proptest::collection::vec((0u64..30, 0u8..4), 0..60)) {
        let mut found = Found::default();
        let items: Vec<_> = cases.iter().enumerate().map(|(i, (user, case))| {
            let mut message = message(i as u64 * 10 + user % 10);
            match case {
                1 => message.send_at = Some(Timestamp(5_000)),
                2 => { found.known.insert(message.id, Known { fingerprint: message.fingerprint, position: None }); }
                3 => { found.known.insert(message.id, Known { fingerprint: [1; 16], position: None }); }
                _ => {}
            }
            fresh(message)
        }).collect();
        let total = items.len();
        let plan = plan(items, &found, &mut Tails::new(100));
        let count = |case: u8| cases.iter().filter(|c| c.1 == case).count();
        prop_assert_eq!(plan.entries.len(), count(0));
        prop_assert_eq!(plan.schedule.add.len(), count(1));
        prop_assert_eq!(plan.repeats, count(2));
        prop_assert_eq!(plan.steps.len() + plan.schedule.add.len() + plan.repeats, total);
        let mut ends = HashMap::<Inbox, Position>::new();
        for entry in &plan.entries {
            let end = ends.entry(entry.inbox.clone()).or_default();
            prop_assert!(entry.prev == *end && entry.position.n == end.n + 1 && entry.one_way == entry.position.n);
            *end = entry.position;
        }
    }
}

/// Somebody put a conversation away and the other side wrote into it, in one batch of an owner that died before the entries.
#[test]
fn a_note_that_the_row_tells_of_is_written_and_what_it_says_is_not_done_again() {
    let pair = Pair {
        tenant: "acme".parse().unwrap(),
        business: "sara".parse().unwrap(),
        mobile: schemas::Phone::from_stored("+962790000001").unwrap(),
    };
    let (id, chat, now) = (pair.id(), ChatLimits::default(), Timestamp(500));
    let mut row = Conversation::open(pair.clone(), Partition(0), Epoch(1), now);
    row.apply(&"+962790000001".parse().unwrap(), &Act::Archive(true), &chat, Epoch(1), now).unwrap();
    let said = Act::Message { id: message(1).id, content: &message(1).content };
    row.apply(&"business:sara".parse().unwrap(), &said, &chat, Epoch(1), now).unwrap();
    let inbox = Inbox { user: pair.mobile(), partition: Partition(0) };
    for (epoch, written) in [(Epoch(1), 1), (Epoch(2), 0)] {
        let command = ChatCommand {
            id: message(2).id,
            pair: pair.clone(),
            by: "+962790000001".parse().unwrap(),
            command: Command::Archive(true),
            accepted_at: now,
            client_ref: None,
            trace: None,
            fingerprint: [2; 16],
        };
        let counted = Counted { turn: None, epoch, missing: vec![inbox.clone()] };
        let found = &Found { counted: HashMap::from([(command.id, counted)]), ..Found::default() };
        let (tails, threads) = (&mut Tails::new(10), &mut Threads::new(10));
        threads.pin(id, Epoch(2));
        threads.learn(id, Epoch(2), Some(row.clone()), now);
        for user in [pair.mobile(), pair.business()] {
            let inbox = Inbox { user, partition: Partition(0) };
            tails.pin(&inbox, Epoch(2));
            tails.learn(&inbox, Epoch(2), Tail::default(), now);
        }
        let work = Work::Chat(Box::new(Asked { command, replay: true, conflict: false }));
        let item = Item { partition: Partition(0), epoch: Epoch(2), offset: None, work };
        let (lane, write, retention_ms, chat) = (Lane::High, 1, 10_000, &chat);
        let plan = Placing { lane, now, write, found, tails, threads, chat, retention_ms }.plan(vec![(None, item)]);
        let entries: Vec<_> = plan.entries.iter().map(|entry| (&entry.inbox, entry.seq)).collect();
        assert_eq!(entries, vec![(&inbox, None); written], "of epoch {epoch:?}");
        assert_eq!(plan.schedule.conversations, [], "it is not put away again");
        assert!(!threads.row(id, Epoch(2)).unwrap().mobile.archived);
    }
}
