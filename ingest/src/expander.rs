//! Turns stored broadcasts into messages, little by little, while their lane has free room (rule 13).
//!
//! Each message's id follows from the broadcast and the recipient, and all its bytes from what was stored, so that a chunk that
//! was appended and not yet noted is appended again after a crash and recognised by the pipeline: nobody is sent two. Which
//! process expands which broadcast is said by [`crate::turns`].
//!
//! What was accepted is carried out: it was held to the limits then, and is not held to those of today. Only its sender
//! cancels it. One that this process cannot read, or that errs, stands until it can go on, and holds up no other.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use schemas::{
    BroadcastId, Draft, Millis, Phone, Priority, Problem, UserId,
    draft::{Admission, Shared},
    limits::MessageLimits,
    port::{Broadcast, BroadcastState, PortError, PortResult},
    record,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{door::Door, text, turns::Turns};

/// Recipients appended at once: what one commit group holds well.
const CHUNK: u64 = 500;
/// How often stored broadcasts are looked for without being told: those that another process took in.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long to wait after a fault of the log or of history.
const AFTER_FAULT: Duration = Duration::from_secs(1);
/// How often a broadcast that cannot be read here is told of, ms: it may stay so until all processes are newer ones.
const TELL_EVERY_MS: u64 = 10 * 60_000;
/// Refuse nothing: what is stored was held to the limits of its acceptance, and they may have been lowered since.
const UNBOUNDED: MessageLimits = MessageLimits {
    content_chars: usize::MAX,
    content_bytes: usize::MAX,
    subject_chars: usize::MAX,
    metadata_bytes: usize::MAX,
    send_at_ahead_ms: u64::MAX,
    retention_ms: u64::MAX,
};

