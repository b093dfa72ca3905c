//! Redis: one handle for presence, the backplane and shared quotas. It keeps one connection that all of them share, knows
//! whether Redis answers, and tells when it came back.
//!
//! Every command has a deadline. The first that fails or is late makes Redis count as away: from then on commands are
//! refused at once and nobody waits, until a new connection has answered. What somebody was told blindly meanwhile is
//! remembered ([`Redis::take_blind`]), because every node has to compare once Redis is back. What the commands mean is left
//! to the adapters.

mod address;
mod ears;
mod link;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use ::redis::{Cmd, FromRedisValue, RedisError, RedisResult, Script, Value};
use parking_lot::RwLock;
use schemas::{
    Clock, Timestamp,
    limits::RedisLimits,
    port::{PortError, PortResult},
};
use tokio::sync::{Notify, watch};

pub(crate) use ears::{Ears, Heard};
pub(crate) use link::Link;

use crate::{OpenError, urls::Address};
use address::Target;

/// Keys of one run of a script: well below what a script may take, and short enough that nobody behind it waits.
const KEYS: usize = 256;
/// Runs of a script at once on a cluster, where each key has its own place.
const AT_ONCE: usize = 64;

/// A Redis, or a cluster of them. Cheap to clone; the last clone that is dropped ends the connection.
#[derive(Clone)]
pub struct Redis(Arc<Inner>);

pub(crate) struct Inner {
    target: Target,
    limits: RedisLimits,
    clock: Arc<dyn Clock>,
    /// The connection and its number; none while Redis is away.
    link: RwLock<Option<(u64, Link)>>,
    numbers: AtomicU64,
    /// Wakes the keeper when the connection was given up.
    failed: Notify,
    /// How often a connection was made after one was lost.
    returns: watch::Sender<u64>,
    /// Somebody was told something without Redis since this was last taken.
    blind: AtomicBool,
}

impl Redis {
    /// Reads the address and connects: `redis://[user:password@]host:port[/PREFIX]`, `rediss://…` with TLS,
    /// `redis-cluster://host:port,host:port…`. Options: `db` (not on a cluster), `tls` (true on a cluster), `ca` (a PEM file).
    /// `PREFIX` stands before every key and channel; `esh3ar:` where none is given.
    ///
    /// `Unreachable`: nobody answers there, yet. Every other refusal stays one.
    pub async fn open(address: &Address, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        Self::with(address, RedisLimits::default(), clock).await
    }

    /// [`Redis::open`] with bounds of its own.
    pub async fn with(address: &Address, limits: RedisLimits, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        let redis = Self::begin(address, limits, clock)?;
        match redis.0.connect().await {
            Ok(link) => redis.0.put(link),
            Err(why) => return Err(redis.0.target.refusal(&why)),
        }
        link::keep(&redis.0);
        Ok(redis)
    }

    /// The same without waiting for it: Redis counts as away until it answers.
    pub fn away(address: &Address, limits: RedisLimits, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        let redis = Self::begin(address, limits, clock)?;
        redis.0.blind.store(true, Ordering::SeqCst);
        redis.0.failed.notify_one();
        link::keep(&redis.0);
        Ok(redis)
    }

    fn begin(address: &Address, limits: RedisLimits, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        Ok(Self(Arc::new(Inner {
            target: Target::parse(address, &limits)?,
            limits,
            clock,
            link: RwLock::new(None),
            numbers: AtomicU64::new(0),
            failed: Notify::new(),
            returns: watch::Sender::new(0),
            blind: AtomicBool::new(false),
        })))
    }

    pub(crate) fn limits(&self) -> &RedisLimits {
        &self.0.limits
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.0.clock
    }

    /// A key or a channel of this installation.
    pub(crate) fn name(&self, rest: &str) -> String {
        format!("{}{rest}", self.0.target.prefix)
    }

    pub(crate) fn is_cluster(&self) -> bool {
        self.0.target.is_cluster()
    }

    /// Whether Redis answers, as far as is known.
    pub fn is_here(&self) -> bool {
        self.0.link.read().is_some()
    }

    /// Asks whether it answers now.
    pub async fn check(&self) -> PortResult<()> {
        self.ask::<String>(&::redis::cmd("PING")).await.map(drop)
    }

    /// What its clock shows.
    pub async fn time(&self) -> PortResult<Timestamp> {
        let (seconds, micros): (i64, i64) = self.ask(&::redis::cmd("TIME")).await?;
        Ok(Timestamp(seconds.saturating_mul(1_000).saturating_add(micros / 1_000)))
    }

    /// Counts the times Redis came back: what was kept there may be gone.
    pub(crate) fn returns(&self) -> watch::Receiver<u64> {
        self.0.returns.subscribe()
    }

