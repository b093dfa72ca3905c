//! Tests of what only the embedded log promises: what its files survive, and how its segments come and go.

use std::{fs, path::Path};

use bytes::Bytes;
use schemas::{
    Partition, Priority,
    port::{Event, Headers},
    time::ManualClock,
};

use super::*;
use crate::{
    data,
    embedded::{
        Write,
        journal::{self, End},
    },
};

const HIGH: Topic = Topic::Lane(Priority::High);
const MANY: Fetch = Fetch { records: 100_000, bytes: 1 << 30 };

fn limits() -> StoreLimits {
    StoreLimits { partitions: 4, free_bytes: 0, ..StoreLimits::default() }
}

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::at(Timestamp(1_700_000_000_000)))
}

fn open(path: &Path, limits: &StoreLimits, clock: &Arc<ManualClock>) -> (Engine, EmbeddedLog) {
    let engine = Engine::open(path, limits).unwrap();
    let log = EmbeddedLog::open(engine.clone(), clock.clone(), limits).unwrap();
    (engine, log)
}

fn at(partition: u16) -> TopicPartition {
    TopicPartition { topic: HIGH, partition: Partition(partition) }
}

fn record(at: TopicPartition, body: Vec<u8>) -> Append {
    Append { at, headers: Headers::default(), body: Bytes::from(body) }
}

async fn put(log: &EmbeddedLog, at: TopicPartition, bytes: usize) -> Offset {
    log.append(vec![record(at, vec![7; bytes])]).await.remove(0).unwrap()
}

async fn filled(path: &Path) {
    let (engine, log) = open(path, &limits(), &clock());
    for _ in 0..20 {
        put(&log, at(0), 500).await;
    }
    drop(log);
    engine.close().await;
}

fn the_journal(path: &Path) -> std::path::PathBuf {
    journal::files(&path.join("store")).unwrap().pop().unwrap()
}

async fn ends(path: &Path) -> u64 {
    let (_engine, log) = open(path, &limits(), &clock());
    let (start, end) = log.bounds(at(0)).await.unwrap();
    assert_eq!(log.read(at(0), start, MANY).await.unwrap().len() as u64, end.0);
    end.0
}

#[tokio::test]
async fn a_torn_journal_loses_the_last_group_only() {
    for torn in [1, 12, 13, 137, 500] {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path()).await;
        let journal = the_journal(dir.path());
        let whole = journal::scan(&journal).unwrap();
        // The segment's own row may have gone with the first of them.
        assert!(matches!(whole.batches, 20 | 21) && whole.end == End::Whole, "{whole:?}");
        journal::cut(&journal, whole.valid - torn).unwrap();
        assert_eq!(ends(dir.path()).await, 19, "{torn} bytes were cut");
        // It goes on from there.
        let (_engine, log) = open(dir.path(), &limits(), &clock());
        assert_eq!(put(&log, at(0), 1).await, Offset(19));
    }
}

#[tokio::test]
async fn a_flipped_byte_is_refused_and_repaired_loudly() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let journal = the_journal(dir.path());
    let valid = journal::scan(&journal).unwrap().valid as usize;
    let mut bytes = fs::read(&journal).unwrap();
    bytes[valid / 2] ^= 1;
    fs::write(&journal, &bytes).unwrap();

    let refusal = Engine::open(dir.path(), &limits()).map(drop).unwrap_err().to_string();
    assert!(refusal.contains("esh3ar data repair") && refusal.contains("damaged"), "{refusal}");
    assert_eq!(fs::read(&journal).unwrap(), bytes, "a refusal changes nothing");
    let report = data::check(dir.path()).unwrap();
    assert!(!report.is_whole() && report.journals[0].damaged, "{report:?}");

    let report = data::repair(dir.path()).unwrap();
    assert!(report.is_whole() && report.done.len() == 1, "{report:?}");
    assert!(fs::read(dir.path().join("set-aside/0.jnl.1")).unwrap() == bytes, "what was cut off is kept");
    assert!(report.records > 0 && report.records < 20);
    assert_eq!(ends(dir.path()).await, report.records);
    assert_eq!(data::repair(dir.path()).unwrap().done, Vec::<String>::new());
}

#[tokio::test]
async fn a_folder_in_use_is_neither_checked_nor_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let (_engine, _log) = open(dir.path(), &limits(), &clock());
    assert!(matches!(data::check(dir.path()), Err(OpenError::Busy { .. })));
    assert!(matches!(data::repair(dir.path()), Err(OpenError::Busy { .. })));
}

