//! Topics of businesses: one reader of the group `ingress`, and the topic of what was not taken.
//!
//! A thread polls librdkafka and hands over what came in bounded pieces; while nobody takes them it polls no further. The
//! topics are found by their names, `ingress` and `ingress.TENANT`, also those that are made later. A reader that librdkafka
//! declares dead is replaced by a new one, and what the dead one had is another's to read again.

use std::{
    collections::HashSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use rdkafka::{
    ClientContext, Message as _, Offset as At, TopicPartitionList,
    config::{FromClientConfigAndContext as _, RDKafkaLogLevel},
    consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext},
    error::KafkaError,
    message::{BorrowedMessage, Header},
    types::{RDKafkaErrorCode as Code, RDKafkaRespErr},
};
use schemas::{
    Problem, Timestamp,
    limits::StoreLimits,
    port::{Arrival, Fetch, Ingress, PortError, PortResult, Raw, Spot},
};
use tokio::sync::{mpsc, oneshot};

use super::{
    form,
    rejected::Rejects,
    settings::{Protocol, Settings},
    start::{self, Start},
    told,
};
use crate::{OpenError, urls::Address};

/// The group of all doors.
const GROUP: &str = "esh3ar.ingress";
/// Where what was not taken stands.
pub(crate) const REJECTED: &str = "esh3ar.rejected";
/// What businesses produce to: this, and this with a tenant behind a dot.
pub(crate) const SHARED: &str = "esh3ar.ingress";

/// How long the thread waits for a record before it looks around.
const LOOK: Duration = Duration::from_millis(50);
/// Before a reader that died is replaced.
const AGAIN: Duration = Duration::from_secs(1);
/// Pieces that wait to be taken: one while the one before it is worked on.
const PIECES: usize = 1;
/// Records of a piece at most, and their bytes.
const PIECE: Fetch = Fetch { records: 1_000, bytes: 4 * 1024 * 1024 };
/// How long a commit may take before it counts as not answered.
const COMMIT: Duration = Duration::from_secs(5);
/// How long one question where to begin may take, and how often it is asked before librdkafka is left to find out.
const QUESTION: Duration = Duration::from_secs(1);
const QUESTIONS: usize = 60;

/// What librdkafka calls: partitions that are taken away, and topics that stay paused when partitions come.
struct Watch {
    prefix: String,
    paused: Mutex<HashSet<String>>,
    lost: Mutex<Vec<Spot>>,
}

impl Watch {
    /// A topic's name without the installation's prefix.
    fn spot(&self, topic: &str, partition: i32) -> Spot {
        let topic = topic.strip_prefix(&self.prefix).unwrap_or(topic);
        Spot { topic: topic.into(), partition: u32::try_from(partition).unwrap_or_default() }
    }
}

impl ClientContext for Watch {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        told::log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka");
    }
}

impl ConsumerContext for Watch {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, why: RDKafkaRespErr, list: &mut TopicPartitionList) {
        if why != RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.lost.lock().extend(list.elements().iter().map(|at| self.spot(at.topic(), at.partition())));
            return start::give_back(consumer, list);
        }
        let known = (0..QUESTIONS).find_map(|_| match start::find(consumer, list, QUESTION) {
            Start::Known(known) => Some(known),
            Start::Over => Some(list.clone()),
            Start::Unanswered(error) => {
                tracing::info!(%error, "where to begin in topics of businesses that came is asked again");
                None
            }
        });
        if let Err(error) = start::take(consumer, known.as_ref().unwrap_or(list)) {
            tracing::warn!(%error, "partitions of businesses could not be taken up");
            return;
        }
        let paused = self.paused.lock();
        let [mut still, mut on] = [TopicPartitionList::new(), TopicPartitionList::new()];
        for at in list.elements() {
            let list = if paused.contains(at.topic()) { &mut still } else { &mut on };
            list.add_partition(at.topic(), at.partition());
        }
        if still.count() > 0
            && let Err(error) = consumer.pause(&still)
        {
            tracing::warn!(%error, "a topic that came back could not be paused");
        }
        // What was paused when it went is paused still, whatever was resumed meanwhile.
        if on.count() > 0
            && let Err(error) = consumer.resume(&on)
        {
            tracing::warn!(%error, "a topic that came back could not be resumed");
        }
    }
}