    /// Somebody is told something without Redis.
    pub(crate) fn go_blindly(&self) {
        self.0.blind.store(true, Ordering::SeqCst);
    }

    /// Whether somebody was told something without Redis; asking forgets it.
    pub(crate) fn take_blind(&self) -> bool {
        self.0.blind.swap(false, Ordering::SeqCst)
    }

    /// Sends one command.
    pub(crate) async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> PortResult<T> {
        self.run(async |mut link| link.ask(command).await).await
    }

    /// Runs a script for each of these keys: one answer a key, in their order. `common` are the arguments that all share,
    /// `own` those of each key, the same number for every one.
    ///
    /// One command for many keys; on a cluster, where each key may live elsewhere, one command a key, many at once.
    pub(crate) async fn each<T: FromRedisValue>(
        &self,
        script: &Script,
        common: &[String],
        keys: &[(String, Vec<String>)],
    ) -> PortResult<Vec<T>> {
        let run = async |some: &[(String, Vec<String>)]| {
            let mut call = script.prepare_invoke();
            for (key, _) in some {
                call.key(key.as_str());
            }
            for arg in common.iter().chain(some.iter().flat_map(|(_, own)| own)) {
                call.arg(arg.as_str());
            }
            let answers: Vec<T> = self.run(async |mut link| call.invoke_async(&mut link).await).await?;
            if answers.len() == some.len() { Ok(answers) } else { Err(odd("a script answered for other keys")) }
        };
        let mut answers = Vec::with_capacity(keys.len());
        if self.is_cluster() {
            for some in keys.chunks(AT_ONCE) {
                let each = futures::future::try_join_all(some.chunks(1).map(&run)).await?;
                answers.extend(each.into_iter().flatten());
            }
        } else {
            for some in keys.chunks(KEYS) {
                answers.extend(run(some).await?);
            }
        }
        Ok(answers)
    }

    /// Acts on the connection, within the time a command may take. Whoever is refused here goes on blindly, and that is
    /// noted before the connection is looked at again: so that it is either seen to be back, or everyone is told later.
    async fn run<T>(&self, act: impl AsyncFnOnce(Link) -> RedisResult<T>) -> PortResult<T> {
        let inner = &self.0;
        let look = || inner.link.read().clone();
        let Some((number, link)) = look().or_else(|| {
            self.go_blindly();
            look()
        }) else {
            return Err(PortError::Unavailable("Redis is away".to_owned()));
        };
        let within = Duration::from_millis(inner.limits.command_ms);
        match tokio::time::timeout(within, act(link)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(why)) if link::is_broken(&why) => {
                self.go_blindly();
                inner.give_up(number, &why.to_string());
                Err(PortError::Unknown(format!("Redis: {why}")))
            }
            Ok(Err(why)) => {
                self.go_blindly();
                Err(PortError::Rejected(format!("Redis: {why}")))
            }
            Err(_) => {
                self.go_blindly();
                let why = format!("no answer within {} ms", inner.limits.command_ms);
                inner.give_up(number, &why);
                Err(PortError::Unknown(format!("Redis: {why}")))
            }
        }
    }
}

impl Inner {
    /// A new connection that has answered.
    async fn connect(&self) -> Result<Link, RedisError> {
        let within = Duration::from_millis(self.limits.command_ms.saturating_mul(2));
        let try_it = async {
            let mut link = Link::connect(&self.target).await?;
            link.probe().await?;
            Ok(link)
        };
        match tokio::time::timeout(within, try_it).await {
            Ok(tried) => tried,
            Err(_) => Err(late(within)),
        }
    }

    fn put(&self, link: Link) {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed) + 1;
        *self.link.write() = Some((number, link));
    }

    /// Takes a connection that failed out of use, unless another has taken its place already.
    fn give_up(&self, number: u64, why: &str) {
        let mut link = self.link.write();
        if link.as_ref().is_some_and(|(now, _)| *now == number) {
            *link = None;
            tracing::warn!(redis = %self.target.address, why, "Redis is away: what needs no other node goes on");
            self.failed.notify_one();
        }
    }
}

fn late(within: Duration) -> RedisError {
    let text = format!("no answer within {} ms", within.as_millis());
    RedisError::from(std::io::Error::new(std::io::ErrorKind::TimedOut, text))
}

/// An answer that does not follow its form.
pub(crate) fn odd(why: &str) -> PortError {
    PortError::Rejected(format!("Redis: {why}: is another program using these keys?"))
}

/// A random number below `most`, for jitter.
pub(crate) fn chance(most: u64) -> u64 {
    (uuid::Uuid::new_v4().as_u128() % u128::from(most.max(1))) as u64
}

/// The bytes of a bulk answer.
pub(crate) fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.into_bytes()),
        _ => None,
    }
}
