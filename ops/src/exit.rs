//! How a command ends: an exit code that scripts can use, and one sentence for people.

use std::{fmt, process::ExitCode};

use schemas::Problem;

/// The exit codes, as `esh3ar --help` lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Exit {
    /// It was done.
    Done = 0,
    /// It was tried and failed, or what was waited for did not come.
    Failed = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// What it needs cannot be reached or opened: a server, a port, a data folder.
    Unreachable = 3,
    /// The server refused it.
    Refused = 4,
}

impl Exit {
    /// All of them with what they mean.
    pub const ALL: [(Self, &'static str); 5] = [
        (Self::Done, "done"),
        (Self::Failed, "tried and failed, or what was waited for did not come"),
        (Self::Usage, "the command line or the configuration is wrong"),
        (Self::Unreachable, "a server, a port or a data folder cannot be reached or opened"),
        (Self::Refused, "the server refused it"),
    ];
}

/// Why a command did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What was wrong and what to do.
    pub sentence: String,
    /// The server's own words, where it refused.
    pub problem: Option<Box<Problem>>,
}

impl Failure {
    fn new(exit: Exit, sentence: impl Into<String>) -> Self {
        Self { exit, sentence: sentence.into(), problem: None }
    }

    /// It was tried and failed.
    pub fn failed(sentence: impl Into<String>) -> Self {
        Self::new(Exit::Failed, sentence)
    }

    /// The command line or the configuration is wrong.
    pub fn usage(sentence: impl Into<String>) -> Self {
        Self::new(Exit::Usage, sentence)
    }

    /// What it needs cannot be reached or opened.
    pub fn unreachable(sentence: impl Into<String>) -> Self {
        Self::new(Exit::Unreachable, sentence)
    }

    /// Whoever read the result has read enough: an end like any other.
    pub fn enough() -> Self {
        Self::new(Exit::Done, "")
    }

    /// The server said no.
    pub fn refused(problem: Problem) -> Self {
        let sentence = format!("{problem} ({})", problem.type_uri());
        Self { exit: Exit::Refused, sentence, problem: Some(Box::new(problem)) }
    }

    /// As one JSON object, for `--json`.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({ "error": self.sentence, "exit": self.exit as u8, "problem": self.problem })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for Failure {}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::Code;

    #[test]
    fn exit_codes_are_what_help_says() {
        let numbers: Vec<u8> = Exit::ALL.iter().map(|(exit, _)| *exit as u8).collect();
        assert_eq!(numbers, [0, 1, 2, 3, 4]);
        assert_eq!(Failure::failed("x").exit as u8, 1);
        assert_eq!(Failure::usage("x").exit as u8, 2);
        assert_eq!(Failure::unreachable("x").exit as u8, 3);
        assert_eq!(Failure::refused(Problem::new(Code::Forbidden, "no")).exit as u8, 4);
    }

    #[test]
    fn a_refusal_names_its_page() {
        let failure = Failure::refused(Problem::new(Code::LaneFull, "lane high"));
        assert!(failure.sentence.contains("/problems/lane-full"), "{failure}");
        assert_eq!(failure.json()["problem"]["status"], 503);
    }
}
