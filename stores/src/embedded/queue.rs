//! The queue before the writer thread: first in, first out, bounded by its callers' room, woken only when that is of use.
//!
//! Jobs are of two kinds. Somebody waits for an urgent one: a sender for its answer, a message for its place. The others
//! follow work that is done, and ride along with the next urgent one if one comes soon.

use std::{collections::VecDeque, time::Duration};

use parking_lot::{Condvar, Mutex};
use schemas::port::{PortError, PortResult};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{engine::Write, pace::Gather};

/// Who is told what became of a job.
pub(crate) enum Done {
    /// A waiter.
    Signal(oneshot::Sender<PortResult<()>>),
    /// Something that must happen on the writer thread, in the order of the jobs, before anyone is told.
    Call(Box<dyn FnOnce(PortResult<()>) + Send>),
}

impl Done {
    pub(crate) fn tell(self, outcome: PortResult<()>) {
        match self {
            // Whoever stopped waiting does not want to know.
            Self::Signal(waiter) => drop(waiter.send(outcome)),
            Self::Call(call) => call(outcome),
        }
    }
}

/// Writes that become durable together.
pub(crate) struct Job {
    pub(crate) writes: Vec<Write>,
    pub(crate) bytes: usize,
    pub(crate) urgent: bool,
    pub(crate) done: Done,
    // Its room in the queue, given back when it has been answered.
    pub(crate) _room: OwnedSemaphorePermit,
}

/// What ends a group.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) writes: usize,
    pub(crate) bytes: usize,
    /// Least time between two groups at load.
    pub(crate) every: Duration,
}

/// What the writer is waiting for.
#[derive(Debug, Clone, Copy, Default)]
enum Until {
    /// It is at work.
    #[default]
    Nothing,
    /// So many urgent jobs.
    Enough(usize),
    /// Any job.
    Any,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    urgent: usize,
    writes: usize,
    bytes: usize,
    until: Until,
    closing: bool,
    poisoned: Option<String>,
}

/// The queue.
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    bounds: Bounds,
}

impl Queue {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), bounds }
    }

    pub(crate) fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Takes the next place.
    pub(crate) fn push(&self, job: Job) -> PortResult<()> {
        let mut state = self.state.lock();
        if let Some(why) = &state.poisoned {
            return Err(PortError::Unavailable(why.clone()));
        }
        if state.closing {
            return Err(closed());
        }
        state.urgent += usize::from(job.urgent);
        state.writes += job.writes.len();
        state.bytes += job.bytes;
        state.jobs.push_back(job);
        let wake = self.ready(&state);
        drop(state);
        if wake {
            self.changed.notify_one();
        }
        Ok(())
    }

    /// The next group; waits for one. `None` when the queue is closed and empty.
    pub(crate) fn next(&self, gather: Gather) -> Option<Vec<Job>> {
        let mut state = self.state.lock();
        self.wait(&mut state, Until::Enough(gather.enough), gather.pause);
        self.wait(&mut state, Until::Enough(1), gather.patience);
        while state.jobs.is_empty() {
            if state.closing {
                return None;
            }
            state.until = Until::Any;
            self.changed.wait(&mut state);
            state.until = Until::Nothing;
        }
        let (mut writes, mut bytes, mut urgent, mut count) = (0, 0, 0, 0);
        for job in &state.jobs {
            let over = writes + job.writes.len() > self.bounds.writes || bytes + job.bytes > self.bounds.bytes;
            if over && count > 0 {
                break;
            }
            writes += job.writes.len();
            bytes += job.bytes;
            urgent += usize::from(job.urgent);
            count += 1;
        }
        state.writes -= writes;
        state.bytes -= bytes;
        state.urgent -= urgent;
        Some(state.jobs.drain(..count).collect())
    }

    fn wait(&self, state: &mut parking_lot::MutexGuard<'_, State>, until: Until, most: Duration) {
        if most.is_zero() {
            return;
        }
        state.until = until;
        self.changed.wait_while_for(state, |state| !state.closing && !self.ready(state), most);
        state.until = Until::Nothing;
    }

    /// Whether what the writer waits for is there.
    fn ready(&self, state: &State) -> bool {
        let full = state.writes >= self.bounds.writes || state.bytes >= self.bounds.bytes;
        match state.until {
            Until::Nothing => false,
            Until::Enough(count) => full || state.urgent >= count,
            Until::Any => true,
        }
    }

    /// Whether urgent jobs are waiting.
    pub(crate) fn presses(&self) -> bool {
        self.state.lock().urgent > 0
    }

    /// Takes no more; what is in it is still done.
    pub(crate) fn close(&self) {
        self.state.lock().closing = true;
        self.changed.notify_one();
    }

    /// Takes no more, and gives back what did not happen.
    pub(crate) fn poison(&self, why: &str) -> Vec<Job> {
        let mut state = self.state.lock();
        state.poisoned.get_or_insert_with(|| why.to_string());
        (state.writes, state.bytes, state.urgent) = (0, 0, 0);
        state.jobs.drain(..).collect()
    }
}

pub(crate) fn closed() -> PortError {
    PortError::Unavailable("the store is closing".into())
}
