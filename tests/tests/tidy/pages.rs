//! The pages: every refusal explained, every key and metric documented, every link leading somewhere.

use std::collections::BTreeSet;

use ops::config::{Config, keys};
use schemas::{Code, Problem};

use crate::reading::{code, files, none, read, root};

/// A page's last JSON block.
fn example(page: &str) -> Option<&str> {
    page.rsplit("```json\n").next()?.split("```").next()
}

#[test]
fn every_problem_has_its_page_and_no_page_is_an_orphan() {
    let mut findings = Vec::new();
    let index = read("docs/problems/README.md");
    for code in Code::ALL {
        let (slug, path) = (code.slug(), format!("docs/problems/{}.md", code.slug()));
        let Some((_, page)) = files("docs/problems", &format!("{slug}.md")).into_iter().find(|(p, _)| *p == path)
        else {
            findings.push(format!("{path} is missing"));
            continue;
        };
        let opening = format!("# {slug} ({})\n\n{}.\n", code.status(), code.title());
        if !page.starts_with(&opening) {
            findings.push(format!("{path} does not open with {opening:?}"));
        }
        match example(&page).map(serde_json::from_str::<serde_json::Value>) {
            Some(Ok(body)) => {
                let read: Problem = serde_json::from_value(body.clone()).expect("any object is a problem");
                if read.code != *code || serde_json::to_value(&read).ok() != Some(body) {
                    findings.push(format!("{path}: its example is not a {slug} as the service answers it"));
                }
            }
            _ => findings.push(format!("{path} has no example")),
        }
        if !index.contains(&format!("[{slug}]({slug}.md) | {} |", code.title())) {
            findings.push(format!("docs/problems/README.md does not list {slug}"));
        }
    }
    for (path, _) in files("docs/problems", ".md") {
        let name = path.trim_start_matches("docs/problems/").trim_end_matches(".md");
        if name != "README" && Code::parse(name).is_none() {
            findings.push(format!("{path} explains a problem that is never answered"));
        }
    }
    none(findings);
}

/// The table row of each configuration key, as `docs/configuration.md` must have it.
fn rows() -> Vec<(String, String)> {
    let defaults = serde_json::to_value(Config::default()).expect("a configuration is JSON");
    keys::all()
        .into_iter()
        .map(|key| {
            let value = key.path.split('.').fold(&defaults, |at, part| &at[part]);
            let shown = match value {
                serde_json::Value::String(text) if text.is_empty() => "empty".to_owned(),
                serde_json::Value::Array(items) if items.is_empty() => "none".to_owned(),
                serde_json::Value::String(text) => format!("`{text}`"),
                other => other.to_string(),
            };
            let short = key.path.strip_prefix("limits.").and_then(|p| p.split_once('.')).map_or(&*key.path, |(_, k)| k);
            let row = format!("| `{short}` | {shown} | {} |", key.doc.trim().replace('|', "\\|"));
            (key.path, row)
        })
        .collect()
}

#[test]
fn every_configuration_key_is_documented_with_its_default() {
    let page = read("docs/configuration.md");
    let rows = rows();
    // `ESH3AR_PRINT_ROWS=1 cargo test -p esh3ar-tests --test tidy configuration -- --nocapture` prints what belongs there.
    if std::env::var_os("ESH3AR_PRINT_ROWS").is_some() {
        for (path, row) in &rows {
            println!("{path}\t{row}");
        }
    }
    let lines: BTreeSet<&str> = page.lines().collect();
    let mut findings: Vec<String> = rows
        .iter()
        .filter(|(_, row)| !lines.contains(row.as_str()))
        .map(|(path, row)| format!("{path}: docs/configuration.md lacks {row}"))
        .collect();
    let known: BTreeSet<&str> = rows.iter().map(|(_, row)| row.as_str()).collect();
    let told = lines.iter().filter(|line| line.starts_with("| `") && !known.contains(*line));
    findings
        .extend(told.map(|line| format!("docs/configuration.md tells of a key that is not there, or not so: {line}")));
    none(findings);
}

/// The names of metrics that sources give values to.
fn metrics() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for folder in ["ingest", "pipeline", "sinks", "stores", "gateway", "ops"] {
        for (_, text) in files(&format!("{folder}/src"), ".rs") {
            for piece in code(&text).split("\"esh3ar_").skip(1) {
                let name: String =
                    piece.chars().take_while(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '_').collect();
                // A whole literal, not the beginning of a longer text.
                if !name.is_empty() && piece[name.len()..].starts_with('"') {
                    found.insert(format!("esh3ar_{name}"));
                }
            }
        }
    }
    found
}

#[test]
fn every_metric_is_documented_and_no_other() {
    let page = read("docs/metrics.md");
    let told: BTreeSet<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `esh3ar_")?.split(['`', '{']).next())
        .map(|name| format!("esh3ar_{name}"))
        .collect();
    let given = metrics();
    let mut findings: Vec<String> =
        given.difference(&told).map(|name| format!("docs/metrics.md lacks {name}")).collect();
    findings.extend(
        told.difference(&given).map(|name| format!("docs/metrics.md tells of {name}, which nobody gives a value")),
    );
    none(findings);
}

#[test]
fn no_counter_is_both_counted_and_set() {
    let mut ways = std::collections::BTreeMap::<String, BTreeSet<&str>>::new();
    for folder in ["ingest", "pipeline", "sinks", "stores", "gateway", "ops"] {
        for (_, text) in files(&format!("{folder}/src"), ".rs") {
            for piece in code(&text).split("\"esh3ar_").skip(1) {
                let name = piece.split('"').next().unwrap_or_default().to_owned();
                let call = piece.split(';').next().unwrap_or_default();
                let way = [".absolute(", ".increment("].into_iter().find(|way| call.contains(way));
                ways.entry(name).or_default().extend(way);
            }
        }
    }
    let both = ways.into_iter().filter(|(_, ways)| ways.len() > 1);
    none(both.map(|(name, _)| format!("esh3ar_{name} is counted in one place and set in another")));
}

#[test]
fn every_link_between_pages_leads_somewhere() {
    let mut findings = Vec::new();
    for (path, text) in files("", ".md") {
        let folder = root().join(&path).parent().expect("a file stands in a folder").to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { root().join(&path) } else { folder.join(file) };
            if !target.exists() {
                findings.push(format!("{path}: {link} leads nowhere"));
            } else if !anchor.is_empty() && target.is_file() {
                let page = std::fs::read_to_string(&target).unwrap_or_default();
                if !page.lines().filter(|line| line.starts_with('#')).any(|line| slug(line) == anchor) {
                    findings.push(format!("{path}: {link} names a heading that is not there"));
                }
            }
        }
    }
    none(findings);
}

/// A heading as links name it.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}
