//! `esh3ar drill`: breaks a server of its own on purpose and accounts for every message.

use std::{path::PathBuf, sync::Arc};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::print;
use crate::{
    clock::SystemClock,
    drill::{
        ClusterDrill, KillDrill, Pace,
        cluster::{self, Class},
        kill,
    },
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
    /// Real Kafka, Cassandra and Redis and several processes of each role, broken in every way, and the same account.
    #[command(after_help = CLUSTER_EXAMPLE)]
    Cluster(ClusterArgs),
}

/// Shown under the options.
const CLUSTER_EXAMPLE: &str = "Examples:
  esh3ar drill cluster --rounds 57 --kafka 3                every class of fault three times, on three brokers
  esh3ar drill cluster --faults freeze-pipeline,network --rounds 10 --seed 7

It starts its servers by the scripts of ops/stack, from packages, and stops them when it ends. For each fault it tells the longest
silence that a client saw, and the time to the full rate. Exit code 0 means that nothing was lost.";

/// How hard, and on what.
#[derive(Debug, Args)]
pub struct ClusterArgs {
    /// How many faults.
    #[arg(long, default_value_t = 32)]
    rounds: usize,
    /// Which classes, with commas between; without any all that this set-up can have.
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    faults: Vec<Class>,
    /// What follows what, and where it strikes; a number of its own where none is given.
    #[arg(long)]
    seed: Option<u64>,
    /// How many recipients are connected; a quarter as many more sleep.
    #[arg(long, default_value_t = 24)]
    users: usize,
    /// How many times slower than as fast as they can people send.
    #[arg(long, default_value_t = 10)]
    pace: u32,
    /// Messages a second of all people together: batches make up what the others, who go by the pace, leave of it. Without it
    /// batches are as they happen to be.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// How long a freeze or a bad network lasts, s.
    #[arg(long, default_value_t = 30)]
    freeze: u64,
    /// How long everything may take to settle before an account, s.
    #[arg(long, default_value_t = 60)]
    settle: u64,
    /// Kafka brokers.
    #[arg(long, default_value_t = 1)]
    kafka: usize,
    /// Cassandra nodes.
    #[arg(long, default_value_t = 1)]
    cassandra: usize,
    /// Processes that take messages in.
    #[arg(long, default_value_t = 2)]
    ingest: usize,
    /// Processes of the dataflow.
    #[arg(long, default_value_t = 2)]
    pipelines: usize,
    /// Processes that hold sockets.
    #[arg(long, default_value_t = 3)]
    gateways: usize,
    /// The folder of the scripts that start servers.
    #[arg(long, value_name = "DIR", default_value = "ops/stack")]
    stack: PathBuf,
    /// An empty folder for everything.
    #[arg(long, value_name = "DIR", default_value = "./esh3ar-drill")]
    data: PathBuf,
    /// A setting of every process. Can be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
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
    match command {
        DrillCommand::Kill(args) => kills(args, json).await,
        DrillCommand::Cluster(args) => many(args, json).await,
    }
}

fn empty(data: &std::path::Path) -> Result<(), Failure> {
    if std::fs::read_dir(data).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Failure::usage(format!("{} is not empty: a drill needs a folder of its own", data.display())));
    }
    Ok(())
}

async fn many(args: ClusterArgs, json: bool) -> Result<(), Failure> {
    empty(&args.data)?;
    let folder = std::path::absolute(&args.data).map_err(|why| Failure::usage(format!("--data: {why}")))?;
    let servers = (args.kafka.max(1), args.cassandra.max(1));
    if let Some(class) = args.faults.iter().find(|class| !class.can_befall(servers)) {
        let why = "is between several servers of one kind: add --kafka 3 or --cassandra 3";
        return Err(Failure::usage(format!("{class} {why}")));
    }
    let possible = || Class::ALL.into_iter().filter(|class| class.can_befall(servers)).collect();
    let drill = ClusterDrill {
        rounds: args.rounds,
        faults: if args.faults.is_empty() { possible() } else { args.faults },
        seed: args.seed.unwrap_or_else(rand::random),
        users: args.users.max(2),
        pace: Pace { slower: args.pace.max(1), rate: args.rate },
        // The only node's disk is all that there is.
        sync: if args.cassandra > 1 { "periodic" } else { "group" },
        freeze_s: args.freeze,
        settle_ms: args.settle * 1_000,
        servers,
        roles: (args.ingest.max(1), args.pipelines.max(1), args.gateways.max(1)),
        stack: args.stack,
        program: None,
        folder,
        set: args.set,
    };
    let ms = |ms: Option<u64>| ms.map_or_else(|| "not in time".to_owned(), |ms| format!("{ms} ms"));
    let report = cluster::run(&drill, Arc::new(SystemClock::new()), |told| {
        if !json {
            print::aside(format!(
                "{}: longest silence {} ms, full rate after {}, caught up after {}",
                told.fault,
                told.silence_ms,
                ms(told.full_rate_ms),
                ms(told.caught_up_ms)
            ));
        }
    });
    let report = report.await.map_err(|why| Failure::failed(format!("the drill could not be done: {why:#}")))?;
    if json {
        print::json(&report)?;
    } else {
        let mut table =
            print::table(&["fault", "longest silence, ms", "full rate after", "after its end", "caught up after"]);
        for told in &report.faults {
            let (full, after, caught_up) = (ms(told.full_rate_ms), ms(told.after_end_ms), ms(told.caught_up_ms));
            table.add_row([told.fault.clone(), told.silence_ms.to_string(), full, after, caught_up]);
        }
        print::line(table.to_string())?;
        let (account, mib) = (&report.account, |bytes: u64| bytes / (1024 * 1024));
        print::line(format!(
            "seed {}: {} faults, {} messages accepted at {:.0} a second ({} ms of silence while calm): {} lost, {} doubled, {} \
             unwanted, {} out of order, {} twice on one connection, {} sent again after a reconnect; {} of {} statuses wrong; books \
             balanced: {}; waiting at the end {}; memory {} MiB before, {} MiB after",
            report.seed,
            account.kills,
            account.accepted,
            report.accepted_per_second,
            report.calm_silence_ms,
            account.lost,
            account.doubled,
            account.unwanted,
            account.out_of_order,
            account.repeats_in_session,
            account.repeats,
            account.wrong_status,
            account.asked,
            account.balanced,
            report.waiting,
            mib(report.resident.0),
            mib(report.resident.1)
        ))?;
    }
    if report.is_clean() { Ok(()) } else { Err(Failure::failed(report.account.faults.join("\n"))) }
}

async fn kills(args: KillArgs, json: bool) -> Result<(), Failure> {
    empty(&args.data)?;
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
