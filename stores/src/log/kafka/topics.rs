//! The topics of an installation: made once, checked at every start. What is wrong is said with the command that mends it;
//! deciding what is wrong is pure.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication},
    config::FromClientConfigAndContext as _,
    consumer::{BaseConsumer, Consumer as _},
    topic_partition_list::{Offset, TopicPartitionList},
    types::RDKafkaErrorCode as Code,
};
use schemas::{Topic, limits::StoreLimits, port::Durability};

use super::{
    settings::{Protocol, Settings},
    told::{self, Ear},
};
use crate::{OpenError, urls::Address};

/// Topics beside those of [`Topic`]: what businesses produce to, and what was not taken of it.
const DOOR: [&str; 2] = ["esh3ar.ingress", "esh3ar.rejected"];

/// What stands around the records of a batch, bytes, with room to spare (Kafka's own default is 1,000,000 and 48,588).
const OVERHEAD: i64 = 16_384;

/// A member that was killed is to be missed within so long, ms.
const SESSION_MS: u64 = 10_000;

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// What.
    pub what: String,
    /// The command, or the decision, that mends it.
    pub mend: String,
    /// Whether the log refuses to open with it.
    pub fatal: bool,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.mend)
    }
}

/// Makes the topics that are missing, and says which. Those that are there are left as they are: [`check`] looks at them.
///
/// Replication is what the address asks for, else 3 where there are three brokers and 1 where there are fewer; of the copies all
/// but one must have a record before it counts.
pub async fn create(address: &Address, limits: &StoreLimits) -> Result<Vec<String>, OpenError> {
    let settings = Arc::new(Settings::read(address, limits)?);
    let found = find(settings.clone(), limits).await?;
    let replication = settings.replication.unwrap_or(if found.brokers >= 3 { 3 } else { 1 });
    let min_isr = settings.min_isr.unwrap_or(replication.saturating_sub(1).max(1));
    if replication > found.brokers as u64 || min_isr > replication {
        return Err(OpenError::Address(format!(
            "{}: {replication} copies of which {min_isr} must be in sync cannot be had from {} brokers: change `replication` and \
             `min_isr`, or add brokers",
            settings.shown, found.brokers
        )));
    }
    let missing: Vec<_> =
        wanted(&settings, limits).into_iter().filter(|want| !found.topics.contains_key(&want.name)).collect();
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    let (min_isr, bytes) = (min_isr.to_string(), limits.kafka_record_bytes.to_string());
    let kept: Vec<_> = missing.iter().map(|want| want.retention_ms.to_string()).collect();
    let new = missing.iter().zip(&kept).map(|(want, kept)| {
        NewTopic::new(&want.name, i32::from(settings.partitions), TopicReplication::Fixed(replication as i32))
            .set("min.insync.replicas", &min_isr)
            .set("retention.ms", kept)
            .set("max.message.bytes", &bytes)
            .set("message.timestamp.type", "LogAppendTime")
            .set("cleanup.policy", "delete")
    });
    let new: Vec<_> = new.collect();
    let admin = admin(&settings)?;
    let failed =
        |why: String| OpenError::Address(format!("Kafka at {}: the topics could not be made: {why}", settings.shown));
    let options = AdminOptions::new().request_timeout(Some(settings.ask * 4)).operation_timeout(Some(settings.ask * 2));
    let made = admin.create_topics(&new, &options).await.map_err(|error| failed(error.to_string()))?;
    retire(admin);
    for outcome in made {
        match outcome {
            // Another process makes them at the same moment.
            Ok(_) | Err((_, Code::TopicAlreadyExists)) => {}
            Err((topic, code)) => return Err(failed(format!("{topic}: {code}"))),
        }
    }
    lead(settings, missing.iter().map(|want| want.name.clone()).collect()).await?;
    Ok(missing.into_iter().map(|want| want.name).collect())
}

/// What is wrong with the topics and the brokers, each with what mends it. Empty: nothing.
pub async fn check(address: &Address, limits: &StoreLimits) -> Result<Vec<Wrong>, OpenError> {
    let settings = Arc::new(Settings::read(address, limits)?);
    Ok(find(settings.clone(), limits).await?.wrong(&settings, limits))
}

