//! Gauges: what an instance is doing, readable from any thread at any time.

use std::sync::atomic::{AtomicU64, Ordering};

use schemas::{Lane, Priority};

use crate::tenants::Tenants;

/// What the instances are doing, summed. Arrays are by lane: high, normal, low.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Gauges {
    /// Read from the log and not done.
    pub in_flight: [u64; 3],
    /// Of those, waiting for a batch and a credit.
    pub waiting: [u64; 3],
    /// Batches since start.
    pub batches: [u64; 3],
    /// Messages given a place since start.
    pub recorded: [u64; 3],
    /// Repeats dropped since start.
    pub repeats: [u64; 3],
    /// Parked since start: nobody was connected.
    pub parked: [u64; 3],
    /// Attempts that failed and go to a tier, since start.
    pub retries: [u64; 3],
    /// Given up since start.
    pub buried: [u64; 3],
    /// Retries that were read and are not due yet.
    pub retries_waiting: u64,
    /// Acknowledgements waited for.
    pub armed: u64,
    /// Users whose place could not be asked, to be offered their newest message once it can.
    pub unlocated: u64,
}

/// The counters behind them.
pub(crate) struct Counters {
    lanes: [PerLane; 3],
    pub(crate) tenants: Tenants,
    pub(crate) retries_waiting: AtomicU64,
    pub(crate) armed: AtomicU64,
    pub(crate) unlocated: AtomicU64,
}

/// Those of one lane.
#[derive(Debug, Default)]
pub(crate) struct PerLane {
    pub(crate) in_flight: AtomicU64,
    pub(crate) waiting: AtomicU64,
    pub(crate) batches: AtomicU64,
    pub(crate) recorded: AtomicU64,
    pub(crate) repeats: AtomicU64,
    pub(crate) parked: AtomicU64,
    pub(crate) retries: AtomicU64,
    pub(crate) buried: AtomicU64,
}

/// Counts up.
pub(crate) fn add(counter: &AtomicU64, n: usize) {
    if n > 0 {
        counter.fetch_add(n as u64, Ordering::Relaxed);
    }
}

impl Counters {
    /// All zero; so many tenants have a name.
    pub(crate) fn new(tenants_named: usize) -> Self {
        let (lanes, retries_waiting, armed, unlocated) = Default::default();
        Self { lanes, tenants: Tenants::new(tenants_named), retries_waiting, armed, unlocated }
    }

    /// Those of one lane.
    pub(crate) fn of(&self, lane: Lane) -> &PerLane {
        &self.lanes[usize::from(lane.number())]
    }

    /// Adds what they say now.
    pub(crate) fn sum_into(&self, sum: &mut Gauges) {
        for lane in Priority::ALL {
            let (i, of) = (usize::from(lane.number()), self.of(lane));
            let pairs = [
                (&mut sum.in_flight, &of.in_flight),
                (&mut sum.waiting, &of.waiting),
                (&mut sum.batches, &of.batches),
                (&mut sum.recorded, &of.recorded),
                (&mut sum.repeats, &of.repeats),
                (&mut sum.parked, &of.parked),
                (&mut sum.retries, &of.retries),
                (&mut sum.buried, &of.buried),
            ];
            for (to, from) in pairs {
                to[i] += from.load(Ordering::Relaxed);
            }
        }
        sum.armed += self.armed.load(Ordering::Relaxed);
        sum.unlocated += self.unlocated.load(Ordering::Relaxed);
        sum.retries_waiting += self.retries_waiting.load(Ordering::Relaxed);
    }
}
