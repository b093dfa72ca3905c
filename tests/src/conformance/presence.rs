//! The rules of the Presence port, for any adapter.

use std::sync::Arc;

use async_trait::async_trait;
use schemas::{
    DeviceId, NodeId, SessionId, UserId,
    port::{NodeLoad, Place, Presence},
};

/// Makes a presence, and lets time pass for it.
#[async_trait]
pub trait Maker: Send {
    /// Makes it.
    async fn open(&mut self) -> Arc<dyn Presence>;
    /// Lets so much time pass.
    async fn pass(&mut self, ms: u64);
    /// How long a session holds without being refreshed, ms. More than twice [`Maker::node_ms`].
    fn presence_ms(&self) -> u64;
    /// How long a node lives after a heartbeat, ms.
    fn node_ms(&self) -> u64;
}

/// One test of each rule.
#[macro_export]
macro_rules! presence_conformance {
    ($adapter:ident, $make:expr) => {
        $crate::rules!(presence, $adapter, $make;
            a_session_is_found_until_it_is_removed,
            a_batch_is_answered_in_its_order,
            a_newer_session_of_a_device_replaces_the_older,
            numbers_of_a_device_rise_under_contention,
            removing_a_replaced_session_leaves_the_newer,
            a_session_lapses_unless_refreshed,
            a_silent_node_s_sessions_are_not_found,
            living_nodes_are_listed_with_their_load,
        );
    };
}

fn user(n: u32) -> UserId {
    format!("acme/business:u{n}").parse().unwrap()
}

fn device(name: &str) -> DeviceId {
    name.parse().unwrap()
}

fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn session(n: u128) -> SessionId {
    SessionId(uuid::Uuid::from_u128(n))
}

fn load(name: &str, sessions: u64) -> NodeLoad {
    NodeLoad { node: node(name), address: format!("ws://{name}"), sessions, room: 100 }
}

async fn locate(presence: &dyn Presence, n: u32) -> Vec<Place> {
    presence.locate(&[user(n)]).await.unwrap().remove(0)
}

/// Registered: found. Removed: gone.
pub async fn a_session_is_found_until_it_is_removed(mut maker: impl Maker) {
    let presence = maker.open().await;
    assert_eq!(locate(&*presence, 1).await, []);
    let taken = presence.register(&user(1), &node("a"), &device("phone"), session(1)).await.unwrap();
    assert_eq!(taken.replaced, None);
    let place = Place { node: node("a"), device: device("phone"), session: session(1), number: taken.number };
    assert_eq!(locate(&*presence, 1).await, [place]);
    presence.register(&user(1), &node("b"), &device("laptop"), session(2)).await.unwrap();
    assert_eq!(locate(&*presence, 1).await.len(), 2);
    presence.remove(&user(1), session(1)).await.unwrap();
    assert_eq!(locate(&*presence, 1).await[0].session, session(2));
    presence.remove(&user(1), session(2)).await.unwrap();
    presence.remove(&user(1), session(2)).await.unwrap();
    assert_eq!(locate(&*presence, 1).await, []);
}

/// One answer for each user, in the order asked, also for those who are not there or are asked for twice.
pub async fn a_batch_is_answered_in_its_order(mut maker: impl Maker) {
    let presence = maker.open().await;
    for n in [2, 4, 900] {
        presence.register(&user(n), &node("a"), &device("d"), session(u128::from(n))).await.unwrap();
    }
    let asked: Vec<_> = (0..1_000).map(|n| user(n % 950)).collect();
    let found = presence.locate(&asked).await.unwrap();
    assert_eq!(found.len(), asked.len());
    for (n, places) in (0..1_000u32).zip(found) {
        let here = [2, 4, 900].contains(&(n % 950));
        assert_eq!(places.len(), usize::from(here));
        assert!(places.iter().all(|place| place.session == session(u128::from(n % 950))));
    }
    assert_eq!(presence.locate(&[]).await.unwrap(), Vec::<Vec<Place>>::new());
}

/// The newer wins, has the larger number, and is told whom it replaced.
pub async fn a_newer_session_of_a_device_replaces_the_older(mut maker: impl Maker) {
    let presence = maker.open().await;
    let first = presence.register(&user(1), &node("a"), &device("phone"), session(1)).await.unwrap();
    let second = presence.register(&user(1), &node("b"), &device("phone"), session(2)).await.unwrap();
    assert!(second.number > first.number);
    let replaced = second.replaced.expect("the older session was there");
    assert_eq!((replaced.session, replaced.node, replaced.number), (session(1), node("a"), first.number));
    let places = locate(&*presence, 1).await;
    assert_eq!(places.iter().map(|place| place.session).collect::<Vec<_>>(), [session(2)]);
    // Registering again what is there replaces nobody.
    assert_eq!(presence.register(&user(1), &node("b"), &device("phone"), session(2)).await.unwrap().replaced, None);
}

