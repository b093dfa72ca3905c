//! What is gone leaves its mark: more graves than a server passes in one read, and inboxes whose beginning ended by its time to
//! live before retention came by.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use ops::clock::SystemClock;
use schemas::{
    Clock, Inbox, Message, MessageId, Partition, Timestamp, What,
    limits::StoreLimits,
    port::{Due, DueKind, Facts, Inboxes, PortResult, Schedule},
    time::ManualClock,
};
use scylla::{
    client::{session::Session, session_builder::SessionBuilder},
    statement::batch::{Batch, BatchType},
};
use stores::{history::scylla::ScyllaHistory, urls::Address};
use tests::conformance::history::kit::*;
use uuid::Uuid;

use super::{open, shared};

/// More than Cassandra passes in one read (`tombstone_failure_threshold`, 100,000).
const GRAVES: u128 = 130_000;
/// The first of their ids, as of messages of one broadcast.
const IDS: u128 = 0x5599_0000_0000_7000_8000_0000_0000_0000;
const BUCKET_MS: i64 = 600_000;

async fn session() -> Session {
    let host = shared().await.trim_start_matches("scylla://").split('/').next().unwrap();
    SessionBuilder::new().known_node(host).build().await.unwrap()
}

/// What rows of one time of a part of the due-table leave that are done with.
async fn bury(session: &Session, name: &str, at: Timestamp) {
    let text =
        "DELETE FROM esh3ar.due USING TIMESTAMP 1 WHERE name = ? AND bucket = ? AND at = ? AND id = ? AND kind = 0";
    let gone = session.prepare(text).await.unwrap();
    let ids: Vec<u128> = (0..GRAVES).collect();
    let batches = ids.chunks(200).map(|ids| {
        let mut batch = Batch::new(BatchType::Unlogged);
        ids.iter().for_each(|_| batch.append_statement(gone.clone()));
        let id = |n: &u128| Uuid::from_u128(IDS + (n << 32)).as_bytes().to_vec();
        let values: Vec<_> = ids.iter().map(|n| (name, at.0.div_euclid(BUCKET_MS), at.0, id(n))).collect();
        async move { session.batch(&batch, values).await.map(drop) }
    });
    stream::iter(batches.collect::<Vec<_>>()).buffer_unordered(8).try_collect::<()>().await.unwrap();
}

/// A read over all of them is refused: otherwise the cases below prove nothing.
async fn is_refused(session: &Session, name: &str, at: Timestamp) -> bool {
    let all = "SELECT at FROM esh3ar.due WHERE name = ? AND bucket = ? AND at >= ? LIMIT 10";
    session.query_unpaged(all, (name, at.0.div_euclid(BUCKET_MS), at.0)).await.is_err()
}

/// Very many messages are done with at the time for which others are scheduled: those come up all the same, also to a process
/// that remembers nothing, and one that comes late does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_due_comes_up_behind_any_number_of_graves() {
    let (partition, now) = (Partition(41), SystemClock::new().wall());
    let (at, inbox) = (Timestamp(now.0 - 1_000), Inbox { partition, ..inbox(&tenant(), 1) });
    let scheduled = |id: u128, at: Timestamp| {
        let id = MessageId(Uuid::from_u128(id | (Uuid::new_v4().as_u128() >> 64)));
        let kind = DueKind::Send(Arc::new(Message { id, ..message(&inbox) }));
        Due { partition, at, id, kind }
    };
    let history = open(shared().await).await;
    let epoch = own(&*history, &[partition]).await[0];
    let schedule = |add: Vec<Due>, done: Vec<Due>| {
        let epochs = [(partition, epoch)].into();
        Schedule { add, done, epochs, ..Schedule::default() }
    };
    let (before, behind) = (scheduled(0x11 << 120, at), scheduled(0xee << 120, at));
    let ids = async |history: &ScyllaHistory, limit: usize| -> PortResult<Vec<MessageId>> {
        let mut due = history.due(partition, now, limit).await?;
        // An earlier run may have left others.
        due.retain(|due| due.id == before.id || due.id == behind.id);
        Ok(due.into_iter().map(|due| due.id).collect())
    };
    history.record(&[], &schedule(vec![before.clone(), behind.clone()], vec![])).await.unwrap();
    let session = session().await;
    bury(&session, "due/41", at).await;
    assert!(is_refused(&session, "due/41", at).await, "the servers pass that many");
    // The first row stays where it is, in front of all graves: each look finds both.
    for limit in [1_000, 1_000, 1_001] {
        assert_eq!(ids(&*history, limit).await.unwrap(), [before.id, behind.id]);
    }
    // A process that remembers nothing; and the owner, once the first is done with.
    let other = open(shared().await).await;
    assert_eq!(ids(&*other, 1_000).await.unwrap(), [before.id, behind.id]);
    history.record(&[], &schedule(vec![], vec![before.clone()])).await.unwrap();
    for _ in 0..2 {
        assert_eq!(ids(&*history, 1_000).await.unwrap(), [behind.id]);
    }
    // One that comes late stands before what was passed.
    let late = scheduled(0x22 << 120, at);
    history.record(&[], &schedule(vec![late.clone()], vec![])).await.unwrap();
    for _ in 0..2 {
        let due = history.due(partition, now, 1_000).await.unwrap();
        let due: Vec<_> = due.into_iter().map(|due| due.id).filter(|id| [late.id, behind.id].contains(id)).collect();
        assert_eq!(due, [late.id, behind.id]);
    }
    history.record(&[], &schedule(vec![], vec![late.clone(), behind.clone()])).await.unwrap();
    assert_eq!(ids(&*history, 1_000).await.unwrap(), []);
}

