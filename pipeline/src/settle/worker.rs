//! The settler's hands: merges facts, does what follows from them, and what follows from deadlines that were missed.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use metrics::Histogram;
use schemas::{
    Clock, DeviceId, Epoch, Fact, Limits, MessageId, Millis, Offset, Partition, Reason, Sender, State, Status,
    Timestamp, UserId, What, codec,
    limits::PAGE_MAX,
    port::{Append, Dead, History, Log, PortError, Record, Settled},
    record,
    view::StatusChange,
};
use tokio_util::sync::CancellationToken;

use super::{
    missed::{Verdict, on_tier, verdict},
    repeat::{Done, Stopped, append, until_done},
    telling::Teller,
};
use crate::{
    gate::Gates,
    handed::Handed,
    ownership::{Owners, Ownership},
    trace,
    watch::{Missed, Stand, To, Watch, deadline},
};

/// The longest sleep while a deadline runs: a clock that is turned by hand is noticed within this time.
const LONGEST_NAP: Duration = Duration::from_millis(50);

/// Facts of one call from which on a moment's wait pays: fewer wake-ups and writes, for a status that shows a little later.
const MANY: usize = 16;

/// What a worker works with.
pub(super) struct Parts {
    pub(super) log: Arc<dyn Log>,
    pub(super) history: Arc<dyn History>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) limits: Arc<Limits>,
    pub(super) handed: Arc<Handed>,
    pub(super) ownership: Arc<Ownership>,
    pub(super) gates: Arc<Gates>,
}

/// Records, each with where its facts end among those gathered.
type Stands = Vec<(Stand, usize)>;

/// Facts, the records they came in, and what merging each came to.
type Merged = (Vec<Fact>, Stands, Vec<Settled>);

