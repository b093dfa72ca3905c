//! Quotas shared by many doors over Redis: a bucket for each quota there, taken from by one script for many quotas at once,
//! ahead of use ([`lease`](super::lease)). While Redis is away each door grants its share of the doors that were last seen,
//! and it goes on from what it granted before: nobody starts with a full bucket because Redis went.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use ::redis::Script;
use async_trait::async_trait;
use parking_lot::Mutex;
use schemas::{
    port::{Granted, Limiter, PortResult, Quota, Standing},
    vital,
};
use tokio::sync::{mpsc, oneshot};

use super::{
    LocalLimiter,
    lease::{Leased, Leases, Tried},
};
use crate::redis::Redis;

/// Callers that wait for leases at once; past that they wait in line.
const CALLERS: usize = 1_024;
/// How often one caller asks for leases that are gone when it comes to use them; then it is as if Redis were away.
const TRIES: usize = 8;
/// How often a door says that it is there, and how long it counts, ms.
const HERE_MS: u64 = 3_000;
const GONE_MS: u64 = 10_000;

/// `every_us full_us want` for each key → `granted left wait_us`. Redis's own time, counted from 2025: small enough that
/// fractions of a microsecond are kept.
const LEASE: &str = "
local time = redis.call('TIME')
local now = (time[1] - 1735689600) * 1000000 + time[2]
local answers = {}
for i, key in ipairs(KEYS) do
  local every, full, want = tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
  local at = math.max(tonumber(redis.call('GET', key) or '0'), now)
  local left = math.max(0, math.floor((full - (at - now)) / every + 0.001))
  local granted = math.min(want, left)
  if granted > 0 then
    at = at + granted * every
    redis.call('SET', key, string.format('%.3f', at), 'PX', math.ceil((at - now) / 1000) + 1000)
  end
  answers[i] = {granted, left - granted, math.max(0, math.ceil(at + every - full - now))}
end
return answers
";

/// `door gone_ms` → how many doors there are.
const HERE: &str = "
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[2]))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {redis.call('ZCARD', KEYS[1])}
";

/// A limiter for a door among many.
pub struct RedisLimiter {
    shared: Arc<Shared>,
    needs: mpsc::Sender<Need>,
}

struct Shared {
    redis: Redis,
    leases: Mutex<Leases>,
    /// What this door granted, held against its share when it is alone.
    alone: LocalLimiter,
    doors: AtomicU32,
    lease: Script,
}

/// A caller who waits for leases. `count` 0: wants to know only.
struct Need {
    quotas: Vec<Quota>,
    count: u32,
    done: oneshot::Sender<bool>,
}

impl RedisLimiter {
    /// Needs a runtime: leases are asked for by a task of its own.
    pub fn new(redis: Redis) -> Arc<Self> {
        let limits = redis.limits().clone();
        let shared = Arc::new(Shared {
            leases: Mutex::new(Leases::new(limits.lease_ms, limits.holders)),
            alone: LocalLimiter::new(redis.clock().clone(), limits.holders),
            doors: AtomicU32::new(1),
            lease: Script::new(LEASE),
            redis,
        });
        let (needs, asked) = mpsc::channel(CALLERS);
        tokio::spawn(vital::task("the lease of quotas", lend(shared.clone(), asked)));
        tokio::spawn(vital::task("the count of doors", be_here(Arc::downgrade(&shared))));
        Arc::new(Self { shared, needs })
    }

    /// Doors that were last seen, this one counted.
    pub fn doors(&self) -> u32 {
        self.shared.doors.load(Ordering::Relaxed)
    }

    /// Waits until what is missing was asked for; says whether it was.
    async fn ask(&self, quotas: &[Quota], count: u32) -> bool {
        if !self.shared.redis.is_here() {
            return false;
        }
        let (done, told) = oneshot::channel();
        let need = Need { quotas: quotas.to_vec(), count, done };
        self.needs.send(need).await.is_ok() && told.await.unwrap_or(false)
    }
}

impl Shared {
    /// This door's part of quotas.
    fn parts(&self, quotas: &[Quota]) -> Vec<Quota> {
        let doors = self.doors.load(Ordering::Relaxed).max(1);
        let part = |quota: &Quota| Quota { tokens: (quota.tokens / doors).max(1), ..quota.clone() };
        quotas.iter().map(part).collect()
    }

