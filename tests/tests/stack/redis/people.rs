//! People while Redis fails: two gateways and a dataflow that meet at Redis alone, as in processes of their own, and phones that
//! are to miss nothing and to wait for nothing longer than fifteen seconds.

use std::sync::atomic::{AtomicBool, Ordering};

use super::frames::Lossy;
use super::*;
use ingest::auth::{Algorithm, Auth, AuthSettings, Caller, NewToken, Permissions, Who, mint};
use ops::serve::{Bounds, Serving};
use parking_lot::Mutex;
use schemas::{Clock, Draft, Limits, Tenant, limits::StoreLimits};
use stores::{Settings, Stores};
use tests::harness::{Phone, number};

const SECRET: &[u8] = b"a secret of tests, of thirty-two bytes or more";
/// Nobody waits longer.
const LONGEST: Duration = Duration::from_secs(15);

fn token(who: Who, clock: &dyn Clock) -> String {
    let business = matches!(who, Who::Server);
    let can = Permissions { send: business, chat: false, broadcast: false, admin: false };
    let claims = NewToken { tenant: Tenant::parse("acme").unwrap(), who, can, ttl_ms: 3_600_000 };
    mint(SECRET, &claims, clock.wall()).unwrap()
}

/// One installation in one process, whose parts share nothing but the stores and Redis.
struct House {
    clock: Arc<SystemClock>,
    door: Arc<ingest::Door>,
    caller: Arc<Caller>,
    gateways: Vec<(Arc<gateway::Gateway>, Serving)>,
    pipeline: pipeline::Pipeline,
    stores: Stores,
    _folder: tempfile::TempDir,
}

impl House {
    /// `lossy`: a tenth of all frames is lost.
    async fn open(address: &str, lossy: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(SystemClock::new());
        let mut limits = Limits::default();
        limits.door.server_per_second = 1_000_000;
        limits.store = StoreLimits { partitions: 4, free_bytes: 0, ..StoreLimits::default() };
        let limits = Arc::new(limits);
        let settings = Settings::folder(folder.path().join("data"), limits.store.clone(), 300_000);
        let stores = Stores::open(settings, clock.clone()).await.unwrap();
        let settings = AuthSettings {
            algorithm: Algorithm::HS256,
            secret: Some(SECRET.to_vec()),
            jwks: None,
            issuer: None,
            audience: None,
            api_keys: Vec::new(),
        };
        let auth = Arc::new(Auth::new(settings, clock.clone()).unwrap());
        let process = async |seed: u64| {
            let redis = open(address).await;
            let backplane = if lossy {
                RedisBackplane::over(redis.clone(), Lossy::new(redis.clone(), seed), 5_000).await
            } else {
                RedisBackplane::open(redis.clone(), 5_000).await
            };
            let presence = RedisPresence::new(redis, 300_000, 45_000);
            (Arc::new(presence) as Arc<dyn Presence>, Arc::new(backplane) as Arc<dyn Backplane>)
        };
        let acting = |presence: &Arc<dyn Presence>, backplane: &Arc<dyn Backplane>| {
            sinks::Sinks::new(sinks::Parts {
                presence: presence.clone(),
                backplane: backplane.clone(),
                clock: clock.clone(),
                limits: limits.clone(),
                notice: sinks::Notice::None,
            })
        };
        let mut gateways = Vec::new();
        for name in ["a", "b"] {
            let (presence, backplane) = process(u64::from(name.as_bytes()[0]) * 7_919).await;
            let parts = gateway::Parts {
                log: stores.log.clone(),
                history: stores.history.clone(),
                talks: stores.history.clone(),
                dispatch: acting(&presence, &backplane),
                presence,
                backplane,
                clock: clock.clone(),
                limits: limits.clone(),
                auth: auth.clone(),
                node: name.parse().unwrap(),
                address: name.to_owned(),
                door: None,
                origins: Vec::new(),
            };
            let gateway = gateway::Gateway::open(parts).await.unwrap();
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let serving = Serving::start(listener, gateway.routes(), Bounds { connections: 1_000, head_ms: 10_000 });
            gateways.push((gateway, serving.unwrap()));
        }
        let (presence, backplane) = process(104_729).await;
        let sinks = acting(&presence, &backplane);
        let parts = pipeline::Parts {
            log: stores.log.clone(),
            history: stores.history.clone(),
            presence,
            dispatch: sinks,
            clock: clock.clone(),
            limits: limits.clone(),
            instances: 1,
            functions: Vec::new(),
        };
        let pipeline = pipeline::start(parts, tokio::runtime::Handle::current()).unwrap();
        let caller = auth.verify(&token(Who::Server, &*clock)).unwrap();
        let door = ingest::Door::open(ingest::Parts {
            log: stores.log.clone(),
            history: stores.history.clone(),
            clock: clock.clone(),
            limits,
            auth,
            limiter: stores.limiter.clone(),
            expands: true,
            take_over_ms: 0,
        });
        Self { clock, door, caller, gateways, pipeline, stores, _folder: folder }
    }

