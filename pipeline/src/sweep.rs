//! The sweep: what was to happen at a time happens, and what is too old goes (rule 8).
//!
//! One task an instance looks at the due-table of every partition it owns: scheduled messages that are due enter the flow,
//! messages whose `expires_at` passed without reaching anyone become `Failed(Expired)`. The same task removes what retention
//! has passed, in small steps, and forgets old dead letters. Promises that a message leaves history unreached only after its
//! `Failed(Expired)` fact is durable, and that a row is fed once while it is in flight. Times are compared by the wall clock,
//! since people named them, but a jump forward is believed late ([`crate::believed`]); the pace is the timer's, so a clock that
//! jumps changes what is due and not how often is looked.
//! A failure ends that look: the next one is the repetition. One that says that the partition is another's loses it, as nobody
//! else here may have anything to do with it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use schemas::{
    Clock, Epoch, Fact, Limits, MessageId, Millis, Partition, Priority, Reason, Timestamp, What,
    port::{Due, DueKind, History, Log, Placed, PortError, PortResult, Schedule},
    record,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    believed::{Now, Times},
    crowd::Crowd,
    gate::Gates,
    item::DueItem,
    ownership::Ownership,
    settle::{append, fact_of},
};

/// How long the row of a message that history does not have is left standing, ms. A store may write the row first; before the
/// message stands too the store may be away, or the owner may die, and then the message comes again from the log. A message
/// that retention has removed does not come again.
const MISSING_MS: u64 = 600_000;
/// How many looks' rows may be left standing before they take room from others.
const MISSING_LOOKS: usize = 9;
/// How often old dead letters are looked for, ms: they are kept for days, so a minute late is on time.
const FORGET_EVERY_MS: u64 = 60_000;

/// What a sweep works with.
pub(crate) struct SweepParts {
    /// Where facts are appended.
    pub(crate) log: Arc<dyn Log>,
    /// Whose tables are swept.
    pub(crate) history: Arc<dyn History>,
    /// The time.
    pub(crate) clock: Arc<dyn Clock>,
    /// The bounds.
    pub(crate) limits: Arc<Limits>,
    /// What is owned, and who is told that it is not any more.
    pub(crate) ownership: Arc<Ownership>,
    /// The breakers of the ports: a store that is left alone is not swept either.
    pub(crate) gates: Arc<Gates>,
    /// Which lanes take no more.
    pub(crate) crowd: Arc<Crowd>,
    /// Where scheduled messages go when they are due.
    pub(crate) feed: mpsc::Sender<Vec<DueItem>>,
    /// Ends it.
    pub(crate) stop: CancellationToken,
}

/// What is remembered of one partition.
#[derive(Debug, Default)]
struct Swept {
    /// Since which takeover.
    epoch: Epoch,
    /// Rows given to the flow and not yet gone from the table. At most a look's rows, because a look sees no further than
    /// those that are in flight.
    fed: HashMap<MessageId, Timestamp>,
    /// Rows whose message history did not have, and since when.
    missing: HashMap<MessageId, Millis>,
    /// Messages that retention has found unreached, and whose end is on its way to history.
    ending: HashSet<MessageId>,
}

impl Swept {
    /// Of the rows of a look (the oldest that are due, `limit` at most), those not in flight. Rows in flight that the look
    /// could see and did not are gone from the table.
    fn fresh(&mut self, rows: Vec<Due>, limit: usize) -> Vec<Due> {
        let seen: HashSet<_> = rows.iter().map(|row| row.id).collect();
        let end = if rows.len() < limit { None } else { rows.last().map(|row| row.at) };
        self.fed.retain(|id, at| seen.contains(id) || end.is_some_and(|end| *at >= end));
        rows.into_iter().filter(|row| !row.is_send() || !self.fed.contains_key(&row.id)).collect()
    }

    /// Of rows and their messages, those that can be decided about: not the expiry of a message that is not there yet.
    fn there(&mut self, rows: Vec<Due>, placed: Vec<Option<Placed>>, now: Millis) -> Vec<(Due, Option<Placed>)> {
        let before = std::mem::take(&mut self.missing);
        let mut there = |row: &Due, placed: &Option<Placed>| {
            if placed.is_some() || row.is_send() {
                return true;
            }
            let since = before.get(&row.id).copied().unwrap_or(now);
            let waits = now.since(since) < MISSING_MS;
            if waits {
                self.missing.insert(row.id, since);
            }
            !waits
        };
        rows.into_iter().zip(placed).filter(|(row, placed)| there(row, placed)).collect()
    }

