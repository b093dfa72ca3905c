//! Sockets that say nothing: memory and CPU of each, from the slope between few and many.

use std::time::Duration;

use anyhow::Result;

use super::super::{
    Report, Stage,
    load::Phones,
    measure::{Figure, resident, used},
};

pub(crate) async fn run(stage: &Stage, report: &mut Report) -> Result<()> {
    const NAME: &str = "idle";
    let (few, many) = (1_000, 9_000);
    let mut server = stage.server(NAME, &[]).await?;
    let pid = server.pid().unwrap_or_default();
    let tokens = stage.phones(&server, few + many)?;
    let mut first = Phones::connect(&server.address(), tokens[..few].to_vec(), None).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = resident(pid)?;
    let mut rest = Phones::connect(&server.address(), tokens[few..].to_vec(), None).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let memory = (resident(pid)? - before) / many as f64;
    // Two heartbeats' time, so that each socket's are in it.
    let (cpu, seconds) = (used(pid)?.cpu_micros, 50);
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let cpu = (used(pid)?.cpu_micros - cpu) / (few + many) as f64 / seconds as f64;
    let holding = first.holding() + rest.holding();
    anyhow::ensure!(holding == few + many, "only {holding} of {} sockets held", few + many);
    server.stop().await?;
    report.add(
        Figure::new(NAME, format!("memory per idle authenticated socket ({holding} held)"), memory / 1_000.0, "KB")
            .targets(12.0, 4.0),
    );
    report.add(Figure::new(NAME, "CPU per idle socket, heartbeat 25 s", cpu, "µs/s").targets(4.0, 1.0));
    Ok(())
}
