//! The keeper: what happens by the clock, once for the node instead of once for each connection. It wakes sessions that are
//! due (one look at a number each), says that the node lives, keeps sessions in presence, and after presence may have lost
//! sight of them compares what they were sent with their inboxes (rule 5).

use std::{sync::Arc, time::Duration};

use schemas::{Inbox, Millis, Position, UserId};
use tokio_util::task::AbortOnDropHandle;

use crate::{Gateway, registry::Handle};

/// Between heartbeats of the node, ms.
const HEARTBEAT_MS: u64 = 15_000;
/// Missing for so long, presence has forgotten the node, ms.
const LAPSED_MS: u64 = 3 * HEARTBEAT_MS;
/// Sessions refreshed, or compared with their inboxes, in one request.
const BATCH: usize = 1_000;
/// After a re-registration all sessions are compared within this time, ms (rule 5).
const RESYNC_MS: u64 = 10_000;

/// Starts the keeper's tasks; dropping them ends them.
pub(crate) fn start(gateway: &Arc<Gateway>) -> Vec<AbortOnDropHandle<()>> {
    let spawn = |task| AbortOnDropHandle::new(tokio::spawn(task));
    let tasks: [std::pin::Pin<Box<dyn Future<Output = ()> + Send>>; 3] = [
        Box::pin(wake(Arc::downgrade(gateway))),
        Box::pin(forget(Arc::downgrade(gateway))),
        Box::pin(stay(Arc::downgrade(gateway))),
    ];
    tasks.into_iter().map(spawn).collect()
}

type Weak = std::sync::Weak<Gateway>;

/// Wakes sessions whose deadline has come.
async fn wake(gateway: Weak) {
    loop {
        let Some(here) = gateway.upgrade() else { return };
        let limits = &here.parts.limits;
        let socket = &limits.socket;
        let shortest = limits.flow.ack_ms.min(socket.heartbeat_ms).min(socket.silent_ms).min(socket.write_ms);
        // A tenth of the shortest deadline is near enough; more often than every 10 ms it would cost and gain nothing.
        let every = Duration::from_millis((shortest / 10).clamp(10, 250));
        let now = here.parts.clock.mono();
        here.registry.wake_due(now);
        metrics::gauge!("esh3ar_sessions").set(here.registry.count() as f64);
        drop(here);
        tokio::time::sleep(every).await;
    }
}

/// Takes ended sessions out of presence.
async fn forget(gateway: Weak) {
    loop {
        let Some(here) = gateway.upgrade() else { return };
        here.forget_left().await;
        // Waits with a strong reference for a moment at a time, so that a dropped gateway is let go.
        let _ = tokio::time::timeout(Duration::from_secs(1), here.left.notified()).await;
    }
}

/// Keeps the node and its sessions in presence.
async fn stay(gateway: Weak) {
    let mut seen: Option<Millis> = None;
    let mut refreshed = Millis::default();
    // Presence may have lost sight of sessions: they are registered again, and what was missed is looked for.
    let mut lapsed = false;
    loop {
        let Some(here) = gateway.upgrade() else { return };
        let now = here.parts.clock.mono();
        let presence_ms = here.parts.limits.socket.presence_ms;
        lapsed |= seen.is_some_and(|seen| now.since(seen) >= LAPSED_MS.min(presence_ms));
        let mut well = here.parts.presence.heartbeat(&here.load()).await.is_ok();
        if well && lapsed {
            well = register_again(&here).await;
            refreshed = now;
        } else if well && now.since(refreshed) >= presence_ms / 3 {
            well = refresh(&here).await;
            refreshed = now;
        }
        lapsed = !well;
        if well {
            seen = Some(now);
        } else {
            tracing::warn!("presence is away: deliveries wait in their inboxes");
        }
        drop(here);
        let every = HEARTBEAT_MS.min(presence_ms / 3).max(10);
        tokio::time::sleep(Duration::from_millis(if well { every } else { every.min(1_000) })).await;
    }
}

fn everyone(gateway: &Gateway) -> Vec<Arc<Handle>> {
    let mut handles = Vec::with_capacity(gateway.registry.count() as usize);
    gateway.registry.each(|handle| handles.push(handle.clone()));
    handles
}

async fn refresh(gateway: &Gateway) -> bool {
    for some in everyone(gateway).chunks(BATCH) {
        let sessions: Vec<_> = some.iter().map(|handle| (handle.me.user.clone(), handle.me.session)).collect();
        if gateway.parts.presence.refresh(&sessions).await.is_err() {
            return false;
        }
    }
    true
}

async fn register_again(gateway: &Arc<Gateway>) -> bool {
    for handle in everyone(gateway) {
        let me = &handle.me;
        let taken = gateway.parts.presence.register(&me.user, &gateway.parts.node, &me.device, me.session).await;
        if taken.is_err() {
            return false;
        }
        if handle.is_gone() {
            let _ = gateway.parts.presence.remove(&me.user, me.session).await;
        }
    }
    let resync = resync(Arc::downgrade(gateway));
    tokio::spawn(resync);
    true
}

/// Tells every session where its inbox ends, spread over the time allowed.
pub(crate) async fn resync(gateway: Weak) {
    let Some(here) = gateway.upgrade() else { return };
    let handles = everyone(&here);
    drop(here);
    let pieces = handles.len().div_ceil(BATCH).max(1) as u64;
    for some in handles.chunks(BATCH) {
        let Some(here) = gateway.upgrade() else { return };
        tell_tails(&here, some).await;
        drop(here);
        tokio::time::sleep(Duration::from_millis(RESYNC_MS / 2 / pieces)).await;
    }
}

async fn tell_tails(gateway: &Gateway, handles: &[Arc<Handle>]) {
    let inboxes_of = |user: &UserId| gateway.inboxes(user);
    let owned: Vec<(&Arc<Handle>, Inbox)> = handles
        .iter()
        .flat_map(|handle| inboxes_of(&handle.me.user).into_iter().map(move |inbox| (handle, inbox)))
        .collect();
    for some in owned.chunks(BATCH) {
        let inboxes: Vec<Inbox> = some.iter().map(|(_, inbox)| inbox.clone()).collect();
        match gateway.parts.history.tails(&inboxes).await {
            Ok(tails) => {
                for ((handle, inbox), tail) in some.iter().zip(tails) {
                    if tail.position > Position::START {
                        handle.tail(inbox.partition, tail.position);
                    }
                }
            }
            Err(why) => tracing::warn!(%why, "inboxes could not be compared with what their sessions were sent"),
        }
    }
}
