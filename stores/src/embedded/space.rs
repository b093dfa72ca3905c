//! Room on the disk, asked of the machine. Below the limit new work is refused (507); below a quarter of it everything is,
//! because a journal that meets a full disk cannot be written to any more until the process starts again.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU8, AtomicU64, Ordering},
};

/// How much room there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Space {
    /// For everything.
    Enough,
    /// To finish what was accepted, not to accept more.
    Low,
    /// For nothing.
    None,
}

/// The disk that a folder stands on.
#[derive(Debug)]
pub(crate) struct Disk {
    path: PathBuf,
    low: u64,
    last: AtomicU8,
    /// Bytes and groups written since it was asked.
    bytes: AtomicU64,
    groups: AtomicU64,
}

/// Bytes written after which the machine is asked again: nothing beside the least room that is kept.
const EVERY_BYTES: u64 = 1024 * 1024;
/// Groups written after which it is asked again, since others fill the disk too: some milliseconds at load.
const EVERY_GROUPS: u64 = 16;

impl Disk {
    pub(crate) fn new(path: PathBuf, free_bytes: u64) -> Self {
        let disk =
            Self { path, low: free_bytes, last: AtomicU8::new(0), bytes: AtomicU64::new(0), groups: AtomicU64::new(0) };
        disk.sample();
        disk
    }

    /// Asks the machine: one system call of a few microseconds.
    pub(crate) fn sample(&self) -> Space {
        let space = match rustix::fs::statvfs(&self.path) {
            Ok(stat) => judge(stat.f_bavail.saturating_mul(stat.f_frsize), self.low),
            // A disk that cannot be asked is found out by the write itself.
            Err(_) => Space::Enough,
        };
        self.last.store(space as u8, Ordering::Relaxed);
        space
    }

    /// So many bytes were written as one group: asks now and then.
    pub(crate) fn wrote(&self, bytes: u64) {
        let bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let groups = self.groups.fetch_add(1, Ordering::Relaxed) + 1;
        if bytes >= EVERY_BYTES || groups >= EVERY_GROUPS {
            self.sample();
            self.bytes.store(0, Ordering::Relaxed);
            self.groups.store(0, Ordering::Relaxed);
        }
    }

    /// What the last sample said; while that was not `Enough`, asks again, so that freed room is noticed at once.
    pub(crate) fn now(&self) -> Space {
        if self.last.load(Ordering::Relaxed) == Space::Enough as u8 { Space::Enough } else { self.sample() }
    }
}

fn judge(free: u64, low: u64) -> Space {
    match free {
        free if free >= low => Space::Enough,
        free if free >= low / 4 => Space::Low,
        _ => Space::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_accepted_has_room_of_its_own() {
        let cases = [(1000, 400, Space::Enough), (400, 400, Space::Enough), (399, 400, Space::Low)];
        let more = [(100, 400, Space::Low), (99, 400, Space::None), (0, 0, Space::Enough)];
        for (free, low, space) in cases.into_iter().chain(more) {
            assert_eq!(judge(free, low), space, "{free} free, limit {low}");
        }
    }
}
