//! Conversations as their two sides read them: lists, one of them, its messages (R1.7, R1.13, R1.14, R8.6). Other people's
//! is answered as one that does not exist (R11.1).

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ingest::{
    admission::may_chat,
    chat::{READER_WAITS, routes::conversation_id, seen},
    http::Authed,
};
use schemas::{
    Code, Conversation, ConversationId, MessageId, Problem, Timestamp, UserId,
    conversation::{Refused, Side},
    port::{ByActivity, Conversations, Order, Page, PortResult},
    view::{Item, Standing, Thread},
};
use serde::{Deserialize, Serialize};

use super::{Answer, Asked, page, query, user};
use crate::Gateway;

/// Rows of a user's list that one page passes over while it looks for those of one status.
const SCAN: usize = 1_000;

/// Which conversations.
#[derive(Debug, Deserialize)]
pub(crate) struct AskedThreads {
    status: Option<Standing>,
    cursor: Option<String>,
    limit: Option<usize>,
}

/// A page of conversations.
#[derive(Debug, Serialize)]
pub(crate) struct Threads {
    items: Vec<Thread>,
    /// Where the next page starts; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// `GET /v1/conversations`: newest activity first. Without a status those that the asker has not put away.
pub(crate) async fn list(
    State(gateway): State<Arc<Gateway>>,
    Authed(caller): Authed,
    asked: Asked<AskedThreads>,
) -> Answer<Json<Threads>> {
    may_chat(&caller)?;
    let user = user(&caller)?;
    let asked = query(asked)?;
    let limit = page(asked.limit)?;
    let list = List { user: &user, status: asked.status };
    let from = asked.cursor.as_deref().filter(|text| !text.is_empty());
    let from = from.map(|text| list.read(text)).transpose()?;
    let read = list.page(gateway.parts.talks.as_ref(), from, limit).await?;
    let items = gateway.threads(&read.rows, Side::of(&user.party)).await;
    Ok(Json(Threads { items, next_cursor: read.next.map(|place| list.write(place)) }))
}

/// One user's list of one status.
struct List<'a> {
    user: &'a UserId,
    status: Option<Standing>,
}

impl List<'_> {
    fn takes(&self, row: &Conversation) -> bool {
        let status = Thread::of(row, Side::of(&self.user.party)).status;
        self.status.is_none_or(|wanted| wanted == status)
    }

    /// The next rows that this list has, at most `limit`. Fewer, and a place to go on from, where most of what was passed
    /// over is not in it.
    async fn page(
        &self,
        talks: &dyn Conversations,
        from: Option<ByActivity>,
        limit: usize,
    ) -> PortResult<Page<Conversation, ByActivity>> {
        // Closed ones are in both: what is put away, and what is not.
        let put_away: &[bool] = match self.status {
            None | Some(Standing::Active) => &[false],
            Some(Standing::Archived) => &[true],
            Some(Standing::Closed) => &[false, true],
        };
        let (mut rows, mut place, mut passed) = (Vec::new(), from, 0);
        loop {
            let mut read = Vec::new();
            let mut more = false;
            for archived in put_away {
                let page = talks.by_user(self.user, *archived, place, limit).await?;
                more |= page.next.is_some();
                read.extend(page.rows);
            }
            // Of several lists the page is as long as what all of them are known to that far.
            read.sort_by_key(|row| (std::cmp::Reverse(row.last_at), row.id));
            more |= read.len() > limit;
            read.truncate(limit);
            passed += read.len();
            place = read.last().map(ByActivity::of).or(place);
            rows.extend(read.into_iter().filter(|row| self.takes(row)));
            if rows.len() > limit {
                rows.truncate(limit);
                let next = rows.last().map(ByActivity::of);
                return Ok(Page { rows, next });
            }
            if !more || rows.len() == limit || passed >= SCAN {
                return Ok(Page { rows, next: place.filter(|_| more) });
            }
        }
    }

    /// Which list a cursor is of: it cannot be used for another's, or with another status.
    fn mark(&self) -> [u8; 5] {
        let status = match self.status {
            None => b'*',
            Some(Standing::Active) => b'a',
            Some(Standing::Archived) => b'p',
            Some(Standing::Closed) => b'c',
        };
        let name = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, self.user.to_string().as_bytes());
        let [a, b, c, d, ..] = *name.as_bytes();
        [status, a, b, c, d]
    }

    fn write(&self, place: ByActivity) -> String {
        let mut bytes = self.mark().to_vec();
        bytes.extend_from_slice(&place.last_at.0.to_be_bytes());
        bytes.extend_from_slice(place.id.0.as_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn read(&self, text: &str) -> Result<ByActivity, Problem> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| foreign())?;
        let rest = bytes.strip_prefix(&self.mark()).ok_or_else(foreign)?;
        let (at, id) = rest.split_at_checked(8).ok_or_else(foreign)?;
        let at = <[u8; 8]>::try_from(at).map_err(|_| foreign())?;
        let id = <[u8; 16]>::try_from(id).map_err(|_| foreign())?;
        let (last_at, id) = (Timestamp(i64::from_be_bytes(at)), ConversationId(uuid::Uuid::from_bytes(id)));
        Ok(ByActivity { last_at, id })
    }
}

