//! Frames that are lost on the way.

use std::collections::HashMap;

use super::*;
use bytes::Bytes;
use parking_lot::Mutex;
use schemas::{
    Content, ContentType, Inbox, Kind, Message, MessageId, Partition, Position, Priority, Sender, State, Timestamp,
    tier::Attempt,
};
use stores::backplane::redis::Carrier;

/// Loses one frame in ten, in whichever direction it goes, and says that it arrived.
pub(super) struct Lossy {
    inner: Redis,
    /// A generator of its own (xorshift), so that one seed loses the same frames.
    state: Mutex<u64>,
    pub(super) lost: Mutex<usize>,
}

impl Lossy {
    pub(super) fn new(inner: Redis, seed: u64) -> Arc<Self> {
        Arc::new(Self { inner, state: Mutex::new(seed | 1), lost: Mutex::default() })
    }
}

#[async_trait]
impl Carrier for Lossy {
    async fn publish(&self, channel: &str, frame: Bytes) -> PortResult<u64> {
        let roll = {
            let mut state = self.state.lock();
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            *state % 10
        };
        if roll == 0 {
            *self.lost.lock() += 1;
            return Ok(1);
        }
        self.inner.publish(channel, frame).await
    }
}

/// Counts what it was offered.
#[derive(Default)]
pub(super) struct Counting(pub(super) Mutex<HashMap<u64, usize>>);

#[async_trait]
impl Node for Counting {
    async fn deliver(&self, hints: Vec<Hint>) -> Vec<Landing> {
        let mut met = self.0.lock();
        hints.iter().for_each(|hint| *met.entry(hint.position.n).or_default() += 1);
        vec![Landing::Taken; hints.len()]
    }
    async fn notify(&self, _: Vec<(UserId, StatusChange)>) {}
    async fn supersede(&self, _: &UserId, _: SessionId) {}
}

pub(super) fn hint(n: u64) -> Hint {
    let user: UserId = "acme/+962790000001".parse().unwrap();
    let message = Message {
        id: MessageId::fresh(Timestamp(1_700_000_000_000 + n as i64)),
        kind: Kind::OneWay,
        from: Sender::Server,
        to: user.clone(),
        priority: Priority::Normal,
        content: Content { content_type: ContentType::Text, subject: None, body: format!("message {n}") },
        client_ref: None,
        metadata: None,
        accepted_at: Timestamp(1_700_000_000_000),
        send_at: None,
        expires_at: None,
        broadcast: None,
        trace: None,
        fingerprint: [0; 16],
    };
    let place = |n| Position { n, ..Position::START };
    let inbox = Inbox { user, partition: Partition(0) };
    let (position, prev, attempt) = (place(n), place(n - 1), Attempt(0));
    Hint { inbox, position, prev, seq: None, message: Arc::new(message), round: 0, attempt, state: State::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_tenth_of_the_frames_lost_every_hint_is_offered_once_and_answered() {
    let address = address(false).await;
    let (one, other) = (open(&address).await, open(&address).await);
    let (there_and, back) = (Lossy::new(one.clone(), 41), Lossy::new(other.clone(), 42));
    let here = RedisBackplane::over(one, there_and.clone(), 5_000).await;
    let there = RedisBackplane::over(other, back.clone(), 5_000).await;
    let (name, node): (NodeId, _) = ("a".parse().unwrap(), Arc::new(Counting::default()));
    there.attach(name.clone(), node.clone()).await.unwrap();
    let mut answers = 0;
    for round in 0..20u64 {
        let calls = (1..=20).map(|n| here.deliver(&name, vec![hint(round * 20 + n)]));
        for landings in futures::future::join_all(calls).await {
            assert_eq!(landings.unwrap(), [Landing::Taken]);
            answers += 1;
        }
    }
    let met = node.0.lock();
    assert_eq!((answers, met.len()), (400, 400));
    assert!(met.values().all(|times| *times == 1), "each is offered once");
    assert!(*there_and.lost.lock() + *back.lost.lock() > 0, "frames were lost");
}

/// What comes close together travels together: the commands that Redis sees are far fewer than the hints.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hints_that_come_close_together_share_frames() {
    struct Counted(Redis, Mutex<usize>);
    #[async_trait]
    impl Carrier for Counted {
        async fn publish(&self, channel: &str, frame: Bytes) -> PortResult<u64> {
            *self.1.lock() += 1;
            self.0.publish(channel, frame).await
        }
    }
    let address = address(false).await;
    let redis = open(&address).await;
    let counted = Arc::new(Counted(redis.clone(), Mutex::default()));
    let here = Arc::new(RedisBackplane::over(redis, counted.clone(), 5_000).await);
    let there = RedisBackplane::open(open(&address).await, 5_000).await;
    let (name, node): (NodeId, _) = ("a".parse().unwrap(), Arc::new(Counting::default()));
    there.attach(name.clone(), node.clone()).await.unwrap();
    // Five thousand a second in batches of five, for two seconds.
    let began = Instant::now();
    let mut calls = Vec::new();
    let mut took = Vec::new();
    for batch in 0..2_000u64 {
        let (here, name) = (here.clone(), name.clone());
        calls.push(tokio::spawn(async move {
            let began = Instant::now();
            here.deliver(&name, (1..=5).map(|n| hint(batch * 5 + n)).collect()).await.unwrap();
            began.elapsed()
        }));
        let due = Duration::from_millis(batch + 1);
        tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
    }
    for call in calls {
        took.push(call.await.unwrap());
    }
    took.sort_unstable();
    let frames = *counted.1.lock();
    println!("{} hints a frame; p50 {:?}, p99 {:?}", 10_000 / frames, took[1_000], took[1_980]);
    assert_eq!(node.0.lock().len(), 10_000);
    assert!(10_000 / frames >= 10, "{frames} frames for 10,000 hints");
}
