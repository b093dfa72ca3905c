//! Refusals: one table of every way the edge says no (RFC 9457). Each has a page of the same name in `docs/problems`.

use std::fmt;

use serde::{Deserialize, Serialize, ser::SerializeMap};

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $slug:literal, $status:literal, $title:literal;)*) => {
        /// Why something was refused. The slug is the stable identity; titles may be reworded.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The stable name: the last part of `type`, and the name of the page that explains it.
            pub fn slug(self) -> &'static str {
                match self { $(Self::$name => $slug,)* }
            }

            /// The HTTP status.
            pub fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            /// What it means, in a few words.
            pub fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }

            /// Finds a code by its slug.
            pub fn parse(slug: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|code| code.slug() == slug)
            }
        }
    };
}

codes! {
    /// The body is not JSON, or not of the shape asked for.
    InvalidJson = "invalid-json", 400, "The body is not the JSON expected here";
    /// A field is missing, unknown, or outside its bounds.
    InvalidField = "invalid-field", 422, "A field is missing, unknown or out of bounds";
    /// Not a phone number that can exist.
    InvalidPhone = "invalid-phone", 422, "The recipient is not a valid E.164 phone number";
    /// The content is empty, too long, or not what its type says.
    InvalidContent = "invalid-content", 422, "The content is empty, too long or not what its type says";
    /// A query parameter cannot be used.
    InvalidQuery = "invalid-query", 400, "A query parameter cannot be used";
    /// A header cannot be used.
    InvalidHeader = "invalid-header", 400, "A header cannot be used";
    /// The cursor is not one of this list.
    InvalidCursor = "invalid-cursor", 400, "The cursor does not belong to this list";
    /// What the cursor points at is past its retention.
    CursorExpired = "cursor-expired", 410, "What the cursor points at is no longer kept";
    /// The key came before with another body.
    IdempotencyConflict = "idempotency-conflict", 422, "This key was used before with another body";
    /// The body is larger than allowed.
    TooLarge = "too-large", 413, "The request is larger than allowed";
    /// The media type is not one this route reads.
    UnsupportedMediaType = "unsupported-media-type", 415, "This route does not read that media type";
    /// No token, or one that is not valid.
    Unauthenticated = "unauthenticated", 401, "A valid token or API key is needed";
    /// The token has ended.
    TokenExpired = "token-expired", 401, "The token has ended";
    /// The token may not do this.
    Forbidden = "forbidden", 403, "The token does not permit this";
    /// The page's origin is not allowed.
    ForbiddenOrigin = "forbidden-origin", 403, "Connections from this origin are not allowed";
    /// One-way is one-way.
    NoReply = "no-reply", 403, "A one-way message cannot be replied to";
    /// No such thing, or not yours.
    NotFound = "not-found", 404, "There is no such thing here";
    /// No such message, or one accepted a moment ago and not yet recorded.
    NotRecordedOrUnknown = "not-recorded-or-unknown", 404, "No such message, or it is not recorded yet";
    /// The route exists and not for this method.
    MethodNotAllowed = "method-not-allowed", 405, "This route does not take that method";
    /// The recipient is not known, and the tenant takes only known ones.
    UnknownRecipient = "unknown-recipient", 422, "The recipient is not known to this business";
    /// Already handed over: it cannot be taken back.
    TooLate = "too-late", 409, "The message has gone out already";
    /// Nobody writes in a closed conversation.
    ConversationClosed = "conversation-closed", 409, "The conversation is closed";
    /// The mobile user has blocked the business.
    Blocked = "blocked", 403, "The mobile user has blocked this conversation";
    /// Somebody else answers for the business now.
    AssignedElsewhere = "assigned-elsewhere", 409, "The conversation is assigned to somebody else";
    /// Chat is for verified mobile users.
    NotVerified = "not-verified", 403, "The mobile user is not verified";
    /// Only one's own messages can be edited or deleted.
    NotYourMessage = "not-your-message", 403, "The message is somebody else's";
    /// Editing and deleting end some time after the message.
    EditTooLate = "edit-too-late", 409, "The time in which the message could be changed is over";
    /// A deleted message stays deleted.
    MessageDeleted = "message-deleted", 409, "The message is deleted";
    /// A message is edited only so often.
    TooManyEdits = "too-many-edits", 409, "The message was edited as often as it may be";
    /// A mark beyond the end of the conversation.
    ReadBeyondEnd = "read-beyond-end", 422, "The mark is beyond the end of the conversation";
    /// More than the session was sent.
    AckBeyondSent = "ack-beyond-sent", 409, "The acknowledgement is beyond what was sent";
    /// A quota is used up.
    QuotaExceeded = "quota-exceeded", 429, "A quota is used up";
    /// Many messages wait in this lane.
    LaneSlow = "lane-slow", 429, "Many messages wait: slow down";
    /// Too many messages wait in this lane.
    LaneFull = "lane-full", 503, "Too many messages wait: come back later";
    /// Too much at once.
    Overloaded = "overloaded", 503, "Too much at once: come back later";
    /// What this needs is away.
    Unavailable = "unavailable", 503, "A part this needs is away: try again";
    /// It may or may not have happened.
    Unknown = "unknown-outcome", 503, "It may or may not have happened: repeat it with the same key";
    /// Shutting down.
    Draining = "draining", 503, "This node is going away: use another or come back";
    /// No room to keep more.
    DiskFull = "disk-full", 507, "There is no room to keep more";
    /// The client took too long.
    RequestTimeout = "request-timeout", 408, "The request took too long to arrive";
    /// A fault of ours.
    Internal = "internal", 500, "A fault on our side";
    /// The frame is not one this protocol knows.
    UnknownFrame = "unknown-frame", 400, "The frame's type is not known";
}

