//! `esh3ar drill cluster`: real Kafka, Cassandra and Redis, several processes of each role, a load, and one fault after the
//! other: kills, stops, freezes longer than any session, rolling restarts, more and fewer processes, servers that die, networks
//! that are slow, thin, silent or cut. Then the account of every accepted message, the same as that of `esh3ar drill kill`.
//!
//! Of each fault it tells the longest silence that a client saw and the time to the full rate.

mod fault;
mod pulse;

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use ingest::auth::Who;
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use schemas::Clock;
use serde::Serialize;

pub use fault::{Class, Fault};

use self::pulse::Pulse;
use super::{
    account::{self, Asked},
    kill::Report,
    world::{Doors, Pace, World},
};
use crate::{
    cluster::{Cluster, Plan},
    compose::Role,
};

/// Faults between two accounts.
const EVERY: usize = 8;
/// How long the load runs before anything breaks, to know the full rate.
const WARM_UP: Duration = Duration::from_secs(10);
/// How long the full rate may take to come back before the drill goes on without it.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is asked whether anything waits still.
const ASKED_EVERY: Duration = Duration::from_millis(250);
/// Between two faults, after the full rate is back.
const BREATH: Duration = Duration::from_secs(2);

/// Quotas are lifted, and what is tried again is tried a little sooner than by default, so that many lives pass in minutes.
const SETTINGS: [&str; 11] = [
    "limits.store.partitions=6",
    "limits.flow.retry_first_ms=200",
    "limits.flow.ack_ms=3000",
    "limits.door.server_per_second=1000000",
    "limits.door.system_per_second=1000000",
    "limits.door.person_per_minute=1000000",
    "limits.door.person_per_hour=10000000",
    "limits.door.broadcasts_per_minute=1000000",
    "limits.door.lane_slow=1000000",
    "limits.door.lane_full=2000000",
    "limits.socket.drain_ms=1000",
];

/// What to do.
#[derive(Debug, Clone)]
pub struct ClusterDrill {
    /// How many faults.
    pub rounds: usize,
    /// Of which classes; each comes at least once where there are rounds enough.
    pub faults: Vec<Class>,
    /// What follows what, and where it strikes.
    pub seed: u64,
    /// How many recipients are connected; a quarter as many more sleep.
    pub users: usize,
    /// How much people send.
    pub pace: Pace,
    /// What a node of the history waits for before it answers ([`Plan::sync`]).
    pub sync: &'static str,
    /// How long a freeze or a bad network lasts, s.
    pub freeze_s: u64,
    /// How long everything may take to settle after a check began, ms.
    pub settle_ms: u64,
    /// Kafka brokers and Cassandra nodes.
    pub servers: (usize, usize),
    /// Processes that take in, that decide, that hold sockets.
    pub roles: (usize, usize, usize),
    /// Where the scripts are that start servers.
    pub stack: PathBuf,
    /// The binary; this one where it is not named.
    pub program: Option<PathBuf>,
    /// A folder that does not exist or is empty.
    pub folder: PathBuf,
    /// Settings beyond those of the drill.
    pub set: Vec<String>,
}

/// What one fault did to clients.
#[derive(Debug, Clone, Serialize)]
pub struct Told {
    /// What befell whom.
    pub fault: String,
    /// Its class.
    pub class: Class,
    /// The longest time that a connected client saw nothing, ms; as a client of its load sees it.
    pub silence_ms: u64,
    /// From the fault's beginning until the full rate was back, ms; where it did not come back in time, none.
    pub full_rate_ms: Option<u64>,
    /// From its end, where the fault lasts.
    pub after_end_ms: Option<u64>,
    /// From its beginning until no more than two seconds' load waited, ms: the next fault befalls a cluster that has caught up, so that
    /// what it costs is its own. `None`: not in time.
    pub caught_up_ms: Option<u64>,
}

/// What came of it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ClusterReport {
    /// The account, as that of `drill kill`; `kills` counts the faults.
    pub account: Report,
    /// Accepted messages a second, over all the time in which people sent: through the faults, without the accounts.
    pub accepted_per_second: f64,
    /// Deliveries a second before anything broke.
    pub full_rate: f64,
    /// The longest silence in that time, ms.
    pub calm_silence_ms: u64,
    /// What each fault did.
    pub faults: Vec<Told>,
    /// Memory of our processes together, bytes: before the first fault, and at the end.
    pub resident: (u64, u64),
    /// What was waiting in the lanes once the load had ended and everything had time to settle: must be nothing.
    pub waiting: u64,
    /// The seed, to see it again.
    pub seed: u64,
}

impl ClusterReport {
    /// Whether nothing was lost, doubled, disordered or unaccounted for.
    pub fn is_clean(&self) -> bool {
        self.account.is_clean()
    }

    /// The longest silence of a class, ms.
    pub fn silence_ms(&self, class: Class) -> u64 {
        self.faults.iter().filter(|told| told.class == class).map(|told| told.silence_ms).max().unwrap_or(0)
    }
}

