//! The keeper: what happens by the clock, once for the node instead of once for each connection. It wakes sessions that are
//! due (one look at a number each), says that the node lives, keeps sessions in presence, and compares what they were sent with
//! their inboxes (rule 5): after presence may have lost sight of them, after hints may have been lost, after the process was
//! held still, and again and again while presence is away.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use schemas::{
    Inbox, Millis, Position,
    port::{Missed, Whose},
    vital,
};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    Gateway,
    registry::{Handle, Order},
};

/// Between heartbeats of the node, ms.
const HEARTBEAT_MS: u64 = 15_000;
/// Missing for so long, presence may have forgotten the node, ms. It does after three heartbeats; one that is sent just before that
/// may come too late.
const LAPSED_MS: u64 = 2 * HEARTBEAT_MS;
/// Sessions refreshed, or compared with their inboxes, in one request.
const BATCH: usize = 1_000;
/// After so many failures in a row it is the history that is away, and no single inbox.
const AWAY: u32 = 12;
/// After a re-registration all sessions are compared within this time, ms (rule 5).
const RESYNC_MS: u64 = 10_000;

/// While presence is away nobody can be told of anything from elsewhere: sessions are compared so often, ms.
const BLIND_MS: u64 = 8_000;
/// Sessions registered at once.
const AT_ONCE: usize = 64;

/// Starts the keeper's tasks; dropping them ends them.
pub(crate) fn start(gateway: &Arc<Gateway>) -> Vec<AbortOnDropHandle<()>> {
    let signs = Arc::new(Signs::default());
    let tasks: [(&'static str, BoxFuture<'static, ()>); 4] = [
        ("the keeper that wakes sessions", Box::pin(wake(Arc::downgrade(gateway), signs.clone()))),
        ("the keeper that forgets sessions", Box::pin(forget(Arc::downgrade(gateway)))),
        ("the keeper of presence", Box::pin(stay(Arc::downgrade(gateway), signs.clone()))),
        ("the keeper that compares inboxes", Box::pin(compare(Arc::downgrade(gateway), signs))),
    ];
    tasks.into_iter().map(|(what, task)| AbortOnDropHandle::new(tokio::spawn(vital::task(what, task)))).collect()
}

/// What the keeper's tasks tell each other.
#[derive(Default)]
struct Signs {
    /// Sessions are to be compared with their inboxes.
    compare: Notify,
    /// Presence is to be asked now whether it is there.
    beat: Notify,
}

type Weak = std::sync::Weak<Gateway>;

