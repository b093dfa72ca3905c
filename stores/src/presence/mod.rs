//! Presence: where a user is now. One adapter a store, all behind `schemas::port::Presence`.

pub mod local;

pub use local::LocalPresence;
