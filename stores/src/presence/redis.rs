//! Presence in Redis: one value a user, with a line for each device, that lapses by itself; one table of the nodes with when
//! each was last heard of. Redis's own clock decides what has lapsed, so that nodes whose clocks differ agree.
//!
//! What this process registered itself it also knows by heart: while Redis is away its own sessions are found and new ones
//! are taken, and when Redis is back [`Presence::lapsed`] says that everyone has to be registered again. A session keeps its
//! number then, so that of two that lived side by side meanwhile the newer stays.

mod scripts;
mod table;

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use schemas::{
    DeviceId, NodeId, SessionId, UserId,
    port::{NodeLoad, Place, PortError, PortResult, Presence, Taken},
};
use tokio::sync::watch;

use self::{
    scripts::Scripts,
    table::{Asked, Line, Nodes, Told},
};
use super::LocalPresence;
use crate::redis::{Redis, odd};

/// Users of one request: a batch is smaller, and a longer list is cut so that others get their turn.
const USERS: usize = 1_000;

/// Presence for many processes.
pub struct RedisPresence {
    redis: Redis,
    scripts: Scripts,
    presence_ms: u64,
    node_ms: u64,
    /// What was registered through this process.
    own: LocalPresence,
    nodes: Mutex<Nodes>,
    /// A session is registered here and not in Redis, which answers.
    owes: AtomicBool,
    /// Counts how often sessions may have been forgotten, beside the times when Redis was away.
    forgotten: watch::Sender<u64>,
}

impl RedisPresence {
    /// Sessions hold for `presence_ms` without being refreshed, nodes for `node_ms` after a heartbeat.
    pub fn new(redis: Redis, presence_ms: u64, node_ms: u64) -> Self {
        let clock = redis.clock().clone();
        Self {
            scripts: Scripts::new(),
            own: LocalPresence::new(clock, presence_ms, node_ms),
            nodes: Mutex::default(),
            owes: AtomicBool::new(false),
            forgotten: watch::Sender::new(0),
            redis,
            presence_ms,
            node_ms,
        }
    }

    fn key(&self, user: &UserId) -> String {
        self.redis.name(&format!("at:{user}"))
    }

    /// How long an entry of the nodes' table is kept after the node was last heard of: longer than any session of it.
    fn kept_ms(&self) -> u64 {
        self.presence_ms.max(self.node_ms).saturating_mul(2)
    }

    /// Asks for the nodes' table, and keeps what is told. Says whether the node that asked was in it.
    async fn learn(&self, script: &::redis::Script, common: &[String]) -> PortResult<bool> {
        let (key, from) = ((self.redis.name("nodes"), Vec::new()), self.redis.clock().mono());
        let told = Told::read(self.redis.each::<Vec<String>>(script, common, &[key]).await?)?;
        let known = told.known;
        let (was_held, has_own) = {
            let mut nodes = self.nodes.lock();
            (nodes.learn(told, Asked { from, to: self.redis.clock().mono() }), nodes.has_own())
        };
        if was_held && has_own {
            tracing::warn!("this machine was held still, or Redis's clock set forward: sessions are registered again");
            self.forgotten.send_modify(|n| *n += 1);
        }
        Ok(known)
    }

    /// Reads the nodes' table, if what is known of it is older than may be.
    async fn keep_nodes(&self) -> PortResult<()> {
        let fresh = self.nodes.lock().is_fresh(self.redis.clock().mono(), self.redis.limits().nodes_ms);
        if !fresh {
            self.learn(&self.scripts.nodes, &[]).await?;
        }
        Ok(())
    }

    async fn lines(&self, users: &[UserId]) -> PortResult<Vec<Option<String>>> {
        let mut all = Vec::with_capacity(users.len());
        for some in users.chunks(USERS) {
            let mut command = ::redis::cmd("MGET");
            for user in some {
                command.arg(self.key(user));
            }
            let values: Vec<Option<String>> = self.redis.ask(&command).await?;
            if values.len() != some.len() {
                return Err(odd("an answer for other users"));
            }
            all.extend(values);
        }
        Ok(all)
    }

    /// A session's number while Redis does not say: later than every one that is known here.
    fn number(&self, user: &UserId, device: &DeviceId) -> u64 {
        let now = self.redis.clock().wall().0.unsigned_abs().saturating_mul(1_000);
        self.own.held(user, device).map_or(now, |place| now.max(place.number + 1))
    }
}

