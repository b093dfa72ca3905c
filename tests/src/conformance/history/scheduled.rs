//! The due-table: what is to be sent later, and what expires.

use std::sync::Arc;

use schemas::{
    Inbox, Message, MessageId, Partition, Position, Reason, Timestamp, What,
    port::{Due, DueKind, History, Known, Schedule},
};
use uuid::Uuid;

use super::{Installation, kit::*};

/// A partition whose due rows are this case's alone: the suite's other cases do not schedule in it, and what an earlier run
/// left there is done away with first.
async fn partition(history: &dyn History, number: u16) -> Partition {
    let partition = Partition(number);
    loop {
        let old = history.due(partition, Timestamp(i64::MAX), 100).await.unwrap();
        if old.is_empty() {
            return partition;
        }
        history.record(&[], &Schedule { done: old, ..Schedule::default() }).await.unwrap();
    }
}

fn send(partition: Partition, message: &Message, ms: i64) -> Due {
    let kind = DueKind::Send(Arc::new(message.clone()));
    Due { partition, at: Timestamp(NOON.0 + ms), id: message.id, kind }
}

async fn add(history: &dyn History, add: Vec<Due>) {
    history.record(&[], &Schedule { add, ..Schedule::default() }).await.unwrap();
}

fn ids(rows: &[Due]) -> Vec<MessageId> {
    rows.iter().map(|due| due.id).collect()
}

/// Known, found by its id, without a place and in no inbox; after a restart too.
pub async fn a_scheduled_message_is_known_and_has_no_place(bed: &mut dyn Installation) {
    let inbox = Inbox { partition: partition(&*bed.history(), 5).await, ..inbox(&tenant(), 1) };
    let message = message(&inbox);
    let due = send(inbox.partition, &message, 1_000);
    let before = bed.history().sizes().await.unwrap();
    add(&*bed.history(), vec![due.clone()]).await;
    assert_eq!(bed.history().sizes().await.unwrap(), (before.0 + 1, before.1 + 1));
    for restarted in [false, true] {
        if restarted {
            bed.restart().await;
        }
        let history = bed.history();
        let known = Known { fingerprint: message.fingerprint, position: None };
        assert_eq!(history.known(&[message.id]).await.unwrap(), [Some(known)]);
        let placed = history.messages(&[message.id]).await.unwrap().remove(0).unwrap();
        assert_eq!((&*placed.message, placed.position, &placed.inbox), (&message, None, &inbox));
        assert!(whole(&*history, &inbox).await.is_empty());
        assert_eq!(history.due(inbox.partition, due.at, 10).await.unwrap(), std::slice::from_ref(&due));
        assert_eq!(history.sizes().await.unwrap().1, before.1 + 1);
    }
}

/// Oldest first, of one time by id, at or before now, at most as many as asked, of this partition alone.
pub async fn due_rows_come_in_time_order_and_apart_by_partition(bed: &mut dyn Installation) {
    let history = bed.history();
    let (here, there) = (partition(&*history, 6).await, partition(&*history, 7).await);
    let inbox = inbox(&tenant(), 1);
    let mut rows = Vec::new();
    for (ms, number) in [(30, 1u128), (10, 9), (20, 7), (10, 3), (-5, 4), (40, 2)] {
        let mut message = message(&inbox);
        message.id = MessageId(Uuid::from_u128(number << 64 | Uuid::new_v4().as_u128() >> 64));
        rows.push(send(here, &message, ms));
    }
    add(&*history, rows.clone()).await;
    add(&*history, vec![send(there, &message(&inbox), 0)]).await;
    rows.sort_by_key(|due| (due.at, due.id));
    let now = Timestamp(NOON.0 + 30);
    assert_eq!(history.due(here, now, 100).await.unwrap(), rows[..5]);
    assert_eq!(history.due(here, now, 2).await.unwrap(), rows[..2]);
    assert_eq!(history.due(here, Timestamp(NOON.0 + 9), 100).await.unwrap(), rows[..1]);
    assert_eq!(history.due(there, now, 100).await.unwrap().len(), 1);
    let done = Schedule { done: rows[..3].to_vec(), ..Schedule::default() };
    history.record(&[], &done).await.unwrap();
    assert_eq!(history.due(here, now, 100).await.unwrap(), rows[3..5]);
    history.record(&[], &done).await.unwrap();
    assert_eq!(ids(&history.due(here, Timestamp(i64::MAX), 100).await.unwrap()), ids(&rows[3..]));
}

/// Recorded with its row done, in one call; adding the row again, as a replay does, does not send it twice.
pub async fn a_sent_one_gets_its_place_and_does_not_come_up_again(bed: &mut dyn Installation) {
    let inbox = Inbox { partition: partition(&*bed.history(), 8).await, ..inbox(&tenant(), 1) };
    let message = message(&inbox);
    let due = send(inbox.partition, &message, 0);
    add(&*bed.history(), vec![due.clone()]).await;
    let placed = entry(&inbox, at(1), Position::START, 1, message.clone());
    let done = Schedule { done: vec![due.clone()], ..Schedule::default() };
    bed.history().record(std::slice::from_ref(&placed), &done).await.unwrap();
    for round in 0..3 {
        let history = bed.history();
        assert!(history.due(inbox.partition, Timestamp(i64::MAX), 10).await.unwrap().is_empty());
        assert_eq!(whole(&*history, &inbox).await, std::slice::from_ref(&placed));
        assert_eq!(history.messages(&[message.id]).await.unwrap()[0].as_ref().unwrap().position, Some(at(1)));
        assert_eq!(history.known(&[message.id]).await.unwrap()[0].as_ref().unwrap().position, Some(at(1)));
        match round {
            0 => add(&*history, vec![due.clone()]).await,
            1 => history.record(std::slice::from_ref(&placed), &done).await.unwrap(),
            _ => {}
        }
        drop(history);
        bed.crash().await;
    }
}

