//! Temporary: the CQL part alone.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, clippy::disallowed_methods)]
mod scylla;
