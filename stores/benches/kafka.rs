//! The log on Kafka beside a bare producer of the same library with the same settings, on the same broker, paced alike: what a
//! message costs this process more, what it waits longer, and how many go in one request.
//!
//! Needs a broker: `ops/stack/kafka start --folder DIR --long`, then
//! `ESH3AR_BENCH_KAFKA=HOST:PORT cargo bench --package esh3ar-stores --features kafka --bench kafka`.

#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a measurement reads the clock and prints")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rdkafka::{
    ClientConfig, ClientContext,
    config::FromClientConfigAndContext,
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer, ProducerContext},
};
use schemas::{
    MessageId, Partition, Priority, Timestamp, Topic, TopicPartition,
    limits::StoreLimits,
    port::{Append, Headers, Log},
    time::ManualClock,
};
use stores::{
    log::kafka::{KafkaLog, topics},
    urls::Address,
};

/// Bytes of a body: the message that the targets are measured with.
const BYTES: usize = 500;
const PARTITIONS: u64 = 6;
const SECONDS: u64 = 8;
const WARM: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(1);

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// What one run showed.
struct Run {
    name: String,
    cpu_us: f64,
    p50_ms: f64,
    p99_ms: f64,
    per_request: f64,
    rate: f64,
}

/// CPU of this process, user and system, in µs.
fn cpu() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    (ticks(11) + ticks(12)) * 10_000
}

/// Calls `send` with the number of a batch so often that `rate` messages a second go, each batch having `size`.
fn paced(rate: u64, size: u64, seconds: Duration, mut send: impl FnMut(u64)) -> u64 {
    let begun = Instant::now();
    let mut sent = 0;
    while begun.elapsed() < seconds {
        let due = (begun.elapsed().as_micros() as u64) * rate / 1_000_000;
        while sent + size <= due {
            send(sent);
            sent += size;
        }
        thread::park_timeout(TICK);
    }
    sent
}

fn quantile(latencies: &mut [u64], q: f64) -> f64 {
    latencies.sort_unstable();
    let at = ((latencies.len() as f64 * q) as usize).min(latencies.len().saturating_sub(1));
    latencies.get(at).map_or(0.0, |us| *us as f64 / 1000.0)
}

/// The bare producer's ear.
struct Bare {
    begun: Instant,
    latencies: Mutex<Vec<u64>>,
    requests: AtomicU64,
}

impl ClientContext for Bare {
    fn stats_raw(&self, statistics: &[u8]) {
        self.requests.store(stores::log::kafka::produce_requests(statistics), Ordering::Relaxed);
    }
}

impl ProducerContext for Bare {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, sent_us: usize) {
        if result.is_ok() {
            self.latencies.lock().push(self.begun.elapsed().as_micros() as u64 - sent_us as u64);
        }
    }
}

fn bare(hosts: &str, prefix: &str, limits: &StoreLimits, rate: u64, size: u64) -> Fallible<Run> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", hosts)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", limits.kafka_linger_ms.to_string())
        .set("socket.nagle.disable", "true")
        .set("queue.buffering.max.messages", "1000000")
        .set("statistics.interval.ms", "1000");
    let context = Bare { begun: Instant::now(), latencies: Mutex::default(), requests: AtomicU64::new(0) };
    let producer = Arc::new(BaseProducer::from_config_and_context(&config, context)?);
    let ended = Arc::new(AtomicBool::new(false));
    let poller = {
        let (producer, ended) = (producer.clone(), ended.clone());
        thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                producer.poll(Duration::from_millis(100));
            }
        })
    };
    let topic = format!("{prefix}messages.normal");
    let body = vec![7u8; BYTES];
    let send = |first: u64| {
        for n in first..first + size {
            // What any sender of ours would have to say in front of a record.
            let headers = OwnedHeaders::new_with_capacity(3)
                .insert(Header { key: "esh3ar-id", value: Some("0190c0de-0000-7000-8000-000000000000") })
                .insert(Header { key: "esh3ar-tenant", value: Some("acme") })
                .insert(Header { key: "esh3ar-priority", value: Some("normal") });
            let at = producer.context().begun.elapsed().as_micros() as usize;
            let record = BaseRecord::<(), [u8], usize>::with_opaque_to(&topic, at)
                .partition((n % PARTITIONS) as i32)
                .headers(headers)
                .payload(&body);
            if let Err((error, _)) = producer.send(record) {
                println!("not sent: {error}");
            }
        }
    };
    paced(rate, size, WARM, send);
    producer.flush(Duration::from_secs(5))?;
    thread::park_timeout(Duration::from_millis(1_200));
    producer.context().latencies.lock().clear();
    let (requests, before) = (producer.context().requests.load(Ordering::Relaxed), cpu());
    let sent = paced(rate, size, Duration::from_secs(SECONDS), send);
    producer.flush(Duration::from_secs(5))?;
    let used = cpu() - before;
    thread::park_timeout(Duration::from_millis(1_200));
    let requests = producer.context().requests.load(Ordering::Relaxed) - requests;
    ended.store(true, Ordering::Relaxed);
    let _ = poller.join();
    let mut latencies = std::mem::take(&mut *producer.context().latencies.lock());
    Ok(run(format!("bare producer, {size} at once"), used, sent, requests, &mut latencies))
}