/// Its row is done and it has no place; who asks for it is still told what became of it.
pub async fn a_cancelled_one_is_still_found_by_its_id(bed: &mut dyn Installation) {
    let inbox = Inbox { partition: partition(&*bed.history(), 9).await, ..inbox(&tenant(), 1) };
    let message = message(&inbox);
    let due = send(inbox.partition, &message, 5_000);
    add(&*bed.history(), vec![due.clone()]).await;
    bed.history().settle(&[placeless(&message, &inbox, What::Failed(Reason::Cancelled), 10)]).await.unwrap();
    let done = Schedule { done: vec![due.clone()], ..Schedule::default() };
    bed.history().record(&[], &done).await.unwrap();
    bed.restart().await;
    let history = bed.history();
    assert!(history.due(inbox.partition, Timestamp(i64::MAX), 10).await.unwrap().is_empty());
    let placed = history.messages(&[message.id]).await.unwrap().remove(0).unwrap();
    assert_eq!((&*placed.message, placed.state.reason()), (&message, Some(Reason::Cancelled)));
    add(&*history, vec![due]).await;
    assert!(history.due(inbox.partition, Timestamp(i64::MAX), 10).await.unwrap().is_empty(), "a replay revives it not");
    assert_eq!(history.unread(&inbox).await.unwrap().one_way, 0);
}

/// A row written with its entry.
pub async fn expiry_comes_up_when_it_is_due(bed: &mut dyn Installation) {
    let inbox = Inbox { partition: partition(&*bed.history(), 10).await, ..inbox(&tenant(), 1) };
    let written = entries(&inbox, 1);
    let id = written[0].message.id;
    let kind = DueKind::Expire { id, inbox: inbox.clone(), position: at(1) };
    let due = Due { partition: inbox.partition, at: NOON, id, kind };
    let schedule = Schedule { add: vec![due.clone()], ..Schedule::default() };
    bed.history().record(&written, &schedule).await.unwrap();
    bed.restart().await;
    let history = bed.history();
    assert!(history.due(inbox.partition, Timestamp(NOON.0 - 1), 10).await.unwrap().is_empty());
    assert_eq!(history.due(inbox.partition, NOON, 10).await.unwrap(), std::slice::from_ref(&due));
    history.record(&[], &Schedule { done: vec![due], ..Schedule::default() }).await.unwrap();
    assert!(history.due(inbox.partition, NOON, 10).await.unwrap().is_empty());
    assert_eq!(whole(&*history, &inbox).await, written, "the entry itself stays");
}

/// Who asks by a time of its own, because it does not believe the clock, finds later what stands later.
pub async fn a_look_by_an_earlier_time_hides_nothing(bed: &mut dyn Installation) {
    let history = bed.history();
    let here = partition(&*history, 27).await;
    own(&*history, &[here]).await;
    // Long past by any clock.
    let due = send(here, &message(&inbox(&tenant(), 1)), -10 * 365 * 24 * 3_600_000);
    add(&*history, vec![due.clone()]).await;
    for _ in 0..2 {
        assert!(history.due(here, Timestamp(due.at.0 - 1), 10).await.unwrap().is_empty());
    }
    assert_eq!(history.due(here, due.at, 10).await.unwrap(), [due]);
}

/// Who asks waits no longer than it likes; a look that was given up at any point hides nothing from the next one.
pub async fn a_look_that_was_given_up_hides_nothing(bed: &mut dyn Installation) {
    let here = partition(&*bed.history(), 24).await;
    let inbox = Inbox { partition: here, ..inbox(&tenant(), 1) };
    // In buckets of their own, where a store has any.
    let mut rows: Vec<_> = (0..6).map(|hours| send(here, &message(&inbox), hours * 3_600_000 - 7_200_000)).collect();
    add(&*bed.history(), rows.clone()).await;
    for patience in 0..8 {
        let history = bed.another().await;
        own(&*history, &[here]).await;
        let look = history.due(here, Timestamp(i64::MAX), 100);
        // None at all for the first: it is polled once.
        let _ = tokio::time::timeout(std::time::Duration::from_micros(200 * patience), look).await;
        let row = send(here, &message(&inbox), 100);
        add(&*history, vec![row.clone()]).await;
        rows.push(row);
        rows.sort_by_key(|due| (due.at, due.id));
        let found = history.due(here, Timestamp(i64::MAX), 100).await.unwrap();
        assert_eq!(ids(&found), ids(&rows), "with a patience of {patience}");
    }
}
