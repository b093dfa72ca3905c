//! Reading a topic as people can: each record decoded, recipients redacted, contents left out. A tail is for finding out what
//! happened, and needs nobody's number and nobody's words for that.

use std::{collections::VecDeque, str::FromStr, sync::Arc, time::Duration};

use futures::{Stream, stream};
use schemas::{
    ChatCommand, Fact, Message, Offset, Partition, Tenant, Topic, TopicPartition, codec,
    ids::Sender,
    port::{Dead, Fetch, Log, PortResult, Record},
    record::{Again, LaneRecord},
};
use serde_json::{Value, json};

/// Records read at once: little, because a person reads them.
const FETCH: Fetch = Fetch { records: 200, bytes: 1024 * 1024 };
/// How often the end of the log is looked at while following.
const LOOK: Duration = Duration::from_millis(100);

/// Where a tail starts in each partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At the first record kept.
    First,
    /// After the last.
    End,
    /// At this offset.
    At(Offset),
}

impl FromStr for Start {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "start" => Ok(Self::First),
            "end" => Ok(Self::End),
            _ => text
                .parse()
                .map(|n| Self::At(Offset(n)))
                .map_err(|_| format!("`from` must be start, end or an offset, and {text} is not")),
        }
    }
}

/// What to read.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The topic.
    pub topic: Topic,
    /// One partition, or all.
    pub partition: Option<Partition>,
    /// From where.
    pub from: Start,
    /// Whether to wait for more at the end.
    pub follow: bool,
    /// Only this tenant's.
    pub tenant: Option<Tenant>,
}

struct Reader {
    log: Arc<dyn Log>,
    wanted: Wanted,
    places: Vec<(TopicPartition, Offset)>,
    /// Which place is read next.
    turn: usize,
    /// How many places in a row had nothing.
    idle: usize,
    ready: VecDeque<Value>,
}

/// The records as JSON objects, in order within each partition.
pub async fn read(log: Arc<dyn Log>, wanted: Wanted) -> PortResult<impl Stream<Item = PortResult<Value>> + Send> {
    let partitions = match wanted.partition {
        Some(partition) => vec![partition],
        None => (0..log.partitions()).map(Partition).collect(),
    };
    let mut places = Vec::with_capacity(partitions.len());
    for partition in partitions {
        let at = TopicPartition { topic: wanted.topic, partition };
        let (first, end) = log.bounds(at).await?;
        let from = match wanted.from {
            Start::First => first,
            Start::End => end,
            Start::At(offset) => offset.max(first),
        };
        places.push((at, from));
    }
    let reader = Reader { log, wanted, places, turn: 0, idle: 0, ready: VecDeque::new() };
    Ok(stream::try_unfold(reader, |mut reader| async move { Ok(reader.next().await?.map(|value| (value, reader))) }))
}

impl Reader {
    async fn next(&mut self) -> PortResult<Option<Value>> {
        loop {
            if let Some(value) = self.ready.pop_front() {
                return Ok(Some(value));
            }
            if self.idle >= self.places.len() {
                if !self.wanted.follow {
                    return Ok(None);
                }
                tokio::time::sleep(LOOK).await;
                self.idle = 0;
            }
            let turn = self.turn % self.places.len().max(1);
            let Some((at, from)) = self.places.get_mut(turn) else { return Ok(None) };
            let records = self.log.read(*at, *from, FETCH).await?;
            if let Some(last) = records.last() {
                *from = last.offset.next();
                self.idle = 0;
            } else {
                self.idle += 1;
            }
            self.turn = turn + 1;
            self.ready.extend(records.iter().filter_map(|record| decode(record, self.wanted.tenant.as_ref())));
        }
    }
}

