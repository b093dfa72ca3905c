//! `DELETE /v1/messages/{id}`: its sender takes it back (rule 9). Asking is a record on the message's partition; its owner
//! decides, and here the answer is waited for a moment.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
};
use http::StatusCode;
use ingest::http::Authed;
use schemas::{Code, MessageId, Problem, Reason, State as Standing, Status, What, port::PortError, record};
use serde::Serialize;

use super::{Answer, Part, WAIT, find, look};
use crate::{Gateway, facts::fact_of};

/// How a cancellation stands.
#[derive(Debug, Serialize)]
pub(crate) struct Cancelled {
    id: MessageId,
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
}

/// What a message's state says of its cancellation: `None` while nothing is decided.
fn decided(state: &Standing) -> Option<Result<(), Problem>> {
    match (state.status(), state.reason()) {
        (Status::Pending, _) => None,
        (Status::Failed, Some(Reason::Cancelled)) => Some(Ok(())),
        (status, _) => {
            let detail = format!("the message is {status} already: only one that is pending can be taken back");
            Some(Err(Problem::new(Code::TooLate, detail)))
        }
    }
}

/// `DELETE /v1/messages/{id}`: 200 cancelled, 409 too late, 202 asked for and not decided yet.
pub(crate) async fn cancel(
    State(gateway): State<Arc<Gateway>>,
    Authed(caller): Authed,
    Path(id): Path<String>,
) -> Answer<(StatusCode, Json<Cancelled>)> {
    let (placed, part) = find(&gateway, &caller, &id).await?;
    if part != Part::Sender {
        return Err(Problem::new(Code::Forbidden, "only its sender can take a message back").into());
    }
    if placed.message.kind.conversation().is_some() {
        let detail = "a chat message is taken back with DELETE /v1/conversations/{id}/messages/{message}";
        return Err(Problem::new(Code::TooLate, detail).into());
    }
    let id = placed.message.id;
    let done = || (StatusCode::OK, Json(Cancelled { id, status: Status::Failed, reason: Some(Reason::Cancelled) }));
    if let Some(decided) = decided(&placed.state) {
        return Ok(decided.map(|()| done())?);
    }
    let asked = fact_of(&placed, None, What::CancelAsked, gateway.now().wall);
    for outcome in gateway.parts.log.append(record::facts(vec![asked])).await {
        outcome?;
    }
    let history = &gateway.parts.history;
    let answer = look(WAIT, || async move {
        let states = history.states(&[id]).await?;
        Ok::<_, PortError>(states.first().and_then(decided))
    });
    match answer.await? {
        Some(decided) => Ok(decided.map(|()| done())?),
        None => Ok((StatusCode::ACCEPTED, Json(Cancelled { id, status: Status::Pending, reason: None }))),
    }
}
