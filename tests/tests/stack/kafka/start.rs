//! Where a group stands is asked when partitions are given, and whoever is asked may not be its coordinator any more.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use ops::child::free_ports;
use parking_lot::Mutex;
use schemas::{
    Partition, Priority, Topic, TopicPartition,
    port::{Append, Event, Fetch, Group, Headers, Log as _},
};
use stores::{Settings, Stores};
use tests::harness::stack::Nodes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
};

use super::*;
use crate::door::{has, kcat_with, of_all};

/// The number of the request for a group's offsets in Kafka's protocol, and the versions that name their groups in a list.
const OFFSET_FETCH: i16 = 9;
const WITH_GROUPS: std::ops::RangeInclusive<i16> = 8..=9;
/// What one answers that is not a group's coordinator any more.
const NOT_COORDINATOR: i16 = 16;
const MAX: Fetch = Fetch { records: 100, bytes: 1 << 20 };

/// A way to a broker that has just stopped being the coordinator where a group's offsets are asked for, so many times.
#[derive(Default)]
struct Mover {
    still: AtomicUsize,
}

impl Mover {
    async fn stand(self: Arc<Self>, at: u16, broker: u16) {
        let listener = TcpListener::bind(("127.0.0.1", at)).await.unwrap();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(("127.0.0.1", broker)).await else { continue };
                let mover = self.clone();
                tokio::spawn(async move {
                    let ((requests, back), (answers, to)) = (near.into_split(), far.into_split());
                    let moved = Mutex::default();
                    tokio::select! {
                        () = carry(requests, to, |request| mover.hear(request, &moved)) => {}
                        () = carry(answers, back, |answer| {
                            if let Some(other) = moved.lock().remove(&answer[..4]) {
                                *answer = other;
                            }
                        }) => {}
                    }
                });
            }
        });
    }

    /// Notes down what is to be answered to a question for offsets.
    fn hear(&self, request: &[u8], moved: &Mutex<HashMap<Vec<u8>, Vec<u8>>>) {
        let number = |at: usize| i16::from_be_bytes([request[at], request[at + 1]]);
        if number(0) != OFFSET_FETCH
            || self.still.fetch_update(Ordering::AcqRel, Ordering::Acquire, |still| still.checked_sub(1)).is_err()
        {
            return;
        }
        assert!(WITH_GROUPS.contains(&number(2)), "version {} is not known here", number(2));
        let correlation = request[4..8].to_vec();
        // Behind the client's name and no tags: a list of one group, whose name has its length in front.
        let group = &request[10 + usize::try_from(number(8)).unwrap_or_default() + 1 + 1..];
        let group = &group[..usize::from(group[0])];
        let nothing = [&[0; 5], &[2][..], group, &[1], &NOT_COORDINATOR.to_be_bytes(), &[0; 2]].concat();
        moved.lock().insert(correlation.clone(), [correlation, nothing].concat());
    }
}

/// Carries what has its length in front, as it is then.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut look: impl FnMut(&mut Vec<u8>)) {
    while let Ok(length) = from.read_u32().await {
        let mut frame = vec![0; length as usize];
        if from.read_exact(&mut frame).await.is_err() {
            return;
        }
        look(&mut frame);
        if to.write_u32(frame.len() as u32).await.is_err() || to.write_all(&frame).await.is_err() {
            return;
        }
    }
}

/// A broker behind such a way.
async fn broker() -> (Nodes, Arc<Mover>, Address) {
    let (own, shown) = free_ports().unwrap();
    let mover = Arc::new(Mover::default());
    mover.clone().stand(shown, own).await;
    let nodes = Nodes::start("kafka", &["--listener", &format!("{own}:{shown}")]).await;
    let address = address(&format!("127.0.0.1:{shown}"), &prefix(), "");
    topics::create(&address, &limits()).await.unwrap();
    (nodes, mover, address)
}

/// Reads until something of each partition has come.
async fn each_partition_is_read(log: &KafkaLog) {
    let mut member = log.join(Group("esh3ar.pipeline"), &[Topic::Lane(Priority::Normal)]).await.unwrap();
    let mut read = std::collections::BTreeSet::new();
    while read.len() < usize::from(PARTITIONS) {
        let event = tokio::time::timeout(Duration::from_secs(30), member.poll(MAX)).await;
        let event = event.unwrap_or_else(|_| panic!("only {read:?} are read")).unwrap();
        if let Event::Records(records) = event {
            read.extend(records.iter().map(|record| record.at.partition));
        }
    }
    member.leave().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_are_read_whoever_does_not_know_where_to_begin() {
    let (_nodes, mover, address) = broker().await;
    let log = open(&address).await.unwrap();
    let records = (0..PARTITIONS).map(|p| Append {
        at: TopicPartition { topic: Topic::Lane(Priority::Normal), partition: Partition(p) },
        headers: Headers::default(),
        body: "x".into(),
    });
    for outcome in log.append(records.collect()).await {
        outcome.unwrap();
    }
    mover.still.store(4, Ordering::Release);
    each_partition_is_read(&log).await;
    assert_eq!(mover.still.load(Ordering::Acquire), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_door_reads_whoever_does_not_know_where_to_begin() {
    if !has("kcat") {
        return tests::harness::not_run("the Kafka door by kcat: this machine has no kcat");
    }
    let (nodes, mover, address) = broker().await;
    let topic = format!("{}ingress", address.path);
    for partition in 0..PARTITIONS {
        let at = ["-p".to_owned(), partition.to_string()];
        kcat_with(&nodes.hosts(), &topic, &at, &["one".to_owned()]).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut settings = Settings::folder(folder.path().to_owned(), limits(), 60_000);
    settings.places.log = Some(address);
    let stores = Stores::open(settings, Arc::new(SystemClock::new())).await.unwrap();
    mover.still.store(4, Ordering::Release);
    let mut reader = stores.ingress().await.unwrap().unwrap();
    of_all(&mut *reader, "one", usize::from(PARTITIONS)).await;
    assert_eq!(mover.still.load(Ordering::Acquire), 0);
    reader.leave().await.unwrap();
}
