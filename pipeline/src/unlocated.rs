//! Unlocated: users whose place could not be asked when a message came for them, because presence was away.
//!
//! Their messages are parked, which charges no attempt, and the newest of each user is remembered here: it is offered again
//! within a second of presence answering, and a session that is offered it reads whatever it misses before it from the
//! inbox first (rule 5). So one hint a user is enough. Bounded: past the bound, and after a restart, catch-up alone has it.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::atomic::Ordering,
    time::Duration,
};

use schemas::{
    Epoch, Partition, UserId,
    port::{Hint, Outcome, Routed},
};

use crate::{operators::route::nodes, ownership::Owners, shared::Shared};

/// Between two questions to a presence that is away.
const EVERY: Duration = Duration::from_millis(200);

/// Those who wait to be found.
#[derive(Default)]
pub(crate) struct Unlocated {
    newest: RefCell<HashMap<UserId, (Hint, Epoch)>>,
    asking: Cell<bool>,
}

impl Unlocated {
    fn keep(&self, hint: Hint, epoch: Epoch, most: usize) {
        let mut newest = self.newest.borrow_mut();
        let room = newest.len() < most;
        match newest.get_mut(&hint.inbox.user) {
            Some(there) if there.0.position < hint.position => *there = (hint, epoch),
            Some(_) => {}
            None if room => drop(newest.insert(hint.inbox.user.clone(), (hint, epoch))),
            None => {}
        }
    }

    /// Takes some out, of partitions that are still held.
    fn take(&self, most: usize, held: impl Fn(Partition, Epoch) -> bool) -> Vec<(Hint, Epoch)> {
        let mut newest = self.newest.borrow_mut();
        newest.retain(|_, (hint, epoch)| held(hint.inbox.partition, *epoch));
        let users: Vec<_> = newest.keys().take(most).cloned().collect();
        users.iter().filter_map(|user| newest.remove(user)).collect()
    }
}

/// Remembers these, and begins to ask for them.
pub(crate) fn remember(shared: &Rc<Shared>, hints: Vec<Hint>, owners: &Owners) {
    let most = shared.kit.limits.flow.unlocated;
    for hint in hints {
        let epoch = owners.each().find(|(partition, _)| *partition == hint.inbox.partition);
        if let Some((_, epoch)) = epoch {
            shared.unlocated.keep(hint, epoch, most);
        }
    }
    tell(shared);
    if most > 0 && !shared.unlocated.asking.replace(true) {
        let asking = shared.clone();
        shared.rim.give(async move { offer(&asking).await });
    }
}

fn tell(shared: &Shared) {
    let waiting = shared.unlocated.newest.borrow().len() as u64;
    shared.kit.counters.unlocated.store(waiting, Ordering::Relaxed);
}

/// Asks until everyone was found or is known to be nowhere.
async fn offer(shared: &Shared) {
    let kit = &shared.kit;
    tokio::time::sleep(EVERY).await;
    loop {
        let page =
            shared.unlocated.take(kit.limits.flow.batch, |partition, epoch| kit.ownership.holds(partition, epoch));
        if page.is_empty() {
            tell(shared);
            shared.unlocated.asking.set(false);
            return;
        }
        let users: Vec<_> = page.iter().map(|(hint, _)| hint.inbox.user.clone()).collect();
        let Ok(places) = kit.gates.presence.call_now(kit.ports.presence.locate(&users)).await else {
            page.into_iter().for_each(|(hint, epoch)| shared.unlocated.keep(hint, epoch, kit.limits.flow.unlocated));
            tokio::time::sleep(EVERY).await;
            continue;
        };
        let now = kit.clock.mono();
        let found = page.into_iter().zip(places).map(|((hint, _), places)| Routed { hint, nodes: nodes(&places) });
        let sends: Vec<_> = found
            .filter(|routed| {
                !routed.nodes.is_empty()
                    && kit.handed.hand(routed.hint.message.id, routed.hint.message.accepted_at, now)
            })
            .collect();
        if sends.is_empty() {
            continue;
        }
        let ids: Vec<_> = sends.iter().map(|routed| routed.hint.message.id).collect();
        // They are parked already: who does not take them now has them in the inbox.
        for (id, outcome) in ids.iter().zip(kit.ports.dispatch.deliver(sends).await) {
            if outcome != Outcome::Taken {
                kit.handed.sent(*id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::message;
    use schemas::{Inbox, Position};
    use std::sync::Arc;

    fn hint(user: u64, n: u64) -> Hint {
        let message = Arc::new(message(user));
        let inbox = Inbox { user: message.to.clone(), partition: Partition((user % 2) as u16) };
        let (position, prev) = (Position { epoch: Epoch(1), n }, Position::START);
        Hint {
            inbox,
            position,
            prev,
            seq: None,
            message,
            round: 0,
            attempt: Default::default(),
            state: Default::default(),
        }
    }

    #[test]
    fn the_newest_of_each_user_is_kept_within_the_bound() {
        let unlocated = Unlocated::default();
        for (user, n) in [(1, 2), (1, 5), (1, 3), (2, 1), (3, 1)] {
            unlocated.keep(hint(user, n), Epoch(1), 2);
        }
        let taken = unlocated.take(10, |partition, _| partition == Partition(1));
        assert_eq!(taken.iter().map(|(hint, _)| hint.position.n).collect::<Vec<_>>(), [5], "0 is another's now");
        assert!(unlocated.take(10, |_, _| true).is_empty());
    }
}
