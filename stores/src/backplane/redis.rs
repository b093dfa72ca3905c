//! The backplane over Redis's pub/sub: one channel a node, one a process for the answers, one for all. A node of this very
//! process is called as if Redis were not there.
//!
//! What waits for one channel travels together in frames, in the order in which the calls were first polled. Pub/sub loses
//! what nobody hears: a delivery that is not answered in time is sent again until its deadline, and the node answers what it
//! has met already without offering it twice. A channel without a listener is a node that is not there, and is answered at
//! once. While Redis is away, or there and not to be listened to, nobody is reached and nobody is blamed ([`Backplane`]);
//! once it is back, whoever went on blindly tells all nodes to compare.

mod carrier;
mod desk;
mod frame;
mod outbox;

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};
use schemas::{
    NodeId, Partition, SessionId, UserId,
    limits::RedisLimits,
    port::{Backplane, Hint, Landing, Missed, Node, PortError, PortResult, Signal, Whose},
    view::StatusChange,
    vital,
};
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

pub use self::carrier::Carrier;
use self::{
    desk::{Answer, Desk, Told},
    frame::{Frame, Part},
    outbox::Outboxes,
};
use super::missed::Misses;
use crate::redis::{Ears, Heard, Redis};

/// How often what was not answered is looked for, ms.
const LOOK_MS: u64 = 50;

/// A backplane for many processes.
pub struct RedisBackplane {
    inner: Arc<Inner>,
}

struct Inner {
    /// This process, as it signs its frames.
    me: Uuid,
    redis: Redis,
    ears: Ears,
    carrier: Arc<dyn Carrier>,
    nodes: RwLock<HashMap<NodeId, Arc<dyn Node>>>,
    desk: Desk,
    outboxes: Outboxes,
    met: Mutex<desk::Met>,
    misses: Misses,
    deadline_ms: u64,
}

impl RedisBackplane {
    /// Listens for answers, and for nodes once they are attached. A delivery that is not answered within `deadline_ms`
    /// failed.
    pub async fn open(redis: Redis, deadline_ms: u64) -> Self {
        let carrier = Arc::new(redis.clone());
        Self::over(redis, carrier, deadline_ms).await
    }

    /// The same with another way for the frames to their channels.
    pub async fn over(redis: Redis, carrier: Arc<dyn Carrier>, deadline_ms: u64) -> Self {
        let limits = redis.limits().clone();
        let (out, heard) = mpsc::channel(limits.inbound.max(1));
        let inner = Arc::new(Inner {
            me: Uuid::new_v4(),
            ears: Ears::open(&redis, out),
            carrier,
            nodes: RwLock::default(),
            desk: Desk::new(&limits),
            outboxes: Outboxes::new(&limits),
            met: Mutex::new(desk::Met::new(limits.answered)),
            misses: Misses::default(),
            deadline_ms,
            redis: redis.clone(),
        });
        tokio::spawn(vital::task("the backplane's listener", listen(Arc::downgrade(&inner), heard)));
        let (again, all) = (send_again(Arc::downgrade(&inner)), tell_all(Arc::downgrade(&inner), redis.returns()));
        tokio::spawn(vital::task("the backplane's second sending", again));
        tokio::spawn(vital::task("telling nodes to compare", all));
        let within = Duration::from_millis(limits.command_ms);
        let (answers, all) = (inner.answers(inner.me), inner.all());
        tokio::join!(inner.ears.add(&answers, within), inner.ears.add(&all, within));
        Self { inner }
    }
}

#[async_trait]
impl Backplane for RedisBackplane {
    async fn attach(&self, node: NodeId, target: Arc<dyn Node>) -> PortResult<()> {
        let inner = &self.inner;
        let channel = inner.channel(&node);
        inner.nodes.write().insert(node, target);
        inner.ears.add(&channel, Duration::from_millis(inner.redis.limits().command_ms)).await;
        // Another process may still go by this name: it lets go.
        inner.post(&channel, Part::Taken { by: inner.me });
        Ok(())
    }

    async fn detach(&self, node: &NodeId) -> PortResult<()> {
        self.inner.nodes.write().remove(node);
        self.inner.ears.remove(&self.inner.channel(node));
        Ok(())
    }

    async fn deliver(&self, node: &NodeId, hints: Vec<Hint>) -> PortResult<Vec<Landing>> {
        let inner = &self.inner;
        if hints.is_empty() {
            return Ok(Vec::new());
        }
        if let Some(here) = inner.node(node) {
            return Ok(here.deliver(hints).await);
        }
        let count = hints.len();
        match inner.ask(node, Told::Hints(Arc::new(hints)), inner.deadline_ms).await? {
            Answer::Landed(landings) if landings.len() == count => Ok(landings),
            Answer::Nobody | Answer::Away => Ok(vec![Landing::Absent; count]),
            Answer::Landed(_) | Answer::Done => {
                Err(PortError::Unknown(format!("node {node} answered for another number of hints")))
            }
        }
    }

