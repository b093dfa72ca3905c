//! The signals that ask a process to end.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::Failure;

/// SIGTERM and SIGINT.
pub(super) struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    /// From now on they end nothing by themselves.
    pub(super) fn listen() -> Result<Self, Failure> {
        let on = |kind| signal(kind).map_err(|why| Failure::failed(format!("signals cannot be heard: {why}")));
        Ok(Self { term: on(SignalKind::terminate())?, int: on(SignalKind::interrupt())? })
    }

    /// Waits for the next of them.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

/// Does some work that starts processes. A signal drops the work, and its processes with it: none of them is left behind.
pub(super) async fn unless_told_to_end<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let mut signals = Signals::listen()?;
    tokio::select! {
        ended = work => ended,
        () = signals.next() => Err(Failure::failed("told to end: what it had started was ended, and nothing is to be read from it")),
    }
}
