//! `esh3ar drill`: breaks a server of its own on purpose and accounts for every message.

use std::{path::PathBuf, sync::Arc};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::print;
use crate::{
    clock::SystemClock,
    drill::{KillDrill, kill},
    exit::Failure,
};

/// Shown under the options.
pub(super) const EXAMPLE: &str = "Example:\n  esh3ar drill kill --rounds 100 --data /tmp/drill   kill -9 a hundred times under load; exit code 0 means nothing was lost";

/// Which drill.
#[derive(Debug, Subcommand)]
pub enum DrillCommand {
    /// Kill -9 at random moments under load, restart, and account for every accepted message.
    #[command(after_help = EXAMPLE)]
    Kill(KillArgs),
}

/// How hard.
#[derive(Debug, Args)]
pub struct KillArgs {
    /// How many kills.
    #[arg(long, default_value_t = 50)]
    rounds: u32,
    /// How many recipients are connected, each with a sender and a phone of its own; a quarter as many more sleep.
    #[arg(long, default_value_t = 24)]
    users: usize,
    /// An empty folder for the server under drill.
    #[arg(long, value_name = "DIR", default_value = "./esh3ar-drill")]
    data: PathBuf,
    /// How long everything may take to settle before an account, s.
    #[arg(long, default_value_t = 30)]
    settle: u64,
    /// A setting of the server under drill, e.g. --set stores.log=kafka://127.0.0.1:9092. Can be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Runs it; a drill that found a fault has failed.
pub(super) async fn run(command: DrillCommand, json: bool) -> Result<(), Failure> {
    let DrillCommand::Kill(args) = command;
    if std::fs::read_dir(&args.data).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Failure::usage(format!("{} is not empty: a drill needs a folder of its own", args.data.display())));
    }
    let target = if json { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(Some(u64::from(args.rounds)), target).with_message("kills");
    if let Ok(style) = ProgressStyle::with_template("{msg} {pos}/{len} {wide_bar} {elapsed}") {
        bar.set_style(style);
    }
    let KillArgs { rounds, users, data, settle, set } = args;
    let drill = KillDrill { rounds, users: users.max(2), data, settle_ms: settle * 1_000, set };
    let report = kill::run(&drill, Arc::new(SystemClock::new()), |round| bar.set_position(u64::from(round))).await;
    bar.finish_and_clear();
    let report = report.map_err(|why| Failure::failed(format!("the drill could not be done: {why:#}")))?;
    if json {
        print::json(&report)?;
    } else {
        print::line(format!(
            "{} kills ({} starts with two dataflow threads), {} messages accepted, {} broken batches, {} broadcasts, {} expired and \
             {} taken back as wanted: {} lost, {} doubled, {} unwanted, {} out of order, {} twice on one connection, {} sent again \
             after a reconnect; {} of {} statuses wrong, {} told; books balanced: {}; slowest start {} ms",
            report.kills,
            report.starts_with_two,
            report.accepted,
            report.broken_batches,
            report.broadcasts,
            report.expired,
            report.cancelled,
            report.lost,
            report.doubled,
            report.unwanted,
            report.out_of_order,
            report.repeats_in_session,
            report.repeats,
            report.wrong_status,
            report.asked,
            report.told,
            report.balanced,
            report.slowest_start_ms
        ))?;
    }
    if report.is_clean() { Ok(()) } else { Err(Failure::failed(report.faults.join("\n"))) }
}
