//! The registry: who is connected to this node. It takes what the backplane brings and puts it into the mailboxes of the
//! user's sessions, without waiting: a mailbox that is full forgets its hints and the session reads history instead.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use futures::task::AtomicWaker;
use parking_lot::{Mutex, RwLock};
use schemas::{
    ConversationId, MessageId, Millis, Partition, Position, SessionId, UserId,
    limits::SocketLimits,
    port::{Hint, Landing, Node, Signal},
    view::StatusChange,
};

use crate::{delivery::Delivery, session::Me};

/// What the node tells a session to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// A newer session of the device has taken over.
    Supersede,
    /// The node goes away; come back within so many milliseconds.
    Drain(u64),
}

/// What waits for a session. Each part has a bound; what gives way is said where it is put in.
#[derive(Debug, Default)]
pub(crate) struct Mail {
    pub(crate) hints: VecDeque<Arc<Delivery>>,
    /// Hints were left out.
    pub(crate) lost: bool,
    pub(crate) notes: Vec<StatusChange>,
    pub(crate) read_elsewhere: Vec<MessageId>,
    pub(crate) signals: Vec<Signal>,
    pub(crate) tails: Vec<(Partition, Position)>,
    pub(crate) order: Option<Order>,
    /// The session is over: nothing is put in any more.
    gone: bool,
}

/// A session as the node reaches it: its mailbox, its waker and when it wants to be woken.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) me: Arc<Me>,
    mail: Mutex<Mail>,
    pub(crate) waker: AtomicWaker,
    /// Monotonic ms of its next deadline: the keeper looks at this instead of each session having a timer.
    due: AtomicU64,
}

impl Handle {
    pub(crate) fn new(me: Arc<Me>) -> Self {
        Self { me, mail: Mutex::default(), waker: AtomicWaker::new(), due: AtomicU64::new(u64::MAX) }
    }

    /// Takes everything that waits.
    pub(crate) fn take(&self) -> Option<Mail> {
        let mut mail = self.mail.lock();
        let any = !mail.hints.is_empty()
            || mail.lost
            || mail.order.is_some()
            || !mail.notes.is_empty()
            || !mail.read_elsewhere.is_empty()
            || !mail.signals.is_empty()
            || !mail.tails.is_empty();
        let gone = mail.gone;
        any.then(|| std::mem::replace(&mut *mail, Mail { gone, ..Mail::default() }))
    }

    pub(crate) fn wake_at(&self, due: Millis) {
        self.due.store(due.0, Ordering::Release);
    }

    /// Wakes the session if its time has come; once, until it says a new time.
    pub(crate) fn wake_if_due(&self, now: Millis) {
        if self.due.load(Ordering::Acquire) <= now.0 {
            self.due.store(u64::MAX, Ordering::Release);
            self.waker.wake();
        }
    }

    fn put(&self, put: impl FnOnce(&mut Mail)) -> bool {
        let mut mail = self.mail.lock();
        if !mail.gone {
            put(&mut mail);
        }
        !mail.gone
    }

    pub(crate) fn order(&self, order: Order) {
        if self.put(|mail| mail.order = Some(order)) {
            self.waker.wake();
        }
    }

    pub(crate) fn tail(&self, partition: Partition, tail: Position) {
        if self.put(|mail| mail.tails.push((partition, tail))) {
            self.waker.wake();
        }
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.mail.lock().gone
    }

    pub(crate) fn is_superseded(&self) -> bool {
        let mail = self.mail.lock();
        mail.gone || mail.order == Some(Order::Supersede)
    }
}

/// Why a session finds no room here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// The node holds as many as it can.
    Node,
    /// The user has as many as one person may.
    User,
}

const SHARDS: usize = 64;

type Shard = RwLock<HashMap<UserId, Vec<Arc<Handle>>>>;

/// What is rung when a conversation has changed.
struct Bell(Option<Arc<ingest::Door>>);

impl std::fmt::Debug for Bell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Bell").field(&self.0.is_some()).finish()
    }
}

