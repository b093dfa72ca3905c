//! `esh3ar drill kill`: `kill -9` at random moments under load, restart, and at every tenth kill and at the end an account of
//! every accepted message: seen once, in order, delivered, and the books balanced.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use ingest::auth::Who;
use rand::Rng;
use schemas::{Clock, Phone};
use serde::Serialize;
use serde_json::Value;

use super::people::{Thread, World, phone, sender};
use crate::child::Server;

/// What to do.
#[derive(Debug, Clone)]
pub struct KillDrill {
    /// How many kills.
    pub rounds: u32,
    /// How many recipients, each with a sender and a phone.
    pub users: usize,
    /// The folder; it must not exist or be empty.
    pub data: PathBuf,
    /// How long everything may take to settle after a check began, ms.
    pub settle_ms: u64,
}

/// What came of it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Kills made.
    pub kills: u32,
    /// Messages accepted.
    pub accepted: u64,
    /// Accepted and not seen by their phone when all had settled: must be zero.
    pub lost: u64,
    /// Seen out of order: must be zero.
    pub out_of_order: u64,
    /// Sent twice on one connection: must be zero.
    pub repeats_in_session: u64,
    /// Sent again on a later connection: allowed, dropped by the client.
    pub repeats: u64,
    /// Seen and not `delivered` in the books when all had settled: must be zero.
    pub not_delivered: u64,
    /// Whether the books balanced at every check.
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
const SETTINGS: [&str; 7] = [
    "limits.flow.retry_first_ms=10",
    "limits.flow.ack_ms=300",
    "limits.flow.due_every_ms=50",
    "limits.door.server_per_second=1000000",
    "limits.door.system_per_second=1000000",
    "limits.door.lane_slow=1000000",
    "limits.door.lane_full=2000000",
];

/// Runs the drill. `progress` is told after every kill.
pub async fn run(drill: &KillDrill, clock: Arc<dyn Clock>, progress: impl Fn(u32)) -> Result<Report> {
    let mut server = Server::new(&drill.data, SETTINGS.map(str::to_owned).to_vec())?;
    server.start().await?;
    let world = Arc::new(World {
        url: server.url(),
        http: reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build()?,
        sending: AtomicBool::new(true),
        over: AtomicBool::new(false),
        threads: (0..drill.users).map(|_| Arc::new(Thread::default())).collect(),
    });
    let business = server.token(Who::Server, &*clock)?;
    let mut people = tokio::task::JoinSet::new();
    for n in 0..drill.users {
        let number = Phone::from_stored(&World::number(n)).context("a number")?;
        people.spawn(sender(world.clone(), n, business.clone()));
        people.spawn(phone(world.clone(), n, server.token(Who::Mobile(number), &*clock)?));
    }

    let mut report = Report { balanced: true, ..Report::default() };
    for round in 1..=drill.rounds {
        let moment = rand::rng().random_range(100..1_500);
        tokio::time::sleep(Duration::from_millis(moment)).await;
        server.kill().await?;
        let began = clock.mono();
        server.start().await.with_context(|| format!("the start after kill {round}"))?;
        report.slowest_start_ms = report.slowest_start_ms.max(clock.mono().since(began));
        report.kills = round;
        progress(round);
        if round % 10 == 0 || round == drill.rounds {
            check(drill, &world, &server, &*clock, &mut report).await?;
            if !report.is_clean() {
                break;
            }
        }
    }
    world.over.store(true, Ordering::Relaxed);
    while people.join_next().await.is_some() {}
    server.kill().await?;
    Ok(report)
}

/// Lets everything settle and accounts for every message.
async fn check(
    drill: &KillDrill,
    world: &World,
    server: &Server,
    clock: &dyn Clock,
    report: &mut Report,
) -> Result<()> {
    world.sending.store(false, Ordering::Relaxed);
    let until = clock.mono().plus(drill.settle_ms);
    let mut books = Value::Null;
    loop {
        let accepted: u64 = world.threads.iter().map(|t| t.accepted.load(Ordering::Acquire)).sum();
        let seen: u64 = world.threads.iter().map(|t| t.seen.lock().len() as u64).sum();
        if let Ok(now) = server.admin(&world.http, "/admin/v1/books", clock).await {
            books = now;
        }
        let total = &books["total"];
        let settled = seen >= accepted && total["delivered"].as_u64() >= Some(accepted) && total["unrecorded"] == 0;
        if settled || clock.mono() > until {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    account(world, &books, report);
    world.sending.store(true, Ordering::Relaxed);
    Ok(())
}

fn account(world: &World, books: &Value, report: &mut Report) {
    (report.accepted, report.lost, report.out_of_order) = (0, 0, 0);
    (report.repeats, report.repeats_in_session) = (0, 0);
    for (n, thread) in world.threads.iter().enumerate() {
        let accepted = thread.accepted.load(Ordering::Acquire);
        let seen = thread.seen.lock().clone();
        // A message whose answer was lost in the kill may be seen one ahead of what its sender knows.
        let missing: Vec<_> = (0..accepted).filter(|number| !seen.contains(number)).collect();
        let disorder = seen.windows(2).filter(|pair| pair[1] <= pair[0]).count() as u64;
        if !missing.is_empty() {
            let ids = thread.ids.lock();
            let named: Vec<_> = missing.iter().take(5).filter_map(|m| ids.get(*m as usize)).cloned().collect();
            report.faults.push(format!(
                "{} of {accepted} messages to recipient {n} never arrived, e.g. {named:?}",
                missing.len()
            ));
        }
        if disorder > 0 {
            report.faults.push(format!("recipient {n} saw {disorder} messages out of order: {seen:?}"));
        }
        let twice = thread.repeats_in_session.load(Ordering::Relaxed);
        if twice > 0 {
            report.faults.push(format!("recipient {n} was sent {twice} messages twice on one connection"));
        }
        report.accepted += accepted;
        report.lost += missing.len() as u64;
        report.out_of_order += disorder;
        report.repeats += thread.repeats.load(Ordering::Relaxed);
        report.repeats_in_session += twice;
    }
    let total = &books["total"];
    report.not_delivered = report.accepted.saturating_sub(total["delivered"].as_u64().unwrap_or(0));
    if report.not_delivered > 0 {
        report
            .faults
            .push(format!("{} messages were seen and are not delivered in the books: {books}", report.not_delivered));
    }
    if books["balanced"] != true {
        report.balanced = false;
        report.faults.push(format!("the books do not balance: {books}"));
    }
}
