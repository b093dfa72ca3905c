//! It does not lose anything, through messages of every kind: the drill of `esh3ar drill kill`, with real processes and real `kill -9`.

use std::process::Command;

use serde_json::Value;

#[test]
fn fifty_kills_lose_nothing_double_nothing_and_keep_the_order() {
    let folder = tempfile::tempdir().unwrap();
    let rounds = std::env::var("ESH3AR_KILLS").unwrap_or_else(|_| "50".to_owned());
    let mut drill = Command::new(tests::harness::binary());
    drill.args(["drill", "kill", "--json", "--rounds", &rounds, "--data"]).arg(folder.path().join("data"));
    let output = drill.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    println!("{report:#}");
    assert_eq!(report["faults"].as_array().map(Vec::len), Some(0), "{report:#}\n{said}");
    assert_eq!(report["kills"].to_string(), rounds);
    // Everything that the drill is to try was tried, again and again.
    let often = report["kills"].as_u64().unwrap_or_default() / 10;
    let at_least =
        [("accepted", 1_000 * often), ("asked", 10 * often), ("told", 10 * often), ("starts_with_two", often)];
    let rare = ["broken_batches", "broadcasts", "expired", "cancelled"].map(|what| (what, often));
    for (what, least) in at_least.into_iter().chain(rare) {
        assert!(report[what].as_u64() >= Some(least), "less than {least} {what}: {report:#}");
    }
    assert_eq!((report["balanced"].as_bool(), output.status.code()), (Some(true), Some(0)), "{report:#}\n{said}");
}
