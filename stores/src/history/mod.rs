//! The history: what was said to whom, and what became of it. One adapter a store, all behind `schemas::port::History`,
//! all held to the suite in `tests/conformance`.

pub mod embedded;
#[cfg(feature = "scylla")]
pub mod scylla;
#[cfg(test)]
mod testing;
mod turns;
mod unconfirmed;
