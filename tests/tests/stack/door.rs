//! The Kafka door on a real broker, by clients that are not ours: kcat and the official Java client.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use ops::{clock::SystemClock, cluster::Plan, compose::Role};
use schemas::{
    limits::StoreLimits,
    port::{Arrival, Fetch, Ingress},
};
use serde_json::json;
use stores::{Settings, Stores, log::kafka::topics, urls::Address};
use tests::harness::{
    Business,
    cluster::{Cluster, small},
    eventually, not_run, number, stack,
};

/// Produces lines with kcat, each a record with these headers.
async fn kcat(hosts: &str, topic: &str, headers: &[&str], lines: &[String]) {
    let headers: Vec<_> = headers.iter().flat_map(|header| ["-H", header]).collect();
    kcat_with(hosts, topic, &headers, lines).await;
}

/// Produces lines with kcat, each a record, with these options.
pub(crate) async fn kcat_with(hosts: &str, topic: &str, options: &[impl AsRef<OsStr>], lines: &[String]) {
    let mut command = tokio::process::Command::new("kcat");
    command.args(["-P", "-b", hosts, "-t", topic, "-X", "acks=all"]).args(options);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let mut pipe = child.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut pipe, text.as_bytes()).await.unwrap();
    drop(pipe);
    assert!(child.wait().await.unwrap().success(), "kcat to {topic}");
}

/// Every record of a topic: its headers and its value.
async fn read(hosts: &str, topic: &str) -> Vec<(String, String)> {
    let mut command = tokio::process::Command::new("kcat");
    command.args(["-C", "-b", hosts, "-t", topic, "-e", "-q", "-f", "%h\x1f%s\x1e"]);
    let output = command.output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let records = text.split('\x1e').filter_map(|record| record.split_once('\x1f'));
    records.map(|(headers, value)| (headers.to_owned(), value.to_owned())).collect()
}

