//! The Kafka door: records that businesses produce become messages by the one way in that HTTP has too.
//!
//! A record's way: `read` (what it asks for, and its name) ▷ who sends it ▷ admission ▷ quota and room ▷ the log. Its offset
//! is committed once its message is durable in its lane, or it is durable among the rejected: a crash in between reads it
//! again under the same name, and the pipeline drops the repeat. One bad record costs itself alone. What is well and cannot be
//! taken now (a quota, a backlog, a log that is away) waits: its topic is paused, the others go on.

mod read;
mod track;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use schemas::{
    Code, Millis, Problem, Sender,
    port::{Arrival, Fetch, Ingress, Raw},
    vital,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use read::SHARED;

use self::{
    read::{Asked, Whose, header, read, whose},
    track::Track,
};
use crate::{
    admission::{self, Admitted},
    auth::{Caller, Permissions, Who},
    door::{Accepted, Door, Given},
    http,
};

/// Records taken at once: what one append holds well.
const RECORDS: usize = 1_000;
/// Their bytes: a few fetches of a consumer.
const BYTES: usize = 4 * 1024 * 1024;
/// How often offsets are committed, ms: what a crash repeats is what came in this time.
const COMMIT_EVERY_MS: u64 = 200;
/// The shortest and the longest wait of a paused topic, ms, whatever the refusal says.
const PAUSE_MS: (u64, u64) = (20, 5_000);
/// How long to wait after the log could not be read or written.
const AFTER_FAULT_MS: u64 = 1_000;

/// A running door.
pub struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    /// Takes no more, commits what is done and leaves its partitions to others.
    pub async fn close(self) {
        self.stop.cancel();
        // A panic was logged where it happened, and what it had was not committed.
        let _ = self.task.await;
    }
}

/// Opens the door to topics. Must be called within a tokio runtime.
pub fn open(door: Arc<Door>, ingress: Box<dyn Ingress>) -> Running {
    let stop = CancellationToken::new();
    let run = Run {
        door,
        ingress,
        stop: stop.clone(),
        track: Track::default(),
        held: BTreeMap::new(),
        callers: HashMap::new(),
        committed_at: Millis::default(),
    };
    Running { stop, task: tokio::spawn(vital::task("the door to topics", run.run())) }
}

/// A topic's name.
type Name = Arc<str>;

/// Records that wait while their topic is paused.
struct Held {
    until: Millis,
    records: Vec<Raw>,
}

/// What became of a record.
enum End {
    /// Its message is durable.
    Accepted,
    /// It came before, or its sender only wanted to know.
    Passed,
    /// It cannot be taken, ever.
    Rejected(Problem),
    /// It cannot be taken now.
    Later(u64),
}

struct Run {
    door: Arc<Door>,
    ingress: Box<dyn Ingress>,
    stop: CancellationToken,
    track: Track,
    held: BTreeMap<Name, Held>,
    /// Those who act for a tenant by its topic.
    callers: HashMap<Name, Result<Whose, Problem>>,
    committed_at: Millis,
}

impl Run {
    async fn run(mut self) {
        loop {
            self.commit(false).await;
            let now = self.now();
            let due: Vec<Name> =
                self.held.iter().filter(|(_, held)| held.until <= now).map(|(n, _)| n.clone()).collect();
            if !due.is_empty() {
                self.try_again(due).await;
                continue;
            }
            let next = self.held.values().map(|held| held.until.since(now)).min().unwrap_or(COMMIT_EVERY_MS);
            let wait = Duration::from_millis(next.clamp(1, COMMIT_EVERY_MS));
            let arrival = tokio::select! {
                () = self.stop.cancelled() => break,
                arrival = tokio::time::timeout(wait, self.ingress.poll(Fetch { records: RECORDS, bytes: BYTES })) => arrival,
            };
            match arrival {
                Err(_) => {}
                Ok(Ok(Arrival::Records(records))) => self.take(records).await,
                Ok(Ok(Arrival::Lost(spots))) => {
                    for spot in spots {
                        self.track.lost(&spot);
                        for held in self.held.values_mut() {
                            held.records.retain(|raw| raw.spot != spot);
                        }
                    }
                }
                Ok(Err(why)) => {
                    tracing::warn!(%why, "the topics of businesses cannot be read now");
                    self.pause(AFTER_FAULT_MS).await;
                }
            }
        }
        self.commit(true).await;
        if let Err(why) = self.ingress.leave().await {
            tracing::warn!(%why, "the topics of businesses could not be left: others wait until this reader lapses");
        }
    }

    fn now(&self) -> Millis {
        self.door.parts.clock.mono()
    }

