//! The history on the embedded engine: a handful of keyspaces beside the log, in the same journal and the same sync.
//!
//! The whole store. `user`, `inbox` and `position` are the bytes of [`keys`]; every value is [`schemas::codec`].
//!
//! | keyspace | key | value | lives |
//! |---|---|---|---|
//! | `history.entries` | inbox, position | head, message: the one place where a body stands | until retention |
//! | `history.places` | message id | inbox, position; or: scheduled | as its message |
//! | `history.states` | message id | its facts, merged | as its message |
//! | `history.ledgers` | inbox | what is no longer unread; up to where retention has removed | as its user |
//! | `history.due` | `d`, partition, time, id, kind | inbox and position of what expires; nothing for what is sent | until done |
//! | | `s`, id | a scheduled message: its body moves to `entries` when it is sent | until sent, or retention |
//! | | `l`, partition, time, id | nothing: ids that never got a place (dropped, or cancelled before they were sent) | until retention |
//! | `history.cursors` | user, device | cursor | as its device |
//! | `history.dead` | `t`, time, id, round | a dead letter | until forgotten |
//! | | `i`, id, round | its time | as the dead letter |
//! | `history.broadcasts` | `h`, id | what was asked for, how many recipients | until retention |
//! | | `p`, id | how far it is | as its broadcast |
//! | | `c`, id, number | up to 1,000 recipients, eight bytes each | as its broadcast |
//! | | `o`, running or over, time, id | nothing: the order they were accepted in | as its broadcast |
//! | `history.conversations`, `history.turns` | | see [`conversations`] | |
//! | `history.people` | `p`, user · `s`, user | whether it shows its presence · when it was last here | as its user |
//! | `history.meta` | `e`, partition | its epoch | always |
//! | | `n` · `d` | sizes · dead letters that nobody requeued | always |
//!
//! A message costs two rows when it is recorded and one for all facts of one settled batch. There is no row for an inbox's
//! end: the last entry says where it stands and how many one-way messages were written, and one seek finds it.
//!
//! Reads are synchronous and short, so they run where they are called; long scans go to the runtime's blocking threads.

mod broadcasts;
mod chain;
mod conversations;
mod cursors;
mod dead;
mod facts;
mod fence;
mod inboxes;
mod keys;
mod people;
mod reading;
mod retention;
mod rounds;
mod rows;
mod sizes;
mod tables;

use std::sync::Arc;

use schemas::{Clock, limits::StoreLimits};

use self::{conversations::Threads, cursors::Moves, fence::Fence, rounds::Rounds, sizes::Sizes, tables::Tables};
use super::{turns::Turns, unconfirmed::Unconfirmed};
use crate::{OpenError, embedded::Engine};

/// The history of this installation.
pub struct EmbeddedHistory {
    tables: Arc<Tables>,
    clock: Arc<dyn Clock>,
    /// Calls of `record` pass one by one until they have their place in the engine's queue: what is first polled first
    /// becomes visible first, also when the queue is full. A takeover passes with them, so that each stands before or
    /// after it. Whoever needs a turn as well takes it in here, never the other way round.
    line: tokio::sync::Mutex<()>,
    fence: Fence,
    /// Settling and retention of one partition take turns: both read rows and write them back, as does recording what has
    /// ended already.
    turns: Turns,
    /// Dead letters and broadcasts are read and written back too; they are rare, so one lock serves them all.
    rare: tokio::sync::Mutex<()>,
    sizes: Sizes,
    moves: Arc<Moves>,
    rounds: Rounds,
    threads: Arc<Threads>,
    unconfirmed: Unconfirmed,
}

impl EmbeddedHistory {
    /// Opens the keyspaces, creating what is missing.
    pub fn open(engine: Engine, clock: Arc<dyn Clock>, limits: &StoreLimits) -> Result<Self, OpenError> {
        let tables = Arc::new(Tables::open(engine)?);
        Ok(Self {
            sizes: Sizes::load(&tables)?,
            fence: Fence::load(&tables)?,
            moves: Arc::new(Moves::new(Arc::clone(&tables))),
            turns: Turns::new(limits.partitions.into()),
            line: tokio::sync::Mutex::default(),
            rare: tokio::sync::Mutex::default(),
            rounds: Rounds::default(),
            unconfirmed: Unconfirmed::default(),
            threads: Arc::new(Threads::load(&tables, clock.mono())?),
            tables,
            clock,
        })
    }

    /// Writes cursor moves that are still only in memory. To be called before the engine is closed.
    pub async fn flush(&self) -> schemas::port::PortResult<()> {
        self.moves.flush().await
    }
}
