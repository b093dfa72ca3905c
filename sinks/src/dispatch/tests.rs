//! What dispatch promises, against nodes that behave as each test says.

use std::collections::HashSet;

use parking_lot::Mutex;
use schemas::{
    ConversationId, DeviceId, MessageId, Party, Reason, SessionId, Status, Timestamp,
    port::{Hint, Node, NodeLoad, Place, PortError, Taken},
    time::ManualClock,
};

use super::*;
use crate::parcel::tests::routed;

/// How a node behaves.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Takes,
    Absent,
    Fails,
    Hangs,
    Miscounts,
}

/// Nodes by name; what was handed to each is kept in the order in which it was handed over.
#[derive(Default)]
struct Nodes {
    manners: Mutex<HashMap<String, Manner>>,
    handed: Mutex<Vec<(String, u64)>>,
    notes: Mutex<Vec<(String, UserId, Status)>>,
    signals: Mutex<Vec<Signal>>,
    compares: Mutex<Vec<String>>,
}

impl Nodes {
    fn of(manners: &[(&str, Manner)]) -> Arc<Self> {
        let nodes = Self::default();
        *nodes.manners.lock() = manners.iter().map(|(name, manner)| ((*name).to_owned(), *manner)).collect();
        Arc::new(nodes)
    }

    fn set(&self, node: &str, manner: Manner) {
        self.manners.lock().insert(node.to_owned(), manner);
    }

    fn handed(&self) -> usize {
        self.handed.lock().len()
    }
}

#[async_trait]
impl Backplane for Nodes {
    async fn attach(&self, _: NodeId, _: Arc<dyn Node>) -> PortResult<()> {
        Ok(())
    }

    async fn detach(&self, _: &NodeId) -> PortResult<()> {
        Ok(())
    }

    async fn deliver(&self, node: &NodeId, hints: Vec<Hint>) -> PortResult<Vec<Landing>> {
        self.handed.lock().extend(hints.iter().map(|hint| (node.to_string(), hint.position.n)));
        let manner = self.manners.lock()[node.as_str()];
        match manner {
            Manner::Takes => Ok(vec![Landing::Taken; hints.len()]),
            Manner::Absent => Ok(vec![Landing::Absent; hints.len()]),
            Manner::Fails => Err(PortError::Unavailable("away".to_owned())),
            Manner::Hangs => std::future::pending().await,
            Manner::Miscounts => Ok(vec![Landing::Taken; hints.len() + 1]),
        }
    }

    async fn notify(&self, node: &NodeId, notes: Vec<(UserId, StatusChange)>) -> PortResult<()> {
        if self.manners.lock()[node.as_str()] == Manner::Hangs {
            std::future::pending::<()>().await;
        }
        self.notes.lock().extend(notes.into_iter().map(|(user, change)| (node.to_string(), user, change.status)));
        Ok(())
    }

