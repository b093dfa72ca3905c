//! The membership of one member, kept alive by a thread: what the brokers give is split into queues and handed on, what they
//! ask back is given when its owner has released it, or when its time is over, and heartbeats go on meanwhile (librdkafka's
//! own threads send them). A member that librdkafka declares dead is replaced by a new one.

use std::{
    collections::VecDeque,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use parking_lot::Mutex;
use rdkafka::{
    ClientContext, Message as _, TopicPartitionList,
    config::{FromClientConfigAndContext as _, RDKafkaLogLevel},
    consumer::{BaseConsumer, Consumer as _, ConsumerContext, base_consumer::PartitionQueue},
    error::KafkaError,
    types::{RDKafkaErrorCode as Code, RDKafkaRespErr},
};
use schemas::{
    Clock, Millis, Partition, Topic, TopicPartition,
    limits::StoreLimits,
    port::{Group, PortError, PortResult},
    vital,
};
use tokio::sync::{Notify, watch};

use super::{
    member::Member,
    owned::Owned,
    settings::{Protocol, Settings},
    start::{self, Start},
    told,
};
use crate::log::embedded::layout::Layout;

/// How often the thread looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);
/// How often it looks whether what is asked back was released.
const LOOK_CLOSELY: Duration = Duration::from_millis(5);
/// Before a member that died is replaced.
const AGAIN: Duration = Duration::from_secs(1);
/// What a member is called where it cannot go on.
const MEMBER: &str = "a member of a Kafka group";
/// How long one question where to begin may take; then it is looked whether it is still wanted, and asked again.
const QUESTION: Duration = Duration::from_secs(1);

/// What a member and its thread share.
pub(crate) struct Shared {
    pub(crate) state: Mutex<State>,
    /// Rings when there is something to be told or taken.
    pub(crate) bell: Notify,
    /// The group was left.
    pub(crate) left: watch::Sender<bool>,
    ending: AtomicBool,
    // Indexes whose queues were empty and are not any more, each once.
    rung: Mutex<VecDeque<usize>>,
    listed: Vec<AtomicBool>,
}

/// What changes.
pub(crate) struct State {
    pub(crate) owned: Owned,
    pub(crate) client: Option<Arc<Client>>,
    pub(crate) trouble: Option<PortError>,
}

impl Shared {
    fn new(topics: usize, count: usize) -> Self {
        Self {
            state: Mutex::new(State { owned: Owned::new(topics), client: None, trouble: None }),
            bell: Notify::new(),
            left: watch::Sender::new(false),
            ending: AtomicBool::new(false),
            rung: Mutex::default(),
            listed: (0..count).map(|_| AtomicBool::new(false)).collect(),
        }
    }

    /// A partition whose queue has something now. From here on it rings again.
    pub(crate) fn rung(&self) -> Option<usize> {
        let index = self.rung.lock().pop_front()?;
        self.listed[index].store(false, Ordering::Release);
        Some(index)
    }

    fn ring(&self, index: usize) {
        if !self.listed[index].swap(true, Ordering::AcqRel) {
            self.rung.lock().push_back(index);
            self.bell.notify_one();
        }
    }

    /// The member is gone.
    pub(crate) fn end(&self) {
        self.ending.store(true, Ordering::Release);
    }

    fn ends(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }
}

/// A client of librdkafka with a queue for each partition that it ever had.
pub(crate) struct Client {
    // Made once each and kept: two on one partition would silence each other's bell. They go before their consumer.
    queues: Vec<OnceLock<PartitionQueue<Membership>>>,
    pub(crate) consumer: Arc<BaseConsumer<Membership>>,
}

impl Client {
    pub(crate) fn queue(&self, index: usize) -> Option<&PartitionQueue<Membership>> {
        self.queues.get(index).and_then(OnceLock::get)
    }
}

/// What librdkafka calls. It only notes down: the thread acts, where it may wait.
pub(crate) struct Membership {
    changes: Mutex<VecDeque<Change>>,
    ending: AtomicBool,
}

enum Change {
    Given(TopicPartitionList),
    Asked(TopicPartitionList),
}

impl ClientContext for Membership {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        told::log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka");
    }
}

