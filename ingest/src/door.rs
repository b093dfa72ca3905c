//! The door itself: what its routes share, and the one way from admitted messages to the log.
//!
//! A message is accepted when the log has it durably. Everything that can say no says it before that; nothing is dropped after.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::{FromRef, State},
    response::Response,
    routing::{get, post},
};
use futures::future::{BoxFuture, FutureExt as _};
use http::StatusCode;
use schemas::{
    Clock, Code, Draft, Limits, MessageId, Priority, Problem, Timestamp,
    port::{Append, Durability, History, Limiter, Log, PortError},
    record, vital,
};
use serde::Serialize;
use tokio::sync::{Notify, Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admission::{self, Admitted, Desk},
    auth::{Auth, Caller},
    batch,
    begun::Begun,
    broadcast,
    chat::{self, awaited::Awaited},
    expander,
    http::Authed,
    known::{Keys, Phones},
    lanes::{self, Lanes},
    quota::{Quotas, Shown},
    single,
    turns::Turns,
};

/// What the door is built from.
#[derive(Clone)]
pub struct Parts {
    /// Where messages go.
    pub log: Arc<dyn Log>,
    /// Where broadcasts are kept.
    pub history: Arc<dyn History>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The bounds.
    pub limits: Arc<Limits>,
    /// Who is calling.
    pub auth: Arc<Auth>,
    /// Keeps the quotas.
    pub limiter: Arc<dyn Limiter>,
    /// Whether broadcasts are expanded here.
    pub expands: bool,
    /// How long another process's broadcast must stand still before this one goes on with it, ms; 0: there is no other.
    pub take_over_ms: u64,
}

/// The way in.
pub struct Door {
    pub(crate) parts: Parts,
    pub(crate) phones: Phones,
    pub(crate) keys: Keys,
    pub(crate) quotas: Quotas,
    pub(crate) lanes: Arc<Lanes>,
    /// Whoever waits until something is recorded.
    pub(crate) awaited: Arc<Awaited>,
    /// Told after every asking of what waits.
    pub(crate) asked: Arc<Notify>,
    /// Told when there is a broadcast to expand.
    pub(crate) broadcast_begun: Arc<Notify>,
    /// What is known here of those that run.
    pub(crate) begun: Begun,
    /// Batches that may still be begun.
    pub(crate) batching: Arc<Semaphore>,
    /// Broadcast requests that may still be read into memory.
    pub(crate) broadcasting: Semaphore,
    in_work: AtomicUsize,
    closing: AtomicBool,
    /// The log is known to be away: who would wait for it in vain is told at once.
    log_away: AtomicBool,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

/// What came with a request besides its drafts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given {
    /// `Idempotency-Key`.
    pub key: Option<String>,
    /// `traceparent`, checked.
    pub trace: Option<String>,
}

/// What became of a draft that was not refused.
#[derive(Debug, Clone, PartialEq)]
pub struct Accepted {
    /// The message's name.
    pub id: MessageId,
    /// When it was accepted: the first time, where the key repeats.
    pub accepted_at: Timestamp,
    /// What the acceptance survives.
    pub durability: Durability,
    /// The key came before with the same body: nothing was appended.
    pub replayed: bool,
    /// Nothing was appended because its sender only wanted to know; what would have been.
    pub dry_run: Option<Arc<schemas::Message>>,
}

/// The state of the routes.
#[derive(Clone)]
pub struct App(pub(crate) Arc<Door>);

impl FromRef<App> for Arc<Auth> {
    fn from_ref(app: &App) -> Self {
        app.0.parts.auth.clone()
    }
}

/// One request in work; gives its place back when it is dropped.
pub(crate) struct InWork(Arc<Door>);

