//! `esh3ar bench`: loads a server of its own from this process and prints what came out, each figure beside its baseline of
//! the same run and the targets we set ourselves.
//!
//! Loads are open loop where latency is asked: a message's time counts from when it was meant to be sent, so that a server
//! that stalls cannot hide it. Warm-up is not counted. Each scenario names the limits that it lifts, and accounts for every
//! message that it sent: what does not add up is an error.

mod bare;
mod load;
mod measure;
mod page;
mod report;
mod scenario;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use ingest::auth::Who;
use parking_lot::Mutex;
use schemas::{Clock, Name, Phone, limits::StoreLimits};
use stores::Stores;

pub use bare::serve as serve_bare;
pub(crate) use measure::resident;
pub use measure::{Curve, Figure, Series};
pub use page::write as write_page;
pub use report::{Closing, Report};

use crate::{
    child::{Launch, Server},
    clock::SystemClock,
};

/// The tenant of every load.
pub(crate) const TENANT: &str = "bench";

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
    /// Where the scripts are that start real servers.
    pub stack: PathBuf,
}

/// Limits that a load would measure instead of the server.
pub(crate) mod lift {
    /// Messages a second.
    pub(crate) const QUOTAS: &[&str] =
        &["limits.door.server_per_second=100000000", "limits.door.system_per_second=100000000"];
    /// The room of the lanes.
    pub(crate) const LANES: &[&str] = &["limits.door.lane_slow=50000000", "limits.door.lane_full=100000000"];
    /// Messages of one person.
    pub(crate) const PEOPLE: &[&str] =
        &["limits.door.person_per_minute=1000000", "limits.door.person_per_hour=100000000"];
    /// Sockets and connections.
    pub(crate) const SOCKETS: &[&str] = &["limits.socket.sessions=100000", "limits.door.connections=100000"];
}

/// What every scenario is given.
pub(crate) struct Stage {
    pub(crate) bench: Bench,
    pub(crate) clock: SystemClock,
    /// What each scenario lifted, in their order.
    lifted: Mutex<Vec<(String, Vec<String>)>>,
}

/// Runs the scenarios, one server each.
pub async fn run(bench: Bench, progress: impl Fn(&str)) -> Result<Report> {
    let on_servers = scenario::on_servers();
    let known: Vec<_> = scenario::all().into_iter().chain(on_servers.iter().copied()).collect();
    if let Some(unknown) = bench.scenarios.iter().find(|name| !known.iter().any(|(k, _)| k == *name)) {
        let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
        bail!("no scenario is called {unknown:?}; there are: {}", names.join(", "));
    }
    std::fs::create_dir_all(&bench.folder).with_context(|| format!("the folder {}", bench.folder.display()))?;
    let stage = Stage { bench, clock: SystemClock::new(), lifted: Mutex::default() };
    let mut report = Report::begin(&stage)?;
    for (name, scenario) in known {
        let needs_servers = on_servers.iter().any(|(known, _)| *known == name);
        if stage.bench.scenarios.is_empty() && !needs_servers || stage.bench.scenarios.iter().any(|s| s == name) {
            progress(name);
            scenario(&stage, &mut report).await.with_context(|| format!("scenario {name}"))?;
        }
    }
    report.lifted = stage.lifted.into_inner();
    Ok(report)
}

impl Stage {
    /// An empty folder of that name.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf> {
        let data = self.bench.folder.join(name);
        if data.exists() {
            std::fs::remove_dir_all(&data)?;
        }
        Ok(data)
    }

    /// A started server on an empty folder, with these groups of limits lifted.
    pub(crate) async fn server(&self, scenario: &str, lift: &[&[&'static str]]) -> Result<Server> {
        let data = self.folder(scenario)?;
        self.server_on(scenario, &data, lift).await
    }

    /// A started server on a folder that may hold something.
    pub(crate) async fn server_on(&self, scenario: &str, data: &Path, lift: &[&[&'static str]]) -> Result<Server> {
        let lifted = lift.iter().copied().flatten().map(|s| (*s).to_owned());
        let set: Vec<_> = lifted.chain(self.bench.set.iter().cloned()).collect();
        {
            let mut lifted = self.lifted.lock();
            if !lifted.iter().any(|(name, _)| name == scenario) {
                lifted.push((scenario.to_owned(), set.clone()));
            }
        }
        Ok(Server::launch(Launch { set, ..Launch::new(std::env::current_exe()?, data) }).await?)
    }

    /// What a stopped server keeps in a folder, or what it is to find there.
    pub(crate) async fn stores(&self, data: &Path) -> Result<Stores> {
        let settings = stores::Settings::folder(data.to_owned(), StoreLimits::default(), 300_000);
        Ok(Stores::open(settings, Arc::new(self.clock)).await?)
    }

    fn token(&self, server: &Server, who: Who) -> Result<String> {
        server.token(TENANT, who, self.clock.wall()).map_err(anyhow::Error::msg)
    }

    /// A server key.
    pub(crate) fn business(&self, server: &Server) -> Result<String> {
        self.token(server, Who::Server)
    }

    /// A token of an administrator.
    pub(crate) fn admin(&self, server: &Server) -> Result<String> {
        self.token(server, Who::Admin)
    }

    /// A token of a business user.
    pub(crate) fn business_user(&self, server: &Server, name: &str) -> Result<String> {
        self.token(server, Who::Business(Name::parse(name)?))
    }

    /// A token for each of these phones.
    pub(crate) fn phones(&self, server: &Server, numbers: impl IntoIterator<Item = usize>) -> Result<Vec<String>> {
        let token = |n| {
            let number = Phone::from_stored(&load::number(n)).context("a number")?;
            self.token(server, Who::Mobile(number))
        };
        numbers.into_iter().map(token).collect()
    }

    /// How long a load lasts.
    pub(crate) fn duration(&self) -> Duration {
        Duration::from_secs(self.bench.seconds)
    }
}
