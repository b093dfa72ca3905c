//! Turns stored broadcasts into messages, little by little, while their lane has free room (rule 13).
//!
//! Each message's id follows from the broadcast and the recipient, and all its bytes from what was stored, so that a chunk that
//! was appended and not yet noted is appended again after a crash and recognised by the pipeline: nobody is sent two. Which
//! process expands which broadcast is said by [`crate::turns`].
//!
//! What was accepted is carried out: it was held to the limits then, and is not held to those of today. Only its sender
//! cancels it. One that this process cannot read, or that errs, stands until it can go on, and holds up no other: how long it
//! waits is said by [`crate::faults`].

use std::{
    collections::HashSet,
    sync::{Arc, Weak},
    time::Duration,
};

use schemas::{
    BroadcastId, Draft, Millis, Phone, Priority, Problem, UserId,
    draft::{Admission, Shared},
    limits::MessageLimits,
    port::{Broadcast, BroadcastState, Expanding, PortError, PortResult},
    record,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{door::Door, faults::Faults, text, turns::Turns};

/// Recipients appended at once: what one commit group holds well.
const CHUNK: u64 = 500;
/// How often stored broadcasts are looked for without being told: those that another process took in.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long to wait where history does not say which broadcasts there are.
const AFTER_FAULT: Duration = Duration::from_secs(1);
/// What is told of a broadcast whose header cannot be read, and what to do.
const UNREAD: &str = "a running broadcast cannot be read and waits, the others go on; it goes on by itself once it can be: \
    bring its store back, or run the newest release here; a damaged row comes back from a backup alone";
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
    let mut faults = Faults::default();
    loop {
        let Some(now) = door.upgrade() else { return };
        let (asked, begun, at) = (now.asked.clone(), now.broadcast_begun.clone(), now.parts.clock.mono());
        let step = tokio::select! {
            () = stop.cancelled() => return,
            step = step(&now, &mut turns, &mut faults, at) => step,
        };
        drop(now);
        let look = faults.next_ms(at).map_or(LOOK_EVERY, |ms| LOOK_EVERY.min(Duration::from_millis(ms)));
        let pause = async {
            match step {
                Ok(Step::Went) => {}
                Ok(Step::NoRoom) => wait(&asked, look).await,
                Ok(Step::Nothing) => wait(&begun, look).await,
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
    /// There are no broadcasts that are this process's and that it can go on with.
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

/// A chunk of every running broadcast whose turn is here and whose lane has room: a short one is not kept waiting by a
/// long one, and none by one that errs, which is tried again after a while of its own. `at`: when the step begins.
async fn step(door: &Door, turns: &mut Turns, faults: &mut Faults, at: Millis) -> PortResult<Step> {
    let begun = door.begun.since();
    let Expanding { running, unread } = door.parts.history.running().await?;
    let unread_ids: HashSet<BroadcastId> = unread.iter().map(|(id, _)| *id).collect();
    let mut stand: HashSet<BroadcastId> = running.iter().map(|broadcast| broadcast.id).collect();
    stand.extend(&unread_ids);
    door.begun.looked(&begun, &running, |id| unread_ids.contains(&id));
    turns.keep(|id| stand.contains(&id));
    faults.keep(|id| stand.contains(&id));
    for (id, why) in unread {
        if faults.is_due(id, at) {
            match why {
                PortError::Unavailable(_) | PortError::Unknown(_) => {
                    tracing::warn!(broadcast = %id, %why, "a running broadcast could not be read this time, and waits");
                }
                _ => tracing::error!(broadcast = %id, %why, "{UNREAD}"),
            }
        }
    }
    let mut step = Step::Nothing;
    for broadcast in running {
        let (id, own) = (broadcast.id, begun.contains(&broadcast.id));
        if !turns.is_mine(id, broadcast.expanded, own, door.parts.clock.mono()) {
            if !has_room(door, &broadcast) {
                turns.had_no_room(id, door.parts.clock.mono());
            }
            continue;
        }
        if faults.waits(id, at) {
            continue;
        }
        let chunk = expand(door, &broadcast).await;
        let now = door.parts.clock.mono();
        match chunk {
            Ok(Chunk::Went(expanded, stopped)) => {
                turns.went(id, expanded, now);
                step = Step::Went;
                match stopped {
                    None => faults.went(id),
                    Some(why) => erred(faults, &broadcast, expanded, &why, now),
                }
            }
            Ok(Chunk::NoRoom) if !matches!(step, Step::Went) => step = Step::NoRoom,
            Ok(Chunk::NoRoom) => {}
            // Nothing is written of it, so that it stands still, and whoever can read it takes the turn.
            Ok(Chunk::Unreadable(why)) => {
                if faults.is_due(id, now) {
                    tracing::error!(broadcast = %id, %why, "a stored broadcast cannot be read here, and waits");
                }
            }
            Err(why) => erred(faults, &broadcast, broadcast.expanded, &why, now),
        }
    }
    Ok(step)
}

/// It cannot go on now, having come so far: it waits, and no other with it.
fn erred(faults: &mut Faults, broadcast: &Broadcast, expanded: u64, why: &PortError, now: Millis) {
    let id = broadcast.id;
    faults.erred(id, expanded > broadcast.expanded, now);
    if faults.is_due(id, now) {
        tracing::warn!(broadcast = %id, %why, "a broadcast cannot go on now, and is tried again less and less often");
    } else {
        tracing::debug!(broadcast = %id, %why, "a broadcast cannot go on now");
    }
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
