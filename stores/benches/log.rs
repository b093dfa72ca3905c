//! The embedded log beside the bare disk: what one appender pays for durability, what a hundred and a thousand pay together,
//! what reading back and following the tail cost.
//!
//! A baseline stands in each group: the same bytes written to a plain file and synced, or read from one.

use std::{
    fs::File,
    hint::black_box,
    io::{Read, Seek, Write},
    path::Path,
    sync::Arc,
};

use criterion::{
    BenchmarkGroup, Criterion, SamplingMode, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use futures::future::join_all;
use schemas::{
    Offset, Partition, Timestamp, Topic, TopicPartition,
    limits::StoreLimits,
    port::{Append, Event, Fetch, Group, Headers, Log},
    time::ManualClock,
};
use stores::{embedded::Engine, log::EmbeddedLog};
use tokio::runtime::Runtime;

/// Bytes of a record: the message that the targets are measured with.
const BYTES: usize = 300;
/// Records that are read back.
const KEPT: u64 = 200_000;
const MANY: Fetch = Fetch { records: 1_000, bytes: 4 * 1024 * 1024 };

fn lane(partition: u64) -> TopicPartition {
    // The topic of the lane where most messages go.
    TopicPartition { topic: Topic::Lane(schemas::Priority::Normal), partition: Partition((partition % 24) as u16) }
}

fn record(n: u64) -> Append {
    Append { at: lane(n), headers: Headers::default(), body: vec![n as u8; BYTES].into() }
}

fn open(folder: &Path, limits: &StoreLimits) -> (Engine, EmbeddedLog) {
    let engine = Engine::open(folder, limits).unwrap_or_else(|why| unreachable!("the engine: {why}"));
    let clock = Arc::new(ManualClock::at(Timestamp(1_700_000_000_000)));
    let log = EmbeddedLog::open(engine.clone(), clock, limits).unwrap_or_else(|why| unreachable!("the log: {why}"));
    (engine, log)
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap_or_else(|why| unreachable!("a folder: {why}"))
}

fn runtime() -> Runtime {
    Runtime::new().unwrap_or_else(|why| unreachable!("a runtime: {why}"))
}

fn bare(group: &mut BenchmarkGroup<'_, WallTime>, folder: &Path, bytes: usize) {
    let mut file = tempfile::tempfile_in(folder).unwrap_or_else(|why| unreachable!("a file: {why}"));
    let block = vec![7; bytes];
    group.bench_function("bare file, one write and sync", |b| {
        b.iter(|| file.write_all(&block).and_then(|()| file.sync_data()));
    });
}

/// Durable appends: one after the other, a hundred in one call, and so many appenders at once.
fn appends(c: &mut Criterion) {
    let (folder, runtime) = (folder(), runtime());
    let (engine, log) = open(&folder.path().join("data"), &StoreLimits::default());
    let mut next = 0;
    for (name, calls, each) in
        [("append alone", 1, 1), ("append of 100", 1, 100), ("64 appenders", 64, 1), ("1,000 appenders", 1_000, 1)]
    {
        let mut group = c.benchmark_group(name);
        group.sampling_mode(SamplingMode::Flat).sample_size(20).throughput(Throughput::Elements(calls * each));
        bare(&mut group, folder.path(), BYTES * (calls * each) as usize);
        group.bench_function("log", |b| {
            b.iter(|| {
                let call = |_| {
                    let from = next;
                    next += each;
                    log.append((from..next).map(record).collect())
                };
                runtime.block_on(join_all((0..calls).map(call)))
            });
        });
        group.finish();
    }
    drop(log);
    runtime.block_on(engine.close());
}

/// Reading back what left memory long ago, a thousand records at a time.
fn reads(c: &mut Criterion) {
    let (folder, runtime) = (folder(), runtime());
    let limits = StoreLimits { tail_bytes: 0, ..StoreLimits::default() };
    let (engine, log) = open(&folder.path().join("data"), &limits);
    for call in 0..KEPT / 1_000 {
        let records = (0..1_000).map(|n| Append { at: lane(0), ..record(call + n) }).collect();
        let outcomes = runtime.block_on(log.append(records));
        assert!(outcomes.iter().all(Result::is_ok));
    }
    let mut group = c.benchmark_group("read back 1,000");
    group.throughput(Throughput::Elements(1_000));
    let path = folder.path().join("plain");
    let written = File::create(&path).and_then(|mut file| file.write_all(&vec![7; KEPT as usize * BYTES]));
    let mut plain = written.and_then(|()| File::open(&path)).unwrap_or_else(|why| unreachable!("a file: {why}"));
    let mut block = vec![0; 1_000 * BYTES];
    group.bench_function("bare file", |b| {
        b.iter(|| {
            if plain.read_exact(&mut block).is_err() {
                plain.rewind().unwrap_or_else(|why| unreachable!("rewinding: {why}"));
            }
            black_box(&block);
        });
    });
    let mut from = 0;
    group.bench_function("log", |b| {
        b.iter(|| {
            let read = runtime.block_on(log.read(lane(0), Offset(from), MANY));
            from = (from + 1_000) % KEPT;
            black_box(read)
        });
    });
    group.finish();
    drop(log);
    runtime.block_on(engine.close());
}

/// From the call of an appender to the hands of a member of a group that waits for it.
fn tail(c: &mut Criterion) {
    let (folder, runtime) = (folder(), runtime());
    let (engine, log) = open(&folder.path().join("data"), &StoreLimits::default());
    let mut group = c.benchmark_group("tail");
    group.sampling_mode(SamplingMode::Flat).sample_size(20);
    bare(&mut group, folder.path(), BYTES);
    let topics = [lane(0).topic];
    let member = log.join(Group("bench"), &topics);
    let mut member = runtime.block_on(member).unwrap_or_else(|why| unreachable!("joining: {why}"));
    let assigned = runtime.block_on(member.poll(MANY));
    assert!(matches!(assigned, Ok(Event::Assigned(_))));
    let mut n = 0;
    group.bench_function("append until it is read", |b| {
        b.iter(|| {
            n += 1;
            runtime.block_on(async { futures::join!(log.append(vec![record(n)]), member.poll(MANY)) })
        });
    });
    group.finish();
    drop((member, log));
    runtime.block_on(engine.close());
}

criterion_group!(benches, appends, reads, tail);
criterion_main!(benches);
