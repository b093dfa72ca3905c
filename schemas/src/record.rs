//! What stands in the log's records.

use serde::{Deserialize, Serialize};

use crate::{
    codec,
    conversation::ChatCommand,
    fact::Fact,
    ids::MessageId,
    message::Message,
    port::{Append, Dead, Headers},
    position::{Inbox, Position},
    tier::Attempt,
    time::Timestamp,
    topic::{Lane, Topic, TopicPartition},
};

/// The body of a record of a lane.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(
    clippy::large_enum_variant,
    reason = "nearly every record is a message: a box for each would cost more than it saves"
)]
pub enum LaneRecord {
    /// An accepted message.
    Accepted(Message),
    /// A message that is recorded already and is to be tried again: the first of a new round.
    Again(Again),
    /// What is asked of a conversation and is no message. On lane High alone.
    Chat(Box<ChatCommand>),
}

/// A message to be tried again: the body of a record of a retry tier. It names the message and does not carry it; the
/// status is read first (rule 7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Again {
    /// The message.
    pub id: MessageId,
    /// Its lane.
    pub lane: Lane,
    /// Its inbox.
    pub inbox: Inbox,
    /// Its place.
    pub position: Position,
    /// Which round.
    pub round: u8,
    /// Which attempt this will be.
    pub attempt: Attempt,
    /// Not before this (wall time, for people); the wait itself is counted from the moment a reader meets the record.
    pub due_at: Timestamp,
}

/// The record of an accepted message.
pub fn accepted(message: &Message, partitions: u16) -> Append {
    let headers = Headers {
        id: Some(message.id),
        tenant: Some(message.to.tenant.clone()),
        priority: Some(message.priority),
        attempt: Attempt::default(),
        traceparent: message.trace.clone(),
    };
    // The body is borrowed: the variant's number is what postcard writes for `LaneRecord::Accepted`.
    #[derive(Serialize)]
    enum Borrowed<'a> {
        Accepted(&'a Message),
    }
    Append { at: message.lane(partitions), headers, body: codec::encode(&Borrowed::Accepted(message)) }
}

/// The record of a message to be tried again, in a lane or a tier.
pub fn again(topic: Topic, again: &Again) -> Append {
    let headers = Headers {
        id: Some(again.id),
        tenant: Some(again.inbox.user.tenant.clone()),
        priority: Some(again.lane),
        attempt: again.attempt,
        traceparent: None,
    };
    let body = match topic {
        Topic::Lane(_) => codec::encode(&LaneRecord::Again(again.clone())),
        _ => codec::encode(again),
    };
    Append { at: TopicPartition { topic, partition: again.inbox.partition }, headers, body }
}

/// Whether a lane's record repeats a message instead of accepting one, told from its first bytes alone: who counts a
/// million records need not read their bodies.
pub fn is_again(body: &[u8]) -> bool {
    // The version, then the number of the variant as postcard writes it.
    body.starts_with(&[codec::VERSION, 1])
}

/// The record of a command of chat, on lane High of its conversation's partition.
pub fn chat(command: &ChatCommand, partitions: u16) -> Append {
    let headers = Headers {
        id: Some(command.id),
        tenant: Some(command.pair.tenant.clone()),
        priority: Some(Lane::High),
        attempt: Attempt::default(),
        traceparent: command.trace.clone(),
    };
    // The body is borrowed: the variants before it keep its number what postcard writes for `LaneRecord::Chat`.
    #[derive(Serialize)]
    enum Borrowed<'a> {
        #[expect(dead_code, reason = "a variant's number is its place")]
        Accepted,
        #[expect(dead_code, reason = "a variant's number is its place")]
        Again,
        Chat(&'a ChatCommand),
    }
    let at = TopicPartition { topic: Topic::Lane(Lane::High), partition: command.pair.partition(partitions) };
    Append { at, headers, body: codec::encode(&Borrowed::Chat(command)) }
}

/// Whether a lane's record is a command of chat, told from its first bytes alone: commands are no accepted messages, so the
/// books pass over them.
pub fn is_chat(body: &[u8]) -> bool {
    body.starts_with(&[codec::VERSION, 2])
}

/// The records of facts: one per partition, with all its facts in the order given.
pub fn facts(facts: Vec<Fact>) -> Vec<Append> {
    let mut by_partition = std::collections::BTreeMap::<_, Vec<Fact>>::new();
    for fact in facts {
        by_partition.entry(fact.inbox.partition).or_default().push(fact);
    }
    let record = |(partition, facts): (_, Vec<Fact>)| Append {
        at: TopicPartition { topic: Topic::Outcomes, partition },
        headers: Headers::default(),
        body: codec::encode(&facts),
    };
    by_partition.into_iter().map(record).collect()
}

/// The record of a dead letter. JSON: `dead` is a public topic.
pub fn dead(dead: &Dead) -> Append {
    let headers = Headers {
        id: Some(dead.id),
        tenant: Some(dead.inbox.user.tenant.clone()),
        priority: dead.message.as_ref().map(|m| m.priority),
        attempt: Attempt(dead.attempts),
        traceparent: dead.message.as_ref().and_then(|m| m.trace.clone()),
    };
    let body = serde_json::to_vec(dead).unwrap_or_default().into();
    Append { at: TopicPartition { topic: Topic::Dead, partition: dead.inbox.partition }, headers, body }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        conversation::{Command, Pair, UpTo},
        ids::Sender,
        topic::Partition,
    };

    #[test]
    fn a_command_of_chat_is_told_from_its_first_bytes_and_rides_high() {
        let pair = Pair {
            tenant: "acme".parse().unwrap(),
            business: "sara".parse().unwrap(),
            mobile: crate::Phone::from_stored("+962790000001").unwrap(),
        };
        for command in [Command::Open, Command::Read { up_to: UpTo::Seq(9) }, Command::Archive(true)] {
            let command = ChatCommand {
                id: MessageId::fresh(Timestamp(1)),
                pair: pair.clone(),
                by: "business:sara".parse::<Sender>().unwrap(),
                command,
                accepted_at: Timestamp(1),
                client_ref: None,
                trace: None,
                fingerprint: [7; 16],
            };
            let record = chat(&command, 24);
            assert!(is_chat(&record.body) && !is_again(&record.body));
            assert_eq!((record.at.topic, record.at.partition), (Topic::Lane(Lane::High), pair.partition(24)));
            assert_eq!(codec::decode::<LaneRecord>(&record.body), Ok(LaneRecord::Chat(Box::new(command))));
        }
    }

    #[test]
    fn a_repeated_message_is_told_from_its_first_bytes() {
        let name = Again {
            id: MessageId::fresh(Timestamp(1)),
            lane: Lane::High,
            inbox: Inbox { user: "acme/+962790000001".parse().unwrap(), partition: Partition(3) },
            position: Position { epoch: crate::Epoch(1), n: 7 },
            round: 1,
            attempt: Attempt(0),
            due_at: Timestamp(2),
        };
        let body = again(Topic::Lane(Lane::High), &name).body;
        assert!(is_again(&body));
        assert_eq!(codec::decode::<LaneRecord>(&body), Ok(LaneRecord::Again(name)));
    }
}
