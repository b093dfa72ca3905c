//! Keeps: the log, the history, presence and the backplane, behind the ports.
//!
//! [`Stores::open`] opens all of them for one process: each from the address that is given for it, and from the data folder
//! (log, history) or in this process (presence, backplane) where none is. What is wrong is said by [`OpenError`]; what later
//! ends all writing, such as a disk that failed, once, by [`Stores::fatal`]. [`data`] looks at a folder nobody has open.

pub mod backplane;
pub mod cache;
pub mod data;
pub mod embedded;
mod error;
mod fatal;
mod folder;
pub mod history;
mod keeper;
pub mod limiter;
pub mod log;
pub mod presence;
#[cfg(feature = "redis")]
pub mod redis;
mod servers;
pub mod setup;
pub mod urls;

use std::{path::PathBuf, sync::Arc};

use futures::future::BoxFuture;
use schemas::{
    Clock, Limits, Timestamp,
    limits::{ChatLimits, RedisLimits, StoreLimits},
    port::{Backplane, Cache, History, Ingress, Limiter, Log, PortResult, Presence},
};
use tokio::sync::watch;

pub use error::OpenError;
pub use servers::{MOST_TTL_DAYS, ttl_days};

use crate::{
    backplane::LocalBackplane,
    cache::LocalCache,
    folder::Folder,
    limiter::LocalLimiter,
    presence::LocalPresence,
    servers::{Reach, Servers},
    urls::{Address, CachePlace},
};

/// What to open.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The data folder.
    pub data: PathBuf,
    /// Its bounds.
    pub limits: StoreLimits,
    /// The bounds of the cache.
    pub chat: ChatLimits,
    /// The bounds of Redis.
    pub redis: RedisLimits,
    /// How long a session's presence holds without being refreshed, ms.
    pub presence_ms: u64,
    /// How long a node may take to answer a delivery, ms.
    pub deliver_ms: u64,
    /// Holders of quotas remembered in this process.
    pub quota_holders: usize,
    /// The servers.
    pub places: Places,
}

impl Settings {
    /// Everything in a data folder and this process.
    pub fn folder(data: PathBuf, limits: StoreLimits, presence_ms: u64) -> Self {
        let all = Limits::default();
        Self {
            data,
            limits,
            chat: all.chat,
            redis: all.redis,
            presence_ms,
            deliver_ms: all.flow.deliver_ms,
            quota_holders: all.door.quota_holders as usize,
            places: Places::default(),
        }
    }
}

/// Servers that keep something instead of the data folder or this process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Places {
    /// The log.
    pub log: Option<Address>,
    /// The history.
    pub history: Option<Address>,
    /// Presence, backplane and shared quotas.
    pub presence: Option<Address>,
    /// The cache.
    pub cache: Option<CachePlace>,
}

impl Places {
    /// Whether something stands in the data folder, so that one process alone can work with it.
    pub fn needs_folder(&self) -> bool {
        self.log.is_none() || self.history.is_none()
    }
}

/// What a process has asked of a history of servers since it began.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Rows written.
    pub rows: u64,
    /// Requests that they were written in.
    pub requests: u64,
    /// Requests that read, by the name of their statement.
    pub reads: Vec<(&'static str, u64)>,
}

/// All that is kept.
pub struct Stores {
    /// The log.
    pub log: Arc<dyn Log>,
    /// The history.
    pub history: Arc<dyn History>,
    /// Presence.
    pub presence: Arc<dyn Presence>,
    /// The backplane.
    pub backplane: Arc<dyn Backplane>,
    /// Quotas.
    pub limiter: Arc<dyn Limiter>,
    /// The cache, where there is to be one.
    pub cache: Option<Arc<dyn Cache>>,
    settings: Settings,
    folder: Option<Folder>,
    servers: Servers,
    fatal: watch::Sender<Option<String>>,
}

impl Stores {
    /// Opens what the settings name. A data folder is created if it is not there, and only where something is kept in it; its
    /// lock is held until the last of what this gave is dropped. A server that does not answer is
    /// [`OpenError::Unreachable`]; every other refusal stays one until somebody changes something.
    pub async fn open(settings: Settings, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        let places = &settings.places;
        let mut servers = Servers::default();
        // Servers first: what they refuse is found out before the folder's journal is read.
        let log = servers.log(places.log.as_ref(), &settings.limits, &clock).await?;
        let history = servers.history(places.history.as_ref(), &settings.limits, &clock).await?;
        let reach = servers.presence(places.presence.as_ref(), &settings, &clock).await?;
        let cache = match &places.cache {
            Some(CachePlace::Off) => None,
            Some(CachePlace::Server(address)) => Some(servers.cache(address, &settings, &clock).await?),
            Some(CachePlace::Process) | None => {
                Some(Arc::new(LocalCache::new(clock.clone(), &settings.chat)) as Arc<dyn Cache>)
            }
        };
        let mut folder = None;
        let (log, history) = match (log, history) {
            (Some(log), Some(history)) => (log, history),
            (log, history) => {
                let opened = Folder::open(settings.clone(), clock.clone(), log.is_none(), history.is_none()).await?;
                let log = log.or_else(|| opened.log());
                let history = history.or_else(|| opened.history());
                folder = Some(opened);
                match (log, history) {
                    (Some(log), Some(history)) => (log, history),
                    // Not reached: the folder was asked for what is missing.
                    _ => return Err(OpenError::Address("nothing keeps the log or the history".into())),
                }
            }
        };
        let Reach { presence, backplane, limiter } = reach.unwrap_or_else(|| {
            let presence = LocalPresence::new(clock.clone(), settings.presence_ms, settings.limits.node_ms);
            Reach {
                presence: Arc::new(presence),
                backplane: Arc::new(LocalBackplane::new()),
                limiter: Arc::new(LocalLimiter::new(clock.clone(), settings.quota_holders)),
            }
        });
        let (fatal, _) = watch::channel(None);
        for source in servers.fatal().into_iter().chain(folder.as_ref().map(Folder::fatal)) {
            tokio::spawn(fatal::pass_on(source, fatal.clone()));
        }
        Ok(Self { log, history, presence, backplane, limiter, cache, settings, folder, servers, fatal })
    }

