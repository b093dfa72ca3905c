//! Names: who sends, who receives, and what a message is called.
//!
//! Every one is checked when it is made, so a function that takes one never meets a wrong one. Text forms are stable: they
//! stand in tokens, keys, logs and on the wire.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

use crate::phone::Phone;

/// Why a name was refused, in a sentence for the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadName {
    /// What was being named, e.g. `tenant`.
    pub what: &'static str,
    /// The rule it broke.
    pub rule: &'static str,
}

impl fmt::Display for BadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.what, self.rule)
    }
}

impl std::error::Error for BadName {}

macro_rules! text_name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:literal, $rule:literal, $ok:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The longest one, in bytes.
            pub const MAX_BYTES: usize = $max;

            /// Checks and takes the text.
            pub fn parse(text: &str) -> Result<Self, BadName> {
                let fine: fn(char) -> bool = $ok;
                if text.is_empty() || text.len() > $max || !text.chars().all(fine) {
                    return Err(BadName { what: $what, rule: $rule });
                }
                Ok(Self(text.into()))
            }

            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> {
                Self::parse(text)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                Self::parse(&text).map_err(de::Error::custom)
            }
        }
    };
}

text_name!(
    /// A business. It sees only what is its own.
    Tenant, "tenant", 63, "must be 1 to 63 characters of a-z, 0-9, '-' or '_'",
    |c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_'
);
text_name!(
    /// A business user's name within its tenant.
    Name, "name", 64, "must be 1 to 64 characters of A-Z, a-z, 0-9, '.', '-' or '_'",
    |c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')
);
text_name!(
    /// One device of a user: what keeps a cursor.
    DeviceId, "device", 64, "must be 1 to 64 characters of A-Z, a-z, 0-9, '.', '-' or '_'",
    |c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')
);
text_name!(
    /// What a sender calls a message of its own; comes back in status and events.
    Ref, "ref", 255, "must be 1 to 255 bytes without control characters",
    |c| !c.is_control()
);
text_name!(
    /// An idempotency key: the message's name, as its sender chose it.
    Key, "key", 255, "must be 1 to 255 bytes without control characters",
    |c| !c.is_control()
);
text_name!(
    /// One process that holds sessions.
    NodeId, "node", 64, "must be 1 to 64 characters of A-Z, a-z, 0-9, '.', '-' or '_'",
    |c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')
);

/// A message's name: UUIDv5 of its key where its sender gave one, else UUIDv7.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MessageId(pub Uuid);

/// Names under this namespace are ids of keyed messages (UUIDv5 of "esh3ar:message" in the OID namespace).
const MESSAGE_NAMESPACE: Uuid = Uuid::from_u128(0x6f1f_5f5a_8a3b_5c0e_9f43_3d6f_6f0e_61a1);

impl MessageId {
    /// The id of a keyed message. The same four always yield the same id, on any node, with no look-up. `source` tells
    /// one door's keys from another's (empty for HTTP; CloudEvents' `source`).
    pub fn of_key(tenant: &Tenant, source: &str, key: &str, recipient: &UserId) -> Self {
        // Length prefixes, so that no two different tuples spell the same bytes.
        let mut name = Vec::with_capacity(96);
        for part in [tenant.as_str(), source, key, &recipient.to_string()] {
            name.extend_from_slice(&(part.len() as u32).to_be_bytes());
            name.extend_from_slice(part.as_bytes());
        }
        Self(Uuid::new_v5(&MESSAGE_NAMESPACE, &name))
    }

    /// The id of one recipient's message of a broadcast.
    pub fn of_broadcast(broadcast: BroadcastId, recipient: &UserId) -> Self {
        Self(Uuid::new_v5(&broadcast.0, recipient.to_string().as_bytes()))
    }

    /// A name for a message that brought none; `at` makes it sort by time (UUIDv7).
    pub fn fresh(at: crate::Timestamp) -> Self {
        let ms = at.0.max(0).unsigned_abs();
        let ts = uuid::Timestamp::from_unix(uuid::NoContext, ms / 1000, ((ms % 1000) * 1_000_000) as u32);
        Self(Uuid::new_v7(ts))
    }

