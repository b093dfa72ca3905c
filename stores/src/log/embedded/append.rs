//! Appending: chunks are made outside the lock, offsets given inside it, and the answer waits for the sync.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use fjall::Keyspace;
use parking_lot::Mutex;
use schemas::{
    Offset, Timestamp, Topic,
    port::{Append, PortError, PortResult},
};
use tokio::sync::oneshot;

use super::{
    Log,
    chunk::Draft,
    layout::chunk_key,
    segments::{Segment, Segments},
};
use crate::embedded::{Pending, Space, Write};

/// Bytes of one job: a call with more becomes durable in several steps, so that it does not hold up the others.
const JOB_BYTES: usize = 1024 * 1024;

struct State {
    // The offset the next record gets, by index.
    next: Vec<u64>,
    segment: Arc<Segment>,
}

/// Where partitions go on.
pub(crate) struct Heads(Mutex<State>);

impl Heads {
    pub(crate) fn new(next: Vec<u64>, segment: Arc<Segment>) -> Self {
        Self(Mutex::new(State { next, segment }))
    }

    /// What is appended from now on goes into a new segment.
    pub(crate) fn roll(&self, segments: &Segments, made: (u64, Keyspace), now: Timestamp) -> PortResult<Pending> {
        let mut state = self.0.lock();
        let (segment, pending) = segments.roll(made, state.next.clone(), now)?;
        state.segment = segment;
        Ok(pending)
    }
}

/// Chunks that become durable together.
struct Job {
    drafts: Vec<(Draft, Bytes)>,
    bytes: usize,
}

type Told = oneshot::Receiver<PortResult<()>>;
type Answers = Vec<(usize, Offset)>;

pub(crate) async fn append(log: &Arc<Log>, records: Vec<Append>) -> Vec<PortResult<Offset>> {
    let mut outcomes = vec![Err(PortError::Unavailable("the append was not reached".into())); records.len()];
    let appended_at = log.clock.wall();
    let mut waiting: Vec<(Told, Answers)> = Vec::with_capacity(1);
    let mut jobs = jobs(log, records, appended_at, &mut outcomes).into_iter();
    for job in jobs.by_ref() {
        let calls: Vec<usize> = job.drafts.iter().flat_map(|(draft, _)| draft.calls.iter().copied()).collect();
        match submit(log, job, appended_at).await {
            Ok(submitted) => waiting.push(submitted),
            Err(error) => {
                // What comes after it must not come before it: the rest of the call is refused too.
                let rest = jobs.by_ref().flat_map(|job| job.drafts).flat_map(|(draft, _)| draft.calls);
                for call in calls.into_iter().chain(rest) {
                    outcomes[call] = Err(error.clone());
                }
                break;
            }
        }
    }
    for (told, answers) in waiting {
        let outcome =
            told.await.unwrap_or_else(|_| Err(PortError::Unknown("the store ended before it answered".into())));
        for (call, offset) in answers {
            outcomes[call] = outcome.clone().map(|()| offset);
        }
    }
    outcomes
}

/// Sorts a call's records into chunks and jobs, refusing those that cannot be taken.
fn jobs(log: &Log, records: Vec<Append>, at: Timestamp, outcomes: &mut [PortResult<Offset>]) -> Vec<Job> {
    let space = log.engine.space();
    let mut drafts: Vec<Draft> = Vec::new();
    // The chunk being filled of each partition that the call has met; a call meets few.
    let mut open: Vec<(usize, usize)> = Vec::new();
    for (call, append) in records.into_iter().enumerate() {
        let index = match admit(log, &append, space) {
            Ok(index) => index,
            Err(error) => {
                outcomes[call] = Err(error);
                continue;
            }
        };
        let known = open.iter().position(|(of, _)| *of == index);
        let draft = match known.map(|known| open[known].1).filter(|draft| !drafts[*draft].full()) {
            Some(draft) => draft,
            None => {
                drafts.push(Draft::new(append.at, index));
                let draft = drafts.len() - 1;
                match known {
                    Some(known) => open[known].1 = draft,
                    None => open.push((index, draft)),
                }
                draft
            }
        };
        drafts[draft].push(call, append);
    }
    let mut jobs: Vec<Job> = Vec::with_capacity(1);
    for draft in drafts {
        let value = draft.encode(at);
        let bytes = value.len() + 11;
        match jobs.last_mut() {
            Some(job) if job.bytes + bytes <= JOB_BYTES => {
                job.bytes += bytes;
                job.drafts.push((draft, value));
            }
            _ => jobs.push(Job { drafts: vec![(draft, value)], bytes }),
        }
    }
    jobs
}

fn admit(log: &Log, append: &Append, space: Space) -> PortResult<usize> {
    let index = log.layout.index(append.at)?;
    if append.body.len() > log.limits.group_bytes {
        let (bytes, most) = (append.body.len(), log.limits.group_bytes);
        return Err(PortError::Rejected(format!("a record of {bytes} bytes is larger than {most}")));
    }
    // New work stops first: what was accepted can still be finished.
    if space == Space::None || (space == Space::Low && matches!(append.at.topic, Topic::Lane(_))) {
        return Err(log.engine.full());
    }
    Ok(index)
}

/// Gives a job its offsets and its place.
async fn submit(log: &Arc<Log>, job: Job, appended_at: Timestamp) -> PortResult<(Told, Answers)> {
    let room = log.engine.room(job.bytes).await?;
    // A sender waits for a message in a lane; what the flow itself appends follows work that is done.
    let urgent = job.drafts.iter().any(|(draft, _)| matches!(draft.at.topic, Topic::Lane(_)));
    let room = if urgent { room } else { room.along() };
    let (tell, told) = oneshot::channel();
    let mut answers = Vec::with_capacity(job.drafts.iter().map(|(draft, _)| draft.calls.len()).sum());
    let mut writes = Vec::with_capacity(job.drafts.len());
    let mut chunks = Vec::with_capacity(job.drafts.len());
    let mut state = log.heads.0.lock();
    // Offsets count only when the job has its place: until then they are not taken.
    let before: Vec<(usize, u64)> =
        job.drafts.iter().map(|(draft, _)| (draft.index, state.next[draft.index])).collect();
    for (draft, value) in job.drafts {
        let (at, index) = (draft.at, draft.index);
        let (chunk, calls) = draft.place(state.next[index], appended_at);
        state.next[index] = chunk.end();
        let key = chunk_key(at, Offset(chunk.end() - 1)).to_vec();
        writes.push(Write::Put { to: state.segment.chunks.clone(), key, value });
        answers.extend(calls.into_iter().zip((chunk.base..).map(Offset)));
        chunks.push((index, chunk));
    }
    let then = {
        let log = log.clone();
        move |outcome: PortResult<()>| {
            if outcome.is_ok() {
                chunks.into_iter().for_each(|(index, chunk)| log.tails.publish(index, chunk));
            }
            // Whoever stopped waiting does not want to know.
            drop(tell.send(outcome));
        }
    };
    if let Err(error) = log.engine.submit_then(room, writes, then) {
        // The first of each partition is where it stood.
        for (index, next) in before.into_iter().rev() {
            state.next[index] = next;
        }
        return Err(error);
    }
    state.segment.bytes.fetch_add(job.bytes as u64, Ordering::Relaxed);
    Ok((told, answers))
}
