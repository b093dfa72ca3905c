//! What was given to dispatch and is not yet known to be sent, and what its sender took back: the two sides of a cancel
//! (rule 9). Shared by the flow and the settler of one instance; whoever comes first wins, and the other is told.
//!
//! Bounded in number and time: an id that dispatch was given is held until its `Sent` fact is read or for [`Handed::KEEP_MS`].

use parking_lot::Mutex;
use schemas::{MessageId, Millis, Timestamp};

use crate::ages::Ages;

/// Ids on their way to a socket, and ids taken back.
pub(crate) struct Handed(Mutex<Sides>);

struct Sides {
    handed: Ages<MessageId, Timestamp>,
    withdrawn: Ages<MessageId, ()>,
}

impl Handed {
    /// How long an id is held, ms: a delivery has met its deadline and its facts were read long before.
    pub(crate) const KEEP_MS: u64 = 60_000;

    /// Holds at most so many ids of each side.
    pub(crate) fn new(most: usize) -> Self {
        let (handed, withdrawn) = (Ages::new(most, Self::KEEP_MS), Ages::new(most, Self::KEEP_MS));
        Self(Mutex::new(Sides { handed, withdrawn }))
    }

    /// The flow is about to give it, accepted then, to dispatch. False: it was withdrawn, and must not be given.
    pub(crate) fn hand(&self, id: MessageId, accepted_at: Timestamp, now: Millis) -> bool {
        let sides = &mut *self.0.lock();
        sides.withdrawn.at(now);
        sides.handed.at(now);
        let free = sides.withdrawn.get(&id).is_none();
        if free {
            sides.handed.insert(id, accepted_at, now);
        }
        free
    }

    /// Its sender takes it back. False: it was handed already, and it is too late.
    pub(crate) fn withdraw(&self, id: MessageId, now: Millis) -> bool {
        let sides = &mut *self.0.lock();
        sides.withdrawn.at(now);
        sides.handed.at(now);
        let free = sides.handed.get(&id).is_none();
        if free {
            sides.withdrawn.insert(id, (), now);
        }
        free
    }

    /// What became of it is known (it was sent, or nobody was there): it need not be held any more. Gives when it was
    /// accepted, if it was held.
    pub(crate) fn sent(&self, id: MessageId) -> Option<Timestamp> {
        self.0.lock().handed.remove(&id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_comes_first_wins() {
        let handed = Handed::new(100);
        let (a, b) = (MessageId::fresh(Timestamp(1)), MessageId::fresh(Timestamp(1)));
        assert!(handed.hand(a, Timestamp(1), Millis(1)) && !handed.withdraw(a, Millis(2)));
        assert!(handed.withdraw(b, Millis(1)) && !handed.hand(b, Timestamp(1), Millis(2)));
        assert_eq!((handed.sent(a), handed.sent(a)), (Some(Timestamp(1)), None));
        assert!(handed.withdraw(a, Millis(3)), "parked again: it may be taken back");
        assert!(!handed.hand(a, Timestamp(1), Millis(4)));
        assert!(handed.hand(b, Timestamp(1), Millis(1 + 2 * Handed::KEEP_MS)), "forgotten in time");
    }
}
