//! The keyspaces, and the reads that everything here is made of. Nothing here waits or writes.

use fjall::{Guard, Keyspace};
use schemas::{
    Message, MessageId, Position, State,
    codec::{self, Unreadable},
    port::{PortError, PortResult},
};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    keys,
    rows::{Head, Ledger, Place},
};
use crate::{
    OpenError,
    embedded::{Engine, Shape, Write},
};

/// The keyspaces of the history.
pub(super) struct Tables {
    pub(super) engine: Engine,
    pub(super) entries: Keyspace,
    pub(super) places: Keyspace,
    pub(super) states: Keyspace,
    pub(super) ledgers: Keyspace,
    pub(super) due: Keyspace,
    pub(super) cursors: Keyspace,
    pub(super) dead: Keyspace,
    pub(super) broadcasts: Keyspace,
    pub(super) meta: Keyspace,
    pub(super) talks: Keyspace,
    pub(super) said: Keyspace,
    pub(super) people: Keyspace,
}

impl Tables {
    pub(super) fn open(engine: Engine) -> Result<Self, OpenError> {
        let rows = |name| engine.keyspace(name, Shape::Rows);
        Ok(Self {
            entries: engine.keyspace("history.entries", Shape::Bodies)?,
            places: rows("history.places")?,
            states: rows("history.states")?,
            ledgers: rows("history.ledgers")?,
            due: rows("history.due")?,
            cursors: rows("history.cursors")?,
            dead: rows("history.dead")?,
            broadcasts: rows("history.broadcasts")?,
            meta: rows("history.meta")?,
            talks: rows("history.conversations")?,
            said: rows("history.turns")?,
            people: rows("history.people")?,
            engine,
        })
    }

    /// One row.
    pub(super) fn get<T: DeserializeOwned>(&self, from: &Keyspace, key: &[u8]) -> PortResult<Option<T>> {
        match from.get(key).map_err(unread)? {
            None => Ok(None),
            Some(row) => decode(from, &row).map(Some),
        }
    }

    pub(super) fn place(&self, id: MessageId) -> PortResult<Option<Place>> {
        self.get(&self.places, &keys::id(id))
    }

    pub(super) fn state(&self, id: MessageId) -> PortResult<State> {
        Ok(self.get(&self.states, &keys::id(id))?.unwrap_or_default())
    }

    pub(super) fn ledger(&self, inbox: &[u8]) -> PortResult<Ledger> {
        Ok(self.get(&self.ledgers, inbox)?.unwrap_or_default())
    }

    pub(super) fn entry(&self, inbox: &[u8], at: Position) -> PortResult<Option<(Head, std::sync::Arc<Message>)>> {
        self.get(&self.entries, &keys::entry(inbox, at))
    }
}

/// A row to be written.
pub(super) fn put<T: Serialize + ?Sized>(to: &Keyspace, key: impl Into<Vec<u8>>, value: &T) -> Write {
    Write::Put { to: to.clone(), key: key.into(), value: codec::encode(value) }
}

/// A row whose key says it all.
pub(super) fn mark(to: &Keyspace, key: Vec<u8>) -> Write {
    Write::Put { to: to.clone(), key, value: bytes::Bytes::new() }
}

/// A row to be removed.
pub(super) fn remove(from: &Keyspace, key: impl Into<Vec<u8>>) -> Write {
    Write::Remove { from: from.clone(), key: key.into() }
}

/// Bytes of rows to be written: what room is asked for.
pub(super) fn weight(writes: &[Write]) -> usize {
    let bytes = |write: &Write| match write {
        Write::Put { key, value, .. } => key.len() + value.len(),
        Write::Remove { key, .. } => key.len(),
    };
    writes.iter().map(bytes).sum()
}

/// A row of a scan.
pub(super) fn pair(row: Guard) -> PortResult<(fjall::Slice, fjall::Slice)> {
    row.into_inner().map_err(unread)
}

/// The key of a row of a scan.
pub(super) fn key(row: Guard) -> PortResult<fjall::Slice> {
    row.key().map_err(unread)
}

pub(super) fn decode<T: DeserializeOwned>(from: &Keyspace, row: &[u8]) -> PortResult<T> {
    codec::decode(row).map_err(|why| broken(from, &why))
}

/// The store does not answer. By value, because it is what `map_err` gives.
#[expect(clippy::needless_pass_by_value, reason = "it is handed to map_err")]
pub(super) fn unread(why: fjall::Error) -> PortError {
    PortError::Unavailable(format!("the history could not be read: {why}"))
}

/// What stands in a row is not what this release writes.
pub(super) fn broken(from: &Keyspace, why: &Unreadable) -> PortError {
    PortError::Rejected(format!("a row of {} cannot be read ({why}); `esh3ar data check` tells more", from.name()))
}

/// A key that is none of ours.
pub(super) fn strange(from: &Keyspace) -> PortError {
    PortError::Rejected(format!("a key of {} cannot be read; `esh3ar data check` tells more", from.name()))
}
