//! What the cases are written in: users, messages, entries and facts in few words.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use proptest::{
    strategy::Strategy,
    test_runner::{Config, TestCaseError, TestRunner},
};
use schemas::{
    Content, ContentType, Epoch, Fact, Inbox, Kind, Message, MessageId, Partition, Phone, Position, Priority, Sender,
    State, Tenant, Timestamp, UserId, What,
    fact::Past,
    port::{Entry, History, Schedule, Span},
    tier::Attempt,
};
use uuid::Uuid;

/// Takes partitions over, as who the log says is their owner.
pub async fn own(history: &dyn History, partitions: &[Partition]) -> Vec<Epoch> {
    let epochs = history.take_over(partitions).await.expect("taken over");
    history.owns(&partitions.iter().copied().zip(epochs.iter().copied()).collect::<Vec<_>>());
    epochs
}

/// Noon of some day: wall time in the cases is counted from here.
pub const NOON: Timestamp = Timestamp(1_800_000_000_000);

/// A tenant that no other case has, on no earlier run either.
pub fn tenant() -> Tenant {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Tenant::parse(&format!("t{}-{number}", Uuid::new_v4().simple())).expect("a tenant's name")
}

/// A mobile user of a tenant.
pub fn user(tenant: &Tenant, number: u32) -> UserId {
    UserId::mobile(tenant.clone(), phone(number))
}

/// A phone number.
pub fn phone(number: u32) -> Phone {
    Phone::from_stored(&format!("+96279{number:07}")).expect("a number")
}

/// A user's inbox in partition 3.
pub fn inbox(tenant: &Tenant, number: u32) -> Inbox {
    Inbox { user: user(tenant, number), partition: Partition(3) }
}

/// A place in the first epoch.
pub fn at(n: u64) -> Position {
    Position { epoch: Epoch(u32::from(n > 0)), n }
}

/// A one-way message to the owner of an inbox.
pub fn message(to: &Inbox) -> Message {
    let id = MessageId(Uuid::new_v4());
    Message {
        id,
        kind: Kind::OneWay,
        from: Sender::Server,
        to: to.user.clone(),
        priority: Priority::Normal,
        content: Content { content_type: ContentType::Text, subject: None, body: format!("hello {id}") },
        client_ref: None,
        metadata: None,
        accepted_at: NOON,
        send_at: None,
        expires_at: None,
        broadcast: None,
        trace: None,
        fingerprint: *Uuid::new_v4().as_bytes(),
    }
}

/// An entry after another; `one_way` counts on from it.
pub fn entry(inbox: &Inbox, position: Position, prev: Position, one_way: u64, message: Message) -> Entry {
    let (inbox, message) = (inbox.clone(), Arc::new(message));
    Entry { inbox, position, prev, one_way, recorded_at: NOON, message, end: None, seq: None }
}

/// So many one-way entries from the start on, with new messages.
pub fn entries(inbox: &Inbox, count: u64) -> Vec<Entry> {
    (1..=count).map(|n| entry(inbox, at(n), at(n - 1), n, message(inbox))).collect()
}

/// Records and says so if it fails.
pub async fn record(history: &dyn History, entries: &[Entry]) {
    history.record(entries, &Schedule::default()).await.expect("recorded");
}

/// Something that happened to an entry's message.
pub fn fact(of: &Entry, what: What, ms: i64) -> Fact {
    Fact { position: of.position, ..placeless(&of.message, &of.inbox, what, ms) }
}

/// Something that happened to a message without a place.
pub fn placeless(message: &Message, inbox: &Inbox, what: What, ms: i64) -> Fact {
    Fact {
        id: message.id,
        inbox: inbox.clone(),
        position: Position::START,
        from: message.from.clone(),
        client_ref: None,
        at: Timestamp(NOON.0 + ms),
        round: 0,
        attempt: Attempt(0),
        device: None,
        what,
    }
}

/// What facts add up to by the rule alone.
pub fn merged<'a>(facts: impl IntoIterator<Item = &'a Fact>) -> State {
    let mut state = State::default();
    for fact in facts {
        state.merge(Past::from(fact));
    }
    state
}

/// Reads a whole inbox at once.
pub async fn whole(history: &dyn History, inbox: &Inbox) -> Vec<Entry> {
    entries_of(history.read(inbox, Position::START, 10_000).await.expect("read"))
}

/// The entries of a piece of an inbox.
pub fn entries_of(span: Span) -> Vec<Entry> {
    span.entries.into_iter().map(|(entry, _)| entry).collect()
}

/// The places of entries.
pub fn places(entries: &[Entry]) -> Vec<Position> {
    entries.iter().map(|entry| entry.position).collect()
}

/// Cases of a property on one installation, unless `PROPTEST_CASES` says how many: each writes to a store.
const CASES: u32 = 100;

/// Runs a property on one installation: a failure is shrunk as usual. Needs a runtime with several threads.
pub fn property<S: Strategy>(strategy: &S, check: impl AsyncFn(S::Value))
where
    S::Value: Clone,
{
    property_of(CASES, strategy, check);
}

/// The same with so many cases.
pub fn property_of<S: Strategy>(cases: u32, strategy: &S, check: impl AsyncFn(S::Value))
where
    S::Value: Clone,
{
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(cases);
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let here = tokio::runtime::Handle::current();
    let run = |value: S::Value| {
        // The assertions of the cases panic, and proptest takes a panic for a failed case.
        tokio::task::block_in_place(|| here.block_on(check(value)));
        Ok::<(), TestCaseError>(())
    };
    if let Err(why) = runner.run(strategy, run) {
        panic!("{why}");
    }
}
