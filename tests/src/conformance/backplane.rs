//! The rules of the Backplane port, for any adapter.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use parking_lot::Mutex;
use schemas::{
    Content, ContentType, Inbox, Kind, Message, MessageId, NodeId, Partition, Position, Priority, Sender, SessionId,
    State, Status, Timestamp, UserId,
    port::{Backplane, Hint, Landing, Node, Whose},
    tier::Attempt,
    view::StatusChange,
};

/// Makes a backplane.
#[async_trait]
pub trait Maker: Send {
    /// Makes it.
    async fn open(&mut self) -> Arc<dyn Backplane>;
}

/// One test of each rule.
#[macro_export]
macro_rules! backplane_conformance {
    ($adapter:ident, $make:expr) => {
        $crate::rules!(backplane, $adapter, $make;
            hints_reach_their_node_and_are_answered_one_by_one,
            a_node_that_is_not_there_is_absent,
            hints_of_one_caller_arrive_in_order,
            a_later_node_of_a_name_replaces_the_earlier,
            a_detached_node_gets_nothing,
            notes_and_supersessions_reach_their_node,
            a_node_is_told_to_compare,
        );
    };
}

/// What a node met.
#[derive(Default)]
struct Met {
    hints: Vec<Position>,
    notes: usize,
    superseded: Vec<SessionId>,
}

/// A node that takes what stands at even places.
#[derive(Default)]
struct Fake(Mutex<Met>);

#[async_trait]
impl Node for Fake {
    async fn deliver(&self, hints: Vec<Hint>) -> Vec<Landing> {
        let landing = |hint: &Hint| if hint.position.n.is_multiple_of(2) { Landing::Taken } else { Landing::Absent };
        let landings = hints.iter().map(landing).collect();
        self.0.lock().hints.extend(hints.iter().map(|hint| hint.position));
        tokio::task::yield_now().await;
        landings
    }

    async fn notify(&self, notes: Vec<(UserId, StatusChange)>) {
        self.0.lock().notes += notes.len();
    }

    async fn supersede(&self, _user: &UserId, session: SessionId) {
        self.0.lock().superseded.push(session);
    }
}

fn user() -> UserId {
    "acme/business:sara".parse().unwrap()
}

fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn place(n: u64) -> Position {
    Position { n, ..Position::START }
}

fn message() -> Arc<Message> {
    Arc::new(Message {
        id: MessageId::fresh(Timestamp(1_700_000_000_000)),
        kind: Kind::OneWay,
        from: Sender::Server,
        to: user(),
        priority: Priority::Normal,
        content: Content { content_type: ContentType::Text, subject: None, body: "hello".into() },
        client_ref: None,
        metadata: None,
        accepted_at: Timestamp(1_700_000_000_000),
        send_at: None,
        expires_at: None,
        broadcast: None,
        trace: None,
        fingerprint: [0; 16],
    })
}

fn hint(n: u64) -> Hint {
    Hint {
        inbox: Inbox { user: user(), partition: Partition(0) },
        position: place(n),
        prev: place(n - 1),
        seq: (n > 0).then_some(n),
        message: message(),
        round: 0,
        attempt: Attempt(0),
        state: State::default(),
    }
}

fn note() -> (UserId, StatusChange) {
    let change = StatusChange {
        id: message().id,
        status: Status::Delivered,
        at: Timestamp(1),
        reason: None,
        client_ref: None,
        metadata: None,
    };
    (user(), change)
}

/// Waits for what is not answered.
async fn until(what: impl Fn() -> bool) {
    let due = async {
        while !what() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), due).await.expect("it was to arrive");
}

/// One landing per hint, in order.
pub async fn hints_reach_their_node_and_are_answered_one_by_one(mut maker: impl Maker) {
    let backplane = maker.open().await;
    let (a, b) = (Arc::new(Fake::default()), Arc::new(Fake::default()));
    backplane.attach(node("a"), a.clone()).await.unwrap();
    backplane.attach(node("b"), b.clone()).await.unwrap();
    let landings = backplane.deliver(&node("a"), (1..=3).map(hint).collect()).await.unwrap();
    assert_eq!(landings, [Landing::Absent, Landing::Taken, Landing::Absent]);
    assert_eq!(a.0.lock().hints, [place(1), place(2), place(3)]);
    assert!(b.0.lock().hints.is_empty());
    assert_eq!(backplane.deliver(&node("a"), Vec::new()).await.unwrap(), []);
}