    /// Of what retention found unreached, that whose end is not on its way yet.
    fn new_ends(&mut self, found: Vec<Placed>) -> Vec<Placed> {
        let before = std::mem::take(&mut self.ending);
        self.ending = found.iter().map(|placed| placed.message.id).collect();
        found.into_iter().filter(|placed| !before.contains(&placed.message.id)).collect()
    }
}

/// What is to be done with rows that are due.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    /// To the flow.
    feed: Vec<Due>,
    /// To be told.
    facts: Vec<Fact>,
    /// Done with.
    done: Vec<Due>,
}

/// Decides what rows that are due come to, by what is known of their messages.
fn plan(rows: Vec<(Due, Option<Placed>)>, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    for (row, placed) in rows {
        match (&row.kind, &placed) {
            (DueKind::Send(_), Some(placed)) if is_over(placed) => plan.done.push(row),
            (DueKind::Send(_), _) => plan.feed.push(row),
            (DueKind::Expire { .. }, placed) => {
                plan.facts.extend(placed.as_ref().and_then(|placed| expired(placed, now)));
                plan.done.push(row);
            }
        }
    }
    plan
}

/// The lane of a scheduled message.
fn lane(due: &Due) -> Option<Priority> {
    match &due.kind {
        DueKind::Send(message) => Some(message.priority),
        DueKind::Expire { .. } => None,
    }
}

/// Whether nothing is left to do for a scheduled message: it was taken back while it waited, or stands and has come to its end. What
/// an owner ended as it recorded it, or delivered, may not stand, and nobody may have been told: the flow looks.
fn is_over(placed: &Placed) -> bool {
    let state = &placed.state;
    let stands = placed.position.is_some() && !state.is_withdrawn();
    state.is_over() && (state.reason() == Some(Reason::Cancelled) || stands)
}

/// The fact that ends a message which its recipient never got; none if its present round has ended. One that was requeued
/// stays Failed as it waits, and its new round ends here all the same.
fn expired(placed: &Placed, now: Timestamp) -> Option<Fact> {
    let (state, what) = (&placed.state, What::Failed(Reason::Expired));
    (!state.is_over()).then(|| fact_of(placed, now, state.round(), state.attempt(), what))
}

/// See the module.
pub(crate) struct Sweep {
    parts: SweepParts,
    times: Times,
    swept: BTreeMap<Partition, Swept>,
    retained: Option<Millis>,
    forgotten: Option<Millis>,
}

impl Sweep {
    /// A sweep that has not looked yet.
    pub(crate) fn new(parts: SweepParts) -> Self {
        let times = Times::new(&*parts.clock);
        Self { parts, times, swept: BTreeMap::new(), retained: None, forgotten: None }
    }

