//! The main job at full speed: batch door → sync → dataflow → history → socket → acknowledgement, with as many messages in
//! flight as keep the backlog bounded. Gives messages a second, CPU, syncs and bytes per message, beside the same over bare
//! axum (no log, no history, no promise) and beside the embedded log alone.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use schemas::{Priority, port::Append, record};

use super::{
    super::{
        Report, Stage,
        bare::Bare,
        lift,
        load::{ACKNOWLEDGE, Conn, Phones, Watch, batch, content, count_accepted, message, number},
        measure::{Curve, Figure, Series, used},
    },
    closing, metric,
};

const NAME: &str = "end-to-end";

/// Senders at once, messages of one batch request, and how many may be under way: enough to keep every stage busy, few enough
/// that latency is the pipeline's and not the queue's.
const SENDERS: usize = 4;
const BATCH: usize = 500;
const UNDER_WAY: u64 = 5_000;
/// Messages that a sender writes to the same users where not all are written to by turns: a second's worth and more.
const STAY: usize = 5_000;
/// Bytes of a content.
const BYTES: usize = 300;
/// Batches in the log's hands at once where the log is measured alone: as many as the senders have.
const TOGETHER: usize = SENDERS;

/// What one run at full speed came to.
pub(super) struct Peak {
    pub(super) per_second: f64,
    pub(super) cpu_micros: f64,
    /// Messages per sync and bytes written per message, where something is kept.
    kept: Option<(f64, f64)>,
    /// Items in a frame, and acknowledgements for an item.
    pub(super) per_frame: f64,
    pub(super) acks: f64,
    most_under_way: u64,
    series: Series,
}

/// Who is loaded: a server, or the bare one.
struct Target<'a> {
    address: &'a str,
    pid: u32,
    token: String,
    /// Whether it keeps what it takes, and counts its syncs.
    keeps: bool,
}

/// Who is written to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recipients {
    /// Connected users.
    pub(super) users: usize,
    /// How many of them are written to at a time; the next ones follow after some seconds.
    pub(super) at_a_time: usize,
}

impl Recipients {
    /// All by turns.
    pub(super) fn all(users: usize) -> Self {
        Self { users, at_a_time: users }
    }

    /// Whom a sender's `n`th message is for. Each sender has a share of the users.
    fn of(&self, sender: usize, n: usize) -> usize {
        let (share, some) = ((self.users / SENDERS).max(1), (self.at_a_time / SENDERS).max(1));
        (sender * share + (n / STAY * some + n % some) % share) % self.users
    }
}

/// One run at full speed against a server of its own. Lanes take turns, batch by batch.
pub(super) async fn peak(
    stage: &Stage,
    report: &mut Report,
    scenario: &str,
    to: Recipients,
    lanes: &[Priority],
) -> Result<Peak> {
    peak_of(stage, report, scenario, to, lanes, &[], ACKNOWLEDGE).await
}

