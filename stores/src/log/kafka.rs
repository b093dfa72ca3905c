//! The log on Apache Kafka, through librdkafka.
//!
//! | file | does |
//! |---|---|
//! | [`settings`] | what an address says, and what every client is told |
//! | [`produce`], [`answers`] | appends: idempotent, `acks=all`, bounded, an outcome each |
//! | [`ask`] | bounds, committed offsets, health: many questions in one request |
//! | [`read`] | reads from anywhere |
//! | [`group`], [`member`], [`owned`] | one owner of a partition number in all topics |
//! | [`topics`] | makes and checks the topics |
//! | [`ingress`] | the topics of businesses, and what was not taken of them |
//! | [`form`] | our records as Kafka's, and back |
//! | [`told`] | what librdkafka tells, split by *did it happen?* |
//!
//! What Kafka does not give and the port does: retention goes by age alone, whether or not a group has read what it removes.
//! `docs/kafka.md` says how to choose it; [`KafkaLog::nearly_lost`] says when a group comes near it.

pub(crate) mod answers;
pub(crate) mod ask;
pub(crate) mod form;
pub(crate) mod group;
pub(crate) mod ingress;
pub(crate) mod member;
pub(crate) mod owned;
pub(crate) mod produce;
pub(crate) mod read;
pub(crate) mod rejected;
pub(crate) mod settings;
mod start;
pub(crate) mod tenants;
pub(crate) mod told;
pub mod topics;

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use schemas::{
    Clock, Millis, Offset, Topic, TopicPartition,
    limits::StoreLimits,
    port::{Append, Consumer, Durability, Fetch, Group, Log, PortError, PortResult, Record},
    vital,
};

use self::{ask::Asker, produce::Producer, read::Readers, settings::Settings};
use super::embedded::layout::Layout;
use crate::{OpenError, urls::Address};

pub use answers::{Produced, produce_requests};

/// A verdict of [`Log::check`] holds so long, ms.
const CHECKED_MS: u64 = 1_000;

/// How often a process that reads as a member of a group looks whether the group comes near what retention removes.
const WATCH: Duration = Duration::from_secs(60);

/// The log of an installation on Kafka.
pub struct KafkaLog {
    settings: Arc<Settings>,
    limits: StoreLimits,
    clock: Arc<dyn Clock>,
    layout: Layout,
    producer: Producer,
    // Apart, so that a slow answer about groups delays nobody who asks about ends.
    bounds: Asker,
    offsets: Asker,
    readers: Readers,
    durability: Durability,
    min_isr: usize,
    cluster: String,
    checked: tokio::sync::Mutex<Option<(Millis, PortResult<()>)>>,
    // Whose members are in this process.
    joined: Mutex<BTreeMap<&'static str, Vec<Topic>>>,
}

impl KafkaLog {
    /// Opens the log that an address names. The topics must be there and as the address and the limits say: partitions,
    /// replication, minimum in sync, the brokers' own timestamps, no compaction. What is not is refused with what mends it.
    ///
    /// Options: `partitions`, `replication`, `min_isr`, `tls`, `ca`, `mechanism`, `group` (`consumer` or `classic`),
    /// `session_ms` (classic); the prefix of all names in the path's place.
    pub async fn open(address: &Address, limits: &StoreLimits, clock: Arc<dyn Clock>) -> Result<Arc<Self>, OpenError> {
        let settings = Arc::new(Settings::read(address, limits)?);
        let found = topics::find(settings.clone(), limits).await?;
        let wrong = found.wrong(&settings, limits);
        if let Some(first) = wrong.iter().find(|wrong| wrong.fatal) {
            let more = wrong.iter().filter(|wrong| wrong.fatal).count() - 1;
            let more = if more == 0 { String::new() } else { format!(" ({more} more: `esh3ar topics check`)") };
            return Err(OpenError::Address(format!("Kafka at {}: {first}{more}", settings.shown)));
        }
        for wrong in &wrong {
            tracing::warn!("Kafka at {}: {wrong}", settings.shown);
        }
        let layout = Layout::new(settings.partitions);
        let producer = Producer::open(settings.clone(), limits, layout.clone(), clock.clone())?;
        let log = Self {
            bounds: Asker::start("kafka-bounds", settings.clone(), clock.clone())?,
            offsets: Asker::start("kafka-offsets", settings.clone(), clock.clone())?,
            readers: Readers::new(settings.clone(), clock.clone(), limits),
            durability: found.durability(),
            min_isr: found.min_isr(),
            cluster: found.cluster,
            checked: tokio::sync::Mutex::default(),
            joined: Mutex::default(),
            limits: limits.clone(),
            producer,
            layout,
            clock,
            settings,
        };
        let log = Arc::new(log);
        tokio::spawn(vital::task("the watch over what retention removes", watch(Arc::downgrade(&log))));
        Ok(log)
    }

    /// Names the cluster and the place in it: another installation's is another.
    pub fn identity(&self) -> String {
        format!("kafka:{}/{}", self.cluster, self.settings.prefix)
    }

    /// Finishes what was appended; everything after that is refused.
    pub async fn close(&self) {
        self.producer.close().await;
    }

