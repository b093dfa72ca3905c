//! The engine: everything embedded is written through here. One writer thread takes jobs in order, groups them, and makes
//! each group durable with one sync; the caller's place in that order is given when it submits.
//!
//! Promises: a job becomes durable whole or not at all; jobs become durable, and then readable, in the order they were
//! submitted; an answer of `Ok` outlives a power cut. What is wrong with the disk is found out once and for everybody
//! ([`Engine::fatal`]). Leaves to others what the rows mean.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use schemas::{
    limits::StoreLimits,
    port::{PortError, PortResult},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, oneshot, watch};

use super::{
    folder::Folder,
    journal,
    queue::{Bounds, Done, Job, Queue, closed},
    shape::Shape,
    space::{Disk, Space},
    writer,
};
use crate::{OpenError, Stats};

/// Bytes of finished journal pieces (of 64 MB each) past which the rows of quiet keyspaces are flushed so that the oldest can
/// go. The least that fjall takes: these and the present piece are what a start reads again.
const JOURNAL_BYTES: u64 = 64 * 1024 * 1024;
/// One place in the queue carries so many bytes, so that large jobs wait for memory as many small ones do.
const PLACE_BYTES: usize = 16 * 1024;

/// One change of one row.
#[derive(Clone)]
pub enum Write {
    /// Sets a row.
    Put {
        /// Its keyspace.
        to: fjall::Keyspace,
        /// Its key.
        key: Vec<u8>,
        /// Its value.
        value: Bytes,
    },
    /// Removes a row.
    Remove {
        /// Its keyspace.
        from: fjall::Keyspace,
        /// Its key.
        key: Vec<u8>,
    },
}

impl Write {
    fn key(&self) -> &[u8] {
        match self {
            Self::Put { key, .. } | Self::Remove { key, .. } => key,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Put { key, value, .. } => key.len() + value.len(),
            Self::Remove { key, .. } => key.len(),
        }
    }
}

/// Room for one job in the queue; given back when it has been answered, or dropped.
#[derive(Debug)]
pub struct Room {
    permit: OwnedSemaphorePermit,
    urgent: bool,
}

impl Room {
    fn new(permit: OwnedSemaphorePermit) -> Self {
        Self { permit, urgent: true }
    }

    /// For a job that nobody's answer waits for: it may ride along with what is written next, and waits a few milliseconds
    /// for that while others are writing.
    #[must_use]
    pub fn along(self) -> Self {
        Self { urgent: false, ..self }
    }
}

/// A submitted job. Dropping it changes nothing but that nobody waits.
#[derive(Debug)]
pub struct Pending(oneshot::Receiver<PortResult<()>>);

impl Pending {
    /// Waits until the job is durable.
    pub async fn wait(self) -> PortResult<()> {
        self.0.await.unwrap_or_else(|_| Err(PortError::Unknown("the store ended before it answered".into())))
    }
}

/// Counters since start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) syncs: AtomicU64,
    pub(crate) groups: AtomicU64,
    pub(crate) jobs: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) bytes: AtomicU64,
}

/// What callers and the writer thread share.
pub(crate) struct Shared {
    pub(crate) queue: Queue,
    pub(crate) room: Arc<Semaphore>,
    pub(crate) disk: Disk,
    pub(crate) fatal: watch::Sender<Option<String>>,
    pub(crate) closed: watch::Sender<bool>,
    pub(crate) stats: Counters,
    places: usize,
}

struct Inner {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
    db: fjall::Database,
    // Last, so that the folder is let go after the files are closed.
    folder: Folder,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.room.close();
        self.shared.queue.close();
        let Some(writer) = self.writer.get_mut().take() else { return };
        // The last handle may have lived in an answer, that is on the writer thread, which cannot wait for itself.
        if writer.thread().id() != std::thread::current().id() && writer.join().is_err() {
            tracing::error!("the store's writer ended in a panic");
        }
    }
}

/// The engine.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