/// One record, decoded and redacted; `None` where it is not this tenant's.
pub fn decode(record: &Record, only: Option<&Tenant>) -> Option<Value> {
    let is_ours = |tenant: &Tenant| only.is_none_or(|only| only == tenant);
    let content = match record.at.topic {
        Topic::Lane(_) => match codec::decode::<LaneRecord>(&record.body) {
            Ok(LaneRecord::Accepted(message)) if is_ours(message.tenant()) => json!({ "accepted": accepted(&message) }),
            Ok(LaneRecord::Again(name)) if is_ours(&name.inbox.user.tenant) => json!({ "again": again(&name) }),
            Ok(LaneRecord::Chat(asked)) if is_ours(&asked.pair.tenant) => json!({ "chat": chat(&asked) }),
            Ok(_) => return None,
            Err(why) => unreadable(&why, only)?,
        },
        Topic::Retry(_) => match codec::decode::<Again>(&record.body) {
            Ok(name) if is_ours(&name.inbox.user.tenant) => json!({ "again": again(&name) }),
            Ok(_) => return None,
            Err(why) => unreadable(&why, only)?,
        },
        Topic::Outcomes => match codec::decode::<Vec<Fact>>(&record.body) {
            Ok(facts) => {
                let ours: Vec<_> = facts.iter().filter(|f| is_ours(&f.inbox.user.tenant)).map(fact).collect();
                if ours.is_empty() {
                    return None;
                }
                json!({ "facts": ours })
            }
            Err(why) => unreadable(&why, only)?,
        },
        Topic::Dead => match serde_json::from_slice::<Dead>(&record.body) {
            Ok(letter) if is_ours(&letter.inbox.user.tenant) => json!({ "dead": dead(&letter) }),
            Ok(_) => return None,
            Err(why) => unreadable(&why, only)?,
        },
    };
    let mut value = json!({
        "topic": record.at.topic.name(),
        "partition": record.at.partition,
        "offset": record.offset,
        "at": record.appended_at,
    });
    if let (Value::Object(value), Value::Object(content)) = (&mut value, content) {
        value.extend(content);
    }
    Some(value)
}

/// Nobody knows whose an unreadable record is: only who sees everything sees that it is there.
fn unreadable(why: &dyn std::fmt::Display, only: Option<&Tenant>) -> Option<Value> {
    only.is_none().then(|| json!({ "unreadable": why.to_string() }))
}

/// A command of chat, without what anybody says.
fn chat(asked: &ChatCommand) -> Value {
    json!({
        "id": asked.id,
        "conversation_id": asked.pair.id(),
        "by": sender(&asked.by, &asked.pair.tenant),
        "command": asked.command.word(),
        "accepted_at": asked.accepted_at,
    })
}

/// A sender that names nobody.
fn sender(from: &Sender, tenant: &Tenant) -> String {
    match from {
        Sender::Server => "server".to_owned(),
        Sender::User(party) => schemas::UserId { tenant: tenant.clone(), party: party.clone() }.redacted(),
    }
}

fn accepted(message: &Message) -> Value {
    json!({
        "id": message.id,
        "kind": message.kind.word(),
        "from": sender(&message.from, message.tenant()),
        "to": message.to.redacted(),
        "priority": message.priority,
        "content_type": message.content.content_type,
        "content_chars": message.content.body.chars().count(),
        "has_subject": message.content.subject.is_some(),
        "metadata_bytes": message.metadata.as_ref().map_or(0, |m| m.as_str().len()),
        "accepted_at": message.accepted_at,
        "send_at": message.send_at,
        "expires_at": message.expires_at,
        "broadcast": message.broadcast,
        "traceparent": message.trace,
    })
}

fn again(name: &Again) -> Value {
    json!({
        "id": name.id,
        "to": name.inbox.user.redacted(),
        "lane": name.lane,
        "position": name.position.to_string(),
        "round": name.round,
        "attempt": name.attempt,
        "due_at": name.due_at,
    })
}

fn fact(fact: &Fact) -> Value {
    json!({
        "id": fact.id,
        "what": fact.what,
        "at": fact.at,
        "to": fact.inbox.user.redacted(),
        "position": fact.position.to_string(),
        "round": fact.round,
        "attempt": fact.attempt,
        "device": fact.device,
    })
}

