//! Drills: breaking a real server on purpose, and saying exactly what became of every message. `esh3ar drill kill` is also
//! what the crash tests run, so that what CI proves and what an operator can try are the same thing.

mod account;
pub mod cluster;
pub mod kill;
mod ledger;
mod phones;
mod senders;
mod world;

pub use cluster::ClusterDrill;
pub use kill::{KillDrill, Report};
pub use world::Pace;
