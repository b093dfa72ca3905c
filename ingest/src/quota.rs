//! Quotas (R5.5): how many messages a person, a tenant's servers and all together may send, by GCRA (`governor`): an even rate
//! with a burst of one window. Each decision names the policy that refused and when it would not.
//!
//! Time is the product's monotonic clock. Holders are remembered up to a bound; who is forgotten starts anew.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use governor::{
    Quota, RateLimiter,
    clock::Clock as _,
    middleware::StateInformationMiddleware,
    nanos::Nanos,
    state::{InMemoryState, NotKeyed, StateStore},
};
use http::{HeaderMap, HeaderValue};
use moka::{policy::EvictionPolicy, sync::Cache};
use schemas::{Clock, Code, Problem, Tenant, limits::DoorLimits};
use serde::Serialize;

use crate::auth::{Caller, Who};

/// A rule that may refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Policy {
    /// Messages of one person in a minute.
    PersonMinute,
    /// Messages of one person in an hour.
    PersonHour,
    /// Messages of one tenant's server keys in a second.
    ServerSecond,
    /// Messages of all in a second.
    SystemSecond,
    /// Broadcasts of one tenant in a minute.
    BroadcastMinute,
}

impl Policy {
    /// The name in headers and refusals.
    pub fn word(self) -> &'static str {
        match self {
            Self::PersonMinute => "person-minute",
            Self::PersonHour => "person-hour",
            Self::ServerSecond => "server-second",
            Self::SystemSecond => "system-second",
            Self::BroadcastMinute => "broadcast-minute",
        }
    }

    /// Its window, seconds.
    pub fn window_s(self) -> u64 {
        match self {
            Self::PersonMinute | Self::BroadcastMinute => 60,
            Self::PersonHour => 3_600,
            Self::ServerSecond | Self::SystemSecond => 1,
        }
    }

    /// Whether waiting a moment helps, so that a batch is held back instead of refused.
    pub fn is_brief(self) -> bool {
        self.window_s() == 1
    }
}

/// Where a holder stands with a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Which.
    pub policy: Policy,
    /// Messages in its window.
    pub quota: u32,
    /// How many are left now.
    pub remaining: u32,
}

impl Standing {
    /// Seconds until all of it is there again; where nothing is left, until there is something: `t` must not be later than
    /// `Retry-After`.
    pub fn reset_s(&self) -> u64 {
        let used = if self.remaining == 0 { 1 } else { u64::from(self.quota.saturating_sub(self.remaining)) };
        (used * self.policy.window_s()).div_ceil(u64::from(self.quota.max(1)))
    }
}

/// A quota is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub policy: Policy,
    /// Messages in its window.
    pub quota: u32,
    /// When the next one is there, ms.
    pub retry_after_ms: u64,
}

impl From<Violation> for Problem {
    fn from(v: Violation) -> Self {
        let (name, window) = (v.policy.word(), v.policy.window_s());
        let what = if v.policy == Policy::BroadcastMinute { "broadcasts" } else { "messages" };
        let detail = format!("the quota `{name}` is used up: {} {what} in {window} s", v.quota);
        Problem::new(Code::QuotaExceeded, detail).at(name).retry_after_ms(v.retry_after_ms.max(1))
    }
}

/// What a request was granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// How many messages, at most as many as asked for.
    pub count: u32,
    /// Why not all.
    pub violation: Option<Violation>,
}

/// The product's clock, as governor reads one.
#[derive(Clone)]
struct Mono(Arc<dyn Clock>);

impl governor::clock::Clock for Mono {
    type Instant = Nanos;
    fn now(&self) -> Nanos {
        // One more, because a state of zero means "never seen" to governor's store.
        Nanos::new(self.0.mono().0.saturating_add(1).saturating_mul(1_000_000))
    }
}

/// States by holder, bounded: the least recently seen is forgotten first.
#[derive(Clone)]
struct Holders {
    cells: Cache<Holder, Arc<InMemoryState>>,
    /// Reads and writes nothing.
    peeks: bool,
}

/// Who holds a quota.
type Holder = (Option<Tenant>, Option<Who>);

impl StateStore for Holders {
    type Key = Holder;

