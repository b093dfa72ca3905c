//! Appending: one idempotent producer a process, `acks=all`. A call is one countdown that all its records share; the last
//! answer wakes the caller. What is on its way is bounded here, in front of librdkafka, so that who comes first goes first.
//!
//! What librdkafka took and gave up may have happened ([`told::refused`]). A producer that librdkafka declares broken (the
//! brokers lost what it had written) is replaced.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use parking_lot::RwLock;
use rdkafka::{
    config::FromClientConfigAndContext as _,
    producer::{BaseProducer, BaseRecord, Producer as _},
    types::RDKafkaErrorCode as Code,
};
use schemas::{
    Clock, Offset,
    limits::StoreLimits,
    port::{Append, PortError, PortResult},
    vital,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{
    answers::{Answers, Outcomes, Part, Produced, Ticket},
    form,
    settings::Settings,
    told,
};
use crate::{OpenError, log::embedded::layout::Layout};

/// Records that are counted down together at most: a longer call goes in several parts, in order.
const PART: usize = 1_024;

/// How often the thread that takes the answers looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);

/// Within which librdkafka finds what has outlived its time: it looks once a second.
const SCAN: Duration = Duration::from_secs(2);

/// A producer and the thread that takes its answers.
struct Line {
    producer: Arc<BaseProducer<Answers>>,
    ended: Arc<AtomicBool>,
}

impl Line {
    fn open(settings: &Settings, limits: &StoreLimits, clock: Arc<dyn Clock>) -> Result<Self, String> {
        let mut config = settings.producer(limits);
        config
            .set("statistics.interval.ms", "1000")
            // Ours is the bound (`Producer::room`); these only have to be larger.
            .set("queue.buffering.max.messages", "1000000")
            .set("queue.buffering.max.kbytes", (limits.kafka_queue_kib.saturating_mul(2)).max(65_536).to_string());
        let producer =
            BaseProducer::from_config_and_context(&config, Answers::new(clock)).map_err(|e| e.to_string())?;
        let (producer, ended) = (Arc::new(producer), Arc::new(AtomicBool::new(false)));
        let (polled, end) = (producer.clone(), ended.clone());
        let answer = move || {
            while !end.load(Ordering::Acquire) {
                polled.poll(LOOK);
            }
        };
        let answers = move || vital::thread("what takes Kafka's answers", answer);
        thread::Builder::new().name("kafka-answers".into()).spawn(answers).map_err(|e| e.to_string())?;
        Ok(Self { producer, ended })
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
    }
}

/// What appends.
pub(crate) struct Producer {
    settings: Arc<Settings>,
    limits: StoreLimits,
    layout: Layout,
    clock: Arc<dyn Clock>,
    // By the layout's index of a topic's first partition.
    names: Vec<String>,
    line: RwLock<Arc<Line>>,
    // In KiB, a record at least one.
    room: Arc<Semaphore>,
    replacing: tokio::sync::Mutex<()>,
    closed: AtomicBool,
}

impl Producer {
    pub(crate) fn open(
        settings: Arc<Settings>,
        limits: &StoreLimits,
        layout: Layout,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, OpenError> {
        let line = Line::open(&settings, limits, clock.clone())
            .map_err(|why| OpenError::Address(format!("{}: {why}", settings.shown)))?;
        let partitions = usize::from(layout.partitions().max(1));
        let names =
            (0..layout.count()).step_by(partitions).map(|first| settings.topic(layout.at(first).topic)).collect();
        Ok(Self {
            names,
            line: RwLock::new(Arc::new(line)),
            room: Arc::new(Semaphore::new(limits.kafka_queue_kib as usize)),
            replacing: tokio::sync::Mutex::default(),
            closed: AtomicBool::new(false),
            limits: limits.clone(),
            settings,
            layout,
            clock,
        })
    }

    /// The last trouble with the brokers.
    pub(crate) fn trouble(&self) -> Option<(Code, String)> {
        self.line.read().producer.context().ear.trouble()
    }

    /// What was produced since the producer was made.
    pub(crate) fn produced(&self) -> Produced {
        let line = self.line.read();
        let answers = line.producer.context();
        Produced {
            records: answers.records.load(Ordering::Relaxed),
            requests: answers.requests.load(Ordering::Relaxed),
        }
    }

    /// How long records have been waiting without an answer for any, ms; `None` where none waits.
    pub(crate) fn quiet_ms(&self) -> Option<u64> {
        let line = self.line.read();
        let answers = line.producer.context();
        answers.quiet_ms()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Appends, an outcome each.
    pub(crate) async fn append(&self, mut records: Vec<Append>) -> Vec<PortResult<Offset>> {
        let count = records.len();
        let mut parts = Vec::with_capacity(count.div_ceil(PART));
        let mut left = count;
        let line = match self.line().await {
            Ok(line) => line,
            Err(why) => return vec![Err(why); count],
        };
        let mut refused = None;
        while left > 0 {
            let rest = if records.len() > PART { records.split_off(PART) } else { Vec::new() };
            let part = std::mem::replace(&mut records, rest);
            let size = part.len();
            left -= size;
            // What comes after a part that found no room finds none either: a call keeps its order.
            let answers = match &refused {
                Some(why) => Err(PortError::clone(why)),
                None => self.room(&part).await.map(|room| self.send(&line, &part, room)),
            };
            refused = answers.as_ref().err().cloned();
            parts.push((size, answers));
        }
        let mut outcomes = Vec::with_capacity(count);
        for (size, part) in parts {
            match part {
                Err(why) => outcomes.extend(std::iter::repeat_n(Err(why), size)),
                Ok(answers) => match answers.await {
                    Ok(answered) => outcomes.extend(answered),
                    // Only a process that ends drops answers.
                    Err(_) => outcomes
                        .extend(std::iter::repeat_n(Err(PortError::Unknown("the log is being closed".into())), size)),
                },
            }
        }
        outcomes
    }

    /// Waits for room for these, as long as an append may take.
    async fn room(&self, part: &[Append]) -> PortResult<OwnedSemaphorePermit> {
        let kib = part.iter().map(|record| 1 + record.body.len() / 1024).sum::<usize>();
        // More than there ever is at once goes when all is free.
        let kib = u32::try_from(kib).unwrap_or(u32::MAX).min(self.limits.kafka_queue_kib);
        let wait = Duration::from_millis(self.limits.kafka_append_ms);
        match tokio::time::timeout(wait, self.room.clone().acquire_many_owned(kib)).await {
            Ok(Ok(room)) => Ok(room),
            Ok(Err(_)) => Err(PortError::Unavailable("the log is closed".into())),
            Err(_) => {
                Err(PortError::Unavailable("too many records are on their way to Kafka, and it takes none".into()))
            }
        }
    }

    /// Hands records over. What librdkafka does not take is answered at once.
    fn send(&self, line: &Line, records: &[Append], room: OwnedSemaphorePermit) -> oneshot::Receiver<Outcomes> {
        let (part, answers) = Part::new(records.len(), room);
        for (index, record) in records.iter().enumerate() {
            let place = match self.layout.index(record.at) {
                Ok(place) => place / usize::from(self.layout.partitions().max(1)),
                Err(why) => {
                    part.answer(index, Err(why));
                    continue;
                }
            };
            let name = &self.names[place];
            if record.body.len() > self.limits.kafka_record_bytes {
                part.answer(index, Err(told::not_taken(Code::MessageSizeTooLarge, name)));
                continue;
            }
            let ticket = Box::new(Ticket { part: part.clone(), index: index as u32 });
            let mut given = BaseRecord::<(), [u8], _>::with_opaque_to(name, ticket)
                .partition(i32::from(record.at.partition.0))
                .payload(&record.body[..]);
            given.headers = form::headers(&record.headers);
            line.producer.context().handed_over();
            if let Err((error, _)) = line.producer.send(given) {
                line.producer.context().waiting.fetch_sub(1, Ordering::AcqRel);
                let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
                if code == Code::Fatal {
                    line.producer.context().broken.store(true, Ordering::Release);
                }
                part.answer(index, Err(told::not_taken(code, name)));
            }
        }
        answers
    }

    /// The producer, a new one where the last is broken.
    async fn line(&self) -> PortResult<Arc<Line>> {
        if self.is_closed() {
            return Err(PortError::Unavailable("the log is closed".into()));
        }
        let line = self.line.read().clone();
        if !line.producer.context().broken.load(Ordering::Acquire) {
            return Ok(line);
        }
        let _alone = self.replacing.lock().await;
        let line = self.line.read().clone();
        if !line.producer.context().broken.load(Ordering::Acquire) {
            return Ok(line);
        }
        let (settings, limits, clock) = (self.settings.clone(), self.limits.clone(), self.clock.clone());
        let opened = tokio::task::spawn_blocking(move || Line::open(&settings, &limits, clock)).await;
        let new = opened.map_err(|e| e.to_string()).and_then(|opened| opened);
        let new = Arc::new(new.map_err(|why| PortError::Unavailable(format!("no producer could be made: {why}")))?);
        let old = std::mem::replace(&mut *self.line.write(), new.clone());
        // What the broken one still held is answered when it goes, which may take a moment.
        drop(tokio::task::spawn_blocking(move || drop(old)));
        Ok(new)
    }

    /// Takes no more, and waits until what was taken is answered: as long as an append may take, and librdkafka to see it.
    pub(crate) async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let all = self.room.acquire_many(self.limits.kafka_queue_kib);
        let _ = tokio::time::timeout(Duration::from_millis(self.limits.kafka_append_ms) + SCAN, all).await;
        self.line.read().ended.store(true, Ordering::Release);
    }
}
