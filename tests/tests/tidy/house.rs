//! The house: which crate may know which, and which vendor lives where.

use crate::reading::{CRATES, code, files, names, none, read};

/// Which of our crates each may name.
const ARROWS: [(&str, &[&str]); 8] = [
    ("schemas", &[]),
    ("ingest", &["schemas"]),
    ("pipeline", &["schemas"]),
    ("sinks", &["schemas"]),
    ("stores", &["schemas"]),
    ("gateway", &["schemas", "ingest"]),
    ("ops", &["schemas", "ingest", "pipeline", "sinks", "stores", "gateway"]),
    ("tests", &["schemas", "ingest", "pipeline", "sinks", "stores", "gateway", "ops"]),
];

/// Where each vendor may be named. What is not listed is a tool that anyone may use.
const VENDORS: [(&str, &[&str]); 23] = [
    ("timely", &["pipeline"]),
    ("axum", &["ingest", "gateway", "ops"]),
    ("fjall", &["stores"]),
    ("reqwest", &["sinks", "ops", "tests"]),
    ("hyper", &["ops"]),
    ("hyper-util", &["ops"]),
    ("tower", &["ingest", "gateway", "ops"]),
    ("tokio-tungstenite", &["gateway", "ops", "tests"]),
    ("jsonwebtoken", &["ingest"]),
    ("aws-lc-rs", &["ingest", "stores"]),
    ("ammonia", &["ingest"]),
    ("moka", &["ingest", "stores"]),
    ("phonenumber", &["schemas"]),
    ("postcard", &["schemas", "stores"]),
    ("jiff", &["schemas", "ops"]),
    ("clap", &["ops"]),
    ("toml", &["ops"]),
    ("anyhow", &["ops"]),
    ("comfy-table", &["ops"]),
    ("indicatif", &["ops"]),
    ("mimalloc", &["ops"]),
    ("metrics-exporter-prometheus", &["ops"]),
    ("tracing-subscriber", &["ops"]),
];

/// The names in one section of a manifest.
fn dependencies(manifest: &str, section: &str) -> Vec<String> {
    let lines = manifest.lines().skip_while(|line| line.trim() != section).skip(1);
    let lines = lines.take_while(|line| !line.starts_with('['));
    let name = |line: &str| line.split(['.', '=', ' ']).next().unwrap_or_default().to_owned();
    lines.filter(|line| !line.trim().is_empty() && !line.starts_with('#')).map(name).collect()
}

#[test]
fn arrows_between_crates_point_one_way() {
    let mut findings = Vec::new();
    for (folder, may) in ARROWS {
        let manifest = read(&format!("{folder}/Cargo.toml"));
        for section in ["[dependencies]", "[dev-dependencies]"] {
            for name in dependencies(&manifest, section) {
                let Some(ours) = name.strip_prefix("esh3ar-") else { continue };
                if !may.contains(&ours) {
                    findings.push(format!("{folder} names {ours} in {section}: it may name {may:?}"));
                }
            }
        }
    }
    none(findings);
}

#[test]
fn vendors_are_named_only_where_they_belong() {
    let mut findings = Vec::new();
    for folder in CRATES {
        let manifest = read(&format!("{folder}/Cargo.toml"));
        let sources: Vec<_> = files(folder, ".rs").into_iter().map(|(path, text)| (path, code(&text))).collect();
        for (vendor, places) in VENDORS {
            if places.contains(&folder) {
                continue;
            }
            for section in ["[dependencies]", "[dev-dependencies]"] {
                if dependencies(&manifest, section).iter().any(|name| name == vendor) {
                    findings.push(format!("{folder}/Cargo.toml: {vendor} belongs in {places:?}"));
                }
            }
            let ident = vendor.replace('-', "_");
            let naming = sources.iter().filter(|(_, code)| names(code, &ident, "::"));
            findings.extend(naming.map(|(path, _)| format!("{path}: {vendor} belongs in {places:?}")));
        }
    }
    none(findings);
}

#[test]
fn schemas_acts_on_nothing() {
    let mut findings = Vec::new();
    for (path, text) in files("schemas/src", ".rs") {
        let code = code(&text);
        for acting in ["std::fs", "std::net", "std::process", "std::thread", "tokio", "tracing", "metrics"] {
            if names(&code, acting, "::") {
                findings.push(format!("{path} names {acting}: what acts stands behind a port"));
            }
        }
    }
    none(findings);
}

#[test]
fn every_dependency_is_used() {
    let mut findings = Vec::new();
    for folder in CRATES {
        let manifest = read(&format!("{folder}/Cargo.toml"));
        let all: String = files(folder, ".rs").into_iter().map(|(_, text)| code(&text) + "\n").collect();
        for section in ["[dependencies]", "[dev-dependencies]"] {
            for name in dependencies(&manifest, section) {
                let ident = name.strip_prefix("esh3ar-").unwrap_or(&name).replace('-', "_");
                // A name is used by a path, or taken whole by `use name;`, or as an attribute's macro.
                if !["::", ";", "]"].iter().any(|then| names(&all, &ident, then)) {
                    findings.push(format!("{folder}/Cargo.toml {section}: {name} is not used"));
                }
            }
        }
    }
    none(findings);
}

#[test]
fn a_crate_takes_versions_and_lints_from_the_workspace() {
    let mut findings = Vec::new();
    for folder in CRATES {
        let manifest = read(&format!("{folder}/Cargo.toml"));
        if !manifest.contains("[lints]\nworkspace = true") {
            findings.push(format!("{folder}/Cargo.toml does not take the workspace's lints"));
        }
        for (number, line) in manifest.lines().enumerate() {
            if line.starts_with("version") && !line.contains("workspace")
                || line.contains("= \"") && line.contains("version =")
            {
                findings.push(format!("{folder}/Cargo.toml:{}: versions are chosen in the root manifest", number + 1));
            }
        }
    }
    none(findings);
}
