//! Reads and marks over HTTP, for servers and for clients without a socket. Every message that is not the caller's is
//! answered as one that does not exist (invariant 11).

pub(crate) mod cancel;
pub(crate) mod events;
pub(crate) mod lists;
pub(crate) mod marks;
pub(crate) mod message;
pub(crate) mod preferences;
#[cfg(test)]
mod tests;
pub(crate) mod threads;

use std::time::Duration;

use axum::extract::{Query, rejection::QueryRejection};
use ingest::{
    admission::may_chat,
    auth::{Caller, Who},
    chat::side_of,
    http::Refusal,
};
use schemas::{
    Code, ConversationId, Inbox, MessageId, Problem, Sender, UserId,
    conversation::Side,
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

/// Whether this is a copy of what the user wrote, or a note for the user's own devices: that it was handed to them or seen
/// says nothing of the message.
pub(crate) fn is_own(inbox: &Inbox, message: &Message) -> bool {
    crate::delivery::is_own(&inbox.user, message)
}

/// What the caller is to a message of a conversation: one of its two sides (R11.1), whoever wrote on that side.
async fn part_in(
    gateway: &Gateway,
    caller: &Caller,
    message: &Message,
    id: ConversationId,
) -> PortResult<Option<Part>> {
    if caller.tenant != message.to.tenant || may_chat(caller).is_err() {
        return Ok(None);
    }
    let row = gateway.parts.history.conversations(&[id]).await?.pop().flatten();
    let Some(side) = row.and_then(|row| side_of(caller, &row)) else { return Ok(None) };
    let from = match &message.from {
        Sender::User(party) => Some(Side::of(party)),
        Sender::Server => None,
    };
    if from == Some(Side::of(&message.to.party)) && from != Some(side) {
        // For the other devices of whoever did it.
        return Ok(None);
    }
    Ok(Some(if from == Some(side) { Part::Sender } else { Part::Recipient }))
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
        let Some(placed) = placed else { return Ok(None) };
        let part = match placed.message.kind.conversation() {
            Some(id) => part_in(gateway, caller, &placed.message, id).await?,
            None => part(caller, &placed.message),
        };
        Ok(part.map(|part| (placed, part)))
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
