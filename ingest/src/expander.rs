//! Turns stored broadcasts into messages, little by little, while their lane has free room (rule 13).
//!
//! Each message's id follows from the broadcast and the recipient, and all its bytes from what was stored, so that a chunk that
//! was appended and not yet noted is appended again after a crash and recognised by the pipeline: nobody is sent two. Which
//! process expands which broadcast is said by [`crate::turns`].

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use schemas::{
    Draft, Phone, Priority, Problem, UserId,
    draft::{Admission, Shared},
    port::{Broadcast, BroadcastState, PortResult},
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

/// Expands until told to stop. Holds the door only while it works, so that it does not keep it.
pub(crate) async fn run(door: Weak<Door>, mut turns: Turns, stop: CancellationToken) {
    loop {
        let Some(now) = door.upgrade() else { return };
        let (asked, begun) = (now.asked.clone(), now.broadcast_begun.clone());
        let step = tokio::select! {
            () = stop.cancelled() => return,
            step = step(&now, &mut turns) => step,
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
    /// There are no broadcasts.
    Nothing,
}

/// A chunk of every running broadcast whose turn is here and whose lane has room: a short one is not kept waiting by a long
/// one.
async fn step(door: &Door, turns: &mut Turns) -> PortResult<Step> {
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
    let mut step = Step::Nothing;
    for broadcast in running {
        let (id, own) = (broadcast.id, begun.contains(&broadcast.id));
        if !turns.is_mine(id, broadcast.expanded, own, door.parts.clock.mono()) {
            if !has_room(door, &broadcast) {
                turns.had_no_room(id, door.parts.clock.mono());
            }
            continue;
        }
        match expand(door, &broadcast).await? {
            Some(expanded) => {
                turns.went(id, expanded, door.parts.clock.mono());
                step = Step::Went;
            }
            None if !matches!(step, Step::Went) => step = Step::NoRoom,
            None => {}
        }
    }
    Ok(step)
}

fn has_room(door: &Door, broadcast: &Broadcast) -> bool {
    let lane = broadcast.asked.draft().ok().and_then(|draft| draft.priority).unwrap_or(Priority::Low);
    door.lanes.free(lane) > 0
}

/// One chunk: how far it is then. `None` when there was no room.
async fn expand(door: &Door, broadcast: &Broadcast) -> PortResult<Option<u64>> {
    let history = &door.parts.history;
    let draft = match broadcast.asked.draft() {
        Ok(draft) => draft,
        Err(problem) => return give_up(door, broadcast, &problem).await,
    };
    let lane = draft.priority.unwrap_or(Priority::Low);
    let room = door.lanes.free(lane).min(CHUNK);
    if room == 0 {
        return Ok(None);
    }
    let phones = history.recipients(broadcast.id, broadcast.expanded, room as usize).await?;
    let records = match records(door, broadcast, &draft, &phones) {
        Ok(records) => records,
        Err(problem) => return give_up(door, broadcast, &problem).await,
    };
    let tenant = &broadcast.asked.tenant;
    door.lanes.add(lane, tenant, records.len() as u64);
    let outcomes = door.parts.log.append(records).await;
    // Progress is a count: it stops at the first that is not certain, and those after it are appended again.
    let went = outcomes.iter().take_while(|outcome| outcome.is_ok()).count() as u64;
    let expanded = broadcast.expanded + went;
    let done = expanded >= broadcast.recipients || phones.is_empty();
    let state = if done { BroadcastState::Done } else { BroadcastState::Running };
    if went > 0 || done {
        let tenant = tenant.to_string();
        metrics::counter!("esh3ar_accepted_total", "lane" => lane.word(), "tenant" => tenant).increment(went);
        history.progress(broadcast.id, expanded, state).await?;
    }
    match outcomes.into_iter().find_map(Result::err) {
        Some(why) => Err(why),
        None => Ok(Some(expanded)),
    }
}

/// What was checked when it was accepted cannot be read now: nothing more is sent, and its sender sees it cancelled.
async fn give_up(door: &Door, broadcast: &Broadcast, problem: &Problem) -> PortResult<Option<u64>> {
    tracing::error!(broadcast = %broadcast.id, %problem, "a stored broadcast cannot be read; it is cancelled");
    door.parts.history.progress(broadcast.id, broadcast.expanded, BroadcastState::Cancelled).await?;
    Ok(Some(broadcast.expanded))
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
        limits: &door.parts.limits.message,
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
