//! Requeue: dead letters are tried again, in a new round with attempts of its own (R4.5).
//!
//! Copies, confirms, then marks: the message's record in its lane and its `Requeued` fact are durable before the dead letter
//! says that it was requeued. A crash in between repeats the same round, which changes nothing; a second call finds the mark
//! and does nothing. What cannot be tried again is refused with its reason. Reads a page at a time, so a million dead
//! letters take the memory of one page; the report counts all and lists the first thousand ids.

use std::collections::HashSet;

use schemas::{
    Clock, Fact, MessageId, Position, Reason, Timestamp, Topic, What,
    limits::PAGE_MAX,
    port::{Dead, Filter, History, Log, Placed, PortError, PortResult},
    record::{self, Again},
    tier::Attempt,
};
use serde::Serialize;

use crate::settle::fact_of;

/// Ids that a report lists; past that they are counted.
const LISTED: usize = 1_000;

/// Which dead letters are meant.
#[derive(Debug, Clone, PartialEq)]
pub enum Which {
    /// These.
    Ids(Vec<MessageId>),
    /// All that the filter takes.
    Filter(Filter),
}

/// A dead letter that was not requeued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// Which.
    pub id: MessageId,
    /// Why, in a sentence.
    pub why: String,
}

/// What a requeue came to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Report {
    /// Nothing was changed: this is what would be.
    pub dry_run: bool,
    /// How many were requeued.
    pub requeued: u64,
    /// The first of them.
    pub ids: Vec<MessageId>,
    /// How many were refused.
    pub refused: u64,
    /// The first of them, with reasons.
    pub refusals: Vec<Refused>,
}

impl Report {
    fn took(&mut self, id: MessageId) {
        self.requeued += 1;
        if self.ids.len() < LISTED {
            self.ids.push(id);
        }
    }

    fn refuse(&mut self, id: MessageId, why: impl Into<String>) {
        self.refused += 1;
        if self.refusals.len() < LISTED {
            self.refusals.push(Refused { id, why: why.into() });
        }
    }
}

/// Tries dead letters again. A page that cannot be read ends it with that error; what was done until then is done, and the
/// same call again goes on from there. Append failures refuse the letters they concern.
pub async fn requeue(
    log: &dyn Log,
    history: &dyn History,
    clock: &dyn Clock,
    which: Which,
    dry_run: bool,
) -> PortResult<Report> {
    let mut report = Report { dry_run, ..Report::default() };
    match which {
        Which::Ids(ids) => {
            let mut seen = HashSet::new();
            let ids: Vec<_> = ids.into_iter().filter(|id| seen.insert(*id)).collect();
            for ids in ids.chunks(PAGE_MAX) {
                let mut page = Vec::with_capacity(ids.len());
                for id in ids {
                    match history.dead_letter(*id).await? {
                        Some(dead) => page.push(dead),
                        None => report.refuse(*id, "there is no dead letter of this id"),
                    }
                }
                requeue_page(log, history, clock, page, &mut report).await?;
            }
        }
        Which::Filter(filter) => {
            let mut from = None;
            loop {
                let page = history.dead(&filter, from, PAGE_MAX).await?;
                requeue_page(log, history, clock, page.rows, &mut report).await?;
                match page.next {
                    Some(next) => from = Some(next),
                    None => break,
                }
            }
        }
    }
    Ok(report)
}

