//! The backplane: the way to the node that holds a session. One adapter a carrier, all behind `schemas::port::Backplane`.

pub mod local;
mod missed;
#[cfg(feature = "redis")]
pub mod redis;

pub use local::LocalBackplane;
#[cfg(feature = "redis")]
pub use redis::RedisBackplane;
