//! The scenarios, in the order they run. Each starts its own server.

mod end_to_end;
mod idle;
mod kept;
mod open_loop;
mod priority;
mod singles;

use anyhow::{Context, Result};
use futures::future::LocalBoxFuture;

use super::{Report, Stage};
use crate::child::Server;

/// One scenario.
type Scenario = for<'a> fn(&'a Stage, &'a mut Report) -> LocalBoxFuture<'a, Result<()>>;

/// All of them by name.
pub(crate) fn all() -> Vec<(&'static str, Scenario)> {
    vec![
        ("end-to-end", |stage, report| Box::pin(end_to_end::run(stage, report))),
        ("singles", |stage, report| Box::pin(singles::run(stage, report))),
        ("latency", |stage, report| Box::pin(open_loop::run(stage, report))),
        ("users", |stage, report| Box::pin(end_to_end::users(stage, report))),
        ("priority", |stage, report| Box::pin(priority::run(stage, report))),
        ("idle", |stage, report| Box::pin(idle::run(stage, report))),
        ("kept", |stage, report| Box::pin(kept::run(stage, report))),
    ]
}

/// A counter of the server's own metrics, e.g. `esh3ar_store_syncs_total`, over all its labels.
async fn counter(server: &Server, name: &str) -> Result<f64> {
    let text = reqwest::get(format!("{}/metrics", server.url())).await?.text().await?;
    let lines = text.lines().filter(|l| l.starts_with(name) && l[name.len()..].starts_with(['{', ' ']));
    let values: Vec<f64> = lines.filter_map(|l| l.rsplit(' ').next()?.parse().ok()).collect();
    (!values.is_empty()).then(|| values.iter().sum()).with_context(|| format!("the server has no metric {name}"))
}