/// A topic that is to be there.
struct Want {
    name: String,
    retention_ms: u64,
    // The log cannot do without.
    own: bool,
}

fn wanted(settings: &Settings, limits: &StoreLimits) -> Vec<Want> {
    let own = Topic::all().map(|topic| {
        let retention_ms = if topic == Topic::Dead { limits.dead_ms } else { limits.log_retention_ms };
        Want { name: settings.topic(topic), retention_ms, own: true }
    });
    let door = DOOR.map(|name| Want { name: settings.named(name), retention_ms: limits.log_retention_ms, own: false });
    own.chain(door).collect()
}

/// A topic as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Stands {
    partitions: usize,
    replication: usize,
    config: BTreeMap<String, String>,
}

impl Stands {
    fn number(&self, key: &str) -> Option<i64> {
        self.config.get(key)?.parse().ok()
    }
}

/// What a cluster has.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) cluster: String,
    brokers: usize,
    topics: BTreeMap<String, Stands>,
    session_ms: Option<u64>,
}

impl Found {
    fn lanes(&self) -> impl Iterator<Item = &Stands> {
        self.topics.iter().filter(|(name, _)| name.contains("messages.")).map(|(_, stands)| stands)
    }

    /// Copies that must have a record before it counts.
    pub(crate) fn min_isr(&self) -> usize {
        self.lanes().filter_map(|lane| lane.number("min.insync.replicas")).min().unwrap_or(1).max(1) as usize
    }

    /// What an append survives: a broker's death where two have it before it counts. One copy is in the memory of one machine
    /// (it survives every process and no power cut), unless the topic syncs each record.
    pub(crate) fn durability(&self) -> Durability {
        let copies = self.lanes().map(|lane| lane.replication).min().unwrap_or(1);
        if copies >= 2 && self.min_isr() >= 2 {
            Durability::Replicated
        } else if self.lanes().all(|lane| lane.number("flush.messages") == Some(1)) {
            Durability::Disk
        } else {
            Durability::Process
        }
    }

    /// What is not as the address and the limits say.
    pub(crate) fn wrong(&self, settings: &Settings, limits: &StoreLimits) -> Vec<Wrong> {
        let mut out = Vec::new();
        for want in wanted(settings, limits) {
            let name = &want.name;
            let mut say =
                |fatal: bool, what: String, mend: String| out.push(Wrong { what, mend, fatal: fatal && want.own });
            let set = |what: String| {
                format!(
                    "mend it with `kafka-configs.sh --bootstrap-server {} --alter --entity-type topics --entity-name {name} \
                     --add-config {what}`",
                    settings.hosts
                )
            };
            let Some(stands) = self.topics.get(name) else {
                say(true, format!("the topic {name} is missing"), "make it with `esh3ar topics create`".into());
                continue;
            };
            let (partitions, asked) = (stands.partitions, usize::from(settings.partitions));
            if partitions != asked && want.own {
                let mend = format!(
                    "the number is fixed for the life of an installation: set limits.store.partitions to {partitions}, or give \
                     this installation a prefix of its own, kafka://…/PREFIX"
                );
                say(true, format!("the topic {name} has {partitions} partitions and is configured with {asked}"), mend);
            }
            let copies = stands.replication as u64;
            if let Some(asked) = settings.replication.filter(|asked| copies < *asked) {
                let mend =
                    "give its partitions more replicas with `kafka-reassign-partitions.sh`, or lower `replication`"
                        .into();
                say(
                    true,
                    format!("the topic {name} has {copies} copies of each record and `replication` asks for {asked}"),
                    mend,
                );
            }
            let min_isr = stands.number("min.insync.replicas").unwrap_or(1).max(0) as u64;
            if let Some(asked) = settings.min_isr.filter(|asked| min_isr < *asked) {
                let what =
                    format!("the topic {name} counts a record that {min_isr} have and `min_isr` asks for {asked}");
                say(true, what, set(format!("min.insync.replicas={asked}")));
            }
            if min_isr > copies {
                let what = format!(
                    "the topic {name} wants {min_isr} copies in sync and has {copies}: nothing can be appended"
                );
                say(true, what, set(format!("min.insync.replicas={}", copies.saturating_sub(1).max(1))));
            }
            let is = |key: &str| stands.config.get(key).map(String::as_str).unwrap_or_default();
            if is("cleanup.policy") != "delete" {
                let what = format!("the topic {name} is cleaned up by `{}`, which makes holes", is("cleanup.policy"));
                say(true, what, set("cleanup.policy=delete".into()));
            }
            if is("message.timestamp.type") != "LogAppendTime" {
                let what = format!("the topic {name} keeps its senders' times, and retries wait by the log's");
                say(true, what, set("message.timestamp.type=LogAppendTime".into()));
            }
            if let Some(bytes) = stands.number("max.message.bytes").filter(|n| *n < limits.kafka_record_bytes as i64) {
                let what = format!("the topic {name} takes records of {bytes} bytes at most");
                // Below a batch, small records are refused with it.
                say(
                    bytes < told::BATCH as i64 + OVERHEAD,
                    what,
                    set(format!("max.message.bytes={}", limits.kafka_record_bytes)),
                );
            }
            let kept = stands.number("retention.ms").filter(|ms| *ms >= 0 && (*ms as u64) < want.retention_ms);
            if let Some(kept) = kept {
                let what = format!("the topic {name} keeps records for {kept} ms, read or not");
                say(false, what, set(format!("retention.ms={}", want.retention_ms)));
            }
        }
        if settings.protocol == Protocol::Consumer
            && let Some(ms) = self.session_ms.filter(|ms| *ms > SESSION_MS)
        {
            let mend = "set group.consumer.session.timeout.ms=6000, group.consumer.min.session.timeout.ms=6000 and \
                        group.consumer.heartbeat.interval.ms=1000, group.consumer.min.heartbeat.interval.ms=1000 on the brokers, or \
                        use group=classic in `stores.log`"
                .into();
            let what = format!(
                "the brokers miss a pipeline that was killed only after {ms} ms, and its partitions stand still"
            );
            out.push(Wrong { what, mend, fatal: false });
        }
        out
    }
}

