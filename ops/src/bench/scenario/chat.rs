//! Chat between two sockets: how long a message takes to the other side, and there and back, at 1,000 and 5,000 messages a
//! second, beside the same over bare axum that keeps nothing; what a message costs the store; and what more devices cost.

use std::{sync::atomic::Ordering, time::Duration};

use anyhow::{Result, ensure};

use super::{
    super::{
        Report, Stage,
        bare::Bare,
        lift,
        load::{Manner, Talkers, Tally, business, number},
        measure::{Figure, Series, used},
        report::number as figure,
    },
    metric,
};
use crate::child::Server;

const NAME: &str = "chat";
const DEVICES: &str = "devices";
/// Messages a second, answers counted.
const RATES: [f64; 2] = [1_000.0, 5_000.0];
/// Before anything is counted: every pair's conversation is open by then.
const WARM_S: f64 = 3.0;
/// How long what is on its way may take to arrive after a load.
const SETTLE: Duration = Duration::from_secs(60);
/// Where devices are compared: users with one device each, and with ten, and messages to them a second.
const USERS: usize = 100;
const MANY: usize = 10;
const TO_DEVICES: f64 = 300.0;

/// The phone begins, and the business answers.
const BOTH_WAYS: Manner = Manner { phone_begins: true, answers: true, devices: 1 };

fn tokens(stage: &Stage, server: &Server, pairs: usize) -> Result<Vec<(String, String)>> {
    let phones = stage.phones(server, 0..pairs)?;
    let one = |(n, phone)| Ok((phone, stage.business_user(server, &business(n))?));
    phones.into_iter().enumerate().map(one).collect()
}

/// What one rate came to: p50 and p99 there, and there and back, ms.
struct Times {
    there: [f64; 2],
    back: [f64; 2],
    series: Series,
}

async fn load(stage: &Stage, talkers: &Talkers, tally: &Tally, rate: f64) -> Result<Times> {
    tally.take();
    // Half of the messages are answers.
    talkers.talk(rate / 2.0, stage.duration()).await?;
    let lost = talkers.settle(SETTLE).await;
    tally.check()?;
    ensure!(lost == 0, "{lost} messages at {rate} a second did not arrive");
    let [there, back] = tally.take();
    let of = |times: &hdrhistogram::Histogram<u64>| [0.5, 0.99].map(|q| times.value_at_quantile(q) as f64 / 1e3);
    let series = Series::new(&format!("{NAME} at {rate:.0}, there and back"), &back, Vec::new());
    Ok(Times { there: of(&there), back: of(&back), series })
}

async fn warm_up(talkers: &Talkers, tally: &Tally, pairs: usize) -> Result<()> {
    let rate = (pairs as f64 / WARM_S).max(300.0);
    talkers.talk(rate, Duration::from_secs_f64((pairs as f64 / rate).max(WARM_S))).await?;
    let lost = talkers.settle(SETTLE).await;
    tally.check()?;
    ensure!(lost == 0, "{lost} messages of the warm-up did not arrive");
    Ok(())
}

