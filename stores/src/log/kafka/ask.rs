//! Questions about offsets. A thread asks them, and those that came while it was waiting for an answer go together: one
//! request for any number of partitions and callers.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    thread,
    time::Duration,
};

use rdkafka::{
    TopicPartitionList,
    config::FromClientConfigAndContext as _,
    consumer::{BaseConsumer, Consumer as _},
    error::KafkaError,
    topic_partition_list::Offset as At,
    types::RDKafkaErrorCode as Code,
};
use schemas::{
    Clock, Offset, TopicPartition,
    port::{Group, PortError, PortResult},
    vital,
};
use tokio::sync::{mpsc, oneshot};

use super::{
    settings::Settings,
    told::{self, Ear},
};
use crate::OpenError;

/// Questions that wait; a caller past that waits in line.
const WAITING: usize = 256;

/// How long one try of a question may take: a broker that died is noticed, and another asked.
const STEP: Duration = Duration::from_secs(1);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(20);

type Bounds = Vec<(Offset, Offset)>;
type Reply<T> = oneshot::Sender<PortResult<T>>;

enum Question {
    Bounds(Vec<TopicPartition>, Reply<Bounds>),
    Committed(Group, Vec<TopicPartition>, Reply<Vec<Option<Offset>>>),
    /// Whether the partitions of these topics can be written to.
    Writable(Vec<String>, usize, Reply<()>),
}

/// Whom to ask.
pub(crate) struct Asker {
    questions: mpsc::Sender<Question>,
    settings: Arc<Settings>,
}

impl Asker {
    pub(crate) fn start(name: &'static str, settings: Arc<Settings>, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        let (questions, waiting) = mpsc::channel(WAITING);
        let config = settings.client();
        let wrong = |why: String| OpenError::Address(format!("{}: {why}", settings.shown));
        let client =
            BaseConsumer::from_config_and_context(&config, Ear::default()).map_err(|e| wrong(e.to_string()))?;
        let mut answers = Answers { client, groups: HashMap::new(), settings: settings.clone(), clock };
        let run = move || vital::thread(name, || answers.run(waiting));
        thread::Builder::new().name(name.into()).spawn(run).map_err(|e| wrong(e.to_string()))?;
        Ok(Self { questions, settings })
    }

    /// Where each begins, and what the next append will get.
    pub(crate) async fn bounds(&self, at: Vec<TopicPartition>) -> PortResult<Bounds> {
        self.ask(|reply| Question::Bounds(at, reply)).await
    }

    /// What a group reads next.
    pub(crate) async fn committed(&self, group: Group, at: Vec<TopicPartition>) -> PortResult<Vec<Option<Offset>>> {
        self.ask(|reply| Question::Committed(group, at, reply)).await
    }

    /// Whether each partition has a leader and so many replicas in sync.
    pub(crate) async fn writable(&self, topics: Vec<String>, min_isr: usize) -> PortResult<()> {
        self.ask(|reply| Question::Writable(topics, min_isr, reply)).await
    }

    async fn ask<T>(&self, question: impl FnOnce(Reply<T>) -> Question) -> PortResult<T> {
        let gone = || PortError::Unavailable("the log is closed".into());
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.questions.send(question(reply)).await.map_err(|_| gone())?;
            answer.await.map_err(|_| gone())?
        };
        // Twice: a question may wait behind one that is not answered.
        match tokio::time::timeout(self.settings.ask * 2, asked).await {
            Ok(answered) => answered,
            Err(_) => Err(PortError::Unavailable("Kafka does not answer".into())),
        }
    }
}

/// The thread's side.
struct Answers {
    client: BaseConsumer<Ear>,
    // A group's offsets are asked for by a client that names the group and never joins it.
    groups: HashMap<Group, BaseConsumer<Ear>>,
    settings: Arc<Settings>,
    clock: Arc<dyn Clock>,
}

impl Answers {
    fn run(&mut self, mut waiting: mpsc::Receiver<Question>) {
        while let Some(first) = waiting.blocking_recv() {
            let mut bounds = Vec::new();
            let mut committed: HashMap<Group, Vec<_>> = HashMap::new();
            let mut next = Some(first);
            while let Some(question) = next {
                match question {
                    Question::Bounds(at, reply) => bounds.push((at, reply)),
                    Question::Committed(group, at, reply) => committed.entry(group).or_default().push((at, reply)),
                    Question::Writable(topics, min_isr, reply) => {
                        let _ = reply.send(self.writable(&topics, min_isr));
                    }
                }
                next = waiting.try_recv().ok();
            }
            if !bounds.is_empty() {
                together(bounds, |at| self.bounds(at));
            }
            for (group, asked) in committed {
                together(asked, |at| self.committed(group, at));
            }
        }
    }

    fn list(&self, at: &[TopicPartition], offset: At) -> Result<TopicPartitionList, KafkaError> {
        let mut list = TopicPartitionList::with_capacity(at.len());
        for at in at {
            list.add_partition_offset(&self.settings.topic(at.topic), i32::from(at.partition.0), offset)?;
        }
        Ok(list)
    }

