//! The History port: what was said to whom, and what became of it. Small ports that one store answers together; those of
//! conversations and of people stand in files of their own.

use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{Conversations, People, PortError, PortResult};
use crate::{
    conversation::{Conversation, Turn},
    cursor::Cursor,
    draft::Draft,
    fact::{Fact, Past, Reason, State},
    ids::{BroadcastId, DeviceId, MessageId, Sender, Tenant, UserId},
    message::Message,
    phone::Phone,
    position::{Epoch, Inbox, Position},
    status::Status,
    time::Timestamp,
    topic::Partition,
};

/// The end of an inbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tail {
    /// The last entry's place; [`Position::START`] while there is none.
    pub position: Position,
    /// One-way messages ever written to it: unread = this − those read.
    pub one_way: u64,
}

/// What history knows of an id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// What its sender asked for ([`Message::fingerprint`]).
    pub fingerprint: [u8; 16],
    /// Where it stands; `None` while it is scheduled.
    pub position: Option<Position>,
}

/// A message with its place in an inbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Whose inbox.
    pub inbox: Inbox,
    /// Its place.
    pub position: Position,
    /// The entry before it; [`Position::START`] for the first.
    pub prev: Position,
    /// One-way messages written to the inbox, this one counted.
    pub one_way: u64,
    /// When it was recorded.
    pub recorded_at: Timestamp,
    /// The number of its turn in its conversation; `None` for one-way, and for what one does for one's own devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// The message.
    pub message: Arc<Message>,
    /// How it ended before it was recorded, where it did (a function dropped it): `record` merges this fact into its state
    /// in the same write, so that nobody reads the entry without it. What is read has it in its state, and `None` here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Past>,
}

/// What is due at a time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum DueKind {
    /// A scheduled message is to be sent.
    Send(Arc<Message>),
    /// A recorded message expires.
    Expire {
        /// The message.
        id: MessageId,
        /// Its inbox.
        inbox: Inbox,
        /// Its place.
        position: Position,
    },
}

/// A row of the due-table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Due {
    /// Whose owner sweeps it.
    pub partition: Partition,
    /// When.
    pub at: Timestamp,
    /// What for.
    pub id: MessageId,
    /// What is due.
    pub kind: DueKind,
}

impl Due {
    /// Whether a message is to be sent, and not to expire.
    pub fn is_send(&self) -> bool {
        matches!(self.kind, DueKind::Send(_))
    }
}

/// What is to be written to the due-table with a batch.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Schedule {
    /// Rows to add. A `Send` row makes its message known by id (`Pending`, without a place).
    pub add: Vec<Due>,
    /// Rows that have been done with.
    pub done: Vec<Due>,
    /// Under which takeovers the rows are written: these are held to the fence as the entries of the batch are, so that a
    /// late owner neither takes a row from the newer one, which still needs it, nor brings one back. Rows of a partition
    /// that is not named here are not held to it.
    pub epochs: BTreeSet<(Partition, Epoch)>,
    /// Conversations as they are with this batch: whole rows. One whose version is not larger than what stands is passed
    /// over, with its turns.
    pub conversations: Vec<Conversation>,
    /// New turns, each of a conversation that stands in `conversations`; written by their numbers.
    pub turns: Vec<Turn>,
    /// Turns that an older owner wrote, of which this batch has entries that were missing ([`Conversations::counted`]): they
    /// stand as they are, and say from now on that those entries stand here.
    ///
    /// [`Conversations::counted`]: super::Conversations::counted
    pub completed: Vec<(Partition, Turn)>,
}

/// A message as it is found by its id.
#[derive(Debug, Clone, PartialEq)]
pub struct Placed {
    /// The message.
    pub message: Arc<Message>,
    /// Its inbox.
    pub inbox: Inbox,
    /// Its place; `None` while it is scheduled.
    pub position: Option<Position>,
    /// The entry before it.
    pub prev: Position,
    /// When it was recorded or scheduled.
    pub recorded_at: Timestamp,
    /// The number of its turn in its conversation ([`Entry::seq`]).
    pub seq: Option<u64>,
    /// What became of it.
    pub state: State,
}

