//! Prioritise: items wait here, in the order they came, until their lane may send a batch on. High before Normal before Low,
//! but a lane that waits gets its share of ten, so that none is starved (R5.2, P9), and Low never holds all credits, so that
//! High finds one free.
//!
//! Remembers what waits, and holds its epochs open. What waits is bounded by what is in flight.

use std::{collections::VecDeque, rc::Rc, time::Duration};

use schemas::{Lane, Millis, Priority, limits::FlowLimits};
use timely::dataflow::{
    channels::pact::Pipeline,
    operators::{Capability, generic::Operator},
};

use super::{
    Items,
    batch::{Line, Ready},
    named,
};
use crate::{item::Item, shared::Shared};

/// Who takes the next credit. Pure; shared by the lanes of an instance.
#[derive(Debug)]
pub(crate) struct Turns {
    free: usize,
    held: [usize; 3],
    most: [usize; 3],
    /// What a lane may hold while a more urgent one keeps coming, and for how long after its last batch that counts, ms.
    beside: [usize; 3],
    beside_ms: u64,
    /// When a lane last took a credit.
    took: [Option<Millis>; 3],
    ready: [bool; 3],
    /// Of ten credits, so many go to a lane that waits.
    share: usize,
    /// Tenths of a credit that a waiting lane was passed over for.
    debt: [usize; 3],
}

fn index(lane: Lane) -> usize {
    usize::from(lane.number())
}

impl Turns {
    /// All credits free, nobody ready.
    pub(crate) fn new(limits: &FlowLimits) -> Self {
        let all = limits.credits.max(1);
        // A backlog of one lane leaves credits for the lanes before it: else High would wait for Low's deliveries to end.
        let most = [all, (all - all / 8).max(1), (all - all / 4).max(1)];
        Self {
            free: all,
            held: [0; 3],
            most,
            beside: [all, limits.normal_beside_urgent.max(1), limits.low_beside_urgent.max(1)],
            beside_ms: limits.urgent_ms,
            took: [None; 3],
            ready: [false; 3],
            share: limits.low_share_of_ten.min(5),
            debt: [0; 3],
        }
    }

    /// Batches of a lane that hold a credit.
    pub(crate) fn held(&self, lane: Lane) -> usize {
        self.held[index(lane)]
    }

    /// A lane has a batch ready, or not.
    pub(crate) fn set_ready(&mut self, lane: Lane, ready: bool) {
        self.ready[index(lane)] = ready;
        if !ready {
            self.debt[index(lane)] = 0;
        }
    }

    fn may(&self, lane: Lane, now: Millis) -> bool {
        let i = index(lane);
        self.free > 0 && self.ready[i] && self.held[i] < self.most(i, now)
    }

    /// Credits that a lane may hold now. Whatever comes of urgent ones is given back within moments, and then asked again:
    /// nobody has to be woken when a lane may hold more.
    fn most(&self, lane: usize, now: Millis) -> usize {
        let lately = |took: &Option<Millis>| took.is_some_and(|at| now.since(at) < self.beside_ms);
        if self.took[..lane].iter().any(lately) { self.most[lane].min(self.beside[lane]) } else { self.most[lane] }
    }

    /// Whose turn it is, if anyone's.
    pub(crate) fn next(&self, now: Millis) -> Option<Lane> {
        let owed = |lane: &Lane| *lane != Lane::High && self.debt[index(*lane)] + self.share >= 10;
        let waiting = || Priority::ALL.into_iter().filter(|lane| self.may(*lane, now));
        waiting().rev().find(owed).or_else(|| waiting().next())
    }

    /// The lane whose turn it is takes a credit.
    pub(crate) fn take(&mut self, lane: Lane, now: Millis) {
        let taken = index(lane);
        self.took[taken] = Some(now);
        for (i, debt) in self.debt.iter_mut().enumerate().filter(|(i, _)| *i != taken) {
            if self.ready[i] {
                // Held at ten: a lane that waits at its own bound does not save up for a burst.
                *debt = (*debt + self.share).min(10);
            }
        }
        self.debt[taken] = (self.debt[taken] + self.share).saturating_sub(10);
        self.free = self.free.saturating_sub(1);
        self.held[taken] += 1;
    }

