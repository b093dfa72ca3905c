//! The routes of chat that write. Each answers when it is recorded: 201 or 200 with what is there now; 202 where that takes
//! longer than `chat.answer_ms` (rule 14).

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::{patch, post},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use schemas::{
    Code, Conversation, ConversationId, MessageId, Name, Party, Problem, Ref, Status, Timestamp,
    conversation::{Command, Side, UpTo},
    draft::{self, ChatDraft},
    port::Durability,
    view::{Item, Thread},
};
use serde::{Deserialize, Serialize};

use super::{Ask, Outcome, Recorded, Say, Underway, Where, side_of};
use crate::{
    auth::Caller,
    door::{Accepted, App, Door, Given},
    http::{self as edge, Authed, Media, Patience, Refusal},
    quota,
};

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/v1/conversations", post(open))
        .route("/v1/conversations/{id}/messages", post(say))
        .route("/v1/conversations/{id}/messages/{message}", patch(edit).delete(delete))
        .route("/v1/conversations/{id}/read", post(read))
        .route("/v1/conversations/{id}/archive", post(archive))
        .route("/v1/conversations/{id}/unarchive", post(unarchive))
        .route("/v1/conversations/{id}/close", post(close))
        .route("/v1/conversations/{id}/reopen", post(reopen))
        .route("/v1/conversations/{id}/block", post(block))
        .route("/v1/conversations/{id}/unblock", post(unblock))
        .route("/v1/conversations/{id}/assign", post(assign))
}

type Answer = Result<Response, Refusal>;

/// Whom a conversation is to be with.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Opening {
    #[serde(default)]
    with: Option<String>,
    #[serde(default)]
    participants: Option<Vec<String>>,
}

/// Up to where it is read.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reading {
    up_to: UpTo,
}

/// Who is to answer for the business.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Assigning {
    to: String,
}

/// The answer to a message that is in its conversation.
#[derive(Serialize)]
struct Receipt {
    id: MessageId,
    conversation_id: ConversationId,
    /// Its number there; absent where it is not recorded yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    status: Status,
    accepted_at: Timestamp,
    durability: Durability,
}

/// The id in a path.
pub fn conversation_id(text: &str) -> Result<ConversationId, Problem> {
    let id = text.parse::<MessageId>();
    let id = id.map_err(|_| Problem::new(Code::NotFound, "a conversation's id is a UUID").at("id"))?;
    Ok(ConversationId(id.0))
}

fn message_id(text: &str) -> Result<MessageId, Problem> {
    text.parse().map_err(|_| Problem::new(Code::NotFound, "a message's id is a UUID").at("message"))
}

fn party(text: &str, field: &str) -> Result<Party, Problem> {
    match text.strip_prefix("business:") {
        Some(name) => Name::parse(name)
            .map(Party::Business)
            .map_err(|why| Problem::new(Code::InvalidField, why.to_string()).at(field)),
        None => schemas::Phone::parse(text)
            .map(Party::Mobile)
            .map_err(|why| Problem::new(Code::InvalidPhone, format!("{text:?} {why}")).at(field)),
    }
}

async fn given<T: serde::de::DeserializeOwned>(
    door: &Door,
    headers: &HeaderMap,
    body: Body,
) -> Result<(T, Given), Problem> {
    edge::media(headers, &[Media::Json])?;
    let limits = &door.parts.limits.door;
    let bytes = edge::read_body(headers, body, limits.body_bytes, Patience::of(limits)).await?;
    Ok((draft::parse_body(&bytes)?, from(headers)?))
}

/// What came with a request in its head.
fn from(headers: &HeaderMap) -> Result<Given, Problem> {
    Ok(Given { key: edge::idempotency_key(headers)?, trace: edge::traceparent(headers).map(str::to_owned) })
}

/// One key, wherever it stands.
fn one_key(key: Option<String>, header: Option<String>) -> Result<Option<String>, Problem> {
    match (key, header) {
        (Some(key), Some(header)) if key != header => {
            let detail = "`key` differs from the header `Idempotency-Key`: give one of them";
            Err(Problem::new(Code::InvalidField, detail).at("/key"))
        }
        (key, header) => Ok(key.or(header)),
    }
}

async fn answered(door: &Door, caller: &Caller, mut response: Response, accepted: &Accepted) -> Response {
    let headers = response.headers_mut();
    if accepted.replayed {
        headers.insert(HeaderName::from_static("idempotent-replayed"), HeaderValue::from_static("true"));
    }
    quota::write_headers(headers, &door.quotas.standing(caller).await);
    response
}