    /// Where a group has yet to read what is about to go: the partitions whose next record is older than three quarters of
    /// what the log keeps, with its age in ms.
    pub async fn nearly_lost(&self, group: Group, topics: &[Topic]) -> PortResult<Vec<(TopicPartition, u64)>> {
        let partitions = (0..self.layout.partitions()).map(schemas::Partition);
        let all: Vec<_> = partitions
            .flat_map(|partition| topics.iter().map(move |topic| TopicPartition { topic: *topic, partition }))
            .collect();
        let bounds = self.bounds_of(&all).await?;
        let committed = self.offsets.committed(group, all.clone()).await?;
        let mut late = Vec::new();
        for ((at, (start, end)), next) in all.into_iter().zip(bounds).zip(committed) {
            let next = next.unwrap_or(start).max(start);
            if next >= end {
                continue;
            }
            let records = self.read(at, next, Fetch { records: 1, bytes: 0 }).await?;
            let age = records.first().map_or(0, |record| self.clock.wall().ms_since(record.appended_at));
            if age > self.limits.log_retention_ms / 4 * 3 {
                late.push((at, age));
            }
        }
        Ok(late)
    }

    /// What was produced since the producer was made: records for each request are what brokers' cost goes by.
    pub fn produced(&self) -> Produced {
        self.producer.produced()
    }

    async fn ask_writable(&self) -> PortResult<()> {
        if self.producer.is_closed() {
            return Err(PortError::Unavailable("the log is closed".into()));
        }
        // Brokers without a majority go on telling what was: what is on its way knows better.
        if let Some(ms) = self.producer.quiet_ms().filter(|ms| *ms > self.limits.kafka_ask_ms) {
            return Err(PortError::Unavailable(format!("Kafka has answered no append for {ms} ms")));
        }
        let lanes = Topic::all().filter(|topic| matches!(topic, Topic::Lane(_)));
        let names = lanes.map(|topic| self.settings.topic(topic)).collect();
        self.bounds.writable(names, self.min_isr).await.map_err(|why| match self.producer.trouble() {
            Some((code, reason)) => PortError::Unavailable(format!("{why} ({code}: {reason})")),
            None => why,
        })
    }
}

/// Warns of what a group is about to lose, as long as the log is there.
async fn watch(log: Weak<KafkaLog>) {
    loop {
        tokio::time::sleep(WATCH).await;
        let Some(log) = log.upgrade() else { return };
        if log.producer.is_closed() {
            return;
        }
        let joined = log.joined.lock().clone();
        for (group, topics) in joined {
            let Ok(late) = log.nearly_lost(Group(group), &topics).await else { continue };
            for (at, age_ms) in late {
                tracing::error!(
                    group, %at, age_ms, kept_ms = log.limits.log_retention_ms,
                    "the group is so late that retention is about to remove what it has not read: raise retention.ms of the topic"
                );
            }
        }
    }
}

#[async_trait]
impl Log for KafkaLog {
    async fn append(&self, records: Vec<Append>) -> Vec<PortResult<Offset>> {
        self.producer.append(records).await
    }

    async fn read(&self, at: TopicPartition, from: Offset, max: Fetch) -> PortResult<Vec<Record>> {
        self.layout.index(at)?;
        // Kafka's offsets are signed.
        self.readers.read(at, from.0.min(i64::MAX as u64), max).await
    }

    async fn bounds(&self, at: TopicPartition) -> PortResult<(Offset, Offset)> {
        let bounds = self.bounds_of(&[at]).await?;
        bounds.into_iter().next().ok_or_else(|| PortError::Unavailable("Kafka knows no bounds".into()))
    }

    async fn bounds_of(&self, at: &[TopicPartition]) -> PortResult<Vec<(Offset, Offset)>> {
        for at in at {
            self.layout.index(*at)?;
        }
        self.bounds.bounds(at.to_vec()).await
    }

    async fn committed(&self, group: Group, at: &[TopicPartition]) -> PortResult<Vec<Option<Offset>>> {
        for at in at {
            self.layout.index(*at)?;
        }
        self.offsets.committed(group, at.to_vec()).await
    }

    async fn join(&self, group: Group, topics: &[Topic]) -> PortResult<Box<dyn Consumer>> {
        let (settings, limits, clock) = (self.settings.clone(), self.limits.clone(), self.clock.clone());
        let (layout, topics) = (self.layout.clone(), topics.to_vec());
        self.joined.lock().insert(group.0, topics.clone());
        let joined =
            tokio::task::spawn_blocking(move || group::join(settings, &limits, clock, layout, group, &topics)).await;
        let member = joined.map_err(|_| PortError::Unavailable("joining was interrupted".into()))??;
        Ok(Box::new(member))
    }

    fn partitions(&self) -> u16 {
        self.layout.partitions()
    }

    fn durability(&self) -> Durability {
        self.durability
    }

    async fn check(&self) -> PortResult<()> {
        let mut checked = self.checked.lock().await;
        let now = self.clock.mono();
        if let Some((at, verdict)) = &*checked
            && now.since(*at) < CHECKED_MS
        {
            return verdict.clone();
        }
        let verdict = self.ask_writable().await;
        *checked = Some((self.clock.mono(), verdict.clone()));
        verdict
    }
}
