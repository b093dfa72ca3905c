//! Repeating a port's call until it did what was asked, or the process stops.
//!
//! Everything repeated here is idempotent: facts merge, a retry is known by its number, a burial by its round. So
//! `Unknown` is repeated like `Unavailable`. Waits 10 ms and twice as long each time up to a second.

use std::time::Duration;

use schemas::port::{Append, Log, PortError, PortResult};
use tokio_util::sync::CancellationToken;

/// The process stops: what was in hand is not committed and is done again after the next start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stopped;

const FIRST_WAIT: Duration = Duration::from_millis(10);
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Calls until it happened, or was rejected (`Ok(Err(why))`: again is useless).
pub(crate) async fn until_done<T, F>(
    stop: &CancellationToken,
    what: &'static str,
    mut call: impl FnMut() -> F,
) -> Result<Result<T, String>, Stopped>
where
    F: Future<Output = PortResult<T>>,
{
    let mut wait = FIRST_WAIT;
    loop {
        let error = match call().await {
            Ok(value) => return Ok(Ok(value)),
            Err(PortError::Rejected(why)) => return Ok(Err(why)),
            Err(error) => error,
        };
        metrics::counter!("esh3ar_port_retries_total", "call" => what).increment(1);
        tracing::warn!(%error, what, wait_ms = wait.as_millis() as u64, "repeating");
        tokio::select! {
            () = stop.cancelled() => return Err(Stopped),
            () = tokio::time::sleep(wait) => {}
        }
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// Appends until every record is durable. A rejected one is logged and left: nothing else could be done with it.
pub(crate) async fn append(log: &dyn Log, stop: &CancellationToken, records: Vec<Append>) -> Result<(), Stopped> {
    let mut left = records;
    let mut wait = FIRST_WAIT;
    while !left.is_empty() {
        let answers = log.append(left.clone()).await;
        let mut again = Vec::new();
        for (record, answer) in left.into_iter().zip(answers) {
            match answer {
                Ok(_) => {}
                Err(error @ PortError::Rejected(_)) => tracing::error!(at = %record.at, %error, "a record is lost"),
                Err(error) => {
                    tracing::warn!(at = %record.at, %error, "repeating an append");
                    again.push(record);
                }
            }
        }
        left = again;
        if !left.is_empty() {
            tokio::select! {
                () = stop.cancelled() => return Err(Stopped),
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }
    Ok(())
}
