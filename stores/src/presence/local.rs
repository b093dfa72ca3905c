//! Presence in process: users spread over shards, so that batches of deliveries and registrations rarely meet at a lock.
//! What lapsed is not answered; it is forgotten when its user, or a heartbeat, next passes its shard.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};
use schemas::{
    Clock, DeviceId, Millis, NodeId, SessionId, UserId,
    port::{NodeLoad, Place, PortResult, Presence, Taken},
};
use xxhash_rust::xxh3::Xxh3DefaultBuilder;

/// Enough that two cores seldom wait for the same one.
const SHARDS: usize = 64;

struct Held {
    place: Place,
    until: Millis,
}

type Shard = Mutex<HashMap<UserId, Vec<Held>, Xxh3DefaultBuilder>>;

/// Presence for a process that is the whole installation.
pub struct LocalPresence {
    shards: Vec<Shard>,
    // When each node was last heard of.
    nodes: RwLock<HashMap<NodeId, (NodeLoad, Millis)>>,
    clock: Arc<dyn Clock>,
    presence_ms: u64,
    node_ms: u64,
    number: AtomicU64,
    sweep: AtomicUsize,
    hasher: Xxh3DefaultBuilder,
}

impl LocalPresence {
    /// Sessions hold for `presence_ms` without being refreshed, nodes for `node_ms` after a heartbeat.
    pub fn new(clock: Arc<dyn Clock>, presence_ms: u64, node_ms: u64) -> Self {
        // Numbers go on where an earlier process of this installation stopped: it gave fewer than a thousand a millisecond.
        let number = clock.wall().0.unsigned_abs().saturating_mul(1_000);
        Self {
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            nodes: RwLock::default(),
            clock,
            presence_ms,
            node_ms,
            number: AtomicU64::new(number),
            sweep: AtomicUsize::new(0),
            hasher: Xxh3DefaultBuilder::new(),
        }
    }

    fn shard(&self, user: &UserId) -> &Shard {
        use std::hash::BuildHasher;
        &self.shards[self.hasher.hash_one(user) as usize % SHARDS]
    }

    /// Keeps a session as it was registered elsewhere; an older one of the same device gives way.
    #[cfg(feature = "redis")]
    pub(crate) fn keep(&self, user: &UserId, place: Place) {
        let now = self.clock.mono();
        let mut shard = self.shard(user).lock();
        let held = shard.entry(user.clone()).or_default();
        held.retain(|held| held.until > now && held.place.device != place.device);
        held.push(Held { place, until: now.plus(self.presence_ms) });
    }

    /// The session of a device that is held here.
    #[cfg(feature = "redis")]
    pub(crate) fn held(&self, user: &UserId, device: &DeviceId) -> Option<Place> {
        let now = self.clock.mono();
        let shard = self.shard(user).lock();
        let held = shard.get(user)?.iter().find(|held| held.until > now && held.place.device == *device);
        held.map(|held| held.place.clone())
    }

    /// Whether a session is held here.
    #[cfg(feature = "redis")]
    pub(crate) fn is_held(&self, user: &UserId, session: SessionId) -> bool {
        let now = self.clock.mono();
        let shard = self.shard(user).lock();
        shard.get(user).is_some_and(|held| held.iter().any(|h| h.until > now && h.place.session == session))
    }

    /// Whether a node counts as living: one that never said so has only just begun.
    fn lives(&self, node: &NodeId, now: Millis) -> bool {
        self.nodes.read().get(node).is_none_or(|(_, heard)| now.since(*heard) < self.node_ms)
    }
}

#[async_trait]
impl Presence for LocalPresence {
    async fn register(&self, user: &UserId, node: &NodeId, device: &DeviceId, session: SessionId) -> PortResult<Taken> {
        let now = self.clock.mono();
        let mut shard = self.shard(user).lock();
        let held = shard.entry(user.clone()).or_default();
        held.retain(|held| held.until > now);
        // Under the shard's lock, so that a device's numbers rise in the order its sessions are kept.
        let number = self.number.fetch_add(1, Ordering::Relaxed) + 1;
        let place = Place { node: node.clone(), device: device.clone(), session, number };
        let fresh = Held { place, until: now.plus(self.presence_ms) };
        let replaced = match held.iter().position(|held| held.place.device == *device) {
            Some(at) => Some(std::mem::replace(&mut held[at], fresh).place).filter(|old| old.session != session),
            None => {
                held.push(fresh);
                None
            }
        };
        Ok(Taken { number, replaced })
    }

    async fn refresh(&self, sessions: &[(UserId, SessionId)]) -> PortResult<()> {
        let now = self.clock.mono();
        for (user, session) in sessions {
            let mut shard = self.shard(user).lock();
            let held = shard.get_mut(user).and_then(|held| held.iter_mut().find(|h| h.place.session == *session));
            // One that lapsed stays so: its node finds it gone and registers again.
            if let Some(held) = held.filter(|held| held.until > now) {
                held.until = now.plus(self.presence_ms);
            }
        }
        Ok(())
    }

    async fn remove(&self, user: &UserId, session: SessionId) -> PortResult<()> {
        let mut shard = self.shard(user).lock();
        if let Some(held) = shard.get_mut(user) {
            held.retain(|held| held.place.session != session);
            if held.is_empty() {
                shard.remove(user);
            }
        }
        Ok(())
    }

    async fn locate(&self, users: &[UserId]) -> PortResult<Vec<Vec<Place>>> {
        let now = self.clock.mono();
        let mut found: Vec<Vec<Place>> = Vec::with_capacity(users.len());
        for user in users {
            let shard = self.shard(user).lock();
            let held = shard.get(user).map(Vec::as_slice).unwrap_or_default();
            found.push(held.iter().filter(|held| held.until > now).map(|held| held.place.clone()).collect());
        }
        for places in &mut found {
            places.retain(|place| self.lives(&place.node, now));
        }
        Ok(found)
    }

    async fn heartbeat(&self, load: &NodeLoad) -> PortResult<()> {
        let now = self.clock.mono();
        {
            let mut nodes = self.nodes.write();
            nodes.insert(load.node.clone(), (load.clone(), now));
        }
        // Heartbeats come as long as anyone is here: each clears one shard of those who left without a word.
        let at = self.sweep.fetch_add(1, Ordering::Relaxed) % SHARDS;
        self.shards[at].lock().retain(|_, held| {
            held.retain(|held| held.until > now);
            !held.is_empty()
        });
        Ok(())
    }

    async fn nodes(&self) -> PortResult<Vec<NodeLoad>> {
        let now = self.clock.mono();
        let nodes = self.nodes.read();
        let living = nodes.values().filter(|(_, heard)| now.since(*heard) < self.node_ms);
        let mut living: Vec<_> = living.map(|(load, _)| load.clone()).collect();
        living.sort_by(|a, b| a.node.cmp(&b.node));
        Ok(living)
    }
}
