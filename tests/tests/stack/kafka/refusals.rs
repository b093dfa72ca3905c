//! What is wrong is said in a sentence, with what to do.

use schemas::{
    Partition, Topic, TopicPartition,
    port::{Append, Headers, Log as _, PortError},
};
use tests::harness::stack;

use super::*;

async fn said(address: &Address) -> String {
    match open(address).await {
        Ok(_) => panic!("{address} was opened"),
        Err(why) => why.to_string(),
    }
}

fn safe(login: &str, hosts: &str, prefix: &str, options: &str) -> Address {
    Address::parse(&format!("kafka://{login}@{hosts}/{prefix}?{options}")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_every_login_work() {
    let nodes = stack::safe_kafka().await;
    let (hosts, ca) = (nodes.hosts(), nodes.folder.join("ca.pem"));
    let prefix = prefix();
    for (turn, mechanism) in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"].into_iter().enumerate() {
        let options = format!("tls=true&ca={}&mechanism={mechanism}", ca.display());
        let address = safe("esh3ar:secret", &hosts, &prefix, &options);
        topics::create(&address, &limits()).await.unwrap();
        let log = open(&address).await.unwrap();
        let at = TopicPartition { topic: Topic::Dead, partition: Partition(0) };
        let record = Append { at, headers: Headers::default(), body: mechanism.into() };
        assert_eq!(log.append(vec![record]).await, [Ok(schemas::Offset(turn as u64))]);
        log.check().await.unwrap();
        log.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_login_and_a_wrong_authority_are_said() {
    let nodes = stack::safe_kafka().await;
    let (hosts, ca) = (nodes.hosts(), nodes.folder.join("ca.pem"));
    for mechanism in ["PLAIN", "SCRAM-SHA-512"] {
        let options = format!("tls=true&ca={}&mechanism={mechanism}", ca.display());
        let said = said(&safe("esh3ar:wrong", &hosts, "x.", &options)).await;
        assert!(said.contains("refused the login") && said.contains("password"), "{said}");
        assert!(!said.contains("wrong"), "a password is not shown: {said}");
    }
    let said = said(&safe("esh3ar:secret", &hosts, "x.", "tls=true")).await;
    assert!(said.contains("TLS") && said.contains("`ca`"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_said() {
    let said = said(&address("127.0.0.1:1", "x.", "")).await;
    assert!(said.contains("127.0.0.1:1") && said.contains("does not answer") && said.contains("stores.log"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_the_topics_is_said_with_what_mends_it() {
    let hosts = stack::kafka().await.hosts();
    let prefix = prefix();
    let address = |options: &str| address(&hosts, &prefix, options);
    let missing = said(&address("")).await;
    assert!(missing.contains("esh3ar topics create") && missing.contains("messages.high is missing"), "{missing}");
    assert_eq!(topics::check(&address(""), &limits()).await.unwrap().len(), 13);
    let made = topics::create(&address(""), &limits()).await.unwrap();
    assert_eq!((made.len(), topics::create(&address(""), &limits()).await.unwrap().len()), (13, 0));
    assert_eq!(topics::check(&address(""), &limits()).await.unwrap(), []);
    let log = open(&address("")).await.unwrap();
    assert_eq!((log.durability(), log.partitions()), (schemas::port::Durability::Process, PARTITIONS));
    for (options, part) in [
        ("partitions=6", "limits.store.partitions to 4"),
        ("replication=3", "kafka-reassign-partitions"),
        ("min_isr=2", "min.insync.replicas=2"),
    ] {
        let said = said(&address(options)).await;
        assert!(said.contains(part), "{options}: {said}");
    }
    let cannot = topics::create(&address("replication=3"), &limits()).await.unwrap_err().to_string();
    assert!(cannot.contains("1 brokers") && cannot.contains("replication"), "{cannot}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_too_large_is_rejected_and_the_others_go() {
    let address = installation("").await;
    let log = open(&address).await.unwrap();
    let at = TopicPartition { topic: Topic::Outcomes, partition: Partition(1) };
    let record = |bytes: usize| Append { at, headers: Headers::default(), body: vec![7; bytes].into() };
    let most = limits().kafka_record_bytes;
    // Past our own bound, and past the broker's, which counts what is around the record too.
    let outcomes = log.append(vec![record(1), record(most + 1), record(most), record(2 << 20)]).await;
    assert_eq!(outcomes[0], Ok(schemas::Offset(0)));
    for outcome in &outcomes[1..3] {
        assert!(matches!(outcome, Err(PortError::Rejected(why)) if why.contains("max.message.bytes")), "{outcome:?}");
    }
    assert_eq!(outcomes[3], Ok(schemas::Offset(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_prefixes_are_two_installations() {
    let (one, two) = (installation("").await, installation("").await);
    let (one, two) = (open(&one).await.unwrap(), open(&two).await.unwrap());
    assert_ne!(one.identity(), two.identity());
    let at = TopicPartition { topic: Topic::Dead, partition: Partition(0) };
    one.append(vec![Append { at, headers: Headers::default(), body: "x".into() }]).await.remove(0).unwrap();
    assert_eq!(two.bounds(at).await.unwrap().1, schemas::Offset(0));
}