/// `POST /v1/conversations`: gets or creates the one of a pair (P2).
async fn open(State(App(door)): State<App>, Authed(caller): Authed, headers: HeaderMap, body: Body) -> Answer {
    crate::admission::may_chat(&caller)?;
    let (opening, given) = given::<Opening>(&door, &headers, body).await?;
    let with = other(&caller, opening)?;
    let outcome = door.open_with(&caller, &with, given.trace).await?.recorded().await?;
    let side = Side::of(&with).other();
    let response = match &outcome.recorded {
        Some(Recorded::Row(row)) => {
            let status = if outcome.accepted.replayed { StatusCode::OK } else { StatusCode::CREATED };
            edge::json(status, &Thread::of(row, side))
        }
        _ => edge::json(StatusCode::ACCEPTED, &receipt(&outcome)),
    };
    Ok(response)
}

/// Who the other one of a new conversation is.
fn other(caller: &Caller, opening: Opening) -> Result<Party, Problem> {
    let wrong = |detail: &str, field: &str| Problem::new(Code::InvalidField, detail).at(field);
    match (opening.with, opening.participants) {
        (Some(with), None) => party(&with, "/with"),
        (None, Some(both)) => {
            let own = caller.user().map(|user| user.party);
            let both: Vec<Party> = both.iter().map(|text| party(text, "/participants")).collect::<Result<_, _>>()?;
            match <[Party; 2]>::try_from(both) {
                Ok([one, two]) if Some(&one) == own.as_ref() && one != two => Ok(two),
                Ok([one, two]) if Some(&two) == own.as_ref() && one != two => Ok(one),
                Ok(_) => Err(wrong("`participants` must be you and somebody else", "/participants")),
                Err(_) => Err(wrong("`participants` must be exactly two", "/participants")),
            }
        }
        _ => Err(wrong("give `with`, or `participants`", "/with")),
    }
}

fn receipt(outcome: &Outcome) -> Receipt {
    let Accepted { id, accepted_at, durability, .. } = outcome.accepted;
    let said = match &outcome.recorded {
        Some(Recorded::Said(shown)) => Some(shown),
        _ => None,
    };
    Receipt {
        id,
        conversation_id: outcome.conversation,
        seq: said.map(|shown| shown.turn.seq),
        status: said.map_or(Status::Pending, |shown| shown.state.status()),
        accepted_at,
        durability,
    }
}

/// `POST /v1/conversations/{id}/messages`.
async fn say(
    State(App(door)): State<App>,
    Authed(caller): Authed,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    crate::admission::may_chat(&caller)?;
    let id = conversation_id(&id)?;
    let (ChatDraft { content, content_type, key, client_ref }, given) = given(&door, &headers, body).await?;
    let client_ref = reference(client_ref.as_deref())?;
    let key = one_key(key, given.key)?;
    let say = Say { to: Where::Conversation(id), content, content_type, key, client_ref, trace: given.trace };
    let began = door.parts.clock.mono();
    let outcome = door.say(&caller, say).await?.recorded().await?;
    let took = std::time::Duration::from_millis(door.parts.clock.mono().since(began));
    metrics::histogram!("esh3ar_chat_seconds").record(took.as_secs_f64());
    let status = if outcome.recorded.is_some() { StatusCode::CREATED } else { StatusCode::ACCEPTED };
    let response = edge::json(status, &receipt(&outcome));
    Ok(answered(&door, &caller, response, &outcome.accepted).await)
}

fn reference(text: Option<&str>) -> Result<Option<Ref>, Problem> {
    let parsed = text.map(Ref::parse).transpose();
    parsed.map_err(|why| Problem::new(Code::InvalidField, format!("`ref` {}", why.rule)).at("/ref"))
}