#[async_trait]
impl Presence for RedisPresence {
    async fn register(&self, user: &UserId, node: &NodeId, device: &DeviceId, session: SessionId) -> PortResult<Taken> {
        let held = self.own.held(user, device);
        let again = held.as_ref().filter(|place| place.session == session).map_or(0, |place| place.number);
        let common = [device.to_string(), node.to_string(), session.to_string(), again.to_string()];
        let common: Vec<String> = common.into_iter().chain([self.presence_ms.to_string()]).collect();
        let asked =
            self.redis.each::<Vec<String>>(&self.scripts.register, &common, &[(self.key(user), Vec::new())]).await;
        let taken = match asked {
            Ok(answer) => {
                let taken = table::taken(answer.into_iter().flatten(), device)?;
                if taken.replaced.as_ref().is_some_and(|place| place.session == session) {
                    return Ok(taken);
                }
                taken
            }
            Err(why) => {
                tracing::debug!(?user, %why, "a session is registered on its node alone");
                self.owes.store(true, Ordering::Release);
                let number = if again > 0 { again } else { self.number(user, device) };
                Taken { number, replaced: held.filter(|place| place.session != session) }
            }
        };
        let place = Place { node: node.clone(), device: device.clone(), session, number: taken.number };
        self.own.keep(user, place);
        Ok(taken)
    }

    async fn refresh(&self, sessions: &[(UserId, SessionId)]) -> PortResult<()> {
        self.own.refresh(sessions).await?;
        let keys: Vec<_> = sessions.iter().map(|(user, session)| (self.key(user), vec![session.to_string()])).collect();
        let found = self.redis.each::<u8>(&self.scripts.refresh, &[self.presence_ms.to_string()], &keys).await?;
        let mut lost = false;
        for ((user, session), found) in sessions.iter().zip(found) {
            // Known here and not there: Redis has lost it, or a newer one is elsewhere and this node was not told.
            lost |= found == 0 && self.own.is_held(user, *session);
        }
        if lost {
            self.forgotten.send_modify(|n| *n += 1);
        }
        Ok(())
    }

    async fn remove(&self, user: &UserId, session: SessionId) -> PortResult<()> {
        self.own.remove(user, session).await?;
        let key = (self.key(user), Vec::new());
        self.redis.each::<u8>(&self.scripts.remove, &[session.to_string()], &[key]).await.map(drop)
    }

    async fn locate(&self, users: &[UserId]) -> PortResult<Vec<Vec<Place>>> {
        if users.is_empty() {
            return self.redis.check().await.map(|()| Vec::new());
        }
        let own = self.own.locate(users).await?;
        // Both at once: the second is needed once a second.
        let (lines, nodes) = futures::join!(self.lines(users), self.keep_nodes());
        let lines = match (lines, nodes) {
            (Ok(lines), _) => lines,
            (Err(why), _) => {
                tracing::debug!(%why, users = users.len(), "users are looked for on this node alone");
                return Ok(own);
            }
        };
        let nodes = self.nodes.lock();
        let now = nodes.now(self.redis.clock().mono());
        let living = |line: &Line<'_>| {
            let heard = line.until.saturating_sub(self.presence_ms);
            line.until > now && nodes.lives(line.node, heard, now, self.node_ms)
        };
        let mut found = Vec::with_capacity(users.len());
        for (text, own) in lines.into_iter().zip(own) {
            let text = text.unwrap_or_default();
            let mut places: Vec<Place> = table::lines(&text).filter(living).filter_map(|line| line.place()).collect();
            for place in own {
                match places.iter_mut().find(|other| other.device == place.device) {
                    None => places.push(place),
                    Some(other) if other.number < place.number => *other = place,
                    Some(_) => {}
                }
            }
            found.push(places);
        }
        Ok(found)
    }

    async fn heartbeat(&self, load: &NodeLoad) -> PortResult<()> {
        self.own.heartbeat(load).await?;
        let NodeLoad { node, address, sessions, room } = load;
        let value = format!("{sessions} {room} {address}");
        let common = [node.to_string(), value, self.kept_ms().to_string()];
        let known = self.learn(&self.scripts.heartbeat, &common).await?;
        let before = self.nodes.lock().beats(node);
        // The node's own entry has gone: Redis was emptied, or this node was silent for long.
        if (before && !known) | self.owes.swap(false, Ordering::AcqRel) {
            self.forgotten.send_modify(|n| *n += 1);
        }
        Ok(())
    }

    async fn nodes(&self) -> PortResult<Vec<NodeLoad>> {
        match self.learn(&self.scripts.nodes, &[]).await {
            Ok(_) => {}
            Err(PortError::Rejected(why)) => return Err(PortError::Rejected(why)),
            // Those of this process, which is what can be known.
            Err(_) => return self.own.nodes().await,
        }
        let nodes = self.nodes.lock();
        Ok(nodes.living(nodes.now(self.redis.clock().mono()), self.node_ms))
    }

    async fn lapsed(&self, seen: u64) -> u64 {
        let (mut returns, mut forgotten) = (self.redis.returns(), self.forgotten.subscribe());
        loop {
            let count = *returns.borrow_and_update() + *forgotten.borrow_and_update();
            if count > seen {
                return count;
            }
            // Both live as long as this does.
            let _ = tokio::select! { changed = returns.changed() => changed, changed = forgotten.changed() => changed };
        }
    }
}
