//! What a sender asks for, and the one step that makes it a [`Message`] or a refusal.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    conversation::Pair,
    ids::{BadName, BroadcastId, Key, MessageId, Ref, Sender, Tenant, UserId},
    json::Json,
    limits::MessageLimits,
    message::{Content, ContentType, Kind, Message, Priority},
    phone::{BadPhone, Phone},
    problem::{Code, Problem},
    time::Timestamp,
};

/// A one-way message as its sender writes it: `to` is one number (`POST /v1/messages`, an item of a batch), or a list of
/// numbers (`POST /v1/broadcasts`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Draft<To = String> {
    /// The recipient or recipients, E.164.
    pub to: To,
    /// A title.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// A string where `content_type` is `text`; any JSON value where it is `json`.
    pub content: Json,
    /// `text` (default) or `json`.
    #[serde(default)]
    pub content_type: ContentType,
    /// `high`, `normal` or `low`; the route decides the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// The idempotency key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The sender's own name for it.
    #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
    pub client_ref: Option<String>,
    /// The sender's own data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Json>,
    /// Not before this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_at: Option<Timestamp>,
    /// Not after this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// Check everything, send nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// What the door knows and a draft does not.
#[derive(Clone, Copy)]
pub struct Admission<'a> {
    /// Whose message it is.
    pub tenant: &'a Tenant,
    /// Who sends it.
    pub from: &'a Sender,
    /// The key from the header, where the body names none.
    pub header_key: Option<&'a str>,
    /// The broadcast it is one of: names the message instead of a key.
    pub broadcast: Option<BroadcastId>,
    /// The trace it belongs to.
    pub trace: Option<&'a str>,
    /// Its lane where the draft names none.
    pub default_priority: Priority,
    /// Now.
    pub now: Timestamp,
    /// The bounds.
    pub limits: &'a MessageLimits,
    /// Checks a phone number ([`Phone::parse`], or one that remembers its answers).
    pub phone: &'a dyn Fn(&str) -> Result<Phone, BadPhone>,
    /// Removes tags from text; `None` where nothing is to be removed, so that such text arrives byte for byte (rule 17).
    pub clean: &'a dyn Fn(&str) -> Option<String>,
}

impl Draft<String> {
    /// Reads a draft from JSON. Any bytes give a draft or a refusal that says what was wrong.
    pub fn parse(json: &[u8]) -> Result<Self, Problem> {
        parse_json(json)
    }

    /// Checks everything about it, and names the message.
    pub fn admit(&self, at: &Admission<'_>) -> Result<Message, Problem> {
        let phone = (at.phone)(&self.to).map_err(|why| {
            Problem::new(Code::InvalidPhone, format!("`to` {why}; for example +962790000001")).at("/to")
        })?;
        self.shared(at)?.for_recipient(at, UserId::mobile(at.tenant.clone(), phone))
    }
}

impl Draft<Vec<String>> {
    /// Reads a broadcast's draft from JSON.
    pub fn parse(json: &[u8]) -> Result<Self, Problem> {
        parse_json(json)
    }
}

fn parse_json<T: serde::de::DeserializeOwned>(json: &[u8]) -> Result<T, Problem> {
    // Serde would also read a struct from an array of its fields; nobody is served by that.
    if json.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'[') {
        return Err(Problem::new(Code::InvalidJson, "a JSON object is expected here, not an array"));
    }
    serde_json::from_slice(json).map_err(|why| {
        let code = if why.is_data() { Code::InvalidField } else { Code::InvalidJson };
        Problem::new(code, why.to_string())
    })
}

/// A chat message as its writer gives it: the body of `POST /v1/conversations/{id}/messages`, and of an edit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChatDraft {
    /// A string where `content_type` is `text`; any JSON value where it is `json`.
    pub content: Json,
    /// `text` (default) or `json`.
    #[serde(default)]
    pub content_type: ContentType,
    /// The idempotency key, if it is not the `ref`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The writer's own name for it; repeats of it are one message.
    #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
    pub client_ref: Option<String>,
}

impl ChatDraft {
    /// Reads one from JSON.
    pub fn parse(json: &[u8]) -> Result<Self, Problem> {
        parse_json(json)
    }

    /// Checks everything about it.
    pub fn shared(&self, at: &Admission<'_>) -> Result<Shared, Problem> {
        let Self { content, content_type, key, client_ref } = self.clone();
        let (subject, priority, metadata, send_at, expires_at) = (None, None, None, None, None);
        let (to, dry_run) = ((), false);
        Draft { to, subject, content, content_type, priority, key, client_ref, metadata, send_at, expires_at, dry_run }
            .shared(at)
    }
}

/// Reads any other body of a request: bytes give a value or a refusal that says what was wrong.
pub fn parse_body<T: serde::de::DeserializeOwned>(json: &[u8]) -> Result<T, Problem> {
    parse_json(json)
}

/// What all recipients of one draft share, checked once.
#[derive(Debug, Clone, PartialEq)]
pub struct Shared {
    content: Content,
    priority: Priority,
    key: Option<Key>,
    client_ref: Option<Ref>,
    metadata: Option<Json>,
    send_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    fingerprint: [u8; 16],
}

