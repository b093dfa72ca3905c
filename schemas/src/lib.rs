//! What Esh3ar agrees on: the types every part speaks in, each parsed once at the edge and believed from there on.
//!
//! A file here is a word of the product. Nothing here does I/O, reads a clock or names a vendor: what acts stands behind
//! the traits of [`port`], whose doc comments are contracts that `tests/conformance` holds every adapter to.

pub mod breaker;
pub mod codec;
pub mod conversation;
pub mod cursor;
pub mod draft;
pub mod fact;
pub mod frame;
pub mod ids;
pub mod json;
pub mod limits;
pub mod message;
pub mod phone;
pub mod port;
pub mod position;
pub mod problem;
pub mod record;
pub mod status;
pub mod tier;
pub mod time;
pub mod topic;
pub mod view;
pub mod vital;

pub use conversation::{ChatCommand, Conversation};
pub use cursor::Cursor;
pub use draft::Draft;
pub use fact::{Fact, Reason, State, What};
pub use ids::{
    BroadcastId, ConversationId, DeviceId, Key, MessageId, Name, NodeId, Party, Ref, Sender, SessionId, Tenant, UserId,
};
pub use limits::Limits;
pub use message::{Content, ContentType, Kind, Message, Priority};
pub use phone::Phone;
pub use position::{Epoch, Inbox, Position};
pub use problem::{Code, Problem};
pub use status::Status;
pub use time::{Clock, Millis, Timestamp};
pub use topic::{Lane, Offset, Partition, Topic, TopicPartition};
