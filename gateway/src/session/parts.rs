//! What a session is given, asks for and wants done: plain data between the machine and its pump.

use std::sync::Arc;

use schemas::{
    ContentType, ConversationId, Cursor, DeviceId, Fact, Limits, MessageId, Millis, Partition, Party, Position, Ref,
    SessionId, Timestamp, UserId, What, conversation::UpTo, frame::Close, json::Json,
};

use super::frames::Out;

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// What deadlines are counted in.
    pub mono: Millis,
    /// What facts carry.
    pub wall: Timestamp,
}

/// Whose session it is; shared with the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Me {
    /// The user.
    pub user: UserId,
    /// Its device.
    pub device: DeviceId,
    /// This connection.
    pub session: SessionId,
}

/// Where a session starts in one inbox of its user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneStart {
    /// The partition that writes the inbox.
    pub partition: Partition,
    /// Up to where the client says it has everything: taken as acknowledged and not sent again.
    pub have: Position,
    /// Up to where the store knew that already. What lies between gets its `Delivered` now: its acknowledgement may have
    /// died with a node.
    pub stored: Position,
    /// The inbox's end, read after the session was registered (rule 5).
    pub tail: Position,
    /// A new device passes over what the user's other devices have, up to the first that nobody has.
    pub skip_delivered: bool,
}

/// What a session begins with.
#[derive(Debug, Clone)]
pub struct Start {
    /// Whose it is.
    pub me: Arc<Me>,
    /// One for a mobile user; one per partition for a business user.
    pub lanes: Vec<LaneStart>,
    /// Whether everything since the client's cursor follows.
    pub recovered: bool,
    /// When the token ends.
    pub token_ends: Option<Millis>,
    /// The bounds.
    pub limits: Arc<Limits>,
}

/// A read of history that the session waits for. There is one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Which of its inboxes.
    pub partition: Partition,
    /// From just after this.
    pub from: Position,
    /// At most so many.
    pub limit: usize,
}

/// Ids whose messages the session no longer holds: history knows whose they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LookUp {
    /// Which.
    pub ids: Vec<MessageId>,
    /// What the client says of them: [`What::Delivered`] or [`What::Read`].
    pub what: What,
}

/// A chat message that the client wants sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Say {
    /// The client's own name for it.
    pub client_ref: Ref,
    /// Where to.
    pub to: SayTo,
    /// What it says.
    pub content: Json,
    /// As what.
    pub content_type: ContentType,
    /// Its idempotency key, if it is not the `ref`.
    pub key: Option<String>,
}

/// Where a chat message goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SayTo {
    /// Into this conversation.
    Conversation(ConversationId),
    /// Into the one with this side.
    Party(Party),
}

/// What is to be done after an input. The pump takes it out piece by piece.
#[derive(Debug, Default)]
pub struct Effects {
    /// Frames to write, in order; each brings the facts that become true when it is handed to the socket.
    pub frames: Vec<Out>,
    /// Facts that are true now.
    pub facts: Vec<Fact>,
    /// The device's cursor as it stands now, if it moved.
    pub cursor: Option<Cursor>,
    /// History to read.
    pub read: Option<Ask>,
    /// Ids to look up.
    pub look_up: Option<LookUp>,
    /// A new token to check.
    pub verify: Option<String>,
    /// A chat message to send: after those before it. Its outcome is told by [`super::Session::said`].
    pub say: Option<Say>,
    /// A conversation that is read up to here.
    pub mark: Option<(ConversationId, UpTo)>,
    /// The other side of this conversation is to see that this one types.
    pub typing: Option<ConversationId>,
    /// The socket is to be closed, after the frames.
    pub close: Option<Close>,
}
