//! The rules of the Log port, for any adapter.

mod kit;

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use schemas::{
    Offset, Partition, Priority, Topic, TopicPartition,
    port::{Append, Event, Fetch, Headers, Log, PortError},
    tier::{Attempt, Tier},
};

use self::kit::*;

/// Makes a log of at least four partitions, and opens the same one again.
#[async_trait]
pub trait Maker: Send {
    /// Opens it. The one opened before has been closed or lost.
    async fn open(&mut self) -> Arc<dyn Log>;
    /// Ends it as a stop does. Every handle was dropped.
    async fn close(&mut self);
    /// Ends it as a crash of the process does.
    async fn lose(&mut self);
    /// Lets so much time pass and has old records removed as they would be by then.
    async fn pass(&mut self, ms: u64);
    /// How long records are kept, ms.
    fn retention_ms(&self) -> u64;
    /// Whether its retention knows the groups. Kafka's does not: there what is old goes, read or not, and the settings have to
    /// be chosen so that nobody is that late.
    fn retention_waits(&self) -> bool {
        true
    }
}

/// One test of each rule.
#[macro_export]
macro_rules! log_conformance {
    ($adapter:ident, $make:expr) => {
        $crate::rules!(log, $adapter, $make;
            offsets_are_dense_under_many_appenders,
            one_call_keeps_its_order,
            a_record_comes_back_as_it_was_appended,
            each_record_has_an_outcome_of_its_own,
            a_read_begins_anywhere_and_keeps_its_bounds,
            what_was_acknowledged_survives_a_stop_and_a_crash,
            a_reader_meets_no_gap_while_others_append,
            committed_offsets_survive,
            a_group_begins_at_the_start_and_goes_on_where_it_committed,
            a_waiting_member_is_woken,
            a_paused_partition_is_silent_until_resumed,
            a_full_partition_does_not_starve_the_others,
            a_dropped_poll_loses_nothing,
            two_members_share_and_hand_over,
            a_member_that_is_dropped_gives_up,
            only_the_owner_commits,
            groups_do_not_disturb_each_other,
            retention_waits_for_every_group,
        );
    };
}

/// Records of one partition have dense offsets from zero in the order they were appended.
pub async fn offsets_are_dense_under_many_appenders(mut maker: impl Maker) {
    let log = maker.open().await;
    let appenders = (0..64).map(|who| {
        let log = log.clone();
        tokio::spawn(async move {
            let mut given = Vec::new();
            for turn in 0..25u64 {
                let at = at(HIGH, (turn % 3) as u16);
                given.push((at, put(&*log, at, [format!("{who}.{turn}")]).await[0], format!("{who}.{turn}")));
            }
            given
        })
    });
    let mut given: BTreeMap<TopicPartition, BTreeMap<Offset, String>> = BTreeMap::new();
    for appender in futures::future::join_all(appenders).await {
        for (at, offset, body) in appender.unwrap() {
            assert_eq!(given.entry(at).or_default().insert(offset, body), None, "an offset was given twice");
        }
    }
    for (at, given) in given {
        let read = all(&*log, at).await;
        assert_dense(&read, 0);
        assert_eq!(read.iter().map(text).collect::<Vec<_>>(), given.into_values().collect::<Vec<_>>());
    }
}

/// One caller's records of one call keep their order, however many they are.
pub async fn one_call_keeps_its_order(mut maker: impl Maker) {
    let log = maker.open().await;
    let noise = {
        let log = log.clone();
        tokio::spawn(async move { put(&*log, at(LOW, 1), (0..200).map(|n| format!("noise {n}"))).await })
    };
    let call = (0..3_000u64).map(|n| record(at(LOW, (n % 4) as u16), format!("call {n:05}"))).collect();
    let outcomes = log.append(call).await;
    assert!(outcomes.iter().all(Result::is_ok));
    noise.await.unwrap();
    for partition in 0..4 {
        let read: Vec<_> =
            all(&*log, at(LOW, partition)).await.iter().map(text).filter(|t| t.starts_with("call")).collect();
        assert_eq!(read.len(), 750);
        assert!(read.is_sorted());
    }
}

