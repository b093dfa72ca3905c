//! Dispatch: what the pipeline decided is done here, to nodes, to senders and to administrators. Every act has a deadline
//! and a breaker; none waits in a queue of its own: what cannot be done now is answered so (delivery) or dropped and counted
//! (notes). Handing over to a node happens within the first poll of a delivery, so the order of first polls is its order.

use std::{
    collections::{HashMap, HashSet},
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use async_trait::async_trait;
use futures::future::{join_all, poll_fn};
use schemas::{
    Clock, Limits, NodeId, Partition, UserId,
    port::{Backplane, Dead, Dispatch, Landing, Outcome, PortResult, Presence, Routed, Signal},
    view::StatusChange,
};
use tokio::sync::Semaphore;

use crate::{
    breaker::Rule,
    nodes::Nodes,
    notice::{Bell, Notice},
    owed::Owed,
    parcel::{Parcel, fold, parcels},
};

/// What it is made of.
pub struct Parts {
    /// Where users are.
    pub presence: Arc<dyn Presence>,
    /// The way to the nodes.
    pub backplane: Arc<dyn Backplane>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The bounds.
    pub limits: Arc<Limits>,
    /// Whom to tell of dead letters.
    pub notice: Notice,
}

/// What acts.
pub struct Sinks {
    presence: Arc<dyn Presence>,
    backplane: Arc<dyn Backplane>,
    clock: Arc<dyn Clock>,
    limits: Arc<Limits>,
    /// A semaphore and not a queue: notes that find no room are dropped (rule 16).
    notifying: Semaphore,
    /// The same for signals, which are many and must not take the place of notes.
    signalling: Semaphore,
    /// And for typing and presence, which are dropped first.
    chattering: Semaphore,
    nodes: Nodes,
    owed: Arc<Owed>,
    bells: Vec<Arc<Bell>>,
}

impl Sinks {
    /// Puts it together. Does nothing yet, and needs no runtime.
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts { presence, backplane, clock, limits, notice } = parts;
        let rule = Rule::from(&limits.sink).open_for(limits.sink.node_open_ms, limits.flow.deliver_ms);
        let nodes = Nodes::new(rule, limits.sink.breakers);
        let notifying = Semaphore::new(limits.sink.notify_calls);
        let signalling = Semaphore::new(limits.sink.notify_calls);
        let chattering = Semaphore::new(limits.sink.notify_calls);
        let bells = Bell::of(notice, &clock, &limits.sink);
        let owed = Owed::new(backplane.clone());
        Arc::new(Self { presence, backplane, clock, limits, notifying, signalling, chattering, nodes, owed, bells })
    }

    /// Hands a parcel to its node. One landing per hint; `None`: the node did not answer for it.
    async fn hand_over(&self, parcel: Parcel) -> (Vec<usize>, Option<Vec<Landing>>) {
        let Parcel { node, hints, lines } = parcel;
        let asked = hints.len();
        let answer = self.call(&node, self.backplane.deliver(&node, hints)).await;
        // An answer of another length cannot be matched to what was asked: it is none.
        let answer = answer.filter(|landings| landings.len() == asked);
        if answer.is_none() {
            self.owed.to(&node);
        }
        (lines, answer)
    }

    /// Calls a node that answers for what it was handed, within its deadline and if its breaker lets it.
    async fn call<T>(&self, node: &NodeId, call: impl Future<Output = PortResult<T>>) -> Option<T> {
        let deadline_ms = self.limits.flow.deliver_ms;
        let leave = self.nodes.admit(node, self.clock.mono())?;
        let answer = tokio::time::timeout(Duration::from_millis(deadline_ms), call).await;
        self.nodes.record(node, self.clock.mono(), leave, matches!(answer, Ok(Ok(_))));
        match answer {
            Ok(Ok(answer)) => Some(answer),
            Ok(Err(why)) => {
                tracing::debug!(%node, %why, "a node did not take what it was handed");
                None
            }
            Err(_) => {
                tracing::debug!(%node, deadline_ms, "a node did not answer within the deadline");
                None
            }
        }
    }

    /// Tells a node what it need not answer for; whether it is on its way. That is all that is known then, so it says nothing of
    /// the node's breaker.
    async fn tell(&self, node: &NodeId, deadline_ms: u64, told: impl Future<Output = PortResult<()>>) -> bool {
        if self.nodes.is_open(node) {
            return false;
        }
        matches!(tokio::time::timeout(Duration::from_millis(deadline_ms), told).await, Ok(Ok(())))
    }

    /// Where users are, and what they are told sorted by node.
    async fn sorted<T: Clone>(&self, notes: Vec<(UserId, T)>) -> Vec<(NodeId, Vec<(UserId, T)>)> {
        let mut users: Vec<UserId> = notes.iter().map(|(user, _)| user.clone()).collect();
        users.sort_unstable();
        users.dedup();
        let places = match self.presence.locate(&users).await {
            Ok(places) => places,
            Err(why) => {
                tracing::debug!(%why, "senders could not be located: their notes are dropped");
                dropped(notes.len(), "unlocated");
                return Vec::new();
            }
        };
        let mut by_node = HashMap::<NodeId, Vec<(UserId, T)>>::new();
        for (user, change) in notes {
            let Some(places) = users.binary_search(&user).ok().and_then(|i| places.get(i)) else { continue };
            let nodes: HashSet<&NodeId> = places.iter().map(|place| &place.node).collect();
            for node in nodes {
                by_node.entry(node.clone()).or_default().push((user.clone(), change.clone()));
            }
        }
        by_node.into_iter().collect()
    }
}