    async fn notify(&self, node: &NodeId, notes: Vec<(UserId, StatusChange)>) -> PortResult<()> {
        let inner = &self.inner;
        if let Some(here) = inner.node(node) {
            here.notify(notes).await;
        } else if !inner.post(&inner.channel(node), Part::notes(notes)) {
            return Err(PortError::Unavailable(format!("too much waits for node {node}")));
        }
        Ok(())
    }

    async fn signal(&self, node: &NodeId, signals: Vec<(UserId, Signal)>) -> PortResult<()> {
        let inner = &self.inner;
        if let Some(here) = inner.node(node) {
            here.signal(signals).await;
        } else if !inner.post(&inner.channel(node), Part::Signals(signals)) {
            return Err(PortError::Unavailable(format!("too much waits for node {node}")));
        }
        Ok(())
    }

    async fn supersede(&self, node: &NodeId, user: &UserId, session: SessionId) -> PortResult<()> {
        let inner = &self.inner;
        if let Some(here) = inner.node(node) {
            here.supersede(user, session).await;
            return Ok(());
        }
        match inner.ask(node, Told::Supersede(user.clone(), session), inner.deadline_ms).await? {
            Answer::Away => Err(PortError::Unavailable("Redis is away".to_owned())),
            _ => Ok(()),
        }
    }

    async fn compare(&self, node: &NodeId) -> PortResult<()> {
        let inner = &self.inner;
        if inner.node(node).is_some() {
            inner.misses.again(Whose::All);
        } else if !inner.post(&inner.channel(node), Part::Compare) {
            return Err(PortError::Unavailable(format!("too much waits for node {node}")));
        }
        Ok(())
    }

    async fn taken_over(&self, partitions: &[Partition]) -> PortResult<()> {
        let inner = &self.inner;
        if !inner.post(&inner.all(), Part::TakenOver(partitions.to_vec())) {
            inner.redis.go_blindly();
            return Err(PortError::Unavailable("too much waits for all nodes".to_owned()));
        }
        Ok(())
    }

    async fn missed(&self, seen: u64) -> Missed {
        self.inner.misses.more_than(seen).await
    }
}

impl Inner {
    fn node(&self, node: &NodeId) -> Option<Arc<dyn Node>> {
        self.nodes.read().get(node).cloned()
    }

    fn channel(&self, node: &NodeId) -> String {
        self.redis.name(&format!("node:{node}"))
    }

    fn answers(&self, process: Uuid) -> String {
        self.redis.name(&format!("answers:{}", process.simple()))
    }

    fn all(&self) -> String {
        self.redis.name("all")
    }

    /// Puts something to a node and waits for what it says. Handed over within the first poll.
    async fn ask(self: &Arc<Self>, node: &NodeId, told: Told, within_ms: u64) -> PortResult<Answer> {
        // Whoever cannot hear the answer asks in vain, and the node is not to blame for it. Looked at again after it is noted:
        // either the ears are open then, or what they say once they are finds the note.
        let hears = || self.ears.hears(&self.answers(self.me));
        if !hears() {
            self.redis.go_blindly();
            if !hears() {
                return Ok(Answer::Away);
            }
        }
        let channel = self.channel(node);
        let now = self.redis.clock().mono();
        let (waiting, part) = self.desk.ask(&channel, told, now)?;
        if !self.post(&channel, part) {
            return Err(PortError::Unavailable(format!("too much waits for node {node}")));
        }
        let late = || PortError::Unknown(format!("node {node} did not answer within {within_ms} ms"));
        tokio::time::timeout(Duration::from_millis(within_ms), waiting.answered()).await.map_err(|_| late())?
    }

    /// Tells all nodes to compare, if somebody here went on without them.
    fn tell_blind(self: &Arc<Self>) {
        if self.redis.take_blind() {
            let channel = self.all();
            self.post(&channel, Part::Compare);
        }
    }

    /// Puts a part into a channel's outbox; says whether there was room. Whoever finds nobody sending there sends.
    fn post(self: &Arc<Self>, channel: &str, part: Part) -> bool {
        match self.outboxes.put(channel, part) {
            outbox::Put::Full => false,
            outbox::Put::Waits => true,
            outbox::Put::Begin => {
                // Others leave the sending to it until it ends.
                tokio::spawn(vital::task("the backplane's sending", send(self.clone(), channel.to_owned())));
                true
            }
        }
    }

