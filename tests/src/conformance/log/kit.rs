//! What the rules of the Log port share: places, short ways to append and read, and patience.

use std::time::Duration;

use bytes::Bytes;
use schemas::{
    Offset, Partition, Priority, Topic, TopicPartition,
    port::{Append, Consumer, Event, Fetch, Group, Headers, Log, Record},
};

pub(super) const GROUP: Group = Group("conformance");
pub(super) const OTHER: Group = Group("conformance.other");
pub(super) const HIGH: Topic = Topic::Lane(Priority::High);
pub(super) const LOW: Topic = Topic::Lane(Priority::Low);
pub(super) const MANY: Fetch = Fetch { records: 1_000, bytes: 1 << 22 };
/// Far longer than anything here takes.
pub(super) const SOON: Duration = Duration::from_secs(20);

pub(super) fn at(topic: Topic, partition: u16) -> TopicPartition {
    TopicPartition { topic, partition: Partition(partition) }
}

pub(super) fn record(at: TopicPartition, body: impl Into<Bytes>) -> Append {
    Append { at, headers: Headers::default(), body: body.into() }
}

pub(super) async fn put(log: &dyn Log, at: TopicPartition, bodies: impl IntoIterator<Item = String>) -> Vec<Offset> {
    let records = bodies.into_iter().map(|body| record(at, body)).collect();
    log.append(records).await.into_iter().map(|outcome| outcome.unwrap()).collect()
}

pub(super) async fn all(log: &dyn Log, at: TopicPartition) -> Vec<Record> {
    let (mut from, end) = log.bounds(at).await.unwrap();
    let mut records = Vec::new();
    while from < end {
        let more = log.read(at, from, MANY).await.unwrap();
        from = more.last().expect("there are records before the end").offset.next();
        records.extend(more);
    }
    records
}

pub(super) fn text(record: &Record) -> String {
    String::from_utf8(record.body.to_vec()).unwrap()
}

pub(super) fn assert_dense(records: &[Record], from: u64) {
    for (record, offset) in records.iter().zip(from..) {
        assert_eq!(record.offset, Offset(offset));
    }
}

pub(super) async fn poll(member: &mut dyn Consumer) -> Event {
    tokio::time::timeout(SOON, member.poll(MANY)).await.expect("an event was due").unwrap()
}

/// Polls until so many records came, passing over the rest.
pub(super) async fn take(member: &mut dyn Consumer, count: usize) -> Vec<Record> {
    let mut taken = Vec::new();
    while taken.len() < count {
        if let Event::Records(records) = poll(member).await {
            taken.extend(records);
        }
    }
    assert_eq!(taken.len(), count);
    taken
}

pub(super) async fn assigned(member: &mut dyn Consumer) -> Vec<Partition> {
    match poll(member).await {
        Event::Assigned(partitions) => partitions,
        other => panic!("an assignment was due, not {other:?}"),
    }
}

pub(super) async fn revoked(member: &mut dyn Consumer) -> Vec<Partition> {
    loop {
        match poll(member).await {
            Event::Revoked(partitions) => return partitions,
            Event::Records(_) => {}
            other => panic!("a revocation was due, not {other:?}"),
        }
    }
}

/// Whether nothing comes, as far as a moment can tell.
pub(super) async fn silent(member: &mut dyn Consumer) -> bool {
    tokio::time::timeout(Duration::from_millis(50), member.poll(MANY)).await.is_err()
}
