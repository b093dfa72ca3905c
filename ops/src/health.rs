//! Whether the process lives, and whether it takes work. Readiness names each dependency with its state, how long it took to
//! answer and since when it is so. Without a dependency that is hard for its role a process takes no new work; without another
//! it is degraded, says so and answers 200 (rule 11).
//!
//! Dependencies are asked once a second in the background, each within a bounded time and apart from the others; a request
//! is answered from what was found last and asks nobody.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use futures::future::{BoxFuture, join_all};
use metrics_exporter_prometheus::PrometheusHandle;
use schemas::{
    Clock, MessageId, Timestamp,
    port::{History, Log, PortError, PortResult, Presence},
    vital,
};
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::compose::{Kept, Role, skew};

/// Between two askings.
const EVERY: Duration = Duration::from_secs(1);
/// How long a dependency may take to answer before it counts as away.
const PATIENCE: Duration = Duration::from_secs(2);
/// Past this an answer is slow: what it is needed for is slow too, and somebody should look.
const SLOW_MS: u64 = 1_000;
/// Clocks are compared once in so many askings: they drift, they do not jump.
const CLOCKS_EVERY: u64 = 60;

/// What is asked.
pub struct Parts {
    /// What the process does.
    pub role: Role,
    /// The log.
    pub log: Arc<dyn Log>,
    /// The history.
    pub history: Arc<dyn History>,
    /// Presence.
    pub presence: Arc<dyn Presence>,
    /// Where the servers' clocks are asked.
    pub stores: Kept,
    /// Says why nothing can be written any more, where something is kept in a data folder.
    pub folder: Option<watch::Receiver<Option<String>>>,
    /// Says why the dataflow has ended, where it runs here.
    pub pipeline: Option<watch::Receiver<Option<String>>>,
    /// Whether the process is on its way out.
    pub draining: watch::Receiver<bool>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// How far clocks may be apart, ms.
    pub skew_ms: u64,
    /// The door, where it is here: it is told when the log is away.
    pub door: Option<Arc<ingest::Door>>,
}

/// How one dependency does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dependency {
    /// Its name.
    pub name: &'static str,
    /// `up`, `slow`, `full` or `down`.
    pub state: &'static str,
    /// Whether this process takes no new work without it.
    pub hard: bool,
    /// How long it took to answer, ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<u64>,
    /// Since when its state is this one.
    pub since: Timestamp,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// The answer of `/health/ready`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// `ready`, `degraded`, `draining` or `not_ready`.
    pub status: &'static str,
    /// What the process does.
    pub role: &'static str,
    /// Each dependency.
    pub dependencies: Vec<Dependency>,
    /// Names of those that do not do well.
    pub degraded: Vec<&'static str>,
}

impl Readiness {
    fn of(role: Role, dependencies: Vec<Dependency>, draining: bool) -> Self {
        let degraded: Vec<_> = dependencies.iter().filter(|d| d.state != "up").map(|d| d.name).collect();
        let is_down = dependencies.iter().any(|d| d.hard && d.state == "down");
        let status = match (draining, is_down, degraded.is_empty()) {
            (true, ..) => "draining",
            (_, true, _) => "not_ready",
            (.., false) => "degraded",
            _ => "ready",
        };
        Self { status, role: role.word(), dependencies, degraded }
    }

    /// Whether new work may come.
    pub fn takes_work(&self) -> bool {
        matches!(self.status, "ready" | "degraded")
    }
}

/// How the process does, kept up to date while this is held.
#[derive(Clone)]
pub struct Health(Arc<Inner>);

/// What answers are made of.
struct Inner {
    role: Role,
    asked: watch::Receiver<Vec<Dependency>>,
    folder: Option<watch::Receiver<Option<String>>>,
    pipeline: Option<watch::Receiver<Option<String>>>,
    draining: watch::Receiver<bool>,
    clock: Arc<dyn Clock>,
    began: Timestamp,
    _asking: AbortOnDropHandle<()>,
}

impl Health {
    /// Asks everybody once, and then goes on asking.
    pub async fn start(parts: Parts) -> Self {
        let (role, clock) = (parts.role, parts.clock.clone());
        let (folder, pipeline) = (parts.folder.clone(), parts.pipeline.clone());
        let draining = parts.draining.clone();
        let mut asker = Asker { parts, since: BTreeMap::new(), round: 0, clocks: None };
        let (tell, asked) = watch::channel(asker.ask().await);
        let asking = tokio::spawn(vital::task("asking how dependencies do", async move {
            let mut ticks = tokio::time::interval(EVERY);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            ticks.tick().await;
            loop {
                ticks.tick().await;
                tell.send_replace(asker.ask().await);
            }
        }));
        let (began, _asking) = (clock.wall(), AbortOnDropHandle::new(asking));
        Self(Arc::new(Inner { role, asked, folder, pipeline, draining, clock, began, _asking }))
    }

