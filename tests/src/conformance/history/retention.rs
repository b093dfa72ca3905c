//! Retention: what is old goes, and nobody is left in the dark.

use std::{collections::BTreeSet, sync::Arc};

use schemas::{
    Inbox, Message, MessageId, Partition, Position, Reason, State, Timestamp, What,
    port::{Due, DueKind, Entry, History, Known, Order, Placed, Schedule, Tail},
};

use super::{Installation, kit::*};

/// Entries of one hour each: the nth was recorded n hours after noon.
fn hourly(inbox: &Inbox, count: u64) -> Vec<Entry> {
    let mut written = entries(inbox, count);
    for (n, entry) in (1i64..).zip(&mut written) {
        entry.recorded_at = hours(n);
    }
    written
}

fn hours(n: i64) -> Timestamp {
    Timestamp(NOON.0 + n * 3_600_000)
}

/// A partition that no other case retains: what an earlier run left in it is removed first.
async fn partition(history: &dyn History, number: u16) -> Partition {
    let partition = Partition(number);
    sweep(history, partition, Timestamp(i64::MAX), 1_000).await;
    partition
}

/// Calls until nothing more is found, settling what was not received as its owner would. Says what was returned.
pub(super) async fn sweep(history: &dyn History, partition: Partition, before: Timestamp, limit: usize) -> Vec<Placed> {
    let (mut all, mut quiet) = (Vec::new(), 0);
    while quiet < 3 {
        let kept = history.sizes().await.unwrap().0;
        let unreached = history.retain(partition, before, limit).await.unwrap();
        let removed = kept.saturating_sub(history.sizes().await.unwrap().0);
        assert!(unreached.len() + removed as usize <= limit, "{} and {removed} in one call", unreached.len());
        quiet = if unreached.is_empty() && removed == 0 { quiet + 1 } else { 0 };
        let facts: Vec<_> = unreached.iter().map(expired).collect();
        history.settle(&facts).await.unwrap();
        all.extend(unreached);
    }
    all
}

fn expired(placed: &Placed) -> schemas::Fact {
    let fact = placeless(&placed.message, &placed.inbox, What::Failed(Reason::Expired), 1);
    schemas::Fact { position: placed.position.unwrap_or_default(), ..fact }
}

/// Received: removed at once. Not received: returned, kept, and removed by the call after it became `Failed`. Newer: kept.
pub async fn what_was_received_goes_and_what_was_not_is_told_first(bed: &mut dyn Installation) {
    let inbox = Inbox { partition: partition(&*bed.history(), 12).await, ..inbox(&tenant(), 1) };
    let history = bed.history();
    let written = hourly(&inbox, 6);
    record(&*history, &written).await;
    let facts =
        [fact(&written[0], What::Delivered, 1), fact(&written[1], What::Sent, 1), fact(&written[3], What::Read, 1)];
    history.settle(&facts).await.unwrap();
    let unreached = history.retain(inbox.partition, hours(5), 100).await.unwrap();
    let returned: Vec<_> = unreached.iter().map(|placed| placed.position).collect();
    assert_eq!(returned, [Some(at(2)), Some(at(3))]);
    assert_eq!(unreached[0].message, written[1].message);
    assert_eq!((&unreached[0].inbox, unreached[0].prev, unreached[0].recorded_at), (&inbox, at(1), hours(2)));
    assert!(history.messages(&[written[1].message.id]).await.unwrap()[0].is_some(), "it is still there to be failed");
    assert_eq!(history.messages(&[written[0].message.id]).await.unwrap(), [None]);
    history.settle(&unreached.iter().map(expired).collect::<Vec<_>>()).await.unwrap();
    assert!(history.retain(inbox.partition, hours(5), 100).await.unwrap().is_empty());
    let left = whole(&*history, &inbox).await;
    assert_eq!(left, written[4..]);
    let ids: Vec<_> = written[..4].iter().map(|entry| entry.message.id).collect();
    assert!(history.messages(&ids).await.unwrap().iter().all(Option::is_none));
    assert!(history.known(&ids).await.unwrap().iter().all(Option::is_none));
    assert!(history.states(&ids).await.unwrap().iter().all(|state| state.past.is_empty()));
    assert_eq!(history.unread(&inbox).await.unwrap().one_way, 2, "what is gone is not unread");
    // A fact that comes too late counts nothing.
    history.settle(&[fact(&written[0], What::Read, 9)]).await.unwrap();
    assert_eq!(history.unread(&inbox).await.unwrap().one_way, 2);
}

