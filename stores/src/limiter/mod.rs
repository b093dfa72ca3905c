//! Quotas: in this process, or shared by many over Redis. All behind `schemas::port::Limiter`.

#[cfg(any(feature = "redis", test))]
mod lease;
pub mod local;
#[cfg(feature = "redis")]
pub mod redis;

pub use local::LocalLimiter;
#[cfg(feature = "redis")]
pub use redis::RedisLimiter;
