//! A topic that is not there for a moment: somebody deleted it and made it again. What comes afterwards is read.

use std::time::Duration;

use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
};
use schemas::{
    Partition, Priority, Topic, TopicPartition,
    port::{Append, Consumer, Event, Fetch, Group, Headers, Log as _},
};
use tests::harness::{eventually, stack::Nodes};

use super::*;

const GROUP: Group = Group("esh3ar.pipeline");
const LANE: Topic = Topic::Lane(Priority::High);
const MAX: Fetch = Fetch { records: 100, bytes: 1 << 20 };
const PATIENCE: Duration = Duration::from_secs(120);

/// One record in each partition of the lane, again and again until each is taken.
async fn put(log: &KafkaLog, body: &str) {
    for partition in 0..PARTITIONS {
        let at = TopicPartition { topic: LANE, partition: Partition(partition) };
        let record = || Append { at, headers: Headers::default(), body: body.to_owned().into() };
        let taken = async || matches!(log.append(vec![record()]).await.as_slice(), [Ok(_)]).then_some(());
        eventually("the log takes a record", taken).await;
    }
}

/// Reads until a record with this body came of every partition.
async fn read(member: &mut dyn Consumer, body: &str) {
    let mut missing: Vec<_> = (0..PARTITIONS).map(Partition).collect();
    while !missing.is_empty() {
        match member.poll(MAX).await {
            Ok(Event::Records(records)) => {
                missing.retain(|at| !records.iter().any(|r| r.at.partition == *at && r.body == body.as_bytes()));
            }
            Ok(Event::Revoked(partitions)) => member.release(&partitions).await.unwrap(),
            Ok(Event::Assigned(_)) => {}
            Err(why) => println!("the member: {why}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_was_made_anew_is_read() {
    let nodes = Nodes::start("kafka", &[]).await;
    let address = address(&nodes.hosts(), "anew.", "");
    topics::create(&address, &limits()).await.unwrap();
    let log = open(&address).await.unwrap();
    let mut member = log.join(GROUP, &[LANE, Topic::Outcomes]).await.unwrap();
    put(&log, "before").await;
    tokio::time::timeout(PATIENCE, read(&mut *member, "before")).await.expect("what came before is read");

    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", nodes.hosts());
    let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
    let name = LANE.name().replacen("esh3ar.", "anew.", 1);
    for gone in admin.delete_topics(&[name.as_str()], &AdminOptions::new()).await.unwrap() {
        gone.unwrap();
    }
    // The group hears of it, and gives its partitions to nobody.
    let gone = async {
        loop {
            match member.poll(MAX).await {
                Ok(Event::Revoked(partitions)) => return member.release(&partitions).await.unwrap(),
                Ok(_) => {}
                Err(why) => println!("the member: {why}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("the group hears that the topic is gone");
    eventually("the topic is made anew", async || topics::create(&address, &limits()).await.ok()).await;
    let all = async {
        put(&log, "after").await;
        read(&mut *member, "after").await;
    };
    tokio::time::timeout(PATIENCE, all).await.expect("what came after is read");
    nodes.stop().await;
}
