//! Ears: what listens on channels, on a connection of its own. It comes back by itself after every break, and says after each
//! that something may have been missed: pub/sub keeps nothing for whoever is not there.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ::redis::{PushInfo, PushKind, RedisResult, aio::SendError};
use bytes::Bytes;
use schemas::vital;
use tokio::sync::{Notify, mpsc, watch};

use super::{Inner, Link, Redis, bytes, chance};

/// How often a silent connection is asked whether it lives, ms: a break that nobody told is found within this and a
/// command's time.
const PING_MS: u64 = 3_000;

/// Who cannot listen, though Redis is there, may be missing things all the time: it says so again after so long, ms.
const DEAF_MS: u64 = 8_000;

/// What is heard.
pub(crate) enum Heard {
    /// A frame on a channel.
    Frame(String, Bytes),
    /// Frames may have been lost up to here.
    Missed,
}

/// What listens. Dropping it ends the listening.
pub(crate) struct Ears {
    wanted: watch::Sender<BTreeSet<String>>,
    heard_on: watch::Receiver<BTreeSet<String>>,
}

/// Between the connection's own task, which must not wait, and whoever takes what was heard.
struct Funnel {
    out: mpsc::Sender<Heard>,
    wants: watch::Receiver<BTreeSet<String>>,
    missed: AtomicBool,
    gone: AtomicBool,
    event: Notify,
}

impl Funnel {
    fn take(&self, info: PushInfo) -> Result<(), SendError> {
        let mut parts = info.data.into_iter().filter_map(bytes);
        let channel = parts.next().map(|channel| String::from_utf8_lossy(&channel).into_owned());
        match info.kind {
            PushKind::Message | PushKind::SMessage => {
                if let (Some(channel), Some(frame)) = (channel, parts.next())
                    && self.out.try_send(Heard::Frame(channel, frame.into())).is_err()
                {
                    self.tell(&self.missed);
                }
            }
            PushKind::Disconnection => self.tell(&self.gone),
            // Not asked for: the channel's slot went to another server, where nobody listens yet.
            PushKind::SUnsubscribe if channel.is_some_and(|channel| self.wants.borrow().contains(&channel)) => {
                self.tell(&self.gone);
            }
            _ => {}
        }
        Ok(())
    }

    fn tell(&self, what: &AtomicBool) {
        what.store(true, Ordering::Release);
        self.event.notify_one();
    }
}

impl Ears {
    /// Listens on channels as they are wanted; what is heard goes to `out`, and what finds no room there is dropped and
    /// followed by [`Heard::Missed`].
    pub(crate) fn open(redis: &Redis, out: mpsc::Sender<Heard>) -> Self {
        let (wanted, wants) = watch::channel(BTreeSet::new());
        let (hearing, heard_on) = watch::channel(BTreeSet::new());
        tokio::spawn(vital::task("what listens to Redis", run(redis.0.clone(), wants, hearing, out)));
        Self { wanted, heard_on }
    }

    /// Listens on a channel too. Answers when Redis has confirmed it; at the latest after a command's time: then it is
    /// listened to as soon as Redis is back.
    pub(crate) async fn add(&self, channel: &str, within: Duration) {
        self.wanted.send_modify(|wanted| {
            wanted.insert(channel.to_owned());
        });
        let mut heard_on = self.heard_on.clone();
        let confirmed = heard_on.wait_for(|on| on.contains(channel));
        let _ = tokio::time::timeout(within, confirmed).await;
    }

    /// Whether it is listened to now.
    pub(crate) fn hears(&self, channel: &str) -> bool {
        self.heard_on.borrow().contains(channel)
    }

    /// Listens on it no more.
    pub(crate) fn remove(&self, channel: &str) {
        self.wanted.send_if_modified(|wanted| wanted.remove(channel));
    }
}

async fn run(
    inner: Arc<Inner>,
    mut wants: watch::Receiver<BTreeSet<String>>,
    hearing: watch::Sender<BTreeSet<String>>,
    out: mpsc::Sender<Heard>,
) {
    let most = inner.limits.reconnect_ms.max(1);
    let (mut wait, mut told) = (0, inner.clock.mono());
    while wants.has_changed().is_ok() && !out.is_closed() {
        let funnel = Arc::new(Funnel {
            out: out.clone(),
            wants: wants.clone(),
            missed: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            event: Notify::new(),
        });
        let mut heard = false;
        if let Ok(mut link) = connect(&inner, &funnel).await {
            if listen(&inner, &mut link, &funnel, &mut wants, &hearing, &out).await.is_ok() {
                return;
            }
            heard = !hearing.send_replace(BTreeSet::new()).is_empty();
        }
        let deaf = !heard && inner.link.read().is_some() && inner.clock.mono().since(told) >= DEAF_MS;
        if deaf {
            tracing::warn!("Redis is there and cannot be listened to: what was missed is looked for every few seconds");
        }
        // Told at the break and again when it is mended: in between nothing is heard.
        if heard || deaf {
            (wait, told) = (if heard { 0 } else { wait }, inner.clock.mono());
            if out.send(Heard::Missed).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(wait / 2 + chance(wait / 2 + 1))).await;
        wait = (wait * 2).clamp(50, most);
    }
}

async fn connect(inner: &Inner, funnel: &Arc<Funnel>) -> Result<Link, ()> {
    let funnel = funnel.clone();
    let connecting = Link::listen(&inner.target, move |info: PushInfo| funnel.take(info));
    let within = Duration::from_millis(inner.limits.command_ms.saturating_mul(2));
    tokio::time::timeout(within, connecting).await.map_err(drop)?.map_err(drop)
}

/// Listens until the connection breaks (`Err`) or nobody wants to hear any more (`Ok`).
async fn listen(
    inner: &Inner,
    link: &mut Link,
    funnel: &Funnel,
    wants: &mut watch::Receiver<BTreeSet<String>>,
    hearing: &watch::Sender<BTreeSet<String>>,
    out: &mpsc::Sender<Heard>,
) -> Result<(), ()> {
    let within = Duration::from_millis(inner.limits.command_ms);
    loop {
        let wanted = wants.borrow_and_update().clone();
        let on = hearing.borrow().clone();
        let (add, drop): (Vec<_>, Vec<_>) =
            (wanted.difference(&on).cloned().collect(), on.difference(&wanted).cloned().collect());
        let act = async {
            if !add.is_empty() {
                link.subscribe(&add).await?;
            }
            if !drop.is_empty() {
                link.unsubscribe(&drop).await?;
            }
            if add.is_empty() && drop.is_empty() {
                link.probe().await?;
            }
            RedisResult::Ok(())
        };
        tokio::time::timeout(within, act).await.map_err(|_| ())?.map_err(|_| ())?;
        let afresh = on.is_empty() && !wanted.is_empty();
        hearing.send_replace(wanted);
        if afresh || funnel.missed.swap(false, Ordering::AcqRel) {
            out.send(Heard::Missed).await.map_err(|_| ())?;
        }
        tokio::select! {
            changed = wants.changed() => if changed.is_err() { return Ok(()) },
            () = funnel.event.notified() => if funnel.gone.load(Ordering::Acquire) { return Err(()) },
            () = tokio::time::sleep(Duration::from_millis(PING_MS)) => {}
            () = out.closed() => return Ok(()),
        }
    }
}
