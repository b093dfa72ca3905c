//! Small makers for this crate's tests.

use std::sync::Arc;

use schemas::{
    Content, ContentType, Epoch, Inbox, Kind, Lane, Message, MessageId, Partition, Position, Priority, Sender, Tenant,
    Timestamp, UserId, json::Json, record::Again, tier::Attempt,
};

use crate::item::{Fresh, Item, Work};

/// A message to one of ten users; the same number is the same message.
pub(crate) fn message(n: u64) -> Message {
    let to: UserId = format!("acme/+96279000000{}", n % 10).parse().unwrap();
    Message {
        id: MessageId::of_key(&Tenant::parse("acme").unwrap(), "", &n.to_string(), &to),
        kind: Kind::OneWay,
        from: Sender::Server,
        to,
        priority: Priority::Normal,
        content: Content { content_type: ContentType::Text, subject: None, body: format!("message {n}") },
        client_ref: None,
        metadata: Some(serde_json::from_str::<Json>(&n.to_string()).unwrap()),
        accepted_at: Timestamp(n as i64),
        send_at: None,
        expires_at: None,
        broadcast: None,
        trace: None,
        fingerprint: u128::from(n).to_le_bytes(),
    }
}

/// As an item, fresh from the log.
pub(crate) fn fresh(message: Message) -> Item {
    let message = Arc::new(message);
    let work = Work::Fresh(Fresh { message, replay: false, end: None, conflict: false, due: None });
    Item { partition: Partition(0), epoch: Epoch(1), work }
}

/// A retry of a message.
pub(crate) fn again(n: u64, round: u8, attempt: u8) -> Item {
    let message = message(n);
    let inbox = Inbox { user: message.to, partition: Partition(0) };
    let (position, due_at) = (Position { epoch: Epoch(1), n: 1 }, Timestamp(0));
    let again = Again { id: message.id, lane: Lane::Normal, inbox, position, round, attempt: Attempt(attempt), due_at };
    Item { partition: Partition(0), epoch: Epoch(1), work: Work::Again(Box::new(again)) }
}

/// What an item is about.
pub(crate) fn id_of(item: &Item) -> MessageId {
    match &item.work {
        Work::Fresh(fresh) => fresh.message.id,
        Work::Again(again) => again.id,
        Work::Dead(dead) => dead.id,
    }
}