#[async_trait]
impl Dispatch for Sinks {
    async fn deliver(&self, batch: Vec<Routed>) -> Vec<Outcome> {
        let mut outcomes = vec![Outcome::Absent; batch.len()];
        let parcels = parcels(batch);
        for (lines, landings) in all(parcels.into_iter().map(|parcel| self.hand_over(parcel))).await {
            for (i, line) in lines.into_iter().enumerate() {
                outcomes[line] = fold(outcomes[line], landings.as_ref().map(|l| l[i]));
            }
        }
        let count = |outcome: fn(&Outcome) -> bool| outcomes.iter().filter(|o| outcome(o)).count() as u64;
        let taken = count(|o| *o == Outcome::Taken);
        let absent = count(|o| *o == Outcome::Absent);
        let failed = outcomes.len() as u64 - taken - absent;
        for (outcome, n) in [("taken", taken), ("absent", absent), ("failed", failed)] {
            if n > 0 {
                metrics::counter!("esh3ar_deliveries_total", "outcome" => outcome).increment(n);
            }
        }
        outcomes
    }

    async fn notify(&self, notes: Vec<(UserId, StatusChange)>) {
        if notes.is_empty() {
            return;
        }
        let Ok(_room) = self.notifying.try_acquire() else { return dropped(notes.len(), "no_room") };
        let count = notes.len();
        let deadline = self.limits.sink.notify_ms;
        let tell = async {
            let by_node = self.sorted(latest(notes)).await;
            let calls = by_node.into_iter().map(|(node, notes)| async move {
                let count = notes.len();
                if !self.tell(&node, deadline, self.backplane.notify(&node, notes)).await {
                    dropped(count, "unreachable");
                }
            });
            join_all(calls).await;
        };
        if tokio::time::timeout(Duration::from_millis(deadline), tell).await.is_err() {
            dropped(count, "late");
        }
    }