fn admin(settings: &Settings) -> Result<AdminClient<Ear>, OpenError> {
    AdminClient::from_config_and_context(&settings.client(), Ear::default())
        .map_err(|error| OpenError::Address(format!("{}: {error}", settings.shown)))
}

/// Ending an admin client waits for its thread.
fn retire(admin: AdminClient<Ear>) {
    drop(tokio::task::spawn_blocking(move || drop(admin)));
}

/// Looks at a cluster. Fails with a sentence where it does not answer or does not let this user.
pub(crate) async fn find(settings: Arc<Settings>, limits: &StoreLimits) -> Result<Found, OpenError> {
    let names: Vec<_> = wanted(&settings, limits).into_iter().map(|want| want.name).collect();
    let asked = settings.clone();
    let looked = tokio::task::spawn_blocking(move || look(&asked, &names)).await;
    let (mut found, broker) = looked.map_err(|error| OpenError::Address(error.to_string()))??;
    let admin = admin(&settings)?;
    let topics: Vec<_> = found.topics.keys().cloned().collect();
    let mut resources: Vec<_> = topics.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
    resources.extend(broker.map(ResourceSpecifier::Broker));
    let options = AdminOptions::new().request_timeout(Some(settings.ask * 2));
    for resource in resources {
        // One at a time: a request for a broker's settings goes to that broker alone.
        let described = match (admin.describe_configs([&resource], &options).await, &resource) {
            (Ok(described), _) => described,
            // One broker that is away hides its settings and nothing else.
            (Err(error), ResourceSpecifier::Broker(id)) => {
                tracing::warn!(id, %error, "the settings of a broker cannot be looked at");
                continue;
            }
            (Err(error), _) => {
                let trouble = admin.inner().context().trouble();
                return Err(told::unreachable(&settings, trouble, &error.to_string()));
            }
        };
        for described in described {
            let values = match described {
                Ok(config) => config.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))),
                Err(code) => {
                    // Who may not look at settings may still use the topics.
                    tracing::warn!(?resource, %code, "the settings cannot be looked at");
                    continue;
                }
            };
            match &resource {
                ResourceSpecifier::Topic(name) => {
                    if let Some(stands) = found.topics.get_mut(*name) {
                        stands.config = values.collect();
                    }
                }
                _ => {
                    let mut values = values;
                    let session = values.find(|(name, _)| name == "group.consumer.session.timeout.ms");
                    found.session_ms = session.and_then(|(_, value)| value.parse().ok());
                }
            }
        }
    }
    retire(admin);
    Ok(found)
}

