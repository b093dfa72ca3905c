//! `esh3ar completions`.

use std::io::Write;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::exit::Failure;

pub(super) const EXAMPLE: &str = "Example:
  esh3ar completions bash > ~/.local/share/bash-completion/completions/esh3ar";

/// Arguments of `completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints them.
pub(super) fn run(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::Cli::command(), "esh3ar", &mut script);
    let written = std::io::stdout().lock().write_all(&script);
    written.map_err(|why| Failure::failed(format!("the completions could not be written: {why}")))
}