/// A span says whether it continues what the device had; a new device gets the whole of what is kept.
pub async fn a_device_that_was_away_too_long_is_told_so(bed: &mut dyn Installation) {
    let inbox = Inbox { partition: partition(&*bed.history(), 13).await, ..inbox(&tenant(), 1) };
    let written = hourly(&inbox, 6);
    record(&*bed.history(), &written).await;
    sweep(&*bed.history(), inbox.partition, hours(4), 100).await;
    for restarted in [false, true] {
        if restarted {
            bed.restart().await;
        }
        let history = bed.history();
        for (from, passed, rest) in
            [(Position::START, true, 3), (at(2), true, 3), (at(3), false, 3), (at(4), false, 4), (at(6), false, 6)]
        {
            let span = history.read(&inbox, from, 100).await.unwrap();
            assert_eq!(span.passed_by_retention, passed, "from {from}");
            assert_eq!(entries_of(span), written[rest..], "from {from}");
        }
        for (order, first) in [(Order::Oldest, 4), (Order::Newest, 6)] {
            let page = history.one_way(&inbox, order, None, 2).await.unwrap();
            assert_eq!((page.rows[0].0.position, page.rows.len()), (at(first), 2));
            let rest = history.one_way(&inbox, order, page.next, 2).await.unwrap();
            assert_eq!((rest.rows.len(), rest.next), (1, None));
        }
    }
}

/// An empty inbox is not a new one: positions and counts go on.
pub async fn numbering_goes_on_after_everything_went(bed: &mut dyn Installation) {
    let inbox = Inbox { partition: partition(&*bed.history(), 14).await, ..inbox(&tenant(), 1) };
    record(&*bed.history(), &hourly(&inbox, 3)).await;
    let told = sweep(&*bed.history(), inbox.partition, hours(100), 100).await;
    assert_eq!(told.len(), 3);
    bed.restart().await;
    let history = bed.history();
    let tail = Tail { position: at(3), one_way: 3 };
    assert_eq!(history.tails(std::slice::from_ref(&inbox)).await.unwrap(), [tail]);
    assert_eq!(history.unread(&inbox).await.unwrap().one_way, 0);
    let next = entry(&inbox, at(4), at(3), 4, message(&inbox));
    record(&*history, std::slice::from_ref(&next)).await;
    assert_eq!(entries_of(history.read(&inbox, at(3), 10).await.unwrap()), [next]);
    assert_eq!(history.unread(&inbox).await.unwrap().one_way, 1);
}

/// Bounded work a call, whoever is visited first; in the end nothing old is left and nothing new is touched.
pub async fn a_call_removes_no_more_than_asked_and_all_goes_in_the_end(bed: &mut dyn Installation) {
    let history = bed.history();
    let (partition, tenant) = (partition(&*history, 15).await, tenant());
    let inboxes: Vec<_> = (0..30).map(|number| Inbox { partition, ..inbox(&tenant, number) }).collect();
    let elsewhere = Inbox { partition: Partition(16), ..inbox(&tenant, 99) };
    let untouched = hourly(&elsewhere, 3);
    record(&*history, &untouched).await;
    for inbox in &inboxes {
        let written = hourly(inbox, 8);
        record(&*history, &written).await;
        // Every other user has received all.
        if inbox.user.to_string().ends_with(['0', '2', '4', '6', '8']) {
            let facts: Vec<_> = written.iter().map(|entry| fact(entry, What::Delivered, 1)).collect();
            history.settle(&facts).await.unwrap();
        }
    }
    let told = sweep(&*history, partition, hours(6), 7).await;
    let mut places: Vec<_> = told.iter().map(|placed| (placed.inbox.user.clone(), placed.position)).collect();
    places.sort();
    places.dedup();
    assert_eq!(places.len(), 15 * 5, "each of those that nobody had received was told of");
    for inbox in &inboxes {
        let left = whole(&*history, inbox).await;
        assert_eq!(left.iter().map(|entry| entry.position.n).collect::<Vec<_>>(), [6, 7, 8]);
    }
    assert_eq!(whole(&*history, &elsewhere).await, untouched);
}

/// Facts of messages that were dropped before they had a place do not stay for ever.
pub async fn ids_without_a_place_go_too(bed: &mut dyn Installation) {
    let inbox = Inbox { partition: partition(&*bed.history(), 17).await, ..inbox(&tenant(), 1) };
    let history = bed.history();
    let (old, new) = (message(&inbox), message(&inbox));
    let dropped = |message, ms| placeless(message, &inbox, What::Failed(Reason::Dropped), ms);
    history.settle(&[dropped(&old, 0), dropped(&new, 7_200_000)]).await.unwrap();
    sweep(&*history, inbox.partition, hours(1), 100).await;
    let states = history.states(&[old.id, new.id]).await.unwrap();
    assert_eq!((states[0].past.len(), states[1].reason()), (0, Some(Reason::Dropped)));
}