/// The reader that lives now.
type Alive = Arc<RwLock<Option<Arc<BaseConsumer<Watch>>>>>;

/// One of those who share the topics of businesses.
pub(crate) struct KafkaIngress {
    settings: Arc<Settings>,
    alive: Alive,
    pieces: mpsc::Receiver<PortResult<Arrival>>,
    ending: Arc<AtomicBool>,
    ended: oneshot::Receiver<()>,
    rejects: Rejects,
    /// One commit at a time, also where one is not answered.
    committing: Arc<tokio::sync::Mutex<()>>,
}

impl KafkaIngress {
    /// Joins. The topic of what is not taken must be there: without it a bad record would hold up the good ones.
    pub(crate) async fn open(address: &Address, limits: &StoreLimits) -> Result<Box<dyn Ingress>, OpenError> {
        let settings = Arc::new(Settings::read(address, limits)?);
        let limits = limits.clone();
        let opened = tokio::task::spawn_blocking(move || Self::join(settings, &limits)).await;
        let opened = opened.map_err(|why| OpenError::Address(format!("the topics of businesses: {why}")))?;
        opened.map(|reader| Box::new(reader) as Box<dyn Ingress>)
    }

    fn join(settings: Arc<Settings>, limits: &StoreLimits) -> Result<Self, OpenError> {
        let wrong = |why: &dyn std::fmt::Display| {
            OpenError::Address(format!("the topics of businesses at {}: {why}", settings.shown))
        };
        let rejects = Rejects::open(&settings, limits).map_err(|why| wrong(&why))?;
        let name = settings.named(REJECTED);
        let found = rejects.found(&name).map_err(|error| {
            let trouble = error.rdkafka_error_code().map(|code| (code, error.to_string()));
            told::unreachable(&settings, trouble, "no answer")
        })?;
        if found.topics().iter().all(|topic| topic.error().is_some() || topic.partitions().is_empty()) {
            return Err(wrong(&format!(
                "the topic {name} is missing, where what cannot be taken is kept: make it with `esh3ar topics create`, or close \
                 this door with `stores.ingress` = off"
            )));
        }
        let (alive, ending) = (Alive::default(), Arc::new(AtomicBool::new(false)));
        let (pieces, taken) = mpsc::channel(PIECES);
        let (end, ended) = oneshot::channel();
        let thread = Thread {
            settings: settings.clone(),
            limits: limits.clone(),
            alive: alive.clone(),
            ending: ending.clone(),
            pieces,
        };
        let run = move || {
            while catch_unwind(AssertUnwindSafe(|| thread.run())).is_err() {
                tracing::error!("the reader of the topics of businesses panicked and is replaced");
                thread.give_up();
                thread::park_timeout(AGAIN);
            }
            let _ = end.send(());
        };
        thread::Builder::new().name("kafka-ingress".into()).spawn(run).map_err(|why| wrong(&why))?;
        let committing = Arc::default();
        Ok(Self { settings, alive, pieces: taken, ending, ended, rejects, committing })
    }

    fn alive(&self) -> PortResult<Arc<BaseConsumer<Watch>>> {
        let gone = || PortError::Unavailable("the topics of businesses are being joined again".into());
        self.alive.read().clone().ok_or_else(gone)
    }

    /// The partitions of a topic that are this reader's.
    fn own(&self, consumer: &BaseConsumer<Watch>, topic: &str) -> PortResult<TopicPartitionList> {
        let name = self.settings.named(&format!("esh3ar.{topic}"));
        let all = consumer.assignment().map_err(|error| told::unanswered(&error))?;
        let mut own = TopicPartitionList::new();
        for at in all.elements_for_topic(&name) {
            own.add_partition(&name, at.partition());
        }
        Ok(own)
    }
}

#[async_trait]
impl Ingress for KafkaIngress {
    async fn poll(&mut self, _: Fetch) -> PortResult<Arrival> {
        // Pieces have the size that the thread gives them, which is that of the bound.
        match self.pieces.recv().await {
            Some(piece) => piece,
            None => Err(PortError::Unavailable("the topics of businesses are not read any more".into())),
        }
    }

