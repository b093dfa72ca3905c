//! Settle: what happened to messages becomes their status, and what follows from it is set going.
//!
//! One task an instance reads facts from `outcomes`, merges them into history one call at a time, tells business senders of
//! changes, watches over acknowledgements ([`crate::watch`]), decides on cancellations (rule 9) and appends the facts that
//! follow, which come back here like any other. Promises that the facts of an id are merged in the order of the log, and
//! that [`SettlerHandle::done`] names an offset only when everything that follows from the facts before it is durable.
//! Facts that come while a call is under way wait for the next one, so that sent and delivered of one message fold into one
//! write. Leaves reading and committing to who owns the consumer, and the due-table to [`crate::sweep`], which it starts.

mod missed;
mod repeat;
mod telling;
mod worker;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use schemas::{
    Clock, Epoch, Fact, Limits, Offset, Partition, Timestamp, Topic, TopicPartition, What,
    port::{Dispatch, History, Log, Placed, Record},
    tier::Attempt,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{crowd::Crowd, failed::Failed, gate::Gates, handed::Handed, item::DueItem, ownership::Ownership, sweep};

pub(crate) use repeat::append;
use worker::Worker;

/// Record batches that wait for the settler: a few fetches, so that the next is there when a call ends. A bound on memory:
/// each is at most one fetch.
const WAITING_BATCHES: usize = 16;

/// What a settler works with.
pub(crate) struct SettlerParts {
    /// Where facts are read and appended.
    pub(crate) log: Arc<dyn Log>,
    /// Where they are merged.
    pub(crate) history: Arc<dyn History>,
    /// Who tells senders and administrators.
    pub(crate) dispatch: Arc<dyn Dispatch>,
    /// The time.
    pub(crate) clock: Arc<dyn Clock>,
    /// The bounds.
    pub(crate) limits: Arc<Limits>,
    /// What this instance has given to dispatch: decides whether a message can still be taken back.
    pub(crate) handed: Arc<Handed>,
    /// What may be acted for.
    pub(crate) ownership: Arc<Ownership>,
    /// The breakers of the ports.
    pub(crate) gates: Arc<Gates>,
    /// Which lanes take no more.
    pub(crate) crowd: Arc<Crowd>,
    /// Where scheduled messages go when they are due.
    pub(crate) feed: mpsc::Sender<Vec<DueItem>>,
    /// Who hears of a panic.
    pub(crate) failed: Failed,
}

/// Starts settlers.
pub(crate) struct Settler;

/// What the settler is asked, in the order in which it is asked.
enum Order {
    Assign(Vec<(Partition, Epoch)>),
    Revoke(Vec<Partition>, oneshot::Sender<()>),
    Records(Vec<Record>),
    Stop,
}

/// What the handle and the tasks share.
#[derive(Default)]
struct Shared {
    owned: Mutex<BTreeMap<Partition, Epoch>>,
    moved: Mutex<BTreeMap<Partition, (Epoch, Offset)>>,
    armed: AtomicU64,
}

/// A running settler.
pub(crate) struct SettlerHandle {
    orders: mpsc::Sender<Order>,
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    ownership: Arc<Ownership>,
    drain_ms: u64,
}

impl Settler {
    /// Starts the tasks of one instance: this settler and its sweep. They end with [`SettlerHandle::stop`].
    pub(crate) fn start(parts: SettlerParts, runtime: &tokio::runtime::Handle) -> SettlerHandle {
        let (orders, waiting) = mpsc::channel(WAITING_BATCHES);
        let (shared, stop) = (Arc::new(Shared::default()), CancellationToken::new());
        let drain_ms = parts.limits.flow.drain_ms;
        let sweep = sweep::Sweep::new(sweep::SweepParts {
            log: parts.log.clone(),
            history: parts.history.clone(),
            clock: parts.clock.clone(),
            limits: parts.limits.clone(),
            ownership: parts.ownership.clone(),
            gates: parts.gates.clone(),
            crowd: parts.crowd,
            feed: parts.feed,
            stop: stop.clone(),
        });
        let ownership = parts.ownership.clone();
        let (teller, told) = telling::tellings();
        let worker = Worker::new(
            worker::Parts {
                log: parts.log,
                history: parts.history,
                clock: parts.clock,
                limits: parts.limits,
                handed: parts.handed,
                ownership: parts.ownership,
                gates: parts.gates,
            },
            teller,
            stop.clone(),
        );
        let (owner, failed) = (shared.clone(), parts.failed);
        let settling = run(worker, waiting, shared.clone(), stop.clone());
        let tasks = vec![
            runtime.spawn(failed.clone().watch("the settler", settling)),
            runtime.spawn(failed.clone().watch("telling what became of messages", telling::tell(parts.dispatch, told))),
            runtime.spawn(failed.watch("the sweep", sweep.run(move || owner.owned.lock().clone()))),
        ];
        SettlerHandle { orders, shared, stop, tasks, ownership, drain_ms }
    }
}

impl SettlerHandle {
    /// These partitions are this instance's now. Their records may be given from here on.
    pub(crate) async fn assign(&self, partitions: Vec<(Partition, Epoch)>) {
        self.shared.owned.lock().extend(partitions.iter().copied());
        // A stopped settler has nothing to assign to.
        let _ = self.orders.send(Order::Assign(partitions)).await;
    }

