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
use ingest::auth::Who;
use rand::Rng;
use schemas::{Clock, Phone, Status};
use serde::Serialize;
use serde_json::Value;
use tokio::task::JoinSet;

use super::{
    ledger::{self, Account, Stands},
    phones, senders,
    world::{Recipient, TENANTS, World},
};
use crate::child::{Launch, NotStarted, Server, free_ports};

/// Kills between two accounts.
const EVERY: u32 = 10;
/// Kills between two broadcasts.
const NEWS: u32 = 3;
/// Of the messages without a story of their own, one in so many is asked for by its id.
const SAMPLE: usize = 200;

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
    let world = Arc::new(people(drill, &victim.server, clock.clone())?);
    let mut tasks = JoinSet::new();
    for (n, person) in world.people.iter().enumerate() {
        if person.sleeps {
            tasks.spawn(phones::sleeper(world.clone(), n));
        } else {
            tasks.spawn(phones::phone(world.clone(), n));
            tasks.spawn(senders::singles(world.clone(), n));
        }
    }
    for tenant in 0..TENANTS.len() {
        tasks.spawn(senders::batches(world.clone(), tenant));
        tasks.spawn(senders::stories(world.clone(), tenant));
        tasks.spawn(senders::herald(world.clone(), tenant));
        tasks.spawn(senders::from_desk(world.clone(), tenant));
        tasks.spawn(phones::desk(world.clone(), tenant));
    }

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
            asked = check(drill, &world, &victim.server, asked, &mut report).await?;
            if !report.is_clean() {
                break;
            }
        }
    }
    world.over.cancel();
    tasks.shutdown().await;
    Ok(report)
}

fn people(drill: &KillDrill, server: &Server, clock: Arc<dyn Clock>) -> Result<World> {
    let token = |tenant: usize, who| server.token(TENANTS[tenant], who, clock.wall()).map_err(anyhow::Error::msg);
    let (tenants, mut people) = (0..TENANTS.len(), Vec::new());
    let sleepers = (drill.users / 4).max(TENANTS.len());
    for n in 0..drill.users + sleepers {
        let (number, tenant) = (format!("+96279{n:07}"), n % TENANTS.len());
        let who = Who::Mobile(Phone::from_stored(&number).context("a number")?);
        people.push(Recipient {
            tenant,
            token: token(tenant, who)?,
            number,
            sleeps: n >= drill.users,
            seen: Default::default(),
            repeats: Default::default(),
            repeats_in_session: Default::default(),
        });
    }
    let desk = || Ok::<_, anyhow::Error>(Who::Business("desk".parse().context("a name")?));
    Ok(World {
        url: format!("http://{}", server.listen),
        http: reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build()?,
        servers: tenants.clone().map(|tenant| token(tenant, Who::Server)).collect::<Result<_>>()?,
        desks: tenants.map(|tenant| token(tenant, desk()?)).collect::<Result<_>>()?,
        clock: clock.clone(),
        people,
        gate: Default::default(),
        awake: tokio::sync::watch::Sender::new(false),
        connected_sleepers: Default::default(),
        over: Default::default(),
        ledger: Default::default(),
        told: Default::default(),
        desk_connections: Default::default(),
        broadcasts: Default::default(),
        broken_batches: Default::default(),
        last_expiry: Default::default(),
        faults: Default::default(),
    })
}