    async fn signal(&self, node: &NodeId, signals: Vec<(UserId, Signal)>) -> PortResult<()> {
        self.signals.lock().extend(signals.into_iter().map(|(_, signal)| signal));
        if self.manners.lock()[node.as_str()] == Manner::Hangs {
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    async fn supersede(&self, _: &NodeId, _: &UserId, _: SessionId) -> PortResult<()> {
        Ok(())
    }

    async fn compare(&self, node: &NodeId) -> PortResult<()> {
        self.compares.lock().push(node.to_string());
        Ok(())
    }

    async fn taken_over(&self, _: &[Partition]) -> PortResult<()> {
        Ok(())
    }
}

/// Everyone is on the nodes it names, once for each of two devices.
struct Everywhere(Vec<&'static str>);

#[async_trait]
impl Presence for Everywhere {
    async fn register(&self, _: &UserId, _: &NodeId, _: &DeviceId, _: SessionId) -> PortResult<Taken> {
        Ok(Taken { number: 1, replaced: None })
    }

    async fn refresh(&self, _: &[(UserId, SessionId)]) -> PortResult<()> {
        Ok(())
    }

    async fn remove(&self, _: &UserId, _: SessionId) -> PortResult<()> {
        Ok(())
    }

    async fn locate(&self, users: &[UserId]) -> PortResult<Vec<Vec<Place>>> {
        let distinct: HashSet<_> = users.iter().collect();
        assert_eq!(distinct.len(), users.len(), "a sender is asked for once");
        let place = |node: &str, device: &str| Place {
            node: NodeId::parse(node).unwrap(),
            device: DeviceId::parse(device).unwrap(),
            session: SessionId(MessageId::fresh(Timestamp(1)).0),
            number: 1,
        };
        let places: Vec<Place> = self.0.iter().flat_map(|node| [place(node, "one"), place(node, "two")]).collect();
        Ok(vec![places; users.len()])
    }

    async fn heartbeat(&self, _: &NodeLoad) -> PortResult<()> {
        Ok(())
    }

    async fn nodes(&self) -> PortResult<Vec<NodeLoad>> {
        Ok(Vec::new())
    }
}

fn sinks(nodes: &Arc<Nodes>, clock: &Arc<ManualClock>, deadline_ms: u64) -> Arc<Sinks> {
    let mut limits = Limits::default();
    limits.flow.deliver_ms = deadline_ms;
    limits.sink.notify_ms = deadline_ms;
    limits.sink.notify_calls = 1;
    let (backplane, clock): (Arc<dyn Backplane>, Arc<dyn Clock>) = (Arc::clone(nodes) as _, Arc::clone(clock) as _);
    let presence = Arc::new(Everywhere(vec!["a", "b"]));
    Sinks::new(Parts { presence, backplane, clock, limits: Arc::new(limits), notice: Notice::None })
}

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::at(Timestamp(1_000)))
}

const UNREACHABLE: Outcome = Outcome::Failed(Reason::NodeUnreachable);

#[tokio::test]
async fn each_message_gets_the_outcome_of_its_own_nodes() {
    use Manner::{Absent, Fails, Miscounts, Takes};
    let nodes = Nodes::of(&[("takes", Takes), ("absent", Absent), ("fails", Fails), ("miscounts", Miscounts)]);
    let sinks = sinks(&nodes, &clock(), 1_000);
    let table: &[(&[&str], Outcome)] = &[
        (&[], Outcome::Absent),
        (&["takes"], Outcome::Taken),
        (&["absent"], Outcome::Absent),
        (&["fails"], UNREACHABLE),
        (&["miscounts"], UNREACHABLE),
        (&["absent", "takes"], Outcome::Taken),
        (&["fails", "takes"], Outcome::Taken),
        (&["absent", "fails"], UNREACHABLE),
        (&["takes", "takes"], Outcome::Taken),
    ];
    let batch = table.iter().enumerate().map(|(i, (nodes, _))| routed(i as u64, i as u8, nodes)).collect();
    let outcomes = sinks.deliver(batch).await;
    assert_eq!(outcomes, table.iter().map(|(_, outcome)| *outcome).collect::<Vec<_>>());
}

/// Rule 5: whoever is not offered something again, because another of its devices took it, finds it by comparing.
#[tokio::test]
async fn a_node_that_did_not_answer_is_told_to_compare() {
    let nodes = Nodes::of(&[("takes", Manner::Takes), ("fails", Manner::Fails)]);
    let sinks = sinks(&nodes, &clock(), 1_000);
    let told = async |count: usize| {
        while nodes.compares.lock().len() < count {
            tokio::task::yield_now().await;
        }
        nodes.compares.lock().clone()
    };
    for n in 0..20 {
        assert_eq!(sinks.deliver(vec![routed(n, 1, &["fails", "takes"])]).await, [Outcome::Taken]);
    }
    assert_eq!(told(1).await, ["fails"], "once for all of a moment, also what its breaker refused");
    sinks.deliver(vec![routed(20, 1, &["fails", "takes"])]).await;
    assert_eq!(told(2).await, ["fails", "fails"], "and again for what came after");
}

#[tokio::test]
async fn handing_over_follows_the_order_of_first_polls() {
    let nodes = Nodes::of(&[("a", Manner::Hangs), ("b", Manner::Takes)]);
    let sinks = sinks(&nodes, &clock(), 60_000);
    let mut first = sinks.deliver(vec![routed(1, 1, &["a", "b"]), routed(2, 1, &["a"])]);
    let mut second = sinks.deliver(vec![routed(3, 1, &["a", "b"])]);
    // Made in one order, polled in the other.
    assert!(futures::poll!(second.as_mut()).is_pending());
    assert!(futures::poll!(first.as_mut()).is_pending());
    let to = |node: &str| nodes.handed.lock().iter().filter(|(n, _)| n == node).map(|(_, n)| *n).collect::<Vec<_>>();
    assert_eq!((to("a"), to("b")), (vec![3, 1, 2], vec![3, 1]));
}

#[tokio::test]
async fn a_batch_over_very_many_nodes_is_handed_over_at_the_first_poll() {
    let names: Vec<String> = (0..200).map(|i| format!("n{i}")).collect();
    let manners: Vec<_> = names.iter().map(|name| (name.as_str(), Manner::Hangs)).collect();
    let nodes = Nodes::of(&manners);
    let sinks = sinks(&nodes, &clock(), 60_000);
    let mut delivery = sinks.deliver((0..200).map(|i| routed(i, 1, &[&names[i as usize]])).collect());
    assert!(futures::poll!(delivery.as_mut()).is_pending());
    assert_eq!(nodes.handed(), 200);
}

#[tokio::test]
async fn a_node_that_does_not_answer_fails_its_own_messages_only_and_in_time() {
    let nodes = Nodes::of(&[("a", Manner::Hangs), ("b", Manner::Takes)]);
    let sinks = sinks(&nodes, &clock(), 20);
    let outcomes = sinks.deliver(vec![routed(1, 1, &["a"]), routed(2, 2, &["b"]), routed(3, 3, &["a", "b"])]).await;
    assert_eq!(outcomes, [UNREACHABLE, Outcome::Taken, Outcome::Taken]);
}

/// Node a has failed as often as opens its breaker, b takes.
async fn one_fails() -> (Arc<Nodes>, Arc<ManualClock>, Arc<Sinks>) {
    let (nodes, clock) = (Nodes::of(&[("a", Manner::Fails), ("b", Manner::Takes)]), clock());
    let sinks = sinks(&nodes, &clock, 1_000);
    for n in 0..5 {
        assert_eq!(sinks.deliver(vec![routed(n, 1, &["a"])]).await, [UNREACHABLE]);
    }
    (nodes, clock, sinks)
}

#[tokio::test]
async fn r6_2_a_failing_node_is_left_alone_and_the_others_are_not() {
    let (nodes, clock, sinks) = one_fails().await;
    nodes.set("a", Manner::Takes);
    let outcomes = sinks.deliver(vec![routed(6, 1, &["a"]), routed(7, 2, &["b"])]).await;
    assert_eq!(outcomes, [UNREACHABLE, Outcome::Taken], "open for a, closed for b");
    assert_eq!(nodes.handed(), 6, "the sixth was not handed to a");
    clock.pass(Limits::default().sink.node_open_ms);
    assert_eq!(sinks.deliver(vec![routed(8, 1, &["a"])]).await, [Outcome::Taken], "the probe");
    assert_eq!(sinks.deliver(vec![routed(9, 1, &["a"])]).await, [Outcome::Taken], "closed again");
}

#[tokio::test]
async fn what_is_told_without_an_answer_says_nothing_of_a_node() {
    let (nodes, clock, sinks) = one_fails().await;
    clock.pass(Limits::default().sink.node_open_ms);
    sinks.notify(vec![note(MessageId::fresh(Timestamp(1)), Status::Read)]).await;
    assert!(nodes.notes.lock().iter().all(|(node, ..)| node == "b"));
    assert_eq!(sinks.deliver(vec![routed(6, 1, &["a"])]).await, [UNREACHABLE], "the probe");
    nodes.set("a", Manner::Takes);
    assert_eq!(sinks.deliver(vec![routed(7, 1, &["a"])]).await, [UNREACHABLE], "it was the only one");
}

fn note(id: MessageId, status: Status) -> (UserId, StatusChange) {
    let change = StatusChange { id, status, at: Timestamp(5), reason: None, client_ref: None, metadata: None };
    ("acme/business:sara".parse().unwrap(), change)
}

#[tokio::test]
async fn r9_6_a_sender_is_told_once_on_each_of_its_nodes_where_its_message_stands() {
    let nodes = Nodes::of(&[("a", Manner::Takes), ("b", Manner::Takes)]);
    let sinks = sinks(&nodes, &clock(), 1_000);
    let (one, two) = (MessageId::fresh(Timestamp(1)), MessageId::fresh(Timestamp(2)));
    sinks.notify(vec![note(one, Status::Sent), note(two, Status::Sent), note(one, Status::Delivered)]).await;
    let mut told: Vec<_> = nodes.notes.lock().iter().map(|(node, _, status)| (node.clone(), *status)).collect();
    told.sort();
    let expected = [("a", Status::Sent), ("a", Status::Delivered), ("b", Status::Sent), ("b", Status::Delivered)];
    assert_eq!(told, expected.map(|(node, status)| (node.to_owned(), status)));
}

#[tokio::test]
async fn notes_that_find_no_room_are_dropped_and_hold_nobody_up() {
    let nodes = Nodes::of(&[("a", Manner::Hangs), ("b", Manner::Hangs)]);
    let sinks = sinks(&nodes, &clock(), 60_000);
    let id = MessageId::fresh(Timestamp(1));
    let mut stuck = sinks.notify(vec![note(id, Status::Sent)]);
    assert!(futures::poll!(stuck.as_mut()).is_pending());
    // The only place is taken: this answers at its first poll.
    assert!(futures::poll!(sinks.notify(vec![note(id, Status::Read)]).as_mut()).is_ready());
    drop(stuck);
    nodes.set("a", Manner::Takes);
    nodes.set("b", Manner::Takes);
    sinks.notify(vec![note(id, Status::Read)]).await;
    assert_eq!(nodes.notes.lock().len(), 2, "the place was given back");
}

#[tokio::test]
async fn typing_and_presence_never_take_the_place_of_marks() {
    let nodes = Nodes::of(&[("a", Manner::Hangs), ("b", Manner::Hangs)]);
    let sinks = sinks(&nodes, &clock(), 60_000);
    let (user, by): (UserId, Party) = ("acme/business:sara".parse().unwrap(), "+962790000001".parse().unwrap());
    let conversation = ConversationId(MessageId::fresh(Timestamp(1)).0);
    let typing = Signal::Typing { conversation, by: by.clone() };
    let came = Signal::Presence { user: by.clone(), online: true, last_seen: None };
    let read = Signal::Read { conversation, up_to: 1, by };
    let mut stuck = sinks.signal(vec![(user.clone(), typing.clone())]);
    assert!(futures::poll!(stuck.as_mut()).is_pending());
    // Their only place is taken: what comes now is dropped, and marks pass.
    assert!(futures::poll!(sinks.signal(vec![(user.clone(), came)]).as_mut()).is_ready());
    assert!(futures::poll!(sinks.signal(vec![(user, read.clone())]).as_mut()).is_pending());
    assert_eq!(*nodes.signals.lock(), [typing.clone(), typing, read.clone(), read], "one on each node");
}
