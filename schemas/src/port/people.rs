//! The People port: the part of history that keeps of a user what it lets others know, and when it was last connected.
//! Written by anyone, unlike inboxes: what a person chose last stands.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::PortResult;
use crate::{ids::UserId, time::Timestamp};

/// What is kept of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Person {
    /// Whether those who share a conversation with it may know that it is connected, and when it was last.
    pub show_presence: bool,
    /// When its last session ended, where that is known.
    pub last_seen: Option<Timestamp>,
}

impl Default for Person {
    fn default() -> Self {
        Self { show_presence: true, last_seen: None }
    }
}

/// People.
///
/// **Guarantees.** What [`People::prefer`] confirmed survives what the log's append survives, and every later read shows it.
/// `last_seen` only grows, whatever order it comes in; a crash may lose what came in its last moments.
/// **Failure.** Reads answer `Unavailable`; nothing is half told.
/// **Cost.** [`People::people`] is one look at each user, made together.
#[async_trait]
pub trait People: Send + Sync {
    /// What is kept of each of these; the default where nothing is.
    async fn people(&self, users: &[UserId]) -> PortResult<Vec<Person>>;

    /// A user chooses whether others may know where it is.
    async fn prefer(&self, user: &UserId, show_presence: bool) -> PortResult<()>;

    /// When the last sessions of these ended.
    async fn seen(&self, seen: &[(UserId, Timestamp)]) -> PortResult<()>;
}
