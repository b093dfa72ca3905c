//! Quotas (R5.5): how many messages a person, a tenant's servers and all together may send: an even rate with a burst of one
//! window. Each decision names the policy that refused and when it would not.
//!
//! What is left of a quota, and whether other doors take from it too, is the limiter's to know ([`Limiter`]).

use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use schemas::{
    Code, Problem,
    limits::DoorLimits,
    port::{Granted, Limiter, Quota},
};
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

/// All quotas of the door.
pub struct Quotas {
    limiter: Arc<dyn Limiter>,
    person_minute: u32,
    person_hour: u32,
    server_second: u32,
    broadcast_minute: u32,
    /// What all share.
    system: Rule,
}

/// One quota of one holder.
struct Rule {
    policy: Policy,
    quota: Quota,
}

impl Rule {
    /// `holder`: whose it is; the same text on every door.
    fn new(policy: Policy, tokens: u32, holder: std::fmt::Arguments<'_>) -> Self {
        let key = format!("{}{holder}", policy.word()).into();
        let window_ms = policy.window_s() * 1_000;
        Self { policy, quota: Quota { key, tokens: tokens.max(1), window_ms } }
    }

    fn violation(&self, retry_after_ms: u64) -> Violation {
        Violation { policy: self.policy, quota: self.quota.tokens, retry_after_ms: retry_after_ms.max(1) }
    }

    fn standing(&self, remaining: u32) -> Standing {
        Standing { policy: self.policy, quota: self.quota.tokens, remaining }
    }
}

/// What the limiter is asked for.
fn of(rules: &[Rule]) -> Vec<Quota> {
    rules.iter().map(|rule| rule.quota.clone()).collect()
}

impl Quotas {
    /// As the limits say, kept by this limiter.
    pub fn new(limits: &DoorLimits, limiter: Arc<dyn Limiter>) -> Self {
        Self {
            limiter,
            person_minute: limits.person_per_minute,
            person_hour: limits.person_per_hour,
            server_second: limits.server_per_second,
            broadcast_minute: limits.broadcasts_per_minute,
            system: Rule::new(Policy::SystemSecond, limits.system_per_second, format_args!("")),
        }
    }

    /// The rules a caller's messages are held against, before that of all.
    fn own(&self, caller: &Caller) -> Vec<Rule> {
        let (tenant, who) = (&caller.tenant, &caller.who);
        match who {
            // All keys of a tenant share one quota.
            Who::Server | Who::Admin => {
                vec![Rule::new(Policy::ServerSecond, self.server_second, format_args!("/{tenant}"))]
            }
            _ => vec![
                Rule::new(Policy::PersonMinute, self.person_minute, format_args!("/{tenant}/{who}")),
                Rule::new(Policy::PersonHour, self.person_hour, format_args!("/{tenant}/{who}")),
            ],
        }
    }

    fn broadcasts(&self, caller: &Caller) -> Rule {
        Rule::new(Policy::BroadcastMinute, self.broadcast_minute, format_args!("/{}", caller.tenant))
    }

    /// The rules that hold for a caller's messages, its own first.
    fn all(&self, caller: &Caller) -> Vec<Rule> {
        let mut rules = self.own(caller);
        rules.push(Rule { policy: self.system.policy, quota: self.system.quota.clone() });
        rules
    }

    /// Takes up to `count` messages from all quotas that hold for this caller.
    pub async fn take(&self, caller: &Caller, count: u32) -> Grant {
        let rules = self.all(caller);
        let Granted { count, refused } = self.limiter.take(&of(&rules), count).await;
        let violation = refused.and_then(|(place, wait)| rules.get(place).map(|rule| rule.violation(wait)));
        Grant { count, violation }
    }

    /// Why a message would be refused now; for dry runs.
    pub async fn check(&self, caller: &Caller) -> Result<(), Violation> {
        let rules = self.all(caller);
        let stand = self.limiter.look(&of(&rules)).await;
        match rules.iter().zip(stand).find(|(_, stand)| stand.remaining == 0) {
            Some((rule, stand)) => Err(rule.violation(stand.wait_ms)),
            None => Ok(()),
        }
    }

    /// Takes one broadcast of a tenant.
    pub async fn take_broadcast(&self, caller: &Caller) -> Result<(), Violation> {
        let rule = self.broadcasts(caller);
        match self.limiter.take(std::slice::from_ref(&rule.quota), 1).await.refused {
            Some((_, wait)) => Err(rule.violation(wait)),
            None => Ok(()),
        }
    }

    /// Where a caller stands with what is its own.
    pub async fn standing(&self, caller: &Caller) -> Vec<Standing> {
        self.stand(&self.own(caller)).await
    }

    async fn stand(&self, rules: &[Rule]) -> Vec<Standing> {
        let stand = self.limiter.look(&of(rules)).await;
        rules.iter().zip(stand).map(|(rule, stand)| rule.standing(stand.remaining)).collect()
    }

    /// Everything that holds for a caller, for `GET /v1/limits`. What is left of what all share is nobody's to know.
    pub async fn shown(&self, caller: &Caller) -> Vec<Shown> {
        let mut rules = self.own(caller);
        if caller.can.broadcast && caller.is_business() {
            rules.push(self.broadcasts(caller));
        }
        let mut all: Vec<_> = self.stand(&rules).await.iter().map(Shown::from).collect();
        let all_share = self.system.standing(0);
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
