//! The Cache port: pages of history that are read again and again, kept near for a while.
//!
//! What is kept says of which moment it is, and whoever reads it compares that with history ([`Turns::version`],
//! [`Listed::mark`]): so an invalidation that is lost or late shows nobody old data, and a writer reads its own writes at
//! once, at whatever node. The keepers themselves promise little, and can be taken away.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::ByActivity;
use crate::{
    conversation::{Conversation, Shown, Version},
    ids::{ConversationId, UserId},
};

/// What can be kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CacheKey {
    /// The newest turns of a conversation.
    Turns(ConversationId),
    /// The first page of a user's list: of what it has put away, or of the others.
    List {
        /// Whose.
        user: UserId,
        /// Which.
        archived: bool,
    },
}

impl CacheKey {
    /// The word for metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Turns(_) => "turns",
            Self::List { .. } => "list",
        }
    }
}

impl fmt::Display for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Turns(id) => write!(f, "turns:{id}"),
            Self::List { user, archived: false } => write!(f, "list:{user}"),
            Self::List { user, archived: true } => write!(f, "archived:{user}"),
        }
    }
}

/// The newest turns of a conversation, newest first, as they stood with one version of its row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Turns {
    /// They are what history shows for as long as the row has this version, but for what became of their messages.
    pub version: Version,
    /// The turns.
    pub rows: Vec<Shown>,
    /// Where the next page starts; `None` at the beginning of the conversation.
    pub next: Option<u64>,
}

/// The first page of a list, as it stood with one mark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Listed {
    /// It is what history shows for as long as the list has this mark.
    pub mark: u64,
    /// The rows.
    pub rows: Vec<Conversation>,
    /// Where the next page starts; `None` at the end.
    pub next: Option<ByActivity>,
}

/// What is kept under a key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Kept {
    /// Under [`CacheKey::Turns`].
    Turns(Turns),
    /// Under [`CacheKey::List`].
    Listed(Listed),
}

impl Kept {
    /// About how many bytes of memory it takes: texts, and what stands around them.
    pub fn bytes(&self) -> usize {
        /// A row without its texts.
        const ROW: usize = 1_024;
        match self {
            Self::Turns(Turns { rows, .. }) => {
                let texts = |row: &Shown| {
                    let edited = row.edited.as_ref().map_or(0, |(_, content)| content.body.len());
                    ROW + row.turn.message.content.body.len() + edited + row.state.past.len() * 64
                };
                rows.iter().map(texts).sum()
            }
            Self::Listed(Listed { rows, .. }) => rows.len() * ROW,
        }
    }
}

/// Keeps pages.
///
/// **Guarantees.** `get` gives what `put` was given last under that key, whole, and never after its time; or nothing, at any
/// time: what is kept may go whenever room is needed. What was forgotten is not given any more, unless it is put again.
/// **Failure.** None: a keeper that is away has nothing and keeps nothing, and answers so at once or within its own
/// deadline.
/// **Cost.** One look, whatever is kept; a value is at most [`cache_page_bytes`](crate::limits::ChatLimits), what is larger
/// is not kept.
#[async_trait]
pub trait Cache: Send + Sync + 'static {
    /// What is kept under these keys, in their order.
    async fn get(&self, keys: &[CacheKey]) -> Vec<Option<Arc<Kept>>>;

    /// Keeps each for at most so many milliseconds, instead of what was there.
    async fn put(&self, pages: Vec<(CacheKey, Arc<Kept>, u64)>);

    /// Keeps nothing under these any more: a person is erased, or room is wanted.
    async fn forget(&self, keys: &[CacheKey]);
}
