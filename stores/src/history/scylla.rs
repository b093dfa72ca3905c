//! The history on a CQL cluster: ScyllaDB, or Apache Cassandra. docs/cql.md explains the tables and what each row costs.
//!
//! What decides the cost is the number of requests and of CQL partitions a message touches, so: an entry with its body is one
//! row of its inbox and is never touched again; where its id leads, and what became of it, is one row among those of the
//! same moment, which one request writes for many messages; and small calls are gathered into large requests
//! ([`recorder`]). Facts are merged in the owner's memory and written once a message and call ([`facts`]).
//!
//! Fencing needs no transaction a write: entries have their epoch in the key, forks say which of them count ([`forks`]),
//! and every other row's write time begins with the epoch ([`keys::Stamps`]).

mod ages;
mod broadcasts;
mod connecting;
mod conversations;
mod counts;
mod cursors;
mod dead;
mod due;
mod facts;
mod forks;
mod inboxes;
mod keys;
mod locks;
mod notes;
mod people;
mod reading;
mod recorder;
mod retention;
mod rows;
pub mod schema;
mod session;
mod shared;
mod statements;
mod takeover;
mod threads;
mod traffic;
mod walk;
mod writes;

use std::{sync::Arc, time::Duration};

use schemas::{
    Clock,
    limits::StoreLimits,
    port::{PortError, PortResult},
    vital,
};
use tokio::sync::watch;

use self::{cursors::Moves, recorder::Recorder, session::Cql, shared::Shared, statements::Pick};
use crate::{OpenError, urls::Address};

/// How often counts are written and the epochs of owned partitions looked at.
const KEEP_EVERY: Duration = Duration::from_secs(1);
/// How often it is asked whose a history is, while that is being said for the first time.
const CLAIMS: usize = 5;

/// The history of this installation.
pub struct ScyllaHistory {
    shared: Arc<Shared>,
    recorder: Recorder,
    moves: Arc<Moves>,
    /// Dead letters are read and written back; they are rare, so one lock serves them all.
    burying: tokio::sync::Mutex<()>,
}

impl ScyllaHistory {
    /// Connects to `scylla://[user:password@]host:port[,…]/keyspace?dc=&tls=&ca=&ttl_days=` and checks the schema. Errors are
    /// sentences that say what to do: no server, a wrong password, a missing, older or newer schema.
    pub async fn open(address: &Address, limits: &StoreLimits, clock: Arc<dyn Clock>) -> Result<Arc<Self>, OpenError> {
        let ttl = i32::try_from(crate::ttl_days(address)? * 86_400).unwrap_or(i32::MAX);
        let cql = Cql::open(address, limits).await?;
        let shared = Arc::new(Shared::new(cql, clock, limits, ttl));
        let moves = Arc::new(Moves::new(Arc::clone(&shared)));
        let recorder = Recorder::start(Arc::clone(&shared));
        tokio::spawn(vital::task("the history's keeper", keep(Arc::downgrade(&shared))));
        Ok(Arc::new(Self { shared, recorder, moves, burying: tokio::sync::Mutex::default() }))
    }

    /// Says that this history is that of a log, by the log's identity. The first who says so decides; another log is refused,
    /// because its records would be found under places and epochs that are another installation's.
    pub async fn belongs_to(&self, log: &str, address: &Address) -> Result<(), OpenError> {
        let cql = &self.shared.cql;
        let away = |why: PortError| OpenError::Unreachable {
            what: "the history",
            hosts: address.hosts.join(","),
            setting: "stores.history",
            why: why.to_string(),
        };
        for _ in 0..CLAIMS {
            match cql.rows::<(String,)>(Pick::Installation, ()).await.map_err(away)?.into_iter().next() {
                Some((whose,)) if whose == log => return Ok(()),
                Some((whose,)) => {
                    return Err(OpenError::Address(format!(
                        "`{address}`: this history belongs to the log {whose} and not to {log}: name its own log in \
                         stores.log, or give this installation a keyspace of its own in stores.history; after the log has \
                         moved for good, see docs/cql.md"
                    )));
                }
                None => match cql.decide(Pick::Claim, (log,)).await {
                    // Somebody else was first, or it is not known whether this was: what stands tells.
                    Ok(_) | Err(PortError::Unknown(_)) => {}
                    Err(why) => return Err(away(why)),
                },
            }
        }
        Err(away(PortError::Unavailable("it cannot be said whose history this is".into())))
    }

    /// Writes what is only in memory: cursor moves and counts. To be called before the process ends.
    pub async fn close(&self) -> PortResult<()> {
        self.moves.flush().await?;
        self.shared.counts.flush(&self.shared.cql).await
    }

    /// Says why, once nothing can be recorded any more: the process is to end, and be started again.
    pub fn fatal(&self) -> watch::Receiver<Option<String>> {
        self.recorder.fatal()
    }

    /// Rows written by this process, and the requests they were written in: for figures.
    pub fn written() -> (u64, u64) {
        traffic::written()
    }

    /// Requests of this process that read, by the name of their statement: for figures. One of many pages counts as one.
    pub fn reads() -> Vec<(&'static str, u64)> {
        traffic::reads()
    }
}

/// Writes counts and finds out who was overtaken, until the history is dropped.
async fn keep(shared: std::sync::Weak<Shared>) {
    loop {
        tokio::time::sleep(KEEP_EVERY).await;
        let Some(shared) = shared.upgrade() else { return };
        if let Err(why) = shared.counts.flush(&shared.cql).await {
            tracing::debug!(%why, "counts could not be written yet");
        }
        shared.look_for_newer().await;
    }
}