impl Engine {
    /// Opens a data folder, creating it if it is not there. Takes its lock, holds it to its format, makes good a torn tail
    /// of the journal, and refuses damage that a crash does not explain.
    pub fn open(data: &Path, limits: &StoreLimits) -> Result<Self, OpenError> {
        let folder = Folder::take(data, true)?;
        folder.agree(limits.partitions)?;
        journal::make_good(&folder.store())?;
        let db = fjall::Database::builder(folder.store())
            .cache_size(limits.cache_bytes)
            .max_journaling_size(JOURNAL_BYTES)
            // Messages are small and mostly short-lived: compressing each of them costs more than it saves.
            .journal_compression(fjall::CompressionType::None)
            .manual_journal_persist(true)
            // Of more than one the first is for flushes alone, and hands what is to be merged round and round while the others
            // are busy: a core is gone for nothing. With one, a flush waits for a merge, which is short where values are apart.
            .worker_threads(1)
            .open()
            .map_err(OpenError::engine(folder.path()))?;
        let places = limits.queue.clamp(1, Semaphore::MAX_PERMITS);
        let bounds = Bounds {
            writes: limits.group_writes,
            bytes: limits.group_bytes,
            every: Duration::from_millis(limits.group_every_ms),
        };
        let shared = Arc::new(Shared {
            queue: Queue::new(bounds),
            room: Arc::new(Semaphore::new(places)),
            disk: Disk::new(data.into(), limits.free_bytes),
            fatal: watch::Sender::new(None),
            closed: watch::Sender::new(false),
            stats: Counters::default(),
            places,
        });
        let run = {
            let (shared, db) = (shared.clone(), db.clone());
            move || writer::run(&shared, &db)
        };
        let thread = std::thread::Builder::new().name("esh3ar-store".into()).spawn(run);
        let writer = Mutex::new(Some(thread.map_err(OpenError::io("starting the writer of", data))?));
        Ok(Self(Arc::new(Inner { shared, writer, db, folder })))
    }

    /// Opens a keyspace, creating it if it is not there.
    pub fn keyspace(&self, name: &'static str, kind: Shape) -> Result<fjall::Keyspace, OpenError> {
        self.keyspace_named(name, kind)
    }

    /// The same for a name made while running.
    pub(crate) fn keyspace_named(&self, name: &str, kind: Shape) -> Result<fjall::Keyspace, OpenError> {
        let new = !self.0.db.keyspace_exists(name);
        let keyspace = self.0.db.keyspace(name, || kind.options()).map_err(OpenError::engine(self.path()))?;
        if new {
            // fjall syncs this folder before it makes the new one in it: without this a power cut may take the name.
            let folder = self.0.folder.store().join("keyspaces");
            let synced = std::fs::File::open(&folder).and_then(|folder| folder.sync_all());
            synced.map_err(OpenError::io("syncing", folder))?;
        }
        Ok(keyspace)
    }

    /// A view of all keyspaces at one moment.
    pub fn snapshot(&self) -> fjall::Snapshot {
        self.0.db.snapshot()
    }

    /// Submits a job: its place in the order is given now. `Unavailable` when the queue is full or the engine does not
    /// write any more, `Full` when the disk is.
    pub fn submit(&self, writes: Vec<Write>) -> PortResult<Pending> {
        let bytes = writes.iter().map(Write::bytes).sum();
        let room = self.0.shared.room.clone().try_acquire_many_owned(self.places(bytes));
        let room = room.map_err(|error| match error {
            TryAcquireError::NoPermits => PortError::Unavailable("too many writes are waiting for the disk".into()),
            TryAcquireError::Closed => self.ended(),
        })?;
        self.submit_in(Room::new(room), writes)
    }

    /// Waits for room, submits, and waits until it is durable.
    pub async fn write(&self, writes: Vec<Write>) -> PortResult<()> {
        let room = self.room(writes.iter().map(Write::bytes).sum()).await?;
        self.submit_in(room, writes)?.wait().await
    }

    /// The same for what may ride along ([`Room::along`]).
    pub async fn write_along(&self, writes: Vec<Write>) -> PortResult<()> {
        let room = self.room(writes.iter().map(Write::bytes).sum()).await?;
        self.submit_in(room.along(), writes)?.wait().await
    }

