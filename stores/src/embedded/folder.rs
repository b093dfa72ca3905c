//! The data folder: who may work in it, and what layout it has.
//!
//! Promises: one process at a time (an advisory lock that dies with its process), and never a folder of another version or
//! another number of partitions. Creating it is atomic: a crash in between leaves a folder that is created again.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
};

use crate::OpenError;

/// The layout this release writes and reads.
pub(crate) const VERSION: u32 = 1;

/// The folder, held.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    // Held open for its lock, which the kernel lets go when the process ends, however it ends.
    _lock: File,
}

/// What the `format` file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Format {
    pub(crate) version: u32,
    pub(crate) partitions: u16,
}

impl Folder {
    /// Takes the lock. With `create` an absent folder is made.
    pub(crate) fn take(path: &Path, create: bool) -> Result<Self, OpenError> {
        if create {
            fs::create_dir_all(path).map_err(OpenError::writing(path, "creating the data folder", path))?;
            // Before anything is written: somebody else's folder is left as it was.
            if !path.join("format").exists() {
                refuse_foreign(path)?;
            }
        }
        let name = path.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(create)
            .truncate(false)
            .open(&name)
            .map_err(OpenError::writing(path, "opening", &name))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let known = lock.read_to_string(&mut holder).is_ok();
                let holder = if known { holder.trim().parse().ok() } else { None };
                return Err(OpenError::Busy { path: path.into(), holder });
            }
            Err(TryLockError::Error(e)) => return Err(OpenError::io("locking", &name)(e)),
        }
        let written =
            lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| writeln!(lock, "{}", std::process::id()));
        written.map_err(OpenError::io("writing", &name))?;
        Ok(Self { path: path.into(), _lock: lock })
    }

    /// Where the engine keeps its files.
    pub(crate) fn store(&self) -> PathBuf {
        self.path.join("store")
    }

    /// Where `repair` puts what it cuts off.
    pub(crate) fn set_aside(&self) -> PathBuf {
        self.path.join("set-aside")
    }

    /// The folder itself.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the `format` file; `None` where there is none.
    pub(crate) fn format(&self) -> Result<Option<Format>, OpenError> {
        let path = self.path.join("format");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(OpenError::io("reading", path)(e)),
        };
        let format = parse(&text).map_err(|why| OpenError::Format { path, why })?;
        if format.version != VERSION {
            return Err(OpenError::Version { path: self.path.clone(), found: format.version, known: VERSION });
        }
        Ok(Some(format))
    }

    /// Holds an existing folder to its number of partitions, or makes a new one of it.
    pub(crate) fn agree(&self, partitions: u16) -> Result<(), OpenError> {
        match self.format()? {
            Some(format) if format.partitions == partitions => Ok(()),
            Some(format) => {
                Err(OpenError::Partitions { path: self.path.clone(), found: format.partitions, asked: partitions })
            }
            None => self.found(partitions),
        }
    }

    /// Makes an empty folder ours.
    fn found(&self, partitions: u16) -> Result<(), OpenError> {
        let new = self.path.join("format.new");
        let text = format!("esh3ar data {VERSION}\npartitions {partitions}\n");
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, self.path.join("format"))?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(OpenError::writing(&self.path, "writing the format file in", &self.path))
    }
}

/// A folder without a `format` is one that we make, so nothing may be in it but what a crash while creating leaves.
fn refuse_foreign(path: &Path) -> Result<(), OpenError> {
    for entry in fs::read_dir(path).map_err(OpenError::io("reading", path))? {
        let entry = entry.map_err(OpenError::io("reading", path))?;
        if !matches!(entry.file_name().to_str(), Some("lock" | "format.new")) {
            return Err(OpenError::NotOurs { path: path.into() });
        }
    }
    Ok(())
}

fn parse(text: &str) -> Result<Format, String> {
    let mut lines = text.lines();
    let mut number = |name: &str| {
        let line = lines.next().unwrap_or_default();
        let value = line.strip_prefix(name).map(str::trim).ok_or_else(|| format!("`{name}` was expected"))?;
        value.parse::<u32>().map_err(|_| format!("`{name}` is not followed by a number"))
    };
    let version = number("esh3ar data")?;
    let partitions = number("partitions")?;
    let partitions = u16::try_from(partitions).map_err(|_| "the number of partitions is too large".to_string())?;
    Ok(Format { version, partitions })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_opener_is_told_who_holds_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Folder::take(dir.path(), true).unwrap();
        let refusal = Folder::take(dir.path(), true).unwrap_err().to_string();
        assert!(refusal.contains(&dir.path().display().to_string()), "{refusal}");
        assert!(refusal.contains(&std::process::id().to_string()), "{refusal}");
    }

    #[test]
    fn another_partition_count_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::take(dir.path(), true).unwrap();
        folder.agree(24).unwrap();
        folder.agree(24).unwrap();
        assert!(matches!(folder.agree(12), Err(OpenError::Partitions { found: 24, asked: 12, .. })));
    }

    #[test]
    fn another_version_is_refused_in_a_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::take(dir.path(), true).unwrap();
        fs::write(dir.path().join("format"), "esh3ar data 2\npartitions 24\n").unwrap();
        let refusal = folder.agree(24).unwrap_err().to_string();
        assert!(refusal.contains("format 2") && refusal.contains("reads format 1"), "{refusal}");
        fs::write(dir.path().join("format"), "rubbish").unwrap();
        assert!(matches!(folder.agree(24), Err(OpenError::Format { .. })));
    }

    #[test]
    fn a_folder_of_something_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.txt"), "years of work").unwrap();
        assert!(matches!(Folder::take(dir.path(), true), Err(OpenError::NotOurs { .. })));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing of ours was left in it");
    }

    #[test]
    fn a_crash_while_creating_is_made_good() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("format.new"), "esh3").unwrap();
        let folder = Folder::take(dir.path(), true).unwrap();
        folder.agree(24).unwrap();
        assert_eq!(folder.format().unwrap(), Some(Format { version: 1, partitions: 24 }));
    }
}
