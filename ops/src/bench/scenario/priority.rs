//! High before Low: the p99 of 500 High a second while 100,000 Low wait, beside the same alone.

use std::time::Duration;

use anyhow::Result;

use super::{
    super::{
        Report, Stage,
        load::{Conn, Phones, Watch, batch, content, count_accepted, number},
        measure::Figure,
    },
    open_loop::steady,
};

pub(crate) async fn run(stage: &Stage, report: &mut Report) -> Result<()> {
    const NAME: &str = "priority";
    let users = stage.bench.users;
    let mut server = stage.server(NAME, &[]).await?;
    let watch = Watch::new(stage.clock);
    let _phones = Phones::connect(&server.address(), stage.phones(&server, users)?, Some(watch.clone())).await?;
    steady(stage, &server, 500.0, users, "high", Duration::from_secs(2)).await?;
    let _warm_up = watch.take();
    steady(stage, &server, 500.0, users, "high", Duration::from_secs(5)).await?;
    let alone = watch.take().value_at_quantile(0.99) as f64 / 1e3;

    // Low go to users who are away, so that only the High ones are in the phones' times; as many as keep the lane full.
    let low = {
        let mut conn = Conn::open(&server.address(), &stage.business(&server)?).await?;
        let clock = stage.clock;
        tokio::spawn(async move {
            let mut accepted = 0;
            for round in 0..100usize {
                let items = (0..1_000).map(|n| {
                    (number(1_000_000 + (round * 1_000 + n) % 20_000), content(clock.micros(), 300, n as u64))
                });
                let (_, answer) = conn.post("/v1/messages/batch", "application/x-ndjson", &batch(items, "low")).await?;
                accepted += count_accepted(&answer);
            }
            Ok::<_, anyhow::Error>(accepted)
        })
    };
    steady(stage, &server, 500.0, users, "high", Duration::from_secs(5)).await?;
    let beside = watch.take().value_at_quantile(0.99) as f64 / 1e3;
    let accepted = low.await??;
    anyhow::ensure!(accepted == 100_000, "only {accepted} Low messages were accepted");
    server.stop().await?;
    report.add(
        Figure::new(NAME, "High p99 with 100,000 Low waiting ÷ alone", beside / alone, "×")
            .targets(3.0, 1.3)
            .beside("alone, ms", alone),
    );
    Ok(())
}
