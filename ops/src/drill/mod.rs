//! Drills: breaking a real server on purpose, and saying exactly what became of every message. `esh3ar drill kill` is also
//! what the crash tests run, so that what CI proves and what an operator can try are the same thing.

pub mod kill;
mod ledger;
mod phones;
mod senders;
mod world;

pub use kill::{KillDrill, Report};
