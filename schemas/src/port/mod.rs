//! The ports: what the parts need from what keeps and carries. Small, dyn-safe, batch-shaped; the doc comments are the
//! contracts, and `tests/conformance` runs one suite per port on every adapter.

mod backplane;
mod cache;
mod conversations;
mod dispatch;
mod history;
mod ingress;
mod limiter;
mod log;
mod people;
mod presence;

use std::fmt;

pub use backplane::{Backplane, Hint, Landing, Missed, Node, Signal, Whose};
pub use cache::{Cache, CacheKey, Kept, Listed, Turns};
pub use conversations::{Around, ByActivity, Conversations, Counted, ListMark, Talks};
pub use dispatch::{Dispatch, Outcome, Routed};
pub use history::{
    Asked, Broadcast, BroadcastState, Broadcasts, Buried, Cursors, Dead, DeadLetters, Due, DueKind, Entry, Expanding,
    Facts, Filter, History, Inboxes, Known, Order, Page, Placed, Schedule, Settled, Span, Tail, Unread, tally,
};
pub use ingress::{Arrival, Ingress, Raw, Spot};
pub use limiter::{Bucket, Granted, Limiter, Quota, Standing};
pub use log::{Append, Consumer, Durability, Event, Fetch, Group, Headers, Log, Record};
pub use people::{People, Person};
pub use presence::{NodeLoad, Place, Presence, Taken};

/// What a port answers when it did not do what was asked: split by *did it happen?*, because what may be done next follows
/// from that alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortError {
    /// It did not happen, and asking again is useless.
    Rejected(String),
    /// It did not happen; asking again may help.
    Unavailable(String),
    /// It did not happen: there is no room (a full disk). Asking again helps once there is.
    Full(String),
    /// It did not happen: a newer owner has taken the partition over. Stop acting for it; asking again is useless.
    Fenced(String),
    /// It may have happened. Only what can be repeated without harm may be.
    Unknown(String),
}

impl fmt::Display for PortError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected(why) => write!(f, "rejected: {why}"),
            Self::Unavailable(why) => write!(f, "unavailable: {why}"),
            Self::Full(why) => write!(f, "no room: {why}"),
            Self::Fenced(why) => write!(f, "a newer owner has taken over: {why}"),
            Self::Unknown(why) => write!(f, "unknown whether it happened: {why}"),
        }
    }
}

impl std::error::Error for PortError {}

/// What a port answers.
pub type PortResult<T> = Result<T, PortError>;
