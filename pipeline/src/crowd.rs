//! Which lanes take no more for now: told by the intake, for who feeds them past the log.

use std::sync::atomic::{AtomicBool, Ordering};

use schemas::Priority;

/// The lanes of one instance that are at a bound of what may be in flight. A moment old where it is read.
#[derive(Debug, Default)]
pub(crate) struct Crowd([AtomicBool; 3]);

impl Crowd {
    /// A lane came to its bound, or has room again.
    pub(crate) fn set(&self, lane: Priority, full: bool) {
        self.of(lane).store(full, Ordering::Relaxed);
    }

    /// Whether a lane takes no more.
    pub(crate) fn is_full(&self, lane: Priority) -> bool {
        self.of(lane).load(Ordering::Relaxed)
    }

    fn of(&self, lane: Priority) -> &AtomicBool {
        &self.0[usize::from(lane.number())]
    }
}