    /// A batch of this lane gives its credit back.
    pub(crate) fn give_back(&mut self, lane: Lane) {
        self.free += 1;
        self.held[index(lane)] = self.held[index(lane)].saturating_sub(1);
    }
}

/// Items that wait, with the epochs they hold open.
#[derive(Default)]
struct Queue {
    line: VecDeque<(Capability<u64>, VecDeque<Item>, Millis)>,
    waiting: usize,
}

impl Queue {
    fn add(&mut self, cap: Capability<u64>, items: Vec<Item>, now: Millis) {
        self.waiting += items.len();
        self.line.push_back((cap, items.into(), now));
    }

    fn oldest(&self) -> Millis {
        self.line.front().map_or(Millis(0), |(_, _, at)| *at)
    }

    /// Takes the oldest items, at most so many, and the capability of the least epoch among them.
    fn take(&mut self, most: usize) -> Option<(Capability<u64>, Vec<Item>)> {
        let cap = self.line.front()?.0.clone();
        let mut taken = Vec::with_capacity(most.min(self.waiting));
        while let Some((_, items, _)) = self.line.front_mut() {
            let n = items.len().min(most - taken.len());
            taken.extend(items.drain(..n));
            if !items.is_empty() {
                break;
            }
            self.line.pop_front();
        }
        self.waiting -= taken.len();
        Some((cap, taken))
    }
}