/// The same for ids that never got a place, which retention looks for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a minute: run by the suite `cluster`"]
async fn retention_comes_past_any_number_of_graves() {
    let (partition, now) = (Partition(42), SystemClock::new().wall());
    let (history, session, at) = (open(shared().await).await, session().await, Timestamp(now.0 - 1_000));
    let bucket = at.0.div_euclid(BUCKET_MS);
    let lists = "INSERT INTO esh3ar.buckets (name, bucket) VALUES ('loose/42', ?)";
    session.query_unpaged(lists, (bucket,)).await.unwrap();
    let row = "INSERT INTO esh3ar.due (name, bucket, at, id, kind, value) VALUES ('loose/42', ?, ?, ?, 0, 0x) USING TIMESTAMP 2";
    let id = Uuid::from_u128(0xee << 120 | Uuid::new_v4().as_u128() >> 64).as_bytes().to_vec();
    session.query_unpaged(row, (bucket, at.0, id.clone())).await.unwrap();
    bury(&session, "loose/42", at).await;
    assert!(is_refused(&session, "loose/42", at).await, "the servers pass that many");
    for _ in 0..2 {
        history.retain(partition, now, 1_000).await.unwrap();
    }
    let left = "SELECT at FROM esh3ar.due WHERE name = 'loose/42' AND bucket = ? AND at = ? AND id = ?";
    let left = session.query_unpaged(left, (bucket, at.0, id)).await.unwrap().into_rows_result().unwrap();
    assert_eq!(left.rows_num(), 0, "it goes");
}

/// Ends what stands in an inbox before this number, as its time to live would.
async fn end(session: &Session, inbox: &Inbox, n: i64) {
    let name = format!("{}/{}", inbox.partition.0, inbox.user);
    for bucket in 0..=(n - 1) / 4_096 {
        let ended = "DELETE FROM esh3ar.entries_by_inbox WHERE inbox = ? AND bucket = ? AND n < ?";
        session.query_unpaged(ended, (name.as_str(), bucket, n)).await.unwrap();
    }
}

/// Somebody who reads long after these cases' noon, and retains.
async fn later() -> Arc<ScyllaHistory> {
    let clock = Arc::new(ManualClock::at(NOON.plus_ms(7_200_000)));
    let address = Address::parse(shared().await).unwrap();
    ScyllaHistory::open(&address, &StoreLimits::default(), clock).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inbox_whose_beginning_ended_is_read_from_where_it_stands() {
    let (partition, session) = (Partition(43), session().await);
    let (short, long) = (Inbox { partition, ..inbox(&tenant(), 1) }, Inbox { partition, ..inbox(&tenant(), 2) });
    let history = later().await;
    let written = entries(&short, 6);
    record(&*history, &written).await;
    let many = entries(&long, 4_100);
    for some in many.chunks(500) {
        record(&*history, some).await;
    }
    end(&session, &short, 4).await;
    // A whole bucket and more.
    end(&session, &long, 4_099).await;
    for (inbox, first, last) in [(&short, 4, 6), (&long, 4_099, 4_100)] {
        let all: Vec<_> = (first..=last).map(at).collect();
        for (from, passed) in [(0, true), (2, true), (first - 2, true), (first - 1, false), (first, false)] {
            let span = history.read(inbox, at(from), 10).await.unwrap();
            assert_eq!(span.passed_by_retention, passed, "from {from}");
            let rest: Vec<_> = all.iter().copied().filter(|at| at.n > from).collect();
            assert_eq!(places(&entries_of(span)), rest, "from {from}");
        }
        assert_eq!(history.tails(std::slice::from_ref(inbox)).await.unwrap()[0].position, at(last));
    }
    // Retention goes on from there, and what ended unread is not unread for ever.
    assert_eq!(history.unread(&short).await.unwrap().one_way, 6);
    let left = written[3..].iter().chain(&many[4_098..]);
    let facts: Vec<_> = left.map(|entry| fact(entry, What::Read, 1)).collect();
    history.settle(&facts).await.unwrap();
    for _ in 0..20 {
        // Several: an earlier run may have left others.
        history.retain(partition, Timestamp(NOON.0 + 1), 1_000).await.unwrap();
    }
    let span = history.read(&short, at(3), 10).await.unwrap();
    assert!(span.entries.is_empty() && span.passed_by_retention);
    assert_eq!(history.unread(&short).await.unwrap().one_way, 0);
}

/// What is missing before an entry of a moment ago may be on its way: nobody is taken past it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_be_on_its_way_is_not_taken_for_ended() {
    let (history, session) = (later().await, session().await);
    let inbox = Inbox { partition: Partition(44), ..inbox(&tenant(), 1) };
    let mut written = entries(&inbox, 4_100);
    written.iter_mut().for_each(|entry| entry.recorded_at = NOON.plus_ms(7_199_000));
    for some in written.chunks(500) {
        record(&*history, some).await;
    }
    let gone = "DELETE FROM esh3ar.entries_by_inbox WHERE inbox = ? AND bucket = 0 AND n >= 4096";
    session.query_unpaged(gone, (format!("{}/{}", inbox.partition.0, inbox.user),)).await.unwrap();
    // The last of a bucket is missing.
    for from in [4_094, 4_095] {
        let span = history.read(&inbox, at(from), 10).await.unwrap();
        assert_eq!(places(&entries_of(span)), (from + 1..4_096).map(at).collect::<Vec<_>>());
    }
}
