//! `POST /v1/messages/ack` and `…/{id}/read`: what a client without a socket says of its messages. The same facts as from a
//! socket; answered when the log has them.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::{Path, State},
};
use http::{HeaderMap, StatusCode};
use ingest::http::{Authed, Patience, read_body};
use schemas::{
    Code, Cursor, DeviceId, Inbox, MessageId, Position, Problem, Status, What,
    port::{PortError, PortResult},
    record,
};
use serde::{Deserialize, Serialize};

use super::{Answer, Part, find, look, mobile};
use crate::{Gateway, facts::fact_of};

/// Entries read at once while a cursor is acknowledged.
const STEP: usize = 500;
/// How long a reading is waited for until it shows (rule 14).
const SHOWN: Duration = Duration::from_millis(500);

/// What is acknowledged.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ack {
    device: Option<String>,
    #[serde(default)]
    cursor: Option<String>,
    #[serde(default)]
    ids: Vec<MessageId>,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub(crate) struct Acked {
    /// Messages that this acknowledgement delivered.
    acknowledged: usize,
    /// The device's cursor, where one was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<Cursor>,
    /// Ids that name no message of this user.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unknown: Vec<MessageId>,
}

/// `POST /v1/messages/ack`.
pub(crate) async fn ack(
    State(gateway): State<Arc<Gateway>>,
    Authed(caller): Authed,
    headers: HeaderMap,
    body: Body,
) -> Answer<Json<Acked>> {
    let inbox = mobile(&gateway, &caller)?;
    let door = &gateway.parts.limits.door;
    let body = read_body(&headers, body, door.body_bytes, Patience::of(door)).await?;
    let ack: Ack = serde_json::from_slice(&body).map_err(|why| {
        let code = if why.is_data() { Code::InvalidField } else { Code::InvalidJson };
        Problem::new(code, why.to_string())
    })?;
    let device = ack.device.as_deref().map(DeviceId::parse).transpose();
    let device = device.map_err(|why| Problem::new(Code::InvalidField, why.to_string()).at("/device"))?;
    let most = gateway.parts.limits.socket.ids_per_frame;
    if ack.ids.len() > most {
        let detail = format!("`ids` has {} entries, the most is {most}", ack.ids.len());
        return Err(Problem::new(Code::InvalidField, detail).at("/ids").into());
    }
    let cursor = ack.cursor.as_deref().map(str::parse::<Cursor>).transpose();
    let cursor = cursor.map_err(|why| Problem::new(Code::InvalidCursor, why.to_string()).at("/cursor"))?;
    match (cursor, device) {
        (None, _) if ack.ids.is_empty() => {
            Err(Problem::new(Code::InvalidField, "give `cursor` with `device`, or `ids`").into())
        }
        (None, device) => Ok(Json(ack_ids(&gateway, &inbox, device.as_ref(), &ack.ids).await?)),
        (Some(_), None) => {
            let detail = "`device` must name the device whose cursor moves";
            Err(Problem::new(Code::InvalidField, detail).at("/device").into())
        }
        (Some(cursor), Some(device)) => {
            let mut acked = ack_cursor(&gateway, &inbox, &device, &cursor).await?;
            if !ack.ids.is_empty() {
                let by_id = ack_ids(&gateway, &inbox, Some(&device), &ack.ids).await?;
                acked.acknowledged += by_id.acknowledged;
                acked.unknown = by_id.unknown;
            }
            Ok(Json(acked))
        }
    }
}

async fn append(gateway: &Gateway, facts: Vec<schemas::Fact>) -> PortResult<()> {
    if facts.is_empty() {
        return Ok(());
    }
    gateway.parts.log.append(record::facts(facts)).await.into_iter().try_for_each(|outcome| outcome.map(drop))
}

