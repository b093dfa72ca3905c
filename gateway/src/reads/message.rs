//! `GET /v1/messages/{id}` and `…/trace`: one message, where it stands, and its whole story.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
};
use ingest::http::Authed;
use schemas::{
    Cursor,
    conversation::Shown,
    port::Placed,
    view::{Item, Stage, Trace},
};

use super::{Answer, Part, find};
use crate::Gateway;

/// A message as this caller is shown it.
pub(crate) fn item(placed: &Placed, part: Part) -> Item {
    let item = match part {
        Part::Sender => Item::for_sender(&placed.message, &placed.state),
        Part::Recipient => {
            let cursor = placed.position.map(|position| Cursor::at(placed.inbox.partition, position));
            Item::for_recipient(&placed.message, &placed.state, cursor)
        }
    };
    Item { seq: placed.seq, ..item }
}

/// `GET /v1/messages/{id}`.
pub(crate) async fn show(
    State(gateway): State<Arc<Gateway>>,
    Authed(caller): Authed,
    Path(id): Path<String>,
) -> Answer<Json<Item>> {
    let (placed, part) = find(&gateway, &caller, &id).await?;
    let about = placed.message.kind.about();
    let (true, Some(user)) = (placed.message.kind.conversation().is_some(), caller.user()) else {
        return Ok(Json(item(&placed, part)));
    };
    // With what its edits and its deletion made of it.
    let said = gateway.parts.history.said(&[about.unwrap_or(placed.message.id)]).await?.pop().flatten();
    Ok(Json(match (said, about) {
        (Some(shown), None) => Item::of_turn(&shown, &user),
        // What a deleted message once said is not to be read from its edits.
        (Some(Shown { deleted_at: Some(_), .. }), Some(_)) => Item { content: String::new(), ..item(&placed, part) },
        _ => item(&placed, part),
    }))
}

/// `GET /v1/messages/{id}/trace`.
pub(crate) async fn trace(
    State(gateway): State<Arc<Gateway>>,
    Authed(caller): Authed,
    Path(id): Path<String>,
) -> Answer<Json<Trace>> {
    let (placed, _) = find(&gateway, &caller, &id).await?;
    Ok(Json(story(&placed)))
}

fn story(placed: &Placed) -> Trace {
    let plain = |at, stage: &str| Stage { at, stage: stage.to_owned(), attempt: None, device: None, reason: None };
    let kept = if placed.position.is_some() { "recorded" } else { "scheduled" };
    let mut stages = vec![plain(placed.message.accepted_at, "accepted"), plain(placed.recorded_at, kept)];
    stages.extend(placed.state.past.iter().map(Stage::from));
    // Two machines' clocks may differ by a little: the order of the way is kept where times are equal.
    stages.sort_by_key(|stage| stage.at);
    let traceparent = placed.message.trace.clone();
    Trace { id: placed.message.id, status: placed.state.status(), traceparent, stages }
}