    /// How everything does, as it was found last.
    pub fn readiness(&self) -> Readiness {
        let here = &*self.0;
        let mut dependencies = here.asked.borrow().clone();
        let own = [("store", &here.folder), ("pipeline", &here.pipeline)];
        dependencies.extend(own.into_iter().filter_map(|(name, word)| {
            let why = word.as_ref()?.borrow().clone();
            let (state, since) = if why.is_some() { ("down", here.clock.wall()) } else { ("up", here.began) };
            Some(Dependency { name, state, hard: true, latency_ms: None, since, why })
        }));
        Readiness::of(here.role, dependencies, *here.draining.borrow())
    }

    /// The routes; the same on both listeners.
    pub fn routes(&self, metrics: PrometheusHandle) -> Router {
        Router::new()
            .route("/health/live", get(live))
            .route("/health/ready", get(ready))
            .with_state(self.clone())
            .route("/metrics", get(move || std::future::ready(exposition(&metrics))))
    }
}

fn exposition(metrics: &PrometheusHandle) -> ([(&'static str, &'static str); 1], String) {
    ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], metrics.render())
}

/// Asks everybody, and remembers since when each is as it is.
struct Asker {
    parts: Parts,
    since: BTreeMap<&'static str, (&'static str, Timestamp)>,
    round: u64,
    /// What the last comparison of clocks came to; `None` where there is no server to compare with.
    clocks: Option<Found>,
}

/// How one dependency was found.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    name: &'static str,
    state: &'static str,
    latency_ms: Option<u64>,
    why: Option<String>,
}

impl Asker {
    async fn ask(&mut self) -> Vec<Dependency> {
        if self.round.is_multiple_of(CLOCKS_EVERY) {
            self.clocks = self.compare().await;
        }
        self.round += 1;
        let Parts { log, history, presence, clock, role, .. } = &self.parts;
        let (log, history, presence) = tokio::join!(
            found("log", &**clock, PATIENCE, log.check()),
            // A row that cannot be there: the shortest read that goes to the store.
            found("history", &**clock, PATIENCE, async {
                history.dead_letter(MessageId(uuid::Uuid::nil())).await.map(drop)
            }),
            found("presence", &**clock, PATIENCE, async { presence.locate(&[]).await.map(drop) }),
        );
        let hard = [("log", role.needs_log()), ("history", role.needs_history())];
        if let Some(door) = &self.parts.door {
            door.log_is_away(log.state == "down");
        }
        let is_hard = |name: &str| hard.iter().any(|(known, hard)| *known == name && *hard);
        let now = clock.wall();
        let all = [Some(log), Some(history), Some(presence), self.clocks.clone()];
        let mut dependencies = Vec::with_capacity(all.len());
        for Found { name, state, latency_ms, why } in all.into_iter().flatten() {
            let since = match self.since.get(name) {
                Some((was, since)) if *was == state => *since,
                was => {
                    if was.is_some() || state != "up" {
                        let why = why.as_deref().unwrap_or_default();
                        tracing::warn!(dependency = name, state, why, "a dependency has changed");
                    }
                    now
                }
            };
            self.since.insert(name, (state, since));
            metrics::gauge!("esh3ar_dependency_up", "dependency" => name).set(if state == "down" { 0.0 } else { 1.0 });
            dependencies.push(Dependency { name, state, hard: is_hard(name), latency_ms, since, why });
        }
        dependencies
    }

    /// Compares this machine's clock with every server's; tells of the one that is furthest away.
    async fn compare(&self) -> Option<Found> {
        let clocks = self.parts.stores.lock().as_ref().map(stores::Stores::clocks).unwrap_or_default();
        furthest(&*self.parts.clock, clocks, self.parts.skew_ms).await
    }
}

type Told = (&'static str, BoxFuture<'static, PortResult<Timestamp>>);

async fn furthest(clock: &dyn Clock, clocks: Vec<Told>, limit_ms: u64) -> Option<Found> {
    let compared = clocks.into_iter().map(|(name, asking)| async move { (name, skew(clock, asking).await) });
    // A server that does not tell its time is told of as itself.
    let skews = join_all(compared).await.into_iter().filter_map(|(name, skew)| Some((name, skew.ok()?)));
    let (name, ms) = skews.max_by_key(|(_, ms)| ms.unsigned_abs())?;
    let is_far = ms.unsigned_abs() > limit_ms;
    let (state, word) = (if is_far { "down" } else { "up" }, if ms > 0 { "ahead of" } else { "behind" });
    let why = is_far.then(|| format!("{} ms {word} {name}: set both by NTP", ms.unsigned_abs()));
    Some(Found { name: "clock", state, latency_ms: None, why })
}

