//! Nothing is lost among many: the short form of `esh3ar drill cluster`, every class of fault at least once, on every role and
//! kind of server, first on three Kafka brokers, then on three Cassandra nodes, at 200 messages a second. The suite `drill` of
//! `./test`.

use std::sync::Arc;

use ops::{
    clock::SystemClock,
    drill::{
        ClusterDrill, Pace,
        cluster::{self, Class, ClusterReport},
    },
};
use tests::harness::{binary, cluster::scripts};

async fn drill(servers: (usize, usize), sync: &'static str, faults: &[Class]) -> ClusterReport {
    let folder = tempfile::tempdir().unwrap();
    let drill = ClusterDrill {
        rounds: faults.len(),
        faults: faults.to_vec(),
        seed: std::env::var("ESH3AR_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_122),
        users: 16,
        pace: Pace { slower: 20, rate: Some(200) },
        sync,
        freeze_s: 10,
        settle_ms: 60_000,
        servers,
        roles: (2, 2, 3),
        stack: scripts(),
        program: Some(binary()),
        folder: folder.path().to_owned(),
        set: Vec::new(),
    };
    let report = cluster::run(&drill, Arc::new(SystemClock::new()), |told| {
        let ms = |ms: Option<u64>| ms.map_or_else(|| "not in time".to_owned(), |ms| format!("{ms} ms"));
        println!(
            "{}: longest silence {} ms, full rate after {} ({} after its end), caught up after {}",
            told.fault,
            told.silence_ms,
            ms(told.full_rate_ms),
            ms(told.after_end_ms),
            ms(told.caught_up_ms)
        );
    });
    let report = report.await.unwrap_or_else(|why| panic!("the drill could not be done: {why:#}"));
    println!("{}", serde_json::to_string(&report).unwrap());
    assert!(report.is_clean(), "seed {}: {:#?}", report.seed, report.account.faults);
    assert_eq!(report.waiting, 0, "every group has read everything");
    report
}

const THREE_BROKERS: [Class; 16] = [
    Class::KillIngest,
    Class::KillPipeline,
    Class::KillGateway,
    Class::Stop,
    Class::FreezeIngest,
    Class::FreezePipeline,
    Class::FreezeGateway,
    Class::Rolling,
    Class::Scale,
    Class::KillKafka,
    Class::FreezeKafka,
    Class::KillRedis,
    Class::FreezeRedis,
    Class::Network,
    Class::NetworkClients,
    Class::NetworkServers,
];

const THREE_HISTORY_NODES: [Class; 8] = [
    Class::KillHistory,
    Class::FreezeHistory,
    Class::KillPipeline,
    Class::FreezePipeline,
    Class::KillGateway,
    Class::Network,
    Class::NetworkPair,
    Class::NetworkServers,
];

#[test]
fn the_short_form_has_every_class_of_fault() {
    let both = [&THREE_BROKERS[..], &THREE_HISTORY_NODES[..]].concat();
    assert!(Class::ALL.iter().all(|class| both.contains(class)), "{both:?}");
}

/// R6.1, R6.2, R7.5, R7.6, invariants 1 to 5: every role, and brokers of which there are three.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes under load: run by the suite `drill`"]
async fn nothing_is_lost_among_many_processes_on_three_brokers() {
    let report = drill((3, 1), "periodic", &THREE_BROKERS).await;
    // A killed pipeline's partitions flow again within 10 s, a killed gateway's clients are back within 5 s.
    assert!(report.silence_ms(Class::KillPipeline) < 10_000 + report.calm_silence_ms, "{report:#?}");
    assert!(report.silence_ms(Class::KillGateway) < 5_000 + report.calm_silence_ms, "{report:#?}");
}

/// The same with three nodes of the history, one of which dies, stands still or is not reached, and a network between every
/// process and the broker.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes under load: run by the suite `drill`"]
async fn nothing_is_lost_when_one_of_three_history_nodes_dies_or_stands_still() {
    let report = drill((1, 3), "periodic", &THREE_HISTORY_NODES).await;
    for class in [Class::KillHistory, Class::FreezeHistory] {
        assert!(report.silence_ms(class) < 15_000, "{class}: {report:#?}");
    }
}

/// The only node of the history dies, and stands still, and is out of reach: nobody sees anything meanwhile, and nothing is lost.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes under load: run by the suite `cluster`"]
async fn what_was_accepted_outlives_the_only_history_node() {
    // Its disk is all that there is.
    drill((1, 1), "group", &[Class::KillHistory, Class::FreezeHistory, Class::Network, Class::NetworkPair]).await;
}
