//! A data folder nobody has open: what it holds, whether it is whole, and what can be done if it is not.
//!
//! `check` changes nothing but what a start would change too (a torn end of the journal is cut off). `repair` keeps what
//! can be read: it cuts a damaged journal at the first byte that cannot be, keeps a copy of the file under `set-aside/`, and
//! says what that lost.

use std::{fs, path::Path};

use schemas::{Offset, limits::StoreLimits};
use serde::Serialize;

use crate::{
    OpenError,
    embedded::{
        Engine, Shape,
        folder::Folder,
        journal::{self, End},
    },
    log::embedded::{
        decode,
        layout::{self, Layout},
    },
};

/// What a folder holds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Report {
    /// Version of the layout.
    pub version: u32,
    /// Partitions it was created with.
    pub partitions: u16,
    /// Its journal files.
    pub journals: Vec<Journal>,
    /// Its keyspaces; empty where the journal must be repaired first.
    pub keyspaces: Vec<Rows>,
    /// Records in the log.
    pub records: u64,
    /// What is wrong, in sentences.
    pub wrong: Vec<String>,
    /// What was done about it, in sentences.
    pub done: Vec<String>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_whole(&self) -> bool {
        self.wrong.is_empty()
    }
}

/// One journal file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Journal {
    /// Its name.
    pub name: String,
    /// Whole groups of writes.
    pub groups: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Bytes of a last group that a crash tore.
    pub torn: u64,
    /// Whether it cannot be read to its end.
    pub damaged: bool,
}

/// One keyspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rows {
    /// Its name.
    pub name: String,
    /// Rows.
    pub rows: u64,
    /// Bytes on disk, the journal apart.
    pub bytes: u64,
}

/// Looks at a folder.
pub fn check(path: &Path) -> Result<Report, OpenError> {
    let mut report = begin(path, &Folder::take(path, false)?)?;
    for journal in &report.journals {
        if journal.damaged {
            let Journal { name, bytes, .. } = journal;
            report
                .wrong
                .push(format!("the journal {name} cannot be read from byte {bytes} on, and it goes on after that"));
        }
    }
    if report.is_whole() {
        books(path, &mut report)?;
    }
    Ok(report)
}

/// Makes a damaged folder open again.
pub fn repair(path: &Path) -> Result<Report, OpenError> {
    let folder = Folder::take(path, false)?;
    let mut report = begin(path, &folder)?;
    for file in journal::files(&folder.store())? {
        let scan = journal::scan(&file)?;
        if scan.end != End::Damaged {
            continue;
        }
        let aside = folder.set_aside();
        fs::create_dir_all(&aside).map_err(OpenError::io("creating", &aside))?;
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let copy = free_name(&aside, &name);
        fs::copy(&file, &copy).map_err(OpenError::io("copying to", &copy))?;
        fs::File::open(&copy).and_then(|f| f.sync_all()).map_err(OpenError::io("syncing", &copy))?;
        let length = fs::metadata(&file).map_err(OpenError::io("reading", &file))?.len();
        journal::cut(&file, scan.valid)?;
        report.done.push(format!(
            "the journal {name} was cut at byte {} of {length}: the groups of writes after it are lost, among them work \
             that was accepted; the whole file is kept as {}",
            scan.valid,
            copy.display()
        ));
    }
    report.journals = journals(&folder)?;
    drop(folder);
    books(path, &mut report)?;
    Ok(report)
}

fn begin(path: &Path, folder: &Folder) -> Result<Report, OpenError> {
    let format = folder.format()?.ok_or_else(|| OpenError::NotOurs { path: path.into() })?;
    Ok(Report {
        version: format.version,
        partitions: format.partitions,
        journals: journals(folder)?,
        ..Report::default()
    })
}

fn journals(folder: &Folder) -> Result<Vec<Journal>, OpenError> {
    let files = journal::files(&folder.store())?;
    let journal = |path: std::path::PathBuf| {
        let scan = journal::scan(&path)?;
        let torn = if let End::Torn(bytes) = scan.end { bytes } else { 0 };
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Journal { name, groups: scan.batches, bytes: scan.valid, torn, damaged: scan.end == End::Damaged })
    };
    files.into_iter().map(journal).collect()
}

/// Reads everything through the engine.
fn books(path: &Path, report: &mut Report) -> Result<(), OpenError> {
    let limits = StoreLimits { partitions: report.partitions, ..StoreLimits::default() };
    let engine = Engine::open(path, &limits)?;
    let mut names: Vec<_> = engine.database().list_keyspace_names().iter().map(ToString::to_string).collect();
    // Segments in the order they were written.
    names.sort_by_key(|name| (segment(name), name.clone()));
    let mut ends = Vec::new();
    for name in names {
        let keyspace = engine.keyspace_named(&name, Shape::Rows)?;
        let rows = match segment(&name) {
            Some(_) => log_rows(&keyspace, report, &mut ends),
            None => rows(&keyspace).map_err(|error| format!("{error:?}")),
        };
        let rows = rows.unwrap_or_else(|why| {
            report.wrong.push(format!("{name} cannot be read to its end: {why}. Restore a backup of the data folder"));
            0
        });
        report.keyspaces.push(Rows { name, rows, bytes: keyspace.disk_space() });
    }
    Ok(())
}

fn segment(name: &str) -> Option<u64> {
    name.strip_prefix("log.").and_then(|number| number.parse().ok())
}

fn rows(keyspace: &fjall::Keyspace) -> fjall::Result<u64> {
    let mut rows = 0;
    for row in keyspace.iter() {
        row.into_inner()?;
        rows += 1;
    }
    Ok(rows)
}

/// Reads a segment of the log: every chunk must go on where the one before it ended.
fn log_rows(keyspace: &fjall::Keyspace, report: &mut Report, ends: &mut Vec<Option<u64>>) -> Result<u64, String> {
    let layout = Layout::new(report.partitions);
    ends.resize(layout.count(), None);
    let mut rows = 0;
    for row in keyspace.iter() {
        let (key, value) = row.into_inner().map_err(|error| format!("{error:?}"))?;
        rows += 1;
        let index = match &*key {
            [topic, high, low, ..] => layout.find(*topic, u16::from_be_bytes([*high, *low])),
            _ => None,
        };
        let (Some(index), Some(last)) = (index, layout::last_of(&key)) else {
            return Err("a chunk of no partition".into());
        };
        let at = layout.at(index);
        let Some(chunk) = decode(at, last, value.into()) else {
            report.wrong.push(format!("the chunk of {at} that ends with {last} is not one"));
            continue;
        };
        if let Some(end) = ends[index].filter(|end| *end != chunk.base) {
            report.wrong.push(format!("{at} goes on at {} where {} was expected", Offset(chunk.base), Offset(end)));
        }
        report.records += chunk.records.len() as u64;
        ends[index] = Some(last.0 + 1);
    }
    Ok(rows)
}

fn free_name(folder: &Path, name: &str) -> std::path::PathBuf {
    let taken = |number: &u32| !folder.join(format!("{name}.{number}")).exists();
    let number = (1..u32::MAX).find(taken).unwrap_or(u32::MAX);
    folder.join(format!("{name}.{number}"))
}
