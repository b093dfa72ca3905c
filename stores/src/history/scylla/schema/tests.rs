//! The schema's text is valid for both servers, as far as a text can tell.

use super::*;

#[test]
fn every_version_is_cut_into_statements_of_this_keyspace() {
    let all = statements(VERSIONS[0].1, "e");
    assert!(all.len() >= 13);
    for statement in &all {
        let fine = ["CREATE TABLE IF NOT EXISTS e.", "CREATE TABLE IF NOT EXISTS e_control."];
        assert!(fine.iter().any(|start| statement.starts_with(start)), "{statement}");
        assert!(!statement.contains("KEYSPACE") && !statement.contains("CONTROL"));
    }
    assert!(VERSIONS.windows(2).all(|two| two[0].0 + 1 == two[1].0), "versions are numbered without a gap");
}

/// What one of the two servers lacks, or does otherwise.
const NOT_PORTABLE: &[(&str, &str)] = &[
    ("SIMPLESTRATEGY", "replication knows data centres"),
    ("COUNTER", "tablets know no counters"),
    ("CDC", "another option in each"),
    ("MATERIALIZED VIEW", "experimental in Cassandra"),
    ("CREATE INDEX", "other kinds in each"),
    ("CREATE CUSTOM INDEX", "Cassandra's alone"),
    ("VECTOR<", "Cassandra's alone"),
    ("CREATE FUNCTION", "other languages in each"),
    ("ALLOW FILTERING", "reads everything"),
    ("INCREMENTALCOMPACTIONSTRATEGY", "ScyllaDB's alone"),
    ("UNIFIEDCOMPACTIONSTRATEGY", "Cassandra's alone"),
    ("SIZETIEREDCOMPACTIONSTRATEGY", "another thing in each"),
    ("TOMBSTONE_GC", "ScyllaDB's alone"),
    ("PER_PARTITION_RATE_LIMIT", "ScyllaDB's alone"),
    ("BYPASS CACHE", "ScyllaDB's alone"),
    ("MEMTABLE", "Cassandra's alone"),
    ("READ_REPAIR", "Cassandra's alone"),
    ("ADDITIONAL_WRITE_POLICY", "Cassandra's alone"),
    ("TABLETS", "added for ScyllaDB when a keyspace is created"),
];

#[test]
fn the_tables_use_what_both_servers_know() {
    for (version, text) in VERSIONS {
        let text = statements(text, "e").join(";\n").to_uppercase();
        for (word, why) in NOT_PORTABLE {
            assert!(!text.contains(word), "version {version} has {word}: {why}");
        }
        for class in text.split("'CLASS': '").skip(1) {
            let fine = ["TIMEWINDOWCOMPACTIONSTRATEGY'", "LEVELEDCOMPACTIONSTRATEGY'"];
            assert!(fine.iter().any(|name| class.starts_with(name)), "version {version}: {class}");
        }
    }
}

#[test]
fn conditions_are_asked_only_in_the_control_keyspace() {
    let text = include_str!("../statements.rs");
    for line in text.lines().filter(|line| line.contains(" IF ") && line.contains(" = \"")) {
        assert!(line.contains("CTL."), "{line}");
    }
    assert!(!text.contains("ALLOW FILTERING") && !text.to_uppercase().contains("COUNTER"));
}
