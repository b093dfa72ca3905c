//! High before Low: the p99 of 500 High a second while more than 100,000 Low wait, beside the same alone.
//!
//! The Low are in the lane before the server starts, because no door takes them in faster than the dataflow takes them out;
//! the server's own count of what waits must stay above 100,000 during the whole window, or the scenario has failed.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;
use schemas::{Priority, record};
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        Report, Stage, lift,
        load::{Phones, Watch, message},
        measure::{Figure, Series},
    },
    closing, metric,
    open_loop::steady,
};
use crate::child::Server;

const NAME: &str = "priority";
const RATE: f64 = 500.0;
/// The window at most: what is in the lane lasts for so long.
const WINDOW: Duration = Duration::from_secs(5);
/// What must wait during the whole window.
const WAITING: f64 = 100_000.0;
/// What is in the lane before the start: what must wait, and what the dataflow takes while the window lasts.
const LOW: usize = 400_000;
/// The Low go to users who are away, so that only the High ones are in the phones' times.
const AWAY: std::ops::Range<usize> = 1_000_000..1_020_000;
/// Records appended by one call, and calls at once.
const AT_ONCE: usize = 1_000;
const TOGETHER: usize = 4;

async fn fill(stage: &Stage, data: &Path) -> Result<()> {
    let stores = stage.stores(data).await?;
    let partitions = stores.log.partitions();
    for first in (0..LOW).step_by(AT_ONCE * TOGETHER) {
        let calls = (0..TOGETHER).map(|call| {
            let from = first + call * AT_ONCE;
            let one = |n: usize| {
                let user = AWAY.start + n % AWAY.len();
                Ok(record::accepted(&message(stage.clock, user, Priority::Low, 300, n as u64)?, partitions))
            };
            (from..(from + AT_ONCE).min(LOW)).map(one).collect::<Result<Vec<_>>>()
        });
        let calls = calls.collect::<Result<Vec<_>>>()?;
        for outcomes in futures::future::join_all(calls.into_iter().map(|call| stores.log.append(call))).await {
            outcomes.into_iter().try_for_each(|outcome| outcome.map(|_| ()))?;
        }
    }
    stores.close().await;
    Ok(())
}

/// The least that waited in the Low lane, by the server's own count, until it is told to stop looking.
async fn least_waiting(listen: String, over: CancellationToken) -> Result<f64> {
    let mut least = f64::MAX;
    loop {
        least = least.min(metric(&listen, "esh3ar_lane_waiting", "lane=\"low\"").await?);
        tokio::select! {
            // The door counts every 100 ms.
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
            () = over.cancelled() => return Ok(least),
        }
    }
}

/// The times of the High ones of one window, after a second of warm-up, µs; and the least Low that waited meanwhile.
async fn high(stage: &Stage, server: &Server, watch: &Arc<Watch>) -> Result<(Histogram<u64>, f64)> {
    let users = stage.bench.users;
    steady(stage, server, watch, RATE, users, Priority::High, Duration::from_secs(1)).await?;
    let _warm_up = watch.take();
    let over = CancellationToken::new();
    let least = tokio::spawn(least_waiting(server.listen.clone(), over.clone()));
    steady(stage, server, watch, RATE, users, Priority::High, stage.duration().min(WINDOW)).await?;
    let times = watch.take();
    over.cancel();
    Ok((times, least.await??))
}

pub(crate) async fn run(stage: &Stage, report: &mut Report) -> Result<()> {
    let lifted = [lift::QUOTAS, lift::LANES];
    let (data, watch) = (stage.folder(NAME)?, Watch::new(stage.clock));
    let server = stage.server_on(NAME, &data, &lifted).await?;
    let tokens = stage.phones(&server, 0..stage.bench.users)?;
    let phones = Phones::connect(&server.listen, tokens.clone(), Some(watch.clone())).await?;
    let (alone, _) = high(stage, &server, &watch).await?;
    // Until all of it is acknowledged, or it would come again and be counted twice.
    closing::close(stage, report, "priority, High alone", &server, &watch, 0).await?;
    drop(phones);
    server.stop().await;

    fill(stage, &data).await?;
    let server = stage.server_on(NAME, &data, &lifted).await?;
    let _phones = Phones::connect(&server.listen, tokens, Some(watch.clone())).await?;
    let (beside, least) = high(stage, &server, &watch).await?;
    ensure!(least >= WAITING, "only {least} Low waited at some moment: this machine needs more of them than {LOW}");
    closing::close(stage, report, NAME, &server, &watch, LOW as u64).await?;
    server.stop().await;
    let p99 = |times: &Histogram<u64>| times.value_at_quantile(0.99) as f64 / 1e3;
    let (with, without) = (p99(&beside), p99(&alone));
    let name = format!("High p99, {RATE:.0} a second, with {least:.0} Low waiting at least");
    report.add(Figure::new(NAME, name, with, "ms").beside("High alone", without));
    report.add(Figure::new(NAME, "the same ÷ alone", with / without, "×").targets(3.0, 1.3));
    report.series.push(Series::new(NAME, &beside, Vec::new()));
    Ok(())
}
