//! Conformance: one suite per port, every adapter. Each public function is one rule of the port's doc comment and takes
//! what makes the adapter, so that a rule may ask for a fresh one, or for the same one opened again. A bug found in an
//! adapter first becomes a rule here.
//!
//! `tests/tests/conformance/` runs the suites; an adapter is added there in one line.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a rule that is broken ends its test")]

pub mod backplane;
pub mod cache;
pub mod history;
pub mod limiter;
pub mod log;
pub mod presence;
mod rules;