fn foreign() -> Problem {
    Problem::new(Code::InvalidCursor, "`cursor` is not one that this list gave").at("cursor")
}

/// `GET /v1/conversations/{id}`.
pub(crate) async fn show(
    State(gateway): State<Arc<Gateway>>,
    Authed(caller): Authed,
    Path(id): Path<String>,
) -> Answer<Json<Thread>> {
    may_chat(&caller)?;
    let id = conversation_id(&id)?;
    let (row, side) = seen(gateway.parts.history.as_ref(), &caller, id, READER_WAITS).await?;
    let shown = gateway.threads(std::slice::from_ref(&row), side).await.pop();
    Ok(Json(shown.unwrap_or_else(|| Thread::of(&row, side))))
}

/// Which of a conversation's messages.
#[derive(Debug, Deserialize)]
pub(crate) struct AskedMessages {
    order: Option<Order>,
    cursor: Option<String>,
    around: Option<String>,
    limit: Option<usize>,
}

/// A piece of a conversation.
#[derive(Debug, Serialize)]
pub(crate) struct Messages {
    items: Vec<Item>,
    /// Where it goes on in the order asked for; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
    /// Around a message: from here on with `order=newest`.
    #[serde(skip_serializing_if = "Option::is_none")]
    older_cursor: Option<String>,
    /// Around a message: from here on with `order=oldest`.
    #[serde(skip_serializing_if = "Option::is_none")]
    newer_cursor: Option<String>,
}

/// `GET /v1/conversations/{id}/messages`: newest first unless asked otherwise.
pub(crate) async fn messages(
    State(gateway): State<Arc<Gateway>>,
    Authed(caller): Authed,
    Path(id): Path<String>,
    asked: Asked<AskedMessages>,
) -> Answer<Json<Messages>> {
    may_chat(&caller)?;
    let id = conversation_id(&id)?;
    let user = user(&caller)?;
    let asked = query(asked)?;
    let limit = page(asked.limit)?;
    let talks = gateway.parts.talks.as_ref();
    seen(gateway.parts.history.as_ref(), &caller, id, READER_WAITS).await?;
    let cursor = asked.cursor.as_deref().filter(|text| !text.is_empty());
    if let Some(message) = asked.around.as_deref() {
        if cursor.is_some() || asked.order.is_some() {
            let detail = "`around` stands alone: go on from `older_cursor` or `newer_cursor`, each with its order";
            return Err(Problem::new(Code::InvalidQuery, detail).at("around").into());
        }
        return Ok(Json(around(talks, &user, id, message, limit).await?));
    }
    let order = asked.order.unwrap_or_default();
    let from = cursor.map(|text| read_cursor(text, id, order)).transpose()?;
    let read = talks.turns(id, order, from, limit).await?;
    let items = read.rows.iter().map(|shown| Item::of_turn(shown, &user)).collect();
    let next_cursor = read.next.map(|seq| write_cursor(id, order, seq));
    Ok(Json(Messages { items, next_cursor, older_cursor: None, newer_cursor: None }))
}

async fn around(
    talks: &dyn Conversations,
    user: &UserId,
    id: ConversationId,
    message: &str,
    limit: usize,
) -> Result<Messages, Problem> {
    let message: MessageId = message
        .parse()
        .map_err(|_| Problem::new(Code::InvalidQuery, "`around` must be a message's id").at("around"))?;
    let found = talks.around(id, message, limit).await?;
    let found = found.ok_or_else(|| Refused::NoSuchMessage.problem().at("around"))?;
    Ok(Messages {
        items: found.rows.iter().map(|shown| Item::of_turn(shown, user)).collect(),
        next_cursor: None,
        older_cursor: found.older.map(|seq| write_cursor(id, Order::Newest, seq)),
        newer_cursor: found.newer.map(|seq| write_cursor(id, Order::Oldest, seq)),
    })
}

/// A cursor names its conversation and its direction, so that it cannot be used for another list.
fn write_cursor(id: ConversationId, order: Order, seq: u64) -> String {
    let mut bytes = vec![if order == Order::Oldest { b'o' } else { b'n' }];
    bytes.extend_from_slice(&id.0.as_bytes()[..8]);
    bytes.extend_from_slice(&seq.to_be_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

fn read_cursor(text: &str, id: ConversationId, order: Order) -> Result<u64, Problem> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| foreign())?;
    let seq = bytes.get(9..).and_then(|seq| <[u8; 8]>::try_from(seq).ok()).map(u64::from_be_bytes);
    seq.filter(|seq| write_cursor(id, order, *seq) == text).ok_or_else(foreign)
}