    fn pause(&mut self, topic: &str) -> PortResult<()> {
        let consumer = self.alive()?;
        consumer.context().paused.lock().insert(self.settings.named(&format!("esh3ar.{topic}")));
        let own = self.own(&consumer, topic)?;
        consumer.pause(&own).map_err(|error| told::unanswered(&error))
    }

    fn resume(&mut self, topic: &str) -> PortResult<()> {
        let consumer = self.alive()?;
        consumer.context().paused.lock().remove(&self.settings.named(&format!("esh3ar.{topic}")));
        let own = self.own(&consumer, topic)?;
        consumer.resume(&own).map_err(|error| told::unanswered(&error))
    }

    async fn commit(&mut self, next: &[(Spot, u64)]) -> PortResult<()> {
        let consumer = self.alive()?;
        let all = consumer.assignment().map_err(|error| told::unanswered(&error))?;
        let mut list = TopicPartitionList::new();
        for (spot, next) in next {
            let (name, partition) = (self.settings.named(&format!("esh3ar.{}", spot.topic)), spot.partition as i32);
            if all.find_partition(&name, partition).is_some() {
                let added = list.add_partition_offset(&name, partition, At::Offset(*next as i64));
                added.map_err(|error| told::unanswered(&error))?;
            }
        }
        if list.count() == 0 {
            return Ok(());
        }
        let busy = || PortError::Unavailable("a commit is still under way".into());
        let turn = self.committing.clone().try_lock_owned().map_err(|_| busy())?;
        let committing = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            consumer.commit(&list, CommitMode::Sync)
        });
        match tokio::time::timeout(COMMIT, committing).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(error))) => Err(told::uncommitted(error.rdkafka_error_code().unwrap_or(Code::Unknown))),
            Ok(Err(_)) | Err(_) => Err(PortError::Unknown("the commit was not answered".into())),
        }
    }

    async fn reject(&mut self, records: &[(Raw, Problem)]) -> Vec<PortResult<()>> {
        self.rejects.keep(records).await
    }

    async fn leave(self: Box<Self>) -> PortResult<()> {
        self.ending.store(true, Ordering::Release);
        // The thread may be waiting for somebody to take a piece.
        drop(self.pieces);
        let left = tokio::time::timeout(COMMIT, self.ended).await;
        left.map(drop).map_err(|_| PortError::Unknown("leaving was not answered".into()))
    }
}

/// The thread's side.
struct Thread {
    settings: Arc<Settings>,
    limits: StoreLimits,
    alive: Alive,
    ending: Arc<AtomicBool>,
    pieces: mpsc::Sender<PortResult<Arrival>>,
}

impl Thread {
    fn run(&self) {
        while !self.ends() {
            match self.consumer() {
                Ok(consumer) => {
                    let consumer = Arc::new(consumer);
                    *self.alive.write() = Some(consumer.clone());
                    self.read(&consumer);
                    *self.alive.write() = None;
                    self.tell_lost(&consumer);
                    // Dropping the last of it leaves the group.
                    drop(consumer);
                }
                Err(error) => {
                    let why = PortError::Unavailable(format!("the topics of businesses cannot be joined: {error}"));
                    let _ = self.pieces.blocking_send(Err(why));
                }
            }
            if !self.ends() {
                thread::park_timeout(AGAIN);
            }
        }
    }

    /// Lets go of a reader that cannot go on: what it had is read again by whoever gets it.
    fn give_up(&self) {
        let Some(consumer) = self.alive.write().take() else { return };
        Self::lose_all(&consumer);
        self.tell_lost(&consumer);
    }

    fn lose_all(consumer: &BaseConsumer<Watch>) {
        if let Ok(all) = consumer.assignment() {
            let (watch, all) = (consumer.context(), all.elements());
            watch.lost.lock().extend(all.iter().map(|at| watch.spot(at.topic(), at.partition())));
        }
    }

