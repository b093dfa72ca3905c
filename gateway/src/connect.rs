//! A connection comes: who it is, which device, whether there is room, and from where it goes on. The session is registered
//! before its inbox is read (rule 5), and everything that can be refused is refused before the upgrade, with a problem.

use std::sync::{Arc, atomic::Ordering};

use axum::{
    extract::{
        Query, State,
        rejection::QueryRejection,
        ws::{WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    response::{IntoResponse, Response},
};
use http::{HeaderMap, header};
use ingest::{
    auth::{Caller, bearer},
    http::Refusal,
};
use schemas::{
    Code, Cursor, DeviceId, Inbox, Position, Problem, SessionId, UserId,
    frame::SUBPROTOCOL,
    port::{PortResult, Tail},
};
use serde::Deserialize;
use tokio::sync::OwnedMutexGuard;

use crate::{
    Gateway,
    registry::{Handle, NoRoom, Order},
    session::{Effects, LaneStart, Me, Session, Start},
    socket::{self, Pump},
};

/// What the address names.
#[derive(Deserialize)]
pub(crate) struct Asked {
    device: Option<String>,
    cursor: Option<String>,
    access_token: Option<String>,
}

/// A session's place in the registry and in presence; given up when it is dropped.
pub(crate) struct Hold {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) handle: Arc<Handle>,
    /// Who it is by its present token.
    pub(crate) caller: Arc<Caller>,
    left: bool,
}

impl Hold {
    /// Gives the place up: what comes for the session now is answered `Absent`.
    pub(crate) fn leave(&mut self) {
        if !std::mem::replace(&mut self.left, true) {
            let me = &self.handle.me;
            let (now, away_ms) = (self.gateway.now(), self.gateway.parts.limits.chat.away_ms);
            self.gateway.registry.remove(&self.handle);
            self.gateway.has_left(me);
            self.gateway.herald.left(&me.user, now.wall, now.mono.plus(away_ms));
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.leave();
        self.gateway.held.fetch_sub(1, Ordering::AcqRel);
        self.gateway.left.notify_one();
    }
}

/// `GET /v1/ws`.
pub(crate) async fn connect(
    State(gateway): State<Arc<Gateway>>,
    headers: HeaderMap,
    asked: Result<Query<Asked>, QueryRejection>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    // The steps are rare beside what follows them: they are not part of the connection's own future.
    match Box::pin(admit(&gateway, &headers, asked)).await {
        Ok((hold, start)) => match upgrade {
            Ok(upgrade) => {
                let upgrade = socket::settings(upgrade, &gateway.parts.limits.socket).protocols([SUBPROTOCOL]);
                upgrade.on_upgrade(move |socket| async move {
                    let mut fx = Effects::default();
                    let session = Session::open(start, hold.gateway.now(), &mut fx);
                    // A task of its own: the one that made the upgrade carries what only the upgrade needed.
                    tokio::spawn(Pump::new(socket, hold, session, fx));
                })
            }
            Err(why) => Refusal(Problem::new(Code::InvalidHeader, format!("a WebSocket is expected here: {why}")))
                .into_response(),
        },
        Err(problem) => Refusal(problem).into_response(),
    }
}

async fn admit(
    gateway: &Arc<Gateway>,
    headers: &HeaderMap,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<(Hold, Start), Problem> {
    let Query(asked) = asked.map_err(|why| Problem::new(Code::InvalidQuery, why.to_string()))?;
    check_open(gateway)?;
    check_origin(headers, &gateway.parts.origins)?;
    let token = bearer(headers).or(asked.access_token.as_deref()).ok_or_else(|| {
        let how = "send `Authorization: Bearer TOKEN`, or `access_token=TOKEN` in the address";
        Problem::new(Code::Unauthenticated, how).at("Authorization")
    })?;
    let caller = gateway.parts.auth.verify(token)?;
    let user = caller.user().ok_or_else(|| {
        Problem::new(Code::Forbidden, "only users connect: a mobile user's or a business user's token is needed")
    })?;
    let device = device(asked.device.as_deref())?;
    let cursor = cursor(asked.cursor.as_deref())?;
    let session = SessionId(uuid::Uuid::new_v4());
    // Who goes while it waits for its turn has asked for nothing yet.
    let turn = device.as_str().bytes().fold(0usize, |sum, b| sum.wrapping_mul(31).wrapping_add(usize::from(b)));
    let turn = gateway.turns[turn % gateway.turns.len()].clone().lock_owned().await;
    check_open(gateway)?;
    // A task of its own: once presence has this session the older one is told, also where the client has gone meanwhile.
    let me = Arc::new(Me { user, device, session });
    let registered = tokio::spawn(register(gateway.clone(), me, caller, turn)).await;
    let hold = registered.map_err(|_| Problem::new(Code::Internal, "the session could not be registered"))??;
    let start = start(gateway, &hold, cursor).await?;
    gateway.herald.came(&hold.handle.me.user);
    Ok((hold, start))
}

/// Whether anybody is let in.
fn check_open(gateway: &Gateway) -> Result<(), Problem> {
    if gateway.draining.load(Ordering::Acquire) {
        return Err(Problem::new(Code::Draining, "this node takes no new connections").retry_after_ms(1_000));
    }
    Ok(())
}

/// Reads the name of a device.
pub(crate) fn device(text: Option<&str>) -> Result<DeviceId, Problem> {
    let refuse = |detail: String| Problem::new(Code::InvalidQuery, detail).at("device");
    let text = text.ok_or_else(|| refuse("`device` must name this device: its cursor is kept under it".to_owned()))?;
    DeviceId::parse(text).map_err(|why| refuse(format!("`{}` {}", why.what, why.rule)))
}

/// Reads an inbox cursor.
pub(crate) fn cursor(text: Option<&str>) -> Result<Option<Cursor>, Problem> {
    let parsed = text.filter(|text| !text.is_empty()).map(str::parse::<Cursor>).transpose();
    parsed.map_err(|why| Problem::new(Code::InvalidCursor, why.to_string()).at("cursor"))
}

/// A browser says which page connects; that page must be one of ours. Others say nothing and are not asked.
fn check_origin(headers: &HeaderMap, origins: &[String]) -> Result<(), Problem> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or_default();
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let own = origin.split_once("://").map(|(_, host)| host);
    let fine = origins.iter().any(|allowed| allowed == "*" || allowed.trim_end_matches('/') == origin);
    if fine || (own.is_some() && own == host) {
        return Ok(());
    }
    Err(Problem::new(Code::ForbiddenOrigin, "this page's origin is not among the configured `origins`").at("Origin"))
}

/// Registers a session here and in presence, while it is its device's turn.
async fn register(
    gateway: Arc<Gateway>,
    me: Arc<Me>,
    caller: Arc<Caller>,
    turn: OwnedMutexGuard<()>,
) -> Result<Hold, Problem> {
    let parts = &gateway.parts;
    let handle = Arc::new(Handle::new(me.clone()));
    let older = match gateway.registry.insert(&handle) {
        Ok(older) => older,
        Err(why) => return Err(no_room(&gateway, why).await),
    };
    gateway.held.fetch_add(1, Ordering::AcqRel);
    let hold = Hold { gateway: gateway.clone(), handle, caller, left: false };
    let taken = parts.presence.register(&me.user, &parts.node, &me.device, me.session).await?;
    if let Some(older) = &older {
        older.order(Order::Supersede);
    }
    drop(turn);
    let elsewhere = taken.replaced.filter(|place| older.is_none_or(|older| older.me.session != place.session));
    if let Some(place) = elsewhere.filter(|place| place.session != me.session)
        && let Err(why) = parts.backplane.supersede(&place.node, &me.user, place.session).await
    {
        // The older session lapses in presence; its socket ends by its own deadlines.
        tracing::debug!(user = ?me.user, %why, "the device's older session was not told");
    }
    Ok(hold)
}

async fn no_room(gateway: &Gateway, why: NoRoom) -> Problem {
    let socket = &gateway.parts.limits.socket;
    match why {
        NoRoom::User => {
            let detail = format!("this user has {} devices connected, which is the most", socket.sessions_per_user);
            Problem::new(Code::QuotaExceeded, detail).retry_after_ms(30_000)
        }
        NoRoom::Node => {
            let nodes = gateway.parts.presence.nodes().await.unwrap_or_default();
            let other = nodes.iter().filter(|n| n.node != gateway.parts.node && n.sessions < n.room);
            let other = other.min_by_key(|n| n.sessions).map_or(String::new(), |n| format!("; try {}", n.address));
            let detail = format!("this node holds {} sessions, which is the most{other}", socket.sessions);
            Problem::new(Code::Overloaded, detail).retry_after_ms(5_000)
        }
    }
}

/// From where the session goes on, in each of the user's inboxes.
async fn start(gateway: &Arc<Gateway>, hold: &Hold, client: Option<Cursor>) -> Result<Start, Problem> {
    let me = hold.handle.me.clone();
    // A business user's many inboxes are looked at together.
    let inboxes = gateway.inboxes(&me.user);
    let (lanes, recovered) = places(gateway, &me.user, &me.device, client.as_ref(), &inboxes).await?;
    let (token_ends, limits) = (gateway.token_ends(&hold.caller), gateway.parts.limits.clone());
    Ok(Start { me, lanes, recovered, token_ends, limits })
}

/// The client's own cursor counts; without one the device's stored one; a new device starts after what the user's other
/// devices acknowledged, and passes over what else was delivered already.
fn choose(
    device: &DeviceId,
    cursors: &[(DeviceId, Cursor)],
    client: Option<&Cursor>,
    inbox: &Inbox,
    tail: Tail,
) -> LaneStart {
    let partition = inbox.partition;
    let stored = cursors.iter().find(|(d, _)| d == device).map(|(_, cursor)| cursor.position(partition));
    let others = cursors.iter().map(|(_, cursor)| cursor.position(partition)).max().unwrap_or(Position::START);
    let (have, stored, skip_delivered) = match (client, stored) {
        (Some(client), stored) => (client.position(partition), stored.unwrap_or(others), false),
        (None, Some(stored)) => (stored, stored, false),
        (None, None) => (others, others, true),
    };
    LaneStart { partition, have, stored, tail: tail.position, skip_delivered }
}

/// Holds a place against the inbox as it is; says whether everything since it follows.
async fn begin(gateway: &Gateway, mut lane: LaneStart, inbox: &Inbox, tail: Tail) -> PortResult<(LaneStart, bool)> {
    let mut recovered = true;
    if lane.have > tail.position {
        // Not from this inbox as it is now: the data was restored from an older copy, or the cursor is made up.
        recovered = false;
        lane.have = lane.stored.min(tail.position);
    }
    if tail.position > lane.have {
        recovered &= passed(gateway, inbox, tail, &mut lane).await?;
    }
    lane.stored = lane.stored.min(lane.have);
    Ok((lane, recovered))
}

/// Whether retention left everything after the client's place; else moves the place to where there is something again.
async fn passed(gateway: &Gateway, inbox: &Inbox, tail: Tail, lane: &mut LaneStart) -> PortResult<bool> {
    let next = gateway.parts.history.read(inbox, lane.have, 1).await?;
    if next.passed_by_retention {
        lane.have = next.entries.first().map_or(tail.position, |(entry, _)| entry.prev);
        lane.stored = lane.have;
    }
    Ok(!next.passed_by_retention)
}

/// From where a device without a socket goes on in each of its user's inboxes (`GET /v1/inbox`): the same choice.
pub(crate) async fn places(
    gateway: &Gateway,
    user: &UserId,
    device: &DeviceId,
    client: Option<&Cursor>,
    inboxes: &[Inbox],
) -> PortResult<(Vec<LaneStart>, bool)> {
    let cursors = gateway.parts.history.cursors(user).await?;
    let tails = gateway.parts.history.tails(inboxes).await?;
    let begin = inboxes
        .iter()
        .zip(tails)
        .map(async |(inbox, tail)| begin(gateway, choose(device, &cursors, client, inbox, tail), inbox, tail).await);
    let begun = futures::future::try_join_all(begin).await?;
    let recovered = begun.iter().all(|(_, recovered)| *recovered);
    Ok((begun.into_iter().map(|(lane, _)| lane).collect(), recovered))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_other_origins_may_not_connect() {
        let headers = |pairs: &[(header::HeaderName, &'static str)]| -> HeaderMap {
            pairs.iter().map(|(name, value)| (name.clone(), http::HeaderValue::from_static(value))).collect()
        };
        type Row<'a> = (&'a [(header::HeaderName, &'static str)], &'a [&'a str], bool);
        let table: [Row<'_>; 6] = [
            (&[], &[], true),
            (&[(header::ORIGIN, "https://a.example"), (header::HOST, "a.example")], &[], true),
            (&[(header::ORIGIN, "https://evil.example"), (header::HOST, "a.example")], &[], false),
            (&[(header::ORIGIN, "https://app.example")], &["https://app.example"], true),
            (&[(header::ORIGIN, "https://app.example.evil")], &["https://app.example"], false),
            (&[(header::ORIGIN, "null")], &["*"], true),
        ];
        for (pairs, origins, fine) in table {
            let origins: Vec<String> = origins.iter().map(|o| (*o).to_owned()).collect();
            assert_eq!(check_origin(&headers(pairs), &origins).is_ok(), fine, "{pairs:?} {origins:?}");
        }
    }
}
