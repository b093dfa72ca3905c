//! The embedded log: durable appends a second with 1, 64 and 1,000 appenders, beside the bare disk (4 KiB and a sync).

use std::{io::Write as _, sync::Arc};

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use schemas::{
    Partition, Timestamp, Topic, TopicPartition,
    limits::StoreLimits,
    port::{Append, Headers},
    time::ManualClock,
};
use stores::{Settings, Stores};

fn appends(c: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap_or_else(|why| unreachable!("a folder: {why}"));
    let runtime = tokio::runtime::Runtime::new().unwrap_or_else(|why| unreachable!("a runtime: {why}"));
    let mut group = c.benchmark_group("append and sync");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);

    group.throughput(Throughput::Elements(1));
    let mut file = tempfile::tempfile_in(folder.path()).unwrap_or_else(|why| unreachable!("a file: {why}"));
    group.bench_function("bare disk", |b| b.iter(|| file.write_all(&[7; 4096]).and_then(|()| file.sync_data())));

    let settings = Settings { data: folder.path().join("data"), limits: StoreLimits::default(), presence_ms: 300_000 };
    let clock = Arc::new(ManualClock::at(Timestamp(1_700_000_000_000)));
    let stores = runtime.block_on(async { Stores::open(settings, clock) }).unwrap_or_else(|why| unreachable!("{why}"));
    for appenders in [1u64, 64, 1_000] {
        group.throughput(Throughput::Elements(appenders));
        group.bench_function(format!("{appenders} appenders of 300 bytes"), |b| {
            b.iter(|| {
                let one = |n: u64| {
                    let at = TopicPartition { topic: Topic::Dead, partition: Partition((n % 24) as u16) };
                    stores.log.append(vec![Append { at, headers: Headers::default(), body: vec![n as u8; 300].into() }])
                };
                runtime.block_on(futures::future::join_all((0..appenders).map(one)))
            });
        });
    }
    group.finish();
    runtime.block_on(stores.close());
}

criterion_group!(benches, appends);
criterion_main!(benches);
