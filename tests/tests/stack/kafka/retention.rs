//! Retention: Kafka removes what is old whether or not it was read. Whoever comes too late goes on with what is there.

use std::{collections::BTreeSet, time::Duration};

use schemas::{
    Offset, Partition, Priority, Topic, TopicPartition,
    port::{Append, Event, Fetch, Group, Headers, Log as _},
};
use tests::harness::stack;

use super::*;

const GROUP: Group = Group("esh3ar.late");
const LANE: Topic = Topic::Lane(Priority::Normal);
const AT: TopicPartition = TopicPartition { topic: LANE, partition: Partition(0) };
const MAX: Fetch = Fetch { records: 100, bytes: 1 << 20 };
/// A broker looks for what is old every second, and for the first time half a minute after its start.
const PATIENCE: Duration = Duration::from_secs(120);

async fn append(log: &KafkaLog, body: &str) -> Offset {
    let record = Append { at: AT, headers: Headers::default(), body: body.to_owned().into() };
    log.append(vec![record]).await.remove(0).unwrap()
}

/// Joins, and gives what the first event of this kind is.
async fn first<T>(log: &KafkaLog, pick: impl Fn(Event) -> Option<T>) -> (Box<dyn schemas::port::Consumer>, T) {
    let mut member = log.join(GROUP, &[LANE]).await.unwrap();
    let picked = async {
        loop {
            if let Some(picked) = pick(member.poll(MAX).await.unwrap()) {
                return picked;
            }
        }
    };
    let picked = tokio::time::timeout(PATIENCE, picked).await.unwrap();
    (member, picked)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_comes_too_late_goes_on_with_what_is_kept() {
    let address = address(&stack::kafka().await.hosts(), &prefix(), "");
    let short = StoreLimits { log_retention_ms: 3_000, ..limits() };
    topics::create(&address, &short).await.unwrap();
    let log = KafkaLog::open(&address, &short, Arc::new(SystemClock::new())).await.unwrap();
    for n in 0..3 {
        assert_eq!(append(&log, "old").await, Offset(n));
    }
    let (mut member, ()) = first(&log, |event| matches!(event, Event::Assigned(_)).then_some(())).await;
    member.commit(&[(AT, Offset(1))]).await.unwrap();
    member.leave().await.unwrap();

    let gone = async {
        while log.bounds(AT).await.unwrap().0 < Offset(3) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("what is old goes");
    assert_eq!(log.committed(GROUP, &[AT]).await.unwrap(), [Some(Offset(1))]);

    // New ones come all the time, so that one is there however slow this is: what is kept is short.
    let coming = tokio::spawn({
        let log = log.clone();
        async move {
            loop {
                append(&log, "new").await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    });
    let records = |event| match event {
        Event::Records(records) => Some(records),
        _ => None,
    };
    let (mut member, records) = first(&log, records).await;
    let bodies: BTreeSet<_> = records.iter().map(|record| record.body.to_vec()).collect();
    assert_eq!(bodies, BTreeSet::from([b"new".to_vec()]));
    assert!(records.iter().all(|record| record.offset >= Offset(3)), "offsets are not given twice");
    let read = async {
        loop {
            if let Some(first) = log.read(AT, Offset(0), MAX).await.unwrap().into_iter().next() {
                return first;
            }
        }
    };
    let first = tokio::time::timeout(PATIENCE, read).await.unwrap();
    assert!(first.offset >= Offset(3) && first.body.as_ref() == b"new", "a read below the start begins at the start");
    // It commits as if it had read what is gone.
    member.commit(&[(AT, first.offset)]).await.unwrap();
    coming.abort();
    member.leave().await.unwrap();
}