    /// The offsets of a list, in the order of `at`. librdkafka answers in an order of its own.
    fn offsets(&self, at: &[TopicPartition], list: &TopicPartitionList) -> Result<Vec<Option<Offset>>, KafkaError> {
        let found = |at: &TopicPartition| {
            let found = list.find_partition(&self.settings.topic(at.topic), i32::from(at.partition.0));
            let found = found.ok_or(KafkaError::OffsetFetch(Code::UnknownPartition))?;
            found.error()?;
            Ok(match found.offset() {
                At::Offset(n) if n >= 0 => Some(Offset(n as u64)),
                _ => None,
            })
        };
        at.iter().map(found).collect()
    }

    fn bounds(&self, at: &[TopicPartition]) -> PortResult<HashMap<TopicPartition, (Offset, Offset)>> {
        let ask = |of: At, step: Duration| {
            let list = self.client.offsets_for_times(self.list(at, of)?, step)?;
            let known = |bound: Option<Offset>| bound.ok_or(KafkaError::OffsetFetch(Code::NoOffset));
            self.offsets(at, &list)?.into_iter().map(known).collect::<Result<Vec<_>, _>>()
        };
        // The start first: it never passes an end that is read later.
        let both = |step| Ok((ask(At::Beginning, step)?, ask(At::End, step)?));
        let names: BTreeSet<_> = at.iter().map(|at| self.settings.topic(at.topic)).collect();
        let (starts, ends) = insist(&self.client, &self.settings, &*self.clock, &names, both)?;
        Ok(at.iter().copied().zip(starts.into_iter().zip(ends)).collect())
    }

    fn committed(
        &mut self,
        group: Group,
        at: &[TopicPartition],
    ) -> PortResult<HashMap<TopicPartition, Option<Offset>>> {
        if !self.groups.contains_key(&group) {
            let config = self.settings.reader(&self.settings.group(group), 1);
            let client = BaseConsumer::from_config_and_context(&config, Ear::default());
            self.groups.insert(group, client.map_err(|error| told::unanswered(&error))?);
        }
        let Some(client) = self.groups.get(&group) else { return Ok(HashMap::new()) };
        let ask = |step| {
            let list = client.committed_offsets(self.list(at, At::Invalid)?, step)?;
            self.offsets(at, &list)
        };
        let offsets = insist(client, &self.settings, &*self.clock, &BTreeSet::new(), ask)?;
        Ok(at.iter().copied().zip(offsets).collect())
    }

    fn writable(&self, topics: &[String], min_isr: usize) -> PortResult<()> {
        for topic in topics {
            let found = self.client.fetch_metadata(Some(topic), self.settings.ask);
            let found = found.map_err(|error| match self.client.context().trouble() {
                Some((code, why)) => PortError::Unavailable(format!("Kafka does not answer: {code}: {why}")),
                None => told::unanswered(&error),
            })?;
            let partitions = found.topics().first().map(|topic| topic.partitions()).unwrap_or_default();
            if partitions.is_empty() {
                return Err(PortError::Unavailable(told::missing(topic)));
            }
            for partition in partitions {
                let (id, isr) = (partition.id(), partition.isr().len());
                if partition.leader() < 0 {
                    return Err(PortError::Unavailable(format!("{topic}/{id} has no leader: its brokers are away")));
                }
                if isr < min_isr {
                    let why = format!("{topic}/{id} has {isr} replicas in sync and needs {min_isr}: brokers are away");
                    return Err(PortError::Unavailable(why));
                }
            }
        }
        Ok(())
    }
}

/// Asks until it is answered or the time of a question is over: leaders move, and what a client remembers of these topics is
/// renewed in between.
pub(crate) fn insist<T>(
    client: &BaseConsumer<Ear>,
    settings: &Settings,
    clock: &dyn Clock,
    topics: &BTreeSet<String>,
    ask: impl Fn(Duration) -> Result<T, KafkaError>,
) -> PortResult<T> {
    let deadline = clock.mono().plus(settings.ask.as_millis() as u64);
    loop {
        let error = match ask(STEP) {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if !told::may_pass(&error) || clock.mono() >= deadline {
            return Err(told::unanswered(&error));
        }
        // One that is not answered tells enough.
        let _ = topics.iter().all(|topic| client.fetch_metadata(Some(topic), STEP).is_ok());
        thread::park_timeout(PAUSE);
    }
}

/// Asks once for all, and gives each caller its own part of the answer.
fn together<T: Clone>(
    asked: Vec<(Vec<TopicPartition>, Reply<Vec<T>>)>,
    ask: impl FnOnce(&[TopicPartition]) -> PortResult<HashMap<TopicPartition, T>>,
) {
    let mut all: Vec<_> = asked.iter().flat_map(|(at, _)| at.iter().copied()).collect();
    all.sort_unstable();
    all.dedup();
    let answer = if all.is_empty() { Ok(HashMap::new()) } else { ask(&all) };
    for (at, reply) in asked {
        let own = |answer: &HashMap<TopicPartition, T>| {
            let missing = |at| PortError::Unavailable(format!("Kafka did not answer for {at}"));
            at.iter().map(|at| answer.get(at).cloned().ok_or_else(|| missing(at))).collect()
        };
        let _ = reply.send(answer.as_ref().map_err(PortError::clone).and_then(own));
    }
}
