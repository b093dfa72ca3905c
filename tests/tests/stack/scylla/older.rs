//! Conversations that a release before epochs in turns wrote (schema version 2): they are read as they are, and go on.

use schemas::{
    codec,
    conversation::{Command, Side, Version},
    port::{Conversations, History, Order, Schedule},
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
