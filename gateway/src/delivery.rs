//! A delivery on its way to the sessions of one user: its JSON is rendered once, by the first session that needs it, and
//! shared by the others. Only the cursor differs, which stands in the middle: of a user with many inboxes each session has
//! its own.

use std::sync::OnceLock;

use schemas::{
    ContentType, ConversationId, MessageId, Party, Priority, Reason, Ref, Sender, State, Status, Timestamp, UserId,
    message::Message,
    port::{Entry, Hint},
};
use serde::Serialize;

/// A hint, and its item as JSON.
#[derive(Debug)]
pub struct Delivery {
    hint: Hint,
    item: OnceLock<Rendered>,
}

impl Delivery {
    /// Takes a hint.
    pub fn new(hint: Hint) -> Self {
        Self { hint, item: OnceLock::new() }
    }

    /// The hint.
    pub fn hint(&self) -> &Hint {
        &self.hint
    }

    /// The item as its user is shown it.
    pub fn item(&self) -> &Rendered {
        let Hint { inbox, message, state, seq, .. } = &self.hint;
        self.item.get_or_init(|| Rendered::of(&inbox.user, message, state, *seq))
    }
}

/// Whether an entry of a user's inbox is its own: what it wrote or did itself, for its other devices. Nobody waits for an
/// answer to it, and no device's is told.
pub fn is_own(user: &UserId, message: &Message) -> bool {
    let wrote = matches!(&message.from, Sender::User(party) if *party == user.party);
    message.kind.conversation().is_some() && (wrote || *user != message.to)
}

/// An item as JSON, but for its cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    before: Box<str>,
    after: Box<str>,
}

/// [`schemas::view::Item`] as JSON up to its cursor, without copying the message first; a test holds the two together.
#[derive(Serialize)]
struct Before<'a> {
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
}

/// What follows the cursor.
#[derive(Serialize)]
struct After<'a> {
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    status_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
    #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
    client_ref: Option<&'a Ref>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    about: Option<MessageId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
}

/// `,"cursor":"` and what ends it.
const AROUND: usize = 13;

impl Rendered {
    /// A message as this user is shown it; its own with the name that it gave it.
    pub fn of(user: &UserId, message: &Message, state: &State, seq: Option<u64>) -> Self {
        let own = is_own(user, message) && matches!(&message.from, Sender::User(party) if *party == user.party);
        let before = Before {
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
        };
        let after = After {
            status: state.status(),
            status_at: state.status_at(),
            reason: state.reason(),
            client_ref: message.client_ref.as_ref().filter(|_| own),
            expires_at: message.expires_at,
            about: message.kind.about(),
            seq,
        };
        // Plain data; serialising it does not fail.
        let before = serde_json::to_string(&before).unwrap_or_default();
        let after = serde_json::to_string(&after).unwrap_or_default();
        Self {
            before: before.strip_suffix('}').unwrap_or_default().into(),
            after: after.get(1..).unwrap_or_default().into(),
        }
    }

    /// Bytes of it, without the cursor's text.
    pub fn bytes(&self) -> usize {
        self.before.len() + AROUND + self.after.len()
    }

    /// Writes it with a cursor, whose text needs no escaping.
    pub fn write(&self, cursor: &str, to: &mut String) {
        to.push_str(&self.before);
        to.push_str(r#","cursor":""#);
        to.push_str(cursor);
        to.push_str("\",");
        to.push_str(&self.after);
    }
}

/// Whether a device whose cursor lies past an entry thereby says that it has it. Not what it has said already, and not what
/// it was never shown: withdrawn entries, and those whose time had passed before any session sent them.
pub fn is_acknowledged_by_cursor(entry: &Entry, state: &State, now: Timestamp) -> bool {
    let shown = !entry.message.is_expired(now) || state.first(Status::Sent).is_some();
    shown && !state.status().is_reached() && !state.is_withdrawn() && !is_own(&entry.inbox.user, &entry.message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{message_to, mobile};
    use schemas::{Cursor, Kind, Partition, What, fact::Past, position::Position, tier::Attempt, view::Item};

    const PHONE: &str = "+962790000001";

    fn shown(user: &UserId, message: &Message, state: &State, seq: Option<u64>, cursor: &Cursor) -> String {
        let (item, mut text) = (Rendered::of(user, message, state, seq), String::new());
        item.write(&cursor.to_string(), &mut text);
        assert_eq!(text.len(), item.bytes() + cursor.to_string().len());
        text
    }

    #[test]
    fn what_is_rendered_is_what_the_api_shows() {
        let mut message = message_to(PHONE, 7);
        message.content.subject = Some("a \"title\" {}}".to_owned());
        message.expires_at = Some(Timestamp(99_000));
        message.client_ref = Some("r1".parse().unwrap());
        let mut state = State::default();
        let cursor = Cursor::at(Partition(3), Position::START.next(schemas::Epoch(1)));
        let user = mobile(PHONE);
        for what in [None, Some(What::Sent), Some(What::Failed(Reason::NoAck))] {
            if let Some(what) = what {
                state.merge(Past { at: Timestamp(5), what, round: 0, attempt: Attempt(0), device: None });
            }
            let item = Item::for_recipient(&message, &state, Some(cursor.clone()));
            assert_eq!(shown(&user, &message, &state, None, &cursor), serde_json::to_string(&item).unwrap());
        }
        let (conversation, of) = (ConversationId(uuid::Uuid::from_u128(5)), MessageId(uuid::Uuid::from_u128(6)));
        for kind in [Kind::Chat(conversation), Kind::Edit(conversation, of), Kind::Note(conversation)] {
            message.kind = kind;
            message.from = "business:sara".parse().unwrap();
            let mut item = Item::for_recipient(&message, &state, Some(cursor.clone()));
            item.seq = Some(12);
            assert_eq!(shown(&user, &message, &state, Some(12), &cursor), serde_json::to_string(&item).unwrap());
            // Its writer's other devices are told the name that it gave it.
            item.client_ref = message.client_ref.clone();
            let sara: UserId = "acme/business:sara".parse().unwrap();
            assert!(is_own(&sara, &message) && !is_own(&user, &message));
            assert_eq!(shown(&sara, &message, &state, Some(12), &cursor), serde_json::to_string(&item).unwrap());
        }
    }
}