    fn granted(&self, quotas: &[Quota], granted: Granted) -> Granted {
        if granted.count > 0 {
            self.alone.charge(&self.parts(quotas), granted.count);
        }
        granted
    }

    async fn lease(&self, wants: &[(Quota, u32)]) -> PortResult<Vec<Leased>> {
        let keys: Vec<_> = wants
            .iter()
            .map(|(quota, want)| {
                let own = [quota.every_us().to_string(), (quota.window_ms * 1_000).to_string(), want.to_string()];
                (self.redis.name(&format!("quota:{}", quota.key)), own.to_vec())
            })
            .collect();
        let answers = self.redis.each::<(u32, u32, u64)>(&self.lease, &[], &keys).await?;
        Ok(answers.into_iter().map(|(tokens, left, wait_us)| Leased { tokens, left, wait_us }).collect())
    }
}

#[async_trait]
impl Limiter for RedisLimiter {
    async fn take(&self, quotas: &[Quota], count: u32) -> Granted {
        let shared = &self.shared;
        let now = || shared.redis.clock().mono();
        // Others take what was leased meanwhile, and where a machine is starved a lease is over before its turn comes.
        for _ in 0..TRIES {
            let tried = shared.leases.lock().take(quotas, count, now());
            if let Tried::Granted(granted) = tried {
                return shared.granted(quotas, granted);
            }
            if !self.ask(quotas, count).await {
                return shared.alone.take_now(&shared.parts(quotas), count);
            }
        }
        // Nobody has said that there is no more: it is not refused for want of speed.
        shared.alone.take_now(&shared.parts(quotas), count)
    }

    async fn look(&self, quotas: &[Quota]) -> Vec<Standing> {
        let known = || {
            let (leases, now) = (self.shared.leases.lock(), self.shared.redis.clock().mono());
            quotas.iter().map(|quota| leases.standing(quota, now)).collect::<Option<Vec<_>>>()
        };
        if let Some(known) = known() {
            return known;
        }
        if self.ask(quotas, 0).await
            && let Some(known) = known()
        {
            return known;
        }
        self.shared.alone.look(&self.shared.parts(quotas)).await
    }
}

/// Leases for all who wait, in one request; meanwhile the next gather.
async fn lend(shared: Arc<Shared>, mut needs: mpsc::Receiver<Need>) {
    let mut waiting = Vec::new();
    while needs.recv_many(&mut waiting, CALLERS).await > 0 {
        let mut sums: HashMap<Arc<str>, (Quota, u32)> = HashMap::new();
        for need in &waiting {
            for quota in &need.quotas {
                let sum = &mut sums.entry(quota.key.clone()).or_insert_with(|| (quota.clone(), 0)).1;
                *sum = sum.saturating_add(need.count);
            }
        }
        let wants: Vec<(Quota, u32)> = {
            let (leases, now) = (shared.leases.lock(), shared.redis.clock().mono());
            let want = |(quota, need): (Quota, u32)| {
                let want = if need == 0 { 0 } else { leases.wants(&quota, need, now) };
                (quota, want)
            };
            sums.into_values().map(want).collect()
        };
        let leased = shared.lease(&wants).await;
        if let Ok(leased) = &leased {
            let (mut leases, now) = (shared.leases.lock(), shared.redis.clock().mono());
            for ((quota, want), leased) in wants.iter().zip(leased) {
                leases.credit(quota, *want, *leased, now);
            }
        }
        for need in waiting.drain(..) {
            // Whoever asked may have gone.
            let _ = need.done.send(leased.is_ok());
        }
    }
}

/// Says that this door is there, and learns how many are.
async fn be_here(weak: Weak<Shared>) {
    let (here, me) = (Script::new(HERE), uuid::Uuid::new_v4().simple().to_string());
    loop {
        let Some(shared) = weak.upgrade() else { return };
        let key = (shared.redis.name("doors"), Vec::new());
        let said = shared.redis.each::<u32>(&here, &[me.clone(), GONE_MS.to_string()], &[key]).await;
        match said.as_deref() {
            Ok([doors]) => shared.doors.store((*doors).max(1), Ordering::Relaxed),
            // While Redis is away the number that was last seen holds.
            _ => tracing::debug!("the doors cannot be counted now"),
        }
        drop(shared);
        tokio::time::sleep(Duration::from_millis(HERE_MS)).await;
    }
}
