//! With much kept: start to ready, catch-up of 1,000 messages, and whether a message costs more than with little kept.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use schemas::{
    Clock, Content, ContentType, Epoch, Inbox, Kind, Message, MessageId, Partition, Position, Priority, Sender, Tenant,
    UserId,
    limits::StoreLimits,
    port::{Entry, Schedule},
};
use stores::{Settings, Stores};

use super::{
    super::{
        Report, Stage,
        load::{Phones, Watch, content, number},
        measure::Figure,
    },
    open_loop::steady,
};
use crate::{child::TENANT, clock::SystemClock};

/// Fills a folder through the History port, in bulk: `count` messages over `users` users, the first of whom has 1,000.
async fn fill(data: &std::path::Path, clock: SystemClock, count: usize, users: usize) -> Result<()> {
    let limits = StoreLimits::default();
    let partitions = limits.partitions;
    let stores = Stores::open(Settings { data: data.to_owned(), limits, presence_ms: 300_000 }, Arc::new(clock))?;
    let tenant = Tenant::parse(TENANT)?;
    let mut entries = Vec::with_capacity(1_000);
    let mut made = 0;
    for n in 0.. {
        let user = UserId::mobile(tenant.clone(), schemas::Phone::from_stored(&number(n)).context("a number")?);
        let partition = Partition::of(&user, partitions);
        let own = if n == 0 { 1_000 } else { count / users };
        for k in 1..=own as u64 {
            let place = |k| if k == 0 { Position::START } else { Position { epoch: Epoch(0), n: k } };
            let body = content(clock.micros(), 300, made as u64);
            let message = Message {
                id: MessageId::fresh(clock.wall()),
                kind: Kind::OneWay,
                from: Sender::Server,
                to: user.clone(),
                priority: Priority::Normal,
                content: Content { content_type: ContentType::Text, subject: None, body },
                client_ref: None,
                metadata: None,
                accepted_at: clock.wall(),
                send_at: None,
                expires_at: None,
                broadcast: None,
                trace: None,
                fingerprint: [0; 16],
            };
            let inbox = Inbox { user: user.clone(), partition };
            entries.push(Entry {
                inbox,
                position: place(k),
                prev: place(k - 1),
                one_way: k,
                recorded_at: clock.wall(),
                message: Arc::new(message),
            });
            made += 1;
        }
        if entries.len() >= 1_000 || made >= count {
            stores.history.record(&entries, &Schedule::default()).await?;
            entries.clear();
        }
        if made >= count {
            break;
        }
    }
    stores.close().await;
    Ok(())
}

pub(crate) async fn run(stage: &Stage, report: &mut Report) -> Result<()> {
    const NAME: &str = "kept";
    let count = if stage.bench.long { 10_000_000 } else { 1_000_000 };
    let mut costs = Vec::new();
    for kept in [10_000, count] {
        let data = stage.bench.folder.join(format!("{NAME}-{kept}"));
        if data.exists() {
            std::fs::remove_dir_all(&data)?;
        }
        fill(&data, stage.clock, kept, (kept / 100).max(100)).await?;
        let began = stage.clock.micros();
        let mut server = stage.server_on(&data, &[]).await?;
        let ready = (stage.clock.micros() - began) as f64 / 1e6;
        let pid = server.pid().unwrap_or_default();

        let watch = Watch::new(stage.clock);
        let began = stage.clock.micros();
        let _catching_up = Phones::connect(&server.address(), stage.phones(&server, 1)?, Some(watch.clone())).await?;
        while watch.items.load(std::sync::atomic::Ordering::Relaxed) < 1_000 {
            tokio::time::sleep(Duration::from_micros(500)).await;
            anyhow::ensure!(stage.clock.micros() - began < 30_000_000, "the catch-up did not end");
        }
        let caught_up = (stage.clock.micros() - began) as f64 / 1e3;

        let users = stage.bench.users.min(kept / 100);
        let _phones =
            Phones::connect(&server.address(), stage.phones(&server, users)?[1..].to_vec(), Some(watch.clone()))
                .await?;
        steady(stage, &server, 2_000.0, users, "normal", Duration::from_secs(2)).await?;
        let before = super::super::measure::used(pid)?.cpu_micros;
        steady(stage, &server, 2_000.0, users, "normal", Duration::from_secs(5)).await?;
        costs.push((super::super::measure::used(pid)?.cpu_micros - before) / 10_000.0);
        server.stop().await?;
        std::fs::remove_dir_all(&data)?;
        if kept == count {
            report.add(
                Figure::new(NAME, format!("start to ready with {kept} messages kept"), ready, "s").targets(2.0, 0.5),
            );
            report
                .add(Figure::new(NAME, "catch-up of 1,000 messages on connect", caught_up, "ms").targets(100.0, 20.0));
        }
    }
    report.add(
        Figure::new(NAME, format!("CPU per message with {count} kept, 2,000 a second"), costs[1], "µs")
            .beside("10,000 kept", costs[0]),
    );
    Ok(())
}
