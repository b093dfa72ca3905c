//! The log: ordered, durable, replayable records. One adapter a store, all behind `schemas::port::Log`, all held to the
//! suite in `tests/conformance`.

pub mod embedded;
#[cfg(feature = "kafka")]
pub mod kafka;

pub use embedded::EmbeddedLog;