async fn found(
    name: &'static str,
    clock: &dyn Clock,
    patience: Duration,
    answer: impl Future<Output = PortResult<()>>,
) -> Found {
    let began = clock.mono();
    let answered = tokio::time::timeout(patience, answer).await;
    let took = clock.mono().since(began);
    let (state, why) = match answered {
        Ok(Ok(())) if took >= SLOW_MS => ("slow", Some(format!("it took {took} ms to answer"))),
        Ok(Ok(())) => ("up", None),
        // No room refuses new messages at the door; what is there can still be fetched and acknowledged.
        Ok(Err(PortError::Full(why))) => ("full", Some(why)),
        Ok(Err(why)) => ("down", Some(why.to_string())),
        Err(_) => ("down", Some(format!("no answer within {} ms", patience.as_millis()))),
    };
    Found { name, state, latency_ms: Some(took), why }
}

async fn live(State(health): State<Health>) -> (StatusCode, Json<serde_json::Value>) {
    match health.0.folder.as_ref().and_then(|folder| folder.borrow().clone()) {
        None => (StatusCode::OK, Json(serde_json::json!({ "status": "live" }))),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, Json(serde_json::json!({ "status": "ending", "why": why }))),
    }
}

async fn ready(State(health): State<Health>) -> (StatusCode, Json<Readiness>) {
    let readiness = health.readiness();
    let status = if readiness.takes_work() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness))
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::time::ManualClock;

    fn dependency(name: &'static str, state: &'static str, hard: bool) -> Dependency {
        Dependency { name, state, hard, latency_ms: None, since: Timestamp(0), why: None }
    }

    #[test]
    fn only_hard_dependencies_stop_new_work() {
        for (log, presence, draining, status, works) in [
            ("up", "up", false, "ready", true),
            ("up", "down", false, "degraded", true),
            ("full", "up", false, "degraded", true),
            ("slow", "up", false, "degraded", true),
            ("down", "up", false, "not_ready", false),
            ("up", "up", true, "draining", false),
        ] {
            let asked = vec![dependency("log", log, true), dependency("presence", presence, false)];
            let said = Readiness::of(Role::Ingest, asked, draining);
            assert_eq!((said.status, said.takes_work()), (status, works));
        }
    }

    #[test]
    fn what_is_hard_follows_from_the_role() {
        let needs = |role: Role| (role.needs_log(), role.needs_history());
        assert_eq!(needs(Role::All), (true, true));
        assert_eq!(needs(Role::Ingest), (true, false));
        assert_eq!(needs(Role::Gateway), (false, true));
        assert_eq!(needs(Role::Pipeline), (true, true));
        assert_eq!(needs(Role::Admin), (false, false));
    }

    #[tokio::test]
    async fn a_dependency_that_does_not_answer_is_down_and_a_slow_one_is_told() {
        let clock = ManualClock::at(Timestamp(0));
        let said = found("log", &clock, Duration::from_millis(1), std::future::pending()).await;
        assert_eq!((said.state, said.why.as_deref()), ("down", Some("no answer within 1 ms")));
        let slow = async {
            clock.pass(SLOW_MS);
            Ok(())
        };
        let said = found("log", &clock, PATIENCE, slow).await;
        assert_eq!((said.state, said.latency_ms), ("slow", Some(SLOW_MS)));
    }

    #[tokio::test]
    async fn the_clock_that_is_furthest_away_is_told() {
        let clock = ManualClock::at(Timestamp(1_000_000));
        let told = |name, ms: i64| -> Told { (name, Box::pin(std::future::ready(Ok(Timestamp(ms))))) };
        assert_eq!(furthest(&clock, vec![], 30_000).await, None);
        let near = furthest(&clock, vec![told("Redis", 1_000_100)], 30_000).await.unwrap();
        assert_eq!((near.name, near.state), ("clock", "up"));
        let clocks = vec![told("Redis", 1_000_100), told("Kafka", 880_000)];
        let far = furthest(&clock, clocks, 30_000).await.unwrap();
        assert_eq!((far.state, far.why.as_deref()), ("down", Some("120000 ms ahead of Kafka: set both by NTP")));
    }
}