    fn ends(&self) -> bool {
        self.ending.load(Ordering::Acquire) || self.pieces.is_closed()
    }

    fn consumer(&self) -> Result<BaseConsumer<Watch>, KafkaError> {
        let settings = &self.settings;
        let mut config = settings.reader(&settings.named(GROUP), self.limits.kafka_prefetch_kib);
        config.set("fetch.wait.max.ms", "500").set("topic.metadata.refresh.interval.ms", "10000");
        match settings.protocol {
            Protocol::Consumer => config.set("group.protocol", "consumer"),
            Protocol::Classic => config
                .set("group.protocol", "classic")
                .set("partition.assignment.strategy", "cooperative-sticky")
                .set("session.timeout.ms", settings.session_ms.to_string())
                .set("heartbeat.interval.ms", (settings.session_ms / 6).max(100).to_string()),
        };
        let watch = Watch { prefix: settings.prefix.clone(), paused: Mutex::default(), lost: Mutex::default() };
        let consumer = BaseConsumer::from_config_and_context(&config, watch)?;
        let shared = settings.named(SHARED).replace('.', "\\.");
        consumer.subscribe(&[&format!("^{shared}(\\.[a-z0-9_-]+)?$")])?;
        Ok(consumer)
    }

    /// Hands over what comes, until it is to end or the reader is dead.
    fn read(&self, consumer: &BaseConsumer<Watch>) {
        while !self.ends() {
            let (mut records, mut bytes, mut fault) = (Vec::new(), 0, None);
            let mut wait = LOOK;
            while records.len() < PIECE.records && bytes < PIECE.bytes {
                match consumer.poll(wait) {
                    Some(Ok(message)) => {
                        let raw = raw(consumer.context(), &message);
                        bytes += raw.value.as_ref().map_or(0, Bytes::len);
                        records.push(raw);
                        // What is there goes with it; nothing is waited for.
                        wait = Duration::ZERO;
                    }
                    Some(Err(error)) => {
                        fault = Some(error);
                        break;
                    }
                    None => break,
                }
            }
            if !records.is_empty() && self.pieces.blocking_send(Ok(Arrival::Records(records))).is_err() {
                return;
            }
            self.tell_lost(consumer);
            if let Some(error) = fault {
                match error.rdkafka_error_code() {
                    // It comes again and again, and what is behind it is not read.
                    Some(Code::NotImplemented | Code::BadCompression) => {
                        tracing::warn!(%error, "a record of a business cannot be read")
                    }
                    _ => tracing::debug!(%error, "kafka"),
                }
                let is_fatal = matches!(error, KafkaError::MessageConsumptionFatal(_));
                if is_fatal || is_worth_saying(&error) {
                    let _ = self.pieces.blocking_send(Err(told::unanswered(&error)));
                }
                if is_fatal {
                    // What it had is read again by whoever gets it.
                    Self::lose_all(consumer);
                    return;
                }
            }
        }
    }

    fn tell_lost(&self, consumer: &BaseConsumer<Watch>) {
        let lost = std::mem::take(&mut *consumer.context().lost.lock());
        if !lost.is_empty() {
            let _ = self.pieces.blocking_send(Ok(Arrival::Lost(lost)));
        }
    }
}

/// Whether somebody has to do something about it; the others pass by themselves.
fn is_worth_saying(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::GroupAuthorizationFailed
                | Code::TopicAuthorizationFailed
                | Code::ClusterAuthorizationFailed
                | Code::UnsupportedFeature
                | Code::UnsupportedVersion
        )
    )
}

fn raw(watch: &Watch, message: &BorrowedMessage<'_>) -> Raw {
    let header =
        |header: Header<'_, &[u8]>| (header.key.to_owned(), Bytes::copy_from_slice(header.value.unwrap_or_default()));
    let headers = form::given(message).map(header).collect();
    Raw {
        spot: watch.spot(message.topic(), message.partition()),
        offset: message.offset().max(0) as u64,
        at: Timestamp(message.timestamp().to_millis().unwrap_or_default()),
        key: message.key().map(Bytes::copy_from_slice),
        headers,
        value: message.payload().map(Bytes::copy_from_slice),
    }
}
