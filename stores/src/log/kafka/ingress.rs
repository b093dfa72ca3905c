//! Topics of businesses: one reader of the group `ingress`, and the topic of what was not taken.
//!
//! A thread polls librdkafka and hands over what came in bounded pieces; while nobody takes them it polls no further. The
//! topics are found by their names, `ingress` and `ingress.TENANT`, also those that are made later. A reader that librdkafka
//! declares dead is replaced by a new one, and what the dead one had is another's to read again.

use std::{
    collections::HashSet,
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
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    config::{FromClientConfigAndContext as _, RDKafkaLogLevel},
    consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance},
    error::KafkaError,
    message::{BorrowedMessage, DeliveryResult, Header, Headers as _, OwnedHeaders},
    producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer},
    types::RDKafkaErrorCode as Code,
};
use schemas::{
    Problem, Timestamp,
    limits::StoreLimits,
    port::{Arrival, Fetch, Ingress, PortError, PortResult, Raw, Spot},
};
use tokio::sync::{mpsc, oneshot};

use super::{
    settings::{Protocol, Settings},
    told::{self, Come},
};
use crate::{OpenError, urls::Address};

/// The group of all doors.
const GROUP: &str = "esh3ar.ingress";
/// Where what was not taken stands.
pub(crate) const REJECTED: &str = "esh3ar.rejected";
/// What businesses produce to: this, and this with a tenant behind a dot.
pub(crate) const SHARED: &str = "esh3ar.ingress";
/// What stands before the headers that say why a record was not taken; whoever produces it again leaves them out.
const PROBLEM: &str = "problem-";
/// Never kept among the rejected: who reads them is not who sent them.
const CREDENTIALS: &str = "authorization";

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

/// Partitions of a tenant's own topic: as many doors may read it at once.
const PARTITIONS: i32 = 6;

/// The topics of tenants that are missing.
pub(crate) async fn missing(
    address: &Address,
    limits: &StoreLimits,
    tenants: &[String],
) -> Result<Vec<String>, OpenError> {
    let settings = Settings::read(address, limits)?;
    let names: Vec<_> = tenants.iter().map(|tenant| settings.named(&format!("{SHARED}.{tenant}"))).collect();
    let asked = tokio::task::spawn_blocking(move || {
        let client: BaseConsumer<told::Ear> =
            BaseConsumer::from_config_and_context(&settings.client(), told::Ear::default())
                .map_err(|error| OpenError::Address(format!("{}: {error}", settings.shown)))?;
        let mut missing = Vec::new();
        for name in names {
            let found = client
                .fetch_metadata(Some(&name), settings.ask)
                .map_err(|error| told::unreachable(&settings, client.context().trouble(), &error.to_string()))?;
            if found.topics().iter().all(|topic| topic.error().is_some() || topic.partitions().is_empty()) {
                missing.push(name);
            }
        }
        Ok(missing)
    });
    asked.await.map_err(|why| OpenError::Address(why.to_string()))?
}

/// Makes the topics of tenants that are missing, and says which. Copies as the address asks, else as the cluster's own
/// default has it.
pub(crate) async fn create(
    address: &Address,
    limits: &StoreLimits,
    tenants: &[String],
) -> Result<Vec<String>, OpenError> {
    let missing = missing(address, limits, tenants).await?;
    if missing.is_empty() {
        return Ok(missing);
    }
    let settings = Settings::read(address, limits)?;
    let failed = |why: String| OpenError::Address(format!("Kafka at {}: {why}", settings.shown));
    let admin: AdminClient<told::Ear> = AdminClient::from_config_and_context(&settings.client(), told::Ear::default())
        .map_err(|e| failed(e.to_string()))?;
    let kept = limits.log_retention_ms.to_string();
    let replication = settings.replication.map_or(-1, |n| n as i32);
    let new: Vec<_> = missing
        .iter()
        .map(|name| {
            NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(replication))
                .set("retention.ms", &kept)
                .set("message.timestamp.type", "LogAppendTime")
        })
        .collect();
    let options = AdminOptions::new().request_timeout(Some(settings.ask * 4)).operation_timeout(Some(settings.ask * 2));
    let made = admin.create_topics(&new, &options).await.map_err(|error| failed(error.to_string()))?;
    // Ending an admin client waits for its thread.
    drop(tokio::task::spawn_blocking(move || drop(admin)));
    for outcome in made {
        match outcome {
            Ok(_) | Err((_, Code::TopicAlreadyExists)) => {}
            Err((topic, code)) => return Err(failed(format!("the topic {topic} could not be made: {code}"))),
        }
    }
    // Made is not yet known to every broker.
    for _ in 0..KNOWN_TRIES {
        if self::missing(address, limits, tenants).await?.is_empty() {
            return Ok(missing);
        }
        tokio::time::sleep(KNOWN_EVERY).await;
    }
    Err(failed("the topics of tenants were made and are not known yet: look again with `esh3ar topics check`".into()))
}

