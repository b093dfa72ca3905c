//! `GET` and `PUT /v1/preferences`: what a user lets others know of it.

use std::sync::Arc;

use axum::{Json, body::Body, extract::State};
use http::HeaderMap;
use ingest::http::{Authed, Patience, read_body};
use schemas::{Code, Problem};
use serde::{Deserialize, Serialize};

use super::{Answer, user};
use crate::Gateway;

/// What a user chose.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Preferences {
    /// Whether those who share a conversation may see that it is connected, and when it was last.
    show_presence: bool,
}

/// `GET /v1/preferences`.
pub(crate) async fn show(State(gateway): State<Arc<Gateway>>, Authed(caller): Authed) -> Answer<Json<Preferences>> {
    let user = user(&caller)?;
    let people = gateway.parts.history.people(std::slice::from_ref(&user)).await?;
    let show_presence = people.first().is_none_or(|person| person.show_presence);
    Ok(Json(Preferences { show_presence }))
}

/// `PUT /v1/preferences`: answered when it is kept.
pub(crate) async fn choose(
    State(gateway): State<Arc<Gateway>>,
    Authed(caller): Authed,
    headers: HeaderMap,
    body: Body,
) -> Answer<Json<Preferences>> {
    let user = user(&caller)?;
    let door = &gateway.parts.limits.door;
    let body = read_body(&headers, body, door.body_bytes, Patience::of(door)).await?;
    let chosen: Preferences = serde_json::from_slice(&body).map_err(|why| {
        let code = if why.is_data() { Code::InvalidField } else { Code::InvalidJson };
        Problem::new(code, why.to_string())
    })?;
    gateway.parts.history.prefer(&user, chosen.show_presence).await?;
    gateway.herald.chose(&user, chosen.show_presence);
    Ok(Json(chosen))
}
