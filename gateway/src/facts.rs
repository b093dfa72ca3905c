//! The gatherer: facts of all sessions of this node go to `outcomes` together, a few milliseconds' worth in one append, and
//! the cursors that devices acknowledged move after them. Facts are idempotent, so an append whose fate is unknown is
//! repeated; while it cannot be made, sessions wait.
//!
//! A cursor is stored only once the facts that came before it are durable: else a crash between the two would leave a
//! message that its device will never be asked about again.

use std::{
    collections::HashMap,
    sync::Arc,
    task::{Context, Waker},
    time::Duration,
};

use parking_lot::Mutex;
use schemas::{
    Cursor, DeviceId, Fact, Limits, Position, Timestamp, UserId, What,
    port::{Append, History, Log, Placed, PortError},
    record,
};
use tokio::sync::Notify;

use crate::session::Me;

#[derive(Debug, Default)]
struct Held {
    facts: Vec<Fact>,
    moves: HashMap<(UserId, DeviceId), Cursor>,
    /// Sessions that found no room.
    waiting: Vec<Waker>,
    /// What has been taken out and is not yet durable.
    busy: bool,
}

/// Gathers facts and cursor moves of one node.
#[derive(Debug)]
pub(crate) struct Gather {
    held: Mutex<Held>,
    filled: Notify,
    /// Told after every append: whoever waits for what was gathered looks again.
    pub(crate) flushed: Notify,
    most: usize,
    linger: Duration,
}

impl Gather {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            held: Mutex::default(),
            filled: Notify::new(),
            flushed: Notify::new(),
            most: limits.socket.gather_facts.max(1),
            linger: Duration::from_millis(limits.socket.gather_ms),
        }
    }

    /// Takes a session's facts and its cursor, leaving both empty; or has it woken when there is room.
    pub(crate) fn push(&self, facts: &mut Vec<Fact>, cursor: &mut Option<Cursor>, me: &Me, cx: &Context<'_>) -> bool {
        let mut held = self.held.lock();
        if held.facts.len() >= self.most {
            // A session may ask again many times before there is room; it is woken once.
            if !held.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                held.waiting.push(cx.waker().clone());
            }
            return false;
        }
        let first = held.facts.is_empty() && held.moves.is_empty();
        held.facts.append(facts);
        if let Some(cursor) = cursor.take() {
            held.moves.entry((me.user.clone(), me.device.clone())).or_default().join(&cursor);
        }
        // A busy session's buffer need not stay with it.
        facts.shrink_to(16);
        if first {
            self.filled.notify_one();
        }
        true
    }

    /// Appends what is gathered, for ever. Ends when its task is aborted; [`Gather::drained`] says when nothing is left.
    pub(crate) async fn run(self: Arc<Self>, log: Arc<dyn Log>, history: Arc<dyn History>) {
        loop {
            self.filled.notified().await;
            tokio::time::sleep(self.linger).await;
            loop {
                let (facts, moves, waiting) = {
                    let mut held = self.held.lock();
                    if held.facts.is_empty() && held.moves.is_empty() {
                        held.busy = false;
                        break;
                    }
                    held.busy = true;
                    (
                        std::mem::take(&mut held.facts),
                        std::mem::take(&mut held.moves),
                        std::mem::take(&mut held.waiting),
                    )
                };
                waiting.into_iter().for_each(Waker::wake);
                let gathered = facts.len();
                append_all(log.as_ref(), record::facts(facts)).await;
                if !moves.is_empty() {
                    let moves: Vec<_> = moves.into_iter().map(|((user, device), to)| (user, device, to)).collect();
                    advance(history.as_ref(), &moves).await;
                }
                metrics::counter!("esh3ar_facts_gathered_total").increment(gathered as u64);
                self.flushed.notify_waiters();
                if self.held.lock().facts.len() < self.most / 2 {
                    tokio::time::sleep(self.linger).await;
                }
            }
            self.flushed.notify_waiters();
        }
    }

    /// Waits until everything gathered so far is durable.
    pub(crate) async fn drained(&self) {
        loop {
            let flushed = self.flushed.notified();
            tokio::pin!(flushed);
            flushed.as_mut().enable();
            {
                let held = self.held.lock();
                if held.facts.is_empty() && held.moves.is_empty() && !held.busy {
                    return;
                }
            }
            flushed.await;
        }
    }
}

/// The fact that a device said something of a message found by its id.
pub(crate) fn fact_of(placed: &Placed, device: Option<&DeviceId>, what: What, at: Timestamp) -> Fact {
    let state = &placed.state;
    Fact {
        id: placed.message.id,
        inbox: placed.inbox.clone(),
        position: placed.position.unwrap_or(Position::START),
        from: placed.message.from.clone(),
        client_ref: placed.message.client_ref.clone(),
        at,
        round: state.round(),
        attempt: state.attempt(),
        device: device.cloned(),
        what,
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// Appends until every record is in, or was rejected for good.
pub(crate) async fn append_all(log: &dyn Log, mut records: Vec<Append>) {
    let mut pause = FIRST_PAUSE;
    while !records.is_empty() {
        let outcomes = log.append(records.clone()).await;
        let mut again = Vec::new();
        for (record, outcome) in records.into_iter().zip(outcomes) {
            match outcome {
                Ok(_) => {}
                Err(PortError::Rejected(why)) => {
                    tracing::error!(at = %record.at, why, "facts were rejected by the log and are lost");
                    metrics::counter!("esh3ar_facts_rejected_total").increment(1);
                }
                Err(why) => {
                    tracing::warn!(at = %record.at, %why, "facts wait for the log");
                    again.push(record);
                }
            }
        }
        records = again;
        if !records.is_empty() {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }
}

async fn advance(history: &dyn History, moves: &[(UserId, DeviceId, Cursor)]) {
    // A cursor that does not move costs repeats and loses nothing: three tries, then the next acknowledgement brings it.
    let mut pause = FIRST_PAUSE;
    for _ in 0..3 {
        match history.advance(moves).await {
            Ok(()) => return,
            Err(why) => tracing::warn!(%why, moves = moves.len(), "device cursors were not stored"),
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
}
