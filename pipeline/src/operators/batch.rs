//! Batch: at most so many items of one lane go on together. A batch leaves at once while few batches of its lane are in
//! flight, else when it is full or its oldest item has waited for the linger: so a lone message waits for nothing, and under
//! load batches fill by themselves.
//!
//! The rule is asked by `prioritise`, where the items wait; this operator makes one batch of each container that was let go.

use std::rc::Rc;

use schemas::{Lane, Millis, limits::FlowLimits};
use timely::dataflow::{channels::pact::Pipeline, operators::generic::Operator};

use super::{Batches, Items, named};
use crate::{gauges, item::Batch, ownership::Owners, shared::Shared};

/// What stands before the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Line {
    /// Items that wait.
    pub(crate) waiting: usize,
    /// When the oldest of them came.
    pub(crate) oldest: Millis,
    /// Batches of the lane in flight.
    pub(crate) in_flight: usize,
}

/// What the rule says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ready {
    /// Nothing waits.
    Empty,
    /// Go.
    Now,
    /// Not before this, unless more comes.
    At(Millis),
}

impl Line {
    /// Whether a batch is ready to go.
    pub(crate) fn ready(self, now: Millis, limits: &FlowLimits) -> Ready {
        let until = self.oldest.plus(limits.linger_ms);
        match self.waiting {
            0 => Ready::Empty,
            n if n >= limits.batch || self.in_flight < limits.eager_batches || until <= now => Ready::Now,
            _ => Ready::At(until),
        }
    }
}

/// The operator.
pub(crate) fn batch<'scope>(items: Items<'scope>, lane: Lane, shared: &Rc<Shared>) -> Batches<'scope> {
    let shared = shared.clone();
    items.unary(Pipeline, &named("batch", lane), move |_, _| {
        move |input, output| {
            input.for_each(|cap, items| {
                let load = std::mem::take(items);
                let credit = shared.credits.taken(lane);
                gauges::add(&shared.count(lane).batches, 1);
                metrics::histogram!("esh3ar_batch_messages", "lane" => lane.word()).record(load.len() as f64);
                output.session(&cap).give(Batch { lane, load, credit, owners: Owners::default() });
            });
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn when_a_batch_goes() {
        let limits = FlowLimits { batch: 100, linger_ms: 2, eager_batches: 4, ..FlowLimits::default() };
        let line = |waiting, in_flight| Line { waiting, oldest: Millis(10), in_flight };
        for (line, now, says) in [
            (line(0, 0), 10, Ready::Empty),
            (line(1, 3), 10, Ready::Now),
            (line(1, 4), 10, Ready::At(Millis(12))),
            (line(99, 9), 11, Ready::At(Millis(12))),
            (line(100, 9), 10, Ready::Now),
            (line(1, 9), 12, Ready::Now),
        ] {
            assert_eq!(line.ready(Millis(now), &limits), says, "{line:?} at {now}");
        }
    }

    proptest! {
        // Nothing waits longer than the linger, and nothing that waits is forgotten.
        #[test]
        fn whatever_waits_goes_within_the_linger(waiting in 1usize..500, in_flight in 0usize..50, oldest in 0u64..100, now in 0u64..200) {
            let limits = FlowLimits::default();
            match (Line { waiting, oldest: Millis(oldest), in_flight }).ready(Millis(now), &limits) {
                Ready::Empty => prop_assert!(false),
                Ready::Now => {}
                Ready::At(at) => prop_assert!(at > Millis(now) && at <= Millis(oldest + limits.linger_ms)),
            }
        }
    }
}
