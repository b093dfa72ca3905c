//! Repeating a port's call until it did what was asked, or was refused, or the work is another owner's, or the process stops.
//!
//! Everything repeated here is idempotent: facts merge, a retry is known by its number, a burial by its round. So
//! `Unknown` is repeated like `Unavailable`. Waits 10 ms and twice as long each time up to a second.

use schemas::{
    Partition,
    port::{Append, Log, PortError, PortResult},
};
use tokio_util::sync::CancellationToken;

use crate::{backoff::Backoff, gate::Gate, operators::repeat::again};

/// The process stops: what was in hand is not committed and is done again after the next start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stopped;

/// What a repeated call came to.
pub(crate) enum Done<T> {
    /// It happened.
    Answered(T),
    /// It was refused: again is useless.
    Refused(PortError),
    /// It is for another owner to do.
    Lost,
}

/// Calls until it happened, was refused, or `ours` says that it is not ours any more.
pub(crate) async fn until_done<T, F>(
    gate: &Gate,
    stop: &CancellationToken,
    what: &'static str,
    ours: impl Fn() -> bool,
    mut call: impl FnMut() -> F,
) -> Result<Done<T>, Stopped>
where
    F: Future<Output = PortResult<T>>,
{
    let mut backoff = Backoff::default();
    while ours() {
        let answer = tokio::select! {
            biased;
            answer = gate.call(call()) => answer,
            () = stop.cancelled() => return Err(Stopped),
        };
        match answer {
            Ok(value) => return Ok(Done::Answered(value)),
            Err(why @ (PortError::Rejected(_) | PortError::Fenced(_))) => return Ok(Done::Refused(why)),
            Err(why) => again(what, &why, &backoff),
        }
        pause(stop, &mut backoff).await?;
    }
    Ok(Done::Lost)
}

/// Appends until every record is durable, of partitions that are ours. A rejected one is logged and left: nothing else could
/// be done with it.
pub(crate) async fn append(
    gate: &Gate,
    log: &dyn Log,
    stop: &CancellationToken,
    ours: impl Fn(Partition) -> bool,
    records: Vec<Append>,
) -> Result<(), Stopped> {
    let mut left = records;
    let mut backoff = Backoff::default();
    loop {
        left.retain(|record| ours(record.at.partition));
        if left.is_empty() {
            return Ok(());
        }
        let answers = tokio::select! {
            biased;
            answers = gate.append(log, left.clone()) => answers,
            () = stop.cancelled() => return Err(Stopped),
        };
        let mut unsure = Vec::new();
        for (record, answer) in left.into_iter().zip(answers) {
            match answer {
                Ok(_) => {}
                Err(why @ (PortError::Rejected(_) | PortError::Fenced(_))) => {
                    tracing::error!(at = %record.at, %why, "a record is lost");
                }
                Err(why) => {
                    if unsure.is_empty() {
                        again("append", &why, &backoff);
                    }
                    unsure.push(record);
                }
            }
        }
        left = unsure;
        if !left.is_empty() {
            pause(stop, &mut backoff).await?;
        }
    }
}

async fn pause(stop: &CancellationToken, backoff: &mut Backoff) -> Result<(), Stopped> {
    tokio::select! {
        () = stop.cancelled() => Err(Stopped),
        () = backoff.wait() => Ok(()),
    }
}