fn ours(runtime: &tokio::runtime::Runtime, log: &Arc<KafkaLog>, rate: u64, size: u64) -> Run {
    let latencies = Arc::new(Mutex::new(Vec::new()));
    let open = Arc::new(AtomicU64::new(0));
    let id = MessageId::fresh(Timestamp(1_700_000_000_000));
    let body = bytes::Bytes::from(vec![7u8; BYTES]);
    let send = |first: u64| {
        let records = (first..first + size).map(|n| Append {
            at: TopicPartition { topic: Topic::Lane(Priority::Normal), partition: Partition((n % PARTITIONS) as u16) },
            headers: Headers {
                id: Some(id),
                tenant: "acme".parse().ok(),
                priority: Some(Priority::Normal),
                ..Headers::default()
            },
            body: body.clone(),
        });
        let (records, begun) = (records.collect(), Instant::now());
        let (log, latencies, open) = (log.clone(), latencies.clone(), open.clone());
        open.fetch_add(1, Ordering::Relaxed);
        runtime.spawn(async move {
            let outcomes = log.append(records).await;
            let took = begun.elapsed().as_micros() as u64;
            latencies.lock().extend(outcomes.iter().filter(|outcome| outcome.is_ok()).map(|_| took));
            open.fetch_sub(1, Ordering::Relaxed);
        });
    };
    let drained = || {
        while open.load(Ordering::Relaxed) > 0 {
            thread::park_timeout(TICK);
        }
    };
    paced(rate, size, WARM, send);
    drained();
    thread::park_timeout(Duration::from_millis(1_200));
    latencies.lock().clear();
    let (requests, before) = (log.produced().requests, cpu());
    let sent = paced(rate, size, Duration::from_secs(SECONDS), send);
    drained();
    let used = cpu() - before;
    thread::park_timeout(Duration::from_millis(1_200));
    let requests = log.produced().requests - requests;
    let mut latencies = std::mem::take(&mut *latencies.lock());
    run(format!("KafkaLog, {size} a call"), used, sent, requests, &mut latencies)
}

fn run(name: String, cpu_us: u64, sent: u64, requests: u64, latencies: &mut [u64]) -> Run {
    Run {
        name,
        cpu_us: cpu_us as f64 / sent as f64,
        p50_ms: quantile(latencies, 0.5),
        p99_ms: quantile(latencies, 0.99),
        per_request: sent as f64 / requests.max(1) as f64,
        rate: sent as f64 / SECONDS as f64,
    }
}

fn main() -> Fallible<()> {
    let Ok(hosts) = std::env::var("ESH3AR_BENCH_KAFKA") else {
        println!("not measured: ESH3AR_BENCH_KAFKA=HOST:PORT names no broker (ops/stack/kafka starts one)");
        return Ok(());
    };
    let prefix = format!("bench{}.", std::process::id());
    let address = Address::parse(&format!("kafka://{hosts}/{prefix}"))?;
    let limits = StoreLimits { partitions: PARTITIONS as u16, ..StoreLimits::default() };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(topics::create(&address, &limits))?;
    let clock = Arc::new(ManualClock::at(Timestamp(1_700_000_000_000)));
    let log = runtime.block_on(KafkaLog::open(&address, &limits, clock))?;
    println!(
        "{:>7} {:<28} {:>9} {:>8} {:>8} {:>8} {:>12} {:>8} {:>8}",
        "a sec", "", "CPU µs", "added", "p50 ms", "p99 ms", "per request", "p50 ÷", "p99 ÷"
    );
    for rate in [5_000, 10_000] {
        for size in [1, 100] {
            let base = bare(&hosts, &prefix, &limits, rate, size)?;
            let own = ours(&runtime, &log, rate, size);
            for run in [&base, &own] {
                println!(
                    "{:>7.0} {:<28} {:>9.1} {:>8.1} {:>8.2} {:>8.2} {:>12.1} {:>8.2} {:>8.2}",
                    run.rate,
                    run.name,
                    run.cpu_us,
                    run.cpu_us - base.cpu_us,
                    run.p50_ms,
                    run.p99_ms,
                    run.per_request,
                    run.p50_ms / base.p50_ms,
                    run.p99_ms / base.p99_ms,
                );
            }
        }
    }
    runtime.block_on(log.close());
    Ok(())
}
