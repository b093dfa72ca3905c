//! The frames of `/v1/ws`, sub-protocol `esh3ar.v1`: one JSON object each, `type` first. Published as `asyncapi.yaml`.

use serde::{Deserialize, Serialize};

use crate::{
    conversation::UpTo,
    cursor::Cursor,
    ids::{ConversationId, DeviceId, MessageId, Party, Ref, SessionId},
    json::Json,
    message::ContentType,
    problem::Problem,
    time::Timestamp,
    view::{Item, StatusChange},
};

/// The sub-protocol's name.
pub const SUBPROTOCOL: &str = "esh3ar.v1";

/// What a client may rely on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WelcomeLimits {
    /// Bytes of one frame, either way.
    pub frame_bytes: usize,
    /// Messages sent and not acknowledged, past which the server waits.
    pub unacked: usize,
    /// How long a message may go unacknowledged before the session is closed with "come back", ms.
    pub ack_ms: u64,
}

/// From the server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerFrame {
    /// First, once.
    Welcome {
        /// This connection.
        session: SessionId,
        /// Whose it is.
        user: Party,
        /// Which device.
        device: DeviceId,
        /// Where it starts.
        cursor: Cursor,
        /// Whether everything since the client's cursor follows; `false`: retention passed it, reload.
        recovered: bool,
        /// How often a frame comes at least, ms.
        heartbeat_ms: u64,
        /// The server's clock.
        server_time: Timestamp,
        /// Bounds.
        limits: WelcomeLimits,
    },
    /// Messages, in inbox order.
    Messages {
        /// Up to 100.
        items: Vec<Item>,
    },
    /// To a sender: one of its messages changed.
    Status(StatusChange),
    /// A frame of the client's was done.
    Accepted {
        /// The client's own name for the frame.
        #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
        client_ref: Option<Ref>,
        /// The message it made.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<MessageId>,
    },
    /// A frame of the client's was refused.
    Error {
        /// The client's own name for the frame.
        #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
        client_ref: Option<Ref>,
        /// Why.
        problem: Problem,
    },
    /// One of the user's other devices, or the other side, read something.
    Read {
        /// What.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        ids: Vec<MessageId>,
        /// In which conversation.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        conversation_id: Option<ConversationId>,
        /// Everything addressed to whoever read, up to this number of the conversation.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        up_to: Option<u64>,
        /// Who read it, in a conversation.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<Party>,
    },
    /// The other side of a conversation types.
    Typing {
        /// Where.
        conversation_id: ConversationId,
        /// Who.
        by: Party,
    },
    /// Somebody who shares a conversation came or went, and lets that be known.
    Presence {
        /// Who.
        user: Party,
        /// Whether it is connected.
        online: bool,
        /// When it was last connected, where it is not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        last_seen: Option<Timestamp>,
    },
    /// Still here.
    Ping,
    /// Answers a client's ping.
    Pong,
    /// Come back, after a while.
    Reconnect {
        /// After so long, ms.
        after_ms: u64,
        /// `drain`, `overload`, `newer_session`, `slow`, `no_ack`.
        reason: String,
    },
}

/// From the client. Unknown fields are ignored; unknown types are answered with `error`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientFrame {
    /// Acknowledges everything up to a cursor, or single messages.
    Ack {
        /// Everything up to here; moves the device's cursor.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cursor: Option<Cursor>,
        /// These; sets their status only.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        ids: Vec<MessageId>,
    },
    /// A person opened these.
    Read {
        /// Which messages.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        ids: Vec<MessageId>,
        /// Or everything in a conversation …
        #[serde(default, skip_serializing_if = "Option::is_none")]
        conversation_id: Option<ConversationId>,
        /// … up to here: a number of the conversation, or a message's id.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        up_to: Option<UpTo>,
    },
    /// A chat message.
    Send {
        /// The client's own name for it; repeats of it are one message.
        #[serde(rename = "ref")]
        client_ref: Ref,
        /// The conversation.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        conversation_id: Option<ConversationId>,
        /// Or the other side.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<Party>,
        /// What it says.
        content: Json,
        /// `text` (default) or `json`.
        #[serde(default)]
        content_type: ContentType,
        /// The idempotency key, if it is not the `ref`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<String>,
    },
    /// A person types.
    Typing {
        /// Where.
        conversation_id: ConversationId,
    },
    /// Are you there?
    Ping,
    /// Still here.
    Pong,
    /// A new token for a live session.
    Token {
        /// The token.
        token: String,
    },
}

impl ClientFrame {
    /// The types a client may send.
    pub const TYPES: [&'static str; 7] = ["ack", "read", "send", "typing", "ping", "pong", "token"];
}

impl ServerFrame {
    /// The types a server may send.
    pub const TYPES: [&'static str; 11] = [
        "welcome",
        "messages",
        "status",
        "accepted",
        "error",
        "read",
        "typing",
        "presence",
        "ping",
        "pong",
        "reconnect",
    ];
}

/// Why a socket is closed (RFC 6455 §7.4.2: 4000–4999 are an application's own). 40xx: come back; 41xx: renew the token,
/// then come back; 42xx: stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Close {
    /// The node goes away: come back after the time `reconnect` named.
    Drain,
    /// The client did not read fast enough.
    Slow,
    /// Nothing came from the client for too long.
    Silent,
    /// Something was not acknowledged in time.
    NoAck,
    /// Too much at once on this node.
    Overload,
    /// A part that this session needs is away.
    Unavailable,
    /// The token has ended.
    TokenExpired,
    /// The new token is not valid, or another user's.
    TokenInvalid,
    /// A newer session of the same device took over.
    NewerSession,
    /// The client broke the protocol.
    Protocol,
    /// Too many frames.
    Storm,
}

impl Close {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Drain,
        Self::Slow,
        Self::Silent,
        Self::NoAck,
        Self::Overload,
        Self::Unavailable,
        Self::TokenExpired,
        Self::TokenInvalid,
        Self::NewerSession,
        Self::Protocol,
        Self::Storm,
    ];

    /// The number on the wire.
    pub fn code(self) -> u16 {
        match self {
            Self::Drain => 4000,
            Self::Slow => 4001,
            Self::Silent => 4002,
            Self::NoAck => 4003,
            Self::Overload => 4004,
            Self::Unavailable => 4005,
            Self::TokenExpired => 4100,
            Self::TokenInvalid => 4101,
            Self::NewerSession => 4200,
            Self::Protocol => 4201,
            Self::Storm => 4202,
        }
    }

    /// The word on the wire and in metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Slow => "slow",
            Self::Silent => "silent",
            Self::NoAck => "no_ack",
            Self::Overload => "overload",
            Self::Unavailable => "unavailable",
            Self::TokenExpired => "token_expired",
            Self::TokenInvalid => "token_invalid",
            Self::NewerSession => "newer_session",
            Self::Protocol => "protocol",
            Self::Storm => "storm",
        }
    }

    /// Whether the client should come back by itself.
    pub fn come_back(self) -> bool {
        self.code() < 4100
    }
}