/// Headers, body and place come back as they were given.
pub async fn a_record_comes_back_as_it_was_appended(mut maker: impl Maker) {
    let log = maker.open().await;
    let here = at(Topic::Retry(Tier::ALL[2]), 3);
    let headers = Headers {
        id: Some(schemas::MessageId::fresh(schemas::Timestamp(1_700_000_000_000))),
        tenant: "acme".parse().ok(),
        priority: Some(Priority::High),
        attempt: Attempt(4),
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
    };
    let bodies = [Bytes::new(), Bytes::from(vec![0, 255, 7]), Bytes::from(vec![42; 64 * 1024])];
    for body in &bodies {
        let append = Append { at: here, headers: headers.clone(), body: body.clone() };
        log.append(vec![append]).await.remove(0).unwrap();
    }
    drop(log);
    maker.close().await;
    let log = maker.open().await;
    let read = all(&*log, here).await;
    assert_eq!(read.iter().map(|r| r.body.clone()).collect::<Vec<_>>(), bodies);
    assert!(read.iter().all(|record| record.headers == headers && record.at == here));
}

/// Each record of a call has its own outcome.
pub async fn each_record_has_an_outcome_of_its_own(mut maker: impl Maker) {
    let log = maker.open().await;
    let nowhere = at(HIGH, log.partitions());
    let call = vec![record(at(HIGH, 0), "a"), record(nowhere, "b"), record(at(HIGH, 0), "c")];
    let outcomes = log.append(call).await;
    assert_eq!((&outcomes[0], &outcomes[2]), (&Ok(Offset(0)), &Ok(Offset(1))));
    assert!(matches!(outcomes[1], Err(PortError::Rejected(_))));
    assert_eq!(log.append(Vec::new()).await, Vec::new());
    assert!(matches!(log.read(nowhere, Offset(0), MANY).await, Err(PortError::Rejected(_))));
    log.check().await.unwrap();
}

/// An offset below the start reads from the start, at the end there is nothing, and at least one record comes.
pub async fn a_read_begins_anywhere_and_keeps_its_bounds(mut maker: impl Maker) {
    let log = maker.open().await;
    let here = at(HIGH, 2);
    // In calls of several sizes, so that a beginning falls into the middle of one.
    for (size, first) in [(1, 0), (700, 1), (3, 701), (96, 704)] {
        put(&*log, here, (first..first + size).map(|n| format!("{n:04}"))).await;
    }
    let mut open = Some(log);
    for _ in 0..2 {
        // The second time nothing is in memory.
        let log = match open.take() {
            Some(log) => log,
            None => maker.open().await,
        };
        assert_eq!(log.bounds(here).await, Ok((Offset(0), Offset(800))));
        for from in [0, 1, 2, 350, 511, 512, 513, 700, 701, 703, 704, 799] {
            let read = log.read(here, Offset(from), MANY).await.unwrap();
            assert_dense(&read, from);
            assert_eq!((read.len() as u64, text(&read[0])), (800 - from, format!("{from:04}")));
            let few = log.read(here, Offset(from), Fetch { records: 5, bytes: 1 << 20 }).await.unwrap();
            assert_eq!(few.len() as u64, 5.min(800 - from));
            let small = log.read(here, Offset(from), Fetch { records: 100, bytes: 9 }).await.unwrap();
            assert_eq!(small.len() as u64, 2.min(800 - from));
            let tiny = log.read(here, Offset(from), Fetch { records: 100, bytes: 0 }).await.unwrap();
            assert_eq!(tiny.len(), 1);
        }
        for from in [800, 801, u64::MAX] {
            assert_eq!(log.read(here, Offset(from), MANY).await, Ok(Vec::new()));
        }
        drop(log);
        maker.lose().await;
    }
}

/// An `Ok` append is never lost, and offsets go on where they stood.
pub async fn what_was_acknowledged_survives_a_stop_and_a_crash(mut maker: impl Maker) {
    let mut count = 0;
    for crash in [false, true, true, false] {
        let log = maker.open().await;
        for partition in 0..4 {
            let read = all(&*log, at(HIGH, partition)).await;
            assert_dense(&read, 0);
            assert_eq!(read.len(), count);
            let given = put(&*log, at(HIGH, partition), (0..10).map(|n| format!("{}", count + n))).await;
            assert_eq!(given[0], Offset(count as u64));
        }
        count += 10;
        drop(log);
        if crash { maker.lose().await } else { maker.close().await }
    }
}

/// Up to the end there is every record, and nothing after it, also while others append.
pub async fn a_reader_meets_no_gap_while_others_append(mut maker: impl Maker) {
    let log = maker.open().await;
    let here = at(HIGH, 1);
    let appenders: Vec<_> = (0..8)
        .map(|who| {
            let log = log.clone();
            tokio::spawn(async move {
                for turn in 0..40 {
                    put(&*log, here, [format!("{who}.{turn}")]).await;
                }
            })
        })
        .collect();
    let mut next = Offset(0);
    while next < Offset(320) {
        let (_, end) = log.bounds(here).await.unwrap();
        let read = log.read(here, next, MANY).await.unwrap();
        assert_dense(&read, next.0);
        assert!(read.len() as u64 >= (end.0 - next.0).min(1), "records before the end can be read");
        next = read.last().map_or(next, |record| record.offset.next());
        tokio::task::yield_now().await;
    }
    for appender in appenders {
        appender.await.unwrap();
    }
}

