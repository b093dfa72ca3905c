//! What a delivered message costs a CQL server: by the shape of the tables, and through the adapter.
//!
//! `ESH3AR_BENCH_CQL=host:port` names a server (`ops/stack/cassandra start --folder DIR --long`), `ESH3AR_BENCH_PID` its process,
//! whose CPU is read from /proc. `RATE` messages a second (2000), `SECS` a shape (8), `TICK` ms between batches (10), `SHAPES`
//! of those below (all), to `USERS` users (2000). Each runs twice: the first run warms the server up and is not to be believed.
//!
//! | shape | an entry | where its id leads | its state |
//! |---|---|---|---|
//! | `single` | a row of its inbox | a row of its own | in the entry; every row a request |
//! | `batched` | the same | the same | the same; 20 messages a request |
//! | `beside` | a row of its inbox | in the inbox's CQL partition, so one mutation carries both | in the entry; 20 messages a request |
//! | `slots` | a row of its inbox | a row among those of its moment | there; 20 messages a request |
//! | `windows` | a row among those of its moment | the same | there; 20 messages a request |
//! | `adapter` | what the adapter makes of it, ids without a key | | |
//! | `keyed` | the same, ids of keys | | |
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

#[path = "cql/adapter.rs"]
mod adapter;
#[path = "cql/shapes.rs"]
mod shapes;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// What was sent, and how long it took.
#[derive(Default)]
pub struct Count {
    pub rows: AtomicU64,
    pub requests: AtomicU64,
    pub waits: AtomicU64,
    pub wait_us: AtomicU64,
}

impl Count {
    pub fn waited(&self, since: Instant) {
        self.waits.fetch_add(1, Relaxed);
        self.wait_us.fetch_add(since.elapsed().as_micros() as u64, Relaxed);
    }
}

/// One of the shapes, ready to take messages.
pub trait Shape {
    /// Records a batch of so many messages and then says that they were delivered.
    fn batch(&mut self, messages: u64, count: &Arc<Count>) -> impl Future<Output = ()> + Send + 'static;
}

pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn cpu_ms(pid: &str) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = stat.rsplit_once(") ").map_or("", |halves| halves.1);
    let fields: Vec<u64> = rest.split(' ').map(|text| text.parse().unwrap_or(0)).collect();
    fields.get(11).zip(fields.get(12)).map_or(0, |(user, system)| (user + system) * 10)
}

async fn run(name: &str, mut shape: impl Shape, seconds: u64) -> String {
    let (rate, tick) = (number("RATE", 2_000), number("TICK", 10));
    let server = std::env::var("ESH3AR_BENCH_PID").unwrap_or_default();
    let count = Arc::new(Count::default());
    let (server_before, own_before, began) = (cpu_ms(&server), cpu_ms("self"), Instant::now());
    let mut every = tokio::time::interval(Duration::from_millis(tick));
    let (mut sent, mut under_way) = (0, tokio::task::JoinSet::new());
    while began.elapsed() < Duration::from_secs(seconds) {
        every.tick().await;
        let messages = (rate * tick / 1_000).max(1);
        sent += messages;
        under_way.spawn(shape.batch(messages, &count));
        while under_way.try_join_next().is_some() {}
        while under_way.len() > 200 {
            under_way.join_next().await;
        }
    }
    while under_way.join_next().await.is_some() {}
    let per = |of: u64| of as f64 / sent as f64;
    let (rows, requests) = (count.rows.load(Relaxed), count.requests.load(Relaxed));
    format!(
        "{name}: {:.0} messages/s, {:.2} rows and {:.2} requests a message, {:.1} rows a request, server {:.0} us and client {:.0} us a message, mean wait {:.1} ms",
        sent as f64 / began.elapsed().as_secs_f64(),
        per(rows),
        per(requests),
        rows as f64 / requests.max(1) as f64,
        per(cpu_ms(&server) - server_before) * 1_000.0,
        per(cpu_ms("self") - own_before) * 1_000.0,
        count.wait_us.load(Relaxed) as f64 / count.waits.load(Relaxed).max(1) as f64 / 1_000.0,
    )
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let Ok(host) = std::env::var("ESH3AR_BENCH_CQL") else {
        println!("ESH3AR_BENCH_CQL=host:port names no server: nothing is measured");
        return;
    };
    let all = "single,batched,beside,slots,windows,adapter,keyed";
    let chosen = std::env::var("SHAPES").unwrap_or_else(|_| all.to_owned());
    for warm in [true, false] {
        for name in chosen.split(',') {
            let seconds = if warm { 4 } else { number("SECS", 8) };
            let said = match name {
                "adapter" | "keyed" => run(name, adapter::Adapter::open(&host, name == "keyed").await, seconds).await,
                _ => run(name, shapes::Raw::open(&host, name).await, seconds).await,
            };
            println!("{}{said}", if warm { "(warming up) " } else { "" });
        }
    }
}
