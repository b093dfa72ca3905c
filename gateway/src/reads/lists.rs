//! Lists: one-way history, the inbox without a socket, unread counts, nodes.

use std::sync::Arc;

use axum::{Json, extract::State};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ingest::{
    admission::may_chat,
    auth::{Caller, Who},
    http::Authed,
};
use schemas::{
    Code, Cursor, Inbox, Partition, Phone, Position, Problem, UserId, What,
    port::{NodeLoad, Order, Placed},
    view::Item,
};
use serde::{Deserialize, Serialize};

use super::{Answer, Asked, is_own, message::item, mobile, page, query};
use crate::{
    Gateway, catch_up, connect,
    facts::fact_of,
    reads::{Part, user},
    session::Me,
};

/// A page of items.
#[derive(Debug, Serialize)]
pub(crate) struct Items {
    items: Vec<Item>,
    /// Where the next page starts; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// Which history.
#[derive(Debug, Deserialize)]
pub(crate) struct AskedHistory {
    user: Option<String>,
    order: Option<Order>,
    cursor: Option<String>,
    limit: Option<usize>,
}

/// Whose history: a user's own; a server names the mobile user.
fn whose(gateway: &Gateway, caller: &Caller, named: Option<&str>) -> Result<(Option<Inbox>, Part), Problem> {
    match &caller.who {
        Who::Server | Who::Admin => {
            let refuse = || Problem::new(Code::InvalidQuery, "`user` must name a mobile user, e.g. %2B962790000001");
            let phone = named.and_then(Phone::from_stored).ok_or_else(|| refuse().at("user"))?;
            let owner = UserId::mobile(caller.tenant.clone(), phone);
            Ok((gateway.inboxes(&owner).into_iter().next(), Part::Sender))
        }
        Who::Mobile(_) => Ok((Some(mobile(gateway, caller)?), Part::Recipient)),
        // One-way messages go to mobile users alone.
        Who::Business(_) => Ok((None, Part::Recipient)),
    }
}

/// A page's cursor names its direction too, so that it cannot be used for the other list.
fn page_cursor(order: Order, partition: Partition, position: Position) -> String {
    let mut bytes = vec![if order == Order::Oldest { b'o' } else { b'n' }];
    bytes.extend_from_slice(&partition.0.to_be_bytes());
    bytes.extend_from_slice(&position.to_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

fn read_page_cursor(text: &str, order: Order, partition: Partition) -> Result<Position, Problem> {
    let refuse = || Problem::new(Code::InvalidCursor, "`cursor` is not one that this list gave").at("cursor");
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| refuse())?;
    let place = bytes.get(3..).and_then(|place| <[u8; 12]>::try_from(place).ok()).map(Position::from_bytes);
    place.filter(|place| page_cursor(order, partition, *place) == text).ok_or_else(refuse)
}

/// `GET /v1/messages`: one-way history, newest first unless asked otherwise (R1.8).
pub(crate) async fn one_way(
    State(gateway): State<Arc<Gateway>>,
    Authed(caller): Authed,
    asked: Asked<AskedHistory>,
) -> Answer<Json<Items>> {
    let asked = query(asked)?;
    let (limit, order) = (page(asked.limit)?, asked.order.unwrap_or_default());
    let (inbox, part) = whose(&gateway, &caller, asked.user.as_deref())?;
    let Some(inbox) = inbox else { return Ok(Json(Items { items: Vec::new(), next_cursor: None })) };
    let from = asked.cursor.as_deref().filter(|text| !text.is_empty());
    let from = from.map(|text| read_page_cursor(text, order, inbox.partition)).transpose()?;
    let read = gateway.parts.history.one_way(&inbox, order, from, limit).await?;
    let items = read.rows.into_iter().map(|(entry, state)| {
        let (position, prev) = (Some(entry.position), entry.prev);
        let (message, recorded_at) = (entry.message, entry.recorded_at);
        item(&Placed { message, inbox: entry.inbox, position, prev, recorded_at, seq: entry.seq, state }, part)
    });
    let next_cursor = read.next.map(|position| page_cursor(order, inbox.partition, position));
    Ok(Json(Items { items: items.collect(), next_cursor }))
}

/// From where the inbox is read.
#[derive(Debug, Deserialize)]
pub(crate) struct AskedInbox {
    device: Option<String>,
    cursor: Option<String>,
    limit: Option<usize>,
}

/// A piece of the inbox.
#[derive(Debug, Serialize)]
pub(crate) struct CaughtUp {
    items: Vec<Item>,
    /// Acknowledge up to here, and go on from here.
    cursor: Cursor,
    /// Whether everything since the given cursor follows.
    recovered: bool,
    /// Whether there is more now.
    more: bool,
}

/// `GET /v1/inbox`: catch-up without a socket. What is fetched by a device counts as handed to it.
pub(crate) async fn inbox(
    State(gateway): State<Arc<Gateway>>,
    Authed(caller): Authed,
    asked: Asked<AskedInbox>,
) -> Answer<Json<CaughtUp>> {
    let asked = query(asked)?;
    let limit = page(asked.limit)?;
    let (device, client) = (connect::device(asked.device.as_deref())?, connect::cursor(asked.cursor.as_deref())?);
    let user = user(&caller)?;
    let inboxes = gateway.inboxes(&user);
    let (lanes, recovered) = connect::places(&gateway, &user, &device, client.as_ref(), &inboxes).await?;
    let me = Me { user, device, session: schemas::SessionId(uuid::Uuid::nil()) };
    let (mut items, mut facts, mut more) = (Vec::new(), Vec::new(), false);
    let mut cursor = Cursor(lanes.iter().map(|lane| (lane.partition, lane.have)).collect());
    let now = gateway.now();
    for (inbox, lane) in inboxes.iter().zip(lanes) {
        let (mut place, mut skipping) = (lane.have, lane.skip_delivered);
        let mut on = place < lane.tail;
        // A new device passes over what the others have; everyone passes over what was withdrawn.
        while items.len() < limit && on {
            let span = catch_up::read(&gateway, inbox, place, limit).await?;
            on = !span.entries.is_empty();
            for (entry, state) in span.entries {
                if items.len() == limit {
                    break;
                }
                place = entry.position;
                skipping &= state.status().is_reached();
                if state.is_withdrawn() || skipping {
                    continue;
                }
                let (position, prev) = (Some(entry.position), entry.prev);
                let (message, recorded_at) = (entry.message, entry.recorded_at);
                let placed = Placed { message, inbox: entry.inbox, position, prev, recorded_at, seq: entry.seq, state };
                let is_own = is_own(&placed.inbox, &placed.message);
                if !is_own {
                    facts.push(fact_of(&placed, Some(&me.device), What::Sent, now.wall));
                }
                cursor.advance(inbox.partition, place);
                let part = if is_own { Part::Sender } else { Part::Recipient };
                // Whoever goes on from an item has all that this answer holds before it, in every one of its inboxes.
                items.push(Item { cursor: Some(cursor.clone()), ..item(&placed, part) });
            }
            on &= place < lane.tail;
        }
        more |= place < lane.tail;
        cursor.advance(inbox.partition, place);
    }
    // A mobile user has one inbox, and is told of it also while it is empty; of many the empty ones are left out.
    if inboxes.len() > 1 {
        cursor.0.retain(|_, place| *place > schemas::Position::START);
    }
    // What the client says it has is acknowledged as on a socket: by `POST /v1/messages/ack`, not by asking.
    std::future::poll_fn(|cx| match gateway.gather.push(&mut facts, &mut None, &me, cx) {
        true => std::task::Poll::Ready(()),
        false => std::task::Poll::Pending,
    })
    .await;
    Ok(Json(CaughtUp { items, cursor, recovered, more }))
}

/// Counts for a badge.
#[derive(Debug, Serialize)]
pub(crate) struct Counts {
    one_way: u64,
    /// Chat messages, over all conversations.
    chat: u64,
    total: u64,
}

/// `GET /v1/unread`.
pub(crate) async fn unread(State(gateway): State<Arc<Gateway>>, Authed(caller): Authed) -> Answer<Json<Counts>> {
    let user = user(&caller)?;
    let one_way = match mobile(&gateway, &caller) {
        Ok(inbox) => gateway.parts.history.unread(&inbox).await?.one_way,
        Err(_) => 0,
    };
    // Whoever may not chat is not told of it either.
    let chat = match may_chat(&caller) {
        Ok(_) => gateway.parts.history.unread_total(&user).await?,
        Err(_) => 0,
    };
    Ok(Json(Counts { one_way, chat, total: one_way + chat }))
}

/// The nodes to try.
#[derive(Debug, Serialize)]
pub(crate) struct Nodes {
    nodes: Vec<NodeLoad>,
}

/// `GET /v1/nodes`: the least loaded first.
pub(crate) async fn nodes(State(gateway): State<Arc<Gateway>>, Authed(_): Authed) -> Answer<Json<Nodes>> {
    let mut nodes = gateway.parts.presence.nodes().await?;
    nodes.sort_by_key(|node| (node.sessions.saturating_mul(1_000) / node.room.max(1), node.node.clone()));
    Ok(Json(Nodes { nodes }))
}
