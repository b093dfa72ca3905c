//! The queue before the writer thread: first in, first out, bounded by its callers' room, woken only when that is of use.

use std::{collections::VecDeque, time::Duration};

use parking_lot::{Condvar, Mutex};
use schemas::port::{PortError, PortResult};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::engine::Write;

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
    pub(crate) done: Done,
    // Its room in the queue, given back when it has been answered.
    pub(crate) _room: OwnedSemaphorePermit,
}

/// What ends a group.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) writes: usize,
    pub(crate) bytes: usize,
    pub(crate) gather: Duration,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    writes: usize,
    bytes: usize,
    // The writer sleeps until there is a job; otherwise it is at work, or gathers until the group is full.
    idle: bool,
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

    /// Takes the next place.
    pub(crate) fn push(&self, job: Job) -> PortResult<()> {
        let mut state = self.state.lock();
        if let Some(why) = &state.poisoned {
            return Err(PortError::Unavailable(why.clone()));
        }
        if state.closing {
            return Err(closed());
        }
        state.writes += job.writes.len();
        state.bytes += job.bytes;
        state.jobs.push_back(job);
        let wake = state.idle || self.full(&state);
        drop(state);
        if wake {
            self.changed.notify_one();
        }
        Ok(())
    }

    /// The next group; waits for one. `None` when the queue is closed and empty. With `gather` it lets more jobs come for a
    /// while before it takes any.
    pub(crate) fn next(&self, gather: bool) -> Option<Vec<Job>> {
        let mut state = self.state.lock();
        if gather {
            let waiting = |s: &mut State| !s.closing && !self.full(s);
            self.changed.wait_while_for(&mut state, waiting, self.bounds.gather);
        }
        while state.jobs.is_empty() {
            if state.closing {
                return None;
            }
            state.idle = true;
            self.changed.wait(&mut state);
            state.idle = false;
        }
        let (mut writes, mut bytes, mut count) = (0, 0, 0);
        for job in &state.jobs {
            let over = writes + job.writes.len() > self.bounds.writes || bytes + job.bytes > self.bounds.bytes;
            if over && count > 0 {
                break;
            }
            writes += job.writes.len();
            bytes += job.bytes;
            count += 1;
        }
        state.writes -= writes;
        state.bytes -= bytes;
        Some(state.jobs.drain(..count).collect())
    }

    /// Whether jobs are waiting.
    pub(crate) fn waiting(&self) -> bool {
        !self.state.lock().jobs.is_empty()
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
        (state.writes, state.bytes) = (0, 0);
        state.jobs.drain(..).collect()
    }

    fn full(&self, state: &State) -> bool {
        state.writes >= self.bounds.writes || state.bytes >= self.bounds.bytes
    }
}

pub(crate) fn closed() -> PortError {
    PortError::Unavailable("the store is closing".into())
}
