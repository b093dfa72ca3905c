//! The dataflow stage alone: what one message costs in CPU, over all threads, from its record to its commit. The ports answer
//! at once and keep nothing, so the figure is the pipeline's own: decoding, dedupe, batching, placing, routing, committing.
//!
//! `cargo bench -p esh3ar-pipeline --bench flow`. Times are CPU times, so a busy machine does not spoil them.

// A bench has nobody to give an error to.
#![allow(clippy::expect_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    hint::black_box,
    sync::{Arc, atomic::AtomicU64, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pipeline::Parts;
use schemas::{
    BroadcastId, Content, ContentType, Cursor, DeviceId, Epoch, Fact, Inbox, Kind, Limits, Message, MessageId, NodeId,
    Offset, Partition, Phone, Position, Priority, Sender, SessionId, State, Timestamp, Topic, TopicPartition, UserId,
    port::*, record, time::ManualClock, view::StatusChange,
};
use tokio::sync::{Notify, Semaphore};

const MESSAGES: u64 = 50_000;
const PARTITIONS: u16 = 24;

/// Gives as many of its records as are asked for.
struct Tape {
    records: Vec<Record>,
    asked: Semaphore,
}

struct Reader {
    tape: Arc<Tape>,
    assigned: bool,
    next: BTreeMap<TopicPartition, u64>,
    paused: BTreeSet<TopicPartition>,
    place: usize,
}

impl Reader {
    /// The record that comes next, if it may come.
    fn free(&self) -> Option<&Record> {
        let next = &self.tape.records[self.place % self.tape.records.len()];
        (!self.paused.contains(&next.at)).then_some(next)
    }
}

struct Sent(Arc<Tape>);

#[async_trait]
impl Log for Sent {
    async fn append(&self, records: Vec<Append>) -> Vec<PortResult<Offset>> {
        records.iter().map(|_| Ok(Offset(0))).collect()
    }
    async fn read(&self, _: TopicPartition, _: Offset, _: Fetch) -> PortResult<Vec<Record>> {
        Ok(Vec::new())
    }
    async fn bounds(&self, _: TopicPartition) -> PortResult<(Offset, Offset)> {
        Ok((Offset(0), Offset(0)))
    }
    async fn committed(&self, _: Group, at: &[TopicPartition]) -> PortResult<Vec<Option<Offset>>> {
        Ok(vec![None; at.len()])
    }
    async fn join(&self, _: Group, _: &[Topic]) -> PortResult<Box<dyn Consumer>> {
        let (next, paused) = (BTreeMap::new(), BTreeSet::new());
        Ok(Box::new(Reader { tape: self.0.clone(), assigned: false, next, paused, place: 0 }))
    }
    fn partitions(&self) -> u16 {
        PARTITIONS
    }
    fn durability(&self) -> Durability {
        Durability::Process
    }
    async fn check(&self) -> PortResult<()> {
        Ok(())
    }
}

#[async_trait]
impl Consumer for Reader {
    async fn poll(&mut self, max: Fetch) -> PortResult<Event> {
        if !std::mem::replace(&mut self.assigned, true) {
            return Ok(Event::Assigned((0..PARTITIONS).map(Partition).collect()));
        }
        // Whoever resumes it asks again.
        if self.free().is_none() {
            return std::future::pending().await;
        }
        let Ok(first) = self.tape.asked.acquire().await else { return std::future::pending().await };
        first.forget();
        let more = self.tape.asked.forget_permits(max.records - 1);
        let mut records = Vec::with_capacity(more + 1);
        while records.len() <= more
            && let Some(mut record) = self.free().cloned()
        {
            self.place += 1;
            let next = self.next.entry(record.at).or_default();
            record.offset = Offset(*next);
            *next += 1;
            records.push(record);
        }
        self.tape.asked.add_permits(more + 1 - records.len());
        Ok(Event::Records(records))
    }
    fn pause(&mut self, at: &[TopicPartition]) {
        self.paused.extend(at);
    }
    fn resume(&mut self, at: &[TopicPartition]) {
        at.iter().for_each(|at| _ = self.paused.remove(at));
    }
    async fn commit(&mut self, offsets: &[(TopicPartition, Offset)]) -> PortResult<()> {
        black_box(offsets);
        Ok(())
    }
    async fn release(&mut self, _: &[Partition]) -> PortResult<()> {
        Ok(())
    }
    async fn leave(self: Box<Self>) -> PortResult<()> {
        Ok(())
    }
}

/// Takes everything, everywhere, at once.
struct Yes {
    taken: AtomicU64,
    moved: Notify,
    talks: schemas::port::Talks,
}

schemas::answers_from_talks!(Yes, talks);

#[async_trait]
impl Inboxes for Yes {
    async fn take_over(&self, partitions: &[Partition]) -> PortResult<Vec<Epoch>> {
        Ok(vec![Epoch(1); partitions.len()])
    }
    fn owns(&self, _: &[(Partition, Epoch)]) {}
    async fn tails(&self, inboxes: &[Inbox]) -> PortResult<Vec<Tail>> {
        Ok(vec![Tail::default(); inboxes.len()])
    }
    async fn known(&self, ids: &[MessageId]) -> PortResult<Vec<Option<Known>>> {
        Ok(vec![None; ids.len()])
    }
    async fn record(&self, entries: &[Entry], _: &Schedule) -> PortResult<()> {
        black_box(entries);
        Ok(())
    }
    async fn due(&self, _: Partition, _: Timestamp, _: usize) -> PortResult<Vec<Due>> {
        Ok(Vec::new())
    }
    async fn read(&self, _: &Inbox, _: Position, _: usize) -> PortResult<Span> {
        Ok(Span { entries: Vec::new(), passed_by_retention: false })
    }
    async fn messages(&self, ids: &[MessageId]) -> PortResult<Vec<Option<Placed>>> {
        Ok(vec![None; ids.len()])
    }
    async fn one_way(
        &self,
        _: &Inbox,
        _: Order,
        _: Option<Position>,
        _: usize,
    ) -> PortResult<Page<(Entry, State), Position>> {
        Ok(Page { rows: Vec::new(), next: None })
    }
    async fn unread(&self, _: &Inbox) -> PortResult<Unread> {
        Ok(Unread::default())
    }
    async fn retain(&self, _: Partition, _: Timestamp, _: usize) -> PortResult<Vec<Placed>> {
        Ok(Vec::new())
    }
    async fn sizes(&self) -> PortResult<(u64, u64)> {
        Ok((0, 0))
    }
}

#[async_trait]
impl Facts for Yes {
    async fn settle(&self, facts: &[Fact]) -> PortResult<Vec<Settled>> {
        Ok(facts.iter().map(|_| Settled { changed: false, state: State::default() }).collect())
    }
    async fn states(&self, ids: &[MessageId]) -> PortResult<Vec<State>> {
        Ok(vec![State::default(); ids.len()])
    }
}

#[async_trait]
impl Cursors for Yes {
    async fn cursors(&self, _: &UserId) -> PortResult<Vec<(DeviceId, Cursor)>> {
        Ok(Vec::new())
    }
    async fn advance(&self, _: &[(UserId, DeviceId, Cursor)]) -> PortResult<()> {
        Ok(())
    }
}

#[async_trait]
impl DeadLetters for Yes {
    async fn bury(&self, _: &[Dead]) -> PortResult<()> {
        Ok(())
    }
    async fn dead(&self, _: &Filter, _: Option<Buried>, _: usize) -> PortResult<Page<Dead, Buried>> {
        Ok(Page { rows: Vec::new(), next: None })
    }
    async fn dead_letter(&self, _: MessageId) -> PortResult<Option<Dead>> {
        Ok(None)
    }
    async fn dead_count(&self) -> PortResult<u64> {
        Ok(0)
    }
    async fn forget_dead(&self, _: Timestamp, _: usize) -> PortResult<usize> {
        Ok(0)
    }
}

#[async_trait]
impl Broadcasts for Yes {
    async fn begin(&self, broadcast: &Broadcast, _: &[Phone]) -> PortResult<Broadcast> {
        Ok(broadcast.clone())
    }
    async fn broadcast(&self, _: BroadcastId) -> PortResult<Option<Broadcast>> {
        Ok(None)
    }
    async fn running(&self) -> PortResult<Expanding> {
        Ok(Expanding::default())
    }
    async fn recipients(&self, _: BroadcastId, _: u64, _: usize) -> PortResult<Vec<Phone>> {
        Ok(Vec::new())
    }
    async fn progress(&self, _: BroadcastId, _: u64, _: BroadcastState) -> PortResult<Broadcast> {
        Err(PortError::Rejected("no broadcast".into()))
    }
}

#[async_trait]
impl Presence for Yes {
    async fn register(&self, _: &UserId, _: &NodeId, _: &DeviceId, _: SessionId) -> PortResult<Taken> {
        Ok(Taken { number: 1, replaced: None })
    }
    async fn refresh(&self, _: &[(UserId, SessionId)]) -> PortResult<()> {
        Ok(())
    }
    async fn remove(&self, _: &UserId, _: SessionId) -> PortResult<()> {
        Ok(())
    }
    async fn locate(&self, users: &[UserId]) -> PortResult<Vec<Vec<Place>>> {
        let place = Place { node: name("node"), device: name("device"), session: SessionId(fresh().0), number: 1 };
        Ok(vec![vec![place]; users.len()])
    }
    async fn heartbeat(&self, _: &NodeLoad) -> PortResult<()> {
        Ok(())
    }
    async fn nodes(&self) -> PortResult<Vec<NodeLoad>> {
        Ok(Vec::new())
    }
}

#[async_trait]
impl Dispatch for Yes {
    async fn deliver(&self, batch: Vec<Routed>) -> Vec<Outcome> {
        self.taken.fetch_add(batch.len() as u64, Ordering::SeqCst);
        self.moved.notify_one();
        vec![Outcome::Taken; black_box(batch).len()]
    }
    async fn notify(&self, _: Vec<(UserId, StatusChange)>) {}
    async fn alarm(&self, _: &[Dead]) {}
}

fn name<T: std::str::FromStr>(text: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text.parse().expect("a valid name")
}

fn fresh() -> MessageId {
    MessageId::fresh(Timestamp(1_700_000_000_000))
}

/// A message of about 300 bytes to one of a thousand users.
fn message(n: u64) -> Message {
    Message {
        id: fresh(),
        kind: Kind::OneWay,
        from: Sender::Server,
        to: name(&format!("acme/+96279{:07}", n % 1_000)),
        priority: Priority::ALL[(n % 3) as usize],
        content: Content { content_type: ContentType::Text, subject: None, body: "x".repeat(220) },
        client_ref: None,
        metadata: None,
        accepted_at: Timestamp(1_700_000_000_000),
        send_at: None,
        expires_at: None,
        broadcast: None,
        trace: None,
        fingerprint: [7; 16],
    }
}

/// CPU time of all threads of this process.
fn cpu() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux").flatten();
    let time = |task: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        stat.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0)
    };
    Duration::from_nanos(tasks.map(time).sum())
}

