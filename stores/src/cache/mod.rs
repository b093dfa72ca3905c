//! The cache: in this process, or shared by many over Redis, behind `schemas::port::Cache`; and [`Cached`], which reads
//! conversations through it.

pub mod local;
pub mod reads;
#[cfg(feature = "redis")]
pub mod redis;

pub use local::LocalCache;
pub use reads::Cached;
#[cfg(feature = "redis")]
pub use redis::RedisCache;
