//! The embedded history: what a batch of the pipeline costs, and what is read on the way to a phone, with a million messages
//! kept. Each call is of many users, one after the other, so that little of it was touched a moment ago.

use std::{hint::black_box, sync::Arc};

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use schemas::{
    Content, ContentType, Epoch, Fact, Inbox, Kind, Message, MessageId, Partition, Position, Priority, Sender,
    Timestamp, What,
    limits::StoreLimits,
    port::{Entry, Facts, Inboxes, Schedule},
    tier::Attempt,
    time::ManualClock,
};
use stores::{embedded::Engine, history::embedded::EmbeddedHistory};
use tokio::runtime::Runtime;

/// Messages kept, and how many inboxes they are in.
const KEPT: u64 = 1_000_000;
const USERS: u64 = 10_000;
const NOW: Timestamp = Timestamp(1_800_000_000_000);
/// Messages of a batch.
const BATCH: u64 = 100;

/// A step that meets all users in an order that is none.
fn user(n: u64) -> u64 {
    n.wrapping_mul(2_654_435_761) % USERS
}

fn inbox(user: u64) -> Inbox {
    let name = format!("acme/+96279{user:07}").parse().unwrap_or_else(|_| unreachable!("a user"));
    Inbox { user: name, partition: Partition((user % 24) as u16) }
}

/// The so-manieth entry of a user.
fn entry(user: u64, n: u64) -> Entry {
    let inbox = inbox(user);
    let at = |n: u64| Position { epoch: Epoch(u32::from(n > 0)), n };
    let body = format!("{n} ").repeat(300 / 3);
    let message = Message {
        id: MessageId::fresh(NOW),
        kind: Kind::OneWay,
        from: Sender::Server,
        to: inbox.user.clone(),
        priority: Priority::Normal,
        content: Content { content_type: ContentType::Text, subject: None, body },
        client_ref: None,
        metadata: None,
        accepted_at: NOW,
        send_at: None,
        expires_at: None,
        broadcast: None,
        trace: None,
        fingerprint: [3; 16],
    };
    let (position, prev) = (at(n), at(n - 1));
    Entry { inbox, position, prev, one_way: n, recorded_at: NOW, message: Arc::new(message), end: None, seq: None }
}

fn fact(of: &Entry) -> Fact {
    Fact {
        id: of.message.id,
        inbox: of.inbox.clone(),
        position: of.position,
        from: Sender::Server,
        client_ref: None,
        at: NOW,
        round: 0,
        attempt: Attempt(0),
        device: None,
        what: What::Delivered,
    }
}

fn history(c: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap_or_else(|why| unreachable!("a folder: {why}"));
    let runtime = Runtime::new().unwrap_or_else(|why| unreachable!("a runtime: {why}"));
    let limits = StoreLimits::default();
    let clock = Arc::new(ManualClock::at(NOW));
    let engine = Engine::open(folder.path(), &limits).unwrap_or_else(|why| unreachable!("the engine: {why}"));
    let opened = EmbeddedHistory::open(engine.clone(), clock, &limits);
    let history = opened.unwrap_or_else(|why| unreachable!("the history: {why}"));
    let nothing = Schedule::default();
    let (mut count, mut some) = (0, Vec::new());
    let mut batch = |size: u64| {
        let entries: Vec<_> = (count..count + size).map(|n| entry(user(n), n / USERS + 1)).collect();
        count += size;
        entries
    };
    for _ in 0..KEPT / 1_000 {
        let entries = batch(1_000);
        some.extend(entries.iter().step_by(100).map(|entry| entry.message.id));
        assert!(runtime.block_on(history.record(&entries, &nothing)).is_ok());
    }

    let mut group = c.benchmark_group("history");
    group.sampling_mode(SamplingMode::Flat).sample_size(20);
    let mut turn = 0;
    group.throughput(Throughput::Elements(1));
    group.bench_function("the end of an inbox", |b| {
        b.iter(|| {
            turn += 1;
            black_box(runtime.block_on(history.tails(&[inbox(user(turn))])))
        });
    });
    group.bench_function("the end of an inbox nobody wrote to", |b| {
        b.iter(|| {
            turn += 1;
            black_box(runtime.block_on(history.tails(&[inbox(USERS + turn % 1_000_000)])))
        });
    });
    group.bench_function("an id that is not known", |b| {
        b.iter(|| black_box(runtime.block_on(history.known(&[MessageId::fresh(NOW)]))));
    });
    group.bench_function("a message by its id", |b| {
        b.iter(|| {
            turn += 1;
            let id = some[(turn as usize * 7_919) % some.len()];
            black_box(runtime.block_on(history.messages(&[id])))
        });
    });
    group.throughput(Throughput::Elements(50));
    group.bench_function("the last 50 of an inbox", |b| {
        b.iter(|| {
            turn += 1;
            let from = Position { epoch: Epoch(1), n: KEPT / USERS - 50 };
            black_box(runtime.block_on(history.read(&inbox(user(turn)), from, 50)))
        });
    });
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function("a batch of 100 recorded", |b| {
        b.iter_batched(
            || batch(BATCH),
            |entries| runtime.block_on(history.record(&entries, &nothing)),
            criterion::BatchSize::PerIteration,
        );
    });
    group.bench_function("facts of 100 settled", |b| {
        b.iter_batched(
            || batch(BATCH).iter().map(fact).collect::<Vec<_>>(),
            |facts| runtime.block_on(history.settle(&facts)),
            criterion::BatchSize::PerIteration,
        );
    });
    group.finish();
    drop(history);
    runtime.block_on(engine.close());
}

criterion_group!(benches, history);
criterion_main!(benches);
