//! Conversations as they are read: the list of a business user with 100,000 of them, the last 50 messages of one, a page far
//! down a long one, and the list beside a conversation that 100,000 messages went through. Filled through the History port in
//! bulk; read over HTTP, once through the cache and once without it.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use schemas::{Clock, conversation::Side};
use serde_json::Value;

use super::super::{
    Report, Stage,
    load::{Conn, Filling, pair},
    measure::{Figure, histogram},
    report::number,
};
use crate::{child::Server, clock::SystemClock};

const NAME: &str = "threads";
/// The business user with many conversations, and the one with few of which one is long.
const WITH_MANY: &str = "sara";
const WITH_FEW: &str = "nadia";
const MANY: usize = 100_000;
const FEW: usize = 10;
/// The phone of the long conversation: the first of the second user's.
const LONG: usize = 2_000_000;
/// Between two messages of what is filled, ms.
const STEP_MS: u64 = 10;
/// Rows of a page.
const PAGE: u64 = 50;
/// The same without the cache.
const WITHOUT: &str = "threads without the cache";
const OFF: &[&str] = &["stores.cache=off"];
/// Requests that a figure is taken from.
const CALLS: usize = 1_000;
/// Of a warm connection.
const WARM: usize = 50;

/// Fills a folder: the conversations of the one, and those of the other but for the long one.
async fn fill(stage: &Stage, data: &Path) -> Result<()> {
    let stores = stage.stores(data).await?;
    let mut filling = Filling::new(&*stores.history, stores.log.partitions()).await?;
    let began = stage.clock.wall().0 - (MANY as u64 * STEP_MS) as i64 - 3_600_000;
    for n in 0..MANY {
        let at = schemas::Timestamp(began + (n as u64 * STEP_MS) as i64);
        filling.say(&pair(WITH_MANY, n)?, Side::Mobile, at).await?;
    }
    for n in 0..FEW {
        filling.say(&pair(WITH_FEW, LONG + n)?, Side::Mobile, schemas::Timestamp(began)).await?;
    }
    filling.write().await?;
    stores.close().await;
    Ok(())
}

/// Fills one conversation with so many messages.
async fn fill_long(stage: &Stage, data: &Path, messages: u64) -> Result<()> {
    let stores = stage.stores(data).await?;
    let mut filling = Filling::new(&*stores.history, stores.log.partitions()).await?;
    let long = pair(WITH_FEW, LONG + FEW)?;
    let began = stage.clock.wall().0 - (messages * STEP_MS) as i64;
    for n in 0..messages {
        let at = schemas::Timestamp(began + (n * STEP_MS) as i64);
        filling.say(&long, if n % 2 == 0 { Side::Mobile } else { Side::Business }, at).await?;
    }
    filling.write().await?;
    stores.close().await;
    Ok(())
}

/// A client that times its requests.
struct Reader {
    clock: SystemClock,
    conn: Conn,
}

impl Reader {
    async fn open(stage: &Stage, server: &Server, business: &str) -> Result<Self> {
        let conn = Conn::open(&server.listen, &stage.business_user(server, business)?).await?;
        Ok(Self { clock: stage.clock, conn })
    }

    async fn get(&mut self, path: &str) -> Result<Value> {
        let (status, body) = self.conn.get(path).await?;
        ensure!(status == 200, "{path}: {status}: {}", String::from_utf8_lossy(&body));
        Ok(serde_json::from_slice(&body)?)
    }

    /// Times of so many requests, one after the other, µs.
    async fn time(&mut self, path: &str) -> Result<Histogram<u64>> {
        for _ in 0..WARM {
            self.get(path).await?;
        }
        let mut times = histogram();
        for _ in 0..CALLS {
            let began = self.clock.micros();
            let (status, body) = self.conn.get(path).await?;
            times.saturating_record((self.clock.micros() - began).max(1));
            ensure!(status == 200, "{path}: {status}: {}", String::from_utf8_lossy(&body));
        }
        Ok(times)
    }
}

fn ms(times: &Histogram<u64>, quantile: f64) -> f64 {
    times.value_at_quantile(quantile) as f64 / 1e3
}

/// What was read from one server.
struct Read {
    list: Histogram<u64>,
    few: Histogram<u64>,
    last: Histogram<u64>,
    near: Histogram<u64>,
    far: Histogram<u64>,
    somewhere: Histogram<u64>,
}

