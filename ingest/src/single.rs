//! `POST /v1/messages`: one one-way message. The fast path of one: no stream, no window, one append that the log groups with
//! those of the other requests.

use std::time::Duration;

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use schemas::{MessageId, Problem, State as Standing, Status, Timestamp, port::Durability, view::Item};
use serde::Serialize;

use crate::{
    admission,
    door::{Accepted, App, Given},
    http::{self as edge, Authed, Media, Patience, Refusal},
    quota,
};

/// The answer to an accepted message.
#[derive(Serialize)]
struct Receipt {
    id: MessageId,
    status: Status,
    accepted_at: Timestamp,
    durability: Durability,
}

/// The answer to a dry run: what would have been accepted.
#[derive(Serialize)]
struct Rehearsal {
    dry_run: bool,
    message: Item,
}

/// Accepts one message.
pub(crate) async fn post_message(
    State(App(door)): State<App>,
    Authed(caller): Authed,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let from = admission::may_send(&caller)?;
    let _place = door.enter()?;
    edge::media(&headers, &[Media::Json])?;
    let given = Given { key: edge::idempotency_key(&headers)?, trace: edge::traceparent(&headers).map(str::to_owned) };
    let limits = &door.parts.limits.door;
    let bytes = edge::read_body(&headers, body, limits.body_bytes, Patience::of(limits)).await?;
    let began = door.parts.clock.mono();
    let admitted = door.desk(&caller, &from, &given).read(&bytes)?;
    drop(bytes);
    let answer = door.submit(&caller, vec![Ok(admitted)], false).await.await.pop();
    let took = Duration::from_millis(door.parts.clock.mono().since(began));
    metrics::histogram!("esh3ar_accept_seconds").record(took.as_secs_f64());
    let mut response = match answer {
        Some(Ok(accepted)) => receipt(accepted),
        Some(Err(problem)) => Refusal(problem).into_response(),
        None => Refusal(Problem::new(schemas::Code::Internal, "the message got no answer")).into_response(),
    };
    quota::write_headers(response.headers_mut(), &door.quotas.standing(&caller).await);
    Ok(response)
}

fn receipt(accepted: Accepted) -> Response {
    let Accepted { id, accepted_at, durability, replayed, dry_run } = accepted;
    if let Some(message) = dry_run {
        let message = Item::for_sender(&message, &Standing::default());
        return edge::json(StatusCode::OK, &Rehearsal { dry_run: true, message });
    }
    let mut response =
        edge::json(StatusCode::ACCEPTED, &Receipt { id, status: Status::Pending, accepted_at, durability });
    if replayed {
        let name = HeaderName::from_static("idempotent-replayed");
        response.headers_mut().insert(name, HeaderValue::from_static("true"));
    }
    response
}