/// A dead letter without its content.
pub fn dead(dead: &Dead) -> Value {
    json!({
        "id": dead.id,
        "at": dead.at,
        "tenant": dead.inbox.user.tenant,
        "to": dead.inbox.user.redacted(),
        "reason": dead.reason,
        "round": dead.round,
        "attempts": dead.attempts,
        "position": dead.position.to_string(),
        "requeued_at": dead.requeued_at,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::{
        Content, ContentType, Inbox, MessageId, Position, Priority, Reason, Timestamp, UserId, fact::What,
        port::Append, record, tier::Attempt,
    };

    const NUMBER: &str = "+962790000001";

    fn message() -> Message {
        Message {
            id: MessageId::fresh(Timestamp(5)),
            kind: schemas::Kind::OneWay,
            from: Sender::Server,
            to: format!("acme/{NUMBER}").parse().unwrap(),
            priority: Priority::High,
            content: Content { content_type: ContentType::Text, subject: None, body: "a secret".to_owned() },
            client_ref: None,
            metadata: None,
            accepted_at: Timestamp(5),
            send_at: None,
            expires_at: None,
            broadcast: None,
            trace: None,
            fingerprint: [0; 16],
        }
    }

    fn stands(append: Append) -> Record {
        let Append { at, headers, body } = append;
        Record { at, offset: Offset(7), appended_at: Timestamp(6), headers, body }
    }

    fn records() -> Vec<Record> {
        let message = message();
        let inbox = Inbox { user: message.to.clone(), partition: Partition(3) };
        let name = Again {
            id: message.id,
            lane: Priority::High,
            inbox: inbox.clone(),
            position: Position::START,
            round: 0,
            attempt: Attempt(1),
            due_at: Timestamp(9),
        };
        let happened = Fact {
            id: message.id,
            inbox: inbox.clone(),
            position: Position::START,
            from: Sender::Server,
            client_ref: None,
            at: Timestamp(8),
            round: 0,
            attempt: Attempt(0),
            device: None,
            what: What::Delivered,
        };
        let letter = Dead {
            id: message.id,
            at: Timestamp(9),
            reason: Reason::NoAck,
            round: 0,
            attempts: 7,
            inbox,
            position: Position::START,
            requeued_at: None,
            message: Some(Arc::new(message.clone())),
        };
        let tier = Topic::all().find(|topic| matches!(topic, Topic::Retry(_))).unwrap();
        let appends = [record::accepted(&message, 24), record::again(tier, &name), record::dead(&letter)];
        appends.into_iter().chain(record::facts(vec![happened])).map(stands).collect()
    }

    #[test]
    fn every_record_is_decoded_and_names_nobody() {
        for (record, word) in records().iter().zip(["accepted", "again", "dead", "facts"]) {
            let value = decode(record, None).unwrap();
            let text = value.to_string();
            assert!(value[word].is_object() || value[word].is_array(), "{text}");
            assert!(!text.contains(NUMBER) && !text.contains("secret"), "{text}");
            assert!(text.contains("***01"), "{text}");
        }
    }

    #[test]
    fn a_tenant_sees_its_own_alone() {
        let (acme, other) = (Tenant::parse("acme").unwrap(), Tenant::parse("other").unwrap());
        for record in records() {
            assert!(decode(&record, Some(&acme)).is_some());
            assert_eq!(decode(&record, Some(&other)), None);
            let broken = Record { body: vec![9, 9].into(), ..record };
            assert!(decode(&broken, None).unwrap()["unreadable"].is_string());
            assert_eq!(decode(&broken, Some(&acme)), None);
        }
    }

    #[test]
    fn a_sender_is_redacted_too() {
        let tenant = Tenant::parse("acme").unwrap();
        let user: UserId = format!("acme/{NUMBER}").parse().unwrap();
        assert_eq!(sender(&Sender::User(user.party), &tenant), "acme/+***01");
    }
}
