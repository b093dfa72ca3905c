//! Dedupe: a message whose id was seen within the window is dropped, so that the same id twice is the same as once (P8).
//!
//! Remembers 24 bytes per id for the window's time, in two generations that never grow. A retry is known by (id, round,
//! attempt), a scheduled message that is due by its id as such. The same id with another body is not a repeat: it goes on,
//! marked, and `record` settles which was first. What was seen before its partition was taken over (again) does not count,
//! because what was in flight then may be unfinished; `record` asks history about those.

use std::rc::Rc;

use schemas::{Epoch, Lane, MessageId, Millis, tier::Attempt};

use super::{Items, each::each};
use crate::{
    ages::Ages,
    gauges,
    item::{Item, Work},
    shared::Shared,
};

/// What tells one piece of work from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Name([u64; 2]);

/// In what role an id comes.
enum Role {
    Fresh,
    Due,
    Again(u8, Attempt),
}

impl Name {
    fn of(id: MessageId, role: &Role) -> Self {
        let (high, low) = id.0.as_u64_pair();
        // Ids are hashes or random: adding a small number times an odd constant keeps roles apart.
        let role = match role {
            Role::Fresh => 0,
            Role::Due => 1,
            Role::Again(round, attempt) => 2 + (u64::from(*round) << 8 | u64::from(attempt.0)),
        };
        Self([high, low.wrapping_add(role.wrapping_mul(0x9e37_79b9_7f4a_7c15))])
    }
}

/// How a name was met before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Met {
    Never,
    Same,
    OtherBody,
}

/// What tells one body from another.
fn body(fingerprint: &[u8; 16]) -> u32 {
    let [a, b, c, d, ..] = *fingerprint;
    u32::from_le_bytes([a, b, c, d])
}

/// The window: what was seen lately. Shared by the lanes of an instance.
pub(crate) struct Window(Ages<Name, Seen>);

#[derive(Clone, Copy)]
struct Seen {
    body: u32,
    epoch: Epoch,
}

impl Window {
    /// Remembers at most `ids`, for at least `ms` unless more than half of that came since.
    pub(crate) fn new(ids: usize, ms: u64) -> Self {
        Self(Ages::new(ids, ms))
    }

    /// Lets time pass.
    pub(crate) fn at(&mut self, now: Millis) {
        self.0.at(now);
    }

    fn meet(&mut self, name: Name, body: u32, epoch: Epoch, now: Millis) -> Met {
        match self.0.get(&name) {
            Some(seen) if seen.epoch >= epoch => {
                if seen.body == body {
                    Met::Same
                } else {
                    Met::OtherBody
                }
            }
            _ => {
                self.0.insert(name, Seen { body, epoch }, now);
                Met::Never
            }
        }
    }

    /// Whether what was met under a name goes on: what comes with another body does, marked.
    fn meets(&mut self, name: Name, body: u32, epoch: Epoch, now: Millis, conflict: &mut bool) -> bool {
        let met = self.meet(name, body, epoch, now);
        *conflict |= met == Met::OtherBody;
        met != Met::Same
    }

    /// Whether an item goes on.
    fn takes(&mut self, item: &mut Item, now: Millis) -> bool {
        match &mut item.work {
            Work::Fresh(fresh) => {
                let role = if fresh.due.is_some() { Role::Due } else { Role::Fresh };
                let (name, body) = (Name::of(fresh.message.id, &role), body(&fresh.message.fingerprint));
                self.meets(name, body, item.epoch, now, &mut fresh.conflict)
            }
            Work::Chat(asked) => {
                let (name, body) = (Name::of(asked.command.id, &Role::Fresh), body(&asked.command.fingerprint));
                self.meets(name, body, item.epoch, now, &mut asked.conflict)
            }
            Work::Again(again) => {
                let name = Name::of(again.id, &Role::Again(again.round, again.attempt));
                self.meet(name, 0, item.epoch, now) == Met::Never
            }
            Work::Dead(_) => true,
        }
    }
}

/// The operator.
pub(crate) fn dedupe<'scope>(items: Items<'scope>, lane: Lane, shared: &Rc<Shared>) -> Items<'scope> {
    let shared = shared.clone();
    each(items, "dedupe", lane, move |items| {
        let (before, now) = (items.len(), shared.kit.clock.mono());
        let mut window = shared.window.borrow_mut();
        let tenants = &shared.kit.counters.tenants;
        items.retain_mut(|item| {
            let takes = window.takes(item, now);
            if !takes {
                tenants.wait_no_more(lane, [item.tenant()]);
            }
            takes
        });
        gauges::add(&shared.count(lane).repeats, before - items.len());
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{fresh, id_of, message};
    use proptest::prelude::*;
    use std::collections::HashSet;

    proptest! {
        // P8: the same id twice is the same as once; the first of each id passes, in order.
        #[test]
        fn p8_the_same_id_twice_is_once(numbers in proptest::collection::vec(0u64..40, 0..200)) {
            let mut window = Window::new(1_000, 60_000);
            let mut items: Vec<_> = numbers.iter().map(|n| fresh(message(*n))).collect();
            let mut seen = HashSet::new();
            let expected: Vec<_> = items.iter().map(id_of).filter(|id| seen.insert(*id)).collect();
            items.retain_mut(|item| window.takes(item, Millis(0)));
            prop_assert_eq!(items.iter().map(id_of).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn what_counts_as_a_repeat() {
        let mut window = Window::new(1_000, 1_000);
        let item = || fresh(message(1));
        assert!(window.takes(&mut item(), Millis(0)));
        assert!(!window.takes(&mut item(), Millis(1)));
        // The same name with another body goes on, marked.
        let mut other = message(1);
        other.fingerprint = [9; 16];
        let mut other = fresh(other);
        assert!(window.takes(&mut other, Millis(2)));
        assert!(matches!(other.work, Work::Fresh(fresh) if fresh.conflict));
        // Taken over again: what was in flight before may be unfinished.
        let mut later = item();
        later.epoch = Epoch(2);
        assert!(window.takes(&mut later, Millis(3)));
        // After the window history must be asked.
        window.at(Millis(1_000));
        window.at(Millis(2_000));
        window.at(Millis(3_000));
        assert!(window.takes(&mut item(), Millis(3_000)));
    }

    #[test]
    fn retries_are_told_apart_by_round_and_attempt() {
        let mut window = Window::new(1_000, 1_000);
        let mut passed = 0;
        for _ in 0..2 {
            for (round, attempt) in [(0, 1), (0, 2), (1, 0), (1, 1)] {
                let mut item = crate::testing::again(1, round, attempt);
                passed += usize::from(window.takes(&mut item, Millis(0)));
            }
        }
        assert_eq!(passed, 4);
        assert!(window.takes(&mut fresh(message(1)), Millis(0)), "and from the message itself");
    }
}
