//! Says it is true: what the test binaries share. `conformance` holds one suite per port, `harness` starts the real binary
//! and plays the businesses and the phones; `talk` is people who chat through trouble, and the account of it.

// A test helper that cannot go on ends its test: that is what these do.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, clippy::disallowed_methods)]

pub mod conformance;
pub mod harness;
pub mod talk;
