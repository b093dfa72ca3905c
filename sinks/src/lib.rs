//! Does: what leaves the pipeline for the world, each act with a deadline and a breaker. [`Sinks`] implements the Dispatch
//! port of `schemas`: deliveries to the nodes that hold sessions, notes to connected senders, notices to administrators.
//! Decides nothing: who is told what was settled before it comes here.

mod dispatch;
mod nodes;
pub mod notice;
mod owed;
mod parcel;

pub use schemas::breaker;

pub use dispatch::{Parts, Sinks};
pub use notice::Notice;
