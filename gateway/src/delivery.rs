//! A delivery on its way to the sessions of one user: its JSON is rendered once, by the first session that needs it, and
//! shared by the others.

use std::sync::OnceLock;

use schemas::{
    ContentType, ConversationId, Cursor, MessageId, Party, Priority, Reason, Sender, State, Status, Timestamp,
    message::Message,
    port::{Entry, Hint},
};
use serde::Serialize;

/// A hint, and its item as JSON.
#[derive(Debug)]
pub struct Delivery {
    hint: Hint,
    json: OnceLock<Box<str>>,
}

impl Delivery {
    /// Takes a hint.
    pub fn new(hint: Hint) -> Self {
        Self { hint, json: OnceLock::new() }
    }

    /// The hint.
    pub fn hint(&self) -> &Hint {
        &self.hint
    }

    /// The item as a user with one inbox is shown it.
    pub fn json(&self) -> &str {
        self.json.get_or_init(|| {
            let cursor = Cursor::at(self.hint.inbox.partition, self.hint.position);
            render(&self.hint.message, &self.hint.state, &cursor).into_boxed_str()
        })
    }
}

/// [`schemas::view::Item::for_recipient`] as JSON, without copying the message first; a test holds the two together.
#[derive(Serialize)]
struct Shown<'a> {
    id: MessageId,
    kind: &'static str,
    from: &'a Sender,
    to: &'a Party,
    #[serde(skip_serializing_if = "Option::is_none")]
    conversation_id: Option<ConversationId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    content: &'a str,
    content_type: ContentType,
    priority: Priority,
    accepted_at: Timestamp,
    cursor: &'a Cursor,
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    status_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
}

/// An item as its recipient is shown it.
pub fn render(message: &Message, state: &State, cursor: &Cursor) -> String {
    let shown = Shown {
        id: message.id,
        kind: message.kind.word(),
        from: &message.from,
        to: &message.to.party,
        conversation_id: message.kind.conversation(),
        subject: message.content.subject.as_deref(),
        content: &message.content.body,
        content_type: message.content.content_type,
        priority: message.priority,
        accepted_at: message.accepted_at,
        cursor,
        status: state.status(),
        status_at: state.status_at(),
        reason: state.reason(),
        expires_at: message.expires_at,
    };
    // Plain data; serialising it does not fail.
    serde_json::to_string(&shown).unwrap_or_default()
}

/// Whether a device whose cursor lies past an entry thereby says that it has it. Not what it has said already, and not what
/// it was never shown: withdrawn entries, and those whose time had passed before any session sent them.
pub fn is_acknowledged_by_cursor(entry: &Entry, state: &State, now: Timestamp) -> bool {
    let shown = !entry.message.is_expired(now) || state.first(Status::Sent).is_some();
    shown && !state.status().is_reached() && !state.is_withdrawn()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::message_to;
    use schemas::{Partition, What, fact::Past, position::Position, tier::Attempt, view::Item};

    #[test]
    fn what_is_rendered_is_what_the_api_shows() {
        let mut message = message_to("+962790000001", 7);
        message.content.subject = Some("a \"title\"".to_owned());
        message.expires_at = Some(Timestamp(99_000));
        let mut state = State::default();
        let cursor = Cursor::at(Partition(3), Position::START.next(schemas::Epoch(1)));
        for what in [None, Some(What::Sent), Some(What::Failed(Reason::NoAck))] {
            if let Some(what) = what {
                state.merge(Past { at: Timestamp(5), what, round: 0, attempt: Attempt(0), device: None });
            }
            let item = Item::for_recipient(&message, &state, Some(cursor.clone()));
            assert_eq!(render(&message, &state, &cursor), serde_json::to_string(&item).unwrap());
        }
    }
}
