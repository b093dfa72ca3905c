//! `esh3ar bench`: loads a server of its own and prints the figures beside their baselines and targets.

use std::path::PathBuf;

use clap::Args;

use super::print;
use crate::{
    bench::{self, Bench},
    exit::Failure,
};

/// Shown under the options.
pub(super) const EXAMPLE: &str = "Example:\n  esh3ar bench --seconds 20 --html bench.html          every scenario\n  esh3ar bench end-to-end latency --seconds 60         two of them, longer\n  esh3ar bench cluster --seconds 30                    on real servers, started by ops/stack";

/// What to measure.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Scenarios: end-to-end, singles, latency, users, lanes, priority, idle, kept, chat, devices, threads. All without any. And
    /// where it is named: cluster, on real servers.
    scenarios: Vec<String>,
    /// Seconds of each load after its warm-up.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Phones of the end-to-end scenarios, and a third of the pairs that chat.
    #[arg(long, default_value_t = 1_000)]
    users: usize,
    /// Ten times the size where a scenario has one.
    #[arg(long)]
    long: bool,
    /// Where data folders are made.
    #[arg(long, value_name = "DIR", default_value = "./esh3ar-bench")]
    folder: PathBuf,
    /// A setting to try, e.g. --set limits.store.group_every_ms=5. Can be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The folder of the scripts that start real servers.
    #[arg(long, value_name = "DIR", default_value = "ops/stack")]
    stack: PathBuf,
    /// Write a page with plots.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// The bare server that others are compared with.
    #[arg(long, hide = true)]
    serve_bare: bool,
}

/// Runs it.
pub(super) async fn run(args: BenchArgs, json: bool) -> Result<(), Failure> {
    if args.serve_bare {
        return bench::serve_bare().await.map_err(|why| Failure::failed(format!("{why:#}")));
    }
    let bench = Bench {
        scenarios: args.scenarios,
        seconds: args.seconds.max(1),
        users: args.users.clamp(10, 15_000),
        long: args.long,
        folder: args.folder,
        set: args.set,
        stack: args.stack,
    };
    let tell = |name: &str| {
        if !json {
            // To the standard error, so that the table alone can be piped.
            print::aside(format!("running {name}"));
        }
    };
    let report = bench::run(bench, tell).await.map_err(|why| Failure::failed(format!("{why:#}")))?;
    if let Some(path) = &args.html {
        bench::write_page(&report, path).map_err(|why| Failure::failed(format!("{why:#}")))?;
    }
    if json { print::json(&report) } else { print::line(report.table()) }
}
