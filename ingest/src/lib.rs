//! The door: HTTP in, log out. Admission, names, quotas and refusals.
//!
//! What comes in is parsed once ([`schemas::draft`]), authorised ([`auth`]), held against quotas ([`quota`]) and the room of
//! its lane ([`lanes`]), named, and appended to the log; it is answered `202` when the log has it durably, and not before.
//! The way of a message through the files: [`http`] (bytes) ▷ [`auth`] (who) ▷ `single` or [`batch`] ▷ `admission`
//! (a draft becomes a message or a refusal) ▷ [`door`] (quota, room, append) ▷ log. [`broadcast`] stores many recipients as one and
//! [`expander`] turns them into messages while the lane has room. [`kafka`] reads topics of businesses and goes the same way.
//! [`chat`] is the door of conversations, for HTTP and for sockets.

pub mod admission;
pub mod auth;
pub mod batch;
mod begun;
pub mod broadcast;
pub mod chat;
pub mod door;
pub mod expander;
mod faults;
pub mod http;
pub mod kafka;
pub mod known;
pub mod lanes;
pub mod quota;
mod single;
pub mod split;
pub mod text;
mod turns;

#[cfg(test)]
mod tests;

pub use door::{Accepted, Door, Given, Parts};
