//! Cursors: moved in memory at once, written together a moment later.
//!
//! A row holds the position of one device in one partition's inbox, and its write time is that position: of two gateways
//! that write in any order the larger one stays, without either of them reading first. A phone that acknowledges ten times
//! a second moves its cursor ten times, and only the last place is written. What a crash takes are moves of [`LINGER`].

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
    Cursor, DeviceId, Partition, Position, UserId,
    port::{Cursors, PortResult},
    vital,
};
use scylla::value::CqlValue::{BigInt, Int, Text};

use super::{
    ScyllaHistory, keys,
    session::{Write, broken},
    shared::Shared,
    statements::Pick,
};

/// How long a move may wait: a few messages of a busy device, which is one row for all of them.
const LINGER: Duration = Duration::from_millis(500);
/// Devices whose moves wait at once; past that they are written before more are taken.
const WAITING: usize = 20_000;

type Place = (UserId, DeviceId, Partition);

/// Moves that are not yet known to stand.
pub(super) struct Moves {
    shared: Arc<Shared>,
    waiting: Mutex<BTreeMap<Place, Position>>,
    /// Whether a flush is on its way.
    flushing: AtomicBool,
    line: tokio::sync::Mutex<()>,
}

impl Moves {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let (waiting, flushing, line) = (Mutex::default(), AtomicBool::new(false), tokio::sync::Mutex::default());
        Self { shared, waiting, flushing, line }
    }

    fn take(&self, moves: &[(UserId, DeviceId, Cursor)]) -> usize {
        let mut waiting = self.waiting.lock();
        for (user, device, to) in moves {
            for (partition, position) in &to.0 {
                if *position > Position::START {
                    let here = waiting.entry((user.clone(), device.clone(), *partition)).or_default();
                    *here = (*here).max(*position);
                }
            }
        }
        waiting.len()
    }

    /// Writes what waits, and keeps it readable in memory until it stands.
    pub(super) async fn flush(&self) -> PortResult<()> {
        let _line = self.line.lock().await;
        self.flushing.store(false, Ordering::SeqCst);
        let moved: Vec<(Place, Position)> =
            self.waiting.lock().iter().map(|(place, at)| (place.clone(), *at)).collect();
        let row = |((user, device, partition), at): &(Place, Position)| {
            let number = keys::packed(*at);
            let key = [Text(user.to_string()), Text(device.to_string()), Int(i32::from(partition.0))];
            let rest = [BigInt(number), Int(self.shared.ttl), BigInt(number)];
            Write::new(Pick::Cursor, key.into_iter().chain(rest).collect())
        };
        self.shared.cql.send_all(moved.iter().map(row).collect()).await?;
        let mut waiting = self.waiting.lock();
        for (place, at) in moved {
            // What moved on meanwhile waits for the next flush.
            if waiting.get(&place) == Some(&at) {
                waiting.remove(&place);
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
impl Cursors for ScyllaHistory {
    async fn cursors(&self, user: &UserId) -> PortResult<Vec<(DeviceId, Cursor)>> {
        // Taken before the read: what is written and forgotten during it is in what was taken.
        let waiting: Vec<(DeviceId, Partition, Position)> = {
            let waiting = self.moves.waiting.lock();
            let own = waiting.iter().filter(|((of, ..), _)| of == user);
            own.map(|((_, device, partition), at)| (device.clone(), *partition, *at)).collect()
        };
        let rows = self.shared.cql.pages::<(String, i32, i64)>(Pick::Cursors, (user.to_string(),)).await?;
        let mut found = BTreeMap::<DeviceId, Cursor>::new();
        for (device, partition, position) in rows {
            let device = device.parse().map_err(|why| broken("cursors", &why))?;
            let partition = Partition(u16::try_from(partition).map_err(|why| broken("cursors", &why))?);
            found.entry(device).or_default().advance(partition, keys::unpacked(position));
        }
        for (device, partition, at) in waiting {
            found.entry(device).or_default().advance(partition, at);
        }
        Ok(found.into_iter().collect())
    }

    async fn advance(&self, moves: &[(UserId, DeviceId, Cursor)]) -> PortResult<()> {
        let waiting = self.moves.take(moves);
        if waiting > WAITING {
            return self.moves.flush().await;
        }
        if waiting > 0 {
            self.moves.flush_soon();
        }
        Ok(())
    }
}