/// The sessions of this node, by user.
#[derive(Debug)]
pub(crate) struct Registry {
    shards: Box<[Shard]>,
    hasher: RandomState,
    count: AtomicU64,
    /// Sessions that are over and whose sockets wait for the client's own close: they have deadlines still.
    closing: Mutex<Vec<Weak<Handle>>>,
    limits: SocketLimits,
    /// Whoever waits for a change of a conversation is told here.
    door: Bell,
}

impl Registry {
    pub(crate) fn new(limits: &SocketLimits, door: Option<Arc<ingest::Door>>) -> Self {
        let shards = (0..SHARDS).map(|_| Shard::default()).collect();
        Self {
            shards,
            hasher: RandomState::new(),
            count: AtomicU64::new(0),
            closing: Mutex::default(),
            limits: limits.clone(),
            door: Bell(door),
        }
    }

    fn changed(&self, conversation: ConversationId) {
        if let Some(door) = &self.door.0 {
            door.changed(conversation);
        }
    }

    fn shard(&self, user: &UserId) -> &Shard {
        &self.shards[self.hasher.hash_one(user) as usize % SHARDS]
    }

    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Adds a session. Answers the one of the same device that was here before: it is told to go.
    pub(crate) fn insert(&self, handle: &Arc<Handle>) -> Result<Option<Arc<Handle>>, NoRoom> {
        let room = self.limits.sessions as u64;
        let took = self.count.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < room).then_some(n + 1));
        took.map_err(|_| NoRoom::Node)?;
        let mut shard = self.shard(&handle.me.user).write();
        let here = shard.entry(handle.me.user.clone()).or_default();
        let older = here.iter().find(|other| other.me.device == handle.me.device && !other.is_superseded()).cloned();
        if older.is_none() && here.len() >= self.limits.sessions_per_user {
            self.count.fetch_sub(1, Ordering::AcqRel);
            return Err(NoRoom::User);
        }
        here.push(handle.clone());
        Ok(older)
    }

    /// Takes a session off: hints for it are answered `Absent` from now on.
    pub(crate) fn remove(&self, handle: &Arc<Handle>) {
        self.closing.lock().push(Arc::downgrade(handle));
        *handle.mail.lock() = Mail { gone: true, ..Mail::default() };
        let mut shard = self.shard(&handle.me.user).write();
        let Some(here) = shard.get_mut(&handle.me.user) else { return };
        let before = here.len();
        here.retain(|other| !Arc::ptr_eq(other, handle));
        self.count.fetch_sub((before - here.len()) as u64, Ordering::AcqRel);
        if here.is_empty() {
            shard.remove(&handle.me.user);
        }
    }

    /// Wakes every session whose deadline has come, also those that are closing.
    pub(crate) fn wake_due(&self, now: Millis) {
        self.each(|handle| handle.wake_if_due(now));
        self.closing.lock().retain(|handle| {
            let handle = handle.upgrade();
            handle.inspect(|handle| handle.wake_if_due(now)).is_some()
        });
    }

    /// Looks at every session, shard by shard.
    pub(crate) fn each(&self, mut look: impl FnMut(&Arc<Handle>)) {
        for shard in &self.shards {
            shard.read().values().flatten().for_each(&mut look);
        }
    }

    /// A user's other sessions are told what one of them read.
    pub(crate) fn read_elsewhere(&self, me: &Me, ids: &[MessageId]) {
        let shard = self.shard(&me.user).read();
        for other in shard.get(&me.user).into_iter().flatten().filter(|other| other.me.session != me.session) {
            // A convenience for the eye: dropped where many wait.
            let room = self.limits.ids_per_frame;
            if other.put(|mail| {
                let left = room.saturating_sub(mail.read_elsewhere.len());
                mail.read_elsewhere.extend(ids.iter().take(left));
            }) {
                other.waker.wake();
            }
        }
    }

    fn offer(&self, hint: Hint, woken: &mut Vec<Arc<Handle>>) -> Landing {
        let shard = self.shard(&hint.inbox.user).read();
        let Some(here) = shard.get(&hint.inbox.user) else { return Landing::Absent };
        let delivery = Arc::new(Delivery::new(hint));
        let mut landing = Landing::Absent;
        for handle in here {
            let most = self.limits.mailbox;
            let took = handle.put(|mail| {
                if mail.hints.len() >= most {
                    mail.hints.clear();
                    mail.lost = true;
                } else if !mail.lost {
                    mail.hints.push_back(delivery.clone());
                }
            });
            if took {
                landing = Landing::Taken;
                if woken.last().is_none_or(|last| !Arc::ptr_eq(last, handle)) {
                    woken.push(handle.clone());
                }
            }
        }
        landing
    }

    fn by_session(&self, user: &UserId, session: SessionId) -> Option<Arc<Handle>> {
        let shard = self.shard(user).read();
        shard.get(user)?.iter().find(|handle| handle.me.session == session).cloned()
    }

    /// How many sessions a user's device has here: for tests.
    #[cfg(test)]
    pub(crate) fn of_device(&self, user: &UserId, device: &schemas::DeviceId) -> usize {
        let shard = self.shard(user).read();
        shard.get(user).into_iter().flatten().filter(|handle| handle.me.device == *device).count()
    }
}

