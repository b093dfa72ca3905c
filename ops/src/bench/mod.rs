//! `esh3ar bench`: loads a server of its own from this process and prints what came out, each figure beside its baseline of
//! the same run and the targets we set ourselves.
//!
//! Loads are open loop where latency is asked: a message's time counts from when it was meant to be sent, so that a server
//! that stalls cannot hide it. Warm-up is not counted. Quotas are lifted, and the report says so.

mod load;
mod measure;
mod report;
mod scenario;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use ingest::auth::Who;
use schemas::Phone;

pub use measure::{Figure, Series};
pub use report::{Report, serve_bare, write_page};

use crate::{child::Server, clock::SystemClock};

/// What to run.
#[derive(Debug, Clone)]
pub struct Bench {
    /// Names of scenarios; empty: all.
    pub scenarios: Vec<String>,
    /// How long each load lasts after its warm-up, s.
    pub seconds: u64,
    /// Phones of the end-to-end scenarios.
    pub users: usize,
    /// Sizes ten times as large where a scenario has a size.
    pub long: bool,
    /// The folder under which data folders are made.
    pub folder: PathBuf,
    /// Settings beyond the lifted limits, for trying a candidate.
    pub set: Vec<String>,
}

/// Limits that benchmarks lift, because they would measure the limit and not the server.
pub const LIFTED: [&str; 7] = [
    "limits.door.server_per_second=100000000",
    "limits.door.system_per_second=100000000",
    "limits.door.person_per_minute=100000000",
    "limits.door.person_per_hour=100000000",
    "limits.door.lane_slow=50000000",
    "limits.door.lane_full=100000000",
    "limits.socket.sessions=100000",
];

/// What every scenario is given.
pub(crate) struct Stage {
    pub(crate) bench: Bench,
    pub(crate) clock: SystemClock,
}

/// Runs the scenarios, one server each.
pub async fn run(bench: Bench, progress: impl Fn(&str)) -> Result<Report> {
    let known = scenario::all();
    if let Some(unknown) = bench.scenarios.iter().find(|name| !known.iter().any(|(k, _)| k == *name)) {
        let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
        bail!("no scenario is called {unknown:?}; there are: {}", names.join(", "));
    }
    std::fs::create_dir_all(&bench.folder).with_context(|| format!("the folder {}", bench.folder.display()))?;
    let stage = Stage { bench, clock: SystemClock::new() };
    let mut report = Report::begin(&stage)?;
    for (name, scenario) in known {
        if stage.bench.scenarios.is_empty() || stage.bench.scenarios.iter().any(|s| s == name) {
            progress(name);
            scenario(&stage, &mut report).await.with_context(|| format!("scenario {name}"))?;
        }
    }
    Ok(report)
}

impl Stage {
    /// A started server on an empty folder.
    pub(crate) async fn server(&self, name: &str, set: &[&str]) -> Result<Server> {
        let data = self.bench.folder.join(name);
        if data.exists() {
            std::fs::remove_dir_all(&data)?;
        }
        self.server_on(&data, set).await
    }

    /// A started server on a folder that may hold something.
    pub(crate) async fn server_on(&self, data: &std::path::Path, set: &[&str]) -> Result<Server> {
        let settings = LIFTED.iter().chain(set).map(|s| (*s).to_owned()).chain(self.bench.set.iter().cloned());
        let mut server = Server::new(data, settings.collect())?;
        server.start().await?;
        Ok(server)
    }

    /// A server key.
    pub(crate) fn business(&self, server: &Server) -> Result<String> {
        server.token(Who::Server, &self.clock)
    }

    /// A token for each of so many phones.
    pub(crate) fn phones(&self, server: &Server, count: usize) -> Result<Vec<String>> {
        let token = |n| {
            let number = Phone::from_stored(&load::number(n)).context("a number")?;
            server.token(Who::Mobile(number), &self.clock)
        };
        (0..count).map(token).collect()
    }

    /// How long a load lasts.
    pub(crate) fn duration(&self) -> Duration {
        Duration::from_secs(self.bench.seconds)
    }
}