    /// Looks, and looks again, at what is owned at that moment, until it is stopped.
    pub(crate) async fn run(mut self, owned: impl Fn() -> BTreeMap<Partition, Epoch> + Send) {
        let pace = self.pace();
        let stop = self.parts.stop.clone();
        let work = async {
            loop {
                tokio::time::sleep(pace).await;
                if !self.parts.gates.history.is_shut() {
                    self.look(&owned()).await;
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = work => {}
        }
    }

    /// One look at everything that is owned, each since its takeover.
    pub(crate) async fn look(&mut self, owned: &BTreeMap<Partition, Epoch>) {
        // Of a partition that went away nothing is remembered, also if it has come back since: what was in flight then may
        // have been dropped, and its rows tell what is still to be done.
        self.swept.retain(|partition, swept| owned.get(partition) == Some(&swept.epoch));
        let now = self.parts.clock.mono();
        let flow = &self.parts.limits.flow;
        let times = self.times.look(&*self.parts.clock, flow);
        let retains = self.retained.is_none_or(|last| now.since(last) >= flow.retain_every_ms);
        if retains {
            self.retained = Some(now);
        }
        let mut crowded = false;
        for (partition, epoch) in owned {
            let fresh = || Swept { epoch: *epoch, ..Swept::default() };
            let mut swept = self.swept.remove(partition).unwrap_or_else(fresh);
            let mut outcome = self.due(*partition, &mut swept, times.due, &mut crowded).await;
            if retains && outcome.is_ok() {
                outcome = self.retain(*partition, &mut swept, times).await;
            }
            self.swept.insert(*partition, swept);
            match outcome {
                Ok(()) => {}
                // Whatever else goes on here, nobody would sweep it any more.
                Err(error @ PortError::Fenced(_)) => self.parts.ownership.lost(*partition, *epoch, &error),
                Err(error) => {
                    metrics::counter!("esh3ar_port_retries_total", "call" => "sweep").increment(1);
                    tracing::warn!(%partition, %error, "the sweep looks again later");
                }
            }
        }
        // Dead letters belong to no partition: the owner of the first one forgets them.
        let forgets = self.forgotten.is_none_or(|last| now.since(last) >= FORGET_EVERY_MS);
        if forgets && owned.contains_key(&Partition(0)) {
            self.forgotten = Some(now);
            if let Err(error) = self.forget(times.old).await {
                tracing::warn!(%error, "old dead letters are looked for again later");
            }
        }
    }

    /// The due-table of one partition.
    async fn due(&self, partition: Partition, swept: &mut Swept, now: Timestamp, crowded: &mut bool) -> PortResult<()> {
        let SweepParts { history, gates, .. } = &self.parts;
        let most = self.parts.limits.flow.due_rows.max(1);
        // Those that are left standing take no room from the others.
        let limit = most + swept.missing.len().min(MISSING_LOOKS * most);
        let rows = gates.history.call(history.due(partition, now, limit)).await?;
        let rows = swept.fresh(rows, limit);
        if rows.is_empty() {
            return Ok(());
        }
        let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
        let placed = gates.history.call(history.messages(&ids)).await?;
        let mut plan = plan(swept.there(rows, placed, self.parts.clock.mono()), now);
        // What is due of a lane that is full stays in the table, and keeps no other lane's back.
        plan.feed.retain(|due| !lane(due).is_some_and(|lane| self.parts.crowd.is_full(lane)));
        // The fact first: a crash in between says it twice, which is the same as once.
        self.tell(plan.facts).await?;
        if !plan.done.is_empty() {
            let epochs = [(partition, swept.epoch)].into();
            let schedule = Schedule { done: plan.done, epochs, ..Schedule::default() };
            gates.history.call(history.record(&[], &schedule)).await?;
        }
        if !plan.feed.is_empty() {
            // The flow takes nothing while it is busy. That must not hold up what expires: after one wait a look only asks, and
            // what was not fed is still there at the next.
            let patience = if *crowded { Duration::ZERO } else { self.pace() };
            let Ok(room) = tokio::time::timeout(patience, self.parts.feed.reserve()).await else {
                *crowded = true;
                return Ok(());
            };
            let room = room.map_err(|_| unavailable("the flow has stopped"))?;
            swept.fed.extend(plan.feed.iter().map(|due| (due.id, due.at)));
            let epoch = swept.epoch;
            room.send(plan.feed.into_iter().map(|due| DueItem { due, epoch }).collect());
        }
        Ok(())
    }

    /// One step of retention.
    async fn retain(&self, partition: Partition, swept: &mut Swept, now: Now) -> PortResult<()> {
        let before = minus(now.old, self.parts.limits.message.retention_ms);
        let SweepParts { history, gates, limits, .. } = &self.parts;
        let look = history.retain(partition, before, limits.flow.retain_rows.max(1));
        let found = gates.history.call(look).await?;
        let ends = swept.new_ends(found);
        let ids: Vec<_> = ends.iter().map(|placed| placed.message.id).collect();
        let told = self.tell(ends.iter().filter_map(|placed| expired(placed, now.due)).collect()).await;
        if told.is_err() {
            // Not told yet: the next look tells it.
            swept.ending.retain(|id| !ids.contains(id));
        }
        told
    }

    fn pace(&self) -> Duration {
        Duration::from_millis(self.parts.limits.flow.due_every_ms.max(1))
    }

    async fn tell(&self, facts: Vec<Fact>) -> PortResult<()> {
        if facts.is_empty() {
            return Ok(());
        }
        metrics::counter!("esh3ar_messages_expired_total").increment(facts.len() as u64);
        let SweepParts { log, gates, stop, .. } = &self.parts;
        append(&gates.log, log.as_ref(), stop, |_| true, record::facts(facts))
            .await
            .map_err(|_| unavailable("stopping"))
    }

    async fn forget(&self, now: Timestamp) -> PortResult<()> {
        let before = minus(now, self.parts.limits.store.dead_ms);
        let step = self.parts.limits.flow.retain_rows.max(1);
        let SweepParts { history, gates, .. } = &self.parts;
        while gates.history.call(history.forget_dead(before, step)).await? >= step {}
        Ok(())
    }
}

fn minus(now: Timestamp, ms: u64) -> Timestamp {
    Timestamp(now.0.saturating_sub(i64::try_from(ms).unwrap_or(i64::MAX)))
}

fn unavailable(why: &str) -> PortError {
    PortError::Unavailable(why.to_owned())
}

#[cfg(test)]
#[path = "sweep/tests.rs"]
mod tests;