/// A refusal, as it is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Which.
    pub code: Code,
    /// What was wrong here and what to do, naming the field and the bound.
    pub detail: String,
    /// The field, as a JSON pointer, or the name of a header or parameter.
    pub field: Option<String>,
    /// When to try again, ms.
    pub retry_after_ms: Option<u64>,
}

impl Problem {
    /// A refusal with what was wrong.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), field: None, retry_after_ms: None }
    }

    /// Names the field.
    pub fn at(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// Says when to try again.
    pub fn retry_after_ms(mut self, ms: u64) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }

    /// The `type`: a path on this service that answers the page.
    pub fn type_uri(&self) -> String {
        format!("/problems/{}", self.code.slug())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.title(), self.detail)
    }
}

impl std::error::Error for Problem {}

impl Serialize for Problem {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(None)?;
        map.serialize_entry("type", &self.type_uri())?;
        map.serialize_entry("title", self.code.title())?;
        map.serialize_entry("status", &self.code.status())?;
        map.serialize_entry("detail", &self.detail)?;
        if let Some(field) = &self.field {
            map.serialize_entry("field", field)?;
        }
        if let Some(ms) = self.retry_after_ms {
            map.serialize_entry("retry_after_ms", &ms)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Problem {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Wire {
            r#type: String,
            #[serde(default)]
            detail: String,
            #[serde(default)]
            field: Option<String>,
            #[serde(default)]
            retry_after_ms: Option<u64>,
        }
        let wire = Wire::deserialize(d)?;
        let slug = wire.r#type.rsplit('/').next().unwrap_or_default();
        // A code that this build does not know comes from a newer server: the detail still says what was wrong.
        let code = Code::parse(slug).unwrap_or(Code::Internal);
        Ok(Self { code, detail: wire.detail, field: wire.field, retry_after_ms: wire.retry_after_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_refusal_has_a_name_of_its_own() {
        let slugs: HashSet<_> = Code::ALL.iter().map(|c| c.slug()).collect();
        assert_eq!(slugs.len(), Code::ALL.len());
        assert!(Code::ALL.iter().all(|c| (400..600).contains(&c.status()) && Code::parse(c.slug()) == Some(*c)));
    }

    #[test]
    fn a_problem_reads_back() {
        let problem = Problem::new(Code::InvalidPhone, "`to` must be E.164").at("/to").retry_after_ms(5);
        let text = serde_json::to_string(&problem).unwrap();
        assert!(text.starts_with(r#"{"type":"/problems/invalid-phone","title":"#), "{text}");
        assert_eq!(serde_json::from_str::<Problem>(&text).unwrap(), problem);
    }
}
