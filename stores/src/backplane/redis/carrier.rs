//! The carrier: takes a frame to a channel. Redis is the one there is; tests put one before it that loses frames.

use async_trait::async_trait;
use bytes::Bytes;
use schemas::port::PortResult;

use crate::redis::Redis;

/// Takes frames to channels.
#[async_trait]
pub trait Carrier: Send + Sync + 'static {
    /// Takes a frame to whoever listens on a channel, and says how many do.
    async fn publish(&self, channel: &str, frame: Bytes) -> PortResult<u64>;
}

#[async_trait]
impl Carrier for Redis {
    async fn publish(&self, channel: &str, frame: Bytes) -> PortResult<u64> {
        // On a cluster a channel lives where its name does, and not everywhere.
        let mut command = ::redis::cmd(if self.is_cluster() { "SPUBLISH" } else { "PUBLISH" });
        self.ask(command.arg(channel).arg(&frame[..])).await
    }
}
