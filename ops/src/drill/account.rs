//! The people of a drill, and the account of every message that was accepted: what every drill has alike, whatever it breaks.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use ingest::auth::Who;
use schemas::{Clock, Phone, Status};
use serde_json::Value;
use tokio::task::JoinSet;

use super::{
    kill::Report,
    ledger::{self, Account, Stands},
    phones, senders,
    world::{Doors, Pace, Recipient, TENANTS, World},
};
use crate::child::Server;

/// Of the messages without a story of their own, one in so many is asked for by its id.
const SAMPLE: usize = 200;
/// How long it is asked again what became of one of them, ms.
const TOLD_MS: u64 = 30_000;

/// Where the books are asked for.
pub(super) struct Asked {
    /// The administrators' doors, as `host:port`; the first that answers is heard.
    pub(super) admin: Vec<String>,
    /// An operator's token.
    pub(super) token: String,
}

impl Asked {
    /// Of one server.
    pub(super) fn new(server: &Server, clock: &dyn Clock) -> Result<Self> {
        let token = server.token("operators", Who::Admin, clock.wall()).map_err(anyhow::Error::msg)?;
        Ok(Self { admin: vec![server.admin.clone()], token })
    }

    async fn books(&self, world: &World) -> Result<Value> {
        let mut last = anyhow::anyhow!("nobody was asked for the books");
        for admin in &self.admin {
            let asked = world.http.get(format!("http://{admin}/admin/v1/books")).bearer_auth(&self.token);
            match asked.timeout(BOOKS).send().await.and_then(reqwest::Response::error_for_status) {
                Ok(answer) => return Ok(answer.json().await?),
                Err(why) => last = why.into(),
            }
        }
        Err(last)
    }
}

/// How long the books may take: they read the whole log.
const BOOKS: Duration = Duration::from_secs(120);

/// Starts everybody: phones, sleepers, senders, business users.
pub(super) fn everybody(world: &Arc<World>) -> JoinSet<()> {
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
    tasks
}

/// The people of a drill: so many who are connected, and a quarter as many more who sleep. `mint` makes a token of a tenant.
pub(super) fn people(
    users: usize,
    doors: Doors,
    pace: Pace,
    mint: impl Fn(&str, Who) -> Result<String>,
    clock: Arc<dyn Clock>,
) -> Result<World> {
    let token = |tenant: usize, who| mint(TENANTS[tenant], who);
    let (tenants, mut people) = (0..TENANTS.len(), Vec::new());
    let sleepers = (users / 4).max(TENANTS.len());
    for n in 0..users + sleepers {
        let (number, tenant) = (format!("+96279{n:07}"), n % TENANTS.len());
        let who = Who::Mobile(Phone::from_stored(&number).context("a number")?);
        people.push(Recipient {
            tenant,
            token: token(tenant, who)?,
            number,
            sleeps: n >= users,
            seen: Default::default(),
            repeats: Default::default(),
            repeats_in_session: Default::default(),
        });
    }
    let desk = || Ok::<_, anyhow::Error>(Who::Business("desk".parse().context("a name")?));
    Ok(World {
        doors,
        pace,
        http: reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build()?,
        servers: tenants.clone().map(|tenant| token(tenant, Who::Server)).collect::<Result<_>>()?,
        desks: tenants.map(|tenant| token(tenant, desk()?)).collect::<Result<_>>()?,
        began: clock.mono(),
        closed_ms: Default::default(),
        clock,
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
pub(super) async fn check(
    world: &World,
    ask: &Asked,
    settle_ms: u64,
    asked: usize,
    report: &mut Report,
) -> Result<usize> {
    // Until every sender knows what became of what it sent.
    let closed = world.gate.write().await;
    let since = world.clock.mono();
    let wait = world.last_expiry.lock().ms_since(world.clock.wall()).max(1);
    tokio::time::sleep(Duration::from_millis(wait)).await;
    world.awake.send_replace(true);
    let until = world.clock.mono().plus(settle_ms);
    let (account, wrong) = loop {
        let seen: Vec<_> = world.people.iter().map(|person| person.seen.lock().clone()).collect();
        let sent = world.ledger.lock().clone();
        let account = ledger::account(&sent, &seen, TENANTS.len(), |n| world.people[n].tenant);
        let mut wrong = Vec::new();
        // The books cost a reading of the log: they are asked once the phones have what they should have.
        if account.faults.is_empty() || world.clock.mono() > until {
            wrong = books(world, ask, &account).await?;
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
    world.closed_ms.fetch_add(world.clock.mono().since(since), std::sync::atomic::Ordering::AcqRel);
    drop(closed);
    Ok(upto)
}

/// What is wrong with the books: they do not balance, or say something else than was seen.
async fn books(world: &World, ask: &Asked, account: &Account) -> Result<Vec<String>> {
    let books = ask.books(world).await?;
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
        let (code, answer) = told_of(world, id, token).await;
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

/// What is told of a message; asked again for a while where nobody could tell just then.
async fn told_of(world: &World, id: &str, token: &str) -> (u16, serde_json::Value) {
    let until = world.clock.mono().plus(TOLD_MS);
    loop {
        let (code, answer) = world.ask(http::Method::GET, &format!("/v1/messages/{id}"), token, None).await;
        if !matches!(code, 0 | 500..) || world.clock.mono() > until {
            return (code, answer);
        }
        tokio::time::sleep(phones::AGAIN).await;
    }
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
