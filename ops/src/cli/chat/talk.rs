//! Talk: what a person is shown of a conversation, each thing once. Pure.

use std::collections::{HashMap, HashSet};

use schemas::{
    ConversationId, MessageId, Party, Ref, Sender, Status, Timestamp,
    view::{Item, StatusChange},
};
use serde_json::{Value, json};

/// What is to be shown.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Show {
    /// Nothing.
    Nothing,
    /// A line of the conversation.
    Line(String),
    /// The same for a script.
    Json(Value),
    /// A word beside it.
    Aside(String),
}

/// One of one's own messages of this run.
struct Own {
    number: usize,
    client_ref: Option<Ref>,
    status: Status,
}

/// A conversation on a screen.
pub(super) struct Talk {
    party: Party,
    conversation: ConversationId,
    json: bool,
    shown: HashSet<MessageId>,
    own: HashMap<MessageId, Own>,
    last: Option<MessageId>,
}

/// The tick of a status.
fn tick(status: Status) -> &'static str {
    match status {
        Status::Pending => "√ accepted",
        Status::Sent => "√ sent",
        Status::Delivered => "√√ delivered",
        Status::Read => "√√ read",
        Status::Failed => "× failed",
    }
}

impl Talk {
    pub(super) fn new(party: Party, conversation: ConversationId, json: bool) -> Self {
        Self { party, conversation, json, shown: HashSet::new(), own: HashMap::new(), last: None }
    }

    fn says(&self, event: &str, mut value: Value, line: impl FnOnce() -> String) -> Show {
        if !self.json {
            return Show::Line(line());
        }
        if let Some(fields) = value.as_object_mut() {
            fields.insert("event".to_owned(), json!(event));
        }
        Show::Json(value)
    }

    fn is_mine(&self, item: &Item) -> bool {
        item.from == Sender::User(self.party.clone())
    }

    /// Whether it is a message of the other side in this conversation.
    pub(super) fn is_theirs(&self, item: &Item) -> bool {
        item.conversation_id == Some(self.conversation) && item.kind == "chat" && !self.is_mine(item)
    }

    /// Something came; what was shown before is not shown again.
    pub(super) fn item(&mut self, item: &Item, is_old: bool) -> Show {
        if !self.shown.insert(item.id) || self.own.contains_key(&item.id) {
            return Show::Nothing;
        }
        if item.conversation_id != Some(self.conversation) {
            let what = if item.conversation_id.is_some() { "another conversation" } else { "a notice" };
            let text = format!("({what}, {}: {})", item.from, item.content);
            return if self.json { Show::Nothing } else { Show::Aside(text) };
        }
        let mine = self.is_mine(item);
        if mine && item.kind == "chat" {
            self.last = Some(item.id);
        }
        let value = serde_json::to_value(item).unwrap_or_default();
        self.says("message", value, || {
            let who = if mine { "you".to_owned() } else { item.from.to_string() };
            let said = match item.kind.as_str() {
                "delete" => "(took a message back)".to_owned(),
                "edit" => format!("(changed a message) {}", item.content),
                "note" => format!("({})", note(&item.content)),
                _ if item.deleted_at.is_some() => "(taken back)".to_owned(),
                _ if item.edited_at.is_some() => format!("{} (changed)", item.content),
                _ => item.content.clone(),
            };
            let tick = if mine && is_old { format!("  {}", tick(item.status)) } else { String::new() };
            format!("{} {who}: {said}{tick}", time(item.accepted_at))
        })
    }

    /// An own message came as a copy before the word of its acceptance.
    pub(super) fn knows(&mut self, id: MessageId) {
        self.shown.insert(id);
    }

    /// A line of this run was accepted.
    pub(super) fn accepted(&mut self, id: MessageId, client_ref: Ref, text: &str) -> Show {
        let number = self.own.len() + 1;
        let value = json!({ "id": id, "ref": client_ref, "number": number, "content": text });
        self.own.insert(id, Own { number, client_ref: Some(client_ref), status: Status::Pending });
        self.last = Some(id);
        self.says("accepted", value, || format!("  #{number} {}", tick(Status::Pending)))
    }

    /// A message of one's own changed; ticks of older runs are passed over, and a tick never goes back.
    pub(super) fn status(&mut self, change: &StatusChange) -> Show {
        let found = self
            .own
            .iter_mut()
            .find(|(id, own)| **id == change.id || (own.client_ref.is_some() && own.client_ref == change.client_ref));
        let Some((_, own)) = found.filter(|(_, own)| own.status < change.status) else { return Show::Nothing };
        own.status = change.status;
        let number = own.number;
        let value = serde_json::to_value(change).unwrap_or_default();
        self.says("status", value, || {
            let why = change.reason.map(|reason| format!(": {}", reason.word())).unwrap_or_default();
            format!("  #{number} {}{why}", tick(change.status))
        })
    }

    /// Whether the last line of this run stands there: `Some(false)`: it never will.
    pub(super) fn stands(&self, wanted: Status) -> Option<bool> {
        let Some(own) = self.own.values().max_by_key(|own| own.number) else { return Some(true) };
        match own.status {
            Status::Failed => Some(false),
            status if status >= wanted => Some(true),
            _ => None,
        }
    }

    /// One's last message.
    pub(super) fn last(&self) -> Option<MessageId> {
        self.last
    }

    /// The other side has read. Ticks of messages say so to people.
    pub(super) fn read(&self, conversation: ConversationId, up_to: u64, by: &Party) -> Show {
        if !self.json || conversation != self.conversation || *by == self.party {
            return Show::Nothing;
        }
        Show::Json(json!({ "event": "read", "conversation_id": conversation, "up_to": up_to, "by": by }))
    }

