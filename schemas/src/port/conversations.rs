//! The Conversations port: the part of history that keeps threads, lists of them, and counts. Written with the inboxes, by
//! [`Inboxes::record`](super::Inboxes::record) alone ([`Schedule`](super::Schedule)); read by anyone.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{Order, Page, Person, PortResult, Schedule};
use crate::{
    conversation::{Conversation, Shown, Side, Turn, Version},
    fact::State,
    ids::{ConversationId, MessageId, UserId},
    position::{Epoch, Inbox},
    time::Timestamp,
};

/// Where a list of conversations goes on: just after the one with this activity and name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ByActivity {
    /// Its last activity.
    pub last_at: Timestamp,
    /// Its name; of the same moment the smaller one comes first.
    pub id: ConversationId,
}

impl ByActivity {
    /// Where this one stands.
    pub fn of(conversation: &Conversation) -> Self {
        Self { last_at: conversation.last_at, id: conversation.id }
    }
}

/// What tells whether a user's list is still as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ListMark {
    /// Another one whenever what the list shows has changed since.
    pub mark: u64,
    /// Rows that a list read after this mark must have, in these versions or later ones, to be what the mark tells of: the
    /// store may tell of a change a moment before it shows it.
    pub rows: Vec<(ConversationId, Version)>,
}

/// A piece of a thread around a message.
#[derive(Debug, Clone, PartialEq)]
pub struct Around {
    /// Oldest first.
    pub rows: Vec<Shown>,
    /// From here, newest first, it goes on towards the beginning; `None` at the beginning.
    pub older: Option<u64>,
    /// From here, oldest first, it goes on towards the end; `None` at the end.
    pub newer: Option<u64>,
}

impl Around {
    /// Puts two pages together: `newest` from just before the message, `oldest` from it on, both of the whole limit.
    pub fn of(newest: Page<Shown, u64>, oldest: Page<Shown, u64>, limit: usize) -> Self {
        let (before, after) = (newest.rows.len(), oldest.rows.len());
        let older = (limit / 2).max(limit.saturating_sub(after)).min(before);
        let newer = (limit - older).min(after);
        let mut rows: Vec<_> = newest.rows.into_iter().take(older).collect();
        rows.reverse();
        rows.extend(oldest.rows.into_iter().take(newer));
        let first = rows.first().filter(|_| older < before || newest.next.is_some()).map(|row| row.turn.seq);
        let last = rows.last().filter(|_| newer < after || oldest.next.is_some()).map(|row| row.turn.seq);
        Self { rows, older: first, newer: last }
    }
}

/// What a thread has of a message, for an owner to which it comes again.
#[derive(Debug, Clone, PartialEq)]
pub struct Counted {
    /// Its turn; `None`: it is a note to one's own devices, which has none, and the row says already what it tells of.
    pub turn: Option<Turn>,
    /// Whose it is.
    pub epoch: Epoch,
    /// The inboxes where its entry was to stand and does not.
    pub missing: Vec<Inbox>,
}

/// Conversations.
///
/// **Guarantees.** What [`Inboxes::record`](super::Inboxes::record) confirmed is seen by every later read, entries, turns and
/// row together. The same batch again, also after later ones, changes nothing: of two rows of a conversation the one with
/// the larger version stands. After a row that failed nothing of its conversation is taken from the same owner until that was
/// repeated (`Unavailable`), so a row never counts a turn that is not there. A late owner's row (an older epoch in its version)
/// never replaces a newer owner's; its turns are not shown once the newer one has written in that conversation. What an owner
/// was told of by [`Conversations::owned`] stays as it was told, whatever older owners write afterwards: row, turns, lists and
/// counts. Turns go with the messages that retention removes, and what is removed is not unread ([`Conversation::forget`]).
///
/// A batch stands whole or not at all; or, where the store cannot have that of an owner that was overtaken or died in the
/// middle, a thread never lacks what an inbox has, and [`Conversations::counted`] tells what an inbox lacks.
/// **Failure.** Reads answer `Unavailable`; nothing is half told.
/// **Cost.** Each read costs what it returns, whatever the number of conversations or turns and however busy one of them is.
#[async_trait]
pub trait Conversations: Send + Sync {
    /// The rows of these; `None` where there is none.
    async fn conversations(&self, ids: &[ConversationId]) -> PortResult<Vec<Option<Conversation>>>;