    fn measure_and_replace<T, F, E>(&self, key: &Holder, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let cell = self.cells.get(key).unwrap_or_else(|| self.cells.get_with(key.clone(), Arc::default));
        if !self.peeks {
            return cell.measure_and_replace(&NotKeyed::NonKey, f);
        }
        // What a store is told not to keep, it does not: the answer leaves through the error.
        let looked = cell.measure_and_replace::<(), _, Result<T, E>>(&NotKeyed::NonKey, |was| match f(was) {
            Ok((value, _)) => Err(Ok(value)),
            Err(refused) => Err(Err(refused)),
        });
        match looked {
            Err(answer) => answer,
            // Not reached: the closure above never lets anything be kept.
            Ok(()) => f(None).map(|(value, _)| value),
        }
    }
}

type Limiter = RateLimiter<Holder, Holders, Mono, StateInformationMiddleware>;

/// One policy with its states.
struct Rule {
    policy: Policy,
    quota: u32,
    takes: Limiter,
    looks: Limiter,
}

impl Rule {
    fn new(policy: Policy, quota: u32, limits: &DoorLimits, clock: &Arc<dyn Clock>) -> Self {
        let cells = Cache::builder()
            .max_capacity(limits.quota_holders)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(Duration::from_secs(policy.window_s().max(60)))
            .build();
        let burst = NonZeroU32::new(quota).unwrap_or(NonZeroU32::MIN);
        let every = Duration::from_nanos((policy.window_s() * 1_000_000_000 / u64::from(burst.get())).max(1));
        let rate = Quota::with_period(every).unwrap_or(Quota::per_second(burst)).allow_burst(burst);
        let limiter = |peeks| {
            let store = Holders { cells: cells.clone(), peeks };
            Limiter::new(rate, store, Mono(clock.clone()))
        };
        Self { policy, quota: burst.get(), takes: limiter(false), looks: limiter(true) }
    }

    fn remaining(&self, holder: &Holder) -> u32 {
        self.looks.check_key(holder).map_or(0, |snapshot| snapshot.remaining_burst_capacity() + 1)
    }

    fn take(&self, holder: &Holder, count: u32) -> Result<Standing, Violation> {
        let Some(count) = NonZeroU32::new(count) else {
            return Ok(Standing { policy: self.policy, quota: self.quota, remaining: self.remaining(holder) });
        };
        let now = self.takes.clock().now();
        let refused = |ms| Violation { policy: self.policy, quota: self.quota, retry_after_ms: ms };
        match self.takes.check_key_n(holder, count) {
            Ok(Ok(snapshot)) => {
                let remaining = snapshot.remaining_burst_capacity();
                Ok(Standing { policy: self.policy, quota: self.quota, remaining })
            }
            Ok(Err(until)) => {
                let wait = until.wait_time_from(now);
                Err(refused(u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)))
            }
            Err(_) => Err(refused(self.policy.window_s() * 1_000)),
        }
    }

    /// Refuses with the time until one message would be taken.
    fn violation(&self, holder: &Holder) -> Violation {
        let now = self.looks.clock().now();
        let wait = match self.looks.check_key(holder) {
            Ok(_) => Duration::ZERO,
            Err(until) => until.wait_time_from(now),
        };
        let ms = u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).max(1);
        Violation { policy: self.policy, quota: self.quota, retry_after_ms: ms }
    }
}

/// All quotas of the door.
pub struct Quotas {
    person_minute: Rule,
    person_hour: Rule,
    server_second: Rule,
    system_second: Rule,
    broadcast_minute: Rule,
}

/// The holder of what all share.
const SYSTEM: Holder = (None, None);

impl Quotas {
    /// As the limits say.
    pub fn new(limits: &DoorLimits, clock: &Arc<dyn Clock>) -> Self {
        let rule = |policy, quota| Rule::new(policy, quota, limits, clock);
        Self {
            person_minute: rule(Policy::PersonMinute, limits.person_per_minute),
            person_hour: rule(Policy::PersonHour, limits.person_per_hour),
            server_second: rule(Policy::ServerSecond, limits.server_per_second),
            system_second: rule(Policy::SystemSecond, limits.system_per_second),
            broadcast_minute: rule(Policy::BroadcastMinute, limits.broadcasts_per_minute),
        }
    }

    /// The rules a caller's messages are held against, before those of all.
    fn own(&self, caller: &Caller) -> (Vec<&Rule>, Holder) {
        let tenant = Some(caller.tenant.clone());
        match caller.who {
            // All keys of a tenant share one quota.
            Who::Server | Who::Admin => (vec![&self.server_second], (tenant, None)),
            _ => (vec![&self.person_minute, &self.person_hour], (tenant, Some(caller.who.clone()))),
        }
    }