pub(crate) async fn run(stage: &Stage, report: &mut Report) -> Result<()> {
    let pairs = stage.bench.users * 3;
    let bare = tokio::task::spawn_blocking(Bare::start).await??;
    let nobody = (0..pairs).map(|n| (number(n), format!("business:{}", business(n)))).collect();
    let tally = Tally::new(stage.clock);
    let talkers = Talkers::connect(&bare.address, nobody, BOTH_WAYS, &tally).await?;
    warm_up(&talkers, &tally, pairs).await?;
    let mut beside = Vec::new();
    for rate in RATES {
        beside.push(load(stage, &talkers, &tally, rate).await?);
    }
    drop((talkers, bare));

    let server = stage.server(NAME, &[lift::QUOTAS, lift::LANES, lift::SOCKETS, lift::PEOPLE]).await?;
    let tally = Tally::new(stage.clock);
    let talkers = Talkers::connect(&server.listen, tokens(stage, &server, pairs)?, BOTH_WAYS, &tally).await?;
    warm_up(&talkers, &tally, pairs).await?;
    for (rate, bare) in RATES.into_iter().zip(beside) {
        let counters = async || -> Result<[f64; 3]> {
            let syncs = metric(&server.listen, "esh3ar_store_syncs_total", "").await?;
            let writes = metric(&server.listen, "esh3ar_store_writes_total", "").await?;
            Ok([syncs, writes, tally.heard.load(Ordering::Relaxed) as f64])
        };
        let (before, cpu) = (counters().await?, used(server.pid())?.cpu_micros);
        let times = load(stage, &talkers, &tally, rate).await?;
        let (after, cpu) = (counters().await?, used(server.pid())?.cpu_micros - cpu);
        let messages = (after[2] - before[2]).max(1.0);
        let at = format!("at {} messages a second, {} pairs", figure(rate, ""), figure(pairs as f64, ""));
        let name = |what: &str| format!("{what} {at}");
        for (n, q) in ["p50", "p99"].into_iter().enumerate() {
            let targets = if q == "p50" { (50.0, 10.0) } else { (100.0, 20.0) };
            report.add(
                Figure::new(NAME, name(&format!("to the other socket {q}")), times.there[n], "ms")
                    .beside("bare axum, nothing kept", bare.there[n]),
            );
            report.add(
                Figure::new(NAME, name(&format!("there and back {q}")), times.back[n], "ms")
                    .targets(targets.0, targets.1)
                    .beside("bare axum, nothing kept", bare.back[n]),
            );
        }
        report.add(Figure::new(NAME, name("CPU per message"), cpu / messages, "µs"));
        report.add(Figure::new(
            NAME,
            name("rows written per message, log, inboxes, facts and cursors together"),
            (after[1] - before[1]) / messages,
            "",
        ));
        report.add(Figure::new(NAME, name("messages per sync"), messages / (after[0] - before[0]).max(1.0), ""));
        report.series.push(times.series);
    }
    drop(talkers);
    server.stop().await;
    Ok(())
}

/// CPU of a message from a business to users with so many devices each, µs.
async fn with_devices(stage: &Stage, devices: usize) -> Result<f64> {
    let server = stage.server(DEVICES, &[lift::QUOTAS, lift::LANES, lift::SOCKETS, lift::PEOPLE]).await?;
    let tally = Tally::new(stage.clock);
    let manner = Manner { phone_begins: false, answers: false, devices };
    let talkers = Talkers::connect(&server.listen, tokens(stage, &server, USERS)?, manner, &tally).await?;
    warm_up(&talkers, &tally, USERS).await?;
    let (before, heard) = (used(server.pid())?.cpu_micros, tally.heard.load(Ordering::Relaxed));
    talkers.talk(TO_DEVICES, stage.duration()).await?;
    let lost = talkers.settle(SETTLE).await;
    tally.check()?;
    ensure!(lost == 0, "{lost} messages did not arrive");
    // Acknowledgements follow by a tenth of a second and cost too.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let heard = (tally.heard.load(Ordering::Relaxed) - heard).max(1) as f64;
    let cost = (used(server.pid())?.cpu_micros - before) / heard;
    drop(talkers);
    server.stop().await;
    Ok(cost)
}

/// A message to ten devices of one user beside a message to one.
pub(crate) async fn devices(stage: &Stage, report: &mut Report) -> Result<()> {
    let one = with_devices(stage, 1).await?;
    let many = with_devices(stage, MANY).await?;
    let name = format!("CPU per message to {MANY} devices of one user, {TO_DEVICES:.0} a second to {USERS} users");
    report.add(Figure::new(DEVICES, name, many, "µs").beside("to one device", one));
    report.add(Figure::new(DEVICES, format!("CPU to {MANY} devices ÷ to one"), many / one, "×").targets(10.0, 4.0));
    Ok(())
}