    fn phone(&self, n: u32) -> Phone {
        let (_, serving) = &self.gateways[n as usize % self.gateways.len()];
        let user = schemas::Phone::from_stored(&number(n)).unwrap();
        Phone::at(&format!("http://{}", serving.address()), token(Who::Mobile(user), &*self.clock), "phone")
    }

    async fn send(&self, n: u32, content: &str) {
        let draft = serde_json::json!({ "to": number(n), "content": content });
        let draft: Draft = serde_json::from_value(draft).unwrap();
        let answer = self.door.accept(&self.caller, &[draft], &ingest::Given::default()).await.remove(0);
        answer.expect("acceptance goes on");
    }

    async fn close(self) {
        for (gateway, serving) in &self.gateways {
            gateway.drain().await;
            serving.stop(Duration::from_secs(5)).await;
        }
        self.door.close().await;
        self.pipeline.stop().await;
        self.stores.close().await;
    }
}

/// Sends to many phones for so long while `meanwhile` happens. Everybody gets everything, in order, and soon.
async fn everybody_gets_everything(house: House, seconds: u64, meanwhile: impl Future<Output = ()>) {
    const PHONES: u32 = 20;
    let arrivals = Arc::new(Mutex::new(Vec::<(u64, Instant)>::new()));
    let done = Arc::new(AtomicBool::new(false));
    let mut phones = Vec::new();
    for n in 0..PHONES {
        let (mut phone, arrivals, done) = (house.phone(n), arrivals.clone(), done.clone());
        phone.insist().await;
        phones.push(tokio::spawn(async move {
            while !done.load(Ordering::Acquire) {
                let before = phone.received.len();
                if let Ok(None) = tokio::time::timeout(Duration::from_millis(200), phone.next()).await {
                    phone.insist().await;
                }
                let now = Instant::now();
                let new = phone.received[before..].iter().map(|r| (r.content.parse().unwrap(), now));
                arrivals.lock().extend(new);
            }
            phone
        }));
    }
    let (began, mut sent) = (Instant::now(), Vec::new());
    let sending = async {
        // Fifty a second, each phone in its turn.
        for n in 0..seconds * 50 {
            sent.push(Instant::now());
            house.send(n as u32 % PHONES, &n.to_string()).await;
            let due = Duration::from_millis((n + 1) * 20);
            tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
        }
    };
    tokio::join!(sending, meanwhile);
    let all = sent.len();
    let last = Instant::now();
    while arrivals.lock().len() < all && last.elapsed() < LONGEST + Duration::from_secs(10) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    done.store(true, Ordering::Release);
    let mut waits: Vec<Duration> = arrivals.lock().iter().map(|(n, at)| at.duration_since(sent[*n as usize])).collect();
    waits.sort_unstable();
    for phone in phones {
        let phone = phone.await.unwrap();
        let contents: Vec<u64> = phone.contents().iter().map(|text| text.parse().unwrap()).collect();
        assert!(contents.is_sorted(), "in order: {contents:?}");
        assert_eq!((contents.len(), phone.repeats_in_session), (all / PHONES as usize, 0));
    }
    assert_eq!(waits.len(), all, "nobody misses a message");
    let at = |share: usize| waits[(all - 1) * share / 100];
    println!("{all} messages: half within {:?}, 99 in 100 within {:?}, the last after {:?}", at(50), at(99), at(100));
    assert!(at(100) < LONGEST, "somebody waited {:?}", at(100));
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_tenth_of_the_frames_lost_nobody_misses_a_message_or_waits_long() {
    let house = House::open(&address(false).await, true).await;
    everybody_gets_everything(house, 12, async {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_is_killed_and_comes_back_empty_and_nobody_misses_a_message_or_waits_long() {
    let own = Nodes::start("redis", &[]).await;
    let house = House::open(&format!("redis://{}/{}", own.hosts(), prefix()), false).await;
    let meanwhile = async {
        // Shortly, so that no heartbeat falls into it; and then longer than anybody may wait.
        for (before, away) in [(2, 1), (5, 17)] {
            tokio::time::sleep(Duration::from_secs(before)).await;
            own.kill(1).await;
            tokio::time::sleep(Duration::from_secs(away)).await;
            own.restart(1).await;
        }
    };
    Box::pin(everybody_gets_everything(house, 32, meanwhile)).await;
    own.stop().await;
}
