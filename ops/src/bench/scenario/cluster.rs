//! The whole way on real servers: one Kafka, one Cassandra, one Redis, one process of each role. Messages a second at full
//! speed, what a message costs each process, rows and requests of the history for each, end to end latency at 2,000 a second,
//! and what a message costs our processes where two and three pipelines share the partitions.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use ingest::auth::Who;
use schemas::{Clock, Phone, Priority};

use super::{
    super::{
        Report, Stage, TENANT, lift,
        load::{Conn, Phones, Watch, batch, content, count_accepted, number},
        measure::{Curve, Figure, Series, used},
    },
    metric,
    open_loop::steady_at,
};
use crate::{
    cluster::{Cluster, Plan},
    compose::Role,
};

const NAME: &str = "cluster";
/// Senders at once, messages of one batch request, and how many may be under way.
const SENDERS: usize = 4;
const BATCH: usize = 500;
const UNDER_WAY: u64 = 5_000;
/// Bytes of a content.
const BYTES: usize = 300;
/// The rate at which latency is asked.
const RATE: f64 = 2_000.0;
/// One that two processors carry with all servers on them.
const CALM: f64 = 500.0;
/// How long the servers run at full speed before anything is measured: in their first minutes the compilers of Kafka and
/// Cassandra take as much of the processors as the work itself.
const WARM_UP: Duration = Duration::from_secs(240);
/// The same once they are warm, when the load changes.
const SETTLE_IN: Duration = Duration::from_secs(5);
/// Pipelines at most.
const PIPELINES: usize = 3;
/// How long what is under way may take to arrive once the load has ended.
const SETTLE: Duration = Duration::from_secs(60);

/// A process, and what it had used.
struct Part {
    name: String,
    pid: u32,
    ours: bool,
}

fn parts(cluster: &Cluster) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    for member in &cluster.members {
        let pid = member.pid().with_context(|| format!("{} does not run", member.name))?;
        parts.push(Part { name: member.role.word().to_owned(), pid, ours: true });
    }
    for (name, nodes) in [("kafka", &cluster.kafka), ("cassandra", &cluster.cassandra), ("redis", &cluster.redis)] {
        let pid = nodes.pid(1)?.as_raw_nonzero().get();
        parts.push(Part { name: name.to_owned(), pid: u32::try_from(pid)?, ours: false });
    }
    Ok(parts)
}

/// What was used by each, µs of CPU.
fn cpu(parts: &[Part]) -> Result<Vec<f64>> {
    parts.iter().map(|part| Ok(used(part.pid)?.cpu_micros)).collect()
}

/// Rows and requests of the history by all of our processes.
async fn traffic(cluster: &Cluster) -> (f64, f64) {
    let mut sum = (0.0, 0.0);
    for member in &cluster.members {
        let of = async |name: &str| metric(&member.admin(), name, "").await.unwrap_or(0.0);
        sum.0 += of("esh3ar_history_rows_total").await;
        sum.1 += of("esh3ar_history_requests_total").await;
    }
    sum
}

pub(crate) async fn run(stage: &Stage, report: &mut Report) -> Result<()> {
    let users = stage.bench.users;
    let folder = std::path::absolute(stage.folder(NAME)?)?;
    let mut plan = Plan::small(std::env::current_exe()?, stage.bench.stack.clone(), folder);
    plan.long = true;
    plan.sync = "periodic";
    plan.set = [lift::QUOTAS, lift::LANES, lift::SOCKETS].concat().iter().map(|s| (*s).to_owned()).collect();
    plan.set.push("limits.store.partitions=6".to_owned());
    plan.set.extend(stage.bench.set.iter().cloned());
    let mut cluster = Cluster::start(plan).await?;
    let now = stage.clock.wall();
    let of = |role: Role| cluster.of(role).first().map(|n| cluster.members[*n].listen()).context("a process");
    let (door, sockets) = (of(Role::Ingest)?, of(Role::Gateway)?);
    let business = cluster.token(TENANT, Who::Server, now)?;
    let phone = |n: usize| cluster.token(TENANT, Who::Mobile(Phone::from_stored(&number(n)).context("a number")?), now);
    let tokens = (0..users).map(phone).collect::<Result<Vec<_>>>()?;
    let watch = Watch::new(stage.clock);
    let _phones = Phones::connect(&sockets, tokens, Some(watch.clone())).await?;

    // Full speed.
    let (speed, latency) = full_speed(stage, &cluster, &watch, &door, &business, WARM_UP).await?;
    let name = format!("messages a second, one process of each role, {users} users");
    report.add(Figure::new(NAME, name, speed.rate, "/s"));
    let ours = Figure::new(NAME, "our CPU per delivered message at full speed", speed.ours(), "µs");
    report.add(ours.targets(250.0, 120.0));
    for (part, spent) in &speed.spent {
        report.add(Figure::new(NAME, format!("CPU of {} per delivered message", part.name), *spent, "µs"));
    }
    report.add(Figure::new(NAME, "history rows written per delivered message", speed.rows, "").targets(5.0, 3.0));
    report.add(Figure::new(NAME, "history rows per request", speed.per_request, "").targets(5.0, 15.0));
    report.series.push(Series::new(NAME, &latency, speed.per_second.clone()));

    settled(&watch).await?;
    let parts = parts(&cluster)?;
    let before = cpu(&parts)?;
    let items = watch.counts().items;
    let accepted = steady_at(stage, &door, &business, &watch, RATE, users, Priority::Normal, stage.duration()).await?;
    let spent: f64 =
        cpu(&parts)?.iter().zip(&before).zip(&parts).filter(|(_, p)| p.ours).map(|((now, was), _)| now - was).sum();
    let whole = watch.take();
    let ms = |of: &hdrhistogram::Histogram<u64>, q| of.value_at_quantile(q) as f64 / 1e3;
    report.add(Figure::new(NAME, "end to end p50 at 2,000 a second", ms(&whole, 0.5), "ms").targets(50.0, 15.0));
    report.add(Figure::new(NAME, "end to end p99 at 2,000 a second", ms(&whole, 0.99), "ms").targets(500.0, 60.0));
    report.add(Figure::new(NAME, "accept p99 at 2,000 a second", ms(&accepted, 0.99), "ms").targets(100.0, 20.0));
    let items = (watch.counts().items - items).max(1) as f64;
    report.add(Figure::new(NAME, "our CPU per delivered message at 2,000 a second", spent / items, "µs"));

    // What the way takes where the servers leave the processors time.
    settled(&watch).await?;
    steady_at(stage, &door, &business, &watch, CALM, users, Priority::Normal, stage.duration()).await?;
    let calm = watch.take();
    report.add(Figure::new(NAME, "end to end p50 at 500 a second", ms(&calm, 0.5), "ms"));
    report.add(Figure::new(NAME, "end to end p99 at 500 a second", ms(&calm, 0.99), "ms"));

    // More pipelines.
    let mut points = vec![(1.0, speed.ours())];
    for pipelines in 2..=PIPELINES {
        settled(&watch).await?;
        let added = cluster.add(Role::Pipeline)?;
        cluster.members[added].start().await?;
        let (speed, _) = full_speed(stage, &cluster, &watch, &door, &business, SETTLE_IN).await?;
        points.push((pipelines as f64, speed.ours()));
    }
    let what = "our CPU per delivered message at full speed, µs".to_owned();
    report.curve(Curve { scenario: NAME, what, size: "pipelines", points });
    settled(&watch).await?;
    cluster.stop().await
}