/// A group's committed offsets are there after a stop; where it never committed there is none.
pub async fn committed_offsets_survive(mut maker: impl Maker) {
    let log = maker.open().await;
    put(&*log, at(HIGH, 0), (0..10).map(|n| n.to_string())).await;
    put(&*log, at(LOW, 2), (0..10).map(|n| n.to_string())).await;
    let places = [at(HIGH, 0), at(LOW, 2), at(LOW, 3)];
    assert_eq!(log.committed(GROUP, &places).await, Ok(vec![None; 3]));
    let mut member = log.join(GROUP, &[HIGH, LOW]).await.unwrap();
    assigned(&mut *member).await;
    member.commit(&[(at(HIGH, 0), Offset(3)), (at(LOW, 2), Offset(10))]).await.unwrap();
    member.commit(&[(at(HIGH, 0), Offset(4))]).await.unwrap();
    let committed = vec![Some(Offset(4)), Some(Offset(10)), None];
    assert_eq!(log.committed(GROUP, &places).await, Ok(committed.clone()));
    member.leave().await.unwrap();
    drop(log);
    maker.close().await;
    let log = maker.open().await;
    assert_eq!(log.committed(GROUP, &places).await, Ok(committed));
    assert_eq!(log.committed(OTHER, &places).await, Ok(vec![None; 3]));
}

/// A member reads from the committed offset on, or from the start.
pub async fn a_group_begins_at_the_start_and_goes_on_where_it_committed(mut maker: impl Maker) {
    let log = maker.open().await;
    put(&*log, at(HIGH, 0), (0..30).map(|n| n.to_string())).await;
    let mut member = log.join(GROUP, &[HIGH]).await.unwrap();
    let mine = assigned(&mut *member).await;
    assert_eq!(mine.len(), usize::from(log.partitions()));
    let read = take(&mut *member, 30).await;
    assert_dense(&read, 0);
    member.commit(&[(at(HIGH, 0), Offset(12))]).await.unwrap();
    member.leave().await.unwrap();
    let mut next = log.join(GROUP, &[HIGH]).await.unwrap();
    assigned(&mut *next).await;
    assert_dense(&take(&mut *next, 18).await, 12);
    drop(next);
    drop(log);
    maker.close().await;
    let log = maker.open().await;
    let mut last = log.join(GROUP, &[HIGH]).await.unwrap();
    assigned(&mut *last).await;
    assert_dense(&take(&mut *last, 18).await, 12);
}

/// A member that waits is woken by an append, in whatever topic it joined.
pub async fn a_waiting_member_is_woken(mut maker: impl Maker) {
    let log = maker.open().await;
    let mut member = log.join(GROUP, &[HIGH, LOW, Topic::Outcomes]).await.unwrap();
    assigned(&mut *member).await;
    assert!(silent(&mut *member).await);
    for turn in 0..50u64 {
        let topic = [HIGH, LOW, Topic::Outcomes][turn as usize % 3];
        let here = at(topic, (turn % 4) as u16);
        let log = log.clone();
        let append = tokio::spawn(async move { put(&*log, here, [format!("{turn}")]).await });
        let read = take(&mut *member, 1).await;
        assert_eq!((read[0].at, text(&read[0])), (here, format!("{turn}")));
        append.await.unwrap();
    }
}

/// A paused partition gives nothing, what was appended meanwhile comes after it is resumed, and nothing comes twice.
pub async fn a_paused_partition_is_silent_until_resumed(mut maker: impl Maker) {
    let log = maker.open().await;
    let (one, two) = (at(HIGH, 0), at(HIGH, 1));
    let mut member = log.join(GROUP, &[HIGH]).await.unwrap();
    assigned(&mut *member).await;
    put(&*log, one, ["a".into()]).await;
    assert_eq!(take(&mut *member, 1).await[0].at, one);
    member.pause(&[one]);
    put(&*log, one, ["b".into(), "c".into()]).await;
    put(&*log, two, ["x".into()]).await;
    assert_eq!(take(&mut *member, 1).await[0].at, two);
    assert!(silent(&mut *member).await);
    member.resume(&[one]);
    let read = take(&mut *member, 2).await;
    assert_dense(&read, 1);
    // Resuming what was not paused changes nothing.
    member.resume(&[one, two]);
    assert!(silent(&mut *member).await);
}