    async fn pause(&self, ms: u64) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(Duration::from_millis(ms)) => {}
        }
    }

    /// Takes records that came.
    async fn take(&mut self, records: Vec<Raw>) {
        for raw in &records {
            self.track.came(&raw.spot, raw.offset);
        }
        // What comes of a topic that is paused just now goes behind what waits there.
        let mut fresh = Vec::with_capacity(records.len());
        for raw in records {
            match self.held.get_mut(&raw.spot.topic) {
                Some(held) => held.records.push(raw),
                None => fresh.push(raw),
            }
        }
        self.pass(fresh).await;
    }

    /// Tries what waited, and lets its topics come again where nothing waits any more.
    async fn try_again(&mut self, topics: Vec<Name>) {
        let mut records = Vec::new();
        for topic in &topics {
            records.extend(self.held.remove(topic).map(|held| held.records).unwrap_or_default());
        }
        self.pass(records).await;
        for topic in topics {
            if self.held.contains_key(&topic) {
                continue;
            }
            if let Err(why) = self.ingress.resume(&topic) {
                tracing::warn!(%topic, %why, "a topic could not be resumed; it is tried again");
                self.hold(topic, AFTER_FAULT_MS, Vec::new());
            }
        }
        metrics::gauge!("esh3ar_ingress_paused_topics").set(self.held.len() as f64);
    }

    /// Lets a topic wait.
    fn hold(&mut self, topic: Name, ms: u64, records: Vec<Raw>) {
        let until = self.now().plus(ms.clamp(PAUSE_MS.0, PAUSE_MS.1));
        if let Err(why) = self.ingress.pause(&topic) {
            // Its records are kept here all the same.
            tracing::warn!(%topic, %why, "a topic could not be paused");
        }
        let held = self.held.entry(topic).or_insert(Held { until, records: Vec::new() });
        held.until = held.until.max(until);
        held.records.extend(records);
    }

    /// Brings records to their end, or lets their topics wait.
    async fn pass(&mut self, records: Vec<Raw>) {
        if records.is_empty() {
            return;
        }
        let ends = self.judge(&records).await;
        let (mut rejected, mut later) = (Vec::new(), BTreeMap::<Name, (u64, Vec<Raw>)>::new());
        let (mut accepted, mut passed) = (0, 0);
        for (raw, end) in records.into_iter().zip(ends) {
            match end {
                End::Accepted => {
                    accepted += 1;
                    self.track.done(&raw.spot, raw.offset);
                }
                End::Passed => {
                    passed += 1;
                    self.track.done(&raw.spot, raw.offset);
                }
                End::Rejected(problem) => rejected.push((raw, problem)),
                End::Later(ms) => {
                    let (wait, records) = later.entry(raw.spot.topic.clone()).or_default();
                    *wait = (*wait).max(ms);
                    records.push(raw);
                }
            }
        }
        let outcomes = if rejected.is_empty() { Vec::new() } else { self.ingress.reject(&rejected).await };
        let mut kept = 0;
        for (i, (raw, problem)) in rejected.into_iter().enumerate() {
            match outcomes.get(i) {
                Some(Ok(())) => {
                    kept += 1;
                    metrics::counter!("esh3ar_refused_total", "code" => problem.code.slug()).increment(1);
                    self.track.done(&raw.spot, raw.offset);
                }
                why => {
                    if let Some(Err(why)) = why {
                        tracing::warn!(topic = %raw.spot.topic, %why, "a rejected record could not be kept; it is tried again");
                    }
                    let (wait, records) = later.entry(raw.spot.topic.clone()).or_default();
                    *wait = (*wait).max(AFTER_FAULT_MS);
                    records.push(raw);
                }
            }
        }
        for (topic, (ms, mut records)) in later {
            // As they stood, whatever it was that each waits for.
            records.sort_by(|a, b| (&a.spot, a.offset).cmp(&(&b.spot, b.offset)));
            self.hold(topic, ms, records);
        }
        for (outcome, count) in [("accepted", accepted), ("passed", passed), ("rejected", kept)] {
            if count > 0 {
                metrics::counter!("esh3ar_ingress_records_total", "outcome" => outcome).increment(count);
            }
        }
        metrics::gauge!("esh3ar_ingress_paused_topics").set(self.held.len() as f64);
    }

    /// What becomes of each record, in their order.
    async fn judge(&mut self, records: &[Raw]) -> Vec<End> {
        let mut ends: Vec<Option<End>> = Vec::with_capacity(records.len());
        // One submission a caller: quota and room are asked once, and what one caller sends keeps its order.
        type Party = (Arc<Caller>, bool, Vec<usize>, Vec<Result<Admitted, Problem>>);
        let mut parties: Vec<Party> = Vec::new();
        for (at, raw) in records.iter().enumerate() {
            match self.admit(raw) {
                Ok((caller, shared, admitted)) => {
                    ends.push(None);
                    match parties.iter_mut().find(|(known, at, ..)| *known == caller && *at == shared) {
                        Some((_, _, places, all)) => {
                            places.push(at);
                            all.push(Ok(admitted));
                        }
                        None => parties.push((caller, shared, vec![at], vec![Ok(admitted)])),
                    }
                }
                Err(problem) => ends.push(Some(End::Rejected(problem))),
            }
        }
        let mut asked = Vec::with_capacity(parties.len());
        for (caller, shared, places, admitted) in parties {
            asked.push((shared, places, self.door.submit(&caller, admitted, false).await));
        }
        for (shared, places, answers) in asked {
            for (at, answer) in places.into_iter().zip(answers.await) {
                ends[at] = Some(end(answer, shared));
            }
        }
        // Each has been judged: what has not waits, which loses nothing.
        ends.into_iter().map(|end| end.unwrap_or(End::Later(AFTER_FAULT_MS))).collect()
    }

    /// A record becomes a message of a caller, or a refusal; and whether its topic is the shared one.
    fn admit(&mut self, raw: &Raw) -> Result<(Arc<Caller>, bool, Admitted), Problem> {
        let topic = &raw.spot.topic;
        let whose = match self.callers.get(topic) {
            Some(known) => known.clone(),
            None => {
                let known = whose(topic);
                self.callers.insert(topic.clone(), known.clone());
                known
            }
        }?;
        let asked = read(raw, self.door.parts.limits.door.body_bytes)?;
        let caller = self.caller(raw, &whose)?;
        let from = admission::may_send(&caller)?;
        let admitted = self.message(raw, &asked, &caller, &from)?;
        Ok((caller, whose == Whose::Shared, admitted))
    }

    fn message(&self, raw: &Raw, asked: &Asked, caller: &Caller, from: &Sender) -> Result<Admitted, Problem> {
        let trace = asked.trace.as_deref().and_then(http::trace_text).map(str::to_owned);
        let given = Given { key: None, trace };
        let mut admitted = self.door.desk(caller, from, &given).admit(&asked.draft)?;
        if let Some(id) = asked.name(raw, &caller.tenant, &admitted.message.to) {
            admitted.message.id = id;
        }
        Ok(admitted)
    }

    /// Who sends it: the tenant's server by its topic; on the shared topic, or where a record carries one, who holds the
    /// token.
    fn caller(&self, raw: &Raw, whose: &Whose) -> Result<Arc<Caller>, Problem> {
        let token = header(raw, "authorization")?.map(|text| match text.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
            _ => text.trim(),
        });
        match (whose, token) {
            (Whose::Shared, None) => {
                let how = "records of the shared topic carry a token: header `authorization: Bearer TOKEN`";
                Err(Problem::new(Code::Unauthenticated, how).at("authorization"))
            }
            (Whose::Shared, Some(token)) => self.door.parts.auth.verify(token),
            (Whose::Own(tenant), Some(token)) => {
                let caller = self.door.parts.auth.verify(token)?;
                if caller.tenant == *tenant {
                    return Ok(caller);
                }
                let detail = format!("the token is of tenant {}, and the topic of {tenant}", caller.tenant);
                Err(Problem::new(Code::Forbidden, detail).at("authorization"))
            }
            (Whose::Own(tenant), None) => {
                let can = Permissions { send: true, ..Permissions::default() };
                let tenant = tenant.clone();
                Ok(Arc::new(Caller { tenant, who: Who::Server, can, expires_at: None, verified: true }))
            }
        }
    }

    /// Commits what is done; in its time, or now.
    async fn commit(&mut self, now: bool) {
        if !now && self.now().since(self.committed_at) < COMMIT_EVERY_MS {
            return;
        }
        self.committed_at = self.now();
        let due = self.track.due();
        if due.is_empty() {
            return;
        }
        match self.ingress.commit(&due).await {
            Ok(()) => self.track.committed(&due),
            // What is not committed is read again and recognised.
            Err(why) => tracing::warn!(%why, "offsets could not be committed; they are tried again"),
        }
    }
}