#[tokio::test]
async fn work_that_was_accepted_is_finished_on_a_nearly_full_disk() {
    let dir = tempfile::tempdir().unwrap();
    let stat = rustix::fs::statvfs(dir.path()).unwrap();
    // Low, but not nothing.
    let limits = StoreLimits { free_bytes: stat.f_bavail * stat.f_frsize * 2, ..limits() };
    let (_engine, log) = open(dir.path(), &limits, &clock());
    assert!(matches!(log.check().await, Err(PortError::Full(_))));
    let fact = TopicPartition { topic: Topic::Outcomes, partition: Partition(1) };
    let outcomes = log.append(vec![record(at(0), vec![1]), record(fact, vec![2])]).await;
    assert!(matches!(outcomes[0], Err(PortError::Full(_))));
    assert_eq!(outcomes[1], Ok(Offset(0)));
    let mut member = log.join(Group("finishes"), &[Topic::Outcomes]).await.unwrap();
    assert!(matches!(member.poll(MANY).await, Ok(Event::Assigned(_))));
    member.commit(&[(fact, Offset(1))]).await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_read_in_one_partition_holds_up_no_other() {
    let dir = tempfile::tempdir().unwrap();
    // Everything is read from disk.
    let (engine, log) = open(dir.path(), &StoreLimits { tail_bytes: 0, ..limits() }, &clock());
    for partition in 0..4 {
        for _ in 0..3 {
            put(&log, at(partition), 10).await;
        }
    }
    let chunks = log.0.segments.newest().unwrap().chunks.clone();
    let key = layout::chunk_key(at(0), Offset(1));
    assert!(chunks.contains_key(key).unwrap(), "each was appended alone");
    engine.write(vec![Write::Put { to: chunks, key: key.to_vec(), value: vec![0xff].into() }]).await.unwrap();
    let mut member = log.join(Group("reads on"), &[HIGH]).await.unwrap();
    let (mut seen, mut refused, mut is_more) = (Vec::new(), 0, false);
    while seen.len() < 11 || refused < 2 {
        if refused > 0 && !std::mem::replace(&mut is_more, true) {
            put(&log, at(2), 10).await;
        }
        match tokio::time::timeout(std::time::Duration::from_secs(10), member.poll(MANY))
            .await
            .expect("something comes")
        {
            Ok(Event::Records(records)) => seen.extend(records.iter().map(|r| (r.at.partition.0, r.offset.0))),
            Ok(_) => {}
            Err(why) => {
                assert!(why.to_string().contains("record 1 of "), "{why}");
                refused += 1;
                assert!(refused < 50, "the others have no turn");
            }
        }
    }
    seen.sort_unstable();
    let others = (1..4).flat_map(|partition| (0..3).map(move |n| (partition, n))).chain([(2, 3)]);
    let mut wanted: Vec<_> = [(0, 0)].into_iter().chain(others).collect();
    wanted.sort_unstable();
    assert_eq!(seen, wanted, "all but that one and what comes after it");
}

#[tokio::test]
async fn segments_come_and_go_and_reads_pass_over_their_borders() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    // Nothing stays in memory, so everything is read from disk.
    let limits = StoreLimits { segment_bytes: 4_000, log_retention_bytes: 20_000, tail_bytes: 0, ..limits() };
    let (engine, log) = open(dir.path(), &limits, &clock);
    for n in 0..12 {
        for partition in 0..3 {
            let size = 400 + n;
            log.append(vec![record(at(partition), vec![n as u8; size]), record(at(partition), vec![n as u8; size])])
                .await;
        }
        log.retain(clock.wall()).await.unwrap();
    }
    let (start, end) = log.bounds(at(1)).await.unwrap();
    assert_eq!(end, Offset(24));
    assert!(start > Offset(0), "what is beyond the bound went");
    let mut strays = Vec::new();
    for from in 0..24 {
        let read = log.read(at(1), Offset(from), MANY).await.unwrap();
        let first = from.max(start.0);
        assert_eq!(read.iter().map(|r| r.offset.0).collect::<Vec<_>>(), (first..24).collect::<Vec<_>>());
        assert!(read.iter().all(|r| u64::from(r.body[0]) == r.offset.0 / 2));
        strays = read;
    }
    assert_eq!(strays.len(), 1);
    // A segment that was being made when the process was killed.
    log.0.segments.prepare().unwrap();
    let bounds = log.bounds(at(2)).await.unwrap();
    drop(log);
    engine.close().await;
    drop(engine);
    let (engine, log) = open(dir.path(), &limits, &clock);
    assert_eq!(log.bounds(at(2)).await.unwrap(), bounds);
    assert_eq!(log.read(at(2), Offset(0), MANY).await.unwrap().len() as u64, bounds.1.0 - bounds.0.0);
    assert_eq!(put(&log, at(2), 1).await, Offset(24));
    assert_eq!(log.bounds(at(3)).await.unwrap(), (Offset(0), Offset(0)));
    drop(log);
    engine.close().await;
    drop(engine);
    let report = data::check(dir.path()).unwrap();
    assert!(report.is_whole(), "{report:?}");
}

#[tokio::test]
async fn what_is_kept_in_memory_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let (_engine, log) = open(dir.path(), &StoreLimits { tail_bytes: 50_000, ..limits() }, &clock());
    for n in 0..200 {
        put(&log, at(n % 4), 1_000).await;
    }
    assert!(log.0.tails.kept_bytes() <= 50_000);
    for partition in 0..4 {
        assert_eq!(log.read(at(partition), Offset(0), MANY).await.unwrap().len(), 50);
    }
}