/// The same with further settings, and phones that acknowledge so long after a frame.
pub(super) async fn peak_of(
    stage: &Stage,
    report: &mut Report,
    scenario: &str,
    to: Recipients,
    lanes: &[Priority],
    set: &[&'static str],
    acknowledge: Duration,
) -> Result<Peak> {
    let server = stage.server(scenario, &[lift::QUOTAS, lift::LANES, lift::SOCKETS, set]).await?;
    let watch = Watch::new(stage.clock);
    let phones = stage.phones(&server, 0..to.users)?;
    let target = Target { address: &server.listen, pid: server.pid(), token: stage.business(&server)?, keeps: true };
    let phones = Phones::connect_that(target.address, phones, Some(watch.clone()), acknowledge).await?;
    let peak = load(stage, &target, &watch, to, lanes).await?;
    closing::close(stage, report, scenario, &server, &watch, 0).await?;
    drop(phones);
    server.stop().await;
    Ok(peak)
}

async fn load(
    stage: &Stage,
    target: &Target<'_>,
    watch: &Arc<Watch>,
    to: Recipients,
    lanes: &[Priority],
) -> Result<Peak> {
    let over = Arc::new(AtomicBool::new(false));
    let mut senders = tokio::task::JoinSet::new();
    for sender in 0..SENDERS {
        let (over, watch, clock, lanes) = (over.clone(), watch.clone(), stage.clock, lanes.to_vec());
        let mut conn = Conn::open(target.address, &target.token).await?;
        senders.spawn(async move {
            let (mut next, mut turn) = (0, sender);
            while !over.load(Ordering::Relaxed) {
                if watch.under_way() > UNDER_WAY {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    continue;
                }
                let now = clock.micros();
                let items = (next..next + BATCH)
                    .map(|n| (number(to.of(sender, n)), content(now, BYTES, (n * SENDERS + sender) as u64)));
                let body = batch(items, lanes[turn % lanes.len()].word());
                (next, turn) = (next + BATCH, turn + 1);
                watch.sent.fetch_add(BATCH as u64, Ordering::Relaxed);
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
    let syncs = || async {
        match target.keeps {
            true => metric(target.address, "esh3ar_store_syncs_total", "").await,
            false => Ok(0.0),
        }
    };
    let now = || Ok::<_, anyhow::Error>((watch.counts(), used(target.pid)?, stage.clock.micros()));
    let (begin, synced) = (now()?, syncs().await?);
    let (mut per_second, mut last, mut most) = (Vec::new(), begin.0.items, 0);
    for _ in 0..stage.bench.seconds {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let items = watch.counts().items;
        per_second.push(items - last);
        (last, most) = (items, watch.under_way().max(most));
    }
    let (end, synced) = (now()?, syncs().await? - synced);
    let latency = watch.take();
    over.store(true, Ordering::Relaxed);
    while let Some(ended) = senders.join_next().await {
        ended??;
    }
    let items = (end.0.items - begin.0.items).max(1) as f64;
    Ok(Peak {
        per_second: items / ((end.2 - begin.2) as f64 / 1e6),
        cpu_micros: (end.1.cpu_micros - begin.1.cpu_micros) / items,
        kept: target.keeps.then(|| (items / synced.max(1.0), (end.1.written - begin.1.written) / items)),
        per_frame: items / (end.0.frames - begin.0.frames).max(1) as f64,
        acks: (end.0.acks - begin.0.acks) as f64 / items,
        most_under_way: most,
        series: Series::new(NAME, &latency, per_second),
    })
}

/// The same load over bare axum: HTTP, JSON lines and WebSockets without a log, a history or a promise.
async fn bare(stage: &Stage, users: usize) -> Result<Peak> {
    let bare = tokio::task::spawn_blocking(Bare::start).await??;
    let watch = Watch::new(stage.clock);
    let target = Target { address: &bare.address, pid: bare.pid(), token: "none".to_owned(), keeps: false };
    let _phones = Phones::connect(target.address, (0..users).map(number).collect(), Some(watch.clone())).await?;
    load(stage, &target, &watch, Recipients::all(users), &[Priority::Normal]).await
}

/// The embedded log alone, in this process: durable appends of batches of the same size. Records a second, and CPU for each
/// with making it left out.
async fn bare_log(stage: &Stage, users: usize) -> Result<(f64, f64)> {
    let data = stage.folder("bare-log")?;
    let stores = stage.stores(&data).await?;
    let partitions = stores.log.partitions();
    let batches: Vec<Vec<Append>> = (0..40)
        .map(|b| {
            let one = |n| {
                Ok(record::accepted(&message(stage.clock, n % users, Priority::Normal, BYTES, n as u64)?, partitions))
            };
            (b * BATCH..(b + 1) * BATCH).map(one).collect::<Result<_>>()
        })
        .collect::<Result<_>>()?;
    let (began, before) = (stage.clock.micros(), used(std::process::id())?.cpu_micros);
    let end = began + stage.duration().as_micros().min(5_000_000) as u64;
    let mut appended = 0;
    'load: for group in batches.chunks(TOGETHER).cycle() {
        for outcomes in futures::future::join_all(group.iter().map(|batch| stores.log.append(batch.clone()))).await {
            for outcome in outcomes {
                outcome?;
                appended += 1;
            }
        }
        if stage.clock.micros() > end {
            break 'load;
        }
    }
    let seconds = (stage.clock.micros() - began) as f64 / 1e6;
    let cpu = (used(std::process::id())?.cpu_micros - before) / appended as f64;
    stores.close().await;
    std::fs::remove_dir_all(&data)?;
    Ok((appended as f64 / seconds, cpu))
}

pub(crate) async fn run(stage: &Stage, report: &mut Report) -> Result<()> {
    let users = stage.bench.users;
    let bare = bare(stage, users).await?;
    let (log_rate, log_cpu) = bare_log(stage, users).await?;
    let peak = peak(stage, report, NAME, Recipients::all(users), &[Priority::Normal]).await?;
    let what = "bare axum, the same batches pushed to the same sockets, nothing kept";
    report.add(
        Figure::new(NAME, format!("messages a second, batch door, {users} users"), peak.per_second, "/s")
            .targets(10_000.0, 30_000.0)
            .beside(what, bare.per_second),
    );
    let name = format!(
        "CPU per delivered message at peak ({:.1} items a frame, {:.2} acknowledgements each)",
        peak.per_frame, peak.acks
    );
    report.add(
        Figure::new(NAME, name, peak.cpu_micros, "µs")
            .targets(100.0, if peak.per_frame >= 5.0 { 20.0 } else { 35.0 })
            .beside("bare axum", bare.cpu_micros),
    );
    report.add(Figure::new(NAME, format!("embedded log alone, durable, batches of {BATCH}"), log_rate, "/s"));
    report.add(Figure::new(NAME, "embedded log alone, CPU per record", log_cpu, "µs"));
    if let Some((per_sync, written)) = peak.kept {
        report.add(Figure::new(NAME, "messages per sync, batch door at peak", per_sync, "").targets(50.0, 200.0));
        let name = format!("bytes written per {BYTES}-byte message ÷ {BYTES}");
        report.add(Figure::new(NAME, name, written / BYTES as f64, "×").targets(10.0, 6.0));
    }
    let name = format!("most messages on their way at any second (bound: {})", UNDER_WAY + (SENDERS * BATCH) as u64);
    report.add(Figure::new(NAME, name, peak.most_under_way as f64, "messages"));
    report.series.push(peak.series);
    Ok(())
}

/// A curve of peaks: the CPU of a message at each size, with what explains it.
pub(super) fn curve(scenario: &'static str, size: &'static str, peaks: &[(f64, Peak)]) -> [Curve; 2] {
    let of = |what: &str, value: fn(&Peak) -> f64| Curve {
        scenario,
        what: what.to_owned(),
        size,
        points: peaks.iter().map(|(x, peak)| (*x, value(peak))).collect(),
    };
    [of("CPU per message at peak, µs", |p| p.cpu_micros), of("messages a second", |p| p.per_second)]
}
