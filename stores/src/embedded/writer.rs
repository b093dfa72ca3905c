//! The writer thread: takes groups of jobs, writes each group as one batch with one sync, then answers its jobs in order.
//!
//! Promises: nothing is answered, and nothing can be read, before it is durable; groups become durable in the order of the
//! queue. A write that failed may have happened in part: nothing is written after it, everyone is told, and the process is
//! expected to end, because only opening the folder again finds out what the disk holds.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering},
};

use fjall::{OwnedWriteBatch, PersistMode};
use schemas::port::PortError;

use super::{
    engine::{Shared, Write},
    pace::{Pace, Wrote},
    queue::Job,
};
use crate::fatal;

/// Runs until the queue is closed and empty.
pub(crate) fn run(shared: &Arc<Shared>, db: &fjall::Database) {
    let mut pace = Pace::new(shared.queue.bounds());
    while let Some(group) = shared.queue.next(pace.gather()) {
        let outcome = catch_unwind(AssertUnwindSafe(|| one_group(shared, db, group)));
        match outcome {
            Ok(Ok(wrote)) => pace.wrote(wrote),
            Ok(Err(why)) => poison(shared, &why),
            Err(_) => poison(shared, "the store's writer failed: see the log before this line"),
        }
    }
    shared.closed.send_replace(true);
}

fn one_group(shared: &Shared, db: &fjall::Database, group: Vec<Job>) -> Result<Wrote, String> {
    let count = group.iter().map(|job| job.writes.len()).sum();
    let bytes: usize = group.iter().map(|job| job.bytes).sum();
    // The sync is part of the commit and comes before the batch can be read.
    let mut batch = OwnedWriteBatch::with_capacity(db.clone(), count).durability(Some(PersistMode::SyncData));
    let (jobs, urgent) = (group.len(), group.iter().filter(|job| job.urgent).count());
    let mut answers = Vec::with_capacity(jobs);
    for job in group {
        for write in job.writes {
            match write {
                Write::Put { to, key, value } => batch.insert(&to, key, value),
                Write::Remove { from, key } => batch.remove(&from, key),
            }
        }
        answers.push((job.done, job._room));
    }
    let outcome = if count == 0 { Ok(()) } else { batch.commit() };
    let failed = match outcome {
        Ok(()) => None,
        Err(error) => Some(failure(&error)),
    };
    if failed.is_none() {
        shared.stats.syncs.fetch_add(u64::from(count > 0), Ordering::Relaxed);
        shared.stats.groups.fetch_add(1, Ordering::Relaxed);
        shared.stats.jobs.fetch_add(jobs as u64, Ordering::Relaxed);
        shared.stats.writes.fetch_add(count as u64, Ordering::Relaxed);
        shared.stats.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
    // Before anybody is answered, who may come again at once.
    let came = shared.queue.presses();
    for (done, room) in answers {
        done.tell(failed.as_ref().map_or(Ok(()), |(error, _)| Err(error.clone())));
        drop(room);
    }
    if let Some((_, why)) = failed {
        return Err(why);
    }
    shared.disk.wrote(bytes as u64);
    Ok(Wrote { urgent, writes: count, came })
}

/// What a failed commit means for its jobs, and for the one who looks after the machine.
fn failure(error: &fjall::Error) -> (PortError, String) {
    let why = format!("the store cannot write any more: {error:?}. Check the disk, then start again");
    match error {
        // Refused before anything was written.
        fjall::Error::Poisoned => (PortError::Unavailable(why.clone()), why),
        _ => (PortError::Unknown(why.clone()), why),
    }
}

pub(crate) fn poison(shared: &Shared, why: &str) {
    tracing::error!(why, "the store is poisoned: nothing more is written");
    for job in shared.queue.poison(why) {
        job.done.tell(Err(PortError::Unavailable(why.to_string())));
    }
    shared.room.close();
    fatal::tell(&shared.fatal, why);
}
