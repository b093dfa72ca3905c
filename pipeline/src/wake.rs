//! Wakes an operator from another thread, at most once for all that came since it last looked.

use std::sync::atomic::{AtomicBool, Ordering};

use timely::scheduling::SyncActivator;

/// One operator's bell. Ring it after something was put where the operator looks.
pub(crate) struct Wake {
    rung: AtomicBool,
    activator: SyncActivator,
}

impl Wake {
    /// A bell for the operator behind `activator`.
    pub(crate) fn new(activator: SyncActivator) -> Self {
        Self { rung: AtomicBool::new(false), activator }
    }

    /// Wakes the operator, unless it is about to look anyway.
    pub(crate) fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            // Fails only when the instance has ended; then nobody is left to be told.
            let _ = self.activator.activate();
        }
    }

    /// The operator is about to look: call before looking, so that what comes meanwhile rings again.
    pub(crate) fn looking(&self) {
        self.rung.store(false, Ordering::Release);
    }
}
