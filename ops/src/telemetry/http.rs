//! Counts and times requests by route and status, and gives a traced request its span. A route's pattern is told, never the
//! address itself: query strings carry tokens and paths carry names.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    extract::{MatchedPath, Request},
    response::Response,
};
use metrics::{Counter, Gauge, Histogram};
use parking_lot::RwLock;
use schemas::Clock;
use tower::{Layer, Service};
use tracing::Instrument;

/// Told of a request that met no route.
const NO_ROUTE: &str = "none";

/// Methods that have a label of their own; whatever else a client invents is one label together.
const METHODS: [&str; 7] = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"];

/// A route, a method, a status.
type Kind = (&'static str, u16);

#[derive(Default)]
struct Known {
    by_route: HashMap<Box<str>, HashMap<Kind, (Counter, Histogram)>>,
}

/// The layer.
#[derive(Clone)]
pub struct Requests {
    clock: Arc<dyn PreciseClock>,
    known: Arc<RwLock<Known>>,
    under_way: Gauge,
    listener: &'static str,
}

/// A clock that counts microseconds, for latencies of less than a millisecond.
pub trait PreciseClock: Send + Sync + 'static {
    /// Microseconds since some start.
    fn micros(&self) -> u64;
}

impl PreciseClock for crate::clock::SystemClock {
    fn micros(&self) -> u64 {
        crate::clock::SystemClock::micros(self)
    }
}

/// A clock of whole milliseconds serves tests.
impl PreciseClock for schemas::time::ManualClock {
    fn micros(&self) -> u64 {
        self.mono().0 * 1_000
    }
}

impl Requests {
    /// Watches the routes of one listener.
    pub fn new(clock: Arc<dyn PreciseClock>, listener: &'static str) -> Self {
        let under_way = metrics::gauge!("esh3ar_http_requests_under_way", "listener" => listener);
        Self { clock, known: Arc::default(), under_way, listener }
    }

    fn told(&self, route: &str, kind: Kind, micros: u64) {
        let seconds = micros as f64 / 1e6;
        if let Some((count, time)) = self.known.read().by_route.get(route).and_then(|kinds| kinds.get(&kind)) {
            count.increment(1);
            time.record(seconds);
            return;
        }
        let (method, status) = kind;
        let labels = [
            ("listener", self.listener.to_owned()),
            ("route", route.to_owned()),
            ("method", method.to_owned()),
            ("status", status.to_string()),
        ];
        let count = metrics::counter!("esh3ar_http_requests_total", &labels);
        let time = metrics::histogram!("esh3ar_http_request_seconds", &labels);
        count.increment(1);
        time.record(seconds);
        self.known.write().by_route.entry(route.into()).or_default().insert(kind, (count, time));
    }
}

impl<S> Layer<S> for Requests {
    type Service = Watched<S>;
    fn layer(&self, inner: S) -> Watched<S> {
        Watched { inner, requests: self.clone() }
    }
}

/// A service whose requests are counted.
#[derive(Clone)]
pub struct Watched<S> {
    inner: S,
    requests: Requests,
}

/// Counts down when a request ends, however it ends.
struct UnderWay(Gauge);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

impl<S> Service<Request> for Watched<S>
where
    S: Service<Request, Response = Response> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send,
{
    type Response = Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let route = request.extensions().get::<MatchedPath>().cloned();
        let name = request.method().as_str();
        let method = METHODS.into_iter().find(|known| *known == name).unwrap_or("other");
        let traceparent = request.headers().get("traceparent").and_then(|value| value.to_str().ok());
        // A span costs a microsecond: one that nobody asked for is made only where debugging is on.
        let span = match (traceparent, route.as_ref().map_or(NO_ROUTE, MatchedPath::as_str)) {
            (Some(trace), route) => tracing::info_span!("request", method, route, traceparent = trace),
            (None, route) => tracing::debug_span!("request", method, route),
        };
        let requests = self.requests.clone();
        let start = requests.clock.micros();
        requests.under_way.increment(1.0);
        let under_way = UnderWay(requests.under_way.clone());
        let answering = self.inner.call(request);
        Box::pin(
            async move {
                let answer = answering.await;
                drop(under_way);
                let status = answer.as_ref().map_or(500, |response| response.status().as_u16());
                let micros = requests.clock.micros().saturating_sub(start);
                requests.told(route.as_ref().map_or(NO_ROUTE, MatchedPath::as_str), (method, status), micros);
                if status == 500 {
                    tracing::warn!(status, micros, "a request ended in a fault");
                } else {
                    tracing::debug!(status, micros, "a request was answered");
                }
                answer
            }
            .instrument(span),
        )
    }
}
