//! Reads and marks over HTTP, for servers and for clients without a socket. Every message that is not the caller's is
//! answered as one that does not exist (invariant 11).

pub(crate) mod cancel;
pub(crate) mod events;
pub(crate) mod lists;
pub(crate) mod marks;
pub(crate) mod message;
#[cfg(test)]
mod tests;

use std::time::Duration;

use axum::extract::{Query, rejection::QueryRejection};
use ingest::{
    auth::{Caller, Who},
    http::Refusal,
};
use schemas::{
    Code, Inbox, MessageId, Problem, UserId,
    limits::{PAGE_DEFAULT, PAGE_MAX},
    message::Message,
    port::{Placed, PortResult},
};

use crate::Gateway;

/// What a handler answers.
pub(crate) type Answer<T> = Result<T, Refusal>;

/// A query that was read, or why not.
pub(crate) type Asked<T> = Result<Query<T>, QueryRejection>;

/// How long an answer waits for a message that was accepted a moment ago, and for its owner's decision (rules 9 and 14).
pub(crate) const WAIT: Duration = Duration::from_secs(1);
/// Between looks meanwhile: doubled up to a tenth of a second.
const FIRST_LOOK: Duration = Duration::from_millis(10);
const LAST_LOOK: Duration = Duration::from_millis(100);

/// What a caller is to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Sent it, or acts for the business that did.
    Sender,
    /// Receives it.
    Recipient,
}

/// What the caller is to this message; `None` where it is nothing to it.
pub(crate) fn part(caller: &Caller, message: &Message) -> Option<Part> {
    if caller.tenant != message.to.tenant {
        return None;
    }
    match &caller.who {
        Who::Server | Who::Admin => Some(Part::Sender),
        Who::Business(_) | Who::Mobile(_) => {
            let user = caller.user()?;
            if user == message.to {
                Some(Part::Recipient)
            } else {
                (caller.sender().as_ref() == Some(&message.from)).then_some(Part::Sender)
            }
        }
    }
}

/// Finds a message that the caller may see, waiting a moment for one that is not recorded yet. What is another's is waited
/// for just as long, so that the time tells nothing either.
pub(crate) async fn find(gateway: &Gateway, caller: &Caller, id: &str) -> Result<(Placed, Part), Problem> {
    let id: MessageId = id.parse().map_err(|_| Problem::new(Code::NotFound, "a message's id is a UUID").at("id"))?;
    let found = look(WAIT, || async move {
        let placed = gateway.parts.history.messages(&[id]).await?.into_iter().next().flatten();
        Ok(placed.and_then(|placed| part(caller, &placed.message).map(|part| (placed, part))))
    });
    found.await?.ok_or_else(|| {
        let detail = "no message of yours has this id, or it was accepted a moment ago: ask again shortly";
        Problem::new(Code::NotRecordedOrUnknown, detail).retry_after_ms(1_000)
    })
}

/// Looks again and again until there is something, at most for `wait`.
pub(crate) async fn look<T, F>(wait: Duration, mut at: impl FnMut() -> F) -> PortResult<Option<T>>
where
    F: Future<Output = PortResult<Option<T>>>,
{
    let mut pause = FIRST_LOOK;
    let looking = async {
        loop {
            if let Some(found) = at().await? {
                return Ok(found);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_LOOK);
        }
    };
    tokio::time::timeout(wait, looking).await.ok().transpose()
}

/// Reads a query.
pub(crate) fn query<T>(asked: Asked<T>) -> Result<T, Problem> {
    asked.map(|Query(asked)| asked).map_err(|why| Problem::new(Code::InvalidQuery, why.body_text()))
}

/// How many rows a page has.
pub(crate) fn page(limit: Option<usize>) -> Result<usize, Problem> {
    match limit {
        None => Ok(PAGE_DEFAULT),
        Some(limit) if (1..=PAGE_MAX).contains(&limit) => Ok(limit),
        Some(_) => Err(Problem::new(Code::InvalidQuery, format!("`limit` must be 1 to {PAGE_MAX}")).at("limit")),
    }
}

/// The caller as a user with an inbox.
pub(crate) fn user(caller: &Caller) -> Result<UserId, Problem> {
    caller.user().ok_or_else(|| Problem::new(Code::Forbidden, "only users have an inbox: use a user's token"))
}

/// The caller as a mobile user, with the one inbox it has.
pub(crate) fn mobile(gateway: &Gateway, caller: &Caller) -> Result<Inbox, Problem> {
    let refuse = || Problem::new(Code::Forbidden, "this is for mobile users: use a mobile user's token");
    if !matches!(caller.who, Who::Mobile(_)) {
        return Err(refuse());
    }
    gateway.inboxes(&user(caller)?).into_iter().next().ok_or_else(refuse)
}
