//! `POST /v1/messages/ack` and `…/{id}/read`: what a client without a socket says of its messages. The same facts as from a
//! socket; answered when the log has them.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::{Path, State},
};
use http::{HeaderMap, StatusCode};
use ingest::{
    chat::Ask,
    http::{Authed, Patience, read_body},
};
use schemas::{
    Code, Cursor, DeviceId, Inbox, MessageId, Position, Problem, Sender, Status, UserId, What,
    conversation::{Command, UpTo},
    port::{Placed, PortError, PortResult},
    record,
};
use serde::{Deserialize, Serialize};

use super::{Answer, Part, find, look, user};
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
    let user = user(&caller)?;
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
        (None, device) => Ok(Json(ack_ids(&gateway, &user, device.as_ref(), &ack.ids).await?)),
        (Some(_), None) => {
            let detail = "`device` must name the device whose cursor moves";
            Err(Problem::new(Code::InvalidField, detail).at("/device").into())
        }
        (Some(cursor), Some(device)) => {
            let mut acked = ack_cursor(&gateway, &user, &device, &cursor).await?;
            if !ack.ids.is_empty() {
                let by_id = ack_ids(&gateway, &user, Some(&device), &ack.ids).await?;
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

async fn ack_ids(gateway: &Gateway, user: &UserId, device: Option<&DeviceId>, ids: &[MessageId]) -> PortResult<Acked> {
    let placed = gateway.parts.history.messages(ids).await?;
    let at = gateway.now().wall;
    let (mut facts, mut unknown) = (Vec::new(), Vec::new());
    for (id, placed) in ids.iter().zip(placed) {
        // What the user wrote is its own to have: nothing is said of it, and it is not unknown.
        if placed.as_ref().is_some_and(|placed| placed.message.from == Sender::User(user.party.clone())) {
            continue;
        }
        match placed.filter(|placed| placed.inbox.user == *user && placed.position.is_some()) {
            Some(placed) => facts.push(fact_of(&placed, device, What::Delivered, at)),
            None => unknown.push(*id),
        }
    }
    let acknowledged = facts.len();
    append(gateway, facts).await?;
    Ok(Acked { acknowledged, cursor: None, unknown })
}

async fn ack_cursor(gateway: &Gateway, user: &UserId, device: &DeviceId, cursor: &Cursor) -> Result<Acked, Problem> {
    let history = &gateway.parts.history;
    let mut inboxes = gateway.inboxes(user);
    inboxes.retain(|inbox| cursor.0.contains_key(&inbox.partition));
    let tails = history.tails(&inboxes).await?;
    let beyond = inboxes.iter().zip(&tails).any(|(inbox, tail)| cursor.position(inbox.partition) > tail.position);
    if beyond || inboxes.len() < cursor.0.len() {
        let detail = "`cursor` lies beyond what this user was sent";
        return Err(Problem::new(Code::AckBeyondSent, detail).at("/cursor"));
    }
    let cursors = history.cursors(user).await?;
    let mut acknowledged = 0;
    for inbox in &inboxes {
        let of = |cursor: &Cursor| cursor.position(inbox.partition);
        let stored = cursors.iter().find(|(d, _)| d == device).map(|(_, cursor)| of(cursor));
        let others = cursors.iter().map(|(_, cursor)| of(cursor)).max();
        let from = stored.or(others).unwrap_or(Position::START);
        acknowledged += ack_up_to(gateway, inbox, device, from, of(cursor)).await?;
    }
    // After the facts: a stored cursor that ran ahead of them would leave messages nobody asks about again.
    history.advance(&[(user.clone(), device.clone(), cursor.clone())]).await?;
    Ok(Acked { acknowledged, cursor: Some(cursor.clone()), unknown: Vec::new() })
}

/// Says of everything after `from` up to `to` that the device has it; how many those were.
async fn ack_up_to(
    gateway: &Gateway,
    inbox: &Inbox,
    device: &DeviceId,
    mut from: Position,
    to: Position,
) -> PortResult<usize> {
    let mut acknowledged = 0;
    while from < to {
        let span = gateway.parts.history.read(inbox, from, STEP).await?;
        let Some((last, _)) = span.entries.last() else { break };
        let next = last.position;
        let at = gateway.now().wall;
        let mut facts = Vec::new();
        for (entry, state) in span.entries {
            if entry.position <= to && crate::delivery::is_acknowledged_by_cursor(&entry, &state, at) {
                let (position, prev, seq) = (Some(entry.position), entry.prev, entry.seq);
                let (inbox, message, recorded_at) = (entry.inbox, entry.message, entry.recorded_at);
                let placed = Placed { message, inbox, position, prev, recorded_at, seq, state };
                facts.push(fact_of(&placed, Some(device), What::Delivered, at));
            }
        }
        acknowledged += facts.len();
        append(gateway, facts).await?;
        from = next;
    }
    Ok(acknowledged)
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
    if let Some(conversation) = placed.message.kind.conversation() {
        // In a conversation a reading is a mark: whoever reads this one has read all before it (rule 15).
        let away = || Problem::new(Code::Unavailable, "chat is not taken in here").retry_after_ms(1_000);
        let door = gateway.parts.door.as_ref().ok_or_else(away)?;
        let up_to = UpTo::Id(placed.message.kind.about().unwrap_or(id));
        let ask = Ask::from(Command::Read { up_to });
        door.ask(&caller, conversation, ask).await?.recorded().await?;
        let status = shown(&gateway, id).await?;
        return Ok(answer(id, status, &placed));
    }
    append(&gateway, vec![fact_of(&placed, None, What::Read, gateway.now().wall)]).await?;
    let status = shown(&gateway, id).await?;
    Ok(answer(id, status, &placed))
}

/// Waits a moment until the reading shows.
async fn shown(gateway: &Gateway, id: MessageId) -> PortResult<Option<Status>> {
    let history = &gateway.parts.history;
    let shown = look(SHOWN, || async move {
        let states = history.states(&[id]).await?;
        Ok::<_, PortError>(states.first().map(schemas::State::status).filter(|status| *status == Status::Read))
    });
    shown.await
}

fn answer(id: MessageId, shown: Option<Status>, placed: &Placed) -> (StatusCode, Json<Marked>) {
    match shown {
        Some(status) => (StatusCode::OK, Json(Marked { id, status })),
        None => (StatusCode::ACCEPTED, Json(Marked { id, status: placed.state.status() })),
    }
}