/// What tells a device from a user's others: a number of its name.
fn device_number(device: &DeviceId) -> u32 {
    device.as_str().bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// When a message was named, where its name tells: a moment before it was accepted.
fn made_at(id: MessageId) -> Option<Timestamp> {
    let (seconds, nanos) = id.0.get_timestamp()?.to_unix();
    let ms = seconds.saturating_mul(1_000).saturating_add(u64::from(nanos / 1_000_000));
    i64::try_from(ms).ok().map(Timestamp)
}

/// Keeps the records that are wanted, with their facts.
fn retain(facts: &mut Vec<Fact>, stands: &mut Stands, wanted: impl Fn(&Stand) -> bool) {
    let (mut kept, mut from) = (Vec::with_capacity(facts.len()), 0);
    stands.retain_mut(|(stand, to)| {
        let range = from..*to;
        from = *to;
        let wanted = wanted(stand);
        if wanted {
            kept.extend_from_slice(&facts[range]);
            *to = kept.len();
        }
        wanted
    });
    *facts = kept;
}

/// See the module.
pub(super) struct Worker {
    parts: Parts,
    teller: Teller,
    stop: CancellationToken,
    /// Since which takeover each partition is ours.
    owned: BTreeMap<Partition, Epoch>,
    /// Deadlines and offsets.
    pub(super) watch: Watch,
    /// Facts of the next call, in the order of the log.
    facts: Vec<Fact>,
    /// The records they came in, each with where its facts end.
    stands: Stands,
    /// Facts of the last call: tells whether many come.
    last: usize,
    /// From acceptance to the first acknowledgement.
    delivery: Histogram,
    /// What merging takes.
    merging: Histogram,
}

impl Worker {
    pub(super) fn new(parts: Parts, teller: Teller, stop: CancellationToken) -> Self {
        let watch = Watch::new(parts.limits.flow.ack_ms, parts.limits.flow.ack_watch, parts.limits.flow.ack_renewals);
        let owned = BTreeMap::new();
        let delivery = metrics::histogram!("esh3ar_delivery_seconds");
        let merging = metrics::histogram!("esh3ar_stage_seconds", "stage" => "settled");
        Self { parts, teller, stop, owned, watch, facts: Vec::new(), stands: Vec::new(), last: 0, delivery, merging }
    }

    /// These are ours from here on.
    pub(super) fn assign(&mut self, partitions: Vec<(Partition, Epoch)>) {
        for (partition, epoch) in partitions {
            self.owned.insert(partition, epoch);
            self.watch.open(partition);
        }
    }

    /// These are not ours any more.
    pub(super) fn revoke(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            self.owned.remove(partition);
            self.watch.close(*partition);
        }
    }

    /// The next offsets that may be committed, where they moved since this was last asked.
    pub(super) fn moved(&mut self) -> Vec<(Partition, (Epoch, Offset))> {
        let owned = &self.owned;
        let moved = self.watch.moved();
        moved.filter_map(|(partition, offset)| Some((partition, (*owned.get(&partition)?, offset)))).collect()
    }

    /// Whether a partition is still ours.
    fn ours(&self, partition: Partition) -> bool {
        self.owned.get(&partition).is_some_and(|epoch| self.parts.ownership.holds(partition, *epoch))
    }

    async fn append(&self, records: Vec<Append>) -> Result<(), Stopped> {
        let Parts { log, gates, .. } = &self.parts;
        append(&gates.log, log.as_ref(), &self.stop, |partition| self.ours(partition), records).await
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
        let begun = self.parts.clock.mono();
        let (facts, stands, settled) = self.merge(facts, stands).await?;
        self.merging.record(self.parts.clock.mono().since(begun) as f64 / 1e3);
        if trace::on() {
            facts.iter().for_each(trace::settled);
        }
        let now = (self.parts.clock.mono(), self.parts.clock.wall());
        let (mut from, mut follows) = (0, Vec::new());
        for (stand, to) in &stands {
            for (fact, settled) in facts.iter().zip(&settled).take(*to).skip(from) {
                follows.extend(self.follow(fact, settled, *stand, now));
            }
            from = *to;
        }
        self.tell_senders(&facts, &settled);
        self.append(record::facts(follows)).await?;
        for (stand, _) in stands {
            // What follows from its facts may have been left out where it was lost meanwhile.
            if self.ours(stand.partition) {
                self.watch.settled(stand);
            }
        }
        Ok(())
    }

    /// Merges facts, repeated until it happened. Of facts that history rejects, those that it takes are merged all the
    /// same: one that nobody can keep must not stop its partition. Those of partitions that were lost are left out.
    async fn merge(&self, mut facts: Vec<Fact>, mut stands: Stands) -> Result<Merged, Stopped> {
        let history = self.parts.history.as_ref();
        loop {
            self.drop_lost(&mut facts, &mut stands);
            if facts.is_empty() {
                return Ok((facts, stands, Vec::new()));
            }
            match self.repeat(&stands, "settle", || history.settle(&facts)).await? {
                Done::Answered(settled) if settled.len() == facts.len() => return Ok((facts, stands, settled)),
                Done::Answered(_) => tracing::error!("history settled another number of facts than it was given"),
                Done::Lost => {}
                Done::Refused(PortError::Fenced(_)) => self.find_lost(&facts, &stands).await?,
                Done::Refused(why) => {
                    tracing::warn!(%why, facts = facts.len(), "settling one by one");
                    let settled = self.one_by_one(&facts, &stands).await?;
                    return Ok((facts, stands, settled));
                }
            }
        }
    }

    async fn repeat<T, F: Future<Output = schemas::port::PortResult<T>>>(
        &self,
        stands: &Stands,
        what: &'static str,
        call: impl FnMut() -> F,
    ) -> Result<Done<T>, Stopped> {
        let ours = || stands.iter().all(|(stand, _)| self.ours(stand.partition));
        until_done(&self.parts.gates.history, &self.stop, what, ours, call).await
    }

    /// Takes out what belongs to partitions that were lost.
    fn drop_lost(&self, facts: &mut Vec<Fact>, stands: &mut Stands) {
        if stands.iter().all(|(stand, _)| self.ours(stand.partition)) {
            return;
        }
        retain(facts, stands, |stand| self.ours(stand.partition));
    }

    /// Some of these are another owner's: asks for each partition by itself, and gives up those that are refused.
    async fn find_lost(&self, facts: &[Fact], stands: &Stands) -> Result<(), Stopped> {
        let mut owners = Owners::from(self.owned.clone());
        owners.drop_lost(&self.parts.ownership);
        for (partition, epoch) in owners.each() {
            let (mut facts, mut stands) = (facts.to_vec(), stands.clone());
            retain(&mut facts, &mut stands, |stand| stand.partition == partition);
            if facts.is_empty() {
                continue;
            }
            let history = self.parts.history.as_ref();
            if let Done::Refused(why @ PortError::Fenced(_)) =
                self.repeat(&stands, "settle", || history.settle(&facts)).await?
            {
                self.parts.ownership.lost(partition, epoch, &why);
            }
        }
        Ok(())
    }

    async fn one_by_one(&self, facts: &[Fact], stands: &Stands) -> Result<Vec<Settled>, Stopped> {
        let history = self.parts.history.as_ref();
        let mut all = Vec::with_capacity(facts.len());
        for fact in facts {
            let one = std::slice::from_ref(fact);
            let settled = match self.repeat(stands, "settle", || history.settle(one)).await? {
                Done::Answered(settled) => settled.into_iter().next(),
                Done::Lost => None,
                Done::Refused(why) => {
                    metrics::counter!("esh3ar_facts_rejected_total").increment(1);
                    tracing::error!(id = %fact.id, what = ?fact.what, %why, "a fact is lost");
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
                let accepted_at = self.parts.handed.sent(fact.id);
                let first_ms = self.parts.limits.flow.retry_first_ms;
                if let Some(early_ms) = deadline(fact, state, wall, first_ms) {
                    let sent = Missed { id: fact.id, round: fact.round, attempt: fact.attempt };
                    let device = fact.device.as_ref().map(device_number);
                    self.watch.arm(sent, To { device, accepted_at }, stand, early_ms, now);
                }
            }
            What::Delivered | What::Read => {
                let accepted_at = self.watch.disarm(fact.id).or_else(|| made_at(fact.id));
                let first = state.first(Status::Delivered).is_some_and(|first| first.at == fact.at);
                if let Some(accepted_at) = accepted_at.filter(|_| settled.changed && first) {
                    self.delivery.record(fact.at.ms_since(accepted_at) as f64 / 1e3);
                }
            }
            What::AttemptFailed(_) => self.watch.failed(fact.id, fact.round, fact.attempt),
            What::Failed(_) => self.watch.failed(fact.id, fact.round, schemas::tier::Attempt(u8::MAX)),
            What::Parked => {
                // It is with no session: it can be taken back again.
                let _ = self.parts.handed.sent(fact.id);
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

    /// Tells senders who are persons of the last change of each message.
    fn tell_senders(&self, facts: &[Fact], settled: &[Settled]) {
        let (mut notes, mut seen) = (Vec::new(), HashSet::<MessageId>::new());
        let mut counts = [0u64; Status::ALL.len()];
        // What failed before it was recorded has its end in its state already: the fact that says so is news all the same.
        let ended = |fact: &Fact, settled: &Settled| {
            matches!(fact.what, What::Failed(Reason::Dropped | Reason::Expired))
                && settled.state.first(Status::Failed).is_some_and(|first| first.at == fact.at)
                && settled.state.status() == Status::Failed
        };
        for (fact, settled) in facts.iter().zip(settled).rev().filter(|(f, s)| s.changed || ended(f, s)) {
            let status = settled.state.status();
            counts[status as usize] += 1;
            let Sender::User(party) = &fact.from else { continue };
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
            if self.teller.senders.try_send(notes).is_err() {
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
        let (history, gate) = (self.parts.history.as_ref(), &self.parts.gates.history);
        let ids: Vec<_> = missed.iter().map(|missed| missed.id).collect();
        let placed = match until_done(gate, &self.stop, "messages", || true, || history.messages(&ids)).await? {
            Done::Answered(placed) => placed,
            Done::Lost => return Ok(()),
            Done::Refused(why) => {
                tracing::error!(%why, count = ids.len(), "missed acknowledgements are passed over");
                return Ok(());
            }
        };
        let (now, first_ms) = (self.parts.clock.wall(), self.parts.limits.flow.retry_first_ms);
        let (mut retries, mut facts, mut dead) = (Vec::new(), Vec::new(), Vec::new());
        for (missed, placed) in missed.iter().zip(&placed) {
            match verdict(missed, Reason::NoAck, placed.as_ref(), now, first_ms) {
                Verdict::Drop => {}
                Verdict::Retry(tier, again, failed) => {
                    if let Some(placed) = placed.as_ref().filter(|_| trace::on()) {
                        trace::reached(trace::Stage::Retried, &placed.message, again.lane, failed.attempt);
                    }
                    retries.push(on_tier(tier, &again));
                    facts.push(failed);
                }
                Verdict::Bury(letter, failed) => {
                    if let Some(message) = letter.message.as_ref().filter(|_| trace::on()) {
                        trace::reached(trace::Stage::Buried, message, message.priority, missed.attempt);
                    }
                    dead.push(*letter);
                    facts.extend(failed);
                }
            }
        }
        dead.retain(|dead: &Dead| self.ours(dead.inbox.partition));
        metrics::counter!("esh3ar_attempts_failed_total", "reason" => Reason::NoAck.word())
            .increment((retries.len() + dead.len()) as u64);
        retries.extend(dead.iter().map(record::dead));
        self.append(retries).await?;
        self.bury(dead).await?;
        self.append(record::facts(facts)).await
    }

    async fn bury(&self, dead: Vec<Dead>) -> Result<(), Stopped> {
        if dead.is_empty() {
            return Ok(());
        }
        let (history, gate) = (self.parts.history.as_ref(), &self.parts.gates.history);
        if let Done::Refused(why) = until_done(gate, &self.stop, "bury", || true, || history.bury(&dead)).await? {
            tracing::error!(%why, count = dead.len(), "dead letters are not in the index");
        }
        let count = dead.len();
        if self.teller.administrators.try_send(dead).is_err() {
            tracing::warn!(count, "administrators are not told of these: they stand in the dead letters");
        }
        Ok(())
    }
}