/// `PATCH /v1/conversations/{id}/messages/{message}`: another text.
async fn edit(
    State(App(door)): State<App>,
    Authed(caller): Authed,
    Path((id, of)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let from = crate::admission::may_chat(&caller)?;
    let (id, of) = (conversation_id(&id)?, message_id(&of)?);
    let (draft, given) = given::<ChatDraft>(&door, &headers, body).await?;
    let key = one_key(draft.key.clone(), given.key)?;
    let client_ref = reference(draft.client_ref.as_deref())?;
    let content = door.checked(&caller, &from, &draft)?;
    let ask = Ask { command: Command::Edit { of, content }, key, client_ref, trace: given.trace };
    changed(&door, &caller, of, door.ask(&caller, id, ask).await?).await
}

/// `DELETE /v1/conversations/{id}/messages/{message}`.
async fn delete(
    State(App(door)): State<App>,
    Authed(caller): Authed,
    Path((id, of)): Path<(String, String)>,
    headers: HeaderMap,
) -> Answer {
    crate::admission::may_chat(&caller)?;
    let (id, of) = (conversation_id(&id)?, message_id(&of)?);
    let given = from(&headers)?;
    let ask = Ask { key: given.key, trace: given.trace, ..Ask::from(Command::Delete { of }) };
    changed(&door, &caller, of, door.ask(&caller, id, ask).await?).await
}

/// Answers with the message as it is after an edit or a deletion.
async fn changed(door: &Arc<Door>, caller: &Caller, of: MessageId, underway: Underway) -> Answer {
    let outcome = underway.recorded().await?;
    let response = match (&outcome.recorded, caller.user()) {
        (Some(_), Some(user)) => match door.history().said(&[of]).await?.pop().flatten() {
            Some(shown) => edge::json(StatusCode::OK, &Item::of_turn(&shown, &user)),
            None => return Err(super::unseen().into()),
        },
        _ => edge::json(StatusCode::ACCEPTED, &receipt(&outcome)),
    };
    Ok(answered(door, caller, response, &outcome.accepted).await)
}

/// `POST /v1/conversations/{id}/read`.
async fn read(
    State(App(door)): State<App>,
    Authed(caller): Authed,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    crate::admission::may_chat(&caller)?;
    let (Reading { up_to }, given) = given(&door, &headers, body).await?;
    command(&door, &caller, &id, Command::Read { up_to }, given).await
}

/// `POST /v1/conversations/{id}/assign`.
async fn assign(
    State(App(door)): State<App>,
    Authed(caller): Authed,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    crate::admission::may_chat(&caller)?;
    let (Assigning { to }, given) = given(&door, &headers, body).await?;
    let to = match party(&to, "/to")? {
        Party::Business(name) => name,
        Party::Mobile(_) => {
            let detail = "`to` must name a business user: \"business:NAME\"";
            return Err(Problem::new(Code::InvalidField, detail).at("/to").into());
        }
    };
    command(&door, &caller, &id, Command::Assign { to }, given).await
}

macro_rules! plain {
    ($($(#[$doc:meta])* $name:ident = $command:expr;)*) => {$(
        $(#[$doc])*
        async fn $name(
            State(App(door)): State<App>,
            Authed(caller): Authed,
            Path(id): Path<String>,
            headers: HeaderMap,
        ) -> Answer {
            command(&door, &caller, &id, $command, from(&headers)?).await
        }
    )*};
}

plain! {
    /// `POST /v1/conversations/{id}/archive`: put away, for oneself; a new message brings it back.
    archive = Command::Archive(true);
    /// `POST /v1/conversations/{id}/unarchive`.
    unarchive = Command::Archive(false);
    /// `POST /v1/conversations/{id}/close`: nobody writes until it is reopened.
    close = Command::Close;
    /// `POST /v1/conversations/{id}/reopen`.
    reopen = Command::Reopen;
    /// `POST /v1/conversations/{id}/block`: the business may not write.
    block = Command::Block(true);
    /// `POST /v1/conversations/{id}/unblock`.
    unblock = Command::Block(false);
}

/// Asks, waits, and answers with the conversation as it is then.
async fn command(door: &Arc<Door>, caller: &Caller, id: &str, command: Command, given: Given) -> Answer {
    let id = conversation_id(id)?;
    let ask = Ask { key: given.key, trace: given.trace, ..Ask::from(command) };
    let outcome = door.ask(caller, id, ask).await?.recorded().await?;
    let response = match &outcome.recorded {
        Some(Recorded::Row(row)) => edge::json(StatusCode::OK, &thread(row, caller)),
        Some(_) => match super::row(door.history(), id).await? {
            Some(row) => edge::json(StatusCode::OK, &thread(&row, caller)),
            None => return Err(super::unseen().into()),
        },
        None => edge::json(StatusCode::ACCEPTED, &receipt(&outcome)),
    };
    Ok(answered(door, caller, response, &outcome.accepted).await.into_response())
}

fn thread(row: &Conversation, caller: &Caller) -> Thread {
    Thread::of(row, side_of(caller, row).unwrap_or(Side::Business))
}