impl<To> Draft<To> {
    /// Checks everything but the recipient.
    pub fn shared(&self, at: &Admission<'_>) -> Result<Shared, Problem> {
        let limits = at.limits;
        let key =
            self.key.as_deref().or(at.header_key).map(Key::parse).transpose().map_err(|why| field("/key", &why))?;
        let client_ref = self.client_ref.as_deref().map(Ref::parse).transpose().map_err(|why| field("/ref", &why))?;
        let content = self.checked_content(at)?;
        if let Some(metadata) = &self.metadata
            && metadata.as_str().len() > limits.metadata_bytes
        {
            let (len, max) = (metadata.as_str().len(), limits.metadata_bytes);
            return Err(Problem::new(Code::InvalidField, format!("`metadata` has {len} bytes, the most is {max}"))
                .at("/metadata"));
        }
        self.check_times(at)?;
        let priority = self.priority.unwrap_or(at.default_priority);
        let mut hash = Sha256::new();
        let told =
            (&content, priority, client_ref.as_ref(), self.metadata.as_ref(), self.send_at, self.expires_at, at.from);
        hash.update(crate::codec::encode(&told));
        let mut fingerprint = [0; 16];
        fingerprint.copy_from_slice(&hash.finalize()[..16]);
        Ok(Shared {
            content,
            priority,
            key,
            client_ref,
            metadata: self.metadata.clone(),
            send_at: self.send_at.filter(|t| *t > at.now),
            expires_at: self.expires_at,
            fingerprint,
        })
    }

    fn checked_content(&self, at: &Admission<'_>) -> Result<Content, Problem> {
        let refuse = |detail: String| Problem::new(Code::InvalidContent, detail).at("/content");
        let raw = self.content.as_str();
        // Before anything is done with it: cleaning costs more than counting.
        if raw.len() > at.limits.content_bytes {
            let (len, max) = (raw.len(), at.limits.content_bytes);
            return Err(refuse(format!("`content` takes {len} bytes as JSON, the most is {max}")));
        }
        let body = match self.content_type {
            ContentType::Json => raw.to_owned(),
            ContentType::Text => {
                let text: String = serde_json::from_str(raw)
                    .map_err(|_| refuse("`content` must be a string while `content_type` is `text`".to_owned()))?;
                (at.clean)(&text).unwrap_or(text)
            }
        };
        let (chars, max) = (body.chars().count(), at.limits.content_chars);
        if chars == 0 || body.trim().is_empty() {
            return Err(refuse("`content` is empty".to_owned()));
        }
        if chars > max {
            return Err(refuse(format!("`content` has {chars} characters, the most is {max}")));
        }
        let subject = self.subject.as_deref().map(|text| (at.clean)(text).unwrap_or_else(|| text.to_owned()));
        if let Some(chars) = subject.as_ref().map(|s| s.chars().count())
            && chars > at.limits.subject_chars
        {
            let detail = format!("`subject` has {chars} characters, the most is {}", at.limits.subject_chars);
            return Err(Problem::new(Code::InvalidField, detail).at("/subject"));
        }
        Ok(Content { content_type: self.content_type, subject: subject.filter(|s| !s.is_empty()), body })
    }

    fn check_times(&self, at: &Admission<'_>) -> Result<(), Problem> {
        let refuse = |name: &str, detail: String| Err(Problem::new(Code::InvalidField, detail).at(name));
        let ahead = at.now.plus_ms(at.limits.send_at_ahead_ms);
        if self.send_at.is_some_and(|t| t > ahead) {
            return refuse("/send_at", format!("`send_at` must not be later than {ahead}"));
        }
        if let Some(expires) = self.expires_at {
            let first = self.send_at.unwrap_or(at.now).max(at.now);
            if expires <= first {
                return refuse("/expires_at", format!("`expires_at` must be later than {first}"));
            }
        }
        Ok(())
    }
}

impl Shared {
    /// The idempotency key the draft gave.
    pub fn key(&self) -> Option<&Key> {
        self.key.as_ref()
    }

    /// The lane it goes to.
    pub fn priority(&self) -> Priority {
        self.priority
    }

    /// What it says.
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// The message that it is in a conversation. Its name is the key, else the `ref`, as its writer's own in this
    /// conversation; so a repeat is one message (P8).
    pub fn said(&self, at: &Admission<'_>, pair: &Pair, to: UserId) -> Message {
        let name = self.key.as_ref().map(Key::as_str).or(self.client_ref.as_ref().map(Ref::as_str));
        let id = name.map_or_else(|| MessageId::fresh(at.now), |name| pair.name(at.from, name));
        Message { id, kind: Kind::Chat(pair.id()), ..self.message(at, id, to) }
    }

    /// The message of one recipient.
    pub fn for_recipient(&self, at: &Admission<'_>, to: UserId) -> Result<Message, Problem> {
        let id = match (at.broadcast, &self.key) {
            (Some(broadcast), _) => MessageId::of_broadcast(broadcast, &to),
            (None, Some(key)) => MessageId::of_key(at.tenant, "", key.as_str(), &to),
            (None, None) => MessageId::fresh(at.now),
        };
        Ok(self.message(at, id, to))
    }

