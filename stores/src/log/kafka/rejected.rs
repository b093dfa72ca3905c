//! The topic of what was not taken: each record as it was, with why in front. `docs/kafka-door.md` lists the headers.
//!
//! A record that is too large to be kept with them is kept by its place. A producer that librdkafka declares broken is replaced:
//! while none takes what is bad, what is good waits behind it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use rdkafka::{
    ClientContext,
    config::{FromClientConfigAndContext as _, RDKafkaLogLevel},
    error::KafkaError,
    message::{DeliveryResult, Header, OwnedHeaders},
    metadata::Metadata,
    producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer},
    types::RDKafkaErrorCode as Code,
};
use schemas::{
    Problem,
    limits::StoreLimits,
    port::{PortError, PortResult, Raw},
};
use tokio::sync::oneshot;

use super::{ingress::REJECTED, settings::Settings, told};

/// What stands before the headers that say why a record was not taken; whoever produces it again leaves them out.
const PROBLEM: &str = "problem-";
/// Never kept among the rejected: who reads them is not who sent them.
const CREDENTIALS: &str = "authorization";
/// Where the value is too large to be kept, so much of key and headers is, bytes.
const FRONT: usize = 64 * 1024;

/// The way there.
pub(super) struct Rejects {
    settings: Arc<Settings>,
    limits: StoreLimits,
    producer: ThreadedProducer<Acks>,
}

impl Rejects {
    /// Makes the producer; asks no broker yet.
    pub(super) fn open(settings: &Arc<Settings>, limits: &StoreLimits) -> Result<Self, KafkaError> {
        let producer = producer(settings, limits)?;
        Ok(Self { settings: settings.clone(), limits: limits.clone(), producer })
    }

    /// What the brokers say of a topic.
    pub(super) fn found(&self, topic: &str) -> Result<Metadata, KafkaError> {
        self.producer.client().fetch_metadata(Some(topic), self.settings.ask)
    }

    /// Keeps records; one outcome each.
    pub(super) async fn keep(&mut self, records: &[(Raw, Problem)]) -> Vec<PortResult<()>> {
        self.mend();
        let name = self.settings.named(REJECTED);
        let sent: Vec<_> = records.iter().map(|(raw, problem)| self.send(&name, raw, problem, true)).collect();
        let unanswered = || Err(PortError::Unknown("Kafka did not answer for the record".into()));
        let mut outcomes = Vec::with_capacity(records.len());
        for (answer, (raw, problem)) in sent.into_iter().zip(records) {
            let mut outcome = answer.await.unwrap_or_else(|_| unanswered());
            // Where it stood it fitted; with what was wrong it may not. Then its place is kept.
            if matches!(outcome, Err(PortError::Rejected(_))) {
                outcome = self.send(&name, raw, problem, false).await.unwrap_or_else(|_| unanswered());
            }
            outcomes.push(outcome);
        }
        outcomes
    }

    /// Replaces a broken producer.
    fn mend(&mut self) {
        if !self.producer.context().broken.load(Ordering::Acquire) {
            return;
        }
        match producer(&self.settings, &self.limits) {
            Ok(new) => {
                let old = std::mem::replace(&mut self.producer, new);
                // What the broken one still held is answered when it goes, which may take a moment.
                drop(tokio::task::spawn_blocking(move || drop(old)));
            }
            Err(error) => tracing::warn!(%error, "no producer could be made for what was not taken"),
        }
    }

    fn send(&self, name: &str, raw: &Raw, problem: &Problem, whole: bool) -> oneshot::Receiver<PortResult<()>> {
        let (done, answer) = oneshot::channel();
        let mut record =
            BaseRecord::<[u8], [u8], _>::with_opaque_to(name, Box::new(done)).headers(headers(raw, problem, whole));
        record.key = raw.key.as_deref().filter(|_| whole || fits(raw));
        record.payload = raw.value.as_deref().filter(|_| whole);
        if let Err((error, record)) = self.producer.send(record) {
            let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
            self.producer.context().heard(code);
            let _ = record.delivery_opaque.send(Err(told::not_taken(code, name)));
        }
        answer
    }
}

fn producer(settings: &Settings, limits: &StoreLimits) -> Result<ThreadedProducer<Acks>, KafkaError> {
    ThreadedProducer::from_config_and_context(&settings.producer(limits), Acks::default())
}

/// Takes the answers for what was rejected.
#[derive(Default)]
struct Acks {
    broken: AtomicBool,
}

impl Acks {
    fn heard(&self, code: Code) {
        if code == Code::Fatal {
            self.broken.store(true, Ordering::Release);
        }
    }
}

impl ClientContext for Acks {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        told::log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(Code::Fatal) {
            tracing::error!(%error, reason, "the producer of what was not taken is broken and will be replaced");
        } else {
            tracing::debug!(%error, reason, "kafka");
        }
        self.heard(error.rdkafka_error_code().unwrap_or(Code::Unknown));
    }
}

impl ProducerContext for Acks {
    type DeliveryOpaque = Box<oneshot::Sender<PortResult<()>>>;

    fn delivery(&self, result: &DeliveryResult<'_>, done: Self::DeliveryOpaque) {
        let outcome = match result {
            Ok(message) => told::placed(rdkafka::Message::offset(message)).map(drop),
            Err((error, message)) => {
                let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
                self.heard(code);
                // One that is refused for its size, or beside one that is, is kept by its place alone.
                Err(told::refused(code, rdkafka::Message::topic(message), told::BATCH))
            }
        };
        // Whoever does not wait any more tries again.
        let _ = done.send(outcome);
    }
}

/// Whether key and headers of a record are few enough to be kept where its value is not.
fn fits(raw: &Raw) -> bool {
    let headers: usize = raw.headers.iter().map(|(key, value)| key.len() + value.len()).sum();
    headers + raw.key.as_ref().map_or(0, |key| key.len()) <= FRONT
}

/// The record's own headers, and what was wrong.
fn headers(raw: &Raw, problem: &Problem, whole: bool) -> OwnedHeaders {
    let mut out = OwnedHeaders::new();
    let own = if whole || fits(raw) { &raw.headers[..] } else { &[] };
    for (key, value) in own {
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use rdkafka::message::Headers as _;
    use schemas::{Code, Timestamp, port::Spot};

    use super::*;

    #[test]
    fn of_a_record_that_is_too_large_in_front_the_place_alone_is_kept() {
        let huge = |bytes: usize| Raw {
            spot: Spot { topic: "ingress.acme".into(), partition: 3 },
            offset: 7,
            at: Timestamp(0),
            key: Some(Bytes::from(vec![b'k'; bytes])),
            headers: vec![("mine".to_owned(), Bytes::from(vec![b'h'; bytes]))],
            value: Some(Bytes::from_static(b"{}")),
        };
        let problem = Problem::new(Code::InvalidPhone, "`to` must be E.164");
        let names = |raw: &Raw, whole| {
            let headers = headers(raw, &problem, whole);
            headers.iter().map(|header| header.key.to_owned()).collect::<Vec<_>>()
        };
        let has_own = |raw: &Raw, whole| names(raw, whole).contains(&"mine".to_owned());
        assert!(has_own(&huge(9_000_000), true), "first it is tried whole");
        assert!(!has_own(&huge(9_000_000), false) && !fits(&huge(9_000_000)));
        assert!(has_own(&huge(1_000), false) && fits(&huge(1_000)), "where its value alone is too large they stay");
        assert!(names(&huge(9_000_000), false).contains(&"problem-offset".to_owned()));
    }

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
        let headers = headers(&raw, &problem, true);
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
