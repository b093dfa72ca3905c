//! With much kept: start to ready, catch-up of 1,000 messages beside the bare reading of them from history, and whether a
//! message costs more than with little kept.

use std::{path::Path, sync::Arc, sync::atomic::Ordering, time::Duration};

use anyhow::{Result, ensure};
use schemas::{
    Clock, Epoch, Inbox, Position, Priority,
    port::{Entry, Schedule},
};

use super::{
    super::{
        Report, Stage, lift,
        load::{Phones, Watch, message},
        measure::{Curve, Figure, used},
        report::number,
    },
    closing,
    open_loop::steady,
};

const NAME: &str = "kept";
/// The user who catches up, and how much waits for it: no other load goes to it.
const CATCHER: usize = 5_000_000;
const WAITING: usize = 1_000;
/// Messages of every other user, and the users who are connected: as many whatever is kept, so that nothing else differs.
const EACH: usize = 100;
const USERS: usize = 100;
/// Entries written at once.
const AT_ONCE: usize = 1_000;
/// Messages a second while the cost of one is measured.
const RATE: f64 = 2_000.0;

/// Fills a folder through the History port, in bulk: the messages of so many users, and those of the one who catches up.
async fn fill(stage: &Stage, data: &Path, users: usize) -> Result<()> {
    let stores = stage.stores(data).await?;
    let partitions = stores.log.partitions();
    let mut entries = Vec::with_capacity(2 * AT_ONCE);
    let mut made = 0;
    let place = |k| if k == 0 { Position::START } else { Position { epoch: Epoch(0), n: k } };
    for (user, own) in std::iter::once((CATCHER, WAITING)).chain((0..users).map(|user| (user, EACH))) {
        for k in 1..=own as u64 {
            let message = message(stage.clock, user, Priority::Normal, 300, made)?;
            let inbox = Inbox { user: message.to.clone(), partition: message.partition(partitions) };
            entries.push(Entry {
                inbox,
                position: place(k),
                prev: place(k - 1),
                one_way: k,
                recorded_at: stage.clock.wall(),
                seq: None,
                message: Arc::new(message),
                end: None,
            });
            made += 1;
            if entries.len() >= AT_ONCE {
                stores.history.record(&entries, &Schedule::default()).await?;
                entries.clear();
            }
        }
    }
    stores.history.record(&entries, &Schedule::default()).await?;
    stores.close().await;
    Ok(())
}

/// Reads what waits for the one who catches up from a folder that nobody else has open; ms.
async fn bare_read(stage: &Stage, data: &Path) -> Result<f64> {
    let stores = stage.stores(data).await?;
    let sample = message(stage.clock, CATCHER, Priority::Normal, 1, 0)?;
    let inbox = sample.inbox(stores.log.partitions());
    let (began, mut from, mut read) = (stage.clock.micros(), Position::START, 0);
    while read < WAITING {
        let span = stores.history.read(&inbox, from, 100).await?;
        let Some((last, _)) = span.entries.last() else { break };
        (from, read) = (last.position, read + span.entries.len());
    }
    let ms = (stage.clock.micros() - began) as f64 / 1e3;
    ensure!(read == WAITING, "{read} of {WAITING} messages were there");
    stores.close().await;
    Ok(ms)
}

/// What a folder with so many messages comes to: (start s, catch-up ms, bare reading ms, CPU µs a message).
async fn measure(stage: &Stage, report: &mut Report, kept: usize) -> Result<[f64; 4]> {
    let data = stage.folder(&format!("{NAME}-{kept}"))?;
    fill(stage, &data, kept / EACH).await?;
    let read = bare_read(stage, &data).await?;
    let began = stage.clock.micros();
    let server = stage.server_on(NAME, &data, &[lift::QUOTAS, lift::LANES, lift::SOCKETS]).await?;
    let ready = (stage.clock.micros() - began) as f64 / 1e6;
    let address = &server.listen;

    let (caught, began) = (Watch::new(stage.clock), stage.clock.micros());
    let catching_up = Phones::connect(address, stage.phones(&server, [CATCHER])?, Some(caught.clone())).await?;
    while caught.items.load(Ordering::Relaxed) < WAITING as u64 {
        tokio::time::sleep(Duration::from_micros(500)).await;
        ensure!(stage.clock.micros() - began < 30_000_000, "the catch-up did not end");
    }
    let caught_up = (stage.clock.micros() - began) as f64 / 1e3;
    drop(catching_up);

    let watch = Watch::new(stage.clock);
    let phones = Phones::connect(address, stage.phones(&server, 0..USERS)?, Some(watch.clone())).await?;
    // What waited for these users comes first, and is no message of this load.
    let waited = (USERS * EACH) as u64;
    let until = stage.clock.micros() + 120_000_000;
    while watch.items.load(Ordering::Relaxed) < waited && stage.clock.micros() < until {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    ensure!(watch.items.swap(0, Ordering::Relaxed) == waited, "not everything that waited came");
    steady(stage, &server, &watch, RATE, USERS, Priority::Normal, Duration::from_secs(2)).await?;
    let (before, items) = (used(server.pid())?.cpu_micros, watch.items.load(Ordering::Relaxed));
    steady(stage, &server, &watch, RATE, USERS, Priority::Normal, Duration::from_secs(5)).await?;
    let items = watch.items.load(Ordering::Relaxed) - items;
    let cost = (used(server.pid())?.cpu_micros - before) / items.max(1) as f64;
    closing::close(stage, report, NAME, &server, &watch, 0).await?;
    drop(phones);
    server.stop().await;
    std::fs::remove_dir_all(&data)?;
    Ok([ready, caught_up, read, cost])
}

pub(crate) async fn run(stage: &Stage, report: &mut Report) -> Result<()> {
    let sizes: &[usize] = if stage.bench.long { &[10_000, 1_000_000, 10_000_000] } else { &[10_000, 1_000_000] };
    let mut points = Vec::new();
    for kept in sizes {
        let [ready, caught_up, read, cost] = measure(stage, report, *kept).await?;
        points.push((*kept as f64, cost));
        let targets = |f: Figure, first, aim| if *kept >= 1_000_000 { f.targets(first, aim) } else { f };
        let figure =
            Figure::new(NAME, format!("start to ready with {} messages kept", number(*kept as f64, "")), ready, "s");
        report.add(targets(figure, 2.0, 0.5));
        let figure = Figure::new(
            NAME,
            format!("catch-up of {WAITING} messages on connect, {} kept", number(*kept as f64, "")),
            caught_up,
            "ms",
        );
        report.add(targets(figure, 100.0, 20.0).beside("the bare reading of them from history", read));
    }
    let what = format!("CPU per message at {RATE:.0} a second, µs");
    report.curve(Curve { scenario: NAME, what, size: "messages kept", points });
    Ok(())
}