/// Which way a list is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Oldest first.
    Oldest,
    /// Newest first.
    #[default]
    Newest,
}

/// A piece of an inbox, read forward.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Entries with what became of them, in order, without a break in `prev`.
    pub entries: Vec<(Entry, State)>,
    /// Whether entries after `from` were removed by retention, so that the span does not continue it.
    pub passed_by_retention: bool,
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T, C> {
    /// The rows.
    pub rows: Vec<T>,
    /// Where the next page starts; `None` at the end.
    pub next: Option<C>,
}

/// Messages not yet read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Unread {
    /// One-way messages.
    pub one_way: u64,
}

/// Inboxes: written by the owner of their partition alone, read by anyone.
///
/// **Guarantees.** [`Inboxes::record`] is atomic for each inbox and idempotent: the same entries again change nothing. A
/// reader sees an inbox in position order and never past a break in `prev`. What was recorded survives what the log's
/// append survives, before the call answers.
///
/// **Fencing.** What an owner writes after a newer one has taken its partition over is answered with `Fenced`; or, where the
/// store cannot know in time, it never becomes part of an inbox: once an entry of a newer epoch stands there, entries of
/// older epochs that its `prev` chain does not reach are not shown, not counted and not found by id. A row of the due-table
/// is removed under the same rule ([`Schedule::epochs`]): by an owner that was overtaken, never before what came of it stands
/// in the inbox that the newer one goes on with.
/// A reader whose `from` turns out to be such an entry goes on with what follows the fork: nothing of the chain is skipped.
///
/// What an owner was told of by `tails` or `known` stays in the inbox whatever older owners write afterwards, also where it
/// has written nothing there itself: it commits offsets on the strength of it. A store that leaves late entries aside seals
/// an end before it tells it to the owner.
#[async_trait]
pub trait Inboxes: Send + Sync {
    /// Takes partitions over: raises and returns each one's epoch, durably. Nothing is asked or written under it before
    /// [`Inboxes::owns`] has said that it counts.
    async fn take_over(&self, partitions: &[Partition]) -> PortResult<Vec<Epoch>>;

    /// After `take_over` the log has said that these partitions are this process's: what it asks and writes from now on is their
    /// owner's. A takeover that the log does not confirm came late, over a rightful owner that goes on: a store that seals what
    /// it tells an owner seals nothing under it, whoever asks.
    fn owns(&self, partitions: &[(Partition, Epoch)]);

    /// The ends of inboxes.
    async fn tails(&self, inboxes: &[Inbox]) -> PortResult<Vec<Tail>>;

    /// Which of these ids are there already: one batched read.
    async fn known(&self, ids: &[MessageId]) -> PortResult<Vec<Option<Known>>>;

    /// Writes entries and due rows in one batch, and with an entry how it ended ([`Entry::end`]). Where a store cannot make that
    /// one step, rows of the due-table stand first: an entry is found by its id and expires from the moment in which it stands,
    /// and a row may come up whose message is not there yet. `Fenced`: an entry, or a
    /// partition of [`Schedule::epochs`], is of an epoch below that of the last takeover; none of the entries of the overtaken
    /// partition stands, nor a row that would bring up what the newer owner has done with, and of the others none has to: they may be recorded again without it.
    async fn record(&self, entries: &[Entry], schedule: &Schedule) -> PortResult<()>;

    /// Rows due at or before `now`, oldest first, at most `limit`.
    async fn due(&self, partition: Partition, now: Timestamp, limit: usize) -> PortResult<Vec<Due>>;

    /// Reads an inbox forward from just after `from`, at most `limit` entries.
    async fn read(&self, inbox: &Inbox, from: Position, limit: usize) -> PortResult<Span>;

    /// Finds messages by id.
    async fn messages(&self, ids: &[MessageId]) -> PortResult<Vec<Option<Placed>>>;