/// Of many at once one stays, the one with the largest number, and each of the others was replaced once.
pub async fn numbers_of_a_device_rise_under_contention(mut maker: impl Maker) {
    let presence = maker.open().await;
    let many = (0..100u128).map(|n| {
        let presence = presence.clone();
        tokio::spawn(
            async move { presence.register(&user(1), &node("a"), &device("phone"), session(n)).await.unwrap() },
        )
    });
    let taken: Vec<_> = futures::future::join_all(many).await.into_iter().map(Result::unwrap).collect();
    let place = locate(&*presence, 1).await.remove(0);
    assert_eq!(place.number, taken.iter().map(|taken| taken.number).max().unwrap());
    let mut replaced: Vec<_> = taken.iter().filter_map(|t| t.replaced.as_ref().map(|place| place.session)).collect();
    replaced.sort_unstable();
    replaced.dedup();
    assert_eq!(replaced.len(), 99);
    assert!(!replaced.contains(&place.session));
    for taken in &taken {
        assert!(taken.replaced.as_ref().is_none_or(|older| older.number < taken.number));
    }
}

/// A session that was replaced cannot take the newer one with it.
pub async fn removing_a_replaced_session_leaves_the_newer(mut maker: impl Maker) {
    let presence = maker.open().await;
    presence.register(&user(1), &node("a"), &device("phone"), session(1)).await.unwrap();
    presence.register(&user(1), &node("b"), &device("phone"), session(2)).await.unwrap();
    presence.remove(&user(1), session(1)).await.unwrap();
    assert_eq!(locate(&*presence, 1).await[0].session, session(2));
}

/// A session lapses by itself, and each refresh gives it the whole time again (R7.3).
pub async fn a_session_lapses_unless_refreshed(mut maker: impl Maker) {
    let presence = maker.open().await;
    presence.register(&user(1), &node("a"), &device("kept"), session(1)).await.unwrap();
    presence.register(&user(1), &node("a"), &device("left"), session(2)).await.unwrap();
    let half = maker.presence_ms() / 2 + 1;
    maker.pass(half).await;
    presence.refresh(&[(user(1), session(1)), (user(7), session(9))]).await.unwrap();
    assert_eq!(locate(&*presence, 1).await.len(), 2);
    maker.pass(half).await;
    assert_eq!(locate(&*presence, 1).await.iter().map(|p| p.session).collect::<Vec<_>>(), [session(1)]);
    maker.pass(half).await;
    // Too late: what lapsed is registered again, not refreshed.
    presence.refresh(&[(user(1), session(1))]).await.unwrap();
    assert_eq!(locate(&*presence, 1).await, []);
    let again = presence.register(&user(1), &node("a"), &device("kept"), session(3)).await.unwrap();
    assert_eq!(again.replaced, None);
}

/// A dead node is forgotten without anyone's help, and found again when it lives.
pub async fn a_silent_node_s_sessions_are_not_found(mut maker: impl Maker) {
    let presence = maker.open().await;
    presence.heartbeat(&load("a", 1)).await.unwrap();
    presence.heartbeat(&load("b", 1)).await.unwrap();
    presence.register(&user(1), &node("a"), &device("one"), session(1)).await.unwrap();
    presence.register(&user(1), &node("b"), &device("two"), session(2)).await.unwrap();
    let step = maker.node_ms() / 2 + 1;
    for _ in 0..2 {
        maker.pass(step).await;
        presence.heartbeat(&load("b", 1)).await.unwrap();
    }
    assert_eq!(locate(&*presence, 1).await.iter().map(|p| p.session).collect::<Vec<_>>(), [session(2)]);
    presence.heartbeat(&load("a", 1)).await.unwrap();
    assert_eq!(locate(&*presence, 1).await.len(), 2);
}

/// What living nodes said last.
pub async fn living_nodes_are_listed_with_their_load(mut maker: impl Maker) {
    let presence = maker.open().await;
    assert_eq!(presence.nodes().await.unwrap(), []);
    presence.heartbeat(&load("a", 1)).await.unwrap();
    presence.heartbeat(&load("b", 2)).await.unwrap();
    let half = maker.node_ms() / 2 + 1;
    maker.pass(half).await;
    presence.heartbeat(&load("b", 3)).await.unwrap();
    let mut nodes = presence.nodes().await.unwrap();
    nodes.sort_by(|x, y| x.node.cmp(&y.node));
    assert_eq!(nodes, [load("a", 1), load("b", 3)]);
    maker.pass(half).await;
    assert_eq!(presence.nodes().await.unwrap(), [load("b", 3)]);
}