pub(crate) fn has(command: &str) -> bool {
    Command::new("sh")
        .args(["-c", &format!("command -v {command}")])
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

async fn with_topic(plan: impl FnOnce(Plan) -> Plan) -> Cluster {
    let cluster = Cluster::start(|folder| plan(small(folder))).await;
    // Made while the doors run: they find it.
    cluster
        .command(&["topics", "create", "--ingress", "acme"], &["--set".into(), "limits.store.partitions=6".into()])
        .await
        .unwrap();
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_kcat_become_messages_and_bad_ones_are_kept_with_why() {
    if !has("kcat") {
        return not_run("the Kafka door by kcat: this machine has no kcat");
    }
    let cluster = with_topic(|plan| plan).await;
    let hosts = cluster.kafka.hosts();
    let mut phone = cluster.phone(&number(1));
    phone.insist().await;
    let draft = |n: u32| json!({ "to": number(1), "content": format!("{n}") }).to_string();

    kcat(&hosts, "esh3ar.ingress.acme", &[], &[draft(1), "no json".into(), draft(2)]).await;
    let event =
        ["ce_specversion=1.0", "ce_id=42", "ce_source=/shop", "ce_type=order.shipped", "content-type=application/json"];
    kcat(&hosts, "esh3ar.ingress.acme", &event, &[draft(3), draft(3)]).await;
    let whole = json!({ "specversion": "1.0", "id": "43", "source": "/shop", "type": "t", "data": { "to": number(1), "content": "4" } });
    kcat(&hosts, "esh3ar.ingress.acme", &["content-type=application/cloudevents+json"], &[whole.to_string()]).await;
    phone.until_seen(4).await;
    let mut seen = phone.contents();
    seen.sort_unstable();
    assert_eq!(seen, ["1", "2", "3", "4"], "an event that comes twice is one message");

    // Compressed as its sender likes.
    let mut there = cluster.phone(&number(2));
    there.insist().await;
    for (n, codec) in (1..).zip(["gzip", "snappy", "lz4", "zstd"]) {
        let long = json!({ "to": number(2), "content": "x".repeat(1_000) }).to_string();
        kcat_with(&hosts, "esh3ar.ingress.acme", &["-z", codec], &[long]).await;
        there.until_seen(n).await;
    }

    // The shared topic: by token.
    let token = format!("authorization=Bearer {}", cluster.token_of("acme", "server"));
    kcat(&hosts, "esh3ar.ingress", &[&token], &[draft(5)]).await;
    kcat(&hosts, "esh3ar.ingress", &[], &[draft(6)]).await;
    phone.until_seen(5).await;

    let rejected = eventually("two rejected records", async || {
        let rejected = read(&hosts, "esh3ar.rejected").await;
        (rejected.len() >= 2).then_some(rejected)
    })
    .await;
    let bad = rejected.iter().find(|(_, value)| value == "no json").unwrap();
    for part in
        ["problem-type=/problems/invalid-json", "problem-status=400", "problem-topic=ingress.acme", "problem-offset="]
    {
        assert!(bad.0.contains(part), "{part} is missing in {}", bad.0);
    }
    let nobody = rejected.iter().find(|(_, value)| *value == draft(6)).unwrap();
    assert!(nobody.0.contains("problem-type=/problems/unauthenticated"), "{}", nobody.0);

    // Mended, it is produced again and taken.
    kcat(&hosts, "esh3ar.ingress", &[&token], std::slice::from_ref(&nobody.1)).await;
    phone.until_seen(6).await;

    // A header whose name is no text counts as not given, and what comes behind it is read.
    let odd = [OsStr::new("-p"), OsStr::new("0"), OsStr::new("-H"), OsStr::from_bytes(b"\xff\xfe=x")];
    kcat_with(&hosts, "esh3ar.ingress.acme", &odd, &[draft(7)]).await;
    kcat_with(&hosts, "esh3ar.ingress.acme", &["-p", "0"], &[draft(8)]).await;
    phone.until_seen(8).await;
}

/// A partition that went to another reader while its topic was paused, and comes back when it is not any more, is read again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_paused_when_it_went_is_read_when_it_comes_back() {
    const PARTITIONS: usize = 4;
    if !has("kcat") {
        return not_run("the Kafka door by kcat: this machine has no kcat");
    }
    let hosts = stack::kafka().await.hosts();
    let prefix = format!("d{}.", uuid::Uuid::new_v4().simple());
    let limits = StoreLimits { partitions: PARTITIONS as u16, ..StoreLimits::default() };
    let address = Address::parse(&format!("kafka://{hosts}/{prefix}")).unwrap();
    topics::create(&address, &limits).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut settings = Settings::folder(folder.path().to_owned(), limits, 60_000);
    settings.places.log = Some(address);
    let stores = Stores::open(settings, Arc::new(SystemClock::new())).await.unwrap();
    let topic = format!("{prefix}ingress");
    let to_all = async |word: &str| {
        for partition in 0..PARTITIONS {
            kcat_with(&hosts, &topic, &["-p", &partition.to_string()], &[word.to_owned()]).await;
        }
    };

    let mut reader = stores.ingress().await.unwrap().unwrap();
    to_all("first").await;
    of_all(&mut *reader, "first", PARTITIONS).await;
    reader.pause("ingress").unwrap();
    let other = stores.ingress().await.unwrap().unwrap();
    let max = Fetch { records: 100, bytes: 1 << 20 };
    let lost = async { while !matches!(reader.poll(max).await, Ok(Arrival::Lost(_))) {} };
    tokio::time::timeout(Duration::from_secs(60), lost).await.expect("some go to the other");
    reader.resume("ingress").unwrap();
    other.leave().await.unwrap();
    to_all("second").await;
    of_all(&mut *reader, "second", PARTITIONS).await;
    reader.leave().await.unwrap();
}

/// Reads until a record that says this has come of each of so many partitions.
pub(crate) async fn of_all(reader: &mut dyn Ingress, word: &str, partitions: usize) {
    let mut seen = BTreeSet::new();
    let max = Fetch { records: 100, bytes: 1 << 20 };
    let reading = async {
        while seen.len() < partitions {
            if let Ok(Arrival::Records(records)) = reader.poll(max).await {
                let says = records.into_iter().filter(|raw| raw.value.as_deref() == Some(word.as_bytes()));
                seen.extend(says.map(|raw| raw.spot.partition));
            }
        }
    };
    let read = tokio::time::timeout(Duration::from_secs(60), reading).await;
    assert!(read.is_ok(), "`{word}` came of partitions {seen:?} only");
}

/// The folder of the official client's jars, which the broker's own start fetched.
fn jars() -> Option<PathBuf> {
    let cache = std::env::var("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|_| std::env::var("HOME").map(|home| Path::new(&home).join(".cache")));
    let found = std::fs::read_dir(cache.ok()?.join("esh3ar/stack")).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    found.map(|path| path.join("lib")).find(|lib| {
        let name = lib.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        name.is_some_and(|name| name.starts_with("kafka-")) && lib.is_dir()
    })
}

/// Produces `count` records to `users` recipients at `rate` a second, each once, and prints how many were acknowledged, and how
/// long that took, ms.
const PRODUCE: &str = r#"
import java.util.Properties;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.serialization.StringSerializer;

public class Produce {
    public static void main(String[] args) throws Exception {
        Properties config = new Properties();
        config.put("bootstrap.servers", args[0]);
        config.put("acks", "all");
        config.put("linger.ms", "5");
        config.put("key.serializer", StringSerializer.class.getName());
        config.put("value.serializer", StringSerializer.class.getName());
        int count = Integer.parseInt(args[2]), users = Integer.parseInt(args[3]), rate = Integer.parseInt(args[4]);
        AtomicLong kept = new AtomicLong();
        long began;
        try (KafkaProducer<String, String> producer = new KafkaProducer<>(config)) {
            producer.partitionsFor(args[1]);
            began = System.nanoTime();
            for (int n = 0; n < count; n++) {
                long due = began + n * 1_000_000_000L / rate;
                while (System.nanoTime() < due) Thread.sleep(1);
                String to = String.format("+96279%07d", n % users);
                String value = "{\"to\":\"" + to + "\",\"content\":\"" + n + "\"}";
                producer.send(new ProducerRecord<>(args[1], to, value), (at, error) -> { if (error == null) kept.incrementAndGet(); });
            }
        }
        System.out.println(kept.get() + " " + (System.nanoTime() - began) / 1_000_000);
    }
}
"#;

/// 10,000 records a second from the official client, a door killed in the middle: each becomes one message, none is lost, and
/// those of one recipient keep their order. The pipelines begin when all is in, so that it is the door whose rate is told.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes under load: run by the suite `cluster`"]
async fn ten_thousand_records_a_second_and_a_door_that_dies() {
    let Some(jars) = jars().filter(|_| has("javac")) else {
        return not_run("the Kafka door by the Java client: this machine has no Java compiler, or no jars of Kafka");
    };
    const COUNT: usize = 60_000;
    const USERS: usize = 500;
    let mut cluster = with_topic(|plan| plan.count(Role::Ingest, 2).count(Role::Pipeline, 0)).await;
    let source = tempfile::tempdir().unwrap();
    let file = source.path().join("Produce.java");
    std::fs::write(&file, PRODUCE).unwrap();
    let classpath = format!("{}/*:{}", jars.display(), source.path().display());
    let compiled = Command::new("javac").args(["-cp", &classpath]).arg(&file).status().unwrap();
    assert!(compiled.success());
    let mut java = tokio::process::Command::new("java");
    java.args(["-cp", &classpath, "Produce"]);
    java.args([&cluster.kafka.hosts(), "esh3ar.ingress.acme", &COUNT.to_string(), &USERS.to_string(), "10000"]);
    let producing = tokio::spawn(async move { java.stderr(Stdio::null()).output().await.unwrap() });

    eventually("the door takes them in", async || (cluster.waiting().await > 2_000).then_some(())).await;
    let (began, before) = (Instant::now(), cluster.waiting().await);
    let first = cluster.nth(Role::Ingest, 0);
    for _ in 0..3 {
        cluster.members[first].kill();
        tokio::time::sleep(Duration::from_millis(700)).await;
        cluster.members[first].start().await.unwrap();
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    let produced = producing.await.unwrap();
    let said = String::from_utf8_lossy(&produced.stdout).into_owned();
    let (kept, ms) = said.trim().split_once(' ').expect("the client says how many, in how long");
    assert_eq!(kept, COUNT.to_string(), "the broker has them all");
    println!("{kept} records produced in {ms} ms: {:.0} a second", COUNT as f64 * 1e3 / ms.parse::<f64>().unwrap());
    // What a killed door had taken and not committed is there twice: all are in when nothing is added any more.
    let (mut taken, mut at) = (0, Instant::now());
    while taken < COUNT as u64 || at.elapsed() < Duration::from_secs(2) {
        let now = cluster.waiting().await;
        if now > taken {
            (taken, at) = (now, Instant::now());
        }
        assert!(at.elapsed() < Duration::from_secs(60), "{taken} came in: {}", cluster.logs());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let rate = (taken - before) as f64 / at.duration_since(began).as_secs_f64();
    println!("{taken} taken in, {} of them again: {rate:.0} a second through three kills", taken - COUNT as u64);

    let began = Instant::now();
    let per_second = |since: Instant| COUNT as f64 / since.elapsed().as_secs_f64();
    let mut phone = cluster.phone(&number(7));
    phone.insist().await;
    for _ in 0..2 {
        let pipeline = cluster.add(Role::Pipeline).unwrap();
        cluster.members[pipeline].start().await.unwrap();
    }
    // First the phone: the books cost a reading of the log.
    let until = Instant::now() + Duration::from_secs(400);
    while phone.received.len() < COUNT / USERS {
        assert!(Instant::now() < until, "{} came: {}", phone.received.len(), cluster.logs());
        if !phone.is_connected() {
            phone.insist().await;
        }
        // Whether or not anything comes within it, the time is looked at.
        let _ = tokio::time::timeout(Duration::from_secs(1), phone.next()).await;
    }
    println!("the phone has its last of them: {:.0} a second through two pipelines", per_second(began));
    // A reading of the log and a question to the history for each message: on a slow machine that is a minute.
    let admin = format!("http://{}", cluster.members[cluster.nth(Role::Pipeline, 0)].admin());
    let admin = Business::at(&admin, cluster.token_of("operators", "admin"));
    let books = loop {
        let books = admin.get("/admin/v1/books").await.1;
        if books["total"]["accepted"] == COUNT && books["total"]["unrecorded"] == 0 {
            break books;
        }
        assert!(Instant::now() < until, "{books} {}", cluster.logs());
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    assert_eq!(books["balanced"], true, "{books}");
    let numbers: Vec<usize> = phone.contents().iter().map(|said| said.parse().unwrap()).collect();
    assert_eq!(numbers, (0..COUNT / USERS).map(|k| k * USERS + 7).collect::<Vec<_>>());
    assert!(read(&cluster.kafka.hosts(), "esh3ar.rejected").await.is_empty());
}
