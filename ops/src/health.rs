//! Whether the process lives, and whether it takes work. Readiness names each dependency: without a hard one (log, history,
//! pipeline) there is no new work; without another the service is degraded, says so and answers 200 (rule 11).

use std::{future::Future, sync::Arc, time::Duration};

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use metrics_exporter_prometheus::PrometheusHandle;
use schemas::{
    MessageId,
    port::{History, Log, PortError, PortResult, Presence},
};
use serde::Serialize;
use tokio::sync::watch;

/// How long a dependency may take to answer before it counts as away.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is asked.
#[derive(Clone)]
pub struct Health {
    /// The log.
    pub log: Arc<dyn Log>,
    /// The history.
    pub history: Arc<dyn History>,
    /// Presence.
    pub presence: Arc<dyn Presence>,
    /// Says why the store takes no writes any more.
    pub fatal: watch::Receiver<Option<String>>,
    /// Says why the dataflow has ended.
    pub pipeline: watch::Receiver<Option<String>>,
    /// Whether the process is on its way out.
    pub draining: watch::Receiver<bool>,
}

/// How one dependency does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dependency {
    /// Its name.
    pub name: &'static str,
    /// `up`, `full` or `down`.
    pub state: &'static str,
    /// Whether nothing goes without it.
    pub hard: bool,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// The answer of `/health/ready`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// `ready`, `degraded`, `draining` or `not_ready`.
    pub status: &'static str,
    /// Each dependency.
    pub dependencies: Vec<Dependency>,
    /// Names of those that do not do well.
    pub degraded: Vec<&'static str>,
}

impl Readiness {
    fn of(dependencies: Vec<Dependency>, draining: bool) -> Self {
        let degraded: Vec<_> = dependencies.iter().filter(|d| d.state != "up").map(|d| d.name).collect();
        let is_down = dependencies.iter().any(|d| d.hard && d.state == "down");
        let status = match (draining, is_down, degraded.is_empty()) {
            (true, ..) => "draining",
            (_, true, _) => "not_ready",
            (.., false) => "degraded",
            _ => "ready",
        };
        Self { status, dependencies, degraded }
    }

    /// Whether new work may come.
    pub fn takes_work(&self) -> bool {
        matches!(self.status, "ready" | "degraded")
    }
}

impl Health {
    /// Asks every dependency.
    pub async fn readiness(&self) -> Readiness {
        let (log, history, presence) = tokio::join!(
            ask("log", true, PATIENCE, self.log.check()),
            // A row that cannot be there: the shortest read that goes to the store.
            ask("history", true, PATIENCE, async {
                self.history.dead_letter(MessageId(uuid::Uuid::nil())).await.map(drop)
            }),
            ask("presence", false, PATIENCE, async { self.presence.locate(&[]).await.map(drop) }),
        );
        let store = told("store", &self.fatal);
        let pipeline = told("pipeline", &self.pipeline);
        Readiness::of(vec![log, history, store, pipeline, presence], *self.draining.borrow())
    }

    /// The routes; the same on both listeners.
    pub fn routes(self, metrics: PrometheusHandle) -> Router {
        Router::new()
            .route("/health/live", get(live))
            .route("/health/ready", get(ready))
            .with_state(self)
            .route("/metrics", get(move || std::future::ready(exposition(&metrics))))
    }
}

fn exposition(metrics: &PrometheusHandle) -> ([(&'static str, &'static str); 1], String) {
    ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], metrics.render())
}

async fn ask(
    name: &'static str,
    hard: bool,
    patience: Duration,
    answer: impl Future<Output = PortResult<()>>,
) -> Dependency {
    let (state, why) = match tokio::time::timeout(patience, answer).await {
        Ok(Ok(())) => ("up", None),
        // No room refuses new messages at the door; what is there can still be fetched and acknowledged.
        Ok(Err(PortError::Full(why))) => ("full", Some(why)),
        Ok(Err(why)) => ("down", Some(why.to_string())),
        Err(_) => ("down", Some("no answer in time".to_owned())),
    };
    Dependency { name, state, hard, why }
}

fn told(name: &'static str, word: &watch::Receiver<Option<String>>) -> Dependency {
    let why = word.borrow().clone();
    Dependency { name, state: if why.is_some() { "down" } else { "up" }, hard: true, why }
}

async fn live(State(health): State<Health>) -> (StatusCode, Json<serde_json::Value>) {
    match health.fatal.borrow().clone() {
        None => (StatusCode::OK, Json(serde_json::json!({ "status": "live" }))),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, Json(serde_json::json!({ "status": "ending", "why": why }))),
    }
}

async fn ready(State(health): State<Health>) -> (StatusCode, Json<Readiness>) {
    let readiness = health.readiness().await;
    let status = if readiness.takes_work() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dependency(name: &'static str, state: &'static str, hard: bool) -> Dependency {
        Dependency { name, state, hard, why: None }
    }

    #[test]
    fn only_hard_dependencies_stop_new_work() {
        for (log, presence, draining, status, works) in [
            ("up", "up", false, "ready", true),
            ("up", "down", false, "degraded", true),
            ("full", "up", false, "degraded", true),
            ("down", "up", false, "not_ready", false),
            ("up", "up", true, "draining", false),
        ] {
            let said =
                Readiness::of(vec![dependency("log", log, true), dependency("presence", presence, false)], draining);
            assert_eq!((said.status, said.takes_work()), (status, works));
        }
    }

    #[tokio::test]
    async fn a_dependency_that_does_not_answer_is_down() {
        let said = ask("log", true, Duration::from_millis(1), std::future::pending()).await;
        assert_eq!((said.state, said.why.as_deref()), ("down", Some("no answer in time")));
    }
}
