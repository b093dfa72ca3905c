//! Deliver: hands routed batches to dispatch and does what follows from the outcomes. Batches of a lane are handed over in the
//! order they came.
//!
//! Taken: done. Absent: parked. Failed: a fact, and a record on the next tier or a grave. A batch's epoch stays open until its
//! facts, retries and dead letters are durable, so that no offset is committed before them; its credit is given back as soon
//! as the outcomes are known. A dispatch that panics or outlives its deadline has failed. Of a partition that was lost nothing is
//! handed over and nothing kept.

use std::{panic::AssertUnwindSafe, rc::Rc, time::Duration};

use futures::FutureExt as _;
use schemas::{
    Lane, Reason, Topic, What,
    port::{Append, Dead, Outcome, Routed, Schedule},
    record,
};

use super::{
    Done, Routes,
    act::{Act, act_in_order},
    repeat::{until_appended, until_buried, until_recorded},
    route::{Ways, is_own},
};
use crate::{
    effects::{Effects, Tried},
    gauges,
    item::Batch,
    ownership::Owners,
    receipts,
    shared::Shared,
    tenants::Kind,
    trace,
};

/// Past its own deadline, dispatch is given so long, ms, to say what failed.
const GRACE_MS: u64 = 1_000;

/// The operator.
pub(crate) fn deliver<'scope>(batches: Routes<'scope>, lane: Lane, shared: &Rc<Shared>) -> Done<'scope> {
    let shared = shared.clone();
    act_in_order(batches, "deliver", lane, shared.rim.clone(), move |batch: Batch<Ways>| {
        if batch.load.sends.is_empty() && batch.load.effects.is_empty() {
            return Act::Now(());
        }
        let shared = shared.clone();
        Act::Later(async move {
            let Batch { load: Ways { mut sends, mut effects }, credit, mut owners, .. } = batch;
            let gone = owners.drop_lost(&shared.kit.ownership);
            sends.retain(|routed| !gone.contains(&routed.hint.inbox.partition));
            effects.drop_of(&gone);
            hand_over(&shared, lane, sends, &mut effects).await;
            drop(credit);
            effects.drop_of(&owners.drop_lost(&shared.kit.ownership));
            keep(&shared, lane, effects, owners).await;
        })
    })
}

/// Delivers, and decides what follows.
async fn hand_over(shared: &Shared, lane: Lane, sends: Vec<Routed>, effects: &mut Effects) {
    if sends.is_empty() {
        return;
    }
    let kit = &shared.kit;
    let begun = kit.clock.mono();
    let tried: Vec<_> = sends.iter().map(|routed| (!is_own(&routed.hint)).then(|| Tried::of(&routed.hint))).collect();
    let within = Duration::from_millis(kit.limits.flow.deliver_ms + GRACE_MS);
    let delivery = AssertUnwindSafe(kit.ports.dispatch.deliver(sends)).catch_unwind();
    let outcomes = match tokio::time::timeout(within, delivery).await {
        Ok(Ok(outcomes)) if outcomes.len() == tried.len() => outcomes,
        answer => {
            tracing::error!(answered = answer.is_ok(), lane = lane.word(), "a delivery has no outcome: it failed");
            vec![Outcome::Failed(Reason::NodeUnreachable); tried.len()]
        }
    };
    shared.took(&shared.stages.delivered, begun);
    let (at, listens) = (kit.clock.wall(), trace::on());
    for (tried, outcome) in tried.iter().zip(outcomes) {
        let Some(tried) = tried else { continue };
        match outcome {
            Outcome::Taken if listens => {
                trace::reached(trace::Stage::Delivered, &tried.message, lane, tried.attempt);
            }
            Outcome::Taken => {}
            Outcome::Absent => {
                kit.handed.sent(tried.message.id);
                gauges::add(&shared.count(lane).parked, 1);
                shared.tell(lane, Kind::Parked, [tried.message.tenant()]);
                effects.parked(tried, at);
            }
            Outcome::Failed(reason) => {
                kit.handed.sent(tried.message.id);
                let stage = match tried.attempt.failed() {
                    schemas::tier::Next::Retry(..) if reason.is_retryable() => trace::Stage::Retried,
                    _ => trace::Stage::Buried,
                };
                if listens {
                    trace::reached(stage, &tried.message, lane, tried.attempt);
                }
                effects.failed(tried, lane, reason, at, kit.limits.flow.retry_first_ms);
            }
        }
    }
}

/// Makes what follows durable, however long it takes. What is to be done again comes before the fact that it failed: a
/// crash in between does the step again, the other way round it would be forgotten.
async fn keep(shared: &Shared, lane: Lane, effects: Effects, mut owners: Owners) {
    if effects.is_empty() {
        return;
    }
    let kit = &shared.kit;
    gauges::add(&shared.count(lane).retries, effects.again.len());
    gauges::add(&shared.count(lane).buried, effects.dead.len());
    shared.tell(lane, Kind::Retried, effects.again.iter().map(|(_, again)| &again.inbox.user.tenant));
    shared.tell(lane, Kind::Buried, effects.dead.iter().map(|dead| &dead.inbox.user.tenant));
    let Effects { facts, again, dead, done, marks, signals } = effects;
    for fact in &facts {
        if let What::AttemptFailed(reason) = fact.what {
            metrics::counter!("esh3ar_attempts_failed_total", "reason" => reason.word()).increment(1);
        }
    }
    if !dead.is_empty() {
        until_buried(kit, &dead, &owners).await;
    }
    until_appended(kit, follows(&again, &dead), &mut owners).await;
    until_appended(kit, record::facts(facts), &mut owners).await;
    for marked in marks {
        receipts::tell(shared, &marked, &mut owners).await;
    }
    if !signals.is_empty() {
        kit.ports.dispatch.signal(signals).await;
    }
    if !dead.is_empty() {
        kit.ports.dispatch.alarm(&dead).await;
    }
    if !done.is_empty() {
        until_recorded(kit, Vec::new(), Schedule { done, ..Schedule::default() }, owners).await;
    }
}

/// The records of retries and graves.
fn follows(retries: &[(schemas::tier::Tier, record::Again)], dead: &[Dead]) -> Vec<Append> {
    let retries = retries.iter().map(|(tier, again)| record::again(Topic::Retry(*tier), again));
    retries.chain(dead.iter().map(record::dead)).collect()
}
