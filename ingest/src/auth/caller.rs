//! What a token comes to: a caller, who it is, and what it may do.

use schemas::{Name, Party, Phone, Sender, Tenant, Timestamp, UserId};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::LEEWAY_MS;

/// Who is calling, and what for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The business it belongs to or acts for.
    pub tenant: Tenant,
    /// Which of its people or keys.
    pub who: Who,
    /// What it may do.
    pub can: Permissions,
    /// When its token ends; an API key does not.
    pub expires_at: Option<Timestamp>,
    /// Whether the person was verified (R1.9).
    pub verified: bool,
}

impl Caller {
    /// The user whose inbox this caller may read, where it is a person.
    pub fn user(&self) -> Option<UserId> {
        let party = match &self.who {
            Who::Business(name) => Party::Business(name.clone()),
            Who::Mobile(phone) => Party::Mobile(*phone),
            Who::Server | Who::Admin => return None,
        };
        Some(UserId { tenant: self.tenant.clone(), party })
    }

    /// As the sender of a message; an administrator sends none.
    pub fn sender(&self) -> Option<Sender> {
        match &self.who {
            Who::Server => Some(Sender::Server),
            Who::Business(name) => Some(Sender::User(Party::Business(name.clone()))),
            Who::Mobile(phone) => Some(Sender::User(Party::Mobile(*phone))),
            Who::Admin => None,
        }
    }

    /// Whether it acts for the business.
    pub fn is_business(&self) -> bool {
        matches!(self.who, Who::Server | Who::Business(_))
    }

    /// Whether it has ended at `now`.
    pub fn has_ended(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|end| now >= end.plus_ms(LEEWAY_MS))
    }
}

/// One of a tenant's people or keys. Its text form is a token's `sub`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Who {
    /// The business's own server. `server`.
    Server,
    /// A business user. `business:sara`.
    Business(Name),
    /// A mobile user. `+962790000001`.
    Mobile(Phone),
    /// An administrator. `admin`.
    Admin,
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Server => f.write_str("server"),
            Self::Business(name) => write!(f, "business:{name}"),
            Self::Mobile(phone) => phone.fmt(f),
            Self::Admin => f.write_str("admin"),
        }
    }
}

impl std::str::FromStr for Who {
    type Err = schemas::ids::BadName;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "server" => Ok(Self::Server),
            "admin" => Ok(Self::Admin),
            _ => Ok(match text.parse::<Party>()? {
                Party::Mobile(phone) => Self::Mobile(phone),
                Party::Business(name) => Self::Business(name),
            }),
        }
    }
}

/// What a caller may do. In tokens and configuration a list of words: `["send", "chat"]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Permissions {
    /// One-way messages (R1.10).
    pub send: bool,
    /// Conversations (R1.9).
    pub chat: bool,
    /// Broadcasts (R1.10).
    pub broadcast: bool,
    /// The admin API.
    pub admin: bool,
}

impl Permissions {
    /// The words, in the order of the fields.
    pub const WORDS: [&'static str; 4] = ["send", "chat", "broadcast", "admin"];

    /// Reads a list of words; the first unknown one is the error.
    pub fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut can = Self::default();
        for word in words {
            match word {
                "send" => can.send = true,
                "chat" => can.chat = true,
                "broadcast" => can.broadcast = true,
                "admin" => can.admin = true,
                _ => return Err(format!("`{word}` is not a permission: there are {}", Self::WORDS.join(", "))),
            }
        }
        Ok(can)
    }

    /// The words it holds.
    pub fn words(self) -> Vec<&'static str> {
        let has = [self.send, self.chat, self.broadcast, self.admin];
        Self::WORDS.into_iter().zip(has).filter_map(|(word, has)| has.then_some(word)).collect()
    }
}

impl Serialize for Permissions {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.words().serialize(s)
    }
}

impl<'de> Deserialize<'de> for Permissions {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let words = Vec::<String>::deserialize(d)?;
        Self::parse(words.iter().map(String::as_str)).map_err(de::Error::custom)
    }
}
