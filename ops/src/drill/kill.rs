//! `esh3ar drill kill`: `kill -9` at random moments under load, restart, and at every tenth kill and at the end an account of
//! every accepted message: seen once by a client that keeps its cursor, in order per recipient and lane, its status right, and
//! every tenant's books balanced.
//!
//! The load: two tenants; keyed singles and batches, lanes mixed, batches that break and are sent again; messages for later,
//! messages that expire while their recipient is away, messages taken back; broadcasts; business users who are told what
//! becomes of their messages; recipients who are connected and recipients who sleep. Restarts alternate at random between one
//! and two dataflow threads.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use rand::Rng;
use schemas::Clock;
use serde::Serialize;

use super::{
    account::{self, Asked},
    world::{Doors, Pace},
};
use crate::child::{Launch, NotStarted, Server, free_ports};

/// Kills between two accounts.
const EVERY: u32 = 10;
/// Kills between two broadcasts.
const NEWS: u32 = 3;

/// What to do.
#[derive(Debug, Clone)]
pub struct KillDrill {
    /// How many kills.
    pub rounds: u32,
    /// How many recipients are connected, each with a sender and a phone; a quarter as many more sleep.
    pub users: usize,
    /// The folder; it must not exist or be empty.
    pub data: PathBuf,
    /// How long everything may take to settle after a check began, ms.
    pub settle_ms: u64,
    /// Settings beyond those of the drill, e.g. the addresses of stores.
    pub set: Vec<String>,
}

/// What came of it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Kills made.
    pub kills: u32,
    /// Starts with two dataflow threads.
    pub starts_with_two: u32,
    /// Messages accepted.
    pub accepted: u64,
    /// Batches that broke, by a kill or by their sender, and were sent again.
    pub broken_batches: u64,
    /// Broadcasts, each to every recipient of its tenant.
    pub broadcasts: u64,
    /// Messages whose time passed before anyone could get them, as their senders wanted.
    pub expired: u64,
    /// Messages taken back.
    pub cancelled: u64,
    /// Seen, then ended by its time or its sender before anybody knew: allowed, the acknowledgement died with the server.
    pub seen_and_failed: u64,
    /// Status frames that business users were told.
    pub told: u64,
    /// Accepted and not seen by their phone when all had settled: must be zero.
    pub lost: u64,
    /// Seen under two names: must be zero.
    pub doubled: u64,
    /// Seen although expired, taken back, too early or sent by nobody: must be zero.
    pub unwanted: u64,
    /// Seen out of order: must be zero.
    pub out_of_order: u64,
    /// Sent twice on one connection: must be zero.
    pub repeats_in_session: u64,
    /// Sent again on a later connection: allowed, dropped by the client.
    pub repeats: u64,
    /// Asked for by id and answered with another status than it must have, or told wrongly: must be zero.
    pub wrong_status: u64,
    /// Asked for by id.
    pub asked: u64,
    /// Whether every tenant's books balanced and said what was seen at every check.
    pub balanced: bool,
    /// Longest restart until ready, ms.
    pub slowest_start_ms: u64,
    /// What was wrong, in words.
    pub faults: Vec<String>,
}

impl Report {
    /// Whether nothing was lost, doubled, disordered or unaccounted for.
    pub fn is_clean(&self) -> bool {
        self.faults.is_empty() && self.balanced
    }
}

/// Tiers and deadlines 1:100 and no quota, so that many lives pass in minutes.
const SETTINGS: [&str; 10] = [
    "limits.flow.retry_first_ms=10",
    "limits.flow.ack_ms=300",
    "limits.flow.due_every_ms=50",
    "limits.door.server_per_second=1000000",
    "limits.door.system_per_second=1000000",
    "limits.door.person_per_minute=1000000",
    "limits.door.person_per_hour=10000000",
    "limits.door.broadcasts_per_minute=1000000",
    "limits.door.lane_slow=1000000",
    "limits.door.lane_full=2000000",
];

/// The server under drill, and how it is started.
struct Victim {
    launch: Launch,
    server: Server,
}

impl Victim {
    async fn start(launch: &Launch, instances: u32) -> Result<Server, NotStarted> {
        let mut launch = launch.clone();
        launch.set.push(format!("instances={instances}"));
        Server::launch(launch).await
    }
}

/// Runs the drill. `progress` is told after every kill.
pub async fn run(drill: &KillDrill, clock: Arc<dyn Clock>, progress: impl Fn(u32)) -> Result<Report> {
    let set = SETTINGS.iter().map(|s| (*s).to_owned()).chain(drill.set.iter().cloned()).collect();
    let launch = Launch { set, ports: free_ports()?, ..Launch::new(std::env::current_exe()?, &drill.data) };
    let server = Victim::start(&launch, 1).await?;
    let mut victim = Victim { launch, server };
    let url = format!("http://{}", victim.server.listen);
    let token = |tenant: &str, who| victim.server.token(tenant, who, clock.wall()).map_err(anyhow::Error::msg);
    let pace = Pace { slower: 1, rate: None };
    let world =
        Arc::new(account::people(drill.users, Doors { url: url.clone(), sockets: url }, pace, token, clock.clone())?);
    let mut tasks = account::everybody(&world);

    let mut report = Report { balanced: true, ..Report::default() };
    let mut asked = 0;
    for round in 1..=drill.rounds {
        if round % NEWS == 1 {
            world.broadcasts.fetch_add(1, std::sync::atomic::Ordering::Release);
        }
        let moment = rand::rng().random_range(100..1_500);
        tokio::time::sleep(Duration::from_millis(moment)).await;
        victim.server.kill();
        let (began, instances) = (clock.mono(), rand::rng().random_range(1..=2));
        victim.server =
            Victim::start(&victim.launch, instances).await.with_context(|| format!("after kill {round}"))?;
        report.slowest_start_ms = report.slowest_start_ms.max(clock.mono().since(began));
        (report.kills, report.starts_with_two) = (round, report.starts_with_two + instances - 1);
        progress(round);
        if round % EVERY == 0 || round == drill.rounds {
            asked = account::check(&world, &Asked::new(&victim.server, &*clock)?, drill.settle_ms, asked, &mut report)
                .await?;
            if !report.is_clean() {
                break;
            }
        }
    }
    world.over.cancel();
    tasks.shutdown().await;
    Ok(report)
}
