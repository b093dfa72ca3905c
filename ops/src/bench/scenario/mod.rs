//! The scenarios, in the order they run. Each starts its own server, and accounts for what it sent.

mod chat;
mod closing;
mod cluster;
mod end_to_end;
mod idle;
mod kept;
mod open_loop;
mod priority;
mod singles;
mod sizes;
mod threads;

use anyhow::{Context, Result};
use futures::future::LocalBoxFuture;

use super::{Report, Stage};

/// One scenario.
type Scenario = for<'a> fn(&'a Stage, &'a mut Report) -> LocalBoxFuture<'a, Result<()>>;

/// All of them by name.
pub(crate) fn all() -> Vec<(&'static str, Scenario)> {
    vec![
        ("end-to-end", |stage, report| Box::pin(end_to_end::run(stage, report))),
        ("singles", |stage, report| Box::pin(singles::run(stage, report))),
        ("latency", |stage, report| Box::pin(open_loop::run(stage, report))),
        ("users", |stage, report| Box::pin(sizes::users(stage, report))),
        ("lanes", |stage, report| Box::pin(sizes::lanes(stage, report))),
        ("priority", |stage, report| Box::pin(priority::run(stage, report))),
        ("idle", |stage, report| Box::pin(idle::run(stage, report))),
        ("kept", |stage, report| Box::pin(kept::run(stage, report))),
        ("chat", |stage, report| Box::pin(chat::run(stage, report))),
        ("devices", |stage, report| Box::pin(chat::devices(stage, report))),
        ("threads", |stage, report| Box::pin(threads::run(stage, report))),
    ]
}

/// Those that need real servers: run where they are named.
pub(crate) fn on_servers() -> Vec<(&'static str, Scenario)> {
    vec![("cluster", |stage, report| Box::pin(cluster::run(stage, report)))]
}

/// A value of the server's own metrics, e.g. `esh3ar_store_syncs_total`, summed over its labels, or over those lines that have
/// this one, e.g. `lane="low"`.
async fn metric(listen: &str, name: &str, label: &str) -> Result<f64> {
    let text = reqwest::get(format!("http://{listen}/metrics")).await?.text().await?;
    let lines = text.lines().filter(|l| l.starts_with(name) && l[name.len()..].starts_with(['{', ' ']));
    let values: Vec<f64> =
        lines.filter(|l| l.contains(label)).filter_map(|l| l.rsplit(' ').next()?.parse().ok()).collect();
    (!values.is_empty()).then(|| values.iter().sum()).with_context(|| format!("the server has no metric {name}"))
}