impl ConsumerContext for Membership {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, why: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let change = match why {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Change::Given(list.clone()),
            _ => Change::Asked(list.clone()),
        };
        if self.ending.load(Ordering::Acquire) {
            // It is being closed: nobody is left who could release anything.
            if let Change::Asked(list) = change {
                start::give_back(consumer, &list);
            } else {
                let _ = consumer.unassign();
            }
            return;
        }
        self.changes.lock().push_back(change);
    }
}

/// The thread's side.
struct Keeper {
    shared: Arc<Shared>,
    settings: Arc<Settings>,
    limits: StoreLimits,
    clock: Arc<dyn Clock>,
    layout: Layout,
    topics: Vec<Topic>,
    names: Vec<String>,
    group: String,
    /// What was given and is not taken up: where to begin in it is not known yet.
    given: Option<TopicPartitionList>,
    /// What is asked back, and until when it is waited for.
    asked: Option<(TopicPartitionList, Millis)>,
}

/// Joins a group.
pub(crate) fn join(
    settings: Arc<Settings>,
    limits: &StoreLimits,
    clock: Arc<dyn Clock>,
    layout: Layout,
    group: Group,
    topics: &[Topic],
) -> PortResult<Member> {
    let mut topics = topics.to_vec();
    topics.sort_unstable();
    topics.dedup();
    let shared = Arc::new(Shared::new(topics.len(), layout.count()));
    let mut keeper = Keeper {
        names: topics.iter().map(|topic| settings.topic(*topic)).collect(),
        group: settings.group(group),
        shared: shared.clone(),
        settings: settings.clone(),
        limits: limits.clone(),
        layout: layout.clone(),
        topics: topics.clone(),
        given: None,
        asked: None,
        clock,
    };
    let client = keeper.client().map_err(|why| PortError::Unavailable(format!("the group cannot be joined: {why}")))?;
    let run = move || vital::thread(MEMBER, || keeper.run(client));
    let spawned = thread::Builder::new().name("kafka-member".into()).spawn(run);
    spawned.map_err(|error| PortError::Unavailable(format!("no thread to join with: {error}")))?;
    Ok(Member::new(shared, settings, layout, topics))
}

impl Keeper {
    /// A client that has subscribed.
    fn client(&mut self) -> Result<Arc<Client>, KafkaError> {
        let mut config = self.settings.reader(&self.group, self.limits.kafka_prefetch_kib);
        config
            .set("fetch.wait.max.ms", "500")
            .set("max.poll.interval.ms", (self.limits.kafka_release_ms + 60_000).to_string());
        match self.settings.protocol {
            // The heartbeat and the session timeout are the brokers'. Range: the same numbers of all topics to one member.
            Protocol::Consumer => config.set("group.protocol", "consumer").set("group.remote.assignor", "range"),
            Protocol::Classic => config
                .set("group.protocol", "classic")
                .set("partition.assignment.strategy", "range")
                .set("session.timeout.ms", self.settings.session_ms.to_string())
                .set("heartbeat.interval.ms", (self.settings.session_ms / 6).max(100).to_string()),
        };
        let membership = Membership { changes: Mutex::default(), ending: AtomicBool::new(false) };
        let consumer = Arc::new(BaseConsumer::from_config_and_context(&config, membership)?);
        consumer.subscribe(&self.names.iter().map(String::as_str).collect::<Vec<_>>())?;
        let queues = (0..self.layout.count()).map(|_| OnceLock::new()).collect();
        Ok(Arc::new(Client { consumer, queues }))
    }