    fn message(&self, at: &Admission<'_>, id: MessageId, to: UserId) -> Message {
        Message {
            id,
            kind: Kind::OneWay,
            from: at.from.clone(),
            to,
            priority: self.priority,
            content: self.content.clone(),
            client_ref: self.client_ref.clone(),
            metadata: self.metadata.clone(),
            accepted_at: at.now,
            send_at: self.send_at,
            expires_at: self.expires_at,
            broadcast: at.broadcast,
            trace: at.trace.map(str::to_owned),
            fingerprint: self.fingerprint,
        }
    }
}

fn field(pointer: &str, why: &BadName) -> Problem {
    Problem::new(Code::InvalidField, format!("`{}` {}", why.what, why.rule)).at(pointer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn admit(json: &str) -> Result<Message, Problem> {
        let tenant = Tenant::parse("acme").unwrap();
        let limits = MessageLimits::default();
        let clean = |text: &str| text.contains('<').then(|| text.replace('<', ""));
        let at = Admission {
            tenant: &tenant,
            from: &Sender::Server,
            header_key: None,
            broadcast: None,
            trace: None,
            default_priority: Priority::Normal,
            now: Timestamp(1_000_000),
            limits: &limits,
            phone: &Phone::parse,
            clean: &clean,
        };
        Draft::<String>::parse(json.as_bytes())?.admit(&at)
    }

    #[test]
    fn a_plain_message_is_taken_as_it_is() {
        let message = admit(r#"{"to":"+962790000001","content":"a & b","ref":"r","metadata":{"a": 1}}"#).unwrap();
        assert_eq!((message.content.body.as_str(), message.priority), ("a & b", Priority::Normal));
        assert_eq!(message.metadata.unwrap().as_str(), r#"{"a": 1}"#);
    }

    #[test]
    fn each_wrong_field_is_named_with_its_bound() {
        let long = format!(r#"{{"to":"+962790000001","content":"{}"}}"#, "x".repeat(10_001));
        let table: &[(&str, Code, &str)] = &[
            ("", Code::InvalidJson, "EOF"),
            ("[]", Code::InvalidJson, "not an array"),
            ("{}", Code::InvalidField, "missing field `to`"),
            (r#"{"to":"+962790000001"}"#, Code::InvalidField, "content"),
            (r#"{"to":"0790000001","content":"x"}"#, Code::InvalidPhone, "`to` must be E.164"),
            (r#"{"to":"+962790000001","content":""}"#, Code::InvalidContent, "empty"),
            (r#"{"to":"+962790000001","content":5}"#, Code::InvalidContent, "must be a string"),
            (r#"{"to":"+962790000001","content":"x","colour":1}"#, Code::InvalidField, "colour"),
            (r#"{"to":"+962790000001","content":"x","priority":"urgent"}"#, Code::InvalidField, "urgent"),
            (r#"{"to":"+962790000001","content":"x","key":""}"#, Code::InvalidField, "`key` must be"),
            (
                r#"{"to":"+962790000001","content":"x","expires_at":"1970-01-01T00:00:01Z"}"#,
                Code::InvalidField,
                "later than",
            ),
            (
                r#"{"to":"+962790000001","content":"x","send_at":"2999-01-01T00:00:01Z"}"#,
                Code::InvalidField,
                "`send_at`",
            ),
            (&long, Code::InvalidContent, "10001 characters, the most is 10000"),
        ];
        for (json, code, part) in table {
            let problem = admit(json).unwrap_err();
            assert_eq!(problem.code, *code, "{json}: {problem}");
            assert!(problem.detail.contains(part), "{json}: {problem}");
        }
    }

    #[test]
    fn the_same_key_with_another_body_has_another_fingerprint() {
        let one = admit(r#"{"to":"+962790000001","content":"x","key":"k"}"#).unwrap();
        let same = admit(r#"{"key":"k","content":"x","to":"+962790000001"}"#).unwrap();
        let other = admit(r#"{"to":"+962790000001","content":"y","key":"k"}"#).unwrap();
        assert_eq!((one.id, one.fingerprint), (same.id, same.fingerprint));
        assert_eq!(one.id, other.id);
        assert_ne!(one.fingerprint, other.fingerprint);
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_or_refused_and_what_is_taken_round_trips(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Draft::<String>::parse(&bytes);
            let _ = crate::codec::decode::<Message>(&bytes);
        }

        #[test]
        fn p1_p12_a_one_way_message_has_no_conversation_and_no_reply(content in "[a-z <>&\"\\\\]{1,60}", n in 0u32..9_999_999) {
            let json = serde_json::json!({ "to": format!("+96279{n:07}"), "content": content }).to_string();
            if let Ok(message) = admit(&json) {
                prop_assert!(message.kind.conversation().is_none() && !message.kind.may_be_replied_to());
                let bytes = crate::codec::encode(&message);
                prop_assert_eq!(crate::codec::decode::<Message>(&bytes).unwrap(), message);
            }
        }
    }
}