/// Partitions take turns.
pub async fn a_full_partition_does_not_starve_the_others(mut maker: impl Maker) {
    let log = maker.open().await;
    put(&*log, at(HIGH, 0), (0..5_000).map(|n| n.to_string())).await;
    put(&*log, at(LOW, 3), ["small".into()]).await;
    let mut member = log.join(GROUP, &[HIGH, LOW]).await.unwrap();
    assigned(&mut *member).await;
    for _ in 0..3 {
        let Event::Records(records) = member.poll(Fetch { records: 100, bytes: 1 << 20 }).await.unwrap() else {
            panic!("records were due")
        };
        assert!(records.len() <= 100);
        if records.iter().any(|record| record.at == at(LOW, 3)) {
            return;
        }
    }
    panic!("the small partition was starved");
}

/// What a dropped poll had not returned comes again.
pub async fn a_dropped_poll_loses_nothing(mut maker: impl Maker) {
    let log = maker.open().await;
    let here = at(HIGH, 3);
    put(&*log, here, (0..300).map(|n| n.to_string())).await;
    drop(log);
    maker.lose().await;
    let log = maker.open().await;
    let appender = {
        let log = log.clone();
        tokio::spawn(async move {
            for n in 300..600 {
                put(&*log, here, [n.to_string()]).await;
            }
        })
    };
    let mut member = log.join(GROUP, &[HIGH]).await.unwrap();
    let mut read = Vec::new();
    let mut turn = 0u32;
    while read.len() < 600 {
        turn += 1;
        let poll = member.poll(Fetch { records: 7, bytes: 1 << 20 });
        // Two of three are dropped after they were polled once.
        if !turn.is_multiple_of(3) {
            if let Some(Ok(Event::Records(records))) = futures::FutureExt::now_or_never(poll) {
                read.extend(records);
            }
        } else if let Event::Records(records) = tokio::time::timeout(SOON, poll).await.unwrap().unwrap() {
            read.extend(records);
        }
    }
    assert_dense(&read, 0);
    assert_eq!(read.len(), 600);
    appender.await.unwrap();
}

/// A partition number has one owner at a time, in all topics, and the next one goes on where the last committed.
pub async fn two_members_share_and_hand_over(mut maker: impl Maker) {
    let log = maker.open().await;
    let count = log.partitions();
    for partition in 0..count {
        put(&*log, at(HIGH, partition), ["a".into(), "b".into()]).await;
        put(&*log, at(LOW, partition), ["a".into()]).await;
    }
    let mut first = log.join(GROUP, &[HIGH, LOW]).await.unwrap();
    assert_eq!(assigned(&mut *first).await.len(), usize::from(count));
    take(&mut *first, usize::from(count) * 3).await;
    let mut second = log.join(GROUP, &[HIGH, LOW]).await.unwrap();
    let given = revoked(&mut *first).await;
    assert_eq!(given.len(), usize::from(count / 2));
    // Until they are released they are nobody else's, and the old owner can still commit.
    assert!(silent(&mut *second).await);
    for partition in &given {
        let places = [(at(HIGH, partition.0), Offset(1)), (at(LOW, partition.0), Offset(1))];
        first.commit(&places).await.unwrap();
        put(&*log, at(HIGH, partition.0), ["c".into()]).await;
    }
    assert!(silent(&mut *first).await, "a revoked partition gives its old owner nothing");
    first.release(&given).await.unwrap();
    let mut taken = assigned(&mut *second).await;
    taken.sort_unstable();
    let mut sorted = given.clone();
    sorted.sort_unstable();
    assert_eq!(taken, sorted);
    let read = take(&mut *second, given.len() * 2).await;
    assert!(read.iter().all(|r| r.at.topic == HIGH && taken.contains(&r.at.partition) && r.offset >= Offset(1)));
    // The rest still belongs to the first.
    for partition in (0..count).map(Partition).filter(|p| !taken.contains(p)) {
        put(&*log, at(LOW, partition.0), ["z".into()]).await;
    }
    take(&mut *first, usize::from(count) - taken.len()).await;
    assert!(silent(&mut *second).await);
}

