//! How the parts are put together: configuration ▷ adapters ▷ roles, in the order in which they need each other, and how they
//! are taken apart again: what takes work in first, what keeps it last.

use std::{sync::Arc, time::Duration};

use axum::Router;
use ingest::{
    auth::{Algorithm, ApiKey, Auth, AuthSettings, Permissions},
    http::with_fallbacks,
};
use metrics_exporter_prometheus::PrometheusHandle;
use parking_lot::Mutex;
use schemas::{Clock, Limits, NodeId, Tenant, port::Dispatch};
use sinks::Notice;
use stores::Stores;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use crate::{
    admin::{self, Running},
    clock::SystemClock,
    config::{AuthConfig, Config, NoticeConfig},
    exit::Failure,
    folder::{self, Endpoint},
    health::Health,
    pages,
    serve::{self, Bounds, Serving},
    telemetry::{gauges, http::Requests},
};

/// Connections of the administrators' listener: people and scrapers, and few of them.
const ADMIN_CONNECTIONS: usize = 256;
/// How long requests under way may take to finish when the process ends.
const FINISH: Duration = Duration::from_secs(10);

/// The store while it is open; taken out when it is closed.
pub type Kept = Arc<Mutex<Option<Stores>>>;

/// How long requests under way may take to be refused when nothing goes any more.
const ANSWER: Duration = Duration::from_secs(1);

/// A running service.
pub struct Service {
    stores: Kept,
    door: Arc<ingest::Door>,
    gateway: Arc<gateway::Gateway>,
    pipeline: Running,
    public: Serving,
    admin: Serving,
    gauges: JoinHandle<()>,
    config: Config,
    fatal: watch::Receiver<Option<String>>,
    pipeline_failed: watch::Receiver<Option<String>>,
    drain: watch::Sender<bool>,
}