/// Nobody of that name: absent, all of them.
pub async fn a_node_that_is_not_there_is_absent(mut maker: impl Maker) {
    let backplane = maker.open().await;
    let landings = backplane.deliver(&node("nobody"), vec![hint(2), hint(4)]).await.unwrap();
    assert_eq!(landings, [Landing::Absent; 2]);
    backplane.notify(&node("nobody"), vec![note()]).await.unwrap();
    backplane.supersede(&node("nobody"), &user(), SessionId(uuid::Uuid::nil())).await.unwrap();
    backplane.detach(&node("nobody")).await.unwrap();
}

/// Calls that were begun one after the other arrive one after the other, answered or not.
pub async fn hints_of_one_caller_arrive_in_order(mut maker: impl Maker) {
    let backplane = maker.open().await;
    let a = Arc::new(Fake::default());
    backplane.attach(node("a"), a.clone()).await.unwrap();
    let name = node("a");
    let calls = (1..=200).map(|n| backplane.deliver(&name, vec![hint(n)]));
    futures::future::join_all(calls).await.into_iter().for_each(|landings| assert_eq!(landings.unwrap().len(), 1));
    assert!(a.0.lock().hints.is_sorted());
    assert_eq!(a.0.lock().hints.len(), 200);
}

/// The name is the later one's.
pub async fn a_later_node_of_a_name_replaces_the_earlier(mut maker: impl Maker) {
    let backplane = maker.open().await;
    let (old, new) = (Arc::new(Fake::default()), Arc::new(Fake::default()));
    backplane.attach(node("a"), old.clone()).await.unwrap();
    backplane.attach(node("a"), new.clone()).await.unwrap();
    assert_eq!(backplane.deliver(&node("a"), vec![hint(2)]).await.unwrap(), [Landing::Taken]);
    assert_eq!((old.0.lock().hints.len(), new.0.lock().hints.len()), (0, 1));
}

/// Taken off: absent again.
pub async fn a_detached_node_gets_nothing(mut maker: impl Maker) {
    let backplane = maker.open().await;
    let a = Arc::new(Fake::default());
    backplane.attach(node("a"), a.clone()).await.unwrap();
    backplane.detach(&node("a")).await.unwrap();
    assert_eq!(backplane.deliver(&node("a"), vec![hint(2)]).await.unwrap(), [Landing::Absent]);
    assert!(a.0.lock().hints.is_empty());
}

/// What is not answered arrives too.
pub async fn notes_and_supersessions_reach_their_node(mut maker: impl Maker) {
    let backplane = maker.open().await;
    let a = Arc::new(Fake::default());
    backplane.attach(node("a"), a.clone()).await.unwrap();
    let session = SessionId(uuid::Uuid::from_u128(7));
    backplane.notify(&node("a"), vec![note(), note()]).await.unwrap();
    backplane.supersede(&node("a"), &user(), session).await.unwrap();
    until(|| a.0.lock().notes == 2 && a.0.lock().superseded == [session]).await;
}

/// Its process hears of it, each time anew.
pub async fn a_node_is_told_to_compare(mut maker: impl Maker) {
    let backplane = maker.open().await;
    backplane.attach(node("a"), Arc::new(Fake::default())).await.unwrap();
    // What an adapter says of itself while it begins does not count.
    let mut seen = 0;
    while let Ok(more) = tokio::time::timeout(Duration::from_millis(500), backplane.missed(seen)).await {
        seen = more.count;
    }
    let told = async |seen| {
        let told = tokio::time::timeout(Duration::from_secs(10), backplane.missed(seen)).await;
        told.expect("it is told")
    };
    for _ in 0..2 {
        backplane.compare(&node("a")).await.unwrap();
        let missed = told(seen).await;
        assert_eq!(missed.whose, Whose::All);
        seen = missed.count;
    }
    let partitions = [Partition(3), Partition(5)];
    backplane.taken_over(&partitions).await.unwrap();
    assert_eq!(told(seen).await.whose, Whose::Of(partitions.into()), "it is told whose, and of nobody else");
}
