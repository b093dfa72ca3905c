//! `esh3ar data check|repair`: a stopped server's folder, looked at and put right.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use stores::data::Report;

use super::print;
use crate::exit::Failure;

pub(super) const EXAMPLE: &str = "Examples:
  esh3ar data check --data /var/lib/esh3ar
  esh3ar data repair --data /var/lib/esh3ar        keeps what can be read, and says what was lost

The server must be stopped. Make a copy of the folder before repairing it.";

/// What can be done with a folder.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Say what it holds and whether it is whole. Exit code 1 where it is not.
    Check(DataArgs),
    /// Make a damaged folder open again.
    Repair(DataArgs),
}

/// Which folder.
#[derive(Debug, Args)]
pub struct DataArgs {
    /// The folder.
    #[arg(long, default_value = "./esh3ar-data", env = "ESH3AR_DATA", value_name = "DIR")]
    data: PathBuf,
}

/// Does it.
pub(super) fn run(command: &DataCommand, json: bool) -> Result<(), Failure> {
    let (bar, report) = match command {
        DataCommand::Check(args) => {
            exists(args)?;
            (print::spinner("reading", json), stores::data::check(&args.data))
        }
        DataCommand::Repair(args) => {
            exists(args)?;
            (print::spinner("repairing", json), stores::data::repair(&args.data))
        }
    };
    bar.finish_and_clear();
    let report = report.map_err(|why| Failure::unreachable(why.to_string()))?;
    if json {
        print::json(&report)?
    } else {
        show(&report)?
    }
    if report.is_whole() {
        return Ok(());
    }
    Err(Failure::failed(match command {
        DataCommand::Check(_) => "the folder is damaged: copy it to a safe place, then run `esh3ar data repair`",
        DataCommand::Repair(_) => "not everything could be repaired",
    }))
}

fn exists(args: &DataArgs) -> Result<(), Failure> {
    if args.data.is_dir() {
        return Ok(());
    }
    Err(Failure::unreachable(format!("there is no folder {}: name one with --data", args.data.display())))
}

fn show(report: &Report) -> Result<(), Failure> {
    print::line(format!(
        "format {}, {} partitions, {} records in the log",
        report.version, report.partitions, report.records
    ))?;
    let mut journals = print::table(&["journal", "groups", "bytes", "torn", "damaged"]);
    for j in &report.journals {
        let damaged = if j.damaged { "yes" } else { "no" };
        journals.add_row([&j.name, &j.groups.to_string(), &j.bytes.to_string(), &j.torn.to_string(), damaged]);
    }
    print::line(journals.to_string())?;
    if !report.keyspaces.is_empty() {
        let mut keyspaces = print::table(&["keyspace", "rows", "bytes"]);
        for k in &report.keyspaces {
            keyspaces.add_row([&k.name, &k.rows.to_string(), &k.bytes.to_string()]);
        }
        print::line(keyspaces.to_string())?;
    }
    for sentence in &report.done {
        print::line(format!("done: {sentence}"))?;
    }
    for sentence in &report.wrong {
        print::line(format!("wrong: {sentence}"))?;
    }
    print::line(if report.is_whole() { "The folder is whole." } else { "The folder is NOT whole." })
}
