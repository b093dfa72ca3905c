//! Presence: where a user is now. One adapter a store, all behind `schemas::port::Presence`.

pub mod local;
#[cfg(feature = "redis")]
pub mod redis;

pub use local::LocalPresence;
#[cfg(feature = "redis")]
pub use redis::RedisPresence;