/// The operator.
pub(crate) fn prioritise<'scope>(items: Items<'scope>, lane: Lane, shared: &Rc<Shared>) -> Items<'scope> {
    let (scope, shared) = (items.scope(), shared.clone());
    items.unary(Pipeline, &named("prioritise", lane), move |_, info| {
        let activator = scope.activator_for(info.address.clone());
        shared.credits.gate(lane, scope.activator_for(info.address));
        let mut queue = Queue::default();
        let mut armed = None;
        move |input, output| {
            let (now, limits) = (shared.kit.clock.mono(), &shared.kit.limits.flow);
            input.for_each(|cap, items| {
                if let Some(cap) = cap.retain_least(output.output_index()) {
                    queue.add(cap, std::mem::take(items), now);
                }
            });
            loop {
                let in_flight = shared.credits.held(lane);
                let ready = Line { waiting: queue.waiting, oldest: queue.oldest(), in_flight }.ready(now, limits);
                if !shared.credits.ask(lane, ready == Ready::Now, now) {
                    if let Ready::At(at) = ready
                        && armed.is_none_or(|armed| armed <= now)
                    {
                        // One timer at a time: each is an entry in the worker's heap.
                        armed = Some(at);
                        activator.activate_after(Duration::from_millis(at.since(now)));
                    }
                    break;
                }
                if let Some((cap, mut batch)) = queue.take(limits.batch) {
                    output.session(&cap).give_container(&mut batch);
                }
            }
            let waiting = &shared.count(lane).waiting;
            waiting.store(queue.waiting as u64, std::sync::atomic::Ordering::Relaxed);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Millis = Millis(1_000);

    // No lane is held back by a more urgent one, where a test does not say so.
    fn turns(credits: usize, share: usize) -> Turns {
        let limits = FlowLimits { credits, low_share_of_ten: share, urgent_ms: 0, ..FlowLimits::default() };
        Turns::new(&limits)
    }

    #[test]
    fn p9_high_first_and_low_one_in_ten() {
        let mut turns = turns(1_000, 1);
        Priority::ALL.into_iter().for_each(|lane| turns.set_ready(lane, true));
        let mut taken = String::new();
        for _ in 0..20 {
            let lane = turns.next(NOW).unwrap();
            turns.take(lane, NOW);
            taken.push_str(&lane.word()[..1]);
        }
        // Low's share comes first when two lanes have waited alike; Normal's follows.
        assert_eq!(taken, "hhhhhhhhhlnhhhhhhhhl");
    }

    #[test]
    fn a_backlog_of_low_leaves_credits_for_high() {
        let mut turns = turns(32, 1);
        turns.set_ready(Lane::Low, true);
        let low = std::iter::from_fn(|| turns.next(NOW).inspect(|lane| turns.take(*lane, NOW))).count();
        assert_eq!(low, 24);
        turns.set_ready(Lane::High, true);
        assert_eq!(turns.next(NOW), Some(Lane::High));
    }

    #[test]
    fn a_lane_holds_few_credits_while_a_more_urgent_one_keeps_coming() {
        let limits = FlowLimits {
            credits: 32,
            normal_beside_urgent: 4,
            low_beside_urgent: 2,
            urgent_ms: 50,
            ..FlowLimits::default()
        };
        for (lane, few, all) in [(Lane::Normal, 4, 28), (Lane::Low, 2, 24)] {
            let mut turns = Turns::new(&limits);
            turns.set_ready(Lane::High, true);
            assert_eq!(turns.next(NOW), Some(Lane::High));
            turns.take(Lane::High, NOW);
            turns.give_back(Lane::High);
            turns.set_ready(Lane::High, false);
            turns.set_ready(lane, true);
            let held = |turns: &mut Turns, now: Millis| {
                while let Some(lane) = turns.next(now) {
                    turns.take(lane, now);
                }
                turns.held(lane)
            };
            assert_eq!(held(&mut turns, NOW), few);
            assert_eq!(held(&mut turns, NOW.plus(49)), few);
            turns.give_back(lane);
            assert_eq!(held(&mut turns, NOW.plus(49)), few, "one for one: it goes on");
            assert_eq!(held(&mut turns, NOW.plus(50)), all, "nothing urgent has come for a while");
        }
    }

    #[derive(Debug, Clone)]
    enum Move {
        Ready(usize, bool),
        Take,
        Back(usize),
    }

    fn moves() -> impl Strategy<Value = Move> {
        prop_oneof![
            (0usize..3, any::<bool>()).prop_map(|(lane, ready)| Move::Ready(lane, ready)),
            Just(Move::Take),
            Just(Move::Take),
            (0usize..3).prop_map(Move::Back),
        ]
    }

    proptest! {
        // P9: when two wait, the more urgent goes first, unless the other is owed its share; no credit is made or lost.
        #[test]
        fn p9_priority_order_when_both_wait(moves in proptest::collection::vec(moves(), 1..200), share in 0usize..4, credits in 8usize..40) {
            let mut turns = turns(credits, share);
            let mut out = [0usize; 3];
            let mut run = [0usize; 3];
            for step in moves {
                match step {
                    Move::Ready(lane, ready) => {
                        turns.set_ready(Priority::ALL[lane], ready);
                        if !ready { run[lane] = 0; }
                    }
                    Move::Back(lane) if out[lane] > 0 => {
                        turns.give_back(Priority::ALL[lane]);
                        out[lane] -= 1;
                    }
                    Move::Back(_) => {}
                    Move::Take => {
                        let Some(lane) = turns.next(NOW) else {
                            prop_assert!(Priority::ALL.into_iter().all(|lane| !turns.may(lane, NOW)));
                            continue;
                        };
                        let i = index(lane);
                        prop_assert!(turns.ready[i]);
                        // Passed over only for a share that was due, and a share is due only after enough were passed over.
                        let urgent = Priority::ALL[..i].iter().any(|l| turns.may(*l, NOW));
                        if urgent { prop_assert!(share > 0 && (run[i] + 2) * share >= 10, "{} passed over {}", lane.word(), run[i]); }
                        turns.take(lane, NOW);
                        out[i] += 1;
                        for (l, run) in run.iter_mut().enumerate() { *run = if turns.ready[l] && l != i { *run + 1 } else { 0 } }
                    }
                }
                prop_assert_eq!(turns.free + out.iter().sum::<usize>(), credits);
                for (l, lane) in Priority::ALL.into_iter().enumerate() { prop_assert_eq!(turns.held(lane), out[l]); }
            }
        }

        // Of any ten turns that it waits through, Low gets its share.
        #[test]
        fn low_is_never_starved(share in 1usize..4, normal in any::<bool>()) {
            let mut turns = turns(10_000, share);
            turns.set_ready(Lane::High, true);
            turns.set_ready(Lane::Normal, normal);
            turns.set_ready(Lane::Low, true);
            let mut taken = Vec::new();
            for _ in 0..100 {
                let lane = turns.next(NOW).unwrap();
                turns.take(lane, NOW);
                taken.push(lane);
            }
            for ten in taken.windows(10) { prop_assert!(ten.iter().filter(|l| **l == Lane::Low).count() >= share); }
        }
    }
}
