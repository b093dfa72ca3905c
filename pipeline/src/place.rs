//! Places: gives each message of a batch its place in its inbox, or finds out that it has one. Pure: what history knows is an
//! argument, and so are the ends of inboxes and the time.

mod talk;

use std::{collections::HashMap, sync::Arc};

use schemas::{
    ConversationId, Inbox, Kind, Lane, Message, MessageId, Position, Reason, State, Timestamp, What,
    conversation::Shown,
    fact::Past,
    limits::ChatLimits,
    port::{Counted, Dead, Due, DueKind, Entry, Hint, Known, Placed, Schedule},
    record::Again,
    tier::Attempt,
};

use self::talk::Here;
pub(crate) use self::talk::{Concerned, concerned};
use crate::{
    conversations::Threads,
    item::{Fresh, Item, Step, Work},
    tails::{Given, Tails},
};

/// What history told about the ids of a batch.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Those it knows.
    pub(crate) known: HashMap<MessageId, Known>,
    /// Scheduled ones that are due, with what became of them meanwhile.
    pub(crate) due: HashMap<MessageId, Placed>,
    /// Chat messages that it has, of those that came again and of those that commands are about.
    pub(crate) said: HashMap<MessageId, Shown>,
    /// Turns of those that came before, where they may stand in part.
    pub(crate) counted: HashMap<MessageId, Counted>,
    /// What was addressed to each side up to a turn.
    pub(crate) counts: HashMap<(ConversationId, u64), (u64, u64)>,
}

/// What is to be written, and what is left to do after it.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// New entries.
    pub(crate) entries: Vec<Entry>,
    /// Rows of the due-table.
    pub(crate) schedule: Schedule,
    /// What is left to do.
    pub(crate) steps: Vec<Step>,
    /// Repeats that were dropped.
    pub(crate) repeats: usize,
}

/// What is the same for a whole batch.
pub(crate) struct Placing<'a> {
    /// The lane.
    pub(crate) lane: Lane,
    /// Now.
    pub(crate) now: Timestamp,
    /// The number of the write.
    pub(crate) write: u64,
    /// What history told.
    pub(crate) found: &'a Found,
    /// The ends of inboxes; each inbox of the batch is held there once per message.
    pub(crate) tails: &'a mut Tails,
    /// Conversations; those of the batch are held there, and so are the inboxes that they may write to.
    pub(crate) threads: &'a mut Threads,
    /// The bounds of chat.
    pub(crate) chat: &'a ChatLimits,
    /// How long messages are kept, ms: retention ends what expires later, so that it needs no row.
    pub(crate) retention_ms: u64,
}

