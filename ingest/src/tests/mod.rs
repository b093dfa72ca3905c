//! The door from outside: requests through its router, over small stand-ins for the log and history. The real adapters are held
//! to the ports by `tests/conformance`; nothing outside this crate uses these.

mod auth;
mod batches;
mod broadcasts;
mod chat;
mod fakes;
mod kafka;
mod owner;
mod refusals;
mod singles;

use std::sync::Arc;

use axum::{Router, body::Body, response::Response};
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use schemas::{Limits, Phone, Tenant, Timestamp, time::ManualClock};
use serde_json::Value;
use tower::ServiceExt as _;

use self::fakes::{FakeHistory, FakeLog};
use crate::{
    Door, Parts,
    auth::{Algorithm, ApiKey, Auth, AuthSettings, NewToken, Permissions, Who, mint},
    http::with_fallbacks,
};

const SECRET: &[u8] = b"a secret of at least thirty-two bytes";
const NOW: Timestamp = Timestamp(1_780_000_000_000);

struct House {
    log: Arc<FakeLog>,
    history: Arc<FakeHistory>,
    clock: Arc<ManualClock>,
    door: Arc<Door>,
    router: Router,
}

struct Answer {
    status: StatusCode,
    headers: http::HeaderMap,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|why| panic!("{why}: {}", self.body))
    }
    fn lines(&self) -> Vec<Value> {
        self.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
    /// The slug of a problem.
    fn slug(&self) -> String {
        assert_eq!(self.header("content-type"), "application/problem+json", "{}", self.body);
        let json = self.json();
        assert_eq!(json["status"], self.status.as_u16());
        json["type"].as_str().unwrap().trim_start_matches("/problems/").to_owned()
    }
}

/// Limits that quotas do not come in the way of, and that refuse at once.
fn open_limits() -> Limits {
    let mut limits = Limits::default();
    limits.door.person_per_minute = 1_000_000;
    limits.door.person_per_hour = 1_000_000;
    limits.door.server_per_second = 1_000_000;
    limits.door.system_per_second = 1_000_000;
    limits.door.batch_wait_ms = 0;
    limits.door.lane_poll_ms = 5;
    limits
}

fn settings() -> AuthSettings {
    AuthSettings {
        algorithm: Algorithm::HS256,
        secret: Some(SECRET.to_vec()),
        jwks: None,
        issuer: None,
        audience: None,
        api_keys: vec![ApiKey {
            // of "key-of-acme"
            sha256: hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"key-of-acme").as_ref()),
            tenant: acme(),
            can: all(),
        }],
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn acme() -> Tenant {
    Tenant::parse("acme").unwrap()
}

fn all() -> Permissions {
    Permissions { send: true, chat: true, broadcast: true, admin: false }
}

fn token_of(tenant: &str, who: &str, can: Permissions) -> String {
    let tenant = Tenant::parse(tenant).unwrap();
    mint(SECRET, &NewToken { tenant, who: who.parse().unwrap(), can, ttl_ms: 3_600_000 }, NOW).unwrap()
}

fn server() -> String {
    token_of("acme", "server", all())
}

fn phone(n: usize) -> Phone {
    Phone::parse(&format!("+96279{n:07}")).unwrap()
}

impl House {
    fn new(limits: Limits) -> Self {
        Self::over(limits, Arc::default(), Arc::default())
    }

    /// Another door over what is there.
    fn over(limits: Limits, log: Arc<FakeLog>, history: Arc<FakeHistory>) -> Self {
        Self::beside_others(limits, log, history, 0)
    }

    /// Another door, of one process of several.
    fn beside_others(limits: Limits, log: Arc<FakeLog>, history: Arc<FakeHistory>, take_over_ms: u64) -> Self {
        let clock = Arc::new(ManualClock::at(NOW));
        let auth = Arc::new(Auth::new(settings(), clock.clone()).unwrap());
        let door = Door::open(Parts {
            log: log.clone(),
            history: history.clone(),
            clock: clock.clone(),
            limits: Arc::new(limits),
            auth,
            limiter: Arc::new(fakes::Buckets::new(clock.clone())),
            expands: true,
            take_over_ms,
        });
        let router = with_fallbacks(door.routes().merge(door.chat_routes()));
        Self { log, history, clock, door, router }
    }

    async fn ask(&self, request: Request<Body>) -> Answer {
        let response: Response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    async fn post(&self, path: &str, token: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        self.ask(request("POST", path, token, headers, body)).await
    }

    async fn send(&self, body: &str) -> Answer {
        self.post("/v1/messages", &server(), &[], body.to_owned()).await
    }

    async fn batch(&self, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        self.post("/v1/messages/batch", &server(), headers, body).await
    }

    async fn get(&self, path: &str, token: &str) -> Answer {
        self.ask(request("GET", path, token, &[], "")).await
    }
}

fn request(method: &str, path: &str, token: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    if !token.is_empty() {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body.into()).unwrap()
}

fn draft(n: usize) -> String {
    format!(r#"{{"to":"+96279{n:07}","content":"hello {n}"}}"#)
}

/// Cases of a property that is run by hand, over one house: more, where `PROPTEST_CASES` says so.
fn cases(count: u32) -> proptest::test_runner::Config {
    let config = proptest::test_runner::Config::default();
    proptest::test_runner::Config { cases: config.cases.max(count), failure_persistence: None, ..config }
}

const LINES: (&str, &str) = ("content-type", "application/x-ndjson");

#[test]
fn every_who_reads_back() {
    for text in ["server", "admin", "business:sara", "+962790000001"] {
        assert_eq!(text.parse::<Who>().unwrap().to_string(), text);
    }
    assert!("business:".parse::<Who>().is_err() && "root".parse::<Who>().is_err());
}
