//! How the parts are put together: configuration ▷ adapters ▷ roles, in the order in which they need each other. What a role
//! leaves out is not started; what takes them apart again is in `service`.

mod keep;
mod people;
mod role;
mod service;

use std::sync::Arc;

use axum::Router;
use ingest::{auth::Auth, http::with_fallbacks};
use metrics_exporter_prometheus::PrometheusHandle;
use parking_lot::Mutex;
use schemas::{
    Clock, Limits, NodeId, Tenant,
    port::{Conversations, Dispatch},
    vital,
};
use tokio::{net::TcpListener, sync::watch};

pub use keep::{Kept, resolve, settings, skew};
pub use role::Role;
pub use service::Service;

use crate::{
    admin::{self, Running},
    clock::SystemClock,
    config::Config,
    exit::Failure,
    folder::{self, Endpoint},
    health::{self, Health},
    pages,
    serve::{self, Bounds, Serving},
    telemetry::{gauges, http::Requests},
};

/// Connections of the administrators' listener: people and scrapers, and few of them.
const ADMIN_CONNECTIONS: usize = 256;

/// How long a broadcast stands still before another process goes on with it, ms: well above a pause of its own process.
const TAKE_OVER_MS: std::ops::Range<u64> = 10_000..15_000;

/// Starts what a role does in this process.
pub async fn start(role: Role, config: Config, metrics: PrometheusHandle) -> Result<Service, Failure> {
    role.check(&config)?;
    let system = Arc::new(SystemClock::new());
    let clock: Arc<dyn Clock> = system.clone();
    let limits = Arc::new(config.limits.clone());
    let node = NodeId::parse(&config.node_name()).map_err(|why| Failure::usage(format!("`node`: {why}")))?;

    // The tables of numbering plans are read at the first number: not while its sender waits.
    tokio::task::spawn_blocking(|| schemas::Phone::parse("+962790000001"));

    // Listeners first: that a port is taken is found out before anything is touched.
    let public = match role.is_public() {
        true => Some(serve::bind(&config.listen, "listen").await?),
        false => None,
    };
    let administrators = serve::bind(&config.admin, "admin").await?;
    let listen = public.as_ref().map(local).transpose()?;
    let admin_address = local(&administrators)?;

    // What keeps, and who is believed.
    let stores = keep::open(role, &config, &clock).await?;
    let (log, history) = (stores.log.clone(), stores.history.clone());
    let (presence, backplane) = (stores.presence.clone(), stores.backplane.clone());
    let auth = Auth::with_limits(people::auth(&config)?, clock.clone(), &limits.door);
    let auth = Arc::new(auth.map_err(|why| Failure::usage(why.to_string()))?);

    // What takes in. Chat is taken in wherever it is read: also by sockets.
    let door = role.reads().then(|| {
        ingest::Door::open(ingest::Parts {
            log: log.clone(),
            history: history.clone(),
            clock: clock.clone(),
            limits: limits.clone(),
            auth: auth.clone(),
            limiter: stores.limiter.clone(),
            expands: role.takes_in(),
            take_over_ms: take_over_ms(&config),
        })
    });

    // What businesses produce to comes in by the same door.
    let topics = match &door {
        Some(_) if role.takes_in() && config.stores.ingress == "on" => {
            let joined = stores.ingress().await;
            joined.map_err(|why| Failure::unreachable(why.to_string()))?
        }
        _ => None,
    };

    // What acts on the world for those who decide, and tells other people's nodes for those who hold sockets.
    let sinks: Arc<dyn Dispatch> = sinks::Sinks::new(sinks::Parts {
        presence: presence.clone(),
        backplane: backplane.clone(),
        clock: clock.clone(),
        limits: limits.clone(),
        notice: people::notice(&config.notice),
    });

    // What holds the sockets and answers reads; before the dataflow, so that its first deliveries find it.
    let talks: Arc<dyn Conversations> = match stores.cache.clone() {
        Some(cache) => stores::cache::Cached::new(&history, cache, clock.clone(), limits.clone()),
        None => history.clone(),
    };
    let gateway = gateway::Parts {
        log: log.clone(),
        history: history.clone(),
        talks,
        presence: presence.clone(),
        backplane,
        dispatch: sinks.clone(),
        clock: clock.clone(),
        limits: limits.clone(),
        auth: auth.clone(),
        node,
        address: address(&config, listen.as_deref().unwrap_or_default()),
        door: door.clone(),
        origins: config.origins.clone(),
    };
    let gateway = match role {
        role if role.holds_sockets() => {
            let opened = gateway::Gateway::open(gateway).await;
            Some(opened.map_err(|why| Failure::unreachable(format!("the gateway cannot open: {why}")))?)
        }
        role if role.reads() => Some(gateway::Gateway::reads(gateway)),
        _ => None,
    };

    // What decides.
    let (pipeline, pipeline_failed) = match role.decides() {
        true => {
            let parts = pipeline::Parts {
                log: log.clone(),
                history: history.clone(),
                presence: presence.clone(),
                dispatch: sinks,
                clock: clock.clone(),
                limits: limits.clone(),
                instances: config.threads(),
                functions: Vec::new(),
            };
            let started = pipeline::start(parts, tokio::runtime::Handle::current());
            let pipeline = started.map_err(|why| Failure::failed(format!("the dataflow cannot start: {why}")))?;
            let failed = pipeline.failed();
            (Some(pipeline), Some(failed))
        }
        false => (None, None),
    };
    let pipeline: Running = Arc::new(Mutex::new(pipeline));

    // What can be asked of it.
    let fatal = stores.fatal();
    let folder = stores.stats().is_some().then(|| fatal.clone());
    let stores: Kept = Arc::new(Mutex::new(Some(stores)));
    let (drain, draining) = watch::channel(false);
    let health = Health::start(health::Parts {
        role,
        log: log.clone(),
        history: history.clone(),
        presence: presence.clone(),
        stores: stores.clone(),
        folder,
        pipeline: pipeline_failed.clone(),
        draining,
        clock: clock.clone(),
        skew_ms: config.stores.skew_ms,
        door: door.clone(),
    })
    .await;
    let gauges = gauges::Parts {
        history: role.decides().then(|| history.clone()),
        pipeline: pipeline.clone(),
        stores: stores.clone(),
        metrics: metrics.clone(),
    };
    let gauges =
        tokio_util::task::AbortOnDropHandle::new(tokio::spawn(vital::task("the gauges", gauges::keep(gauges))));
    let routes = health.routes(metrics);
    let operators = Tenant::parse(&config.operators).map_err(|why| Failure::usage(format!("`operators`: {why}")))?;
    let asked = admin::routes(admin::Parts {
        auth,
        log,
        history,
        presence,
        clock,
        limits: limits.clone(),
        door: door.clone(),
        gateway: gateway.clone().filter(|_| role == Role::All),
        pipeline: pipeline.clone(),
        operators,
        drain: drain.clone(),
    });

    // Open.
    let public = match public {
        Some(listener) => {
            let posts = door.as_ref().filter(|_| role.takes_in()).map(ingest::Door::routes).unwrap_or_default();
            let chat = door.as_ref().map(ingest::Door::chat_routes).unwrap_or_default();
            let reads = gateway.as_ref().map(gateway::Gateway::routes).unwrap_or_default();
            let all = posts.merge(chat).merge(reads).merge(pages::routes()).merge(routes.clone());
            Some(serving(listener, all, &system, "public", &limits, limits.door.connections)?)
        }
        None => None,
    };
    let topics = door.clone().zip(topics).map(|(door, topics)| ingest::kafka::open(door, topics));
    let all = asked.merge(pages::routes()).merge(routes);
    let admin = serving(administrators, all, &system, "admin", &limits, ADMIN_CONNECTIONS)?;
    let endpoint = Endpoint { listen: listen.unwrap_or_default(), admin: admin_address, pid: std::process::id() };
    folder::write_endpoint(&config.data, role, &endpoint);
    Ok(Service {
        role,
        stores,
        door,
        topics,
        gateway,
        pipeline,
        public,
        admin,
        gauges,
        health,
        config,
        fatal,
        pipeline_failed,
        drain,
    })
}