    /// Waits for room for a job of so many bytes.
    pub async fn room(&self, bytes: usize) -> PortResult<Room> {
        let places = self.places(bytes);
        self.0.shared.room.clone().acquire_many_owned(places).await.map(Room::new).map_err(|_| self.ended())
    }

    /// Submits a job into room that was waited for.
    pub fn submit_in(&self, room: Room, writes: Vec<Write>) -> PortResult<Pending> {
        let (tell, told) = oneshot::channel();
        self.push(room, writes, Done::Signal(tell))?;
        Ok(Pending(told))
    }

    /// Submits a job and has `then` called on the writer thread when it is known what became of it, in the order of the
    /// jobs. It must be quick and must not wait. It is not called if this is refused.
    pub(crate) fn submit_then(
        &self,
        room: Room,
        writes: Vec<Write>,
        then: impl FnOnce(PortResult<()>) + Send + 'static,
    ) -> PortResult<()> {
        self.push(room, writes, Done::Call(Box::new(then)))
    }

    fn push(&self, room: Room, writes: Vec<Write>, done: Done) -> PortResult<()> {
        if self.space() == Space::None {
            return Err(self.full());
        }
        // The journal keeps a key's length in two bytes.
        if writes.iter().any(|write| write.key().len() > usize::from(u16::MAX)) {
            return Err(PortError::Rejected("a key is longer than 65,535 bytes".into()));
        }
        let bytes = writes.iter().map(Write::bytes).sum();
        let Room { permit, urgent } = room;
        self.0.shared.queue.push(Job { writes, bytes, urgent, done, _room: permit })
    }

    /// Whether it can be written to.
    pub fn check(&self) -> PortResult<()> {
        if self.0.shared.room.is_closed() {
            return Err(self.ended());
        }
        match self.0.shared.disk.sample() {
            Space::Enough => Ok(()),
            Space::Low | Space::None => Err(self.full()),
        }
    }

    /// Room on the disk.
    pub fn space(&self) -> Space {
        self.0.shared.disk.now()
    }

    /// The refusal for want of room on the disk.
    pub(crate) fn full(&self) -> PortError {
        PortError::Full(format!("the disk of {} is nearly full", self.path().display()))
    }

    /// Says why, once the engine does not write any more: the process is to end and start again.
    pub fn fatal(&self) -> watch::Receiver<Option<String>> {
        self.0.shared.fatal.subscribe()
    }

    /// Counters since start.
    pub fn stats(&self) -> Stats {
        let stats = &self.0.shared.stats;
        Stats {
            syncs: stats.syncs.load(Ordering::Relaxed),
            groups: stats.groups.load(Ordering::Relaxed),
            jobs: stats.jobs.load(Ordering::Relaxed),
            writes: stats.writes.load(Ordering::Relaxed),
            bytes: stats.bytes.load(Ordering::Relaxed),
        }
    }

    /// Takes no more and finishes what was submitted.
    pub async fn close(&self) {
        self.0.shared.room.close();
        self.0.shared.queue.close();
        let mut closed = self.0.shared.closed.subscribe();
        // An error means that the writer is gone, which is what is waited for.
        let _gone = closed.wait_for(|closed| *closed).await;
    }

    /// The data folder.
    pub fn path(&self) -> &Path {
        self.0.folder.path()
    }

    /// The database, for what only its owner may do: listing and dropping keyspaces.
    pub(crate) fn database(&self) -> &fjall::Database {
        &self.0.db
    }

    /// Ends it as a failed sync would.
    #[cfg(test)]
    pub(crate) fn poison(&self, why: &str) {
        writer::poison(&self.0.shared, why);
    }

    fn places(&self, bytes: usize) -> u32 {
        let places = bytes.div_ceil(PLACE_BYTES).clamp(1, self.0.shared.places);
        u32::try_from(places).unwrap_or(u32::MAX)
    }

    fn ended(&self) -> PortError {
        self.0.shared.fatal.borrow().clone().map_or_else(closed, PortError::Unavailable)
    }
}
