//! The settler's hands: merges facts, does what follows from them, and what follows from deadlines that were missed.

use std::{collections::HashSet, sync::Arc, time::Duration};

use schemas::{
    Clock, Fact, Limits, MessageId, Millis, Party, Reason, Sender, State, Status, Timestamp, UserId, What, codec,
    limits::PAGE_MAX,
    port::{Dead, Dispatch, History, Log, Record, Settled},
    record,
    view::StatusChange,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    missed::{Verdict, on_tier, verdict},
    repeat::{Stopped, append, until_done},
};
use crate::{
    handed::Handed,
    watch::{Missed, Stand, Watch, deadline},
};

/// Tellings that wait for a slow dispatch; past that notes are dropped (rule 16).
pub(super) const WAITING_NOTES: usize = 64;

/// The longest sleep while a deadline runs: a clock that is turned by hand is noticed within this time.
const LONGEST_NAP: Duration = Duration::from_millis(50);

/// Facts of one call from which on a moment's wait pays: fewer wake-ups and writes, for a status that shows a little later.
const MANY: usize = 16;

/// What somebody is told.
pub(super) enum Tell {
    Senders(Vec<(UserId, StatusChange)>),
    Administrators(Vec<Dead>),
}

/// Tells, one after the other, so that a slow dispatch delays no fact.
pub(super) async fn tell(dispatch: Arc<dyn Dispatch>, mut told: mpsc::Receiver<Tell>) {
    while let Some(tell) = told.recv().await {
        match tell {
            Tell::Senders(notes) => dispatch.notify(notes).await,
            Tell::Administrators(dead) => dispatch.alarm(&dead).await,
        }
    }
}

/// What a worker works with.
pub(super) struct Parts {
    pub(super) log: Arc<dyn Log>,
    pub(super) history: Arc<dyn History>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) limits: Arc<Limits>,
    pub(super) handed: Arc<Handed>,
}

/// See the module.
pub(super) struct Worker {
    parts: Parts,
    teller: mpsc::Sender<Tell>,
    stop: CancellationToken,
    /// Deadlines and offsets.
    pub(super) watch: Watch,
    /// Facts of the next call, in the order of the log.
    facts: Vec<Fact>,
    /// The records they came in, each with where its facts end.
    stands: Vec<(Stand, usize)>,
    /// Facts of the last call: tells whether many come.
    last: usize,
    parked: u64,
}

impl Worker {
    pub(super) fn new(parts: Parts, teller: mpsc::Sender<Tell>, stop: CancellationToken) -> Self {
        let watch = Watch::new(parts.limits.flow.ack_ms, parts.limits.flow.ack_watch);
        Self { parts, teller, stop, watch, facts: Vec::new(), stands: Vec::new(), last: 0, parked: 0 }
    }

    /// Messages found without a connected device, since the start.
    pub(super) fn parked(&self) -> u64 {
        self.parked
    }

    /// Whether one call may take more facts.
    pub(super) fn has_room(&self) -> bool {
        self.facts.len() < self.parts.limits.flow.settle_facts
    }

    /// Whether many facts come, by the last call and this one.
    pub(super) fn is_busy(&self) -> bool {
        self.last.max(self.facts.len()) >= MANY
    }

