//! Holds the sockets: sessions, catch-up, the registry, and the reads over HTTP.
//!
//! A connection's way through the files: [`connect`](mod@connect) (who, which device, from where) ▷ `socket` (the pump that carries bytes) ▷
//! [`session`] (what is sent, in which order, once) ▷ `facts` (what became of it, gathered and appended to the log). The
//! `registry` is what the backplane reaches; the `keeper` wakes sessions, and keeps presence. `reads` answers HTTP.
//!
//! Nothing here decides what becomes of a message: facts go to the log, and its owner settles them.

mod catch_up;
mod connect;
pub mod delivery;
mod facts;
mod keeper;
mod people;
mod reads;
mod registry;
pub mod session;
mod socket;
mod talking;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod wire;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract::FromRef, routing::get, routing::post};
use ingest::auth::Caller;
use parking_lot::Mutex;
use schemas::{
    Clock, Inbox, Limits, Millis, NodeId, Partition, Party, SessionId, UserId,
    port::{Backplane, Conversations, Dispatch, History, Log, NodeLoad, PortResult, Presence},
    vital,
};
use tokio::sync::{Notify, Semaphore};
use tokio_util::task::AbortOnDropHandle;

use facts::Gather;
use people::Herald;
use registry::{Order, Registry};
use session::Now;

/// What the gateway is made of.
#[derive(Clone)]
pub struct Parts {
    /// Takes facts, and gives the feed of status changes.
    pub log: Arc<dyn Log>,
    /// Inboxes, states and cursors.
    pub history: Arc<dyn History>,
    /// The same history's conversations as readers are shown them, perhaps through a cache.
    pub talks: Arc<dyn Conversations>,
    /// Where users are.
    pub presence: Arc<dyn Presence>,
    /// How deliveries reach this node.
    pub backplane: Arc<dyn Backplane>,
    /// How what happens in conversations reaches other people's nodes.
    pub dispatch: Arc<dyn Dispatch>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The bounds.
    pub limits: Arc<Limits>,
    /// Who callers are.
    pub auth: Arc<ingest::auth::Auth>,
    /// This node's name.
    pub node: NodeId,
    /// Where clients reach it.
    pub address: String,
    /// The way in for what is said over sockets, and for marks.
    pub door: Option<Arc<ingest::Door>>,
    /// Origins of pages that may connect, beside the node's own host; `*` for any.
    pub origins: Vec<String>,
}

/// The gateway of one node.
pub struct Gateway {
    parts: Parts,
    partitions: u16,
    registry: Arc<Registry>,
    herald: Herald,
    gather: Arc<Gather>,
    /// Bounds the spans in memory at once.
    reads: Semaphore,
    /// One device registers at a time, so that the newer session is the same one here and in presence.
    turns: Box<[Arc<tokio::sync::Mutex<()>>]>,
    /// Sessions to be taken out of presence, where they lapse by themselves after a while.
    leaving: Mutex<Vec<Left>>,
    /// Held while they are taken out: who ends the node waits for what is under way.
    forgetting: tokio::sync::Mutex<()>,
    left: Notify,
    /// Connections whose task has not ended: also those that are closed and wait for the client's own close.
    held: AtomicU64,
    draining: AtomicBool,
    tasks: Mutex<Vec<AbortOnDropHandle<()>>>,
    /// Whether clients connect here, or only ask.
    holds_sockets: bool,
}

/// A session that has ended.
struct Left {
    user: UserId,
    session: SessionId,
    at: Millis,
}

/// Reads of history under way at once for sessions.
const READS: usize = 64;
/// Sessions taken out of presence at once.
const AT_ONCE: usize = 64;
/// Devices that register at once.
const TURNS: usize = 64;

impl Gateway {
    /// Makes this node reachable and starts what keeps it so.
    pub async fn open(parts: Parts) -> PortResult<Arc<Self>> {
        let gateway = Self::new(parts, true);
        let parts = &gateway.parts;
        parts.backplane.attach(parts.node.clone(), gateway.registry.clone()).await?;
        if let Err(why) = parts.presence.heartbeat(&gateway.load()).await {
            tracing::warn!(%why, "presence is away: this node is not found by others yet");
        }
        gateway.tasks.lock().extend(keeper::start(&gateway));
        Ok(gateway)
    }

    /// Answers reads alone: nobody connects here, and neither presence nor the backplane know of this node.
    pub fn reads(parts: Parts) -> Arc<Self> {
        Self::new(parts, false)
    }

    fn new(parts: Parts, holds_sockets: bool) -> Arc<Self> {
        let registry = Arc::new(Registry::new(&parts.limits.socket, parts.door.clone()));
        let (herald, news) = Herald::new(parts.limits.chat.comings);
        let gather = Arc::new(Gather::new(&parts.limits));
        let gathering = gather.clone().run(parts.log.clone(), parts.history.clone());
        let gathering = tokio::spawn(vital::task("the gathering of facts and cursors", gathering));
        let gateway = Arc::new(Self {
            partitions: parts.log.partitions(),
            registry,
            herald,
            gather,
            reads: Semaphore::new(READS),
            turns: (0..TURNS).map(|_| Arc::default()).collect(),
            leaving: Mutex::default(),
            forgetting: tokio::sync::Mutex::default(),
            left: Notify::new(),
            held: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            tasks: Mutex::new(vec![AbortOnDropHandle::new(gathering)]),
            holds_sockets,
            parts,
        });
        let telling = people::tell(Arc::downgrade(&gateway), news);
        let telling = tokio::spawn(vital::task("telling who came and went", telling));
        gateway.tasks.lock().push(AbortOnDropHandle::new(telling));
        gateway
    }

