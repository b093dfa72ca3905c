//! The keeper: has the log cut and old records removed, once a second, on a thread of its own, because removing touches the
//! disk and must not hold up anyone else.

use std::{sync::Arc, time::Duration};

use schemas::{Clock, vital};
use tokio::sync::watch;

use crate::log::EmbeddedLog;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);

/// The thread's handle; dropping it ends the thread.
pub(crate) struct Keeper {
    stop: watch::Sender<bool>,
}

impl Keeper {
    pub(crate) fn start(log: EmbeddedLog, clock: Arc<dyn Clock>) -> std::io::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let run = move || runtime.block_on(vital::task("the log's keeper", keep(log, clock, stopped)));
        std::thread::Builder::new().name("esh3ar-keeper".into()).spawn(run)?;
        Ok(Self { stop })
    }

    /// Ends it and waits until it has let go of the log.
    pub(crate) async fn stop(self) {
        self.stop.send_replace(true);
        self.stop.closed().await;
    }
}

async fn keep(log: EmbeddedLog, clock: Arc<dyn Clock>, mut stopped: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            // An error means that the handle was dropped.
            _end = stopped.wait_for(|stop| *stop) => break,
            () = tokio::time::sleep(EVERY) => {}
        }
        match log.retain(clock.wall()).await {
            Ok(done) if done.segments > 0 => {
                tracing::info!(segments = done.segments, bytes = done.bytes, "old log records were removed");
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "the log could not be tended; the next try is in a second"),
        }
    }
    // In this order: who waits for the receiver to go wants the log to be gone too.
    drop(log);
    drop(stopped);
}