    /// These are about to be given up: the sweep begins nothing more for them. What it has begun may end: facts that an
    /// expiry said and rows that are done with are true whoever the owner is, and history holds the rest to the fence.
    pub(crate) fn leaving(&self, partitions: &[Partition]) {
        self.shared.owned.lock().retain(|owned, _| !partitions.contains(owned));
    }

    /// These are to be given up: settles what it was given of them and answers. [`SettlerHandle::done`] then names the last
    /// offsets to commit; deadlines still running are the next owner's, who reads their facts again. Of a partition that is
    /// not held any more ([`Ownership`]) nothing is settled: it is dropped.
    pub(crate) async fn revoke(&self, partitions: Vec<Partition>) {
        self.leaving(&partitions);
        let (answer, finished) = oneshot::channel();
        if self.orders.send(Order::Revoke(partitions, answer)).await.is_ok() {
            // Gone without an answer means stopped: there is nothing left to finish.
            let _ = finished.await;
        }
    }

    /// Takes records of `outcomes`, in the order of the log. Waits while enough are waiting already. Those of partitions
    /// that were not assigned are passed over.
    pub(crate) async fn take(&self, records: Vec<Record>) {
        // A stopped settler takes nothing: what it did not settle is not committed, and read again.
        let _ = self.orders.send(Order::Records(records)).await;
    }

    /// The next offsets of `outcomes` that may be committed now, of partitions where they moved since this was last asked.
    /// An offset that could not be committed need not be kept: the next one passes it.
    pub(crate) fn done(&self) -> Vec<(TopicPartition, Offset)> {
        let moved = std::mem::take(&mut *self.shared.moved.lock());
        let at = |partition| TopicPartition { topic: Topic::Outcomes, partition };
        let held = moved.into_iter().filter(|(partition, (epoch, _))| self.ownership.holds(*partition, *epoch));
        held.map(|(partition, (_, offset))| (at(partition), offset)).collect()
    }

    /// Acknowledgements waited for.
    pub(crate) fn armed(&self) -> u64 {
        self.shared.armed.load(Ordering::Relaxed)
    }

    /// Settles what it was given, within the drain time, and ends. What it did not get to is not committed and is read
    /// again by the next owner.
    pub(crate) async fn stop(self) {
        let drain = Duration::from_millis(self.drain_ms);
        // A settler that has ended already refuses the order, and its task is done.
        let finish = async {
            let _ = self.orders.send(Order::Stop).await;
            self.orders.closed().await;
        };
        let _ = tokio::time::timeout(drain, finish).await;
        self.stop.cancel();
        for mut task in self.tasks {
            // What is left is telling people: it has had its time.
            if tokio::time::timeout(drain, &mut task).await.is_err() {
                task.abort();
            }
        }
    }
}

/// The settler's life: take what there is, settle it, look at the deadlines.
async fn run(mut worker: Worker, mut orders: mpsc::Receiver<Order>, shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        let order = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            order = orders.recv() => match order { Some(order) => Some(order), None => return },
            () = worker.until_due() => None,
        };
        let next = match order {
            Some(Order::Records(records)) => {
                worker.gather(records);
                gather_more(&mut worker, &mut orders).await
            }
            other => other,
        };
        if worker.settle().await.and(worker.expire().await).is_err() {
            return;
        }
        let after = obey(next, &mut worker, &shared);
        publish(&mut worker, &shared);
        match after {
            After::On => {}
            // Who asked may have gone.
            After::Answer(answer) => drop(answer.send(())),
            After::End => return,
        }
    }
}

/// What comes after an order was carried out.
enum After {
    On,
    Answer(oneshot::Sender<()>),
    End,
}

/// Takes the record batches that are waiting already, until there are enough for one call or something else is asked.
async fn gather_more(worker: &mut Worker, orders: &mut mpsc::Receiver<Order>) -> Option<Order> {
    let mut lingered = false;
    while worker.has_room() {
        match orders.try_recv() {
            Ok(Order::Records(records)) => worker.gather(records),
            Ok(other) => return Some(other),
            // While many come, a moment's wait folds what follows into the same write; a lone fact never waits.
            Err(_) if worker.is_busy() && !lingered => {
                lingered = true;
                worker.linger().await;
            }
            Err(_) => return None,
        }
    }
    None
}

fn obey(order: Option<Order>, worker: &mut Worker, shared: &Shared) -> After {
    match order {
        Some(Order::Assign(partitions)) => {
            worker.assign(partitions);
            After::On
        }
        Some(Order::Revoke(partitions, answer)) => {
            publish(worker, shared);
            worker.revoke(&partitions);
            After::Answer(answer)
        }
        Some(Order::Stop) => After::End,
        Some(Order::Records(_)) | None => After::On,
    }
}

fn publish(worker: &mut Worker, shared: &Shared) {
    let mut moved = shared.moved.lock();
    moved.extend(worker.moved());
    shared.armed.store(worker.watch.armed() as u64, Ordering::Relaxed);
}

/// A fact about a message that was found by its id.
pub(crate) fn fact_of(placed: &Placed, at: Timestamp, round: u8, attempt: Attempt, what: What) -> Fact {
    Fact {
        id: placed.message.id,
        inbox: placed.inbox.clone(),
        position: placed.position.unwrap_or_default(),
        from: placed.message.from.clone(),
        client_ref: placed.message.client_ref.clone(),
        at,
        round,
        attempt,
        device: None,
        what,
    }
}

#[cfg(test)]
#[path = "settle/tests.rs"]
mod tests;
