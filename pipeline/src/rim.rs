//! The rim: where the instance's acts (store writes, look-ups, deliveries) run while the dataflow goes on.
//!
//! The futures of the ports are polled on the instance's own thread, between two steps of the worker and never inside an
//! operator: an act that is ready at once costs no wake-up, one that waits costs one. Futures are first polled in the order in
//! which they were given, which is what gives history writes and deliveries their order. An operator gives an act together
//! with what to do with its answer; it is activated when the answer is there.

use std::{
    cell::RefCell,
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread::Thread,
};

use futures::{Stream as _, stream::FuturesUnordered};

type Act = Pin<Box<dyn Future<Output = ()>>>;

/// The acts of one instance. Cheap to clone; lives on one thread.
#[derive(Clone)]
pub(crate) struct Rim(Rc<Inner>);

struct Inner {
    given: RefCell<Vec<Act>>,
    running: RefCell<FuturesUnordered<Act>>,
    bell: Arc<Bell>,
    waker: Waker,
}

/// Wakes the instance's thread.
struct Bell {
    rung: AtomicBool,
    thread: Thread,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.thread.unpark();
        }
    }
}

impl Rim {
    /// An empty rim of the calling thread.
    pub(crate) fn new() -> Self {
        let bell = Arc::new(Bell { rung: AtomicBool::new(false), thread: std::thread::current() });
        let waker = Waker::from(bell.clone());
        Self(Rc::new(Inner { given: RefCell::default(), running: RefCell::default(), bell, waker }))
    }

    /// Gives an act. It is first polled at the next turn, after all that were given before it.
    pub(crate) fn give(&self, act: impl Future<Output = ()> + 'static) {
        self.0.given.borrow_mut().push(Box::pin(act));
    }

    /// Polls what was given and what was woken, until nothing can go on.
    pub(crate) fn turn(&self) {
        let inner = &*self.0;
        let mut running = inner.running.borrow_mut();
        loop {
            let given = std::mem::take(&mut *inner.given.borrow_mut());
            let woken = inner.bell.rung.swap(false, Ordering::AcqRel);
            if given.is_empty() && !woken {
                return;
            }
            running.extend(given);
            let mut context = Context::from_waker(&inner.waker);
            while let Poll::Ready(Some(())) = Pin::new(&mut *running).poll_next(&mut context) {}
        }
    }

    /// Drops all acts.
    pub(crate) fn clear(&self) {
        let given = std::mem::take(&mut *self.0.given.borrow_mut());
        let running = std::mem::take(&mut *self.0.running.borrow_mut());
        drop((given, running));
    }

    /// Acts that have not ended.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.running.borrow().len() + self.0.given.borrow().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[test]
    fn acts_are_first_polled_in_the_order_given() {
        let rim = Rim::new();
        let seen = Rc::new(RefCell::new(Vec::new()));
        let mut ends = Vec::new();
        for n in 0..100 {
            let (seen, (end, wait)) = (seen.clone(), oneshot::channel::<()>());
            ends.push(end);
            rim.give(async move {
                seen.borrow_mut().push(n);
                let _ = wait.await;
            });
        }
        rim.turn();
        assert_eq!(*seen.borrow(), (0..100).collect::<Vec<_>>());
        assert_eq!(rim.len(), 100);
        drop(ends);
        rim.turn();
        assert_eq!(rim.len(), 0);
    }
}
