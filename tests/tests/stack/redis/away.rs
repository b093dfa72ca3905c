//! Redis goes, and comes back empty.

use super::frames::{Counting, hint};
use super::*;

struct Process {
    presence: RedisPresence,
    backplane: RedisBackplane,
}

async fn process(address: &str) -> Process {
    let redis = open(address).await;
    Process {
        presence: RedisPresence::new(redis.clone(), 300_000, 45_000),
        backplane: RedisBackplane::open(redis, 5_000).await,
    }
}

fn user(n: u32) -> UserId {
    format!("acme/business:u{n}").parse().unwrap()
}

fn session(n: u128) -> SessionId {
    SessionId(uuid::Uuid::from_u128(n))
}

async fn nodes_of(presence: &RedisPresence, n: u32) -> Vec<String> {
    let places = presence.locate(&[user(n)]).await.unwrap().remove(0);
    places.into_iter().map(|place| place.node.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_process_holds_itself_is_found_and_reached_and_the_rest_is_made_good_later() {
    let own = Nodes::start("redis", &[]).await;
    let address = format!("redis://{}/{}", own.hosts(), prefix());
    let (a, b) = (process(&address).await, process(&address).await);
    let (node_a, node_b): (NodeId, NodeId) = ("a".parse().unwrap(), "b".parse().unwrap());
    let (at_a, at_b) = (Arc::new(Counting::default()), Arc::new(Counting::default()));
    a.backplane.attach(node_a.clone(), at_a.clone()).await.unwrap();
    b.backplane.attach(node_b.clone(), at_b.clone()).await.unwrap();
    let phone = "phone".parse().unwrap();
    let before = a.presence.register(&user(1), &node_a, &phone, session(1)).await.unwrap();
    b.presence.register(&user(2), &node_b, &phone, session(2)).await.unwrap();
    assert_eq!(nodes_of(&a.presence, 2).await, ["b"]);

    own.kill(1).await;
    let began = Instant::now();
    assert_eq!(nodes_of(&a.presence, 1).await, ["a"], "its own session is found");
    assert!(nodes_of(&a.presence, 2).await.is_empty(), "of others nothing is known");
    let phone_3 = a.presence.register(&user(3), &node_a, &phone, session(3)).await.unwrap();
    assert_eq!((nodes_of(&a.presence, 3).await, phone_3.replaced), (vec!["a".to_owned()], None));
    // The same device at both, while neither can know of the other.
    let older = a.presence.register(&user(4), &node_a, &phone, session(4)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2)).await;
    let newer = b.presence.register(&user(4), &node_b, &phone, session(5)).await.unwrap();
    assert!(newer.number > older.number);
    assert_eq!(a.backplane.deliver(&node_a, vec![hint(1)]).await.unwrap(), [Landing::Taken]);
    assert_eq!(a.backplane.deliver(&node_b, vec![hint(2)]).await.unwrap(), [Landing::Absent], "nobody is blamed");
    assert!(began.elapsed() < Duration::from_secs(10), "nobody waits for what is away: {:?}", began.elapsed());
    assert!(
        a.presence
            .heartbeat(&schemas::port::NodeLoad { node: node_a.clone(), address: "a".into(), sessions: 3, room: 9 })
            .await
            .is_err()
    );

    let (missed_a, missed_b) = (count(a.backplane.missed(0)).await, count(b.backplane.missed(0)).await);
    own.restart(1).await;
    let within = Duration::from_secs(10);
    let back = async { tokio::join!(a.presence.lapsed(0), b.presence.lapsed(0)) };
    tokio::time::timeout(within, back).await.expect("both learn that they are to register again");
    // Whoever went on blindly has all nodes compare: that, and that its own ears are open again.
    let told = async { tokio::join!(a.backplane.missed(missed_a), b.backplane.missed(missed_b)) };
    tokio::time::timeout(within, told).await.expect("all nodes are told to compare");

    // Registered again: under the same number, or a larger one than before.
    let again = a.presence.register(&user(1), &node_a, &phone, session(1)).await.unwrap();
    assert_eq!((again.number, again.replaced), (before.number, None));
    assert_eq!(nodes_of(&b.presence, 1).await, ["a"]);
    // The newer stays, whoever comes first; the older is told of itself.
    b.presence.register(&user(4), &node_b, &phone, session(5)).await.unwrap();
    let beaten = a.presence.register(&user(4), &node_a, &phone, session(4)).await.unwrap();
    assert_eq!(beaten.replaced.map(|place| place.session), Some(session(4)));
    assert_eq!(nodes_of(&b.presence, 4).await, ["b"]);
    // Numbers grow though Redis has forgotten them.
    let next = b.presence.register(&user(1), &node_b, &phone, session(6)).await.unwrap();
    assert!(next.number > before.number);
    until("frames go from one to the other again", async || {
        a.backplane.deliver(&node_b, vec![hint(3)]).await == Ok(vec![Landing::Taken])
    })
    .await;
    own.stop().await;
}

/// What a counter shows now, without waiting for more.
async fn count(counter: impl Future<Output = Missed>) -> u64 {
    tokio::time::timeout(Duration::from_millis(100), counter).await.map_or(0, |missed| missed.count)
}

/// A Redis that answers nothing is as bad as none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_stands_still_delays_nobody_for_long() {
    let own = Nodes::start("redis", &[]).await;
    let address = format!("redis://{}/{}", own.hosts(), prefix());
    let a = process(&address).await;
    let pid = std::fs::read_to_string(own.folder.join("node1/pid")).unwrap();
    let pid = rustix::process::Pid::from_raw(pid.split_whitespace().next().unwrap().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let began = Instant::now();
    for n in 0..100 {
        assert!(nodes_of(&a.presence, n).await.is_empty());
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    let back =
        until("it is used again", async || a.presence.nodes().await.is_ok() && a.presence.locate(&[]).await.is_ok());
    assert!(back.await < Duration::from_secs(5));
    own.stop().await;
}

/// A node that was silent for long is found as soon as it has registered a session, however old what is known of the nodes is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_back_is_found_at_once() {
    const NODE_MS: u64 = 100;
    let address = address(false).await;
    let limits = RedisLimits { nodes_ms: 3_600_000, ..RedisLimits::default() };
    let reader = Redis::with(&Address::parse(&address).unwrap(), limits, Arc::new(SystemClock::new())).await.unwrap();
    let reader = RedisPresence::new(reader, 60_000, NODE_MS);
    let node = RedisPresence::new(open(&address).await, 60_000, NODE_MS);
    let load = schemas::port::NodeLoad { node: "a".parse().unwrap(), address: "a".into(), sessions: 0, room: 9 };
    node.heartbeat(&load).await.unwrap();
    assert_eq!(reader.nodes().await.unwrap().len(), 1, "it is known from here on");
    until("it is taken for dead", async || reader.nodes().await.unwrap().is_empty()).await;
    node.heartbeat(&load).await.unwrap();
    node.register(&user(1), &load.node, &"phone".parse().unwrap(), session(1)).await.unwrap();
    assert_eq!(nodes_of(&reader, 1).await, ["a"]);
}

/// A clock that stands, as that of a machine does that is paused: Redis's went on meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_stood_still_registers_its_sessions_again() {
    let address = Address::parse(&address(false).await).unwrap();
    let clock = Arc::new(schemas::time::ManualClock::at(schemas::Timestamp(1_800_000_000_000)));
    let redis = Redis::with(&address, RedisLimits::default(), clock).await.unwrap();
    let presence = RedisPresence::new(redis, 60_000, 60_000);
    let load = schemas::port::NodeLoad { node: "a".parse().unwrap(), address: "a".into(), sessions: 0, room: 9 };
    presence.heartbeat(&load).await.unwrap();
    let beats = async {
        loop {
            presence.heartbeat(&load).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5_500)).await;
        }
    };
    let told = async {
        tokio::select! { n = presence.lapsed(0) => n, () = beats => 0 }
    };
    assert_eq!(tokio::time::timeout(Duration::from_secs(30), told).await, Ok(1));
}