    /// One page of a user's one-way messages (R1.8), from just after `from` in that order (`None`: from the end it names).
    async fn one_way(
        &self,
        inbox: &Inbox,
        order: Order,
        from: Option<Position>,
        limit: usize,
    ) -> PortResult<Page<(Entry, State), Position>>;

    /// How many are unread.
    async fn unread(&self, inbox: &Inbox) -> PortResult<Unread>;

    /// Removes what is older than `before` and returns the places of messages that nobody had received, which are to become
    /// `Failed(Expired)` first: those are removed by the next call. At most `limit` entries a call.
    async fn retain(&self, partition: Partition, before: Timestamp, limit: usize) -> PortResult<Vec<Placed>>;

    /// How many messages are kept and how many wait in the due-table: for metrics; what the store cannot tell cheaply is 0.
    async fn sizes(&self) -> PortResult<(u64, u64)>;
}

/// What merging a fact came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Settled {
    /// Whether the status changed.
    pub changed: bool,
    /// What all facts up to this one add up to.
    pub state: State,
}

/// Facts about messages, merged without order ([`State::merge`]). Called by the owner of the partition alone, one call at a
/// time.
#[async_trait]
pub trait Facts: Send + Sync {
    /// Merges facts; answers one outcome per fact, after they are as durable as the log. Idempotent. A first `Read` of a
    /// one-way message also lowers its inbox's unread count, in the same write; so does its withdrawal
    /// ([`State::is_withdrawn`]), as it is never shown, until a late acknowledgement says that somebody has it after all.
    async fn settle(&self, facts: &[Fact]) -> PortResult<Vec<Settled>>;

    /// What is known of these; empty states for unknown ids.
    async fn states(&self, ids: &[MessageId]) -> PortResult<Vec<State>>;
}

/// How far each device has its user's inbox.
#[async_trait]
pub trait Cursors: Send + Sync {
    /// Every device of a user that has a cursor.
    async fn cursors(&self, user: &UserId) -> PortResult<Vec<(DeviceId, Cursor)>>;

    /// Moves cursors forward, never back. Durable soon after: a lost move repeats messages and loses none.
    async fn advance(&self, moves: &[(UserId, DeviceId, Cursor)]) -> PortResult<()>;
}

/// A message given up, as administrators see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dead {
    /// Its name.
    pub id: MessageId,
    /// When it was given up.
    pub at: Timestamp,
    /// Why.
    pub reason: Reason,
    /// In which round.
    pub round: u8,
    /// Attempts made.
    pub attempts: u8,
    /// Its inbox.
    pub inbox: Inbox,
    /// Its place, where it had one.
    pub position: Position,
    /// When an administrator started a new round.
    pub requeued_at: Option<Timestamp>,
    /// The message, where it could be read.
    pub message: Option<Arc<Message>>,
}

/// Which dead letters.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    /// Of one tenant.
    pub tenant: Option<Tenant>,
    /// With this reason.
    pub reason: Option<Reason>,
    /// To this user.
    pub user: Option<UserId>,
    /// Given up at or after this.
    pub since: Option<Timestamp>,
    /// Given up before this.
    pub until: Option<Timestamp>,
    /// Also those that were requeued.
    pub requeued: bool,
}

impl Filter {
    /// Whether it takes this one.
    pub fn takes(&self, dead: &Dead) -> bool {
        self.tenant.as_ref().is_none_or(|t| *t == dead.inbox.user.tenant)
            && self.reason.is_none_or(|r| r == dead.reason)
            && self.user.as_ref().is_none_or(|u| *u == dead.inbox.user)
            && self.since.is_none_or(|t| dead.at >= t)
            && self.until.is_none_or(|t| dead.at < t)
            && (self.requeued || dead.requeued_at.is_none())
    }
}

/// Where a list of dead letters goes on: newest first.
pub type Buried = (Timestamp, MessageId);

/// The dead-letter index.
#[async_trait]
pub trait DeadLetters: Send + Sync {
    /// Adds or replaces rows by (id, round). Idempotent.
    async fn bury(&self, dead: &[Dead]) -> PortResult<()>;