fn flow(c: &mut Criterion) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let mut group = c.benchmark_group("flow");
    group.throughput(Throughput::Elements(MESSAGES)).sample_size(10).warm_up_time(Duration::from_secs(1));
    for per_fetch in [1_000, 100, 10] {
        group.bench_function(format!("cpu, {per_fetch} records a reading"), |b| {
            b.iter_custom(|times| (0..times).map(|_| runtime.block_on(once(per_fetch))).sum());
        });
    }
    group.finish();
}

/// Lets messages through a pipeline of their own, and gives the CPU time that took. As many went through it before, so that its
/// window and its ends are as large as they get.
async fn once(per_fetch: usize) -> Duration {
    let records = (0..2 * MESSAGES).map(|n| {
        let append = record::accepted(&message(n), PARTITIONS);
        let (offset, appended_at) = (Offset(0), Timestamp(0));
        Record { at: append.at, offset, appended_at, headers: append.headers, body: append.body }
    });
    let tape = Arc::new(Tape { records: records.collect(), asked: Semaphore::new(0) });
    let yes = Arc::new(Yes { taken: AtomicU64::new(0), moved: Notify::new(), talks: Default::default() });
    let mut limits = Limits::default();
    limits.flow.fetch_records = per_fetch;
    let parts = Parts {
        log: Arc::new(Sent(tape.clone())),
        history: yes.clone(),
        presence: yes.clone(),
        dispatch: yes.clone(),
        clock: Arc::new(ManualClock::at(Timestamp(1_700_000_000_000))),
        limits: Arc::new(limits),
        instances: 1,
        functions: Vec::new(),
    };
    let pipeline = pipeline::start(parts, tokio::runtime::Handle::current()).expect("it starts");
    let through = async |taken| {
        tape.asked.add_permits(MESSAGES as usize);
        while yes.taken.load(Ordering::SeqCst) < taken {
            yes.moved.notified().await;
        }
    };
    through(MESSAGES).await;
    let before = cpu();
    through(2 * MESSAGES).await;
    let took = cpu().saturating_sub(before);
    pipeline.stop().await;
    took
}

criterion_group!(benches, flow);
criterion_main!(benches);
