//! Route: finds where the recipients of a batch are, in one look-up. Who is nowhere waits in the inbox: parked.
//!
//! A retry reads its message's state first: what is done or withdrawn is not sent, the rest goes on with the attempt that is
//! due. What its sender took back meanwhile is not sent either ([`crate::handed`]). Keeps the order of a lane's batches. Where
//! presence does not say, the message is parked too, no attempt is charged, and it is offered once presence answers
//! ([`crate::unlocated`]).

use std::{collections::HashMap, rc::Rc};

use schemas::{
    Lane, MessageId, NodeId, Reason, Sender, Timestamp, UserId,
    port::{Hint, Place, Placed, Routed},
    record::Again,
};

use super::{
    Recorded, Routes,
    act::{Act, act_in_order},
    repeat::{again, until_answered},
};
use crate::{
    backoff::Backoff,
    effects::{Effects, Tried},
    gauges,
    item::{Batch, Step},
    ownership::Owners,
    shared::Shared,
    tenants::Kind,
    trace, unlocated,
};

/// Where a batch goes.
#[derive(Debug, Default)]
pub(crate) struct Ways {
    /// To be delivered, in order.
    pub(crate) sends: Vec<Routed>,
    /// To be told and kept.
    pub(crate) effects: Effects,
}

/// The operator.
pub(crate) fn route<'scope>(batches: Recorded<'scope>, lane: Lane, shared: &Rc<Shared>) -> Routes<'scope> {
    let shared = shared.clone();
    act_in_order(batches, "route", lane, shared.rim.clone(), move |mut batch: Batch<Vec<Step>>| {
        let steps = std::mem::take(&mut batch.load);
        if steps.is_empty() {
            return Act::Now(batch.with(Ways::default()));
        }
        let shared = shared.clone();
        Act::Later(async move {
            let ways = find_ways(&shared, lane, steps, &batch.owners).await;
            batch.with(ways)
        })
    })
}

async fn find_ways(shared: &Rc<Shared>, lane: Lane, steps: Vec<Step>, owners: &Owners) -> Ways {
    let kit = &shared.kit;
    let now = kit.clock.wall();
    let agains: Vec<MessageId> =
        steps.iter().filter_map(|step| if let Step::Again(again) = step { Some(again.id) } else { None }).collect();
    let Some(placed) = until_answered(kit, owners, &agains, || kit.ports.history.messages(&agains)).await else {
        return Ways::default();
    };
    let Sorted { offers, mut effects } = sort(steps, placed, now);
    let mut users: Vec<UserId> = offers.iter().map(|hint| hint.inbox.user.clone()).collect();
    users.sort_unstable();
    users.dedup();
    let places = match users.is_empty() {
        true => Ok(Vec::new()),
        false => {
            let begun = kit.clock.mono();
            let places = kit.gates.presence.call_now(kit.ports.presence.locate(&users)).await;
            shared.took(&shared.stages.routed, begun);
            places
        }
    };
    let mut sends = Vec::with_capacity(offers.len());
    match places {
        Ok(places) => {
            let nodes: HashMap<&UserId, Vec<NodeId>> = users.iter().zip(places.iter().map(|at| nodes(at))).collect();
            let mono = kit.clock.mono();
            for hint in offers {
                let nodes = nodes.get(&hint.inbox.user).map_or(&[][..], Vec::as_slice);
                let own = is_own(&hint);
                if nodes.is_empty() {
                    if !own {
                        effects.parked(&Tried::of(&hint), now);
                    }
                } else if own || kit.handed.hand(hint.message.id, hint.message.accepted_at, mono) {
                    sends.push(Routed { hint, nodes: nodes.to_vec() });
                }
            }
        }
        Err(why) => {
            again("locate", &why, &Backoff::default());
            let offers: Vec<_> = offers.into_iter().filter(|hint| !is_own(hint)).collect();
            offers.iter().for_each(|hint| effects.parked(&Tried::of(hint), now));
            unlocated::remember(shared, offers, owners);
        }
    }
    let parked = || effects.facts.iter().filter(|fact| fact.what == schemas::What::Parked);
    gauges::add(&shared.count(lane).parked, parked().count());
    shared.tell(lane, Kind::Parked, parked().map(|fact| &fact.inbox.user.tenant));
    if trace::on() {
        sends.iter().for_each(|Routed { hint, .. }| {
            trace::reached(trace::Stage::Routed, &hint.message, lane, hint.attempt);
        });
    }
    Ways { sends, effects }
}

/// Whether it is for the other devices of whoever did it, or a copy: nothing is said about it, and nobody waits for it.
pub(crate) fn is_own(hint: &Hint) -> bool {
    let (user, message) = (&hint.inbox.user, &hint.message);
    message.kind.conversation().is_some()
        && (*user != message.to || matches!(&message.from, Sender::User(party) if *party == user.party))
}

/// The nodes of a user's places, each once.
pub(crate) fn nodes(places: &[Place]) -> Vec<NodeId> {
    let mut nodes: Vec<_> = places.iter().map(|place| place.node.clone()).collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes
}

/// What of a batch is to be offered, and what is decided already.
struct Sorted {
    offers: Vec<Hint>,
    effects: Effects,
}

/// Sorts steps; `placed` answers the retries among them, in order.
fn sort(steps: Vec<Step>, placed: Vec<Option<Placed>>, now: Timestamp) -> Sorted {
    let mut sorted = Sorted { offers: Vec::with_capacity(steps.len()), effects: Effects::default() };
    let mut placed = placed.into_iter();
    for step in steps {
        match step {
            Step::Offer(hint) => sorted.offers.push(*hint),
            Step::Fail(hint, reason) => sorted.effects.ended(&Tried::of(&hint), reason, now),
            Step::Bury(dead) => sorted.effects.dead.push(*dead),
            Step::Done(due) => sorted.effects.done.push(*due),
            Step::Refuse(fact) => sorted.effects.facts.push(*fact),
            Step::Marked(marked) => sorted.effects.marks.push(*marked),
            Step::Tell(_, signals) => sorted.effects.signals.extend(signals),
            Step::Again(again) => match placed.next().flatten().and_then(|placed| retried(&again, placed)) {
                // It expired while it waited, or while the process was away.
                Some(hint) if hint.message.is_expired(now) => {
                    sorted.effects.ended(&Tried::of(&hint), Reason::Expired, now);
                }
                Some(hint) => sorted.offers.push(hint),
                None => {}
            },
        }
    }
    sorted
}

/// The next attempt, if its message's state still asks for one (rule 7).
fn retried(again: &Again, placed: Placed) -> Option<Hint> {
    let Placed { message, inbox, position, prev, seq, state, .. } = placed;
    if state.is_done(again.round) || state.is_withdrawn() {
        return None;
    }
    // A replayed record does not know how far its attempts had come.
    let attempt = if state.round() == again.round { again.attempt.max(state.attempt()) } else { again.attempt };
    Some(Hint { inbox, position: position?, prev, seq, message, round: again.round, attempt, state })
}
