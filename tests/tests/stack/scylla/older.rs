//! What earlier releases wrote: conversations from before there were epochs in turns (schema version 2), which are read as they
//! are, and go on; and rows of keys whose messages retention had removed, which say nothing of who uses the key again.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use ops::clock::SystemClock;
use schemas::{
    Clock, Inbox, Message, MessageId, Partition, Position, State, Timestamp, What, codec,
    conversation::{Command, Side, Version},
    port::{Conversations, Due, DueKind, Facts, History, Inboxes, Order, Schedule},
};
use tests::conformance::history::{
    kit::*,
    talking::{Desk, business},
};

use super::{open, shared};

fn time(version: Version) -> i64 {
    i64::try_from(version.0).unwrap()
}

/// Writes rows as they stood then: bare numbers, and nothing beside the values.
async fn as_before(address: &str, schedule: &Schedule) {
    let host = address.trim_start_matches("scylla://").split('/').next().unwrap();
    let session = scylla::client::session_builder::SessionBuilder::new().known_node(host).build().await.unwrap();
    let row = &schedule.conversations[0];
    let talk = "INSERT INTO esh3ar.conversations (id, row) VALUES (?, ?) USING TIMESTAMP ?";
    session.query_unpaged(talk, (row.id.0, codec::encode(row).to_vec(), time(row.version))).await.unwrap();
    for turn in &schedule.turns {
        let (seq, at) = (i64::try_from(turn.seq).unwrap(), time(turn.version));
        let whole = "INSERT INTO esh3ar.turns (conversation, bucket, seq, version, turn) VALUES (?, 0, ?, ?, ?) USING TIMESTAMP ?";
        session.query_unpaged(whole, (row.id.0, seq, at, codec::encode(turn).to_vec(), at)).await.unwrap();
        if let Some(of) = turn.of {
            let change = codec::encode(&(turn.recorded_at, turn.message.kind, &turn.message.content)).to_vec();
            let put = "INSERT INTO esh3ar.changes (conversation, bucket, seq, edit, version, change) VALUES (?, 0, ?, ?, ?, ?) USING TIMESTAMP ?";
            let of = i64::try_from(of).unwrap();
            session.query_unpaged(put, (row.id.0, of, seq, at, change, at)).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn threads_that_were_written_before_there_were_epochs_go_on() {
    let address = shared().await;
    let history = open(address).await;
    let mut desk = Desk::new(15);
    let (pair, none) = (desk.pair("sara", 1), |_| schemas::State::default());
    let said: Vec<_> = (0..5).map(|n| desk.say(&pair, Side::Business, &format!("{n}")).unwrap()).collect();
    let content = message(&inbox(&desk.tenant, 1)).content;
    desk.ask(&pair, business("sara"), Command::Edit { of: said[1], content }).unwrap();
    let (entries, schedule) = desk.take();
    desk.model.record(&schedule);
    record(&*history, &entries).await;
    as_before(address, &schedule).await;
    let reads = async |desk: &Desk| {
        for order in [Order::Oldest, Order::Newest] {
            let (mut from, mut rows) = (None, Vec::new());
            loop {
                let page = history.turns(pair.id(), order, from, 2).await.unwrap();
                rows.extend(page.rows);
                let Some(next) = page.next else { break };
                from = Some(next);
            }
            assert_eq!(rows, desk.model.turns(pair.id(), order, None, 100, none).rows);
        }
        let row = history.conversations(&[pair.id()]).await.unwrap().remove(0).unwrap();
        assert_eq!(row.last_seq, desk.rows[&pair.id()].last_seq);
    };
    reads(&desk).await;
    // Somebody takes it over, and goes on.
    let mut next =
        desk.successor(&*history as &dyn History, std::slice::from_ref(&pair), &[pair.mobile(), pair.business()]).await;
    reads(&next).await;
    for n in 5..8 {
        next.say(&pair, Side::Mobile, &format!("{n}")).unwrap();
    }
    let content = message(&inbox(&next.tenant, 1)).content;
    next.ask(&pair, business("sara"), Command::Edit { of: said[2], content }).unwrap();
    next.record(&*history).await;
    reads(&next).await;
}

/// Retention left the row of a scheduled message's key until its time to live: the key is used again, with another text.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_retention_left_is_not_of_who_uses_its_key_again() {
    type Row = (i64, String, i32, i64, Vec<u8>, Option<Vec<u8>>, Option<Vec<u8>>);
    let address = shared().await;
    let (history, partition) = (open(address).await, Partition(27));
    let inbox = Inbox { partition, ..inbox(&tenant(), 1) };
    let id = MessageId::of_key(&inbox.user.tenant, "", "order-4711", &inbox.user);
    let (first, second) = (Message { id, ..message(&inbox) }, Message { id, ..message(&inbox) });
    let epoch = own(&*history as &dyn History, &[partition]).await[0];
    let due = |message: &Message| {
        let kind = DueKind::Send(Arc::new(message.clone()));
        Due { partition, at: NOON, id, kind }
    };
    let schedule = |add: Vec<Due>, done: Vec<Due>| {
        let epochs = BTreeSet::from([(partition, epoch)]);
        Schedule { add, done, epochs, ..Schedule::default() }
    };
    history.record(&[], &schedule(vec![due(&first)], vec![])).await.unwrap();
    let sent = entry(&inbox, Position { epoch, n: 1 }, Position::START, 1, first.clone());
    history.record(std::slice::from_ref(&sent), &schedule(vec![], vec![due(&first)])).await.unwrap();
    history.settle(&[fact(&sent, What::Read, 1)]).await.unwrap();
    let host = address.trim_start_matches("scylla://").split('/').next().unwrap();
    let session = scylla::client::session_builder::SessionBuilder::new().known_node(host).build().await.unwrap();
    let look = "SELECT slot, inbox, epoch, n, head, state, body FROM esh3ar.places WHERE id = ? ALLOW FILTERING";
    let rows = async || -> Vec<Row> {
        let found = session.query_unpaged(look, (id.0,)).await.unwrap().into_rows_result().unwrap();
        found.rows::<Row>().unwrap().map(|row| row.unwrap()).collect()
    };
    let (slot, name, of, n, head, state, body) = rows().await.remove(0);
    assert!(state.is_some() && body.is_some());
    // Several: an earlier run may have left others.
    for _ in 0..20 {
        history.retain(partition, Timestamp(NOON.0 + 1), 1_000).await.unwrap();
    }
    assert!(rows().await.is_empty(), "this release removes it");
    // As an earlier release left it, later than that and before anything is written anew.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let wall = SystemClock::new().wall().0 - 1_577_836_800_000;
    let put = "INSERT INTO esh3ar.places (slot, id, inbox, epoch, n, head, state, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?";
    let values = (slot, id.0, name, of, n, head, state, body, (i64::from(epoch.0) << 40) + wall);
    session.query_unpaged(put, values).await.unwrap();
    assert_eq!(rows().await.len(), 1);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(history.known(&[id]).await.unwrap(), [None]);
    let again = due(&second);
    history.record(&[], &schedule(vec![again.clone()], vec![])).await.unwrap();
    let placed = history.messages(&[id]).await.unwrap().remove(0).unwrap();
    assert_eq!((&*placed.message, placed.position, placed.state), (&second, None, State::default()));
    let mut waiting = history.due(partition, NOON, 1_000).await.unwrap();
    waiting.retain(|row| row.id == id);
    assert_eq!(waiting, std::slice::from_ref(&again));
    // It is done away with, so that a later run finds nothing that waits here.
    let sent = entry(&inbox, Position { epoch, n: 2 }, sent.position, 2, second);
    history.record(std::slice::from_ref(&sent), &schedule(vec![], vec![again])).await.unwrap();
    history.settle(&[fact(&sent, What::Read, 2)]).await.unwrap();
}
