//! Sockets that say nothing: memory and CPU of each, from the slope between few and many, beside those of a bare axum WebSocket
//! with the same settings and heartbeat.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::super::{
    Report, Stage,
    bare::Bare,
    lift,
    load::{Phones, number},
    measure::{Figure, resident, used},
};

const NAME: &str = "idle";
/// The sockets that are there before memory is first read, those that come then, and as much for the bare server: together
/// they fit the descriptors of one process where 20,000 are allowed.
const FEW: usize = 1_000;
const MANY: usize = 9_000;
const BARE_MANY: usize = 4_000;
/// Two heartbeats' time, so that each socket's are in it.
const WATCHED_S: u64 = 50;

/// Sockets that are held open, and what one costs in memory.
struct Held {
    phones: [Phones; 2],
    count: usize,
    bytes: f64,
}

async fn hold(address: &str, pid: u32, tokens: &[String]) -> Result<Held> {
    let (few, many) = tokens.split_at(FEW);
    let first = Phones::connect(address, few.to_vec(), None).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = resident(pid)?;
    let rest = Phones::connect(address, many.to_vec(), None).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let bytes = (resident(pid)? - before) / many.len() as f64;
    Ok(Held { phones: [first, rest], count: tokens.len(), bytes })
}

impl Held {
    fn check(&mut self) -> Result<()> {
        let holding: usize = self.phones.iter_mut().map(Phones::holding).sum();
        ensure!(holding == self.count, "only {holding} of {} sockets held", self.count);
        Ok(())
    }
}

pub(crate) async fn run(stage: &Stage, report: &mut Report) -> Result<()> {
    let bare = tokio::task::spawn_blocking(Bare::start).await??;
    let server = stage.server(NAME, &[lift::SOCKETS]).await?;
    let tokens = stage.phones(&server, 0..FEW + MANY)?;
    let mut ours = hold(&server.listen, server.pid(), &tokens).await?;
    let numbers: Vec<_> = (0..FEW + BARE_MANY).map(number).collect();
    let mut theirs = hold(&bare.address, bare.pid(), &numbers).await?;
    // Both at once: the machine is the same for them.
    let cpu = || Ok::<_, anyhow::Error>((used(server.pid())?.cpu_micros, used(bare.pid())?.cpu_micros));
    let before = cpu()?;
    tokio::time::sleep(Duration::from_secs(WATCHED_S)).await;
    let after = cpu()?;
    ours.check()?;
    theirs.check()?;
    let each = |micros: f64, held: &Held| micros / held.count as f64 / WATCHED_S as f64;
    let name = format!("memory per idle authenticated socket ({} held)", ours.count);
    report.add(
        Figure::new(NAME, name, ours.bytes / 1_000.0, "KB")
            .targets(12.0, 4.0)
            .beside(format!("bare axum WebSocket ({} held)", theirs.count), theirs.bytes / 1_000.0),
    );
    report.add(
        Figure::new(NAME, "CPU per idle socket, heartbeat 25 s", each(after.0 - before.0, &ours), "µs/s")
            .targets(4.0, 1.0)
            .beside("bare axum WebSocket", each(after.1 - before.1, &theirs)),
    );
    server.stop().await;
    Ok(())
}