    /// The other side types.
    pub(super) fn typing(&self, conversation: ConversationId, by: &Party) -> Show {
        if conversation != self.conversation || *by == self.party {
            return Show::Nothing;
        }
        match self.json {
            true => Show::Json(json!({ "event": "typing", "conversation_id": conversation, "by": by })),
            false => Show::Aside(format!("({by} types)")),
        }
    }

    /// The other side came or went.
    pub(super) fn presence(&self, user: &Party, online: bool, last_seen: Option<Timestamp>) -> Show {
        match self.json {
            true => Show::Json(json!({ "event": "presence", "user": user, "online": online, "last_seen": last_seen })),
            false => Show::Aside(format!("({user} is {})", if online { "here" } else { "away" })),
        }
    }
}

/// The time of day.
fn time(at: Timestamp) -> String {
    at.to_string().get(11..19).unwrap_or_default().to_owned()
}

/// A note in words.
fn note(content: &str) -> String {
    let note: Value = serde_json::from_str(content).unwrap_or_default();
    match note["note"].as_str() {
        Some("assigned") => format!("{} answers now", note["to"].as_str().unwrap_or("somebody else")),
        Some(word) => word.to_owned(),
        None => content.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::{Content, ContentType, Kind, Message, Priority, State, UserId, status::Status as S};

    fn conversation(n: u128) -> ConversationId {
        ConversationId(uuid::Uuid::from_u128(n))
    }

    fn id(n: u128) -> MessageId {
        MessageId(uuid::Uuid::from_u128(n))
    }

    fn item(n: u128, from: &str, kind: Kind, body: &str) -> Item {
        let to: UserId = "acme/+962790000001".parse().unwrap();
        let message = Message {
            id: id(n),
            kind,
            from: from.parse().unwrap(),
            to,
            priority: Priority::High,
            content: Content { content_type: ContentType::Text, subject: None, body: body.to_owned() },
            client_ref: None,
            metadata: None,
            accepted_at: Timestamp(1_800_000_000_000),
            send_at: None,
            expires_at: None,
            broadcast: None,
            trace: None,
            fingerprint: [0; 16],
        };
        Item::for_recipient(&message, &State::default(), None)
    }

    fn talk(json: bool) -> Talk {
        Talk::new("business:sara".parse().unwrap(), conversation(1), json)
    }

    fn change(n: u128, status: Status) -> StatusChange {
        let (at, reason, client_ref, metadata) = (Timestamp(0), None, None, None);
        StatusChange { id: id(n), status, at, reason, client_ref, metadata }
    }

    #[test]
    fn everything_is_shown_once_and_by_whom() {
        let mut talk = talk(false);
        let chat = Kind::Chat(conversation(1));
        let theirs = item(1, "+962790000001", chat, "hello");
        assert!(talk.is_theirs(&theirs));
        assert_eq!(talk.item(&theirs, false), Show::Line("08:00:00 +962790000001: hello".to_owned()));
        assert_eq!(talk.item(&theirs, false), Show::Nothing);
        let mine = item(2, "business:sara", chat, "hi");
        assert_eq!(talk.item(&mine, true), Show::Line("08:00:00 you: hi  √ accepted".to_owned()));
        let note = item(3, "business:sara", Kind::Note(conversation(1)), r#"{"note":"closed"}"#);
        assert_eq!(talk.item(&note, false), Show::Line("08:00:00 you: (closed)".to_owned()));
        let elsewhere = item(4, "+962790000002", Kind::Chat(conversation(2)), "and I?");
        assert!(!talk.is_theirs(&elsewhere) && matches!(talk.item(&elsewhere, false), Show::Aside(_)));
    }

    #[test]
    fn ticks_follow_and_never_go_back() {
        let mut talk = talk(false);
        assert_eq!(talk.stands(S::Read), Some(true), "nothing is waited for");
        let own = Ref::parse("a-1").unwrap();
        assert_eq!(talk.accepted(id(1), own, "hello"), Show::Line("  #1 √ accepted".to_owned()));
        assert_eq!(talk.item(&item(1, "business:sara", Kind::Chat(conversation(1)), "hello"), false), Show::Nothing);
        assert_eq!(talk.stands(S::Delivered), None);
        assert_eq!(talk.status(&change(1, S::Delivered)), Show::Line("  #1 √√ delivered".to_owned()));
        assert_eq!(talk.status(&change(1, S::Sent)), Show::Nothing);
        assert_eq!((talk.stands(S::Delivered), talk.stands(S::Read)), (Some(true), None));
        assert_eq!(talk.status(&change(9, S::Read)), Show::Nothing, "a message of an older run");
        assert_eq!(talk.status(&change(1, S::Read)), Show::Line("  #1 √√ read".to_owned()));
        assert_eq!(talk.last(), Some(id(1)));
    }

    #[test]
    fn a_script_is_told_each_thing_as_an_object() {
        let mut talk = talk(true);
        let theirs = item(1, "+962790000001", Kind::Chat(conversation(1)), "hello");
        let Show::Json(value) = talk.item(&theirs, false) else { panic!("no object") };
        assert_eq!((value["event"].as_str(), value["content"].as_str()), (Some("message"), Some("hello")));
        talk.accepted(id(2), Ref::parse("a-1").unwrap(), "hi");
        let Show::Json(value) = talk.status(&change(2, S::Read)) else { panic!("no object") };
        assert_eq!((value["event"].as_str(), value["status"].as_str()), (Some("status"), Some("read")));
    }
}