/// Asks for metadata until it is answered, or the brokers say no, or twice the time of a question has passed.
fn metadata(
    client: &BaseConsumer<Ear>,
    settings: &Settings,
    topic: &str,
) -> Result<rdkafka::metadata::Metadata, OpenError> {
    const STEP: Duration = Duration::from_millis(500);
    let mut left = settings.ask * 2;
    loop {
        let why = match client.fetch_metadata(Some(topic), STEP) {
            Ok(metadata) => return Ok(metadata),
            Err(error) => error.to_string(),
        };
        // What went wrong with connections waits there.
        let _ = client.poll(Duration::ZERO);
        let trouble = client.context().trouble();
        left = left.saturating_sub(STEP);
        if left.is_zero() || trouble.as_ref().is_some_and(|(code, _)| told::is_final(*code)) {
            return Err(told::unreachable(settings, trouble, &why));
        }
        if let Some((code, why)) = trouble {
            client.context().heard(&rdkafka::error::KafkaError::Global(code), &why);
        }
    }
}

fn look(settings: &Settings, names: &[String]) -> Result<(Found, Option<i32>), OpenError> {
    let client: BaseConsumer<Ear> = BaseConsumer::from_config_and_context(&settings.client(), Ear::default())
        .map_err(|error| OpenError::Address(format!("{}: {error}", settings.shown)))?;
    let mut found = Found::default();
    let mut broker = None;
    for name in names {
        let metadata = metadata(&client, settings, name)?;
        found.brokers = metadata.brokers().len();
        broker = metadata.brokers().first().map(|broker| broker.id());
        for topic in metadata.topics().iter().filter(|topic| topic.error().is_none() && !topic.partitions().is_empty())
        {
            let replication = topic.partitions().iter().map(|partition| partition.replicas().len()).min().unwrap_or(0);
            let stands = Stands { partitions: topic.partitions().len(), replication, config: BTreeMap::new() };
            found.topics.insert(topic.name().to_owned(), stands);
        }
    }
    found.cluster = client.client().fetch_cluster_id(settings.ask).unwrap_or_default();
    Ok((found, broker))
}

/// Waits until each partition of new topics has a leader that answers: the cluster names one before it knows that it leads.
async fn lead(settings: Arc<Settings>, names: Vec<String>) -> Result<(), OpenError> {
    let waited = tokio::task::spawn_blocking(move || {
        let client: BaseConsumer<Ear> = BaseConsumer::from_config_and_context(&settings.client(), Ear::default())
            .map_err(|error| OpenError::Address(format!("{}: {error}", settings.shown)))?;
        for name in names {
            let mut tries = 100;
            loop {
                let metadata = metadata(&client, &settings, &name)?;
                let led = |topic: &rdkafka::metadata::MetadataTopic| {
                    topic.partitions().len() == usize::from(settings.partitions)
                        && topic.partitions().iter().all(|partition| partition.leader() >= 0)
                };
                if metadata.topics().iter().all(led) && answers(&client, &settings, &name) {
                    break;
                }
                tries -= 1;
                if tries == 0 {
                    let why = format!(
                        "Kafka at {}: the topic {name} was made, and not all that lead it answer",
                        settings.shown
                    );
                    return Err(OpenError::Address(why));
                }
                std::thread::park_timeout(Duration::from_millis(50));
            }
        }
        Ok(())
    });
    waited.await.map_err(|error| OpenError::Address(error.to_string()))?
}