/// A message whose id was made of a key, the same for every one to this inbox.
fn keyed(inbox: &Inbox) -> Message {
    let id = MessageId::of_key(&inbox.user.tenant, "", "order-4711", &inbox.user);
    Message { id, ..message(inbox) }
}

/// A key that is used again once its message is gone names a new message, of which nothing has been heard yet.
pub async fn a_key_used_again_begins_anew(bed: &mut dyn Installation) {
    let inbox = Inbox { partition: partition(&*bed.history(), 25).await, ..inbox(&tenant(), 1) };
    let (mut prev, mut n) = (Position::START, 0);
    for restarted in [false, true] {
        if restarted {
            bed.restart().await;
        }
        let history = bed.history();
        let epoch = own(&*history, &[inbox.partition]).await[0];
        for end in [What::Failed(Reason::Expired), What::Read] {
            n += 1;
            let position = Position { epoch, n };
            let mut written = entry(&inbox, position, prev, n, keyed(&inbox));
            written.recorded_at = hours(10 * n as i64);
            let id = written.message.id;
            assert_eq!(history.known(&[id]).await.unwrap(), [None], "use {n}");
            record(&*history, std::slice::from_ref(&written)).await;
            let span = history.read(&inbox, prev, 10).await.unwrap();
            assert_eq!(span.entries, [(written.clone(), State::default())], "use {n}");
            assert_eq!(history.states(&[id]).await.unwrap(), [State::default()], "use {n}");
            let placed = history.messages(&[id]).await.unwrap().remove(0).unwrap();
            assert_eq!((&placed.message, placed.position), (&written.message, Some(position)), "use {n}");
            assert_eq!(placed.state, State::default(), "use {n}");
            assert_eq!(history.unread(&inbox).await.unwrap().one_way, 1, "use {n}");
            let settled = history.settle(&[fact(&written, end, 1)]).await.unwrap();
            assert_eq!(settled[0].state.past.len(), 1, "use {n}");
            let before = hours(10 * n as i64 + 1);
            assert!(sweep(&*history, inbox.partition, before, 100).await.is_empty(), "use {n}");
            assert_eq!(history.messages(&[id]).await.unwrap(), [None]);
            assert!(whole(&*history, &inbox).await.is_empty());
            prev = position;
        }
    }
}

/// The same where the key names a message that is to be sent later: it waits, and is sent, as it is now.
pub async fn a_key_scheduled_again_is_sent_as_it_is_now(bed: &mut dyn Installation) {
    let inbox = Inbox { partition: partition(&*bed.history(), 26).await, ..inbox(&tenant(), 1) };
    let partition = inbox.partition;
    let (first, second) = (keyed(&inbox), keyed(&inbox));
    assert_ne!(first.fingerprint, second.fingerprint);
    let id = first.id;
    let due = |message: &Message, at: Timestamp| {
        let kind = DueKind::Send(Arc::new(message.clone()));
        Due { partition, at, id: message.id, kind }
    };
    let history = bed.history();
    let epoch = own(&*history, &[partition]).await[0];
    let schedule = |add: Vec<Due>, done: Vec<Due>| {
        let epochs = BTreeSet::from([(partition, epoch)]);
        Schedule { add, done, epochs, ..Schedule::default() }
    };
    let waiting = due(&first, hours(1));
    history.record(&[], &schedule(vec![waiting.clone()], vec![])).await.unwrap();
    let place = |n: u64| Position { epoch, n };
    let mut sent = entry(&inbox, place(1), Position::START, 1, first);
    sent.recorded_at = hours(1);
    history.record(std::slice::from_ref(&sent), &schedule(vec![], vec![waiting])).await.unwrap();
    history.settle(&[fact(&sent, What::Read, 1)]).await.unwrap();
    assert!(sweep(&*history, partition, hours(5), 100).await.is_empty());
    assert_eq!(history.known(&[id]).await.unwrap(), [None]);
    let again = due(&second, hours(10));
    history.record(&[], &schedule(vec![again.clone()], vec![])).await.unwrap();
    let known = Known { fingerprint: second.fingerprint, position: None };
    assert_eq!(history.known(&[id]).await.unwrap(), [Some(known)]);
    let placed = history.messages(&[id]).await.unwrap().remove(0).unwrap();
    assert_eq!((&*placed.message, placed.position, placed.state), (&second, None, State::default()));
    // An earlier run may have left others.
    let mut rows = history.due(partition, hours(10), 1_000).await.unwrap();
    rows.retain(|row| row.id == id);
    assert_eq!(rows, std::slice::from_ref(&again));
    let sent = entry(&inbox, place(2), place(1), 2, second);
    history.record(std::slice::from_ref(&sent), &schedule(vec![], vec![again])).await.unwrap();
    let span = history.read(&inbox, place(1), 10).await.unwrap();
    assert_eq!(span.entries, [(sent, State::default())]);
}
