//! Finding and reading the repository's files. Everything is relative to its root, so that a failure names what a person
//! would open.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Folders of the workspace that hold a crate.
pub(crate) const CRATES: [&str; 8] = ["schemas", "ingest", "pipeline", "sinks", "stores", "gateway", "ops", "tests"];

/// Folders that are built, fetched or kept, not written.
const NOT_OURS: [&str; 4] = ["target", ".git", "node_modules", "esh3ar-data"];

/// The repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ stands in the repository").to_owned()
}

/// The text of a file, by its path from the root.
pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|why| panic!("{path}: {why}"))
}

/// Every file below a folder whose name ends so, with its text, in order. Folders that are not there hold none.
pub(crate) fn files(below: &str, ending: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    collect(&root().join(below), ending, &mut found);
    found.sort();
    found
}

fn collect(folder: &Path, ending: &str, found: &mut Vec<(String, String)>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if path.is_dir() {
            if !NOT_OURS.contains(&name.as_ref()) {
                collect(&path, ending, found);
            }
        } else if name.ends_with(ending)
            && let Ok(text) = fs::read_to_string(&path)
        {
            let shown = path.strip_prefix(root()).unwrap_or(&path).display().to_string();
            found.push((shown, text));
        }
    }
}

/// Fails with all findings at once: one run shows everything that is to be done.
pub(crate) fn none(findings: impl IntoIterator<Item = String>) {
    let findings: Vec<String> = findings.into_iter().collect();
    assert!(findings.is_empty(), "{} found:\n  {}", findings.len(), findings.join("\n  "));
}

/// A source without its comments, so that a word in prose is not taken for code.
pub(crate) fn code(source: &str) -> String {
    let without = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
    source.lines().map(without).collect::<Vec<_>>().join("\n")
}

/// Whether `word` stands in `code` as a whole identifier, followed by `then`.
pub(crate) fn names(code: &str, word: &str, then: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(&format!("{word}{then}")).any(|(at, _)| !code[..at].chars().next_back().is_some_and(part))
}
