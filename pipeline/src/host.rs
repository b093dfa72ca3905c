//! Hosts one instance's dataflow: a thread of its own with a single-threaded timely worker, three flows and the rim.
//!
//! A panic ends this instance alone and is reported; nothing is committed by it, because capabilities that are dropped while a
//! thread unwinds are not published.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::Thread,
    time::Duration,
};

use parking_lot::Mutex;
use schemas::Priority;
use timely::communication::WorkerGuards;
use tokio::{runtime::Handle, sync::mpsc::Receiver};

use crate::{
    failed::Failed,
    flow::flow,
    operators::source::Feed,
    rim::Rim,
    shared::{Kit, Shared},
    wake::Wake,
};

/// A running instance.
pub(crate) struct Host {
    stop: Arc<AtomicBool>,
    thread: Thread,
    guards: Option<WorkerGuards<()>>,
}

/// What the thread says when it stands.
struct Ready {
    thread: Thread,
    bells: [Arc<Wake>; 3],
}

/// Says that the thread panicked.
struct Watcher(Failed);

impl Drop for Watcher {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.tell("a dataflow instance panicked; the log has its last words");
        }
    }
}

impl Host {
    /// Starts the thread. Gives the bells of the lanes, to be rung after feeding.
    pub(crate) fn start(
        kit: Kit,
        feeds: [Receiver<Feed>; 3],
        runtime: Handle,
        failed: Failed,
    ) -> Result<(Self, [Arc<Wake>; 3]), String> {
        let mut config = timely::Config::thread();
        config.worker = config.worker.idle_spin(Duration::ZERO);
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, stands) = mpsc::sync_channel(1);
        // Timely asks for a function that may be called by many workers; this one has one.
        let once = Mutex::new(Some((kit, feeds, ready, Watcher(failed))));
        let stopping = stop.clone();
        let guards = timely::execute(config, move |worker| {
            let Some((kit, feeds, ready, _watcher)) = once.lock().take() else { return };
            let _entered = runtime.enter();
            let rim = Rim::new();
            let shared = Shared::new(kit, rim.clone());
            let mut feeds = feeds.into_iter();
            let bells = Priority::ALL.map(|lane| {
                let feeds = feeds.next();
                let shared = &shared;
                feeds.map(|feeds| worker.dataflow_named(lane.word(), |scope| flow(scope, lane, shared, feeds)))
            });
            let [Some(high), Some(normal), Some(low)] = bells else { return };
            let _ = ready.send(Ready { thread: std::thread::current(), bells: [high, normal, low] });
            loop {
                rim.turn();
                if stopping.load(Ordering::Acquire) {
                    worker.installed_dataflows().into_iter().for_each(|flow| worker.drop_dataflow(flow));
                    break;
                }
                if !worker.step_or_park(None) {
                    break;
                }
            }
            // Acts hold what is shared, and that holds the rim: break the circle.
            rim.clear();
        })?;
        match stands.recv() {
            Ok(Ready { thread, bells }) => Ok((Self { stop, thread, guards: Some(guards) }, bells)),
            Err(_) => {
                let ends = guards.join();
                Err(format!("the dataflow could not be built: {ends:?}"))
            }
        }
    }

    /// Ends the thread whatever it does, and waits for it. What was not done is not committed.
    pub(crate) fn end(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.thread.unpark();
        if let Some(guards) = self.guards.take() {
            // A panic was reported by the watcher; joining by hand keeps it from being one here too.
            drop(guards.join());
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.end();
    }
}