    /// Takes one message from all quotas that hold for this caller.
    pub fn take_one(&self, caller: &Caller) -> Grant {
        let (own, holder) = self.own(caller);
        let mut rules = own.iter().map(|rule| (*rule, &holder)).chain([(&self.system_second, &SYSTEM)]);
        match rules.try_for_each(|(rule, holder)| rule.take(holder, 1).map(|_| ())) {
            Ok(()) => Grant { count: 1, violation: None },
            Err(violation) => Grant { count: 0, violation: Some(violation) },
        }
    }

    /// Takes up to `count` messages from all quotas that hold for this caller.
    pub fn take(&self, caller: &Caller, count: u32) -> Grant {
        let (own, holder) = self.own(caller);
        let rules = || own.iter().map(|rule| (*rule, &holder)).chain([(&self.system_second, &SYSTEM)]);
        let mut violation = None;
        // Others take at the same time: what was there a moment ago may be gone. A few tries, then the refusal stands.
        for _ in 0..4 {
            let mut granted = count;
            for (rule, holder) in rules() {
                let left = rule.remaining(holder);
                if left < granted {
                    granted = left;
                    violation = Some(rule.violation(holder));
                }
            }
            if granted == 0 {
                break;
            }
            match rules().try_for_each(|(rule, holder)| rule.take(holder, granted).map(|_| ())) {
                Ok(()) => {
                    let violation = violation.filter(|_| granted < count);
                    return Grant { count: granted, violation };
                }
                Err(refused) => violation = Some(refused),
            }
        }
        Grant { count: 0, violation }
    }

    /// Why a message would be refused now; for dry runs.
    pub fn check(&self, caller: &Caller) -> Result<(), Violation> {
        let (own, holder) = self.own(caller);
        let mut rules = own.iter().map(|rule| (*rule, &holder)).chain([(&self.system_second, &SYSTEM)]);
        match rules.find(|(rule, holder)| rule.remaining(holder) == 0) {
            Some((rule, holder)) => Err(rule.violation(holder)),
            None => Ok(()),
        }
    }

    /// Takes one broadcast of a tenant.
    pub fn take_broadcast(&self, caller: &Caller) -> Result<(), Violation> {
        self.broadcast_minute.take(&(Some(caller.tenant.clone()), None), 1).map(|_| ())
    }

    /// Where a caller stands with what is its own.
    pub fn standing(&self, caller: &Caller) -> Vec<Standing> {
        let (own, holder) = self.own(caller);
        let stand =
            |rule: &&Rule| Standing { policy: rule.policy, quota: rule.quota, remaining: rule.remaining(&holder) };
        own.iter().map(stand).collect()
    }

    /// Everything that holds for a caller, for `GET /v1/limits`. What is left of what all share is nobody's to know.
    pub fn shown(&self, caller: &Caller) -> Vec<Shown> {
        let mut all: Vec<_> = self.standing(caller).iter().map(Shown::from).collect();
        if caller.can.broadcast && caller.is_business() {
            let rule = &self.broadcast_minute;
            let remaining = rule.remaining(&(Some(caller.tenant.clone()), None));
            all.push(Shown::from(&Standing { policy: rule.policy, quota: rule.quota, remaining }));
        }
        let system = &self.system_second;
        let all_share = Standing { policy: system.policy, quota: system.quota, remaining: 0 };
        all.push(Shown { remaining: None, reset_s: None, ..Shown::from(&all_share) });
        all
    }
}

/// A quota as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shown {
    policy: &'static str,
    quota: u32,
    window_s: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    remaining: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reset_s: Option<u64>,
}

impl From<&Standing> for Shown {
    fn from(s: &Standing) -> Self {
        Self {
            policy: s.policy.word(),
            quota: s.quota,
            window_s: s.policy.window_s(),
            remaining: Some(s.remaining),
            reset_s: Some(s.reset_s()),
        }
    }
}

/// Writes `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers).
pub fn write_headers(headers: &mut HeaderMap, standing: &[Standing]) {
    use std::fmt::Write as _;
    let (mut policy, mut limit) = (String::with_capacity(64), String::with_capacity(64));
    for (i, s) in standing.iter().enumerate() {
        let (comma, name) = (if i == 0 { "" } else { ", " }, s.policy.word());
        // Writing to a string cannot fail.
        let _ = write!(policy, "{comma}\"{name}\";q={};w={}", s.quota, s.policy.window_s());
        let _ = write!(limit, "{comma}\"{name}\";r={};t={}", s.remaining, s.reset_s());
    }
    for (name, text) in [("ratelimit-policy", policy), ("ratelimit", limit)] {
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(name, value);
        }
    }
}