impl Drop for InWork {
    fn drop(&mut self) {
        self.0.in_work.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One item of a submission.
enum Slot {
    Done(Result<Accepted, Problem>),
    /// Its record is the next one of the append.
    Appended {
        id: MessageId,
        fingerprint: [u8; 16],
        accepted_at: Timestamp,
        lane: Priority,
    },
}

/// What was submitted and not yet answered by the log.
pub(crate) type Answers = BoxFuture<'static, Vec<Result<Accepted, Problem>>>;

impl Door {
    /// Opens the door: starts to watch the lanes and to expand broadcasts. Must be called within a tokio runtime.
    pub fn open(parts: Parts) -> Arc<Self> {
        let limits = &parts.limits.door;
        let door = Arc::new(Self {
            phones: Phones::new(limits),
            keys: Keys::new(limits),
            quotas: Quotas::new(limits, parts.limiter.clone()),
            lanes: Arc::new(Lanes::new(limits)),
            awaited: Arc::new(Awaited::new()),
            asked: Arc::new(Notify::new()),
            broadcast_begun: Arc::new(Notify::new()),
            begun: Begun::default(),
            batching: Arc::new(Semaphore::new(limits.batches_at_once)),
            broadcasting: Semaphore::new(limits.broadcasts_at_once),
            in_work: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
            log_away: AtomicBool::new(false),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            parts,
        });
        let Parts { log, history, limits, .. } = door.parts.clone();
        let every_ms = limits.door.lane_poll_ms;
        let watching = lanes::watch(log, door.lanes.clone(), every_ms, door.asked.clone(), door.stop.clone());
        door.tasks.spawn(vital::task("the watch over the lanes", watching));
        door.tasks.spawn(vital::task("looking for what waits", door.awaited.clone().run(history, door.stop.clone())));
        if door.parts.expands {
            let expanding =
                expander::run(Arc::downgrade(&door), Turns::new(door.parts.take_over_ms), door.stop.clone());
            door.tasks.spawn(vital::task("the expander of broadcasts", expanding));
        }
        door
    }

    /// The routes. Unknown paths and methods are the whole server's to refuse ([`crate::http::with_fallbacks`]).
    pub fn routes(self: &Arc<Self>) -> Router {
        Router::new()
            .route("/v1/messages", post(single::post_message))
            .route("/v1/messages/batch", post(batch::post_batch))
            .route("/v1/broadcasts", post(broadcast::post_broadcast))
            .route("/v1/broadcasts/{id}", get(broadcast::get_broadcast).delete(broadcast::delete_broadcast))
            .route("/v1/limits", get(get_limits))
            // Bodies are bounded by each route itself, which can say by how much.
            .layer(axum::extract::DefaultBodyLimit::disable())
            .with_state(App(self.clone()))
    }

    /// The routes of chat: wherever there is a door, because any node may be asked.
    pub fn chat_routes(self: &Arc<Self>) -> Router {
        chat::routes::routes().layer(axum::extract::DefaultBodyLimit::disable()).with_state(App(self.clone()))
    }

    /// Takes no more, and ends when batches in work are answered and the tasks have stopped; at the latest after
    /// `socket.drain_ms`, because a sender may never read its answers.
    pub async fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        self.stop.cancel();
        self.tasks.close();
        let at_most = Duration::from_millis(self.parts.limits.socket.drain_ms);
        if tokio::time::timeout(at_most, self.tasks.wait()).await.is_err() {
            tracing::warn!(left = self.tasks.len(), "batches were cut off: their senders did not read the answers");
        }
    }

    /// Whoever watches the log says whether it answers. While it does not, requests are refused at once: one that waits for it
    /// holds its place and learns nothing.
    pub fn log_is_away(&self, away: bool) {
        self.log_away.store(away, Ordering::Relaxed);
    }

    /// Messages that wait in each lane, most urgent first: appended and not yet recorded.
    pub fn waiting(&self) -> [u64; 3] {
        self.lanes.waiting()
    }

    /// Accepts drafts of one caller, in order: one outcome each. Answers when the log has them durably.
    pub async fn accept(&self, caller: &Caller, drafts: &[Draft], given: &Given) -> Vec<Result<Accepted, Problem>> {
        let from = match admission::may_send(caller) {
            Ok(from) => from,
            Err(problem) => return drafts.iter().map(|_| Err(problem.clone())).collect(),
        };
        let desk = self.desk(caller, &from, given);
        let admitted = drafts.iter().map(|draft| desk.admit(draft)).collect();
        self.submit(caller, admitted, false).await.await
    }

    pub(crate) fn desk<'a>(&'a self, caller: &'a Caller, from: &'a schemas::Sender, given: &'a Given) -> Desk<'a> {
        Desk {
            tenant: &caller.tenant,
            from,
            header_key: given.key.as_deref(),
            trace: given.trace.as_deref(),
            now: self.parts.clock.wall(),
            limits: &self.parts.limits,
            phones: &self.phones,
        }
    }

    /// A place for one request, or a refusal: too many are in work, or the door is closing.
    pub(crate) fn enter(self: &Arc<Self>) -> Result<InWork, Problem> {
        if self.closing.load(Ordering::Relaxed) {
            return Err(Problem::new(Code::Draining, "this node takes no new messages").retry_after_ms(1_000));
        }
        if self.log_away.load(Ordering::Relaxed) {
            return Err(Problem::new(Code::Unavailable, "the log does not answer").retry_after_ms(1_000));
        }
        let max = self.parts.limits.door.concurrent_requests;
        let before = self.in_work.fetch_add(1, Ordering::Relaxed);
        let place = InWork(self.clone());
        if before >= max {
            let detail = format!("{max} requests are in work, which is the most");
            return Err(Problem::new(Code::Overloaded, detail).retry_after_ms(1_000));
        }
        Ok(place)
    }

    /// Holds admitted messages against quotas and room and hands them to the log. What is returned answers when the log
    /// does. Who is `patient` (a batch) waits a while for a quota a second or a slow lane; others are refused at once.
    ///
    /// The log has been asked when this returns, so that submissions of one stream stand in their order.
    pub(crate) async fn submit(
        &self,
        caller: &Caller,
        admitted: Vec<Result<Admitted, Problem>>,
        patient: bool,
    ) -> Answers {
        let mut slots = Vec::with_capacity(admitted.len());
        for item in admitted {
            slots.push(self.before_quota(caller, item).await);
        }
        self.hold_to_quota(caller, &mut slots, patient).await;
        self.hold_to_room(caller, &mut slots, patient).await;
        self.append(caller, slots)
    }

    /// What needs neither quota nor room: refusals, repeats, dry runs.
    async fn before_quota(&self, caller: &Caller, item: Result<Admitted, Problem>) -> Held {
        let durability = self.parts.log.durability();
        let answered = |id, accepted_at, replayed, dry_run| {
            Held::Done(Ok(Accepted { id, accepted_at, durability, replayed, dry_run }))
        };
        let Admitted { message, dry_run } = match item {
            Ok(admitted) => admitted,
            Err(problem) => return Held::Done(Err(problem)),
        };
        match self.keys.seen(&message) {
            Err(problem) => Held::Done(Err(problem)),
            Ok(Some(at)) if !dry_run => answered(message.id, at, true, None),
            Ok(_) if dry_run => {
                let fine = self.quotas.check(caller).await.map_err(Problem::from);
                match fine.and_then(|()| self.lanes.check(message.priority, &caller.tenant)) {
                    Ok(()) => answered(message.id, message.accepted_at, false, Some(Arc::new(message))),
                    Err(problem) => Held::Done(Err(problem)),
                }
            }
            Ok(_) => Held::Wants(Box::new(message)),
        }
    }

    async fn hold_to_quota(&self, caller: &Caller, slots: &mut [Held], patient: bool) {
        let mut wanting = slots.iter().filter(|slot| matches!(slot, Held::Wants(_))).count();
        let mut left_ms = if patient { self.parts.limits.door.batch_wait_ms } else { 0 };
        let mut granted = 0;
        while wanting > 0 {
            let grant = self.quotas.take(caller, u32::try_from(wanting).unwrap_or(u32::MAX)).await;
            granted += grant.count as usize;
            wanting -= (grant.count as usize).min(wanting);
            let Some(violation) = grant.violation else { break };
            if !violation.policy.is_brief() || left_ms == 0 {
                refuse_after(slots, granted, |_| true, &violation.into());
                return;
            }
            let wait = violation.retry_after_ms.clamp(1, left_ms);
            left_ms -= wait;
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
    }

    async fn hold_to_room(&self, caller: &Caller, slots: &mut [Held], patient: bool) {
        for lane in Priority::ALL {
            let of_lane = |message: &schemas::Message| message.priority == lane;
            let mut wanting = slots.iter().filter(|s| matches!(s, Held::Wants(m) if of_lane(m))).count() as u64;
            let mut left_ms = if patient { self.parts.limits.door.batch_wait_ms } else { 0 };
            let mut joined = 0;
            while wanting > 0 {
                let (taken, refused) = self.lanes.join(lane, &caller.tenant, wanting);
                joined += taken as usize;
                wanting -= taken;
                let Some(problem) = refused else { break };
                if left_ms == 0 {
                    refuse_after(slots, joined, of_lane, &problem);
                    break;
                }
                let wait = self.parts.limits.door.lane_poll_ms.clamp(1, left_ms);
                left_ms -= wait;
                // Sooner when the count was taken anew; a notice missed costs one interval.
                let _ = tokio::time::timeout(Duration::from_millis(wait), self.asked.notified()).await;
            }
        }
    }

    fn append(&self, caller: &Caller, held: Vec<Held>) -> Answers {
        let partitions = self.parts.log.partitions();
        let mut records = Vec::new();
        let slot = |held| match held {
            Held::Done(answer) => Slot::Done(answer),
            Held::Wants(message) => {
                records.push(record::accepted(&message, partitions));
                Slot::Appended {
                    id: message.id,
                    fingerprint: message.fingerprint,
                    accepted_at: message.accepted_at,
                    lane: message.priority,
                }
            }
        };
        let slots: Vec<_> = held.into_iter().map(slot).collect();
        let asked = self.ask_log(records);
        let (keys, lanes) = (self.keys.clone(), self.lanes.clone());
        let (tenant, durability) = (caller.tenant.clone(), self.parts.log.durability());
        let answer = async move {
            let mut outcomes = asked.await.into_iter();
            let mut accepted = [0_u64; 3];
            let mut refused = [0_u64; 3];
            let mut answers = Vec::with_capacity(slots.len());
            for slot in slots {
                answers.push(match slot {
                    Slot::Done(answer) => answer,
                    Slot::Appended { id, fingerprint, accepted_at, lane } => {
                        // A log that answers fewer than it was asked may have appended the rest.
                        let none = || Err(PortError::Unknown("the log did not say".to_owned()));
                        match outcomes.next().unwrap_or_else(none) {
                            Ok(_) => {
                                accepted[usize::from(lane.number())] += 1;
                                keys.keep(id, fingerprint, accepted_at);
                                Ok(Accepted { id, accepted_at, durability, replayed: false, dry_run: None })
                            }
                            Err(why) => {
                                refused[usize::from(lane.number())] += 1;
                                Err(why.into())
                            }
                        }
                    }
                });
            }
            for lane in Priority::ALL {
                let at = usize::from(lane.number());
                if refused[at] > 0 {
                    lanes.leave(lane, &tenant, refused[at]);
                }
                if accepted[at] > 0 {
                    let tenant = tenant.to_string();
                    metrics::counter!("esh3ar_accepted_total", "lane" => lane.word(), "tenant" => tenant)
                        .increment(accepted[at]);
                }
            }
            answers
        };
        answer.boxed()
    }

    /// Asks the log now; the answer comes later.
    pub(crate) fn ask_log(
        &self,
        records: Vec<Append>,
    ) -> BoxFuture<'static, Vec<schemas::port::PortResult<schemas::Offset>>> {
        if records.is_empty() {
            return futures::future::ready(Vec::new()).boxed();
        }
        let log = self.parts.log.clone();
        let mut asked = async move { log.append(records).await }.boxed();
        // Polled once here, it has its place in the log's line; who waits for it polls it again.
        match (&mut asked).now_or_never() {
            Some(outcomes) => futures::future::ready(outcomes).boxed(),
            None => asked,
        }
    }
}

/// A message on its way through quota and room.
enum Held {
    Done(Result<Accepted, Problem>),
    Wants(Box<schemas::Message>),
}

/// Refuses all of those that still want in and that `which` names, but the first `spared`.
fn refuse_after(slots: &mut [Held], spared: usize, which: impl Fn(&schemas::Message) -> bool, problem: &Problem) {
    let wanting = slots.iter_mut().filter(|slot| matches!(slot, Held::Wants(message) if which(message)));
    for slot in wanting.skip(spared) {
        *slot = Held::Done(Err(problem.clone()));
    }
}

/// `GET /v1/limits`: what holds for the caller and what is left of it.
async fn get_limits(State(App(door)): State<App>, Authed(caller): Authed) -> Response {
    #[derive(Serialize)]
    struct Lane {
        lane: &'static str,
        state: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
    }
    #[derive(Serialize)]
    struct Sizes {
        content_chars: usize,
        content_bytes: usize,
        subject_chars: usize,
        metadata_bytes: usize,
        body_bytes: usize,
        batch_items: usize,
        batch_bytes: usize,
        broadcast_recipients: usize,
        broadcast_bytes: usize,
        send_at_ahead_ms: u64,
        retention_ms: u64,
    }
    #[derive(Serialize)]
    struct All {
        quotas: Vec<Shown>,
        lanes: Vec<Lane>,
        sizes: Sizes,
    }
    let (message, limits) = (&door.parts.limits.message, &door.parts.limits.door);
    let lane = |lane: Priority| match door.lanes.check(lane, &caller.tenant) {
        Ok(()) => Lane { lane: lane.word(), state: "open", retry_after_ms: None },
        Err(why) => {
            let state = if why.code == Code::LaneSlow { "slow" } else { "full" };
            Lane { lane: lane.word(), state, retry_after_ms: why.retry_after_ms }
        }
    };
    let sizes = Sizes {
        content_chars: message.content_chars,
        content_bytes: message.content_bytes,
        subject_chars: message.subject_chars,
        metadata_bytes: message.metadata_bytes,
        body_bytes: limits.body_bytes,
        batch_items: limits.batch_items,
        batch_bytes: limits.batch_bytes,
        broadcast_recipients: limits.broadcast_recipients,
        broadcast_bytes: limits.broadcast_bytes,
        send_at_ahead_ms: message.send_at_ahead_ms,
        retention_ms: message.retention_ms,
    };
    let all = All { quotas: door.quotas.shown(&caller).await, lanes: Priority::ALL.map(lane).into(), sizes };
    let mut response = crate::http::json(StatusCode::OK, &all);
    crate::quota::write_headers(response.headers_mut(), &door.quotas.standing(&caller).await);
    response
}