    /// The rows of these for the owner of their partition, which goes on from them, each with the inboxes that it is about to
    /// write to for it. A store that leaves late writes aside seals the ends of those, and of the two sides' inboxes, and
    /// then the row, before it tells it; the version is that of the last change.
    async fn owned(&self, asked: &[(ConversationId, Vec<Inbox>)]) -> PortResult<Vec<Option<Conversation>>> {
        let ids: Vec<_> = asked.iter().map(|(id, _)| *id).collect();
        self.conversations(&ids).await
    }

    /// What conversations have of these messages, edits, deletions and notes, for the owner of their partitions, after it was
    /// told the rows. `None`: nothing, or all that there is to it stands, as it always does in a store whose batches stand
    /// whole.
    async fn counted(&self, asked: &[(ConversationId, MessageId)]) -> PortResult<Vec<Option<Counted>>> {
        Ok(vec![None; asked.len()])
    }

    /// A user's conversations, newest activity first, from just after `from`; those put away by it, or the others. A business
    /// user has those that are assigned to it.
    async fn by_user(
        &self,
        user: &UserId,
        archived: bool,
        from: Option<ByActivity>,
        limit: usize,
    ) -> PortResult<Page<Conversation, ByActivity>>;

    /// The messages and notes of a conversation, from just after this turn in that order (`None`: from the end it names).
    /// Edits and deletions show in the messages they are about.
    async fn turns(
        &self,
        id: ConversationId,
        order: Order,
        from: Option<u64>,
        limit: usize,
    ) -> PortResult<Page<Shown, u64>>;

    /// At most `limit` messages and notes with this one in their middle, as far as there are as many on both sides; `None`:
    /// the conversation has no such message. An edit or a deletion leads to what it is about.
    async fn around(&self, id: ConversationId, message: MessageId, limit: usize) -> PortResult<Option<Around>>;

    /// Finds messages and notes of conversations by name; `None` for what is none, and for edits and deletions.
    async fn said(&self, ids: &[MessageId]) -> PortResult<Vec<Option<Shown>>>;

    /// Chat messages that a user has yet to read, over all its conversations, those put away too.
    async fn unread_total(&self, user: &UserId) -> PortResult<u64>;

    /// The mark of a list whose first page has so many rows. What [`Inboxes::record`](super::Inboxes::record) confirmed
    /// before it was asked for shows in it. `None`: this store has no cheaper way to tell than to read the list.
    async fn list_mark(&self, user: &UserId, archived: bool, limit: usize) -> PortResult<Option<ListMark>>;
}

/// The contract as plain maps, without retention: what stand-ins in tests keep, and what adapters are compared with.
#[derive(Debug, Default)]
pub struct Talks(Mutex<Maps>);

#[derive(Debug, Default)]
struct Maps {
    rows: HashMap<ConversationId, Conversation>,
    turns: BTreeMap<(ConversationId, u64), Turn>,
    written: u64,
    people: HashMap<UserId, Person>,
}

impl Talks {
    fn maps(&self) -> MutexGuard<'_, Maps> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `record` does with this part of a batch.
    pub fn record(&self, schedule: &Schedule) {
        let mut maps = self.maps();
        for row in &schedule.conversations {
            if maps.rows.get(&row.id).is_some_and(|there| there.version >= row.version) {
                continue;
            }
            maps.rows.insert(row.id, row.clone());
            maps.written += 1;
            for turn in schedule.turns.iter().filter(|turn| turn.conversation == row.id) {
                maps.turns.insert((turn.conversation, turn.seq), turn.clone());
            }
        }
    }

    /// [`Conversations::conversations`].
    pub fn conversations(&self, ids: &[ConversationId]) -> Vec<Option<Conversation>> {
        let maps = self.maps();
        ids.iter().map(|id| maps.rows.get(id).cloned()).collect()
    }

