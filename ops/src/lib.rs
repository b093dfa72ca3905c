//! Runs Esh3ar: the one binary, its configuration, how the parts are put together, what it tells of itself, and its command
//! line.
//!
//! `compose` is the list of parts in the order they start; everything else here serves it. What a part does is in its own
//! crate.

pub mod admin;
pub mod bench;
pub mod child;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod compose;
pub mod config;
pub mod drill;
pub mod exit;
pub mod folder;
pub mod health;
pub mod pages;
pub mod serve;
pub mod tail;
pub mod telemetry;