    /// Whether the name came from a key, so that the same message may have been here before.
    pub fn is_keyed(self) -> bool {
        self.0.get_version_num() == 5
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for MessageId {
    type Err = BadName;
    fn from_str(text: &str) -> Result<Self, BadName> {
        Uuid::try_parse(text).map(Self).map_err(|_| BadName { what: "id", rule: "must be a UUID" })
    }
}

/// A conversation's name, derived from its pair, so that two creators at once make one (P2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ConversationId(pub Uuid);

/// Names under this namespace are conversations (UUIDv5 of their pair).
const CONVERSATION_NAMESPACE: Uuid = Uuid::from_u128(0x0c5a_94f5_6f0d_5b5f_8a54_17a4_2c2b_7d11);

impl ConversationId {
    /// The one conversation of this pair.
    pub fn of_pair(tenant: &Tenant, business: &Name, mobile: Phone) -> Self {
        Self(Uuid::new_v5(&CONVERSATION_NAMESPACE, format!("{tenant}/{business}/{mobile}").as_bytes()))
    }
}

impl fmt::Display for ConversationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// A broadcast's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BroadcastId(pub Uuid);

impl fmt::Display for BroadcastId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// One connection of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(pub Uuid);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

/// One side of a message within its tenant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Party {
    /// A person behind a phone number.
    Mobile(Phone),
    /// A person who works for the business.
    Business(Name),
}

/// A user: what has an inbox and devices. Text form `acme/+962790000001` or `acme/business:sara`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId {
    /// The business it belongs to.
    pub tenant: Tenant,
    /// Which of its people.
    pub party: Party,
}

impl UserId {
    /// A mobile user of a tenant.
    pub fn mobile(tenant: Tenant, phone: Phone) -> Self {
        Self { tenant, party: Party::Mobile(phone) }
    }

    /// A business user of a tenant.
    pub fn business(tenant: Tenant, name: Name) -> Self {
        Self { tenant, party: Party::Business(name) }
    }

    /// Text that tells users apart in logs and names nobody: the last two digits, or the first letter.
    pub fn redacted(&self) -> String {
        match &self.party {
            Party::Mobile(phone) => format!("{}/{}", self.tenant, phone.redacted()),
            Party::Business(name) => {
                format!("{}/business:{}…", self.tenant, name.as_str().chars().next().unwrap_or('?'))
            }
        }
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mobile(phone) => phone.fmt(f),
            Self::Business(name) => write!(f, "business:{name}"),
        }
    }
}

impl FromStr for Party {
    type Err = BadName;
    fn from_str(text: &str) -> Result<Self, BadName> {
        match text.strip_prefix("business:") {
            Some(name) => Name::parse(name).map(Self::Business),
            None => Phone::from_stored(text)
                .map(Self::Mobile)
                .ok_or(BadName { what: "user", rule: "must be an E.164 number or business:NAME" }),
        }
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.party)
    }
}

impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted())
    }
}

impl FromStr for UserId {
    type Err = BadName;
    fn from_str(text: &str) -> Result<Self, BadName> {
        let (tenant, party) = text.split_once('/').ok_or(BadName { what: "user", rule: "must be TENANT/USER" })?;
        Ok(Self { tenant: tenant.parse()?, party: party.parse()? })
    }
}

/// Who a message is from, within its tenant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Sender {
    /// The business itself, by a server key. Text form `server`.
    Server,
    /// One of its people, or a mobile user.
    User(Party),
}

impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server => f.write_str("server"),
            Self::User(party) => party.fmt(f),
        }
    }
}

impl FromStr for Sender {
    type Err = BadName;
    fn from_str(text: &str) -> Result<Self, BadName> {
        if text == "server" { Ok(Self::Server) } else { text.parse().map(Self::User) }
    }
}

macro_rules! text_serde {
    ($($name:ident),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    )*};
}

text_serde!(Party, UserId, Sender);

// A phone alone is text too; where it was stored it was checked once.
impl Serialize for Phone {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Phone {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        Self::from_stored(&text).ok_or_else(|| de::Error::custom("must be an E.164 number"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_same_key_names_the_same_message_and_no_other() {
        let acme = Tenant::parse("acme").unwrap();
        let one = UserId::mobile(acme.clone(), Phone::from_stored("+962790000001").unwrap());
        let two = UserId::mobile(acme.clone(), Phone::from_stored("+962790000002").unwrap());
        let id = MessageId::of_key(&acme, "", "k", &one);
        assert_eq!(id, MessageId::of_key(&acme, "", "k", &one));
        assert_ne!(id, MessageId::of_key(&acme, "", "k", &two));
        assert_ne!(id, MessageId::of_key(&acme, "k", "", &one), "a source is not a key");
        assert!(id.is_keyed() && !MessageId::fresh(crate::Timestamp(1)).is_keyed());
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused_and_round_trips(text in ".{0,80}") {
            if let Ok(user) = text.parse::<UserId>() { prop_assert_eq!(user.to_string(), text.clone()); }
            if let Ok(sender) = text.parse::<Sender>() { prop_assert_eq!(sender.to_string(), text.clone()); }
            if let Ok(tenant) = text.parse::<Tenant>() { prop_assert_eq!(tenant.as_str(), text); }
        }
    }
}
