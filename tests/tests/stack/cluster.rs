//! Nothing is lost among many: the short form of `esh3ar drill cluster`, 100 to 200 messages a second throughout, every class of
//! fault at least once, first on three Kafka brokers, then on three Cassandra nodes. The suite `cluster` of `./test`.

use std::sync::Arc;

use ops::{
    clock::SystemClock,
    drill::{
        ClusterDrill,
        cluster::{self, Class, ClusterReport},
    },
};
use tests::harness::{binary, cluster::scripts};

async fn drill(servers: (usize, usize), pace: u32, faults: Vec<Class>) -> ClusterReport {
    let folder = tempfile::tempdir().unwrap();
    let drill = ClusterDrill {
        rounds: faults.len(),
        faults,
        seed: std::env::var("ESH3AR_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_122),
        users: 16,
        pace,
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

fn without(left_out: &[Class]) -> Vec<Class> {
    Class::ALL.into_iter().filter(|class| !left_out.contains(class)).collect()
}

/// R6.1, R6.2, R7.5, R7.6, invariants 1 to 5.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes under load: run by the suite `cluster`"]
async fn nothing_is_lost_among_many_processes_on_three_brokers() {
    let report = drill((3, 1), 10, without(&[Class::FreezeHistory])).await;
    // A killed pipeline's partitions flow again within 10 s, a killed gateway's clients are back within 5 s.
    assert!(report.silence_ms(Class::KillPipeline) < 10_000 + report.calm_silence_ms, "{report:#?}");
    assert!(report.silence_ms(Class::KillGateway) < 5_000 + report.calm_silence_ms, "{report:#?}");
}

/// The same with three nodes of the history, one of which dies or stands still.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes under load: run by the suite `cluster`"]
async fn nothing_is_lost_when_one_of_three_history_nodes_dies_or_stands_still() {
    let faults = vec![
        Class::KillHistory,
        Class::FreezeHistory,
        Class::FreezePipeline,
        Class::Network,
        Class::NetworkPair,
        Class::NetworkClients,
        Class::KillHistory,
        Class::KillPipeline,
        Class::NetworkPair,
    ];
    // Each row is written three times: on two cores the pace of one node is more than three can do, and a backlog that cannot
    // shrink says nothing about faults.
    let report = drill((1, 3), 20, faults).await;
    for class in [Class::KillHistory, Class::FreezeHistory] {
        assert!(report.silence_ms(class) < 15_000, "{class}: {report:#?}");
    }
}