    /// Says why, once nothing can be written to the folder, or to the history, any more: the process is to end, and starting it
    /// again finds out what stands.
    pub fn fatal(&self) -> watch::Receiver<Option<String>> {
        self.fatal.subscribe()
    }

    /// Counters of the folder since start; `None` where nothing is kept in one.
    pub fn stats(&self) -> Option<Stats> {
        self.folder.as_ref().map(Folder::stats)
    }

    /// What this process has asked of a history of servers; `None` where it is a folder.
    pub fn traffic(&self) -> Option<Traffic> {
        self.settings.places.history.as_ref().and_then(|_| servers::traffic())
    }

    /// The times that the servers tell, each with whose it is: by them nodes know that their clocks agree.
    pub fn clocks(&self) -> Vec<(&'static str, BoxFuture<'static, PortResult<Timestamp>>)> {
        self.servers.clocks()
    }

    /// Joins those who read what businesses produce to the log's `ingress` topics; `None` where the log is a folder, which
    /// nobody else can produce to.
    pub async fn ingress(&self) -> Result<Option<Box<dyn Ingress>>, OpenError> {
        servers::ingress(self.settings.places.log.as_ref(), &self.settings.limits).await
    }

    /// Finishes what was submitted; everything after that is refused.
    pub async fn close(self) {
        if let Some(folder) = self.folder {
            folder.close().await;
        }
        self.servers.close().await;
    }
}

/// Counters of the embedded store since start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Syncs of the journal.
    pub syncs: u64,
    /// Groups of jobs that were written together.
    pub groups: u64,
    /// Jobs.
    pub jobs: u64,
    /// Rows written and removed.
    pub writes: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
}

#[cfg(test)]
mod tests {
    use schemas::{Partition, port::PortError, time::ManualClock};

    use super::*;

    fn settings(data: PathBuf) -> Settings {
        Settings::folder(data, StoreLimits { free_bytes: 0, ..StoreLimits::default() }, 300_000)
    }

    #[tokio::test]
    async fn a_folder_is_let_go_on_close_and_opens_again() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::at(Timestamp(1_700_000_000_000)));
        let settings = settings(dir.path().join("data"));
        for epoch in 1..4 {
            let stores = Stores::open(settings.clone(), clock.clone()).await.unwrap();
            let second = Stores::open(settings.clone(), clock.clone()).await.map(drop);
            assert!(matches!(second, Err(OpenError::Busy { .. })));
            let given = stores.history.take_over(&[Partition(3)]).await.unwrap();
            assert_eq!(given[0].0, epoch);
            assert!(stores.stats().unwrap().syncs > 0 && stores.fatal().borrow().is_none());
            assert!(stores.clocks().is_empty() && stores.ingress().await.unwrap().is_none());
            let log = stores.log.clone();
            stores.close().await;
            assert!(matches!(log.check().await, Err(PortError::Unavailable(_))));
        }
    }

    #[cfg(not(any(feature = "kafka", feature = "scylla", feature = "redis")))]
    #[tokio::test]
    async fn an_adapter_that_is_not_built_in_is_refused_with_how_to_build_it_and_no_folder_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::at(Timestamp(1_700_000_000_000)));
        let address = |text: &str| Some(Address::parse(text).unwrap());
        for (places, feature) in [
            (Places { log: address("kafka://a:1"), ..Places::default() }, "--features kafka"),
            (Places { history: address("scylla://a:1/k"), ..Places::default() }, "--features scylla"),
            (Places { presence: address("redis://a:1"), ..Places::default() }, "--features redis"),
        ] {
            let settings = Settings { places, ..settings(dir.path().join("data")) };
            let said = Stores::open(settings, clock.clone()).await.map(drop).unwrap_err();
            assert!(said.to_string().contains(feature) && !said.may_pass(), "{said}");
        }
        assert!(!dir.path().join("data").exists());
    }
}
