//! Which lanes take no more for now: said by the intake, which pauses their partitions, and for who feeds them past the log.

use std::sync::atomic::{AtomicBool, Ordering};

use schemas::Priority;

/// The lanes of one instance that came to a bound of what may be in flight. A moment old where others than the intake read it.
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

    /// Whether any lane takes no more.
    pub(crate) fn is_any_full(&self) -> bool {
        Priority::ALL.into_iter().any(|lane| self.is_full(lane))
    }

    fn of(&self, lane: Priority) -> &AtomicBool {
        &self.0[usize::from(lane.number())]
    }
}
