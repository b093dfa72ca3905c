//! A gateway on the world in memory, served over real sockets, and who comes to it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use schemas::{Limits, Millis, NodeId, Phone, Tenant, Timestamp};

use super::{World, talk};

/// A clock that runs, for tests over real sockets, and can be put forward: so a process sees the time that was held still.
pub(crate) struct Running {
    began: tokio::time::Instant,
    ahead_ms: AtomicU64,
}

impl Running {
    pub(crate) fn put_forward(&self, by_ms: u64) {
        self.ahead_ms.fetch_add(by_ms, Ordering::SeqCst);
    }
}

impl schemas::Clock for Running {
    fn wall(&self) -> Timestamp {
        Timestamp(1_800_000_000_000).plus_ms(self.mono().0)
    }
    fn mono(&self) -> Millis {
        let ahead_ms = self.ahead_ms.load(Ordering::SeqCst);
        Millis(self.began.elapsed().as_millis() as u64 + ahead_ms)
    }
}

const SECRET: &[u8] = b"a secret of tests, thirty-two bytes or more";

/// A gateway on the world in memory.
pub(crate) struct House {
    pub(crate) world: Arc<World>,
    pub(crate) clock: Arc<Running>,
    pub(crate) gateway: Arc<crate::Gateway>,
}

impl House {
    pub(crate) async fn open(limits: Limits) -> Self {
        let world = Arc::new(World::default());
        let running = Arc::new(Running { began: tokio::time::Instant::now(), ahead_ms: Default::default() });
        let clock: Arc<dyn schemas::Clock> = running.clone();
        let limits = Arc::new(limits);
        let settings = ingest::auth::AuthSettings {
            algorithm: ingest::auth::Algorithm::HS256,
            secret: Some(SECRET.to_vec()),
            jwks: None,
            issuer: None,
            audience: None,
            api_keys: Vec::new(),
        };
        let auth = Arc::new(ingest::auth::Auth::new(settings, clock.clone()).unwrap());
        let gateway = crate::Gateway::open(crate::Parts {
            log: world.clone(),
            history: world.clone(),
            talks: world.clone(),
            presence: world.clone(),
            backplane: world.clone(),
            clock: clock.clone(),
            limits: limits.clone(),
            auth: auth.clone(),
            node: NodeId::parse("n1").unwrap(),
            address: "127.0.0.1:8080".to_owned(),
            door: Some(talk::door(&world, &clock, &limits, &auth)),
            dispatch: world.clone(),
            origins: Vec::new(),
        });
        Self { world, clock: running, gateway: gateway.await.unwrap() }
    }

    pub(crate) async fn serve(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = self.gateway.routes();
        tokio::spawn(async move { axum::serve(listener, routes).await });
        address.to_string()
    }
}

/// A token that holds for an hour.
pub(crate) fn token(tenant: &str, who: ingest::auth::Who) -> String {
    token_for(tenant, who, 3_600_000)
}

pub(crate) fn token_for(tenant: &str, who: ingest::auth::Who, ttl_ms: u64) -> String {
    let can = ingest::auth::Permissions { send: true, chat: true, ..Default::default() };
    let claims = ingest::auth::NewToken { tenant: Tenant::parse(tenant).unwrap(), who, can, ttl_ms };
    ingest::auth::mint(SECRET, &claims, Timestamp(1_800_000_000_000)).unwrap()
}

pub(crate) fn phone(text: &str) -> ingest::auth::Who {
    ingest::auth::Who::Mobile(Phone::from_stored(text).unwrap())
}

/// Looks until it is so, for ten seconds at most.
pub(crate) async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let looking = async {
        while !so() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), looking).await.unwrap_or_else(|_| panic!("never: {what}"));
}
