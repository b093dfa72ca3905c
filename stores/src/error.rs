//! Why a store could not be opened. Each sentence says what to do about it.

use std::path::PathBuf;

/// Why a data folder could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process works in it.
    #[error(
        "the data folder {} is in use by another esh3ar{}: stop that one, or give this one another folder with --data",
        path.display(), holder.map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    Busy {
        /// The folder.
        path: PathBuf,
        /// The process that holds it, where it is known.
        holder: Option<u32>,
    },
    /// There is something else in it.
    #[error(
        "{} holds other files and is not a data folder of Esh3ar: choose an empty or a new folder with --data",
        path.display()
    )]
    NotOurs {
        /// The folder.
        path: PathBuf,
    },
    /// Its `format` file cannot be read.
    #[error(
        "the file {} cannot be understood ({why}): restore it from a backup of the data folder",
        path.display()
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Another release wrote it.
    #[error(
        "the data folder {} has format {found} and this release reads format {known}: run the release that wrote it, \
         or give this one another folder with --data",
        path.display()
    )]
    Version {
        /// The folder.
        path: PathBuf,
        /// What it has.
        found: u32,
        /// What this release reads.
        known: u32,
    },
    /// The number of partitions was changed after the folder was created.
    #[error(
        "the data folder {} was created with {found} partitions and is configured with {asked}: set limits.store.partitions \
         back to {found}; the number is fixed for the life of an installation",
        path.display()
    )]
    Partitions {
        /// The folder.
        path: PathBuf,
        /// What it was created with.
        found: u16,
        /// What was asked for.
        asked: u16,
    },
    /// This user may not write to it.
    #[error(
        "the data folder {} cannot be written to ({source}): give the user that runs esh3ar the right to write there \
         (chown, or mount it for writing), or name another folder with --data",
        path.display()
    )]
    ReadOnly {
        /// The folder.
        path: PathBuf,
        /// What the machine said.
        source: std::io::Error,
    },
    /// The machine refused something.
    #[error("{what} {} failed: {source}: check the folder's permissions and its disk", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which file or folder.
        path: PathBuf,
        /// What the machine said.
        source: std::io::Error,
    },
    /// The bytes are not what was written.
    #[error(
        "the data in {} is damaged: {why}. Copy the folder to a safe place, look at it with `esh3ar data check`, then run \
         `esh3ar data repair`, which keeps what can be read and says what was lost",
        path.display()
    )]
    Damaged {
        /// The file or folder.
        path: PathBuf,
        /// What does not fit.
        why: String,
    },
    /// An address that no adapter takes.
    #[error("{0}")]
    Address(String),
    /// An adapter that this build does not have.
    #[error(
        "this build has no {what} adapter: take a release, or build it in with `cargo build --release --package esh3ar-ops \
         --features {feature}`"
    )]
    NotBuilt {
        /// What it would speak to.
        what: &'static str,
        /// The cargo feature that builds it in.
        feature: &'static str,
    },
    /// Servers that do not answer, or not yet: waiting may help. Every other refusal stays one until somebody changes
    /// something.
    #[error(
        "{what} at {hosts} does not answer ({why}): check that it runs, that `{setting}` names it, and that nothing is in between"
    )]
    Unreachable {
        /// What is being asked: `Kafka`, `the history`, `Redis`.
        what: &'static str,
        /// Where, without a login.
        hosts: String,
        /// The configuration key that says so.
        setting: &'static str,
        /// What was heard instead.
        why: String,
    },
}

impl OpenError {
    /// Whether to try again makes sense: a server that does not answer may still come.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// Turns a machine's refusal into a sentence.
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }

    /// The same for what is done in a data folder: that it cannot be written to has a sentence of its own.
    pub(crate) fn writing(
        folder: &std::path::Path,
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let (folder, path) = (folder.to_path_buf(), path.into());
        move |source| match source.kind() {
            std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                Self::ReadOnly { path: folder, source }
            }
            _ => Self::Io { what, path, source },
        }
    }

    /// Turns the storage engine's refusal into a sentence.
    pub(crate) fn engine(path: impl Into<PathBuf>) -> impl FnOnce(fjall::Error) -> Self {
        let path = path.into();
        move |error| match error {
            fjall::Error::Locked => Self::Busy { path, holder: None },
            fjall::Error::Io(source) => Self::Io { what: "opening the store in", path, source },
            fjall::Error::Storage(fjall::LsmError::Io(source)) => {
                Self::Io { what: "opening the store in", path, source }
            }
            other => Self::Damaged { path, why: format!("{other:?}") },
        }
    }
}
