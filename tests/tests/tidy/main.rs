//! Tidy: what the house promises about itself, checked by reading it. Arrows between crates, vendors behind their ports, files
//! one can read in a sitting, and publications and documentation that say what the code does.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, clippy::disallowed_methods)]

mod house;
mod pages;
mod published;
mod reading;
mod text;
