//! Latency at a given rate, open loop: end to end at 5,000 a second, accepting at 70 % of the peak, and what a message costs
//! when few come (1,000 a second: wake-ups count).

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use anyhow::Result;
use parking_lot::Mutex;
use schemas::Priority;

use super::{
    super::{
        Report, Stage,
        bare::Bare,
        lift,
        load::{Conn, Phones, Watch, content, number},
        measure::{Figure, Series, bare_syncs, histogram, used},
    },
    closing,
};
use crate::child::Server;

const CONNECTIONS: usize = 256;

/// Sends singles at a steady rate for so long; the time from when each was meant to be sent to its answer, µs.
pub(super) async fn steady(
    stage: &Stage,
    server: &Server,
    watch: &Arc<Watch>,
    rate: f64,
    users: usize,
    priority: Priority,
    how_long: Duration,
) -> Result<hdrhistogram::Histogram<u64>> {
    steady_at(stage, &server.listen, &stage.business(server)?, watch, rate, users, priority, how_long).await
}

/// The same at a door that is named, by whoever holds this token.
#[allow(clippy::too_many_arguments, reason = "a load is all of these")]
pub(super) async fn steady_at(
    stage: &Stage,
    address: &str,
    token: &str,
    watch: &Arc<Watch>,
    rate: f64,
    users: usize,
    priority: Priority,
    how_long: Duration,
) -> Result<hdrhistogram::Histogram<u64>> {
    let times = Arc::new(Mutex::new(histogram()));
    let mut people = tokio::task::JoinSet::new();
    let connections = CONNECTIONS.min((rate / 4.0).max(8.0) as usize);
    let every = connections as f64 * 1e6 / rate;
    let start = stage.clock.micros() + 50_000;
    let end = start + how_long.as_micros() as u64;
    for n in 0..connections {
        let (clock, times, watch, priority) = (stage.clock, times.clone(), watch.clone(), priority.word());
        let mut conn = Conn::open(address, token).await?;
        people.spawn(async move {
            let mut k = 0u64;
            loop {
                let meant = start + ((n as f64 / connections as f64 + k as f64) * every) as u64;
                if meant > end {
                    return Ok::<_, anyhow::Error>(());
                }
                let now = clock.micros();
                if meant > now {
                    tokio::time::sleep(Duration::from_micros(meant - now)).await;
                }
                let user = number((n + k as usize * connections) % users);
                let body = format!(
                    "{{\"to\":\"{user}\",\"content\":\"{}\",\"priority\":\"{priority}\"}}",
                    content(meant, 300, k)
                );
                watch.sent.fetch_add(1, Ordering::Relaxed);
                let (status, answer) = conn.post("/v1/messages", "application/json", body.as_bytes()).await?;
                anyhow::ensure!(status == 202, "{status}: {}", String::from_utf8_lossy(&answer));
                times.lock().saturating_record((clock.micros().saturating_sub(meant)).max(1));
                k += 1;
            }
        });
    }
    while let Some(ended) = people.join_next().await {
        ended??;
    }
    let all = times.lock().clone();
    Ok(all)
}

/// CPU of a process for a message it delivers at 1,000 a second, µs.
async fn quiet(stage: &Stage, address: &str, token: &str, pid: u32, watch: &Arc<Watch>) -> Result<f64> {
    let before = (used(pid)?, watch.items.load(Ordering::Relaxed));
    let (users, how_long) = (stage.bench.users, stage.duration());
    steady_at(stage, address, token, watch, 1_000.0, users, Priority::Normal, how_long).await?;
    let items = (watch.items.load(Ordering::Relaxed) - before.1).max(1) as f64;
    Ok((used(pid)?.cpu_micros - before.0.cpu_micros) / items)
}

/// The same for bare axum: HTTP and WebSockets without a log, a history or a promise.
async fn bare(stage: &Stage, users: usize) -> Result<f64> {
    let bare = tokio::task::spawn_blocking(Bare::start).await??;
    let watch = Watch::new(stage.clock);
    let _phones = Phones::connect(&bare.address, (0..users).map(number).collect(), Some(watch.clone())).await?;
    quiet(stage, &bare.address, "none", bare.pid(), &watch).await
}

pub(crate) async fn run(stage: &Stage, report: &mut Report) -> Result<()> {
    const NAME: &str = "latency";
    let users = stage.bench.users;
    let bare = bare(stage, users).await?;
    let server = stage.server(NAME, &[lift::QUOTAS, lift::LANES]).await?;
    let (pid, watch) = (server.pid(), Watch::new(stage.clock));
    let tokens = stage.phones(&server, 0..users)?;
    let _phones = Phones::connect(&server.listen, tokens, Some(watch.clone())).await?;
    steady(stage, &server, &watch, 2_000.0, users, Priority::Normal, Duration::from_secs(2)).await?;

    // Few messages: what each costs when every one wakes everything.
    let cpu = quiet(stage, &server.listen, &stage.business(&server)?, pid, &watch).await?;
    report.add(
        Figure::new(NAME, "CPU per delivered message at 1,000 a second", cpu, "µs")
            .targets(300.0, 100.0)
            .beside("bare axum, the same pushed to the same sockets, nothing kept", bare),
    );
    let few = watch.take();
    report.add(Figure::new(NAME, "end to end p50 at 1,000 a second", few.value_at_quantile(0.5) as f64 / 1e3, "ms"));

    let probe = |how_long| {
        let (folder, clock) = (stage.bench.folder.clone(), stage.clock);
        tokio::task::spawn_blocking(move || bare_syncs(&folder, clock, how_long, Duration::from_millis(20)))
    };
    let sync = probe(stage.duration());
    steady(stage, &server, &watch, 5_000.0, users, Priority::Normal, stage.duration()).await?;
    let sync_ms = sync.await??.value_at_quantile(0.99) as f64 / 1e3;
    let whole = watch.take();
    let (p50, p99) = (whole.value_at_quantile(0.5) as f64 / 1e3, whole.value_at_quantile(0.99) as f64 / 1e3);
    report.add(Figure::new(NAME, "end to end p50 at 5,000 a second", p50, "ms").targets(20.0, 5.0));
    report.add(
        Figure::new(NAME, "end to end p99 at 5,000 a second", p99, "ms")
            .targets(100.0, (6.0 * sync_ms).max(20.0))
            .beside("bare sync p99 during the load", sync_ms),
    );
    report.series.push(Series::new(NAME, &whole, Vec::new()));

    if let Some(peak) = report.singles_peak {
        let sync = probe(stage.duration());
        let times = steady(stage, &server, &watch, 0.7 * peak, users, Priority::Normal, stage.duration()).await?;
        let sync_ms = sync.await??.value_at_quantile(0.99) as f64 / 1e3;
        let p99 = times.value_at_quantile(0.99) as f64 / 1e3;
        report.add(
            Figure::new(NAME, format!("accept p99 at 70 % of peak ({:.0} a second)", 0.7 * peak), p99, "ms")
                .targets(100.0, 4.0 * sync_ms)
                .beside("bare sync p99 during the load", sync_ms),
        );
    }
    closing::close(stage, report, NAME, &server, &watch, 0).await?;
    server.stop().await;
    Ok(())
}