    /// What came on a channel.
    async fn take(self: &Arc<Self>, channel: &str, frame: Frame) {
        let here = channel.strip_prefix(&self.redis.name("node:")).and_then(|name| name.parse().ok());
        let here = here.and_then(|node: NodeId| self.node(&node).map(|target| (node, target)));
        let back = self.answers(frame.from);
        for part in frame.parts {
            match (part, &here) {
                (Part::Hints { ask, hints }, _) => {
                    let met = self.met.lock().get(frame.from, ask);
                    let landings = match (met, &here) {
                        (Some(landings), _) => landings,
                        (None, None) => vec![Landing::Absent; hints.len()],
                        (None, Some((_, target))) => {
                            let landings = target.deliver(Arc::unwrap_or_clone(hints)).await;
                            self.met.lock().put(frame.from, ask, landings.clone());
                            landings
                        }
                    };
                    self.post(&back, Part::Landed { ask, landings });
                }
                (Part::Supersede { ask, user, session }, here) => {
                    if let Some((_, target)) = here {
                        target.supersede(&user, session).await;
                    }
                    self.post(&back, Part::Done { ask });
                }
                (Part::Notes(notes), Some((_, target))) => {
                    target.notify(notes.into_iter().map(|(user, note)| (user, note.into())).collect()).await;
                }
                (Part::Signals(signals), Some((_, target))) => target.signal(signals).await,
                (Part::Taken { by }, Some((node, _))) if by != self.me => {
                    tracing::warn!(%node, "another process has taken this node's name: give each its own");
                    self.nodes.write().remove(node);
                }
                (Part::Landed { ask, landings }, _) => self.desk.answer(ask, Answer::Landed(landings)),
                (Part::Done { ask }, _) => self.desk.answer(ask, Answer::Done),
                (Part::Compare, _) => self.misses.again(Whose::All),
                (Part::TakenOver(partitions), _) => self.misses.again(Whose::Of(partitions.into_iter().collect())),
                (Part::Notes(_) | Part::Signals(_) | Part::Taken { .. }, _) => {}
            }
        }
    }
}

/// Sends what waits for a channel, frame by frame, until nothing does.
async fn send(inner: Arc<Inner>, channel: String) {
    let limits: RedisLimits = inner.redis.limits().clone();
    let clock = inner.redis.clock().clone();
    let mut last = None;
    while let Some(parts) = inner.outboxes.take(&channel, limits.frame_bytes) {
        let asks: Vec<u64> = parts.iter().filter_map(Part::asks).collect();
        let bytes = schemas::codec::encode(&Frame { from: inner.me, parts });
        match inner.carrier.publish(&channel, bytes).await {
            Ok(0) => inner.desk.answer_all(&asks, || Answer::Nobody),
            Ok(_) => {}
            Err(_) => inner.desk.answer_all(&asks, || Answer::Away),
        }
        // Those that come close together travel together.
        let now = clock.mono();
        if last.is_some_and(|last| now.since(last) < limits.frame_every_ms) && inner.outboxes.has_room(&channel) {
            tokio::time::sleep(Duration::from_millis(limits.frame_every_ms)).await;
        }
        last = Some(clock.mono());
    }
}

/// Takes what was heard.
async fn listen(weak: Weak<Inner>, mut heard: mpsc::Receiver<Heard>) {
    while let Some(what) = heard.recv().await {
        let Some(inner) = weak.upgrade() else { return };
        match what {
            Heard::Missed => {
                inner.misses.again(Whose::All);
                inner.tell_blind();
            }
            Heard::Frame(channel, bytes) => match schemas::codec::decode::<Frame>(&bytes) {
                Ok(frame) => inner.take(&channel, frame).await,
                // A newer release speaks on this channel: what it hints at, the inbox has.
                Err(why) => {
                    tracing::debug!(%why, "a frame could not be read");
                    inner.misses.again(Whose::All);
                }
            },
        }
    }
}

/// Sends again what was not answered.
async fn send_again(weak: Weak<Inner>) {
    loop {
        tokio::time::sleep(Duration::from_millis(LOOK_MS)).await;
        let Some(inner) = weak.upgrade() else { return };
        let now = inner.redis.clock().mono();
        for (channel, part) in inner.desk.due(now) {
            inner.post(&channel, part);
        }
    }
}

/// Tells all nodes to compare, when Redis is back and somebody here went on without it.
async fn tell_all(weak: Weak<Inner>, mut returns: watch::Receiver<u64>) {
    while returns.changed().await.is_ok() {
        let Some(inner) = weak.upgrade() else { return };
        inner.tell_blind();
    }
}