/// Runs the drill. `progress` is told of every fault when it is over.
pub async fn run(drill: &ClusterDrill, clock: Arc<dyn Clock>, progress: impl Fn(&Told)) -> Result<ClusterReport> {
    let mut plan = Plan::small(
        drill.program.clone().map_or_else(std::env::current_exe, Ok)?,
        drill.stack.clone(),
        drill.folder.clone(),
    );
    let (ingest, pipelines, gateways) = drill.roles;
    plan = plan.count(Role::Ingest, ingest).count(Role::Pipeline, pipelines).count(Role::Gateway, gateways);
    (plan.kafka, plan.cassandra) = drill.servers;
    plan.sync = drill.sync;
    plan.proxied = true;
    plan.set = SETTINGS.iter().map(|set| (*set).to_owned()).chain(drill.set.iter().cloned()).collect();
    let mut cluster = Cluster::start(plan).await?;
    let world = Arc::new(world(drill, &cluster, clock.clone())?);
    let mut tasks = account::everybody(&world);

    let account = Report { balanced: true, ..Report::default() };
    let mut report = ClusterReport { account, seed: drill.seed, ..ClusterReport::default() };
    let pulse = Pulse::new(world.clone());
    tokio::time::sleep(WARM_UP / 2).await;
    (report.full_rate, report.calm_silence_ms) = pulse.calm(WARM_UP).await;
    report.resident.0 = resident(&cluster);

    let mut rng = StdRng::seed_from_u64(drill.seed);
    let order = order(drill, &mut rng);
    let mut asked = 0;
    for (round, class) in order.iter().enumerate() {
        let fault = Fault::choose(*class, &cluster, &mut rng);
        world.broadcasts.fetch_add(u64::from(round % 3 == 0), std::sync::atomic::Ordering::Release);
        let began = clock.mono();
        let watch = pulse.watch();
        let what = fault.befall(&mut cluster, drill.freeze_s).await;
        let name = what.with_context(|| format!("fault {} ({fault:?}) could not be made", round + 1))?;
        let ended = clock.mono();
        let full = watch.until_full(report.full_rate, PATIENCE).await;
        let few = (2.0 * report.full_rate) as u64;
        let waiting = until_few_wait(&cluster, &*clock, few, PATIENCE.as_millis() as u64).await;
        let caught_up = waiting.is_ok_and(|waiting| waiting <= few).then(|| clock.mono());
        let told = Told {
            fault: name,
            class: *class,
            silence_ms: watch.silence_ms(),
            full_rate_ms: full.map(|at| at.since(began)),
            after_end_ms: full.map(|at| at.since(ended)),
            caught_up_ms: caught_up.map(|at| at.since(began)),
        };
        progress(&told);
        report.faults.push(told);
        report.account.kills = round as u32 + 1;
        if (round + 1) % EVERY == 0 || round + 1 == order.len() {
            let ask = ask(&cluster, &*clock)?;
            asked = account::check(&world, &ask, drill.settle_ms, asked, &mut report.account).await?;
            if !report.is_clean() {
                break;
            }
        }
        tokio::time::sleep(BREATH).await;
    }
    report.resident.1 = resident(&cluster);
    report.accepted_per_second = report.account.accepted as f64 * 1e3 / world.open_ms().max(1) as f64;
    // What waits is counted when nobody sends any more: every group has to come to its end.
    world.over.cancel();
    tasks.shutdown().await;
    report.waiting = until_few_wait(&cluster, &*clock, 0, drill.settle_ms).await?;
    if report.is_clean() {
        cluster.stop().await?;
    }
    Ok(report)
}

fn world(drill: &ClusterDrill, cluster: &Cluster, clock: Arc<dyn Clock>) -> Result<World> {
    let at = |place: &str| format!("http://{place}");
    let doors = Doors { url: at(&cluster.front.address), sockets: at(&cluster.sockets.address) };
    let now = clock.wall();
    account::people(drill.users, doors, drill.pace, |tenant, who| cluster.token(tenant, who, now), clock)
}

fn ask(cluster: &Cluster, clock: &dyn Clock) -> Result<Asked> {
    let admin = cluster.members.iter().filter(|member| member.runs()).map(|member| member.admin()).collect();
    Ok(Asked { admin, token: cluster.token("operators", Who::Admin, clock.wall())? })
}

/// Each class as often as the others, in an order of its own.
fn order(drill: &ClusterDrill, rng: &mut StdRng) -> Vec<Class> {
    let mut order = Vec::new();
    while order.len() < drill.rounds {
        let mut all = drill.faults.clone();
        all.shuffle(rng);
        order.extend(all);
        if drill.faults.is_empty() {
            break;
        }
    }
    order.truncate(drill.rounds);
    order
}

/// Memory of our processes, bytes.
fn resident(cluster: &Cluster) -> u64 {
    let of = |pid: u32| crate::bench::resident(pid).unwrap_or(0.0) as u64;
    cluster.members.iter().filter_map(|member| member.pid()).map(of).sum()
}

/// Waits until no more than so many messages wait in the lanes, or the time is over; how many wait then. Who would tell may be
/// starting: it is asked again.
async fn until_few_wait(cluster: &Cluster, clock: &dyn Clock, few: u64, patience_ms: u64) -> Result<u64> {
    let until = clock.mono().plus(patience_ms);
    loop {
        let waiting = cluster.waiting(clock.wall()).await;
        if waiting.as_ref().is_ok_and(|waiting| *waiting <= few) || clock.mono() >= until {
            return waiting;
        }
        tokio::time::sleep(ASKED_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_comes_before_any_comes_again() {
        let drill = ClusterDrill {
            rounds: 2 * Class::ALL.len() + 1,
            faults: Class::ALL.to_vec(),
            seed: 1,
            users: 1,
            pace: Pace { slower: 1, rate: None },
            sync: "group",
            freeze_s: 1,
            settle_ms: 1,
            servers: (1, 1),
            roles: (1, 1, 1),
            stack: PathBuf::new(),
            program: None,
            folder: PathBuf::new(),
            set: Vec::new(),
        };
        let order = order(&drill, &mut StdRng::seed_from_u64(drill.seed));
        assert_eq!(order.len(), drill.rounds);
        for (half, _) in order.chunks(Class::ALL.len()).zip(0..2) {
            assert!(Class::ALL.iter().all(|class| half.contains(class)), "{half:?}");
        }
    }
}
