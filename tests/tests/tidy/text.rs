//! The text: what every file looks like, whatever it is about.

use crate::reading::{code, files, none, read};

/// Past this a file does a second thing.
const MAX_LINES: usize = 500;

/// What people write: sources, documents, scripts, configuration.
const WRITTEN: [&str; 8] = [".rs", ".md", ".toml", ".yaml", ".yml", ".json", ".js", ".sh"];

fn written() -> Vec<(String, String)> {
    let mut all: Vec<_> = WRITTEN.iter().flat_map(|ending| files("", ending)).collect();
    all.extend(["run", "test", "esh3ar"].map(|path| (path.to_owned(), read(path))));
    all
}

#[test]
fn every_source_opens_with_what_it_is() {
    let silent = files("", ".rs").into_iter().filter(|(_, text)| !text.starts_with("//! "));
    none(silent.map(|(path, _)| format!("{path} does not open with `//! `")));
}

#[test]
fn no_source_is_longer_than_one_can_read() {
    let long = files("", ".rs").into_iter().filter(|(_, text)| text.lines().count() > MAX_LINES);
    none(long.map(|(path, text)| format!("{path} has {} lines, the most is {MAX_LINES}", text.lines().count())));
}

#[test]
fn no_emoji_anywhere() {
    let emoji = |c: &char| matches!(u32::from(*c), 0x2600..=0x27bf | 0x1f000..=0x1faff | 0xfe0f);
    let mut findings = Vec::new();
    for (path, text) in written() {
        for (number, line) in text.lines().enumerate() {
            if let Some(c) = line.chars().find(emoji) {
                findings.push(format!("{path}:{}: U+{:04X}", number + 1, u32::from(c)));
            }
        }
    }
    none(findings);
}

#[test]
fn no_path_of_somebody_s_machine() {
    // Spelt in two halves, so that this file does not find itself.
    let machines: Vec<String> = ["work", "root", "home", "Users"].iter().map(|name| format!("/{name}/")).collect();
    let mut findings = Vec::new();
    for (path, text) in written() {
        for (number, line) in text.lines().enumerate() {
            for machine in &machines {
                let at_start = |at: usize| {
                    !line[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || "_.-~)}>".contains(c))
                };
                if line.match_indices(machine.as_str()).any(|(at, _)| at_start(at)) {
                    findings.push(format!("{path}:{}: {}", number + 1, line.trim()));
                }
            }
        }
    }
    none(findings);
}

#[test]
fn nothing_is_left_to_be_done_later_in_code() {
    let left = ["todo!", "unimplemented!", "dbg!"];
    let mut findings = Vec::new();
    for (path, text) in files("", ".rs") {
        // This file names them.
        if path.ends_with("tidy/text.rs") {
            continue;
        }
        let code = code(&text);
        findings.extend(left.iter().filter(|word| code.contains(**word)).map(|word| format!("{path} holds {word}")));
    }
    none(findings);
}

#[test]
fn no_line_ends_in_space_and_every_file_ends_in_one_newline() {
    let mut findings = Vec::new();
    for (path, text) in written() {
        if text.lines().any(|line| line.ends_with([' ', '\t'])) {
            findings.push(format!("{path} has lines that end in space"));
        }
        if !text.is_empty() && (!text.ends_with('\n') || text.ends_with("\n\n")) {
            findings.push(format!("{path} does not end in one newline"));
        }
    }
    none(findings);
}