/// How often, and how many times, it is looked whether a new topic is known.
const KNOWN_EVERY: Duration = Duration::from_millis(100);
const KNOWN_TRIES: usize = 100;

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
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Revoke(list) = rebalance {
            let mut lost = self.lost.lock();
            lost.extend(list.elements().iter().map(|at| self.spot(at.topic(), at.partition())));
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let Rebalance::Assign(list) = rebalance else { return };
        let paused = self.paused.lock();
        let mut still = TopicPartitionList::new();
        for at in list.elements().iter().filter(|at| paused.contains(at.topic())) {
            still.add_partition(at.topic(), at.partition());
        }
        if still.count() > 0
            && let Err(error) = consumer.pause(&still)
        {
            tracing::warn!(%error, "a topic that came back could not be paused");
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
    rejects: ThreadedProducer<Acks>,
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
        let mut config = settings.client();
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", limits.kafka_linger_ms.to_string())
            .set("message.timeout.ms", limits.kafka_append_ms.to_string())
            .set("message.max.bytes", limits.kafka_record_bytes.to_string());
        let rejects = ThreadedProducer::from_config_and_context(&config, Acks).map_err(|why| wrong(&why))?;
        let name = settings.named(REJECTED);
        let found = rejects.client().fetch_metadata(Some(&name), settings.ask).map_err(|error| {
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
            thread.run();
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

    fn send(&self, name: &str, raw: &Raw, problem: &Problem, whole: bool) -> oneshot::Receiver<PortResult<()>> {
        let (done, answer) = oneshot::channel();
        let value = raw.value.as_deref().filter(|_| whole);
        let mut record =
            BaseRecord::<[u8], [u8], _>::with_opaque_to(name, Box::new(done)).headers(why(raw, problem, whole));
        record.key = raw.key.as_deref();
        record.payload = value;
        if let Err((error, record)) = self.rejects.send(record) {
            let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
            let _ = record.delivery_opaque.send(Err(told::refused(code, Come::Never, name)));
        }
        answer
    }
}

/// The record's own headers, and what was wrong.
fn why(raw: &Raw, problem: &Problem, whole: bool) -> OwnedHeaders {
    let mut out = OwnedHeaders::new();
    for (key, value) in &raw.headers {
        // What was rejected before and produced again is rejected anew, for the new reason alone.
        if !key.eq_ignore_ascii_case(CREDENTIALS) && !key.starts_with(PROBLEM) {
            out = out.insert(Header { key, value: Some(&value[..]) });
        }
    }
    let mut say = |name: &str, text: &str| {
        let key = format!("{PROBLEM}{name}");
        out = std::mem::take(&mut out).insert(Header { key: &key, value: Some(text) });
    };
    say("type", &problem.type_uri());
    say("title", problem.code.title());
    say("status", &problem.code.status().to_string());
    say("detail", &problem.detail);
    if let Some(field) = &problem.field {
        say("field", field);
    }
    say("topic", &raw.spot.topic);
    say("partition", &raw.spot.partition.to_string());
    say("offset", &raw.offset.to_string());
    say("at", &raw.at.to_string());
    if !whole {
        say("value", "too large to be kept here: it stands at the place that is named");
    }
    out
}

/// Takes the answers for what was rejected.
struct Acks;

impl ClientContext for Acks {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        told::log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka");
    }
}

impl ProducerContext for Acks {
    type DeliveryOpaque = Box<oneshot::Sender<PortResult<()>>>;

    fn delivery(&self, result: &DeliveryResult<'_>, done: Self::DeliveryOpaque) {
        let outcome = match result {
            Ok(_) => Ok(()),
            Err((error, message)) => {
                let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
                Err(told::refused(code, Come::Perhaps, message.topic()))
            }
        };
        // Whoever does not wait any more tries again.
        let _ = done.send(outcome);
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
        let name = self.settings.named(REJECTED);
        let sent: Vec<_> = records.iter().map(|(raw, problem)| self.send(&name, raw, problem, true)).collect();
        let unanswered = || Err(PortError::Unknown("Kafka did not answer for the record".into()));
        let mut outcomes = Vec::with_capacity(records.len());
        for (answer, (raw, problem)) in sent.into_iter().zip(records) {
            let mut outcome = answer.await.unwrap_or_else(|_| unanswered());
            // Where it stood it fitted; with what was wrong it may not. Then the place alone is kept.
            if matches!(outcome, Err(PortError::Rejected(_))) {
                outcome = self.send(&name, raw, problem, false).await.unwrap_or_else(|_| unanswered());
            }
            outcomes.push(outcome);
        }
        outcomes
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
    fn run(self) {
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
                tracing::debug!(%error, "kafka");
                let is_fatal = matches!(error, KafkaError::MessageConsumptionFatal(_));
                if is_fatal || is_worth_saying(&error) {
                    let _ = self.pieces.blocking_send(Err(told::unanswered(&error)));
                }
                if is_fatal {
                    // What it had is read again by whoever gets it.
                    if let Ok(all) = consumer.assignment() {
                        let watch = consumer.context();
                        let all = all.elements();
                        watch.lost.lock().extend(all.iter().map(|at| watch.spot(at.topic(), at.partition())));
                    }
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
    let headers = message.headers().map_or_else(Vec::new, |given| {
        let header = |header: Header<'_, &[u8]>| {
            (header.key.to_owned(), Bytes::copy_from_slice(header.value.unwrap_or_default()))
        };
        given.iter().map(header).collect()
    });
    Raw {
        spot: watch.spot(message.topic(), message.partition()),
        offset: message.offset().max(0) as u64,
        at: Timestamp(message.timestamp().to_millis().unwrap_or_default()),
        key: message.key().map(Bytes::copy_from_slice),
        headers,
        value: message.payload().map(Bytes::copy_from_slice),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::Code;

    #[test]
    fn a_rejected_record_keeps_its_headers_but_for_credentials_and_says_what_was_wrong() {
        let header = |name: &str, value: &str| (name.to_owned(), Bytes::from(value.to_owned()));
        let raw = Raw {
            spot: Spot { topic: "ingress.acme".into(), partition: 3 },
            offset: 7,
            at: Timestamp(0),
            key: None,
            headers: vec![
                header("ce_id", "42"),
                header("Authorization", "Bearer secret"),
                header("problem-type", "/problems/of-the-last-time"),
            ],
            value: None,
        };
        let problem = Problem::new(Code::InvalidPhone, "`to` must be E.164").at("/to");
        let headers = why(&raw, &problem, true);
        let text = |value: Option<&[u8]>| String::from_utf8_lossy(value.unwrap_or_default()).into_owned();
        let said: Vec<_> = headers.iter().map(|header| (header.key.to_owned(), text(header.value))).collect();
        let said: Vec<_> = said.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(
            said,
            [
                ("ce_id", "42"),
                ("problem-type", "/problems/invalid-phone"),
                ("problem-title", "The recipient is not a valid E.164 phone number"),
                ("problem-status", "422"),
                ("problem-detail", "`to` must be E.164"),
                ("problem-field", "/to"),
                ("problem-topic", "ingress.acme"),
                ("problem-partition", "3"),
                ("problem-offset", "7"),
                ("problem-at", "1970-01-01T00:00:00.000Z"),
            ]
        );
    }
}
