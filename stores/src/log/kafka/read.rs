//! Reading from anywhere: a few threads, each with a client that reads one partition at a time. Who goes on where a thread
//! stopped is served by that thread, from what it fetched ahead.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use parking_lot::Mutex;
use rdkafka::{
    Message as _, TopicPartitionList,
    config::FromClientConfigAndContext as _,
    consumer::{BaseConsumer, Consumer as _},
    error::KafkaError,
    message::BorrowedMessage,
    topic_partition_list::Offset as At,
};
use schemas::{
    Clock, Millis, TopicPartition,
    limits::StoreLimits,
    port::{Fetch, Group, PortError, PortResult, Record},
    vital,
};
use tokio::sync::oneshot;

use super::{
    ask::insist,
    form,
    settings::Settings,
    told::{self, Ear},
};

/// Reads that wait for one thread; past that a read is refused.
const WAITING: usize = 64;
/// Fetched ahead of a reader, KiB: a few fetches.
const AHEAD_KIB: usize = 4 * 1024;
/// A thread that nobody asks stops fetching after so long.
const IDLE: Duration = Duration::from_secs(5);
/// The group that readers name and never join: librdkafka assigns to nobody else.
const GROUP: Group = Group("esh3ar.reader");

struct Job {
    at: TopicPartition,
    from: u64,
    max: Fetch,
    reply: oneshot::Sender<PortResult<Vec<Record>>>,
}

struct Desk {
    jobs: SyncSender<Job>,
    waiting: Arc<AtomicUsize>,
    // What it would go on with.
    next: Mutex<Option<(TopicPartition, u64)>>,
}

/// The reading threads, started as they are needed.
pub(crate) struct Readers {
    settings: Arc<Settings>,
    clock: Arc<dyn Clock>,
    most: usize,
    desks: Mutex<Vec<Arc<Desk>>>,
}

impl Readers {
    pub(crate) fn new(settings: Arc<Settings>, clock: Arc<dyn Clock>, limits: &StoreLimits) -> Self {
        Self { settings, clock, most: limits.kafka_readers.max(1), desks: Mutex::default() }
    }

    pub(crate) async fn read(&self, at: TopicPartition, from: u64, max: Fetch) -> PortResult<Vec<Record>> {
        let desk = self.desk(at, from)?;
        let (reply, answer) = oneshot::channel();
        desk.waiting.fetch_add(1, Ordering::Relaxed);
        if desk.jobs.try_send(Job { at, from, max, reply }).is_err() {
            desk.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(PortError::Unavailable("too many are reading at once".into()));
        }
        let gone = || PortError::Unavailable("reading was interrupted".into());
        // Twice: it may wait behind a read that is not answered.
        let answered = tokio::time::timeout(self.settings.ask * 2, answer).await;
        let records =
            answered.map_err(|_| PortError::Unavailable("Kafka does not answer".into()))?.map_err(|_| gone())??;
        let next = records.last().map_or(from, |record| record.offset.0 + 1);
        *desk.next.lock() = Some((at, next));
        Ok(records)
    }

    /// Who goes on from there; else one that is free, a new one where there may be more; else the one with least to do.
    fn desk(&self, at: TopicPartition, from: u64) -> PortResult<Arc<Desk>> {
        let mut desks = self.desks.lock();
        let busy = |desk: &Arc<Desk>| desk.waiting.load(Ordering::Relaxed);
        if let Some(desk) = desks.iter().find(|desk| *desk.next.lock() == Some((at, from))) {
            return Ok(desk.clone());
        }
        let least = desks.iter().min_by_key(|desk| busy(desk)).cloned();
        match least {
            Some(desk) if busy(&desk) == 0 || desks.len() >= self.most => Ok(desk),
            _ => {
                let desk = Arc::new(self.start()?);
                desks.push(desk.clone());
                Ok(desk)
            }
        }
    }

    fn start(&self) -> PortResult<Desk> {
        let (jobs, waiting) = sync_channel(WAITING);
        let mut config = self.settings.reader(&self.settings.group(GROUP), AHEAD_KIB);
        // It asks for what is known to be there.
        config.set("fetch.wait.max.ms", "10");
        let client = BaseConsumer::from_config_and_context(&config, Ear::default());
        let client = client.map_err(|error| told::unanswered(&error))?;
        let count = Arc::new(AtomicUsize::new(0));
        let reader = Reader {
            client,
            settings: self.settings.clone(),
            clock: self.clock.clone(),
            at: None,
            next: 0,
            held: None,
            end: 0,
        };
        let served = count.clone();
        let run = move || vital::thread("a reader of Kafka", || reader.run(&waiting, &served));
        let spawned = thread::Builder::new().name("kafka-read".into()).spawn(run);
        spawned.map_err(|error| PortError::Unavailable(format!("no thread to read with: {error}")))?;
        Ok(Desk { jobs, waiting: count, next: Mutex::new(None) })
    }
}

