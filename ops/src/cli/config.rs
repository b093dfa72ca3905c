//! `esh3ar config show|check`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{ConfigArgs, print};
use crate::{
    config::{check, load},
    exit::Failure,
};

pub(super) const EXAMPLE: &str = "Examples:
  esh3ar config show --set limits.flow.ack_ms=300
  esh3ar config check esh3ar.toml

Precedence, rising: the file; environment (ESH3AR_LIMITS__FLOW__ACK_MS=300); flags (--set limits.flow.ack_ms=300).";

/// What can be asked of the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Every key with its value, where that came from, and what it means. Secrets are hidden.
    Show(ShowArgs),
    /// Whether a file can be used.
    Check(CheckArgs),
}

/// Arguments of `config show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Only keys that begin with this, e.g. limits.flow.
    prefix: Option<String>,
}

/// Arguments of `config check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The file.
    file: PathBuf,
}

/// Does it.
pub(super) fn run(command: &ConfigCommand, json: bool) -> Result<(), Failure> {
    match command {
        ConfigCommand::Show(args) => show(args, json),
        ConfigCommand::Check(args) => checked(args, json),
    }
}

fn show(args: &ShowArgs, json: bool) -> Result<(), Failure> {
    let prefix = args.prefix.as_deref().unwrap_or_default();
    let rows = args.config.load(&[])?.shown().into_iter().filter(|row| row.key.starts_with(prefix));
    if json {
        return print::json(&rows.collect::<Vec<_>>());
    }
    let mut table = print::table(&["key", "value", "from", "what it means"]);
    for row in rows {
        table.add_row([row.key, row.value.to_string(), row.from, row.doc.to_owned()]);
    }
    print::line(table.to_string())
}

fn checked(args: &CheckArgs, json: bool) -> Result<(), Failure> {
    let loaded = load(Some(&args.file), [], &[], &[]).map_err(|why| Failure::usage(why.to_string()))?;
    let advice = check::advice(&loaded.config);
    if json {
        return print::json(&json!({ "ok": true, "advice": advice }));
    }
    for sentence in advice {
        print::line(format!("advice: {sentence}"))?;
    }
    print::line(format!("{} can be used", args.file.display()))
}
