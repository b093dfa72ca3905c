//! Notices to administrators (R4.5): what is told of dead letters, to whom, and not more than once in a while. A notice
//! names ids, reasons and counts and never content or recipients. Best effort: the dead-letter index is the truth, and a
//! target that is away is told the sum when it is back.

use std::{collections::BTreeMap, process::Stdio, sync::Arc, time::Duration};

use parking_lot::Mutex;
use schemas::{Clock, MessageId, Reason, Tenant, Timestamp, limits::SinkLimits, port::Dead, vital};
use serde::Serialize;
use tokio::io::AsyncWriteExt as _;

use crate::breaker::{Breaker, Rule};

/// Whom to tell.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Notice {
    /// Nobody beyond the log and the metric.
    #[default]
    None,
    /// A POST of the notice's JSON to this URL.
    Webhook(String),
    /// A program and its arguments; the notice's JSON on its standard input.
    Command(Vec<String>),
    /// Several of these, each on its own.
    Several(Vec<Notice>),
}

/// What a notice says.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Told {
    /// Always `dead_letters`.
    pub event: &'static str,
    /// How many since the last notice to this target.
    pub count: u64,
    /// How many for each reason.
    pub reasons: BTreeMap<&'static str, u64>,
    /// The first of them.
    pub letters: Vec<Letter>,
    /// When the first of them was given up.
    pub since: Timestamp,
}

/// One dead letter as a notice names it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Letter {
    /// The message.
    pub id: MessageId,
    /// Whose it is.
    pub tenant: Tenant,
    /// Why it was given up.
    pub reason: Reason,
}

impl Told {
    /// Adds dead letters to what is to be told; names at most `most` of them.
    fn add(so_far: &mut Option<Self>, dead: &[Dead], most: usize) {
        let Some(first) = dead.first() else { return };
        let told = so_far.get_or_insert_with(|| Self::nothing(first.at));
        for dead in dead {
            told.count += 1;
            *told.reasons.entry(dead.reason.word()).or_default() += 1;
            if told.letters.len() < most {
                let tenant = dead.inbox.user.tenant.clone();
                told.letters.push(Letter { id: dead.id, tenant, reason: dead.reason });
            }
        }
    }

    /// Puts what could not be told back before what came since.
    fn put_back(so_far: &mut Option<Self>, mut failed: Self, most: usize) {
        if let Some(since) = so_far.take() {
            failed.count += since.count;
            for (reason, n) in since.reasons {
                *failed.reasons.entry(reason).or_default() += n;
            }
            let room = most.saturating_sub(failed.letters.len());
            failed.letters.extend(since.letters.into_iter().take(room));
        }
        *so_far = Some(failed);
    }

    fn nothing(since: Timestamp) -> Self {
        Self { event: "dead_letters", count: 0, reasons: BTreeMap::new(), letters: Vec::new(), since }
    }
}

/// How one target is reached.
enum Way {
    Webhook { url: String, client: reqwest::Client },
    Command { program: String, arguments: Vec<String> },
}

/// What waits to be told, and whether someone is at it.
#[derive(Default)]
struct Waiting {
    told: Option<Told>,
    ringing: bool,
}

/// One target, with what waits to be told to it.
pub(crate) struct Bell {
    way: Way,
    name: &'static str,
    clock: Arc<dyn Clock>,
    limits: SinkLimits,
    waiting: Mutex<Waiting>,
}

impl Bell {
    /// The bells of a notice: none, one or several. A target that cannot be set up is said so, and left out.
    pub(crate) fn of(notice: Notice, clock: &Arc<dyn Clock>, limits: &SinkLimits) -> Vec<Arc<Self>> {
        let (name, way) = match notice {
            Notice::None => return Vec::new(),
            Notice::Several(several) => {
                return several.into_iter().flat_map(|notice| Self::of(notice, clock, limits)).collect();
            }
            Notice::Webhook(url) => match client(&url, limits) {
                Ok(client) => ("webhook", Way::Webhook { url, client }),
                Err(why) => {
                    tracing::error!(%why, "dead letters will not be told by webhook: its URL cannot be used");
                    return Vec::new();
                }
            },
            Notice::Command(words) => {
                let mut words = words.into_iter();
                let Some(program) = words.next() else { return Vec::new() };
                ("command", Way::Command { program, arguments: words.collect() })
            }
        };
        let (clock, limits) = (Arc::clone(clock), limits.clone());
        vec![Arc::new(Self { way, name, clock, limits, waiting: Mutex::default() })]
    }