    fn run(&mut self, first: Arc<Client>) {
        let mut client = Some(first);
        while !self.shared.ends() {
            let Some(alive) = client.take() else {
                // A pause that the end cuts short.
                let until = self.clock.mono().plus(AGAIN.as_millis() as u64);
                while !self.shared.ends() && self.clock.mono() < until {
                    thread::park_timeout(LOOK);
                }
                client = self.client().map_err(|error| self.trouble(&error)).ok();
                continue;
            };
            self.shared.state.lock().client = Some(alive.clone());
            self.keep(&alive);
            self.shared.state.lock().client = None;
            self.close(alive);
        }
        self.shared.left.send_replace(true);
    }

    /// Keeps one client's membership until it ends or dies.
    fn keep(&mut self, client: &Arc<Client>) {
        let mut is_told = false;
        loop {
            let wait = if self.asked.is_some() || self.given.is_some() { LOOK_CLOSELY } else { LOOK };
            match client.consumer.poll(wait) {
                // All partitions have queues of their own before anything is fetched of them, so what comes here is passed over. One
                // of the layout that has none any more, as librdkafka made it anew, would never be read: another process can.
                Some(Ok(message)) if !is_told && self.is_of_layout(message.topic(), message.partition()) => {
                    is_told = true;
                    let (topic, partition) = (message.topic(), message.partition());
                    tracing::error!(topic, partition, "a partition of this process is read by nobody");
                    vital::end(MEMBER);
                }
                Some(Ok(message)) if !is_told => {
                    is_told = true;
                    let (topic, partition) = (message.topic(), message.partition());
                    tracing::error!(topic, partition, "a partition too many is read by nobody: `esh3ar topics check`");
                }
                Some(Ok(_)) | None => {}
                Some(Err(error)) => {
                    if matches!(error, KafkaError::MessageConsumptionFatal(_)) {
                        self.trouble(&error);
                        return;
                    }
                    tracing::debug!(%error, "kafka");
                }
            }
            let changes = std::mem::take(&mut *client.consumer.context().changes.lock());
            for change in changes {
                match change {
                    Change::Given(list) => self.given(client, &list),
                    Change::Asked(list) => self.asked(client, &list),
                }
            }
            self.take_up(client);
            self.give(client);
            if self.shared.ends() {
                return;
            }
        }
    }

    /// Whether somebody here reads this partition when the group gives it.
    fn is_of_layout(&self, topic: &str, partition: i32) -> bool {
        let mut list = TopicPartitionList::with_capacity(1);
        list.add_partition(topic, partition);
        !self.places(&list).is_empty()
    }

    /// The index, the topic's bit and the partition of each of a list.
    fn places(&self, list: &TopicPartitionList) -> Vec<(usize, usize, Partition)> {
        let place = |name: &str, partition: i32| {
            let bit = self.names.iter().position(|known| known == name)?;
            let partition = Partition(u16::try_from(partition).ok()?);
            let index = self.layout.index(TopicPartition { topic: self.topics[bit], partition }).ok()?;
            Some((index, bit, partition))
        };
        list.elements().iter().filter_map(|element| place(element.topic(), element.partition())).collect()
    }

    fn given(&mut self, client: &Arc<Client>, list: &TopicPartitionList) {
        let places = self.places(list);
        for (index, bit, partition) in &places {
            if client.queue(*index).is_some() {
                continue;
            }
            let Some(mut queue) = client.consumer.split_partition_queue(&self.names[*bit], i32::from(partition.0))
            else {
                continue;
            };
            let (shared, index) = (self.shared.clone(), *index);
            queue.set_nonempty_callback(move || shared.ring(index));
            let _ = client.queues[index].set(queue);
        }
        self.take_as_given(client);
        self.given = Some(list.clone());
    }

    /// Takes up what was given, once it is known where to begin in it. Heartbeats go on meanwhile.
    fn take_up(&mut self, client: &Arc<Client>) {
        let Some(given) = self.given.take() else { return };
        let list = match start::find(&client.consumer, &given, QUESTION) {
            Start::Known(list) => list,
            Start::Over => given,
            Start::Unanswered(error) => {
                tracing::info!(group = self.group, %error, "where to begin in partitions that came is asked again");
                self.given = Some(given);
                return;
            }
        };
        self.take(client, &list);
    }