/// Starts every role in this process.
pub async fn up(config: Config, metrics: PrometheusHandle) -> Result<Service, Failure> {
    let system = Arc::new(SystemClock::new());
    let clock: Arc<dyn Clock> = system.clone();
    let limits = Arc::new(config.limits.clone());

    // The tables of numbering plans are read at the first number: not while its sender waits.
    tokio::task::spawn_blocking(|| schemas::Phone::parse("+962790000001"));

    // Listeners first: that a port is taken is found out before anything is touched.
    let public_listener = serve::bind(&config.listen, "listen").await?;
    let admin_listener = serve::bind(&config.admin, "admin").await?;
    let (listen, admin_address) = (local(&public_listener)?, local(&admin_listener)?);

    // What keeps.
    folder::prepare(&config.data)?;
    let stores = open(&config, clock.clone()).await?;
    let (log, history) = (stores.log.clone(), stores.history.clone());
    let (presence, backplane) = (stores.presence.clone(), stores.backplane.clone());
    let fatal = stores.fatal();
    let stores: Kept = Arc::new(Mutex::new(Some(stores)));

    // Who is believed.
    let settings = auth(&config)?;
    let auth =
        Auth::with_limits(settings, clock.clone(), &limits.door).map_err(|why| Failure::usage(why.to_string()))?;
    let auth = Arc::new(auth);

    // What acts on the world.
    let notice = notice(&config.notice);
    let (of_presence, of_backplane) = (presence.clone(), backplane.clone());
    let sinks = sinks::Sinks::new(sinks::Parts {
        presence: of_presence,
        backplane: of_backplane,
        clock: clock.clone(),
        limits: limits.clone(),
        notice,
    });

    // What takes in.
    let door = ingest::Door::open(ingest::Parts {
        log: log.clone(),
        history: history.clone(),
        clock: clock.clone(),
        limits: limits.clone(),
        auth: auth.clone(),
    });

    // What holds the sockets; before the dataflow, so that its first deliveries find it.
    let gateway = gateway::Gateway::open(gateway::Parts {
        log: log.clone(),
        history: history.clone(),
        presence: presence.clone(),
        backplane,
        clock: clock.clone(),
        limits: limits.clone(),
        auth: auth.clone(),
        door: door.clone(),
        node: NodeId::parse(&config.node).map_err(|why| Failure::usage(format!("`node`: {why}")))?,
        address: if config.address.is_empty() { listen.clone() } else { config.address.clone() },
        origins: config.origins.clone(),
    })
    .await
    .map_err(|why| Failure::failed(format!("the gateway cannot open: {why}")))?;

    // What decides.
    let pipeline = pipeline::start(
        pipeline::Parts {
            log: log.clone(),
            history: history.clone(),
            presence: presence.clone(),
            dispatch: sinks as Arc<dyn Dispatch>,
            clock: clock.clone(),
            limits: limits.clone(),
            instances: config.threads(),
            functions: Vec::new(),
        },
        tokio::runtime::Handle::current(),
    )
    .map_err(|why| Failure::failed(format!("the dataflow cannot start: {why}")))?;
    let pipeline_failed = pipeline.failed();
    let pipeline: Running = Arc::new(Mutex::new(Some(pipeline)));

    // What can be asked of it.
    let (drain, draining) = watch::channel(false);
    let health = Health {
        log: log.clone(),
        history: history.clone(),
        presence: presence.clone(),
        fatal: fatal.clone(),
        pipeline: pipeline_failed.clone(),
        draining,
    };
    let gauges = tokio::spawn(gauges::keep(gauges::Parts {
        history: history.clone(),
        pipeline: pipeline.clone(),
        stores: stores.clone(),
        metrics: metrics.clone(),
    }));
    let health = health.routes(metrics);
    let public = door.routes().merge(gateway.routes()).merge(pages::routes()).merge(health.clone());
    let operators = Tenant::parse(&config.operators).map_err(|why| Failure::usage(format!("`operators`: {why}")))?;
    let administrators = admin::routes(admin::Parts {
        auth,
        log,
        history,
        presence,
        clock,
        limits: limits.clone(),
        door: door.clone(),
        gateway: gateway.clone(),
        pipeline: pipeline.clone(),
        operators,
        drain: drain.clone(),
    });
    let public = serving(public_listener, public, &system, "public", &limits, limits.door.connections)?;
    let administrators = administrators.merge(pages::routes()).merge(health);
    let admin = serving(admin_listener, administrators, &system, "admin", &limits, ADMIN_CONNECTIONS)?;

    let endpoint = Endpoint { listen, admin: admin_address, pid: std::process::id() };
    folder::write_endpoint(&config.data, &endpoint);
    Ok(Service { stores, door, gateway, pipeline, public, admin, gauges, config, fatal, pipeline_failed, drain })
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

/// What a store is opened with.
pub fn settings(config: &Config) -> stores::Settings {
    stores::Settings {
        data: config.data.clone(),
        limits: config.limits.store.clone(),
        presence_ms: config.limits.socket.presence_ms,
    }
}

/// `data` as a folder: a plain path or `file:`; another address is refused with what is missing.
pub fn resolve(config: &mut Config) -> Result<(), Failure> {
    if let Some(text) = config.data.to_str() {
        config.data = stores::urls::folder(text).map_err(|why| Failure::usage(format!("`data`: {why}")))?;
    }
    Ok(())
}

async fn open(config: &Config, clock: Arc<dyn Clock>) -> Result<Stores, Failure> {
    let settings = settings(config);
    // Recovery reads the journal, which may take a while and blocks.
    let opening = tokio::task::spawn_blocking(move || Stores::open(settings, clock)).await;
    let opened = opening.map_err(|why| Failure::failed(format!("the store could not be opened: {why}")))?;
    opened.map_err(|why| Failure::unreachable(why.to_string()))
}

/// How callers are told apart, as the configuration says; by the data folder's own key where it says nothing.
fn auth(config: &Config) -> Result<AuthSettings, Failure> {
    let AuthConfig { algorithm, secret, secret_file, jwks, issuer, audience, api_keys } = &config.auth;
    let some = |text: &String| (!text.is_empty()).then(|| text.clone());
    let algorithm = match algorithm.as_str() {
        "RS256" => Algorithm::RS256,
        "ES256" => Algorithm::ES256,
        "EdDSA" => Algorithm::EdDSA,
        _ => Algorithm::HS256,
    };
    let is_shared = matches!(algorithm, Algorithm::HS256);
    let secret = match (is_shared, secret.is_empty(), secret_file.as_os_str().is_empty()) {
        (false, ..) => None,
        (_, false, _) => Some(secret.clone().into_bytes()),
        (.., false) => Some(std::fs::read(secret_file).map_err(|why| {
            Failure::usage(format!("`auth.secret_file` {} cannot be read: {why}", secret_file.display()))
        })?),
        _ => Some(folder::key(&config.data)?),
    };
    let api_keys = api_keys.iter().map(|key| {
        let tenant = Tenant::parse(&key.tenant).map_err(|why| why.to_string())?;
        let can = Permissions::parse(key.can.iter().map(String::as_str))?;
        Ok(ApiKey { sha256: key.sha256.clone(), tenant, can })
    });
    let api_keys = api_keys.collect::<Result<_, String>>();
    let api_keys = api_keys.map_err(|why| Failure::usage(format!("`auth.api_keys`: {why}")))?;
    let jwks = (!jwks.as_os_str().is_empty()).then(|| jwks.clone());
    Ok(AuthSettings { algorithm, secret, jwks, issuer: some(issuer), audience: some(audience), api_keys })
}

fn notice(config: &NoticeConfig) -> Notice {
    let webhook = (!config.webhook.is_empty()).then(|| Notice::Webhook(config.webhook.clone()));
    let command = (!config.command.is_empty()).then(|| Notice::Command(config.command.clone()));
    match (webhook, command) {
        (Some(webhook), Some(command)) => Notice::Several(vec![webhook, command]),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => Notice::None,
    }
}

impl Service {
    /// Where clients connect.
    pub fn listen(&self) -> std::net::SocketAddr {
        self.public.address()
    }

    /// Where administrators connect.
    pub fn admin(&self) -> std::net::SocketAddr {
        self.admin.address()
    }

    /// Waits until something ends the service: `Ok` when it was asked to (by signal or by an administrator), else why it
    /// cannot go on.
    pub async fn ended(&self, signalled: impl Future<Output = ()>) -> Result<(), Failure> {
        let (mut fatal, mut failed, mut drain) =
            (self.fatal.clone(), self.pipeline_failed.clone(), self.drain.subscribe());
        let failure = tokio::select! {
            () = signalled => return Ok(()),
            _ = drain.wait_for(|drain| *drain) => return Ok(()),
            Ok(why) = fatal.wait_for(Option::is_some) => format!(
                "the store takes no more writes ({}): nothing accepted is lost; put right what it says and start again",
                why.as_deref().unwrap_or("no reason told")
            ),
            Ok(why) = failed.wait_for(Option::is_some) => format!(
                "the dataflow has ended ({}): nothing accepted is lost; start again",
                why.as_deref().unwrap_or("no reason told")
            ),
        };
        Err(Failure::failed(failure))
    }

    /// Takes the service apart: no new work, sockets told to come back, what is in flight finished, the store closed. Says
    /// whether everything finished in its time; what did not is done again after the next start.
    pub async fn close(self) -> bool {
        self.drain.send_replace(true);
        folder::remove_endpoint(&self.config.data);
        self.gateway.drain().await;
        let mut clean = self.public.stop(FINISH).await;
        clean &= tokio::time::timeout(FINISH, self.door.close()).await.is_ok();
        let pipeline = self.pipeline.lock().take();
        if let Some(pipeline) = pipeline {
            clean &= pipeline.stop().await;
        }
        self.gauges.abort();
        // Administrators lose nothing by being cut off.
        self.admin.stop(ANSWER).await;
        let stores = self.stores.lock().take();
        if let Some(stores) = stores {
            clean &= tokio::time::timeout(FINISH, stores.close()).await.is_ok();
        }
        clean
    }

    /// Ends because the store or the dataflow cannot go on: waiting for work would gain nothing, but whoever asked is told.
    pub async fn abandon(self) {
        folder::remove_endpoint(&self.config.data);
        self.gauges.abort();
        tokio::join!(self.public.stop(ANSWER), self.admin.stop(ANSWER));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_are_what_configuration_names() {
        let config = |webhook: &str, command: &[&str]| NoticeConfig {
            webhook: webhook.to_owned(),
            command: command.iter().map(|s| (*s).to_owned()).collect(),
        };
        assert_eq!(notice(&config("", &[])), Notice::None);
        assert_eq!(notice(&config("https://x", &[])), Notice::Webhook("https://x".to_owned()));
        assert!(matches!(notice(&config("https://x", &["mail"])), Notice::Several(both) if both.len() == 2));
    }

    #[test]
    fn a_configured_secret_needs_no_signing_key() {
        let mut config = Config { data: "/nonexistent".into(), ..Config::default() };
        config.auth.secret = "0123456789abcdef0123456789abcdef".to_owned();
        assert_eq!(auth(&config).unwrap().secret.unwrap(), config.auth.secret.as_bytes());
        config.auth.secret.clear();
        assert!(auth(&config).is_err());
    }
}