    /// Tells of dead letters: at once if nothing was told lately, else together with what comes until the time is over.
    pub(crate) fn ring(self: &Arc<Self>, dead: &[Dead]) {
        let mut waiting = self.waiting.lock();
        Told::add(&mut waiting.told, dead, self.limits.notice_letters);
        if waiting.ringing || waiting.told.is_none() {
            return;
        }
        // Outside a runtime nothing can be sent; the next call inside one tells of these too.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        waiting.ringing = true;
        drop(waiting);
        runtime.spawn(vital::task("telling of dead letters", Arc::clone(self).tell_all()));
    }

    /// Tells until nothing waits. One at a time for each target: `ringing` says that one is at it.
    async fn tell_all(self: Arc<Self>) {
        let rule = Rule::from(&self.limits);
        let mut breaker = Breaker::new(self.clock.mono());
        loop {
            let next = {
                let mut waiting = self.waiting.lock();
                let next = waiting.told.take();
                waiting.ringing = next.is_some();
                next
            };
            let Some(told) = next else { return };
            let Some(pass) = breaker.admit(&rule, self.clock.mono()) else {
                Told::put_back(&mut self.waiting.lock().told, told, self.limits.notice_letters);
                let wait = breaker.wait_ms(&rule, self.clock.mono()).max(self.limits.notice_every_ms);
                tokio::time::sleep(Duration::from_millis(wait)).await;
                continue;
            };
            let outcome = self.tell(&told).await;
            let change = breaker.record(&rule, self.clock.mono(), pass, outcome.is_ok());
            crate::nodes::told(self.name, change);
            let result = if outcome.is_ok() { "told" } else { "failed" };
            metrics::counter!("esh3ar_notices_total", "target" => self.name, "result" => result).increment(1);
            if let Err(why) = outcome {
                tracing::warn!(target_kind = self.name, count = told.count, %why, "dead letters could not be told; trying again");
                Told::put_back(&mut self.waiting.lock().told, told, self.limits.notice_letters);
            }
            tokio::time::sleep(Duration::from_millis(self.limits.notice_every_ms)).await;
        }
    }

    /// Tells once, within the deadline.
    async fn tell(&self, told: &Told) -> Result<(), String> {
        let body = serde_json::to_vec(told).map_err(|why| why.to_string())?;
        let act = async {
            match &self.way {
                Way::Webhook { url, client } => post(client, url, body).await,
                Way::Command { program, arguments } => run(program, arguments, &body).await,
            }
        };
        let deadline = Duration::from_millis(self.limits.notice_ms);
        tokio::time::timeout(deadline, act).await.unwrap_or_else(|_| Err("no answer within the deadline".to_owned()))
    }
}

fn client(url: &str, limits: &SinkLimits) -> Result<reqwest::Client, String> {
    let parsed = reqwest::Url::parse(url).map_err(|why| why.to_string())?;
    if !matches!(parsed.scheme(), "http" | "https") {
        return Err("it must begin with http:// or https://".to_owned());
    }
    reqwest::Client::builder()
        .timeout(Duration::from_millis(limits.notice_ms))
        // A notice goes where configuration says and nowhere else.
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|why| why.to_string())
}

async fn post(client: &reqwest::Client, url: &str, body: Vec<u8>) -> Result<(), String> {
    let request = client.post(url).header("content-type", "application/json").body(body);
    // The URL may carry a secret: it stays out of what is said.
    let answer = request.send().await.map_err(|why| why.without_url().to_string())?;
    if answer.status().is_success() { Ok(()) } else { Err(format!("it answered {}", answer.status())) }
}

async fn run(program: &str, arguments: &[String], body: &[u8]) -> Result<(), String> {
    let mut command = tokio::process::Command::new(program);
    // A command that outlives its deadline is ended with the future that waits for it.
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|why| why.to_string())?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input may still do its work: how it ends decides.
        let _ = stdin.write_all(body).await;
    }
    let status = child.wait().await.map_err(|why| why.to_string())?;
    if status.success() { Ok(()) } else { Err(format!("it ended with {status}")) }
}

#[cfg(test)]
mod tests;