    /// [`Conversations::by_user`].
    pub fn by_user(
        &self,
        user: &UserId,
        archived: bool,
        from: Option<ByActivity>,
        limit: usize,
    ) -> Page<Conversation, ByActivity> {
        let maps = self.maps();
        let listed = |row: &&Conversation| {
            let side = Side::BOTH.into_iter().find(|side| row.user(*side) == *user);
            side.is_some_and(|side| row.half(side).archived == archived)
        };
        let mut rows: Vec<_> = maps.rows.values().filter(listed).cloned().collect();
        rows.sort_by_key(|row| (std::cmp::Reverse(row.last_at), row.id));
        if let Some(from) = from {
            rows.retain(|row| (row.last_at, std::cmp::Reverse(row.id)) < (from.last_at, std::cmp::Reverse(from.id)));
        }
        cut(rows, limit, ByActivity::of)
    }

    /// [`Conversations::turns`]; `state` tells what became of a message.
    pub fn turns(
        &self,
        id: ConversationId,
        order: Order,
        from: Option<u64>,
        limit: usize,
        state: impl Fn(MessageId) -> State,
    ) -> Page<Shown, u64> {
        let maps = self.maps();
        let mut all: Vec<_> = maps.range(id).filter(|turn| turn.is_shown()).collect();
        if order == Order::Newest {
            all.reverse();
        }
        all.retain(|turn| match (order, from) {
            (_, None) => true,
            (Order::Oldest, Some(from)) => turn.seq > from,
            (Order::Newest, Some(from)) => turn.seq < from,
        });
        cut(all.into_iter().map(|turn| maps.shown(turn, &state)).collect(), limit, |shown| shown.turn.seq)
    }

    /// [`Conversations::around`].
    pub fn around(
        &self,
        id: ConversationId,
        message: MessageId,
        limit: usize,
        state: impl Fn(MessageId) -> State,
    ) -> Option<Around> {
        let limit = limit.max(1);
        let here = {
            let maps = self.maps();
            let found = maps.range(id).find(|turn| turn.message.id == message)?;
            found.of.unwrap_or(found.seq)
        };
        let newest = self.turns(id, Order::Newest, Some(here), limit, &state);
        let oldest = self.turns(id, Order::Oldest, Some(here.saturating_sub(1)), limit, &state);
        Some(Around::of(newest, oldest, limit))
    }

    /// [`Conversations::said`].
    pub fn said(&self, ids: &[MessageId], state: impl Fn(MessageId) -> State) -> Vec<Option<Shown>> {
        let maps = self.maps();
        let find = |id: &MessageId| maps.turns.values().find(|turn| turn.message.id == *id && turn.is_shown());
        ids.iter().map(|id| find(id).map(|turn| maps.shown(turn, &state))).collect()
    }

    /// [`Conversations::unread_total`].
    pub fn unread_total(&self, user: &UserId) -> u64 {
        let maps = self.maps();
        let unread = |row: &Conversation| {
            let side = Side::BOTH.into_iter().find(|side| row.user(*side) == *user);
            side.map_or(0, |side| row.half(side).unread())
        };
        maps.rows.values().map(unread).sum()
    }

    /// [`Conversations::list_mark`]: a count of all that was ever written.
    pub fn list_mark(&self) -> ListMark {
        ListMark { mark: self.maps().written, rows: Vec::new() }
    }

    /// [`People::people`](super::People::people).
    pub fn people(&self, users: &[UserId]) -> Vec<Person> {
        let maps = self.maps();
        users.iter().map(|user| maps.people.get(user).copied().unwrap_or_default()).collect()
    }

    /// [`People::prefer`](super::People::prefer).
    pub fn prefer(&self, user: &UserId, show_presence: bool) {
        self.maps().people.entry(user.clone()).or_default().show_presence = show_presence;
    }

    /// [`People::seen`](super::People::seen).
    pub fn seen(&self, seen: &[(UserId, Timestamp)]) {
        let mut maps = self.maps();
        for (user, at) in seen {
            let person = maps.people.entry(user.clone()).or_default();
            person.last_seen = person.last_seen.max(Some(*at));
        }
    }