    /// One page, newest first, of those the filter takes.
    async fn dead(&self, filter: &Filter, from: Option<Buried>, limit: usize) -> PortResult<Page<Dead, Buried>>;

    /// Finds one by its message, the latest round.
    async fn dead_letter(&self, id: MessageId) -> PortResult<Option<Dead>>;

    /// How many are there that nobody has requeued.
    async fn dead_count(&self) -> PortResult<u64>;

    /// Removes those given up before this, at most `limit`; says how many.
    async fn forget_dead(&self, before: Timestamp, limit: usize) -> PortResult<usize>;
}

/// What a broadcast's sender asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// Whose it is.
    pub tenant: Tenant,
    /// Who sent it.
    pub from: Sender,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// The trace it belongs to.
    pub trace: Option<String>,
    /// The content, without recipients, as JSON text of a [`Draft`] whose `to` is empty.
    pub draft: String,
    /// What its sender asked for, recipients included.
    pub fingerprint: [u8; 16],
}

impl Asked {
    /// The content.
    pub fn draft(&self) -> Result<Draft<String>, crate::problem::Problem> {
        Draft::<String>::parse(self.draft.as_bytes())
    }
}

/// How a broadcast stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BroadcastState {
    /// Being expanded.
    Running,
    /// All recipients' messages are accepted.
    Done,
    /// Taken back; what was not expanded never will be.
    Cancelled,
}

/// A broadcast and its progress.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Broadcast {
    /// Its name.
    pub id: BroadcastId,
    /// What was asked for.
    pub asked: Asked,
    /// Recipients.
    pub recipients: u64,
    /// Recipients whose message is accepted: the first so many.
    pub expanded: u64,
    /// How it stands.
    pub state: BroadcastState,
}

/// The broadcasts being expanded, as a look at all of them finds them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Expanding {
    /// Those that can be read, oldest first.
    pub running: Vec<Broadcast>,
    /// Those that cannot now, and why. They stand, and go on once they can be read. One whose name itself is none has the nil
    /// name here.
    pub unread: Vec<(BroadcastId, PortError)>,
}

impl Expanding {
    /// The next one of the list, as it was read. Nothing is added where it is not there, or runs no more.
    pub fn add(&mut self, id: BroadcastId, read: PortResult<Option<Broadcast>>) {
        match read {
            Ok(there) => self.running.extend(there),
            Err(why) => self.unread.push((id, why)),
        }
    }
}

/// Broadcasts: accepted as one, expanded little by little (rule 13).
#[async_trait]
pub trait Broadcasts: Send + Sync {
    /// Stores it with its recipients (distinct, in order), durably and all at once. The same id again changes nothing, and
    /// answers what is there.
    async fn begin(&self, broadcast: &Broadcast, recipients: &[Phone]) -> PortResult<Broadcast>;

    /// One of them.
    async fn broadcast(&self, id: BroadcastId) -> PortResult<Option<Broadcast>>;

    /// Those being expanded: one that cannot be read hides no other. An error where it is not known which they are.
    async fn running(&self) -> PortResult<Expanding>;

    /// Recipients from the `from`th on, at most `limit`.
    async fn recipients(&self, id: BroadcastId, from: u64, limit: usize) -> PortResult<Vec<Phone>>;

    /// Says how far it is, and what state it is in; `expanded` only grows, and a cancelled one stays cancelled.
    async fn progress(&self, id: BroadcastId, expanded: u64, state: BroadcastState) -> PortResult<Broadcast>;
}

/// The whole history: one store answers all seven.
pub trait History: Inboxes + Facts + Cursors + DeadLetters + Broadcasts + Conversations + People + 'static {}

impl<T: Inboxes + Facts + Cursors + DeadLetters + Broadcasts + Conversations + People + 'static> History for T {}

/// Statuses of many messages at once, for the books.
pub fn tally(states: &[State]) -> [u64; Status::ALL.len()] {
    let mut counts = [0; Status::ALL.len()];
    for state in states {
        let rank = Status::ALL.iter().position(|s| *s == state.status()).unwrap_or_default();
        counts[rank] += 1;
    }
    counts
}
