//! The embedded store: one folder, one engine, one journal, one sync. The log and the history both stand on it, so that a
//! group of their writes costs one sync and becomes durable in the order it was submitted.
//!
//! | in the data folder | what it is |
//! |---|---|
//! | `lock` | held by the one process that works here; says its number |
//! | `format` | version of the layout and the number of partitions; never changed after it was created |
//! | `store/` | fjall: `*.jnl` the journal, `keyspaces/` the rest |
//! | `set-aside/` | what `esh3ar data repair` cut off |

pub mod engine;
pub(crate) mod folder;
pub(crate) mod journal;
mod pace;
mod queue;
pub mod shape;
pub(crate) mod space;
#[cfg(test)]
mod tests;
mod writer;

pub use engine::{Engine, Pending, Room, Write};
pub use shape::Shape;
pub use space::Space;
