//! The main job at full speed: batch door → sync → dataflow → history → socket → acknowledgement, with as many messages in
//! flight as keep the backlog bounded. Gives messages a second, CPU, syncs and bytes per message.

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
        load::{Conn, Phones, Watch, batch, content, count_accepted, number},
        measure::{Figure, Series, used},
    },
    counter,
};

/// Messages of one batch request, and how many may be under way: enough to keep every stage busy, few enough that latency
/// is the pipeline's and not the queue's.
const BATCH: usize = 500;
const UNDER_WAY: u64 = 5_000;

/// What one run at full speed came to.
struct Peak {
    per_second: f64,
    cpu_micros: f64,
    per_sync: f64,
    written: f64,
    per_frame: f64,
    series: Series,
}

async fn peak(stage: &Stage, users: usize, bytes: usize) -> Result<Peak> {
    let mut server = stage.server("end-to-end", &[]).await?;
    let pid = server.pid().unwrap_or_default();
    let watch = Watch::new(stage.clock);
    let _phones = Phones::connect(&server.address(), stage.phones(&server, users)?, Some(watch.clone())).await?;
    let (sent, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut senders = tokio::task::JoinSet::new();
    for lane in 0..2usize {
        let (sent, over, watch, clock) = (sent.clone(), over.clone(), watch.clone(), stage.clock);
        let mut conn = Conn::open(&server.address(), &stage.business(&server)?).await?;
        senders.spawn(async move {
            let mut next = lane * users / 2;
            while !over.load(Ordering::Relaxed) {
                if sent.load(Ordering::Relaxed).saturating_sub(watch.items.load(Ordering::Relaxed)) > UNDER_WAY {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    continue;
                }
                let now = clock.micros();
                let items = (next..next + BATCH).map(|n| (number(n % users), content(now, bytes, n as u64)));
                let body = batch(items, "normal");
                next += BATCH;
                sent.fetch_add(BATCH as u64, Ordering::Relaxed);
                let (_, answer) = conn.post("/v1/messages/batch", "application/x-ndjson", &body).await?;
                let refused = BATCH as u64 - count_accepted(&answer);
                anyhow::ensure!(
                    refused == 0,
                    "{refused} messages were refused: {}",
                    String::from_utf8_lossy(&answer[..answer.len().min(400)])
                );
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let _warm_up = watch.take();
    let begin =
        (watch.items.load(Ordering::Relaxed), watch.frames.load(Ordering::Relaxed), used(pid)?, stage.clock.micros());
    let syncs = counter(&server, "esh3ar_store_syncs_total").await?;
    let mut per_second = Vec::new();
    let mut last = begin.0;
    for _ in 0..stage.bench.seconds {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = watch.items.load(Ordering::Relaxed);
        per_second.push(now - last);
        last = now;
    }
    let end =
        (watch.items.load(Ordering::Relaxed), watch.frames.load(Ordering::Relaxed), used(pid)?, stage.clock.micros());
    let syncs = counter(&server, "esh3ar_store_syncs_total").await? - syncs;
    let latency = watch.take();
    over.store(true, Ordering::Relaxed);
    while let Some(ended) = senders.join_next().await {
        ended??;
    }
    server.stop().await?;
    let items = (end.0 - begin.0).max(1) as f64;
    Ok(Peak {
        per_second: items / ((end.3 - begin.3) as f64 / 1e6),
        cpu_micros: (end.2.cpu_micros - begin.2.cpu_micros) / items,
        per_sync: items / syncs.max(1.0),
        written: (end.2.written - begin.2.written) / items,
        per_frame: items / (end.1 - begin.1).max(1) as f64,
        series: Series::new("end-to-end", &latency, per_second),
    })
}

pub(crate) async fn run(stage: &Stage, report: &mut Report) -> Result<()> {
    const NAME: &str = "end-to-end";
    let users = stage.bench.users;
    let peak = peak(stage, users, 300).await?;
    report.add(
        Figure::new(NAME, format!("messages a second, batch door, {users} users"), peak.per_second, "/s")
            .targets(10_000.0, 30_000.0),
    );
    let cpu = format!("CPU per delivered message at peak ({:.1} items a frame)", peak.per_frame);
    report.add(
        Figure::new(NAME, cpu, peak.cpu_micros, "µs").targets(100.0, if peak.per_frame >= 5.0 { 20.0 } else { 35.0 }),
    );
    report.add(Figure::new(NAME, "messages per sync, batch door at peak", peak.per_sync, "").targets(50.0, 200.0));
    report.add(
        Figure::new(NAME, "bytes written per 300-byte message ÷ 300", peak.written / 300.0, "×").targets(10.0, 6.0),
    );
    report.series.push(peak.series);
    Ok(())
}

/// Whether a message costs more with many users than with few.
pub(crate) async fn users(stage: &Stage, report: &mut Report) -> Result<()> {
    const NAME: &str = "users";
    let few = peak(stage, 100, 300).await?;
    let many = peak(stage, 7_500, 300).await?;
    report.add(
        Figure::new(NAME, "CPU per message, 7,500 users", many.cpu_micros, "µs").beside("100 users", few.cpu_micros),
    );
    report.add(
        Figure::new(NAME, "messages a second, 7,500 users", many.per_second, "/s").beside("100 users", few.per_second),
    );
    Ok(())
}