/// The path of the page that begins so many messages down.
async fn page_at(reader: &mut Reader, id: &str, depth: u64) -> Result<String> {
    let path = format!("/v1/conversations/{id}/messages?order=newest");
    let (mut left, mut cursor) = (depth, String::new());
    while left > 0 {
        let step = left.min(1_000);
        let page = reader.get(&format!("{path}&limit={step}{cursor}")).await?;
        let next = page["next_cursor"].as_str().context("the conversation is too short")?;
        cursor = format!("&cursor={next}");
        left -= step;
    }
    Ok(format!("{path}&limit={PAGE}{cursor}"))
}

async fn read(stage: &Stage, server: &Server, depth: Option<u64>) -> Result<Read> {
    let mut many = Reader::open(stage, server, WITH_MANY).await?;
    let list = format!("/v1/conversations?limit={PAGE}");
    let first = many.get(&list).await?;
    ensure!(first["items"].as_array().map(Vec::len) == Some(PAGE as usize), "the list is too short: {first}");
    let next = first["next_cursor"].as_str().context("the list has no second page")?;
    let somewhere = format!("{list}&cursor={next}");
    // One reader after the other: the server ends a connection that says nothing for a while.
    let (list_times, somewhere) = (many.time(&list).await?, many.time(&somewhere).await?);
    let mut few = Reader::open(stage, server, WITH_FEW).await?;
    let rows = few.get(&list).await?;
    let id = rows["items"][0]["id"].as_str().context("a conversation")?.to_owned();
    let last = format!("/v1/conversations/{id}/messages?limit={PAGE}");
    let (mut near, mut far) = (histogram(), histogram());
    if let Some(depth) = depth {
        let (near_path, far_path) = (page_at(&mut few, &id, PAGE).await?, page_at(&mut few, &id, depth).await?);
        near = few.time(&near_path).await?;
        far = few.time(&far_path).await?;
    }
    Ok(Read { list: list_times, somewhere, few: few.time(&list).await?, last: few.time(&last).await?, near, far })
}

pub(crate) async fn run(stage: &Stage, report: &mut Report) -> Result<()> {
    let depth: u64 = if stage.bench.long { 1_000_000 } else { 100_000 };
    let data = stage.folder(NAME)?;
    fill(stage, &data).await?;
    let server = stage.server_on(WITHOUT, &data, &[OFF]).await?;
    let before = read(stage, &server, None).await?;
    server.stop().await;
    fill_long(stage, &data, depth + 2 * PAGE).await?;
    let server = stage.server_on(NAME, &data, &[]).await?;
    let cached = read(stage, &server, Some(depth)).await?;
    server.stop().await;
    let server = stage.server_on(WITHOUT, &data, &[OFF]).await?;
    let bare = read(stage, &server, None).await?;
    server.stop().await;
    std::fs::remove_dir_all(&data)?;

    let many = number(MANY as f64, "");
    let without = "without the cache";
    let name = format!("list of 50 of {many} conversations, p95");
    report.add(
        Figure::new(NAME, name, ms(&cached.list, 0.95), "ms")
            .targets(200.0, 10.0)
            .beside(without, ms(&bare.list, 0.95)),
    );
    let name = format!("second page of the list of {many}, p95");
    report.add(Figure::new(NAME, name, ms(&cached.somewhere, 0.95), "ms").targets(200.0, 10.0));
    let figure = Figure::new(NAME, "last 50 messages, p95", ms(&cached.last, 0.95), "ms").targets(20.0, 2.0);
    report.add(figure.beside(without, ms(&bare.last, 0.95)));
    let down = number(depth as f64, "");
    let name = format!("page of 50 at depth {down}, p50");
    report.add(Figure::new(NAME, name, ms(&cached.far, 0.5), "ms").beside("at depth 50", ms(&cached.near, 0.5)));
    let ratio = ms(&cached.far, 0.5) / ms(&cached.near, 0.5);
    report.add(Figure::new(NAME, format!("page at depth {down} ÷ at depth 50, p50"), ratio, "×").targets(2.0, 1.1));
    let name = format!("list of {FEW} after {down} messages in one conversation, without the cache, p50");
    report.add(Figure::new(NAME, name, ms(&bare.few, 0.5), "ms").beside("before", ms(&before.few, 0.5)));
    Ok(())
}
