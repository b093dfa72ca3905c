//! What commands print: results on standard output, everything else on standard error.

use std::io::{ErrorKind, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::exit::{Exit, Failure};

/// One line of a result. A reader that went away (`| head`) ends the command: it asked for no more.
pub(super) fn line(text: impl AsRef<str>) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{}", text.as_ref()).and_then(|()| out.flush());
    written.map_err(|why| match why.kind() {
        ErrorKind::BrokenPipe => Failure::enough(),
        _ => Failure::failed(format!("the result could not be written: {why}")),
    })
}

/// One value as one line of JSON.
pub(super) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value)
        .map_err(|why| Failure::failed(format!("the result cannot be written as JSON: {why}")))?;
    line(text)
}

/// A word beside the result.
pub(super) fn aside(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stderr().lock(), "{}", text.as_ref());
}

/// Why a command failed.
pub(super) fn failure(failure: &Failure, json: bool) {
    if failure.exit == Exit::Done {
        return;
    }
    if json { aside(failure.json().to_string()) } else { aside(format!("esh3ar: {failure}")) }
}

/// An empty table with these headings.
pub(super) fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    // One line under the headings: rows are told apart by being rows.
    let mut style = presets::NOTHING;
    style.header_separator = presets::UTF8_HORIZONTAL_ONLY.header_separator;
    table.load_style(style).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(headings.to_vec());
    table
}

/// Says that something is under way, where a person watches.
pub(super) fn spinner(what: &'static str, json: bool) -> ProgressBar {
    if json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner().with_message(what);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(std::time::Duration::from_millis(100));
    bar
}

/// Says how much is done of something whose end is not known, where a person watches.
pub(super) fn counter(what: &'static str, json: bool) -> ProgressBar {
    let bar = spinner(what, json);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {human_pos} {msg} {elapsed}, {per_sec}") {
        bar.set_style(style);
    }
    bar
}
