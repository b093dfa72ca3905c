//! `POST /v1/broadcasts`, `GET` and `DELETE /v1/broadcasts/{id}`: one content to many recipients, accepted as one (rule 13).
//!
//! Recipients are checked, normalised and made distinct, and stored with the content, durably and all at once; then it is
//! accepted. [`crate::expander`] makes the messages.

use std::{collections::HashSet, sync::Arc};

use axum::{
    body::Body,
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use schemas::{
    BroadcastId, Code, Draft, Phone, Priority, Problem, Sender, Tenant, Timestamp, UserId,
    draft::Admission,
    port::{Asked, Broadcast, BroadcastState, Durability},
};
use serde::Serialize;
use uuid::Uuid;

use crate::{
    admission,
    auth::Caller,
    door::{App, Door},
    http::{self as edge, Authed, Media, Patience, Refusal},
    known, text,
};

/// Keyed broadcasts are named under this namespace (UUIDv5 of tenant and key).
const NAMESPACE: Uuid = Uuid::from_u128(0x93d4_1e0b_6a5f_5c57_8f0c_2b7a_51d9_e6c3);

/// The quota of broadcasts that are not done: a number, not a rate.
const RUNNING: &str = "broadcasts-running";
/// When to ask again where too many run, ms: as often as the expander looks which have ended.
const AFTER_RUNNING_MS: u64 = 5_000;

impl Door {
    fn broadcast_id(tenant: &Tenant, key: Option<&str>, now: Timestamp) -> BroadcastId {
        match key {
            // The tenant's name holds no slash, so that no two pairs spell the same bytes.
            Some(key) => BroadcastId(Uuid::new_v5(&NAMESPACE, format!("{tenant}/{key}").as_bytes())),
            None => BroadcastId(schemas::MessageId::fresh(now).0),
        }
    }
}

/// The answer to an accepted broadcast.
#[derive(Serialize)]
struct Receipt {
    id: BroadcastId,
    state: BroadcastState,
    recipients: u64,
    /// Numbers that came more than once.
    repeated: u64,
    /// How many recipients were refused.
    rejected_count: u64,
    /// The first of them.
    rejected: Vec<Rejected>,
    accepted_at: Timestamp,
    durability: Durability,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dry_run: bool,
}

/// A recipient that was refused.
#[derive(Debug, Serialize)]
struct Rejected {
    index: usize,
    detail: String,
}

/// A broadcast as it is shown.
#[derive(Serialize)]
struct Shown {
    id: BroadcastId,
    state: BroadcastState,
    recipients: u64,
    expanded: u64,
    accepted_at: Timestamp,
}

impl From<&Broadcast> for Shown {
    fn from(b: &Broadcast) -> Self {
        let accepted_at = b.asked.accepted_at;
        Self { id: b.id, state: b.state, recipients: b.recipients, expanded: b.expanded, accepted_at }
    }
}

/// A broadcast that was found good.
struct Ready {
    broadcast: Broadcast,
    phones: Vec<Phone>,
    repeated: u64,
    rejected_count: u64,
    rejected: Vec<Rejected>,
    dry_run: bool,
}

/// Accepts a broadcast.
pub(crate) async fn post_broadcast(
    State(App(door)): State<App>,
    Authed(caller): Authed,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let from = admission::may_broadcast(&caller)?;
    let _place = door.enter()?;
    edge::media(&headers, &[Media::Json])?;
    let key = edge::idempotency_key(&headers)?;
    let trace = edge::traceparent(&headers).map(str::to_owned);
    let limits = &door.parts.limits.door;
    edge::check_length(&headers, limits.broadcast_bytes)?;
    // Before the body: each of these may hold it whole.
    let _permit = door.broadcasting.try_acquire().map_err(|_| {
        let detail = format!("{} broadcasts are being read, which is the most", limits.broadcasts_at_once);
        Problem::new(Code::Overloaded, detail).retry_after_ms(1_000)
    })?;
    let bytes = edge::read_body(&headers, body, limits.broadcast_bytes, Patience::of(limits)).await?;
    let began = BeginBroadcast { door: door.clone(), caller: caller.clone(), from, key, trace };
    // A hundred thousand numbers take a second of computing: not on a thread that serves sockets.
    let ready = tokio::task::spawn_blocking(move || began.check(&bytes))
        .await
        .map_err(|_| Problem::new(Code::Internal, "the broadcast could not be read"))??;
    if !ready.dry_run {
        door.quotas.take_broadcast(&caller).await.map_err(Problem::from)?;
    }
    answer(&door, ready).await
}

async fn answer(door: &Arc<Door>, ready: Ready) -> Result<Response, Refusal> {
    let Ready { broadcast, phones, repeated, rejected_count, rejected, dry_run } = ready;
    let known = door.parts.history.broadcast(broadcast.id).await?;
    let replayed = known.is_some();
    let kept = match (known, dry_run) {
        (Some(known), _) => known,
        (None, true) => broadcast.clone(),
        (None, false) => match room_for(door, &broadcast.asked.tenant) {
            Ok(()) => door.parts.history.begin(&broadcast, &phones).await?,
            // It may be the very one that took the last place, asked for twice at once.
            Err(full) => door.parts.history.broadcast(broadcast.id).await?.ok_or(full)?,
        },
    };
    // Also where two came at once: what `begin` found first is what the key names.
    if kept.asked.fingerprint != broadcast.asked.fingerprint {
        return Err(known::conflict().into());
    }
    if !dry_run && !replayed {
        metrics::counter!("esh3ar_broadcasts_total", "tenant" => kept.asked.tenant.to_string()).increment(1);
        // A door that does not expand looks at none, so it would never see one end.
        if door.parts.expands {
            door.begun.add(kept.id, kept.asked.tenant.clone());
            door.broadcast_begun.notify_one();
        }
    }
    let receipt = Receipt {
        id: kept.id,
        state: kept.state,
        recipients: kept.recipients,
        repeated,
        rejected_count,
        rejected,
        accepted_at: kept.asked.accepted_at,
        durability: door.parts.log.durability(),
        dry_run,
    };
    let mut response = edge::json(if dry_run { StatusCode::OK } else { StatusCode::ACCEPTED }, &receipt);
    if replayed {
        let name = HeaderName::from_static("idempotent-replayed");
        response.headers_mut().insert(name, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// Whether one more of a tenant may run. Asked before it is stored: what was accepted is never refused.
fn room_for(door: &Door, tenant: &Tenant) -> Result<(), Problem> {
    let max = door.parts.limits.door.broadcasts_running;
    if door.begun.running(tenant) < max {
        return Ok(());
    }
    let detail = format!("the quota `{RUNNING}` is used up: {max} broadcasts that are not done");
    Err(Problem::new(Code::QuotaExceeded, detail).at(RUNNING).retry_after_ms(AFTER_RUNNING_MS))
}

/// A request being checked.
struct BeginBroadcast {
    door: Arc<Door>,
    caller: Arc<Caller>,
    from: Sender,
    key: Option<String>,
    trace: Option<String>,
}

impl BeginBroadcast {
    fn check(&self, bytes: &Bytes) -> Result<Ready, Problem> {
        let mut draft = Draft::<Vec<String>>::parse(bytes)?;
        if let (Some(key), Some(header)) = (&draft.key, &self.key)
            && key != header
        {
            let detail = "`key` differs from the header `Idempotency-Key`: give one of them";
            return Err(Problem::new(Code::InvalidField, detail).at("/key"));
        }
        let max = self.door.parts.limits.door.broadcast_recipients;
        let given = draft.to.len();
        if given > max {
            let detail = format!("`to` has {given} recipients, the most is {max}");
            return Err(Problem::new(Code::InvalidField, detail).at("/to"));
        }
        let numbers = self.numbers(&draft.to)?;
        draft.priority.get_or_insert(Priority::Low);
        let now = self.door.parts.clock.wall();
        let tenant = &self.caller.tenant;
        let key = draft.key.as_deref().or(self.key.as_deref());
        let id = Door::broadcast_id(tenant, key, now);
        let at = Admission {
            tenant,
            from: &self.from,
            header_key: key,
            broadcast: Some(id),
            trace: self.trace.as_deref(),
            default_priority: Priority::Low,
            now,
            limits: &self.door.parts.limits.message,
            phone: &Phone::parse,
            clean: &text::clean,
        };
        let shared = draft.shared(&at)?;
        let first = UserId::mobile(tenant.clone(), numbers.phones[0]);
        let body = shared.for_recipient(&at, first)?.fingerprint;
        let asked = Asked {
            tenant: tenant.clone(),
            from: self.from.clone(),
            accepted_at: now,
            trace: self.trace.clone(),
            draft: without_recipients(&draft)?,
            fingerprint: fingerprint(body, &numbers.phones),
        };
        let recipients = numbers.phones.len() as u64;
        let broadcast = Broadcast { id, asked, recipients, expanded: 0, state: BroadcastState::Running };
        let Numbers { phones, repeated, rejected_count, rejected } = numbers;
        Ok(Ready { broadcast, phones, repeated, rejected_count, rejected, dry_run: draft.dry_run })
    }

    fn numbers(&self, to: &[String]) -> Result<Numbers, Problem> {
        let listed = self.door.parts.limits.door.broadcast_rejected;
        let mut numbers = Numbers::default();
        let mut seen = HashSet::with_capacity(to.len());
        for (index, text) in to.iter().enumerate() {
            match Phone::parse(text) {
                Ok(phone) if seen.insert(phone) => numbers.phones.push(phone),
                Ok(_) => numbers.repeated += 1,
                Err(why) => {
                    numbers.rejected_count += 1;
                    if numbers.rejected.len() < listed {
                        numbers.rejected.push(Rejected { index, detail: format!("`to` {why}") });
                    }
                }
            }
        }
        if numbers.phones.is_empty() {
            let detail = match numbers.rejected.first() {
                Some(first) => format!("no recipient is a valid number; the first: {}", first.detail),
                None => "`to` is empty".to_owned(),
            };
            return Err(Problem::new(Code::InvalidPhone, detail).at("/to"));
        }
        Ok(numbers)
    }
}

#[derive(Default)]
struct Numbers {
    phones: Vec<Phone>,
    repeated: u64,
    rejected_count: u64,
    rejected: Vec<Rejected>,
}

fn without_recipients(draft: &Draft<Vec<String>>) -> Result<String, Problem> {
    let single = Draft::<String> {
        to: String::new(),
        subject: draft.subject.clone(),
        content: draft.content.clone(),
        content_type: draft.content_type,
        priority: draft.priority,
        key: None,
        client_ref: draft.client_ref.clone(),
        metadata: draft.metadata.clone(),
        send_at: draft.send_at,
        expires_at: draft.expires_at,
        dry_run: false,
    };
    serde_json::to_string(&single).map_err(|why| Problem::new(Code::Internal, why.to_string()))
}

/// The content's and the recipients': a key with other recipients is another broadcast.
fn fingerprint(body: [u8; 16], phones: &[Phone]) -> [u8; 16] {
    use sha2::{Digest as _, Sha256};
    let mut hash = Sha256::new();
    hash.update(body);
    for phone in phones {
        hash.update(phone.to_string());
    }
    let mut out = [0; 16];
    out.copy_from_slice(&hash.finalize()[..16]);
    out
}

/// One of the caller's own; anybody else's is not there (invariant 11).
async fn own(door: &Door, caller: &Caller, id: &str) -> Result<Broadcast, Problem> {
    admission::may_broadcast(caller)?;
    let none = || Problem::new(Code::NotFound, "there is no such broadcast");
    let id = Uuid::try_parse(id).map(BroadcastId).map_err(|_| none())?;
    let found = door.parts.history.broadcast(id).await?;
    found.filter(|b| b.asked.tenant == caller.tenant).ok_or_else(none)
}

/// How far a broadcast is.
pub(crate) async fn get_broadcast(
    State(App(door)): State<App>,
    Authed(caller): Authed,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let broadcast = own(&door, &caller, &id).await?;
    Ok(edge::json(StatusCode::OK, &Shown::from(&broadcast)))
}

/// Takes back what is not yet expanded.
pub(crate) async fn delete_broadcast(
    State(App(door)): State<App>,
    Authed(caller): Authed,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let broadcast = own(&door, &caller, &id).await?;
    let after = match broadcast.state {
        BroadcastState::Running => {
            door.parts.history.progress(broadcast.id, broadcast.expanded, BroadcastState::Cancelled).await?
        }
        _ => broadcast,
    };
    if after.state == BroadcastState::Done {
        let detail = format!(
            "all {} messages of this broadcast are accepted; each can be cancelled by itself",
            after.recipients
        );
        return Ok(Refusal(Problem::new(Code::TooLate, detail)).into_response());
    }
    Ok(edge::json(StatusCode::OK, &Shown::from(&after)))
}