async fn ack_ids(gateway: &Gateway, inbox: &Inbox, device: Option<&DeviceId>, ids: &[MessageId]) -> PortResult<Acked> {
    let placed = gateway.parts.history.messages(ids).await?;
    let at = gateway.now().wall;
    let (mut facts, mut unknown) = (Vec::new(), Vec::new());
    for (id, placed) in ids.iter().zip(placed) {
        match placed.filter(|placed| placed.inbox.user == inbox.user && placed.position.is_some()) {
            Some(placed) => facts.push(fact_of(&placed, device, What::Delivered, at)),
            None => unknown.push(*id),
        }
    }
    let acknowledged = facts.len();
    append(gateway, facts).await?;
    Ok(Acked { acknowledged, cursor: None, unknown })
}

async fn ack_cursor(gateway: &Gateway, inbox: &Inbox, device: &DeviceId, cursor: &Cursor) -> Result<Acked, Problem> {
    let history = &gateway.parts.history;
    let to = cursor.position(inbox.partition);
    let tail = history.tails(std::slice::from_ref(inbox)).await?.first().copied().unwrap_or_default();
    if to > tail.position || cursor.0.keys().any(|partition| *partition != inbox.partition) {
        let detail = "`cursor` lies beyond what this user was sent";
        return Err(Problem::new(Code::AckBeyondSent, detail).at("/cursor"));
    }
    let cursors = history.cursors(&inbox.user).await?;
    let of = |cursor: &Cursor| cursor.position(inbox.partition);
    let stored = cursors.iter().find(|(d, _)| d == device).map(|(_, cursor)| of(cursor));
    let others = cursors.iter().map(|(_, cursor)| of(cursor)).max();
    let mut from = stored.or(others).unwrap_or(Position::START);
    let mut acknowledged = 0;
    while from < to {
        let span = history.read(inbox, from, STEP).await?;
        let Some((last, _)) = span.entries.last() else { break };
        let next = last.position;
        let at = gateway.now().wall;
        let mut facts = Vec::new();
        for (entry, state) in span.entries {
            if entry.position <= to && crate::delivery::is_acknowledged_by_cursor(&entry, &state, at) {
                let (position, prev) = (Some(entry.position), entry.prev);
                let (inbox, message, recorded_at) = (entry.inbox, entry.message, entry.recorded_at);
                let placed = schemas::port::Placed { message, inbox, position, prev, recorded_at, state };
                facts.push(fact_of(&placed, Some(device), What::Delivered, at));
            }
        }
        acknowledged += facts.len();
        append(gateway, facts).await?;
        from = next;
    }
    // After the facts: a stored cursor that ran ahead of them would leave messages nobody asks about again.
    history.advance(&[(inbox.user.clone(), device.clone(), Cursor::at(inbox.partition, to))]).await?;
    Ok(Acked { acknowledged, cursor: Some(Cursor::at(inbox.partition, to)), unknown: Vec::new() })
}

/// What came of a reading.
#[derive(Debug, Serialize)]
pub(crate) struct Marked {
    id: MessageId,
    status: Status,
}

/// `POST /v1/messages/{id}/read`: 200 when it shows, 202 where that takes longer.
pub(crate) async fn read(
    State(gateway): State<Arc<Gateway>>,
    Authed(caller): Authed,
    Path(id): Path<String>,
) -> Answer<(StatusCode, Json<Marked>)> {
    let (placed, part) = find(&gateway, &caller, &id).await?;
    if part != Part::Recipient {
        return Err(Problem::new(Code::Forbidden, "only its recipient can read a message").into());
    }
    let id = placed.message.id;
    append(&gateway, vec![fact_of(&placed, None, What::Read, gateway.now().wall)]).await?;
    let history = &gateway.parts.history;
    let shown = look(SHOWN, || async move {
        let states = history.states(&[id]).await?;
        Ok::<_, PortError>(states.first().map(schemas::State::status).filter(|status| *status == Status::Read))
    });
    Ok(match shown.await? {
        Some(status) => (StatusCode::OK, Json(Marked { id, status })),
        None => (StatusCode::ACCEPTED, Json(Marked { id, status: placed.state.status() })),
    })
}