/// A member that leaves or is dropped has given up everything.
pub async fn a_member_that_is_dropped_gives_up(mut maker: impl Maker) {
    let log = maker.open().await;
    let count = usize::from(log.partitions());
    let mut first = log.join(GROUP, &[HIGH]).await.unwrap();
    assigned(&mut *first).await;
    let mut second = log.join(GROUP, &[HIGH]).await.unwrap();
    drop(first);
    assert_eq!(assigned(&mut *second).await.len(), count);
    let mut third = log.join(GROUP, &[HIGH]).await.unwrap();
    let given = revoked(&mut *second).await;
    second.release(&given).await.unwrap();
    assert_eq!(assigned(&mut *third).await.len(), given.len());
    third.leave().await.unwrap();
    assert_eq!(assigned(&mut *second).await.len(), given.len());
}

/// A commit of a partition that is not this member's is refused, and changes nothing.
pub async fn only_the_owner_commits(mut maker: impl Maker) {
    let log = maker.open().await;
    for partition in 0..log.partitions() {
        put(&*log, at(HIGH, partition), ["a".into(), "b".into()]).await;
    }
    let mut first = log.join(GROUP, &[HIGH]).await.unwrap();
    assigned(&mut *first).await;
    let mut second = log.join(GROUP, &[HIGH]).await.unwrap();
    let given = revoked(&mut *first).await;
    let here = at(HIGH, given[0].0);
    assert!(matches!(second.commit(&[(here, Offset(1))]).await, Err(PortError::Rejected(_))));
    first.release(&given).await.unwrap();
    assigned(&mut *second).await;
    let kept = (0..log.partitions()).map(Partition).find(|p| !given.contains(p)).unwrap();
    let both = [(at(HIGH, kept.0), Offset(1)), (here, Offset(1))];
    assert!(matches!(first.commit(&both).await, Err(PortError::Rejected(_))));
    assert_eq!(log.committed(GROUP, &[at(HIGH, kept.0), here]).await, Ok(vec![None, None]));
    second.commit(&[(here, Offset(2))]).await.unwrap();
    assert_eq!(log.committed(GROUP, &[here]).await, Ok(vec![Some(Offset(2))]));
}

/// Every group has all records and offsets of its own.
pub async fn groups_do_not_disturb_each_other(mut maker: impl Maker) {
    let log = maker.open().await;
    put(&*log, at(HIGH, 0), (0..5).map(|n| n.to_string())).await;
    let mut one = log.join(GROUP, &[HIGH]).await.unwrap();
    let mut two = log.join(OTHER, &[HIGH, LOW]).await.unwrap();
    assigned(&mut *one).await;
    assigned(&mut *two).await;
    assert_dense(&take(&mut *one, 5).await, 0);
    one.commit(&[(at(HIGH, 0), Offset(5))]).await.unwrap();
    assert_dense(&take(&mut *two, 5).await, 0);
    assert_eq!(log.committed(OTHER, &[at(HIGH, 0)]).await, Ok(vec![None]));
}

/// Retention never removes what a group that has committed here has not yet passed (rule 12), and then it does.
pub async fn retention_waits_for_every_group(mut maker: impl Maker) {
    if !maker.retention_waits() {
        return;
    }
    let log = maker.open().await;
    let here = at(HIGH, 0);
    let keep = maker.retention_ms();
    put(&*log, here, (0..100).map(|n| n.to_string())).await;
    let mut one = log.join(GROUP, &[HIGH]).await.unwrap();
    let mut two = log.join(OTHER, &[HIGH]).await.unwrap();
    assigned(&mut *one).await;
    assigned(&mut *two).await;
    one.commit(&[(here, Offset(100))]).await.unwrap();
    two.commit(&[(here, Offset(99))]).await.unwrap();
    for _ in 0..4 {
        maker.pass(keep).await;
        put(&*log, at(LOW, 1), ["time goes by".into()]).await;
    }
    assert_eq!(log.bounds(here).await, Ok((Offset(0), Offset(100))), "the slower group had not passed the last record");
    assert_eq!(log.read(here, Offset(99), MANY).await.unwrap().len(), 1);
    two.commit(&[(here, Offset(100))]).await.unwrap();
    for _ in 0..4 {
        maker.pass(keep).await;
        put(&*log, at(LOW, 1), ["time goes by".into()]).await;
    }
    let (start, end) = log.bounds(here).await.unwrap();
    assert_eq!((start, end), (Offset(100), Offset(100)), "what all have passed goes when its time has come");
    // Reading from before the start reads from the start, and offsets go on.
    assert_eq!(put(&*log, here, ["next".into()]).await, [Offset(100)]);
    let read = log.read(here, Offset(7), MANY).await.unwrap();
    assert_dense(&read, 100);
    drop((one, two, log));
    maker.lose().await;
    let log = maker.open().await;
    assert_eq!(log.bounds(here).await, Ok((Offset(100), Offset(101))));
}
