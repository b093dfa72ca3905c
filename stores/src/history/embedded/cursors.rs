//! Cursors: moved in memory at once, written together a moment later.
//!
//! A phone that acknowledges ten times a second moves its cursor ten times a second, and only the last place matters: moves
//! wait [`LINGER`] and go to disk as one row a device. What a crash takes are moves of that time, and such a device is sent
//! a few messages again that it has seen.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use schemas::{
    Cursor, DeviceId, UserId,
    port::{Cursors, PortResult},
    vital,
};

use super::{
    EmbeddedHistory, keys,
    tables::{Tables, decode, pair, put, strange},
};

/// How long a move may wait: half a second is a few messages of a busy device, and then one row for all of them.
const LINGER: Duration = Duration::from_millis(500);
/// Devices whose moves wait at once; past that they are written before more are taken.
const WAITING: usize = 20_000;

/// Moves that are not yet known to be on disk, by the device's key.
pub(super) struct Moves {
    tables: Arc<Tables>,
    waiting: Mutex<BTreeMap<Vec<u8>, Cursor>>,
    /// Whether a flush is on its way.
    flushing: AtomicBool,
    /// One flush at a time, or an older cursor could be written after a newer one.
    line: tokio::sync::Mutex<()>,
}

impl Moves {
    pub(super) fn new(tables: Arc<Tables>) -> Self {
        Self {
            tables,
            waiting: Mutex::default(),
            flushing: AtomicBool::new(false),
            line: tokio::sync::Mutex::default(),
        }
    }

    fn take(&self, moves: &[(UserId, DeviceId, Cursor)]) -> PortResult<usize> {
        let mut waiting = self.waiting.lock();
        for (user, device, to) in moves {
            let key = keys::device(user, device);
            match waiting.get_mut(&key) {
                Some(cursor) => cursor.join(to),
                None => {
                    let stored: Option<Cursor> = self.tables.get(&self.tables.cursors, &key)?;
                    let mut cursor = stored.clone().unwrap_or_default();
                    cursor.join(to);
                    if stored.as_ref() != Some(&cursor) {
                        waiting.insert(key, cursor);
                    }
                }
            }
        }
        Ok(waiting.len())
    }

    /// Writes what waits, and keeps it readable in memory until it is readable on disk.
    pub(super) async fn flush(&self) -> PortResult<()> {
        let _line = self.line.lock().await;
        self.flushing.store(false, Ordering::SeqCst);
        let moved: Vec<(Vec<u8>, Cursor)> = self.waiting.lock().iter().map(|(k, c)| (k.clone(), c.clone())).collect();
        if moved.is_empty() {
            return Ok(());
        }
        let writes = moved.iter().map(|(key, cursor)| put(&self.tables.cursors, &key[..], cursor)).collect();
        self.tables.engine.write_along(writes).await?;
        let mut waiting = self.waiting.lock();
        for (key, cursor) in moved {
            // What moved on meanwhile waits for the next flush.
            if waiting.get(&key) == Some(&cursor) {
                waiting.remove(&key);
            }
        }
        Ok(())
    }

    /// Sees to it that a flush comes, if none is on its way. The task does not keep the store open.
    fn flush_soon(self: &Arc<Self>) {
        if self.flushing.swap(true, Ordering::SeqCst) {
            return;
        }
        let moves: Weak<Self> = Arc::downgrade(self);
        // What made it panic would wait for the next flush too: no cursor would be kept any more.
        tokio::spawn(vital::task("the writing of cursors", async move {
            tokio::time::sleep(LINGER).await;
            let Some(moves) = moves.upgrade() else { return };
            if let Err(why) = moves.flush().await {
                // They still wait in memory and go with the next move.
                tracing::warn!(%why, "cursor moves could not be written yet");
            }
        }));
    }
}

#[async_trait]
impl Cursors for EmbeddedHistory {
    async fn cursors(&self, user: &UserId) -> PortResult<Vec<(DeviceId, Cursor)>> {
        let prefix = keys::user(user);
        let moves = &self.moves;
        let mut found = BTreeMap::new();
        // Held over both, or a move that is just being written could be in neither.
        let waiting = moves.waiting.lock();
        for row in moves.tables.cursors.prefix(&prefix) {
            let (key, value) = pair(row)?;
            found.insert(key.to_vec(), decode::<Cursor>(&moves.tables.cursors, &value)?);
        }
        for (key, cursor) in waiting.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix)) {
            found.insert(key.clone(), cursor.clone());
        }
        drop(waiting);
        let named = |(key, cursor): (Vec<u8>, Cursor)| {
            let device = std::str::from_utf8(&key[prefix.len()..]).ok().and_then(|text| text.parse().ok());
            device.map(|device: DeviceId| (device, cursor)).ok_or_else(|| strange(&moves.tables.cursors))
        };
        found.into_iter().map(named).collect()
    }

    async fn advance(&self, moves: &[(UserId, DeviceId, Cursor)]) -> PortResult<()> {
        let waiting = self.moves.take(moves)?;
        if waiting > WAITING {
            return self.moves.flush().await;
        }
        if waiting > 0 {
            self.moves.flush_soon();
        }
        Ok(())
    }
}