/// Lets everything settle and accounts for every message; answers how far the ledger was asked about.
async fn check(drill: &KillDrill, world: &World, server: &Server, asked: usize, report: &mut Report) -> Result<usize> {
    // Until every sender knows what became of what it sent.
    let closed = world.gate.write().await;
    let wait = world.last_expiry.lock().ms_since(world.clock.wall()).max(1);
    tokio::time::sleep(Duration::from_millis(wait)).await;
    world.awake.send_replace(true);
    let until = world.clock.mono().plus(drill.settle_ms);
    let token = server.token("operators", Who::Admin, world.clock.wall()).map_err(anyhow::Error::msg)?;
    let (account, wrong) = loop {
        let seen: Vec<_> = world.people.iter().map(|person| person.seen.lock().clone()).collect();
        let sent = world.ledger.lock().clone();
        let account = ledger::account(&sent, &seen, TENANTS.len(), |n| world.people[n].tenant);
        let mut wrong = Vec::new();
        // The books cost a reading of the log: they are asked once the phones have what they should have.
        if account.faults.is_empty() || world.clock.mono() > until {
            wrong = books(world, server, &token, &account).await?;
        }
        if (account.faults.is_empty() && wrong.is_empty()) || world.clock.mono() > until {
            break (account, wrong);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    report.balanced &= wrong.is_empty();
    report.faults.extend(wrong);
    let upto = statuses(world, &account, asked, report).await;
    tell(world, account, report);
    world.awake.send_replace(false);
    while world.connected_sleepers.load(std::sync::atomic::Ordering::Acquire) > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(closed);
    Ok(upto)
}

/// What is wrong with the books: they do not balance, or say something else than was seen.
async fn books(world: &World, server: &Server, token: &str, account: &Account) -> Result<Vec<String>> {
    let url = format!("http://{}/admin/v1/books", server.admin);
    let books: Value = world.http.get(url).bearer_auth(token).send().await?.error_for_status()?.json().await?;
    let mut wrong = Vec::new();
    if books["balanced"] != true {
        wrong.push(format!("the books do not balance: {} residue {}", books["tenants"], books["residue"]));
    }
    for (tenant, expected) in TENANTS.iter().zip(&account.tenants) {
        if let Err(why) = ledger::books(expected, &books["tenants"][tenant]) {
            wrong.push(format!("{tenant}: {why}"));
        }
    }
    Ok(wrong)
}

/// Asks for messages by id and holds what was told of them against it; answers how far it came.
async fn statuses(world: &World, account: &Account, from: usize, report: &mut Report) -> usize {
    let sent = world.ledger.lock().clone();
    let mut told = std::collections::HashMap::<String, Vec<(u32, Status)>>::new();
    for (id, connection, status) in std::mem::take(&mut *world.told.lock()) {
        told.entry(id).or_default().push((connection, status));
        report.told += 1;
    }
    for n in ledger::sample(&sent, from, SAMPLE) {
        let (one, Some(stands)) = (&sent[n], account.stands[n]) else { continue };
        let Some(id) = &one.id else { continue };
        let tenant = world.people[one.to].tenant;
        let token = if one.by_desk { &world.desks[tenant] } else { &world.servers[tenant] };
        let (code, answer) = world.ask(http::Method::GET, &format!("/v1/messages/{id}"), token, None).await;
        report.asked += 1;
        let status = phones::word(&answer["status"]).filter(|_| code == 200);
        if !status.is_some_and(|status| stands.allows(status, answer["reason"].as_str())) {
            report.wrong_status += 1;
            report.faults.push(format!("{id} ({:?}) must be {stands:?} and is: {code} {answer}", one.promise));
        }
        report.seen_and_failed += u64::from(matches!(stands, Stands::Either(_)) && status == Some(Status::Failed));
        if let Some(Err(why)) = told.remove(id).map(|frames| ledger::told(&frames, stands)) {
            report.wrong_status += 1;
            report.faults.push(format!("{id}: {why}"));
        }
    }
    sent.len()
}

fn tell(world: &World, account: Account, report: &mut Report) {
    use std::sync::atomic::Ordering::Relaxed;
    let Account { accepted, lost, doubled, unwanted, out_of_order, expired, cancelled, faults, .. } = account;
    (report.accepted, report.lost, report.doubled, report.unwanted) = (accepted, lost, doubled, unwanted);
    (report.out_of_order, report.expired, report.cancelled) = (out_of_order, expired, cancelled);
    report.repeats = world.people.iter().map(|person| person.repeats.load(Relaxed)).sum();
    report.repeats_in_session = world.people.iter().map(|person| person.repeats_in_session.load(Relaxed)).sum();
    report.broken_batches = world.broken_batches.load(Relaxed);
    report.broadcasts = world.broadcasts.load(Relaxed) * TENANTS.len() as u64;
    report.faults.extend(faults);
    report.faults.append(&mut world.faults.lock());
    for (n, person) in world.people.iter().enumerate() {
        let twice = person.repeats_in_session.load(Relaxed);
        if twice > 0 {
            report.faults.push(format!("recipient {n} was sent {twice} messages twice on one connection"));
        }
    }
}