    /// What is to be taken up before anything else changes: librdkafka waits for it before it gives or asks on.
    fn take_as_given(&mut self, client: &Arc<Client>) {
        if let Some(given) = self.given.take() {
            self.take(client, &given);
        }
    }

    fn take(&self, client: &Arc<Client>, list: &TopicPartitionList) {
        if let Err(error) = start::take(&client.consumer, list) {
            tracing::warn!(%error, "partitions could not be taken up");
            return;
        }
        let places = self.places(list);
        self.shared.state.lock().owned.gained(places.into_iter().map(|(_, bit, partition)| (bit, partition)));
        self.shared.bell.notify_one();
    }

    fn asked(&mut self, client: &Arc<Client>, list: &TopicPartitionList) {
        self.take_as_given(client);
        let places = self.places(list);
        self.shared.state.lock().owned.asked(places.into_iter().map(|(_, bit, partition)| (bit, partition)));
        self.shared.bell.notify_one();
        // Two at once would be against librdkafka's own order; then the first is given at once.
        if let Some((before, _)) = self.asked.take() {
            self.give_list(client, &before);
        }
        self.asked = Some((list.clone(), self.clock.mono().plus(self.limits.kafka_release_ms)));
    }

    /// Gives what is asked back once it was released, or is lost, or its time is over.
    fn give(&mut self, client: &Arc<Client>) {
        let Some((_, until)) = &self.asked else { return };
        let lost = client.consumer.assignment_lost();
        let late = self.clock.mono() >= *until;
        if !(lost || late || self.shared.ends() || self.shared.state.lock().owned.released_all()) {
            return;
        }
        if lost {
            tracing::warn!(group = self.group, "the group went on without this member: its partitions are lost");
        } else if late {
            tracing::warn!(group = self.group, "partitions were not released in time and are given up");
        }
        if let Some((list, _)) = self.asked.take() {
            self.give_list(client, &list);
        }
    }

    fn give_list(&self, client: &Arc<Client>, list: &TopicPartitionList) {
        // First they are nobody's here, then the group may give them to others.
        let places = self.places(list);
        self.shared.state.lock().owned.gone(places.into_iter().map(|(_, bit, partition)| (bit, partition)));
        self.shared.bell.notify_one();
        start::give_back(&client.consumer, list);
    }

    fn trouble(&self, error: &KafkaError) {
        tracing::warn!(group = self.group, %error, "this member of the group has ended and will be replaced");
        let hint = match error.rdkafka_error_code() {
            Some(Code::UnsupportedVersion | Code::UnsupportedFeature) => {
                ": brokers before 4.0 need the option group=classic in `stores.log`"
            }
            Some(Code::GroupAuthorizationFailed) => ": docs/kafka.md lists what the user needs",
            _ => "",
        };
        let mut state = self.shared.state.lock();
        state.trouble = Some(PortError::Unavailable(format!("reading as a member of {}: {error}{hint}", self.group)));
        drop(state);
        self.shared.bell.notify_one();
    }

    /// Leaves the group. The last hold of the client closes it.
    fn close(&mut self, client: Arc<Client>) {
        self.asked = None;
        self.shared.state.lock().owned.all_gone();
        self.shared.bell.notify_one();
        client.consumer.context().ending.store(true, Ordering::Release);
        // What waits for an answer is answered by closing.
        if self.given.take().is_some() {
            drop(client.consumer.unassign());
        }
        for change in std::mem::take(&mut *client.consumer.context().changes.lock()) {
            match change {
                Change::Asked(list) => start::give_back(&client.consumer, &list),
                Change::Given(_) => drop(client.consumer.unassign()),
            }
        }
        drop(client);
    }
}