/// One page: decide, then copy, confirm and mark.
async fn requeue_page(
    log: &dyn Log,
    history: &dyn History,
    clock: &dyn Clock,
    page: Vec<Dead>,
    report: &mut Report,
) -> PortResult<()> {
    if page.is_empty() {
        return Ok(());
    }
    let ids: Vec<_> = page.iter().map(|dead| dead.id).collect();
    let found = history.messages(&ids).await?;
    let now = clock.wall();
    let mut planned = Vec::with_capacity(page.len());
    for (dead, placed) in page.into_iter().zip(found) {
        match plan(&dead, placed.as_ref(), now) {
            Ok((again, fact)) => planned.push((dead, again, fact)),
            Err(why) => report.refuse(dead.id, why),
        }
    }
    if report.dry_run {
        planned.iter().for_each(|(dead, ..)| report.took(dead.id));
        return Ok(());
    }
    // The facts first: they begin the round that the lanes' records belong to.
    let facts = log.append(record::facts(planned.iter().map(|(.., fact)| fact.clone()).collect())).await;
    let told = planned.iter().map(|(.., fact)| fact.inbox.partition).collect::<std::collections::BTreeSet<_>>();
    let told: std::collections::BTreeMap<_, _> = told.into_iter().zip(facts).collect();
    let (copied, untold): (Vec<_>, Vec<_>) =
        planned.into_iter().partition(|(.., fact)| told.get(&fact.inbox.partition).is_some_and(Result::is_ok));
    for (dead, _, fact) in untold {
        report.refuse(dead.id, failed(told.get(&fact.inbox.partition).and_then(|answer| answer.as_ref().err())));
    }
    let records = copied.iter().map(|(_, again, _)| record::again(Topic::Lane(again.lane), again)).collect();
    let answers = log.append(records).await;
    let mut marks = Vec::with_capacity(copied.len());
    for ((dead, ..), answer) in copied.into_iter().zip(answers) {
        match answer {
            Ok(_) => marks.push(Dead { requeued_at: Some(now), ..dead }),
            Err(error) => report.refuse(dead.id, failed(Some(&error))),
        }
    }
    if !marks.is_empty() {
        history.bury(&marks).await?;
    }
    marks.iter().for_each(|dead| report.took(dead.id));
    metrics::counter!("esh3ar_requeued_total").increment(marks.len() as u64);
    Ok(())
}

fn failed(error: Option<&PortError>) -> String {
    match error {
        Some(PortError::Unknown(why)) => format!("it may have been requeued ({why}): ask again, it is done once"),
        Some(error) => format!("it was not requeued ({error}): ask again"),
        None => "it was not requeued: ask again".to_owned(),
    }
}

/// What tries a dead letter again, or why that is not possible.
fn plan(dead: &Dead, placed: Option<&Placed>, now: Timestamp) -> Result<(Again, Fact), String> {
    if let Some(at) = dead.requeued_at {
        return Err(format!("it was requeued at {at}"));
    }
    match dead.reason {
        Reason::IdempotencyConflict => {
            return Err("its key belongs to another message: send it under a key of its own".to_owned());
        }
        Reason::Unreadable => return Err("it cannot be read, so there is nothing to send".to_owned()),
        Reason::Cancelled => return Err("its sender took it back".to_owned()),
        Reason::Expired => return Err("its time had passed: send it anew".to_owned()),
        _ => {}
    }
    if dead.position == Position::START {
        return Err("it was never recorded, so it has no place to be sent from: send it anew".to_owned());
    }
    let Some(placed) = placed else { return Err("the message is no longer kept: send it anew".to_owned()) };
    if placed.state.status().is_reached() {
        return Err("its recipient has got it meanwhile".to_owned());
    }
    if placed.state.is_withdrawn() {
        return Err("it has expired or was taken back".to_owned());
    }
    if placed.message.is_expired(now) {
        return Err("its time has passed: send it anew".to_owned());
    }
    let round = dead.round.checked_add(1).ok_or("it has been requeued as often as can be counted")?;
    if placed.state.round() > round {
        return Err("a later round of it is under way".to_owned());
    }
    let (lane, inbox, attempt) = (placed.message.priority, dead.inbox.clone(), Attempt::default());
    let again = Again { id: dead.id, lane, inbox, position: dead.position, round, attempt, due_at: now };
    Ok((again, fact_of(placed, now, round, attempt, What::Requeued)))
}

#[cfg(test)]
#[path = "requeue/tests.rs"]
mod tests;
