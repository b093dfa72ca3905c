//! Keeps: the log, the history, presence and the backplane, behind the ports.

mod error;

pub mod embedded;
pub mod history;

pub use error::OpenError;

/// Counters of the embedded store since start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Syncs of the journal.
    pub syncs: u64,
    /// Groups of jobs that were written together.
    pub groups: u64,
    /// Jobs.
    pub jobs: u64,
    /// Rows written and removed.
    pub writes: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
}