/// How long a broadcast of another process stands still before this one goes on with it. A process with a folder of its own
/// has no other; each of several waits a little longer or shorter, so that one of them is first.
fn take_over_ms(config: &Config) -> u64 {
    let is_alone = config.stores.log.is_empty() || config.stores.history.is_empty();
    if is_alone { 0 } else { rand::random_range(TAKE_OVER_MS) }
}

/// Where clients are told to find this node.
fn address(config: &Config, listen: &str) -> String {
    if !config.address.is_empty() {
        return config.address.clone();
    }
    let everywhere = ["0.0.0.0:", "[::]:"].iter().any(|any| config.listen.starts_with(any));
    match (everywhere && !config.stores.presence.is_empty(), listen.rsplit_once(':')) {
        // Other machines are told the machine's name: its loopback address is theirs too.
        (true, Some((_, port))) => format!("{}:{port}", crate::config::host()),
        _ => listen.to_owned(),
    }
}

fn serving(
    listener: TcpListener,
    routes: Router,
    clock: &Arc<SystemClock>,
    name: &'static str,
    limits: &Limits,
    connections: usize,
) -> Result<Serving, Failure> {
    let routes = with_fallbacks(routes).layer(Requests::new(clock.clone(), name));
    let bounds = Bounds { connections, head_ms: limits.door.head_ms };
    Serving::start(listener, routes, bounds)
        .map_err(|why| Failure::unreachable(format!("the {name} listener has gone: {why}")))
}

fn local(listener: &TcpListener) -> Result<String, Failure> {
    let address = listener.local_addr();
    let mut address = address.map_err(|why| Failure::unreachable(format!("the listener has no address: {why}")))?;
    // Who listens everywhere is reached here by the loopback address.
    if address.ip().is_unspecified() {
        let ip = if address.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() };
        address.set_ip(ip);
    }
    Ok(address.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_of_many_machines_are_told_an_address_that_is_not_their_own() {
        let mut config = Config { listen: "0.0.0.0:8080".to_owned(), ..Config::default() };
        assert_eq!(address(&config, "127.0.0.1:8080"), "127.0.0.1:8080");
        config.stores.presence = "redis://a:1".to_owned();
        assert_eq!(address(&config, "127.0.0.1:8080"), format!("{}:8080", crate::config::host()));
        config.address = "wss://chat.example.com".to_owned();
        assert_eq!(address(&config, "127.0.0.1:8080"), "wss://chat.example.com");
    }
}
