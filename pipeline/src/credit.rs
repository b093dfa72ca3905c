//! Credits: how many batches the three lanes of an instance may have past `prioritise` at once.
//!
//! Who takes the next one is decided by [`Turns`]; this is the handle that gives a credit back and wakes who waits for it.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use schemas::{Lane, Millis, limits::FlowLimits};
use timely::scheduling::Activator;

use crate::operators::prioritise::Turns;

/// The credits of one instance, shared by its lanes.
#[derive(Clone)]
pub(crate) struct Credits(Rc<Inner>);

struct Inner {
    turns: RefCell<Turns>,
    /// When somebody last asked.
    asked: Cell<Millis>,
    gates: RefCell<[Option<Activator>; 3]>,
}

impl Credits {
    /// All free.
    pub(crate) fn new(limits: &FlowLimits) -> Self {
        let (turns, asked) = (RefCell::new(Turns::new(limits)), Cell::new(Millis(0)));
        Self(Rc::new(Inner { turns, asked, gates: RefCell::default() }))
    }

    /// Whom to wake when this lane may take one.
    pub(crate) fn gate(&self, lane: Lane, activator: Activator) {
        self.0.gates.borrow_mut()[usize::from(lane.number())] = Some(activator);
    }

    /// Batches of a lane that hold one.
    pub(crate) fn held(&self, lane: Lane) -> usize {
        self.0.turns.borrow().held(lane)
    }

    /// Says whether a lane has a batch ready, and takes a credit for it if it is its turn: the batch then collects it with
    /// [`Credits::taken`]. If it is another lane's turn, that one is woken.
    pub(crate) fn ask(&self, lane: Lane, ready: bool, now: Millis) -> bool {
        self.0.asked.set(now);
        let mut turns = self.0.turns.borrow_mut();
        turns.set_ready(lane, ready);
        match turns.next(now) {
            Some(next) if next == lane => {
                turns.take(lane, now);
                true
            }
            Some(next) => {
                self.wake(next);
                false
            }
            None => false,
        }
    }

    /// The credit that was taken for a batch which is being made.
    pub(crate) fn taken(&self, lane: Lane) -> Credit {
        Credit { lane, of: self.clone() }
    }

    fn wake(&self, lane: Lane) {
        if let Some(gate) = &self.0.gates.borrow()[usize::from(lane.number())] {
            gate.activate();
        }
    }
}

/// One of the credits. Given back when dropped.
pub(crate) struct Credit {
    lane: Lane,
    of: Credits,
}

impl Drop for Credit {
    fn drop(&mut self) {
        self.of.0.turns.borrow_mut().give_back(self.lane);
        // Its own lane looks again too: with fewer batches in flight it may no longer wait for a full one.
        self.of.wake(self.lane);
        // A lane that holds few because of more urgent ones is woken by its own: the time may be an older one.
        if let Some(next) = self.of.0.turns.borrow().next(self.of.0.asked.get()) {
            self.of.wake(next);
        }
    }
}