/// Expands until told to stop. Holds the door only while it works, so that it does not keep it.
pub(crate) async fn run(door: Weak<Door>, mut turns: Turns, stop: CancellationToken) {
    let mut told = Told::default();
    loop {
        let Some(now) = door.upgrade() else { return };
        let (asked, begun) = (now.asked.clone(), now.broadcast_begun.clone());
        let step = tokio::select! {
            () = stop.cancelled() => return,
            step = step(&now, &mut turns, &mut told) => step,
        };
        drop(now);
        let pause = async {
            match step {
                Ok(Step::Went) => {}
                Ok(Step::NoRoom) => wait(&asked, LOOK_EVERY).await,
                Ok(Step::Nothing) => wait(&begun, LOOK_EVERY).await,
                Err(why) => {
                    tracing::warn!(%why, "broadcasts cannot be expanded now");
                    tokio::time::sleep(AFTER_FAULT).await;
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = pause => {}
        }
    }
}

/// Until told, or so long.
async fn wait(told: &Arc<Notify>, at_most: Duration) {
    let _ = tokio::time::timeout(at_most, told.notified()).await;
}

enum Step {
    /// Something was appended.
    Went,
    /// There are broadcasts and their lanes have no room.
    NoRoom,
    /// There are no broadcasts that are this process's and that it can read.
    Nothing,
}

/// What became of a chunk.
enum Chunk {
    /// How far its broadcast is then, and what stopped the log before the chunk's end.
    Went(u64, Option<PortError>),
    /// Its lane has no room.
    NoRoom,
    /// What is stored says nothing to this process, and why.
    Unreadable(String),
}

/// When it was last told that a broadcast cannot be read here.
#[derive(Default)]
struct Told(HashMap<BroadcastId, Millis>);

impl Told {
    /// Whether it is to be told now, which then counts as told.
    fn is_due(&mut self, id: BroadcastId, now: Millis) -> bool {
        let due = self.0.get(&id).is_none_or(|at| now.since(*at) >= TELL_EVERY_MS);
        if due {
            self.0.insert(id, now);
        }
        due
    }

    /// Forgets those that run no more.
    fn keep(&mut self, running: impl Fn(BroadcastId) -> bool) {
        self.0.retain(|id, _| running(*id));
    }
}

/// A chunk of every running broadcast whose turn is here and whose lane has room: a short one is not kept waiting by a
/// long one, and none by one that errs. Answers the first error once all had their chunk.
async fn step(door: &Door, turns: &mut Turns, told: &mut Told) -> PortResult<Step> {
    let begun = std::mem::take(&mut *door.begun.lock());
    let running = match door.parts.history.running().await {
        Ok(running) => running,
        Err(why) => {
            // They are still this process's to begin.
            door.begun.lock().extend(begun);
            return Err(why);
        }
    };
    turns.keep(|id| running.iter().any(|broadcast| broadcast.id == id));
    told.keep(|id| running.iter().any(|broadcast| broadcast.id == id));
    let (mut step, mut fault) = (Step::Nothing, None);
    for broadcast in running {
        let (id, own) = (broadcast.id, begun.contains(&broadcast.id));
        if !turns.is_mine(id, broadcast.expanded, own, door.parts.clock.mono()) {
            if !has_room(door, &broadcast) {
                turns.had_no_room(id, door.parts.clock.mono());
            }
            continue;
        }
        match expand(door, &broadcast).await {
            Ok(Chunk::Went(expanded, stopped)) => {
                turns.went(id, expanded, door.parts.clock.mono());
                step = Step::Went;
                fault = fault.or(stopped);
            }
            Ok(Chunk::NoRoom) if !matches!(step, Step::Went) => step = Step::NoRoom,
            Ok(Chunk::NoRoom) => {}
            // Nothing is written of it, so that it stands still, and whoever can read it takes the turn.
            Ok(Chunk::Unreadable(why)) => {
                if told.is_due(id, door.parts.clock.mono()) {
                    tracing::error!(broadcast = %id, %why, "a stored broadcast cannot be read here, and waits");
                }
            }
            Err(why) => {
                tracing::debug!(broadcast = %id, %why, "a broadcast cannot go on now");
                fault = fault.or(Some(why));
            }
        }
    }
    fault.map_or(Ok(step), Err)
}

fn has_room(door: &Door, broadcast: &Broadcast) -> bool {
    let lane = broadcast.asked.draft().ok().and_then(|draft| draft.priority).unwrap_or(Priority::Low);
    door.lanes.free(lane) > 0
}

/// One chunk.
async fn expand(door: &Door, broadcast: &Broadcast) -> PortResult<Chunk> {
    let history = &door.parts.history;
    let draft = match broadcast.asked.draft() {
        Ok(draft) => draft,
        Err(problem) => return Ok(Chunk::Unreadable(problem.to_string())),
    };
    let lane = draft.priority.unwrap_or(Priority::Low);
    let room = door.lanes.free(lane).min(CHUNK);
    if room == 0 {
        return Ok(Chunk::NoRoom);
    }
    let phones = history.recipients(broadcast.id, broadcast.expanded, room as usize).await?;
    if phones.is_empty() && broadcast.expanded < broadcast.recipients {
        // They were stored before it was accepted: it is not done without them.
        let (id, from, all) = (broadcast.id, broadcast.expanded, broadcast.recipients);
        return Err(PortError::Unavailable(format!(
            "broadcast {id} has {all} recipients, and those after the first {from} are not there"
        )));
    }
    let records = match records(door, broadcast, &draft, &phones) {
        Ok(records) => records,
        Err(problem) => return Ok(Chunk::Unreadable(problem.to_string())),
    };
    let tenant = &broadcast.asked.tenant;
    door.lanes.add(lane, tenant, records.len() as u64);
    let outcomes = door.parts.log.append(records).await;
    // Progress is a count: it stops at the first that is not certain, and those after it are appended again.
    let went = outcomes.iter().take_while(|outcome| outcome.is_ok()).count() as u64;
    let expanded = broadcast.expanded + went;
    let done = expanded >= broadcast.recipients;
    let state = if done { BroadcastState::Done } else { BroadcastState::Running };
    if went > 0 || done {
        let tenant = tenant.to_string();
        metrics::counter!("esh3ar_accepted_total", "lane" => lane.word(), "tenant" => tenant).increment(went);
        history.progress(broadcast.id, expanded, state).await?;
    }
    Ok(Chunk::Went(expanded, outcomes.into_iter().find_map(Result::err)))
}

fn records(
    door: &Door,
    broadcast: &Broadcast,
    draft: &Draft,
    phones: &[Phone],
) -> Result<Vec<schemas::port::Append>, Problem> {
    let asked = &broadcast.asked;
    let at = Admission {
        tenant: &asked.tenant,
        from: &asked.from,
        header_key: None,
        broadcast: Some(broadcast.id),
        trace: asked.trace.as_deref(),
        default_priority: Priority::Low,
        // As of its acceptance: what was good then is good, and what has expired since the pipeline says.
        now: asked.accepted_at,
        limits: &UNBOUNDED,
        phone: &Phone::parse,
        clean: &text::clean,
    };
    let shared: Shared = draft.shared(&at)?;
    let partitions = door.parts.log.partitions();
    let append = |phone: &Phone| {
        let to = UserId::mobile(asked.tenant.clone(), *phone);
        shared.for_recipient(&at, to).map(|message| record::accepted(&message, partitions))
    };
    phones.iter().map(append).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_told_once_in_a_while() {
        let [one, other] = [1, 2].map(|n| BroadcastId(uuid::Uuid::from_u128(n)));
        let mut told = Told::default();
        assert!(told.is_due(one, Millis(5)));
        assert!(!told.is_due(one, Millis(4 + TELL_EVERY_MS)));
        assert!(told.is_due(other, Millis(6)), "each by itself");
        assert!(told.is_due(one, Millis(5 + TELL_EVERY_MS)));
        told.keep(|id| id == one);
        assert_eq!(told.0.keys().collect::<Vec<_>>(), [&one]);
    }
}
