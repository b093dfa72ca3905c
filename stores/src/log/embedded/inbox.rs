//! A member's inbox: what the group and the writer thread leave for it. Both only ever add and wake; the member takes.

use std::collections::VecDeque;

use parking_lot::Mutex;
use schemas::{Partition, port::Event};
use tokio::sync::Notify;

struct State {
    // At most one revocation and one assignment a partition: the next revocation waits for the release of the last.
    events: VecDeque<Event>,
    // Partitions that may have records, each at most once.
    ready: VecDeque<usize>,
    queued: Vec<bool>,
}

/// One member's.
pub(crate) struct Inbox {
    /// The member's number.
    pub(crate) member: u64,
    state: Mutex<State>,
    woken: Notify,
}

impl Inbox {
    pub(crate) fn new(member: u64, count: usize) -> Self {
        let state = State { events: VecDeque::new(), ready: VecDeque::new(), queued: vec![false; count] };
        Self { member, state: Mutex::new(state), woken: Notify::new() }
    }

    /// There may be records here.
    pub(crate) fn ready(&self, index: usize) {
        {
            let mut state = self.state.lock();
            if std::mem::replace(&mut state.queued[index], true) {
                return;
            }
            state.ready.push_back(index);
        }
        self.woken.notify_one();
    }

    /// Partition numbers came or are to go.
    pub(crate) fn tell(&self, event: Event) {
        {
            let mut state = self.state.lock();
            match (state.events.back_mut(), event) {
                (Some(Event::Assigned(last)), Event::Assigned(more)) => last.extend(more),
                (Some(Event::Revoked(last)), Event::Revoked(more)) => last.extend(more),
                (_, event) => state.events.push_back(event),
            }
        }
        self.woken.notify_one();
    }

    /// Takes the next event.
    pub(crate) fn event(&self) -> Option<Event> {
        self.state.lock().events.pop_front()
    }

    /// The partition whose turn it is; it stays first until [`Inbox::turn_over`].
    pub(crate) fn turn(&self) -> Option<usize> {
        self.state.lock().ready.front().copied()
    }

    /// Ends the turn of the first partition. Who calls this looks for records once more afterwards: what is published from
    /// now on makes it ready again.
    pub(crate) fn turn_over(&self) {
        let mut state = self.state.lock();
        if let Some(index) = state.ready.pop_front() {
            state.queued[index] = false;
        }
    }

    /// How many wait for their turn.
    pub(crate) fn waiting(&self) -> usize {
        self.state.lock().ready.len()
    }

    /// Waits until something may have been added. A call before the wait is not lost.
    pub(crate) async fn wait(&self) {
        self.woken.notified().await;
    }
}

/// The event for these, if there are any.
pub(crate) fn event(wrap: fn(Vec<Partition>) -> Event, partitions: Vec<Partition>) -> Option<Event> {
    (!partitions.is_empty()).then(|| wrap(partitions))
}
