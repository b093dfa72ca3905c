//! Single `POST`s over 256 connections with delivery running: how many a second, beside a bare axum that answers 202 at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Result;

use super::{
    super::{
        Report, Stage,
        bare::Bare,
        lift,
        load::{Conn, Phones, Watch, content, number},
        measure::{Figure, Series, bare_syncs, histogram},
    },
    closing,
};

const CONNECTIONS: usize = 256;

/// How many single posts a second a door takes, and how long each took, µs.
async fn posts(
    stage: &Stage,
    address: &str,
    token: &str,
    users: usize,
    sent: &Arc<Watch>,
) -> Result<(f64, hdrhistogram::Histogram<u64>, Vec<u64>)> {
    let (done, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut people = tokio::task::JoinSet::new();
    for n in 0..CONNECTIONS {
        let (done, over, clock, sent) = (done.clone(), over.clone(), stage.clock, sent.clone());
        let mut conn = Conn::open(address, token).await?;
        people.spawn(async move {
            let (mut times, mut next) = (histogram(), n);
            while !over.load(Ordering::Relaxed) {
                let now = clock.micros();
                let body = format!(
                    "{{\"to\":\"{}\",\"content\":\"{}\"}}",
                    number(next % users),
                    content(now, 300, next as u64)
                );
                sent.sent.fetch_add(1, Ordering::Relaxed);
                let (status, answer) = conn.post("/v1/messages", "application/json", body.as_bytes()).await?;
                anyhow::ensure!(status == 202, "{status}: {}", String::from_utf8_lossy(&answer));
                times.saturating_record(clock.micros() - now);
                done.fetch_add(1, Ordering::Relaxed);
                next += CONNECTIONS;
            }
            Ok::<_, anyhow::Error>(times)
        });
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (begin, at) = (done.load(Ordering::Relaxed), stage.clock.micros());
    let (mut per_second, mut last) = (Vec::new(), begin);
    for _ in 0..stage.bench.seconds {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = done.load(Ordering::Relaxed);
        per_second.push(now - last);
        last = now;
    }
    let rate = (done.load(Ordering::Relaxed) - begin) as f64 / ((stage.clock.micros() - at) as f64 / 1e6);
    over.store(true, Ordering::Relaxed);
    let mut all = histogram();
    while let Some(times) = people.join_next().await {
        all.add(times??)?;
    }
    Ok((rate, all, per_second))
}

pub(crate) async fn run(stage: &Stage, report: &mut Report) -> Result<()> {
    const NAME: &str = "singles";
    let users = stage.bench.users;
    let bare = tokio::task::spawn_blocking(Bare::start).await??;
    let (bare_rate, _, _) = posts(stage, &bare.address, "none", users, &Watch::new(stage.clock)).await?;
    drop(bare);

    let server = stage.server(NAME, &[lift::QUOTAS, lift::LANES]).await?;
    let (address, watch) = (&server.listen, Watch::new(stage.clock));
    let _phones = Phones::connect(address, stage.phones(&server, 0..users)?, Some(watch.clone())).await?;
    let probe = {
        let (folder, clock, how_long) = (stage.bench.folder.clone(), stage.clock, stage.duration());
        tokio::task::spawn_blocking(move || bare_syncs(&folder, clock, how_long, Duration::from_millis(20)))
    };
    let (rate, times, per_second) = posts(stage, address, &stage.business(&server)?, users, &watch).await?;
    let sync = probe.await??;
    closing::close(stage, report, NAME, &server, &watch, 0).await?;
    server.stop().await;
    let allowed = 0.6 * CONNECTIONS as f64 / (sync.value_at_quantile(0.5) as f64 / 1e6);
    report.add(
        Figure::new(NAME, "single POSTs a second, 256 connections, delivery running", rate, "/s")
            .targets(8_000.0, allowed.min(20_000.0))
            .beside("a bare axum that answers 202 at once", bare_rate),
    );
    report.add(Figure::new(NAME, "accept p50, closed loop at peak", times.value_at_quantile(0.5) as f64 / 1e3, "ms"));
    report.add(
        Figure::new(NAME, "accept p99, closed loop at peak", times.value_at_quantile(0.99) as f64 / 1e3, "ms")
            .beside("bare sync p99 during the load", sync.value_at_quantile(0.99) as f64 / 1e3),
    );
    report.series.push(Series::new(NAME, &times, per_second));
    report.singles_peak = Some(rate);
    Ok(())
}