/// What full speed is.
struct Speed {
    /// Deliveries a second.
    rate: f64,
    per_second: Vec<u64>,
    /// CPU of each process for a delivered message, µs.
    spent: Vec<(Part, f64)>,
    /// Rows of the history for one.
    rows: f64,
    /// Rows of one request.
    per_request: f64,
}

impl Speed {
    fn ours(&self) -> f64 {
        self.spent.iter().filter(|(part, _)| part.ours).map(|(_, spent)| spent).sum()
    }
}

/// As many as go through, by way of the batch door.
async fn full_speed(
    stage: &Stage,
    cluster: &Cluster,
    watch: &Arc<Watch>,
    door: &str,
    business: &str,
    warm_up: Duration,
) -> Result<(Speed, hdrhistogram::Histogram<u64>)> {
    let (users, parts) = (stage.bench.users, parts(cluster)?);
    let over = Arc::new(AtomicBool::new(false));
    let mut senders = tokio::task::JoinSet::new();
    for sender in 0..SENDERS {
        let (over, watch, clock) = (over.clone(), watch.clone(), stage.clock);
        let mut conn = Conn::open(door, business).await?;
        senders.spawn(async move {
            let mut next = sender * users / SENDERS;
            while !over.load(Ordering::Relaxed) {
                if watch.under_way() > UNDER_WAY {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    continue;
                }
                let now = clock.micros();
                let items = (next..next + BATCH).map(|n| (number(n % users), content(now, BYTES, n as u64)));
                let body = batch(items, Priority::Normal.word());
                next += BATCH;
                watch.sent.fetch_add(BATCH as u64, Ordering::Relaxed);
                let (_, answer) = conn.post("/v1/messages/batch", "application/x-ndjson", &body).await?;
                anyhow::ensure!(count_accepted(&answer) == BATCH as u64, "a batch was refused");
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    tokio::time::sleep(warm_up).await;
    let _warm_up = watch.take();
    let (before, wrote, items, at) = (cpu(&parts)?, traffic(cluster).await, watch.counts().items, stage.clock.micros());
    let (mut per_second, mut last) = (Vec::new(), items);
    for _ in 0..stage.bench.seconds {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = watch.counts().items;
        per_second.push(now - last);
        last = now;
    }
    let (after, written) = (cpu(&parts)?, traffic(cluster).await);
    let (items, seconds) = ((watch.counts().items - items).max(1) as f64, (stage.clock.micros() - at) as f64 / 1e6);
    let latency = watch.take();
    over.store(true, Ordering::Relaxed);
    while let Some(ended) = senders.join_next().await {
        ended??;
    }
    let spent = before.iter().zip(&after).map(|(before, after)| (after - before) / items);
    let (rows, requests) = (written.0 - wrote.0, written.1 - wrote.1);
    let speed = Speed {
        rate: items / seconds,
        per_second,
        spent: parts.into_iter().zip(spent).collect(),
        rows: rows / items,
        per_request: rows / requests.max(1.0),
    };
    Ok((speed, latency))
}

/// Waits until what was under way has arrived, and forgets how long it took, or its wait would count in what follows.
async fn settled(watch: &Watch) -> Result<()> {
    let settled = tokio::time::timeout(SETTLE, async {
        while watch.under_way() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    settled.await.with_context(|| format!("{} messages did not arrive", watch.under_way()))?;
    let _before = watch.take();
    Ok(())
}