    /// All turns of a conversation, edits and deletions too, oldest first.
    pub fn log(&self, id: ConversationId) -> Vec<Turn> {
        self.maps().range(id).cloned().collect()
    }
}

impl Maps {
    fn range(&self, id: ConversationId) -> impl Iterator<Item = &Turn> {
        self.turns.range((id, 0)..=(id, u64::MAX)).map(|(_, turn)| turn)
    }

    fn shown(&self, turn: &Turn, state: &impl Fn(MessageId) -> State) -> Shown {
        let later = self.range(turn.conversation).filter(|later| later.of == Some(turn.seq));
        let changes = later.map(|later| (later.recorded_at, later.message.kind, later.message.content.clone()));
        Shown::of(turn.clone(), state(turn.message.id), changes)
    }
}

fn cut<T, C>(mut rows: Vec<T>, limit: usize, place: impl Fn(&T) -> C) -> Page<T, C> {
    let limit = limit.max(1);
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| more).map(place);
    Page { rows, next }
}

/// Answers [`Conversations`] and [`People`](super::People) from a field of this type's, with `states` of its
/// [`Facts`](super::Facts): for stand-ins.
#[macro_export]
macro_rules! answers_from_talks {
    ($history:ty, $talks:ident) => {
        #[async_trait::async_trait]
        impl $crate::port::Conversations for $history {
            async fn conversations(
                &self,
                ids: &[$crate::ConversationId],
            ) -> $crate::port::PortResult<Vec<Option<$crate::Conversation>>> {
                Ok(self.$talks.conversations(ids))
            }
            async fn by_user(
                &self,
                user: &$crate::UserId,
                archived: bool,
                from: Option<$crate::port::ByActivity>,
                limit: usize,
            ) -> $crate::port::PortResult<$crate::port::Page<$crate::Conversation, $crate::port::ByActivity>> {
                Ok(self.$talks.by_user(user, archived, from, limit))
            }
            async fn turns(
                &self,
                id: $crate::ConversationId,
                order: $crate::port::Order,
                from: Option<u64>,
                limit: usize,
            ) -> $crate::port::PortResult<$crate::port::Page<$crate::conversation::Shown, u64>> {
                let mut page = self.$talks.turns(id, order, from, limit, |_| $crate::State::default());
                for row in &mut page.rows {
                    row.state = $crate::port::Facts::states(self, &[row.turn.message.id]).await?.remove(0);
                }
                Ok(page)
            }
            async fn around(
                &self,
                id: $crate::ConversationId,
                message: $crate::MessageId,
                limit: usize,
            ) -> $crate::port::PortResult<Option<$crate::port::Around>> {
                Ok(self.$talks.around(id, message, limit, |_| $crate::State::default()))
            }
            async fn said(
                &self,
                ids: &[$crate::MessageId],
            ) -> $crate::port::PortResult<Vec<Option<$crate::conversation::Shown>>> {
                Ok(self.$talks.said(ids, |_| $crate::State::default()))
            }
            async fn unread_total(&self, user: &$crate::UserId) -> $crate::port::PortResult<u64> {
                Ok(self.$talks.unread_total(user))
            }
            async fn list_mark(
                &self,
                _user: &$crate::UserId,
                _archived: bool,
                _limit: usize,
            ) -> $crate::port::PortResult<Option<$crate::port::ListMark>> {
                Ok(Some(self.$talks.list_mark()))
            }
        }

        #[async_trait::async_trait]
        impl $crate::port::People for $history {
            async fn people(&self, users: &[$crate::UserId]) -> $crate::port::PortResult<Vec<$crate::port::Person>> {
                Ok(self.$talks.people(users))
            }
            async fn prefer(&self, user: &$crate::UserId, show_presence: bool) -> $crate::port::PortResult<()> {
                Ok(self.$talks.prefer(user, show_presence))
            }
            async fn seen(&self, seen: &[($crate::UserId, $crate::Timestamp)]) -> $crate::port::PortResult<()> {
                Ok(self.$talks.seen(seen))
            }
        }
    };
}