    async fn signal(&self, signals: Vec<(UserId, Signal)>) {
        if signals.is_empty() {
            return;
        }
        let fleeting =
            |(_, signal): &(UserId, Signal)| matches!(signal, Signal::Typing { .. } | Signal::Presence { .. });
        let room = if signals.iter().all(fleeting) { &self.chattering } else { &self.signalling };
        let Ok(_room) = room.try_acquire() else { return dropped(signals.len(), "no_room") };
        let (count, deadline) = (signals.len(), self.limits.sink.notify_ms);
        let tell = async {
            let (changed, live) = newest(signals);
            let mut by_node: HashMap<_, _> = self.sorted(live).await.into_iter().collect();
            if !changed.is_empty() {
                // A cache may hold what a user of another node asked for.
                for node in self.presence.nodes().await.unwrap_or_default() {
                    by_node.entry(node.node).or_default().extend(changed.iter().cloned());
                }
            }
            let calls = by_node.into_iter().map(|(node, signals)| async move {
                let count = signals.len();
                if !self.tell(&node, deadline, self.backplane.signal(&node, signals)).await {
                    dropped(count, "unreachable");
                }
            });
            join_all(calls).await;
        };
        if tokio::time::timeout(Duration::from_millis(deadline), tell).await.is_err() {
            dropped(count, "late");
        }
    }

    async fn taken_over(&self, partitions: &[Partition]) {
        if let Err(why) = self.backplane.taken_over(partitions).await {
            tracing::warn!(%why, "nodes are not told that partitions have another owner");
        }
    }

    async fn alarm(&self, dead: &[Dead]) {
        for dead in dead {
            let Dead { id, reason, round, attempts, inbox, .. } = dead;
            let (reason, user) = (reason.word(), inbox.user.redacted());
            tracing::warn!(%id, reason, user, round, attempts, "a message was given up: it is a dead letter now");
            metrics::counter!("esh3ar_dead_total", "reason" => reason).increment(1);
        }
        for bell in &self.bells {
            bell.ring(dead);
        }
    }
}

/// Of several changes of one message the last: a sender is told where it stands, not how it got there (rule 16).
fn latest(mut notes: Vec<(UserId, StatusChange)>) -> Vec<(UserId, StatusChange)> {
    let mut seen = HashSet::with_capacity(notes.len());
    notes.reverse();
    notes.retain(|(_, change)| seen.insert(change.id));
    notes.reverse();
    notes
}

/// Signals, each with who is to have it.
type Signals = Vec<(UserId, Signal)>;

/// What signals there are, each once and as it is now: those for caches, and those for people.
fn newest(mut signals: Signals) -> (Signals, Signals) {
    let mut seen = HashSet::with_capacity(signals.len());
    signals.reverse();
    signals.retain(|(user, signal)| match signal {
        Signal::Changed { conversation, .. } => seen.insert((user.clone(), *conversation, None)),
        Signal::Read { conversation, by, .. } => seen.insert((user.clone(), *conversation, Some(by.clone()))),
        Signal::Typing { .. } | Signal::Presence { .. } => true,
    });
    signals.reverse();
    signals.into_iter().partition(|(_, signal)| matches!(signal, Signal::Changed { .. }))
}

fn dropped(notes: usize, why: &'static str) {
    metrics::counter!("esh3ar_notes_dropped_total", "reason" => why).increment(notes as u64);
}

/// Waits for all of these, in order. Each is polled within the first poll of the whole, which is what the order of handing
/// over rests on and what a library's join promises for small numbers only.
async fn all<T>(acts: impl Iterator<Item = impl Future<Output = T> + Send>) -> Vec<T>
where
    T: Send,
{
    let mut acts: Vec<_> = acts.map(|act| (Box::pin(act), None)).collect();
    // One node is the usual case: nothing to join.
    if acts.len() == 1
        && let Some((only, _)) = acts.pop()
    {
        return vec![only.await];
    }
    poll_fn(move |context| {
        let mut waiting = false;
        for (act, answer) in &mut acts {
            if answer.is_none() {
                match Pin::as_mut(act).poll(context) {
                    Poll::Ready(done) => *answer = Some(done),
                    Poll::Pending => waiting = true,
                }
            }
        }
        if waiting {
            return Poll::Pending;
        }
        Poll::Ready(acts.iter_mut().filter_map(|(_, answer)| answer.take()).collect())
    })
    .await
}

#[cfg(test)]
mod tests;