/// Wakes sessions whose deadline has come. Who was held still for as long as others wait for a node may have missed what they
/// gave up meanwhile: to compare once too often, on a busy machine, costs one look at each inbox.
async fn wake(gateway: Weak, signs: Arc<Signs>) {
    let mut awake: Option<Millis> = None;
    loop {
        let Some(here) = gateway.upgrade() else { return };
        let limits = &here.parts.limits;
        let socket = &limits.socket;
        let deadlines = [limits.flow.ack_ms, limits.flow.deliver_ms, socket.heartbeat_ms, socket.silent_ms];
        let shortest = deadlines.into_iter().fold(socket.write_ms, u64::min);
        // A tenth of the shortest deadline is near enough; more often than every 10 ms it would cost and gain nothing.
        let every = Duration::from_millis((shortest / 10).clamp(10, 250));
        let held_ms = limits.flow.deliver_ms.max(4 * every.as_millis() as u64);
        let now = here.parts.clock.mono();
        if awake.replace(now).is_some_and(|awake| now.since(awake) >= held_ms) {
            tracing::warn!("the process was held still: sessions are compared with their inboxes");
            signs.compare.notify_one();
        }
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
        let forgotten = here.forget_left().await;
        // Waits with a strong reference for a moment at a time, so that a dropped gateway is let go.
        if forgotten {
            let _ = tokio::time::timeout(Duration::from_secs(1), here.left.notified()).await;
        } else {
            // Presence is away: it is not asked for each that ends.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

/// Keeps the node and its sessions in presence.
async fn stay(gateway: Weak, signs: Arc<Signs>) {
    let mut seen: Option<Millis> = None;
    let mut refreshed = Millis::default();
    let mut compared: Option<Millis> = None;
    // How often presence has said that it may have forgotten sessions.
    let mut lapses = 0;
    // Presence may have lost sight of sessions: they are registered again, and what was missed is looked for.
    let mut lapsed = false;
    loop {
        let Some(here) = gateway.upgrade() else { return };
        let now = here.parts.clock.mono();
        let presence_ms = here.parts.limits.socket.presence_ms;
        lapsed |= seen.is_some_and(|seen| now.since(seen) >= LAPSED_MS.min(presence_ms));
        let beat = async || here.parts.presence.heartbeat(&here.load()).await.is_ok();
        let (mut well, mut beaten) = (beat().await, now);
        if well && lapsed {
            well = register_again(&here).await;
            // That may take long where there are many.
            (refreshed, beaten) = (now, here.parts.clock.mono());
            well = well && beat().await;
            signs.compare.notify_one();
        } else if well && now.since(refreshed) >= presence_ms / 3 {
            well = refresh(&here).await;
            refreshed = now;
        }
        lapsed = !well;
        if well {
            (seen, compared) = (Some(beaten), None);
        } else {
            if compared.is_none() {
                tracing::warn!(
                    "presence is away: deliveries from other nodes wait in their inboxes, which are looked at"
                );
            }
            if compared.is_none_or(|compared| now.since(compared) >= BLIND_MS) {
                compared = Some(now);
                signs.compare.notify_one();
            }
        }
        let presence = here.parts.presence.clone();
        drop(here);
        let every = HEARTBEAT_MS.min(presence_ms / 3).max(10);
        let every = Duration::from_millis(if well { every } else { every.min(1_000) });
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = signs.beat.notified() => {}
            count = presence.lapsed(lapses) => (lapses, lapsed) = (count, true),
        }
    }
}

/// What sessions were sent is to be compared with their inboxes.
struct Due {
    whose: Whose,
    /// The sessions; `None`: all that are here then.
    whom: Option<Vec<Arc<Handle>>>,
}

impl Due {
    /// Those of a comparison that was to be made again are among them.
    fn with(whose: Whose, again: Option<Self>) -> Self {
        let whose = match again {
            Some(again) => whose.and(again.whose),
            None => whose,
        };
        Self { whose, whom: None }
    }
}

/// Compares what sessions were sent with their inboxes, whenever something may have been missed. Those whose inboxes the history
/// could not tell of are compared again, they alone, and less and less often while it tells of none.
async fn compare(gateway: Weak, signs: Arc<Signs>) {
    let mut seen = 0;
    let (mut again, mut again_ms) = (None::<Due>, RESYNC_MS / 4);
    loop {
        let Some(backplane) = gateway.upgrade().map(|here| here.parts.backplane.clone()) else { return };
        let due = tokio::select! {
            Missed { count, whose } = backplane.missed(seen) => {
                seen = count;
                if whose == Whose::All {
                    // What lost hints may have lost presence too.
                    signs.beat.notify_one();
                }
                Due::with(whose, again.take())
            }
            () = signs.compare.notified() => Due::with(Whose::All, again.take()),
            () = tokio::time::sleep(Duration::from_millis(again_ms)), if again.is_some() => match again.take() {
                Some(due) => due,
                None => continue,
            },
        };
        drop(backplane);
        // Nodes do not come all at once.
        let jitter = (uuid::Uuid::new_v4().as_u128() % u128::from(RESYNC_MS / 10)) as u64;
        tokio::time::sleep(Duration::from_millis(jitter)).await;
        let Due { whose, whom } = due;
        let Some(handles) = gateway.upgrade().map(|here| whom.unwrap_or_else(|| of(&here, &whose))) else { return };
        let count = handles.len();
        let untold = resync(gateway.clone(), handles, &whose).await;
        let none = count > 0 && untold.len() == count;
        again_ms = if none { (again_ms * 2).min(4 * RESYNC_MS) } else { RESYNC_MS / 4 };
        again = (!untold.is_empty()).then_some(Due { whose, whom: Some(untold) });
    }
}

/// Sessions with one of these inboxes.
fn of(gateway: &Gateway, whose: &Whose) -> Vec<Arc<Handle>> {
    let mut handles = everyone(gateway);
    if *whose != Whose::All {
        handles.retain(|handle| inboxes(gateway, handle, whose).next().is_some());
    }
    handles
}

/// Those of a session's inboxes that are among these.
fn inboxes(gateway: &Gateway, handle: &Handle, whose: &Whose) -> impl Iterator<Item = Inbox> {
    gateway.inboxes(&handle.me.user).into_iter().filter(|inbox| whose.has(inbox.partition))
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

/// Registers every session again, under the number it has. Of two that lived side by side while presence was away the newer
/// stays, and the other is told.
async fn register_again(gateway: &Arc<Gateway>) -> bool {
    for some in everyone(gateway).chunks(AT_ONCE) {
        let registered = futures::future::join_all(some.iter().map(|handle| register(gateway, handle))).await;
        if registered.contains(&false) {
            return false;
        }
    }
    true
}

async fn register(gateway: &Gateway, handle: &Handle) -> bool {
    let (me, parts) = (&handle.me, &gateway.parts);
    let Ok(taken) = parts.presence.register(&me.user, &parts.node, &me.device, me.session).await else { return false };
    if handle.is_gone() {
        gateway.has_left(me);
        return true;
    }
    match taken.replaced {
        Some(place) if place.session == me.session => handle.order(Order::Supersede),
        Some(place) => {
            if let Err(why) = parts.backplane.supersede(&place.node, &me.user, place.session).await {
                tracing::debug!(user = ?me.user, %why, "the device's older session was not told");
            }
        }
        None => {}
    }
    true
}

/// Tells sessions where their inboxes end, spread over the time allowed; answers those that the history did not tell of. One
/// inbox that cannot be read keeps no others back: pieces become smaller until it is alone, and larger again.
async fn resync(gateway: Weak, handles: Vec<Arc<Handle>>, whose: &Whose) -> Vec<Arc<Handle>> {
    tracing::debug!(sessions = handles.len(), "sessions are compared with their inboxes");
    let (mut rest, mut untold) = (&handles[..], Vec::new());
    let (mut piece, mut in_a_row) = (BATCH, 0);
    while !rest.is_empty() {
        let Some(here) = gateway.upgrade() else { return Vec::new() };
        let (some, others) = rest.split_at(piece.min(rest.len()));
        if tell_tails(&here, some, whose).await {
            drop(here);
            (rest, piece, in_a_row) = (others, (piece * 2).min(BATCH), 0);
            let part_ms = RESYNC_MS / 2 * some.len() as u64 / handles.len() as u64;
            tokio::time::sleep(Duration::from_millis(part_ms)).await;
            continue;
        }
        in_a_row += 1;
        if in_a_row >= AWAY {
            untold.extend_from_slice(rest);
            break;
        }
        if let [one] = some {
            untold.push(one.clone());
            rest = others;
        }
        piece = (some.len() / 4).max(1);
    }
    untold
}

/// Says whether the history told of all of them.
async fn tell_tails(gateway: &Gateway, handles: &[Arc<Handle>], whose: &Whose) -> bool {
    let owned: Vec<(&Arc<Handle>, Inbox)> =
        handles.iter().flat_map(|handle| inboxes(gateway, handle, whose).map(move |inbox| (handle, inbox))).collect();
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
            Err(why) => {
                let sessions = handles.len();
                tracing::warn!(%why, sessions, "inboxes could not be compared with what was sent: they are again");
                return false;
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Parts, testing::House};

    /// Whoever asks for the time panics.
    struct Broken;

    impl schemas::Clock for Broken {
        fn wall(&self) -> schemas::Timestamp {
            panic!("as asked")
        }
        fn mono(&self) -> Millis {
            panic!("as asked")
        }
    }

    #[tokio::test]
    async fn a_keeper_that_panics_is_told_of() {
        let house = House::open(schemas::Limits::default()).await;
        let gateway = Gateway::reads(Parts { clock: Arc::new(Broken), ..house.gateway.parts.clone() });
        let _keeping = start(&gateway);
        let lost = tokio::time::timeout(Duration::from_secs(10), vital::lost()).await;
        assert!(lost.is_ok_and(|what| what.contains("keeper")));
    }
}