    /// The routes of this part.
    pub fn routes(self: &Arc<Self>) -> Router {
        let reads = Router::new()
            .route("/v1/messages/{id}", get(reads::message::show).delete(reads::cancel::cancel))
            .route("/v1/messages/{id}/trace", get(reads::message::trace))
            .route("/v1/messages/{id}/read", post(reads::marks::read))
            .route("/v1/messages/ack", post(reads::marks::ack))
            .route("/v1/messages", get(reads::lists::one_way))
            .route("/v1/inbox", get(reads::lists::inbox))
            .route("/v1/unread", get(reads::lists::unread))
            .route("/v1/events", get(reads::events::events))
            .route("/v1/preferences", get(reads::preferences::show).put(reads::preferences::choose))
            .route("/v1/conversations", get(reads::threads::list))
            .route("/v1/conversations/{id}", get(reads::threads::show))
            .route("/v1/conversations/{id}/messages", get(reads::threads::messages))
            .route("/v1/nodes", get(reads::lists::nodes));
        let all = if self.holds_sockets { reads.route("/v1/ws", get(connect::connect)) } else { reads };
        all.with_state(Here(self.clone()))
    }

    /// Stops taking connections, tells clients to come back, and makes what they said durable. Ends within the drain time
    /// and what the log needs.
    pub async fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        let within = self.parts.limits.socket.drain_ms;
        let mut here = Vec::new();
        self.registry.each(|handle| {
            handle.order(Order::Drain(within));
            here.push(handle.me.user.clone());
        });
        let until = self.parts.clock.mono().plus(within);
        while self.held.load(Ordering::Acquire) > 0 && self.parts.clock.mono() < until {
            let _ = tokio::time::timeout(Duration::from_millis(50), self.left.notified()).await;
        }
        self.gather.drained().await;
        self.forget_left().await;
        // Who does not come back elsewhere was here last.
        let at = self.parts.clock.wall();
        let seen: Vec<_> = here.into_iter().map(|user| (user, at)).collect();
        if let Err(why) = self.parts.history.seen(&seen).await {
            tracing::debug!(%why, "when users were last here is not kept");
        }
        if self.holds_sockets {
            let _ = self.parts.backplane.detach(&self.parts.node).await;
        }
        self.tasks.lock().clear();
    }

    /// Sessions held now.
    pub fn sessions(&self) -> u64 {
        self.registry.count()
    }

    fn now(&self) -> Now {
        Now { mono: self.parts.clock.mono(), wall: self.parts.clock.wall() }
    }

    fn load(&self) -> NodeLoad {
        let (node, address) = (self.parts.node.clone(), self.parts.address.clone());
        let sessions = self.registry.count();
        NodeLoad { node, address, sessions, room: self.parts.limits.socket.sessions as u64 }
    }

    /// The inboxes of a user: one for a mobile user, one per partition for a business user.
    fn inboxes(&self, user: &UserId) -> Vec<Inbox> {
        let inbox = |partition| Inbox { user: user.clone(), partition };
        match user.party {
            Party::Mobile(_) => vec![inbox(Partition::of(user, self.partitions))],
            Party::Business(_) => (0..self.partitions).map(|p| inbox(Partition(p))).collect(),
        }
    }

    /// Checks a token that a live session of `user` was given: until when it holds.
    fn renew(&self, user: &UserId, token: &str) -> Result<(Arc<Caller>, Option<Millis>), ()> {
        let caller = self.parts.auth.verify(token).map_err(drop)?;
        let ends = self.token_ends(&caller);
        if caller.user().as_ref() == Some(user) { Ok((caller, ends)) } else { Err(()) }
    }

    fn token_ends(&self, caller: &Caller) -> Option<Millis> {
        let now = self.now();
        caller.expires_at.map(|at| now.mono.plus(at.ms_since(now.wall)))
    }

    /// A session has ended: it is taken out of presence soon.
    fn has_left(&self, me: &session::Me) {
        let (user, session, at) = (me.user.clone(), me.session, self.parts.clock.mono());
        self.leaving.lock().push(Left { user, session, at });
        self.left.notify_one();
    }

    /// Takes sessions that have ended out of presence. Says whether all of them are; those that are not stay for the next time,
    /// unless they have lapsed by then.
    async fn forget_left(&self) -> bool {
        let _alone = self.forgetting.lock().await;
        let (mut left, mut kept) = (std::mem::take(&mut *self.leaving.lock()), Vec::new());
        while !left.is_empty() {
            let some = left.split_off(left.len().saturating_sub(AT_ONCE));
            let count = some.len();
            let removed = some.iter().map(async |Left { user, session, .. }| {
                let removed = self.parts.presence.remove(user, *session).await;
                removed.inspect_err(|why| tracing::debug!(?user, %why, "a session is in presence still")).is_ok()
            });
            let removed = futures::future::join_all(removed).await;
            let before = kept.len();
            kept.extend(some.into_iter().zip(removed).filter(|(_, removed)| !removed).map(|(left, _)| left));
            if kept.len() - before == count {
                // Presence is away: the others need not be tried now.
                kept.append(&mut left);
            }
        }
        let (now, presence_ms) = (self.parts.clock.mono(), self.parts.limits.socket.presence_ms);
        kept.retain(|left| now.since(left.at) < presence_ms);
        let forgotten = kept.is_empty();
        self.leaving.lock().append(&mut kept);
        forgotten
    }
}

/// The routers' state: what extractors take the gateway and its parts from.
#[derive(Clone)]
struct Here(Arc<Gateway>);

impl FromRef<Here> for Arc<Gateway> {
    fn from_ref(here: &Here) -> Self {
        here.0.clone()
    }
}

impl FromRef<Here> for Arc<ingest::auth::Auth> {
    fn from_ref(here: &Here) -> Self {
        here.0.parts.auth.clone()
    }
}