/// Puts a signal to those that wait: of what says the same the latest is enough. Without room typing gives way, and where
/// nobody types what comes is dropped.
fn put_signal(waiting: &mut Vec<Signal>, signal: Signal, most: usize) {
    let same = |there: &Signal| match (there, &signal) {
        (Signal::Typing { conversation: a, by: b }, Signal::Typing { conversation, by }) => {
            a == conversation && b == by
        }
        (Signal::Read { conversation: a, by: b, .. }, Signal::Read { conversation, by, .. }) => {
            a == conversation && b == by
        }
        (Signal::Presence { user: a, .. }, Signal::Presence { user, .. }) => a == user,
        _ => false,
    };
    if let Some(i) = waiting.iter().position(same) {
        let older = waiting.remove(i);
        match (&older, &signal) {
            // A mark only grows, whatever order the news of it comes in.
            (Signal::Read { up_to: there, .. }, Signal::Read { up_to, .. }) if there > up_to => waiting.push(older),
            _ => waiting.push(signal),
        }
        return;
    }
    if waiting.len() >= most {
        metrics::counter!("esh3ar_signals_dropped_total").increment(1);
        let typing = |there: &Signal| matches!(there, Signal::Typing { .. });
        match waiting.iter().position(typing) {
            Some(i) if !typing(&signal) => drop(waiting.remove(i)),
            _ => return,
        }
    }
    waiting.push(signal);
}

#[async_trait]
impl Node for Registry {
    async fn deliver(&self, hints: Vec<Hint>) -> Vec<Landing> {
        let mut woken = Vec::new();
        let landings = hints.into_iter().map(|hint| self.offer(hint, &mut woken)).collect();
        // Woken when all are in, so that what came together goes out in one frame.
        woken.iter().for_each(|handle| handle.waker.wake());
        landings
    }

    async fn notify(&self, notes: Vec<(UserId, StatusChange)>) {
        for (user, note) in notes {
            let shard = self.shard(&user).read();
            for handle in shard.get(&user).into_iter().flatten() {
                let most = self.limits.notes;
                let took = handle.put(|mail| match mail.notes.iter().position(|waiting| waiting.id == note.id) {
                    // Of one message the latest is enough; past the bound notes are dropped (rule 16).
                    Some(i) => mail.notes[i] = note.clone(),
                    None if mail.notes.len() < most => mail.notes.push(note.clone()),
                    None => metrics::counter!("esh3ar_status_notes_dropped_total").increment(1),
                });
                if took {
                    handle.waker.wake();
                }
            }
        }
    }

    async fn signal(&self, signals: Vec<(UserId, Signal)>) {
        for (user, signal) in signals {
            if let Signal::Changed { conversation, .. } = &signal {
                self.changed(*conversation);
                continue;
            }
            let shard = self.shard(&user).read();
            for handle in shard.get(&user).into_iter().flatten() {
                let most = self.limits.signals;
                if handle.put(|mail| put_signal(&mut mail.signals, signal.clone(), most)) {
                    handle.waker.wake();
                }
            }
        }
    }

    async fn supersede(&self, user: &UserId, session: SessionId) {
        if let Some(handle) = self.by_session(user, session) {
            handle.order(Order::Supersede);
        }
    }
}
