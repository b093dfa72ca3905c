//! The internal form of records: one version byte, then postcard. Everything that keeps or carries messages between our own
//! parts goes through here, so the form can change in one place. Public topics (`dead`) and every wire are JSON instead.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

/// The present form. A reader takes this and every earlier one it still knows.
pub const VERSION: u8 = 1;

/// Bytes that this build cannot read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unreadable {
    /// Nothing there.
    Empty,
    /// Written by a newer release: upgrade, or drain with that release first.
    Version(u8),
    /// Not what this version writes.
    Form,
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Empty => f.write_str("the record is empty"),
            Self::Version(v) => write!(f, "the record has form {v}, this release knows form {VERSION}"),
            Self::Form => f.write_str("the record's bytes do not follow its form"),
        }
    }
}

impl std::error::Error for Unreadable {}

/// Writes a value.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Bytes {
    let mut out = Vec::with_capacity(256);
    out.push(VERSION);
    // Our types serialise without failing: no maps of unknown length, no foreign Serialize.
    match postcard::to_extend(value, out) {
        Ok(bytes) => Bytes::from(bytes),
        Err(_) => Bytes::new(),
    }
}

/// Reads a value; all bytes must belong to it.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Unreadable> {
    match bytes.split_first() {
        None => Err(Unreadable::Empty),
        Some((&VERSION, rest)) => match postcard::take_from_bytes(rest) {
            Ok((value, [])) => Ok(value),
            _ => Err(Unreadable::Form),
        },
        Some((&v, _)) => Err(Unreadable::Version(v)),
    }
}