impl Placing<'_> {
    /// Decides for a batch. An item that is a one-way message comes with its inbox; those of chat are placed by the rows.
    pub(crate) fn plan(&mut self, items: Vec<(Option<Inbox>, Item)>) -> Plan {
        let mut plan = Plan { steps: Vec::with_capacity(items.len()), ..Plan::default() };
        for (inbox, item) in items {
            let Item { partition, epoch, offset, work } = item;
            let here = |accepted_at| Here { partition, epoch, offset, accepted_at };
            match (work, inbox) {
                (Work::Again(again), _) => plan.steps.push(Step::Again(again)),
                (Work::Dead(dead), _) => plan.steps.push(Step::Bury(dead)),
                (Work::Fresh(fresh), Some(inbox)) => self.fresh(fresh, inbox, epoch, &mut plan),
                (Work::Fresh(fresh), None) => {
                    let here = here(fresh.message.accepted_at);
                    if let Some(id) = fresh.message.kind.conversation() {
                        self.say(fresh, id, here, &mut plan);
                    }
                }
                (Work::Chat(asked), _) => {
                    self.asked(&asked, here(asked.command.accepted_at), &mut plan);
                }
            }
        }
        plan
    }

    fn fresh(&mut self, mut fresh: Fresh, inbox: Inbox, epoch: schemas::Epoch, plan: &mut Plan) {
        let placed = fresh.due.as_ref().and_then(|due| self.found.due.get(&due.id));
        let state = placed.map(|placed| &placed.state);
        if state.and_then(State::reason) == Some(Reason::Cancelled) {
            // While it was scheduled: it is done with, and never gets a place.
            self.tails.unpin(&inbox, epoch);
            plan.schedule.done.extend(fresh.due.as_deref().cloned());
            return;
        }
        // It ended before it was recorded, for an owner whose entry may not stand and who may have told nobody: so it ends now.
        if let Some(state) = state.filter(|state| state.is_withdrawn()) {
            fresh.end = state.reason();
        }
        let is_done = state.is_some_and(State::is_over);
        let known = placed.and_then(|placed| placed.position).filter(|at| self.tails.reaches(&inbox, epoch, *at));
        let message = &fresh.message;
        // The row stays until what follows from it is durable: a crash in between finds it again, and its message recorded.
        let done = fresh.due.clone().map(Step::Done);
        if let Some(position) = known {
            self.tails.unpin(&inbox, epoch);
            plan.steps.push(match fresh.end {
                Some(reason) => Step::Fail(Box::new(hint(fresh, inbox, position, Position::START)), reason),
                None => Step::Again(Box::new(again(self.lane, &fresh, inbox, position, self.now))),
            });
            plan.steps.extend(done);
            return;
        }
        // A place beyond the inbox's end is one that a late owner gave: nobody will find the message there.
        let stands = |known: &&Known| known.position.is_none_or(|at| self.tails.reaches(&inbox, epoch, at));
        let known = self.found.known.get(&message.id).filter(|_| fresh.due.is_none()).filter(stands);
        if let Some(known) = known {
            self.tails.unpin(&inbox, epoch);
            if known.fingerprint != message.fingerprint {
                plan.steps.push(Step::Bury(Box::new(conflict(&fresh, inbox, self.now))));
                return;
            }
            match (known.position, fresh.end) {
                // Recorded before a crash, and perhaps not followed up: its state tells.
                (Some(position), Some(reason)) if fresh.replay => {
                    let prev = Position::START;
                    plan.steps.push(Step::Fail(Box::new(hint(fresh, inbox, position, prev)), reason));
                }
                (Some(position), None) if fresh.replay => {
                    // Who recorded it may have been late: its row is then one that nobody looks for.
                    plan.schedule.add.extend(self.expiry(message, &inbox, position));
                    plan.steps.push(Step::Again(Box::new(again(self.lane, &fresh, inbox, position, self.now))));
                }
                (None, None) if fresh.replay => plan.schedule.add.extend(sending(message, &inbox)),
                _ => plan.repeats += 1,
            }
            return;
        }
        if fresh.conflict {
            // The first under this name was met within the window and is on its way to history.
            self.tails.unpin(&inbox, epoch);
            plan.steps.push(Step::Bury(Box::new(conflict(&fresh, inbox, self.now))));
            return;
        }
        if fresh.due.is_none() && fresh.end.is_none() && message.is_scheduled(self.now) {
            self.tails.unpin(&inbox, epoch);
            plan.schedule.add.extend(sending(message, &inbox));
            return;
        }
        // An owner that died while it scheduled it may have left the row alone.
        let done = done.or_else(|| sending(message, &inbox).map(Box::new).map(Step::Done));
        let given = self.tails.give(&inbox, epoch, matches!(message.kind, Kind::OneWay), self.write);
        self.entry(fresh, inbox, given, is_done, plan);
        plan.steps.extend(done);
    }

    /// The row of a message that ends before retention would end it.
    fn expiry(&self, message: &Message, inbox: &Inbox, position: Position) -> Option<Due> {
        let at = message.expires_at.filter(|at| *at <= self.now.plus_ms(self.retention_ms))?;
        let kind = DueKind::Expire { id: message.id, inbox: inbox.clone(), position };
        Some(Due { partition: inbox.partition, at, id: message.id, kind })
    }

    /// A new entry. `is_done`: somebody has the message from one that does not stand, and is not offered it again.
    fn entry(&self, fresh: Fresh, inbox: Inbox, given: Given, is_done: bool, plan: &mut Plan) {
        let Given { position, prev, one_way } = given;
        let message = fresh.message.clone();
        if fresh.end.is_none() {
            plan.schedule.add.extend(self.expiry(&message, &inbox, position));
        }
        let (of, recorded_at) = (inbox.clone(), self.now);
        // Recorded together: nobody reads an entry that is not to be sent without seeing that it is not.
        let attempt = Attempt::default();
        let failed = |reason| Past { at: self.now, what: What::Failed(reason), round: 0, attempt, device: None };
        let end = fresh.end;
        let entry = Entry { inbox: of, position, prev, one_way, recorded_at, seq: None, message, end: end.map(failed) };
        plan.entries.push(entry);
        plan.steps.push(match end {
            Some(reason) => Step::Fail(Box::new(hint(fresh, inbox, position, prev)), reason),
            None if is_done => Step::Again(Box::new(again(self.lane, &fresh, inbox, position, self.now))),
            None => Step::Offer(Box::new(hint(fresh, inbox, position, prev))),
        });
    }
}

/// The row of a message that is to be sent later.
fn sending(message: &Arc<Message>, inbox: &Inbox) -> Option<Due> {
    let at = message.send_at?;
    Some(Due { partition: inbox.partition, at, id: message.id, kind: DueKind::Send(message.clone()) })
}

fn hint(fresh: Fresh, inbox: Inbox, position: Position, prev: Position) -> Hint {
    let state = Default::default();
    Hint { inbox, position, prev, seq: None, message: fresh.message, round: 0, attempt: Attempt::default(), state }
}

/// A message that has its place already and is to be followed up. Its state, which route reads, says from which attempt on.
fn again(lane: Lane, fresh: &Fresh, inbox: Inbox, position: Position, now: Timestamp) -> Again {
    Again { id: fresh.message.id, lane, inbox, position, round: 0, attempt: Attempt::default(), due_at: now }
}

/// Another request under a used name. It is buried under a name of its own, made of both, so that it never stands in the way
/// of the message that had the name first; its message shows the name that was asked for.
fn conflict(fresh: &Fresh, inbox: Inbox, now: Timestamp) -> Dead {
    let message = &fresh.message;
    let name = format!("{} {:032x}", message.id, u128::from_be_bytes(message.fingerprint));
    Dead {
        id: MessageId::of_key(message.tenant(), "idempotency_conflict", &name, &message.to),
        at: now,
        reason: Reason::IdempotencyConflict,
        round: 0,
        attempts: 0,
        inbox,
        position: Position::START,
        requeued_at: None,
        message: Some(message.clone()),
    }
}

#[cfg(test)]
mod tests;