    /// Waits for facts that follow.
    pub(super) async fn linger(&self) {
        let linger = Duration::from_millis(self.parts.limits.flow.settle_linger_ms);
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(linger) => {}
        }
    }

    /// Waits until a deadline may have passed; for ever while none is running.
    pub(super) async fn until_due(&mut self) {
        let now = self.parts.clock.mono();
        match self.watch.next_due() {
            Some(due) => tokio::time::sleep(Duration::from_millis(due.since(now)).min(LONGEST_NAP)).await,
            None => std::future::pending().await,
        }
    }

    /// Takes records in for the next call.
    pub(super) fn gather(&mut self, records: Vec<Record>) {
        for record in records {
            let stand = Stand { partition: record.at.partition, offset: record.offset };
            if !self.watch.took(stand) {
                continue;
            }
            match codec::decode::<Vec<Fact>>(&record.body) {
                Ok(facts) => self.facts.extend(facts),
                // Nothing can be made of it, and stopping here would stop the partition for good.
                Err(error) => {
                    metrics::counter!("esh3ar_facts_unreadable_total").increment(1);
                    tracing::error!(at = %record.at, offset = %record.offset, %error, "passing over a record of facts");
                }
            }
            self.stands.push((stand, self.facts.len()));
        }
    }

    /// Merges what was gathered and does what follows.
    pub(super) async fn settle(&mut self) -> Result<(), Stopped> {
        if self.stands.is_empty() {
            self.last = 0;
            return Ok(());
        }
        let (facts, stands) = (std::mem::take(&mut self.facts), std::mem::take(&mut self.stands));
        self.last = facts.len();
        let settled = self.merge(&facts).await?;
        let now = (self.parts.clock.mono(), self.parts.clock.wall());
        let (mut from, mut follows) = (0, Vec::new());
        for (stand, to) in &stands {
            for (fact, settled) in facts.iter().zip(&settled).take(*to).skip(from) {
                follows.extend(self.follow(fact, settled, *stand, now));
            }
            from = *to;
        }
        self.tell_senders(&facts, &settled);
        append(self.parts.log.as_ref(), &self.stop, record::facts(follows)).await?;
        for (stand, _) in stands {
            self.watch.settled(stand);
        }
        Ok(())
    }

    /// Merges facts, repeated until it happened. Of facts that history rejects, those that it takes are merged all the
    /// same: one that nobody can keep must not stop its partition.
    async fn merge(&self, facts: &[Fact]) -> Result<Vec<Settled>, Stopped> {
        let history = self.parts.history.as_ref();
        let why = match until_done(&self.stop, "settle", || history.settle(facts)).await? {
            Ok(settled) => return Ok(settled),
            Err(why) => why,
        };
        tracing::warn!(why, facts = facts.len(), "settling one by one");
        let mut all = Vec::with_capacity(facts.len());
        for fact in facts {
            let one = std::slice::from_ref(fact);
            let settled = match until_done(&self.stop, "settle", || history.settle(one)).await? {
                Ok(settled) => settled.into_iter().next(),
                Err(why) => {
                    metrics::counter!("esh3ar_facts_rejected_total").increment(1);
                    tracing::error!(id = %fact.id, what = ?fact.what, why, "a fact is lost");
                    None
                }
            };
            all.push(settled.unwrap_or_else(|| Settled { changed: false, state: State::default() }));
        }
        Ok(all)
    }

    /// What follows from one fact: deadlines begin and end, and a cancellation is decided.
    fn follow(&mut self, fact: &Fact, settled: &Settled, stand: Stand, now: (Millis, Timestamp)) -> Option<Fact> {
        let (state, (now, wall)) = (&settled.state, now);
        match fact.what {
            What::Sent => {
                self.parts.handed.sent(fact.id);
                let first_ms = self.parts.limits.flow.retry_first_ms;
                if let Some(early_ms) = deadline(fact, state, wall, first_ms) {
                    let sent = Missed { id: fact.id, round: fact.round, attempt: fact.attempt };
                    self.watch.arm(sent, stand, early_ms, now);
                }
            }
            What::Delivered | What::Read => self.watch.disarm(fact.id),
            What::AttemptFailed(_) => self.watch.failed(fact.id, fact.round, fact.attempt),
            What::Failed(_) => self.watch.failed(fact.id, fact.round, schemas::tier::Attempt(u8::MAX)),
            What::Parked => {
                self.parked += 1;
                // It is with no session: it can be taken back again.
                self.parts.handed.sent(fact.id);
                self.watch.parked(fact.id, fact.round, fact.attempt);
            }
            What::CancelAsked => {
                // Rule 9: only while nobody has it, and once decided `route` lets it pass no more.
                if state.status() == Status::Pending && self.parts.handed.withdraw(fact.id, now) {
                    let what = What::Failed(Reason::Cancelled);
                    return Some(Fact { at: wall, what, round: state.round(), device: None, ..fact.clone() });
                }
            }
            What::Requeued => {}
        }
        None
    }

    /// Tells business senders of the last change of each message.
    fn tell_senders(&self, facts: &[Fact], settled: &[Settled]) {
        let (mut notes, mut seen) = (Vec::new(), HashSet::<MessageId>::new());
        let mut counts = [0u64; Status::ALL.len()];
        for (fact, settled) in facts.iter().zip(settled).rev().filter(|(_, settled)| settled.changed) {
            let status = settled.state.status();
            counts[status as usize] += 1;
            let Sender::User(party @ Party::Business(_)) = &fact.from else { continue };
            if seen.insert(fact.id) {
                let user = UserId { tenant: fact.inbox.user.tenant.clone(), party: party.clone() };
                let change = StatusChange {
                    id: fact.id,
                    status,
                    at: settled.state.status_at().unwrap_or(fact.at),
                    reason: settled.state.reason(),
                    client_ref: fact.client_ref.clone(),
                    metadata: None,
                };
                notes.push((user, change));
            }
        }
        for (status, count) in Status::ALL.iter().zip(counts).filter(|(_, count)| *count > 0) {
            metrics::counter!("esh3ar_messages_status_total", "status" => status.word()).increment(count);
        }
        if !notes.is_empty() {
            notes.reverse();
            let count = notes.len() as u64;
            if self.teller.try_send(Tell::Senders(notes)).is_err() {
                metrics::counter!("esh3ar_notes_dropped_total").increment(count);
            }
        }
    }

    /// Does what follows from deadlines that passed, until none is left that has.
    pub(super) async fn expire(&mut self) -> Result<(), Stopped> {
        loop {
            let missed = self.watch.expire(self.parts.clock.mono(), PAGE_MAX);
            if missed.is_empty() {
                return Ok(());
            }
            self.missed(&missed).await?;
            for missed in &missed {
                self.watch.ended(missed);
            }
        }
    }

    /// What follows comes first and the fact that it happened last: a crash in between repeats a retry or a burial, which
    /// changes nothing, where the other order would lose it, because the fact says that there is nothing left to do.
    async fn missed(&self, missed: &[Missed]) -> Result<(), Stopped> {
        let (history, log) = (self.parts.history.as_ref(), self.parts.log.as_ref());
        let ids: Vec<_> = missed.iter().map(|missed| missed.id).collect();
        let placed = match until_done(&self.stop, "messages", || history.messages(&ids)).await? {
            Ok(placed) => placed,
            Err(why) => {
                tracing::error!(why, count = ids.len(), "missed acknowledgements are passed over");
                return Ok(());
            }
        };
        let (now, first_ms) = (self.parts.clock.wall(), self.parts.limits.flow.retry_first_ms);
        let (mut retries, mut facts, mut dead) = (Vec::new(), Vec::new(), Vec::new());
        for (missed, placed) in missed.iter().zip(&placed) {
            match verdict(missed, Reason::NoAck, placed.as_ref(), now, first_ms) {
                Verdict::Drop => {}
                Verdict::Retry(tier, again, failed) => {
                    retries.push(on_tier(tier, &again));
                    facts.push(failed);
                }
                Verdict::Bury(letter, failed) => {
                    dead.push(*letter);
                    facts.extend(failed);
                }
            }
        }
        metrics::counter!("esh3ar_attempts_failed_total", "reason" => Reason::NoAck.word())
            .increment((retries.len() + dead.len()) as u64);
        retries.extend(dead.iter().map(record::dead));
        append(log, &self.stop, retries).await?;
        self.bury(dead).await?;
        append(log, &self.stop, record::facts(facts)).await
    }

    async fn bury(&self, dead: Vec<Dead>) -> Result<(), Stopped> {
        if dead.is_empty() {
            return Ok(());
        }
        let history = self.parts.history.as_ref();
        if let Err(why) = until_done(&self.stop, "bury", || history.bury(&dead)).await? {
            tracing::error!(why, count = dead.len(), "dead letters are not in the index");
        }
        let count = dead.len();
        if self.teller.try_send(Tell::Administrators(dead)).is_err() {
            tracing::warn!(count, "administrators are not told of these: they stand in the dead letters");
        }
        Ok(())
    }
}
