//! Small makers for this crate's tests.

use std::sync::Arc;

use schemas::{
    Clock, Content, ContentType, Epoch, Inbox, Kind, Lane, Limits, Message, MessageId, Partition, Position, Priority,
    Sender, Tenant, Timestamp, UserId, json::Json, limits::SinkLimits, record::Again, tier::Attempt, time::ManualClock,
};

use crate::{
    gate::Gates,
    item::{Fresh, Item, Work},
    ownership::Ownership,
};

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
    Item { partition: Partition(0), epoch: Epoch(1), offset: None, work }
}

/// A retry of a message.
pub(crate) fn again(n: u64, round: u8, attempt: u8) -> Item {
    let message = message(n);
    let inbox = Inbox { user: message.to, partition: Partition(0) };
    let (position, due_at) = (Position { epoch: Epoch(1), n: 1 }, Timestamp(0));
    let again = Again { id: message.id, lane: Lane::Normal, inbox, position, round, attempt: Attempt(attempt), due_at };
    Item { partition: Partition(0), epoch: Epoch(1), offset: None, work: Work::Again(Box::new(again)) }
}

/// Sixteen partitions, all held since this takeover.
pub(crate) fn owning(epoch: u32) -> Arc<Ownership> {
    let ownership = Ownership::of(16);
    (0..16).for_each(|p| ownership.took(Partition(p), Epoch(epoch)));
    Arc::new(ownership)
}

/// Gates that stand open.
pub(crate) fn gates() -> Arc<Gates> {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(Timestamp(0)));
    let limits = Limits {
        sink: SinkLimits { breaker_failures: u32::MAX, breaker_calls: u32::MAX, ..SinkLimits::default() },
        ..Limits::default()
    };
    Arc::new(Gates::new(&limits, &clock))
}

/// What an item is about.
pub(crate) fn id_of(item: &Item) -> MessageId {
    match &item.work {
        Work::Fresh(fresh) => fresh.message.id,
        Work::Again(again) => again.id,
        Work::Dead(dead) => dead.id,
        Work::Chat(asked) => asked.command.id,
    }
}

/// Holds calls up until the test lets them go on, in any order it likes. Open by default.
#[derive(Clone, Default)]
pub(crate) struct Gate(Option<Arc<parking_lot::Mutex<Vec<tokio::sync::oneshot::Sender<()>>>>>);

impl Gate {
    /// One that holds every call up.
    pub(crate) fn closed() -> Self {
        Self(Some(Arc::default()))
    }

    /// A call comes by.
    pub(crate) async fn pass(&self) {
        if let Some(held) = &self.0 {
            let (go, wait) = tokio::sync::oneshot::channel();
            held.lock().push(go);
            let _ = wait.await;
        }
    }

    /// Lets one go on, chosen by this number. False: nobody waits.
    pub(crate) fn let_go(&self, which: usize) -> bool {
        let Some(held) = &self.0 else { return false };
        let mut held = held.lock();
        if held.is_empty() {
            return false;
        }
        let which = which % held.len();
        let _ = held.remove(which).send(());
        true
    }
}
