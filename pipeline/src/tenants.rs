//! What is counted per lane and tenant. The first tenants that come, up to a bound, have a name in the metrics; the rest are
//! counted together as `other`, so that nobody can grow the metrics by inventing tenants. A message costs one look into a
//! small map where its tenant is not the one before it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::{AtomicI64, Ordering},
};

use parking_lot::RwLock;
use schemas::{Lane, Priority, Tenant};

use crate::ages::Fold;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Read from the log and not done.
    InFlight,
    /// Of those, waiting for a batch.
    Waiting,
    /// Retries that were read and are not due yet.
    RetryWaiting,
    /// Given a place in an inbox, since start.
    Recorded,
    /// Found without a connected device, since start.
    Parked,
    /// Put into the due-table to be sent later, since start.
    Scheduled,
    /// Attempts that go to a tier, since start.
    Retried,
    /// Given up, since start.
    Buried,
}

/// So many kinds.
const KINDS: usize = 8;

/// What one tenant's messages of one lane are doing, summed over the instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OfTenant {
    /// Read from the log and not done.
    pub in_flight: u64,
    /// Of those, waiting for a batch.
    pub waiting: u64,
    /// Retries that were read and are not due yet.
    pub retry_waiting: u64,
    /// Given a place in an inbox, since start.
    pub recorded: u64,
    /// Found without a connected device, since start.
    pub parked: u64,
    /// Put into the due-table to be sent later, since start.
    pub scheduled: u64,
    /// Attempts that go to a tier, since start.
    pub retried: u64,
    /// Given up, since start.
    pub buried: u64,
}

/// The tenants of metrics: by name, `other` for those that have none; and lane, high first.
pub type ByTenant = BTreeMap<String, [OfTenant; 3]>;

/// A tenant's number here; 0: others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, PartialOrd, Ord)]
pub(crate) struct Slot(u16);

type Counts = [[AtomicI64; KINDS]; 3];

/// The counts of one instance.
pub(crate) struct Tenants {
    named: RwLock<HashMap<Tenant, Slot, Fold>>,
    counts: Box<[Counts]>,
}

impl Tenants {
    /// Names at most so many.
    pub(crate) fn new(most: usize) -> Self {
        let counts = (0..=most.min(usize::from(u16::MAX) - 1)).map(|_| Counts::default()).collect();
        Self { named: RwLock::default(), counts }
    }

    /// A tenant's number.
    pub(crate) fn slot(&self, tenant: &Tenant) -> Slot {
        if let Some(slot) = self.named.read().get(tenant) {
            return *slot;
        }
        let mut named = self.named.write();
        let next = named.len() + 1;
        if next >= self.counts.len() {
            return Slot(0);
        }
        *named.entry(tenant.clone()).or_insert(Slot(next as u16))
    }

    /// Counts so many more, or fewer.
    pub(crate) fn add(&self, slot: Slot, lane: Lane, kind: Kind, n: i64) {
        if let Some(counts) = self.counts.get(usize::from(slot.0)) {
            counts[usize::from(lane.number())][kind as usize].fetch_add(n, Ordering::Relaxed);
        }
    }

    /// Counts one of each of these.
    pub(crate) fn count<'a>(&self, lane: Lane, kind: Kind, tenants: impl IntoIterator<Item = &'a Tenant>) {
        for (slot, n) in self.tally(tenants) {
            self.add(slot, lane, kind, i64::from(n));
        }
    }

    /// These wait for a batch no longer.
    pub(crate) fn wait_no_more<'a>(&self, lane: Lane, tenants: impl IntoIterator<Item = &'a Tenant>) {
        for (slot, n) in self.tally(tenants) {
            self.add(slot, lane, Kind::Waiting, -i64::from(n));
        }
    }

    /// How many of each there are. Tenants come in runs.
    pub(crate) fn tally<'a>(&self, tenants: impl IntoIterator<Item = &'a Tenant>) -> Vec<(Slot, u32)> {
        let mut tally = Vec::<(Slot, u32)>::new();
        let mut last: Option<(&Tenant, usize)> = None;
        for tenant in tenants {
            let place = match last {
                Some((before, place)) if before == tenant => place,
                _ => {
                    let slot = self.slot(tenant);
                    tally.iter().position(|(at, _)| *at == slot).unwrap_or_else(|| {
                        tally.push((slot, 0));
                        tally.len() - 1
                    })
                }
            };
            tally[place].1 += 1;
            last = Some((tenant, place));
        }
        tally
    }

    /// Adds what is counted now.
    pub(crate) fn sum_into(&self, sum: &mut ByTenant) {
        let mut add = |name: &str, slot: Slot| {
            let Some(counts) = self.counts.get(usize::from(slot.0)) else { return };
            let of = sum.entry(name.to_owned()).or_default();
            for lane in 0..Priority::ALL.len() {
                let n = |kind: Kind| u64::try_from(counts[lane][kind as usize].load(Ordering::Relaxed)).unwrap_or(0);
                let sum = &mut of[lane];
                sum.in_flight += n(Kind::InFlight);
                sum.waiting += n(Kind::Waiting);
                sum.retry_waiting += n(Kind::RetryWaiting);
                sum.recorded += n(Kind::Recorded);
                sum.parked += n(Kind::Parked);
                sum.scheduled += n(Kind::Scheduled);
                sum.retried += n(Kind::Retried);
                sum.buried += n(Kind::Buried);
            }
        };
        self.named.read().iter().for_each(|(tenant, slot)| add(tenant.as_str(), *slot));
        if self.counts[0].iter().flatten().any(|n| n.load(Ordering::Relaxed) != 0) {
            add("other", Slot(0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_so_many_have_names_and_the_rest_are_other() {
        let tenants = Tenants::new(2);
        let named: Vec<Tenant> = ["a", "b", "c", "d", "a"].into_iter().map(|t| Tenant::parse(t).unwrap()).collect();
        tenants.count(Lane::Low, Kind::Recorded, &named);
        tenants.count(Lane::Low, Kind::InFlight, &named[..1]);
        tenants.add(tenants.slot(&named[0]), Lane::Low, Kind::InFlight, -1);
        let mut sum = ByTenant::new();
        tenants.sum_into(&mut sum);
        tenants.sum_into(&mut sum);
        let recorded: Vec<_> = sum.iter().map(|(name, of)| (name.as_str(), of[2].recorded, of[2].in_flight)).collect();
        assert_eq!(recorded, [("a", 4, 0), ("b", 2, 0), ("other", 4, 0)]);
    }
}