/// One thread's side.
struct Reader {
    client: BaseConsumer<Ear>,
    settings: Arc<Settings>,
    clock: Arc<dyn Clock>,
    at: Option<TopicPartition>,
    next: u64,
    // Fetched, and not fitting into the answer it was fetched for.
    held: Option<Record>,
    // Below this there are records.
    end: u64,
}

impl Reader {
    fn run(mut self, jobs: &Receiver<Job>, waiting: &AtomicUsize) {
        loop {
            match jobs.recv_timeout(IDLE) {
                Ok(job) => {
                    // Nobody waits for it any more: its deadline has passed.
                    if !job.reply.is_closed() {
                        let answer = self.read(job.at, job.from, job.max);
                        if answer.is_err() {
                            self.leave();
                        }
                        let _ = job.reply.send(answer);
                    }
                    waiting.fetch_sub(1, Ordering::Relaxed);
                }
                Err(RecvTimeoutError::Timeout) => self.leave(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn leave(&mut self) {
        if self.at.take().is_some() {
            let _ = self.client.unassign();
        }
        (self.held, self.end) = (None, 0);
    }

    fn read(&mut self, at: TopicPartition, from: u64, max: Fetch) -> PortResult<Vec<Record>> {
        let deadline = self.clock.mono().plus(self.settings.ask.as_millis() as u64);
        let name = self.settings.topic(at.topic);
        let failed = |error: KafkaError| told::unanswered(&error);
        let mut from = from;
        if self.at != Some(at) || self.next != from || from >= self.end {
            let ask = |step| self.client.fetch_watermarks(&name, i32::from(at.partition.0), step);
            let (start, end) =
                insist(&self.client, &self.settings, &*self.clock, &BTreeSet::from([name.clone()]), ask)?;
            let (start, end) = (start.max(0) as u64, end.max(0) as u64);
            from = from.max(start);
            if from >= end {
                return Ok(Vec::new());
            }
            self.end = end;
        }
        if self.at != Some(at) || self.next != from {
            let mut list = TopicPartitionList::with_capacity(1);
            list.add_partition_offset(&name, i32::from(at.partition.0), At::Offset(from as i64)).map_err(failed)?;
            self.client.assign(&list).map_err(failed)?;
            (self.at, self.next, self.held) = (Some(at), from, None);
        }
        let taken = self.take(at, max, deadline);
        // At the end it would wait at the broker for what comes, and the next reader behind it.
        if self.next >= self.end {
            self.leave();
        }
        taken
    }

    /// Not what was fetched for an earlier read.
    fn awaits(&self, at: TopicPartition, message: &BorrowedMessage<'_>) -> bool {
        message.offset() >= self.next as i64
            && message.partition() == i32::from(at.partition.0)
            && message.topic() == self.settings.topic(at.topic)
    }

    fn take(&mut self, at: TopicPartition, max: Fetch, deadline: Millis) -> PortResult<Vec<Record>> {
        let mut records = Vec::new();
        let mut bytes = 0;
        while self.next < self.end && records.len() < max.records.max(1) {
            let record = match self.held.take() {
                Some(record) => record,
                None => {
                    let left = Duration::from_millis(deadline.since(self.clock.mono()));
                    match self.client.poll(left) {
                        Some(Ok(message)) if self.awaits(at, &message) => form::record(at, &message),
                        Some(Ok(_)) => continue,
                        Some(Err(error)) if told::may_pass(&error) => continue,
                        Some(Err(error)) if records.is_empty() => return Err(told::unanswered(&error)),
                        _ if left.is_zero() && records.is_empty() => {
                            return Err(PortError::Unavailable(format!("Kafka does not answer for {at}")));
                        }
                        None if !left.is_zero() => continue,
                        _ => break,
                    }
                }
            };
            let fits = records.is_empty() || bytes + record.body.len() <= max.bytes;
            if !fits {
                self.held = Some(record);
                break;
            }
            bytes += record.body.len();
            self.next = record.offset.next().0;
            records.push(record);
        }
        Ok(records)
    }
}
