//! Vital parts: tasks and threads without which a process would go on and do half of what it is there for. One that
//! panics is told of, once, to whoever ends the process: it is started again, and nothing accepted is lost. What serves
//! one request or one connection is not vital: its panic ends that request or connection.
//!
//! There is one place to tell it for the whole process, because it is the process that ends, wherever the panic was.

use std::{
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::pin,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

static LOST: Lost = Lost::new();

/// Runs a vital task. A panic of it goes on to whoever waits for the task, as it would without this.
pub fn task<T>(what: &'static str, task: impl Future<Output = T>) -> impl Future<Output = T> {
    LOST.task(what, task)
}

/// Runs what a vital thread does. A panic of it goes on to whoever joins the thread.
pub fn thread<T>(what: &'static str, run: impl FnOnce() -> T) -> T {
    LOST.watch(what, run)
}

/// Tells of a vital part that sees itself that it cannot go on, once it has said why.
pub fn end(what: &'static str) {
    LOST.tell(what);
}

/// Waits until a vital part has panicked, or cannot go on; names the first that did.
pub async fn lost() -> &'static str {
    poll_fn(|context| LOST.heard(context)).await
}

/// The first part that is lost, and who waits to hear of it.
struct Lost(Mutex<(Option<&'static str>, Vec<Waker>)>);

impl Lost {
    const fn new() -> Self {
        Self(Mutex::new((None, Vec::new())))
    }

    async fn task<T>(&self, what: &'static str, task: impl Future<Output = T>) -> T {
        let mut task = pin!(task);
        poll_fn(|context| self.watch(what, || task.as_mut().poll(context))).await
    }

    fn watch<T>(&self, what: &'static str, act: impl FnOnce() -> T) -> T {
        match catch_unwind(AssertUnwindSafe(act)) {
            Ok(done) => done,
            Err(panic) => {
                self.tell(what);
                resume_unwind(panic)
            }
        }
    }

    fn tell(&self, what: &'static str) {
        let waiting = {
            let mut told = self.told();
            told.0.get_or_insert(what);
            std::mem::take(&mut told.1)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    fn heard(&self, context: &Context<'_>) -> Poll<&'static str> {
        let mut told = self.told();
        if let Some(what) = told.0 {
            return Poll::Ready(what);
        }
        if !told.1.iter().any(|waiting| waiting.will_wake(context.waker())) {
            told.1.push(context.waker().clone());
        }
        Poll::Pending
    }

    fn told(&self) -> MutexGuard<'_, (Option<&'static str>, Vec<Waker>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::Wake,
    };

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Polls a vital task once; says whether its panic went on.
    fn polled(lost: &Lost, what: &'static str, task: impl Future<Output = ()>) -> Result<Poll<()>, ()> {
        let mut task = pin!(lost.task(what, task));
        let once = AssertUnwindSafe(|| task.as_mut().poll(&mut Context::from_waker(Waker::noop())));
        catch_unwind(once).map_err(drop)
    }

    #[test]
    fn the_first_that_panics_is_told_of_and_an_end_in_peace_is_none() {
        let (lost, woken) = (Lost::new(), Arc::new(Woken::default()));
        let waker = Waker::from(woken.clone());
        let context = Context::from_waker(&waker);
        assert_eq!(polled(&lost, "this", async {}), Ok(Poll::Ready(())));
        assert_eq!(polled(&lost, "this", std::future::pending()), Ok(Poll::Pending));
        assert_eq!(lost.watch("this", || 7), 7);
        assert!(lost.heard(&context).is_pending() && lost.heard(&context).is_pending());
        assert_eq!(woken.0.load(Ordering::SeqCst), 0);
        assert_eq!(polled(&lost, "this", async { panic!("as asked") }), Err(()));
        assert!(woken.0.load(Ordering::SeqCst) > 0, "who waited is woken");
        assert!(catch_unwind(AssertUnwindSafe(|| lost.watch("that", || -> u8 { panic!("as asked") }))).is_err());
        assert_eq!(lost.heard(&context), Poll::Ready("this"));
    }
}