/// What an answer of the one way in comes to here. `shared`: a topic that one tenant's quota must not hold up for the others.
fn end(answer: Result<Accepted, Problem>, shared: bool) -> End {
    let problem = match answer {
        Ok(Accepted { replayed: false, dry_run: None, .. }) => return End::Accepted,
        Ok(_) => return End::Passed,
        Err(problem) => problem,
    };
    let wait = problem.retry_after_ms.unwrap_or(AFTER_FAULT_MS);
    let whose = problem.field.as_deref().unwrap_or_default();
    match problem.code {
        // What all share is nobody's fault: it is waited for. What one person has used up is no reason for others to wait.
        Code::QuotaExceeded if whose.starts_with("person-") || (shared && whose != "system-second") => {
            End::Rejected(problem)
        }
        Code::QuotaExceeded | Code::LaneSlow | Code::LaneFull | Code::Overloaded | Code::Draining => End::Later(wait),
        Code::Unavailable | Code::Unknown | Code::DiskFull => End::Later(wait),
        _ => End::Rejected(problem),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_holds_up_those_whose_it_is() {
        let waits = |field: &str, shared| {
            let problem = Problem::new(Code::QuotaExceeded, "used up").at(field).retry_after_ms(7);
            matches!(end(Err(problem), shared), End::Later(7))
        };
        for (field, own, shared) in [
            ("person-minute", false, false),
            ("person-hour", false, false),
            ("server-second", true, false),
            ("system-second", true, true),
        ] {
            assert_eq!((waits(field, false), waits(field, true)), (own, shared), "{field}");
        }
    }
}
