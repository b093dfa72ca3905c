//! The closing count: what a scenario sent is delivered or still waits, by the phones' count and by the server's books, or the
//! scenario has failed.

use std::{sync::atomic::Ordering, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::super::{Report, Stage, load::Watch, report::Closing};
use crate::child::Server;

/// How long what is under way may take to arrive once the load has ended, ms.
const SETTLE_MS: u64 = 60_000;
/// How long the books may take: they read the whole log.
const BOOKS: Duration = Duration::from_secs(180);

/// Counts. `watch` knows what was sent to connected phones and what they saw; `away` is what was sent to others.
pub(super) async fn close(
    stage: &Stage,
    report: &mut Report,
    scenario: &str,
    server: &Server,
    watch: &Watch,
    away: u64,
) -> Result<()> {
    let (sent, seen) = (|| watch.sent.load(Ordering::Acquire), || watch.items.load(Ordering::Acquire));
    let backlog = sent().saturating_sub(seen());
    let until = stage.clock.micros() + SETTLE_MS * 1_000;
    while seen() < sent() && stage.clock.micros() < until {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Acknowledgements follow what they acknowledge by a moment.
    let books = loop {
        let books = books(stage, server).await?;
        if books["total"]["delivered"].as_u64() >= Some(sent()) || stage.clock.micros() > until {
            break books;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let of = |name: &str| books["total"][name].as_u64().context("the books have an account");
    let (delivered, waiting) = (of("delivered")?, of("pending")? + of("unrecorded")? + of("sent")?);
    let (sent, seen) = (sent(), seen());
    ensure!(books["balanced"] == true, "the books do not balance: {books}");
    ensure!(of("accepted")? == sent + away, "{} were accepted and the books know {}", sent + away, of("accepted")?);
    ensure!(
        sent + away == delivered + waiting,
        "{sent} and {away} were sent, {delivered} delivered, {waiting} wait: {books}"
    );
    ensure!(seen == delivered, "phones saw {seen} and the books say {delivered} were delivered");
    let closing = Closing { scenario: scenario.to_owned(), sent: sent + away, delivered, waiting, backlog };
    report.closings.push(closing);
    Ok(())
}

async fn books(stage: &Stage, server: &Server) -> Result<Value> {
    let (token, url) = (stage.admin(server)?, format!("http://{}/admin/v1/books", server.admin));
    let http = reqwest::Client::builder().no_proxy().timeout(BOOKS).build()?;
    Ok(http.get(url).bearer_auth(token).send().await?.error_for_status()?.json().await?)
}
