//! Brokers die in the middle of the work, and nothing that was acknowledged is lost.

use std::{collections::BTreeMap, time::Duration};

use schemas::{
    Offset, Partition, Priority, Topic, TopicPartition,
    port::{Append, Durability, Fetch, Headers, Log as _, PortError},
};
use tests::harness::{eventually, stack, stack::Nodes};

use super::*;

const LANE: Topic = Topic::Lane(Priority::Normal);

fn at(partition: u16) -> TopicPartition {
    TopicPartition { topic: LANE, partition: Partition(partition) }
}

/// What appenders were told: the offset of each body.
type Acknowledged = Vec<(TopicPartition, Offset, String)>;

/// Appends until it is told to stop.
async fn appender(log: Arc<KafkaLog>, who: usize, stop: tokio::sync::watch::Receiver<bool>) -> (Acknowledged, usize) {
    let (mut acknowledged, mut failed) = (Vec::new(), 0);
    let mut turn = 0;
    while !*stop.borrow() {
        let bodies: Vec<_> = (0..8u16).map(|n| (at(n % PARTITIONS), format!("{who}.{turn}.{n}"))).collect();
        let records =
            bodies.iter().map(|(at, body)| Append { at: *at, headers: Headers::default(), body: body.clone().into() });
        for (outcome, (at, body)) in log.append(records.collect()).await.into_iter().zip(bodies) {
            match outcome {
                Ok(offset) => acknowledged.push((at, offset, body)),
                Err(PortError::Unavailable(_) | PortError::Unknown(_)) => failed += 1,
                Err(other) => panic!("{other}"),
            }
        }
        turn += 1;
    }
    (acknowledged, failed)
}

/// All records, by place.
async fn everything(log: &KafkaLog) -> BTreeMap<(TopicPartition, Offset), String> {
    let mut all = BTreeMap::new();
    for at in (0..PARTITIONS).map(at) {
        let (mut from, end) = log.bounds(at).await.unwrap();
        while from < end {
            let read = log.read(at, from, Fetch { records: 1_000, bytes: 1 << 22 }).await.unwrap();
            for record in &read {
                all.insert((at, record.offset), String::from_utf8(record.body.to_vec()).unwrap());
            }
            from = read.last().expect("there are records before the end").offset.next();
        }
    }
    all
}

/// Appends under faults, then compares.
async fn nothing_acknowledged_is_lost(nodes: &Nodes, address: &Address, fault: impl AsyncFnOnce(&Nodes)) {
    topics::create(address, &limits()).await.unwrap();
    let log = open(address).await.unwrap();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let appenders: Vec<_> = (0..4).map(|who| tokio::spawn(appender(log.clone(), who, stopped.clone()))).collect();
    let end = async || log.bounds(at(0)).await.ok().map(|(_, end)| end.0);
    eventually("appends flow", async || end().await.filter(|end| *end > 50)).await;
    fault(nodes).await;
    let before = eventually("the log answers again", end).await;
    eventually("appends flow again", async || end().await.filter(|end| *end > before + 50)).await;
    stop.send_replace(true);
    let (mut count, mut failed) = (0, 0);
    let mut told = BTreeMap::new();
    for appender in appenders {
        let (acknowledged, not) = appender.await.unwrap();
        (count, failed) = (count + acknowledged.len(), failed + not);
        for (at, offset, body) in acknowledged {
            assert_eq!(told.insert((at, offset), body), None, "an offset was given twice");
        }
    }
    let all = everything(&log).await;
    let lost: Vec<_> = told.iter().filter(|(place, body)| all.get(place) != Some(body)).collect();
    println!("{count} acknowledged, {failed} not, {} in the log, {} lost", all.len(), lost.len());
    assert!(lost.is_empty(), "lost: {lost:?}");
    // An idempotent producer writes nothing twice.
    let bodies: std::collections::BTreeSet<_> = all.values().collect();
    assert_eq!(bodies.len(), all.len(), "a record is there twice");
    log.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_killed_and_started_again_loses_nothing_acknowledged() {
    let nodes = Nodes::start("kafka", &[]).await;
    let address = address(&nodes.hosts(), "esh3ar.", "");
    nothing_acknowledged_is_lost(&nodes, &address, async |nodes| {
        nodes.kill(1).await;
        nodes.restart(1).await;
    })
    .await;
    nodes.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_three_brokers_killed_stops_nothing_and_loses_nothing() {
    let nodes = Nodes::start("kafka", &["--nodes", "3"]).await;
    let address = address(&nodes.hosts(), "esh3ar.", "replication=3&min_isr=2");
    nothing_acknowledged_is_lost(&nodes, &address, async |nodes| nodes.kill(2).await).await;
    let log = open(&address).await.unwrap();
    assert_eq!(log.durability(), Durability::Replicated);
    log.check().await.unwrap();
    // Two of three: nothing is acknowledged that one alone has.
    let hurried = StoreLimits { kafka_append_ms: 8_000, kafka_ask_ms: 2_000, ..limits() };
    let log = KafkaLog::open(&address, &hurried, Arc::new(SystemClock::new())).await.unwrap();
    nodes.kill(3).await;
    let record = Append { at: at(0), headers: Headers::default(), body: "alone".into() };
    let append = tokio::spawn({
        let log = log.clone();
        async move { log.append(vec![record]).await.remove(0) }
    });
    eventually("it is said that replicas are missing", async || log.check().await.err()).await;
    let outcome = tokio::time::timeout(Duration::from_secs(40), append).await.unwrap().unwrap();
    assert!(matches!(outcome, Err(PortError::Unavailable(_) | PortError::Unknown(_))), "{outcome:?}");
    nodes.stop().await;
}

/// A new producer's first record of a partition may be refused (the broker does not lead yet) while a later one is taken: a
/// broker that knows nothing of a producer takes any number. librdkafka then calls the first one written, and names no place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_while_topics_are_new_is_there() {
    let hosts = stack::kafka().await.hosts();
    for turn in 0..5 {
        let address = address(&hosts, &prefix(), "");
        // Another process makes them, and has not done when this one begins.
        let making = tokio::spawn({
            let address = address.clone();
            async move { topics::create(&address, &limits()).await.map(drop) }
        });
        let log = eventually("the topics are there", async || open(&address).await.ok()).await;
        let appends = (0..PARTITIONS).map(|partition| {
            let log = log.clone();
            tokio::spawn(async move {
                // The large one is long on its way, so that the three go in requests of their own.
                let bodies = ["first".to_owned(), "x".repeat(6 << 20), "last".to_owned()];
                let records = bodies.iter().map(|body| Append {
                    at: at(partition),
                    headers: Headers::default(),
                    body: body.clone().into(),
                });
                log.append(records.collect()).await.into_iter().zip(bodies).collect::<Vec<_>>()
            })
        });
        let appends: Vec<_> = appends.collect();
        for (partition, append) in (0..).zip(appends) {
            for (outcome, body) in append.await.unwrap() {
                let offset = match outcome {
                    Ok(offset) => offset,
                    Err(PortError::Unavailable(_) | PortError::Unknown(_)) => continue,
                    Err(other) => panic!("{other}"),
                };
                let fetch = Fetch { records: 1, bytes: 8 << 20 };
                let read = log.read(at(partition), offset, fetch).await.unwrap();
                let found = read.first().is_some_and(|record| record.offset == offset && record.body == body);
                assert!(found, "turn {turn}: not at {offset:?} of {partition}: {:?}", &body[..5.min(body.len())]);
            }
        }
        log.close().await;
        making.await.unwrap().unwrap();
    }
}