/// Whether all partitions of a topic say where they end.
fn answers(client: &BaseConsumer<Ear>, settings: &Settings, name: &str) -> bool {
    let mut ends = TopicPartitionList::new();
    for partition in 0..i32::from(settings.partitions) {
        if ends.add_partition_offset(name, partition, Offset::End).is_err() {
            return false;
        }
    }
    let ends = client.offsets_for_times(ends, Duration::from_millis(500));
    ends.is_ok_and(|ends| ends.elements().iter().all(|end| end.error().is_ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Settings {
        Settings::read(&Address::parse(text).unwrap(), &StoreLimits::default()).unwrap()
    }

    fn good(settings: &Settings, copies: usize, min_isr: usize) -> Found {
        let limits = StoreLimits::default();
        let config = [
            ("min.insync.replicas", min_isr.to_string()),
            ("cleanup.policy", "delete".into()),
            ("message.timestamp.type", "LogAppendTime".into()),
            ("max.message.bytes", limits.kafka_record_bytes.to_string()),
            ("retention.ms", limits.log_retention_ms.to_string()),
        ];
        let config: BTreeMap<String, String> = config.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        let stands = Stands { partitions: usize::from(settings.partitions), replication: copies, config };
        let topics = wanted(settings, &limits).into_iter().map(|want| (want.name, stands.clone())).collect();
        Found { cluster: "c".into(), brokers: 3, topics, session_ms: Some(6_000) }
    }

    #[test]
    fn a_good_cluster_has_nothing_wrong() {
        let settings = settings("kafka://a:1?replication=3&min_isr=2");
        let found = good(&settings, 3, 2);
        assert_eq!(found.wrong(&settings, &StoreLimits::default()), Vec::new());
        assert_eq!((found.durability(), found.min_isr()), (Durability::Replicated, 2));
    }

    #[test]
    fn each_trouble_is_named_with_what_mends_it() {
        let settings = settings("kafka://a:1?replication=3&min_isr=2");
        type Spoil = fn(&mut Found);
        let table: [(Spoil, &str, &str, bool); 9] = [
            (|f| drop(f.topics.remove("esh3ar.dead")), "esh3ar.dead is missing", "esh3ar topics create", true),
            (|f| drop(f.topics.remove("esh3ar.ingress")), "esh3ar.ingress is missing", "esh3ar topics create", false),
            (
                |f| f.topics.get_mut("esh3ar.dead").unwrap().partitions = 6,
                "6 partitions",
                "limits.store.partitions to 6",
                true,
            ),
            (
                |f| f.topics.get_mut("esh3ar.dead").unwrap().replication = 2,
                "2 copies",
                "kafka-reassign-partitions",
                true,
            ),
            (|f| put(f, "min.insync.replicas", "1"), "that 1 have", "min.insync.replicas=2", true),
            (|f| put(f, "cleanup.policy", "compact"), "holes", "cleanup.policy=delete", true),
            (|f| put(f, "message.timestamp.type", "CreateTime"), "senders' times", "LogAppendTime", true),
            (|f| put(f, "retention.ms", "1000"), "1000 ms, read or not", "retention.ms=", false),
            (|f| f.session_ms = Some(45_000), "after 45000 ms", "group=classic", false),
        ];
        for (spoil, what, mend, fatal) in table {
            let mut found = good(&settings, 3, 2);
            spoil(&mut found);
            let wrong = found.wrong(&settings, &StoreLimits::default());
            assert_eq!(wrong.len(), 1, "{wrong:?}");
            let said = &wrong[0];
            assert!(said.what.contains(what) && said.mend.contains(mend) && said.fatal == fatal, "{said:?}");
        }
    }

    fn put(found: &mut Found, key: &str, value: &str) {
        let dead = found.topics.get_mut("esh3ar.outcomes").unwrap();
        dead.config.insert(key.into(), value.into());
    }

    #[test]
    fn durability_is_said_honestly() {
        let settings = settings("kafka://a:1");
        assert_eq!(good(&settings, 1, 1).durability(), Durability::Process);
        assert_eq!(good(&settings, 3, 1).durability(), Durability::Process, "one copy is enough to be counted");
        assert_eq!(good(&settings, 2, 2).durability(), Durability::Replicated);
        let mut synced = good(&settings, 1, 1);
        for lane in synced.topics.values_mut() {
            lane.config.insert("flush.messages".into(), "1".into());
        }
        assert_eq!(synced.durability(), Durability::Disk);
    }
}
