//! Conversations: threads, lists of them and counts, beside the inboxes and in the same write.
//!
//! | keyspace | key | value | lives |
//! |---|---|---|---|
//! | `history.conversations` | `c`, conversation | its row | as its two users |
//! | | `a`, user, archived, time, conversation | nothing: its place in the user's list, while it is quiet | as its row |
//! | | `h`, conversation | nothing: its place is in memory ([`recent`]) | while it is in use |
//! | | `u`, user, conversation | messages to the user and those read, while they differ | until read |
//! | | `i`, message id | the conversation and the number of the turn | as its turn |
//! | | `g`, conversation | the last turn that retention removed, with its counts | as its row |
//! | `history.turns` | `t`, conversation, number | the turn | until retention |
//! | | `o`, conversation, number, number | an edit or deletion (the second) of a turn (the first) | as its turn |
//!
//! A chat message costs seven rows and no read: two entries, its place, its turn and where that is found, the conversation's
//! row and what the other side has yet to read.

mod keys;
mod marks;
mod recent;
mod writing;

use std::{collections::BTreeMap, ops::Bound};

use async_trait::async_trait;
use parking_lot::{RwLock, RwLockUpgradableReadGuard};
use schemas::{
    Conversation, ConversationId, Message, MessageId, Millis, Timestamp, UserId,
    conversation::{Shown, Turn},
    message::{Content, Kind},
    port::{Around, ByActivity, Conversations, ListMark, Order, Page, PortResult, Schedule},
};

pub(super) use self::recent::Moves as ThreadMoves;
use self::{
    marks::Marks,
    recent::{Before, Recent},
    writing::left,
};
use super::{
    EmbeddedHistory, rows,
    tables::{Tables, broken, decode, key, pair, put, remove, strange, unread},
};
use crate::{OpenError, embedded::Write};

/// What retention removed of a conversation: the last turn that went, and the counts up to there.
type Gone = (u64, u64, u64);
/// An edit or a deletion.
type Change = (Timestamp, Kind, Content);

/// The conversations in use.
#[derive(Default)]
pub(super) struct Threads {
    recent: RwLock<Recent>,
    marks: Marks,
}

impl Threads {
    /// Reads those that were in use.
    pub(super) fn load(tables: &Tables, now: Millis) -> Result<Self, OpenError> {
        let threads = Self::default();
        let read = || -> PortResult<()> {
            let mut recent = threads.recent.write();
            for row in tables.talks.prefix(b"h") {
                let id = keys::parse_conversation(&key(row)?).ok_or_else(|| strange(&tables.talks))?;
                if let Some(row) = tables.conversation(id)? {
                    recent.load(&row, now);
                }
            }
            Ok(())
        };
        let path = tables.engine.path().into();
        read().map_err(|why| OpenError::Damaged { path, why: why.to_string() })?;
        Ok(threads)
    }

    /// A planned batch is about to be submitted.
    pub(super) fn apply(&self, moves: &ThreadMoves, now: Millis) -> Before {
        self.recent.write().apply(moves, now)
    }

    /// It was not submitted.
    pub(super) fn undo(&self, before: Before) {
        self.recent.write().undo(before);
    }

    /// It can be read, or nobody knows whether it can.
    pub(super) fn done(&self, schedule: &Schedule, moves: &ThreadMoves, ended: PortResult<()>) -> PortResult<()> {
        self.marks.end(schedule, moves, ended)?;
        if !moves.gone.is_empty() {
            self.recent.write().forget(&moves.gone);
        }
        Ok(())
    }

    /// Retention removed messages that were not read.
    pub(super) fn forget_totals(&self) {
        self.recent.write().forget_totals();
        self.marks.change_all();
    }

    /// What a user has yet to read: counted once, and kept up with every batch from then on.
    fn unread_total(&self, tables: &Tables, user: &UserId) -> PortResult<u64> {
        let recent = self.recent.upgradable_read();
        if let Some(total) = recent.total(user) {
            return Ok(total);
        }
        // Of those in use memory knows what is being written; the others stand on disk as they are.
        let mut total = 0;
        for (id, counts) in recent.of_user(user) {
            total += left(user, counts, tables.gone(id)?);
        }
        for row in tables.talks.prefix(keys::unread_of(user)) {
            let (at, value) = pair(row)?;
            let id = keys::parse_unread(&at).ok_or_else(|| strange(&tables.talks))?;
            if !recent.holds(id) {
                total += left(user, decode(&tables.talks, &value)?, tables.gone(id)?);
            }
        }
        RwLockUpgradableReadGuard::upgrade(recent).remember(user.clone(), total);
        Ok(total)
    }

    /// Places of a list after this key: those on disk and those in memory, as they stand at one moment.
    fn places(&self, tables: &Tables, list: &[u8], after: &[u8], limit: usize) -> PortResult<Vec<ByActivity>> {
        let recent = self.recent.read();
        let mut found: BTreeMap<Vec<u8>, ()> =
            recent.places(after, list, limit).into_iter().map(|key| (key, ())).collect();
        let mut cold = 0;
        let from = (Bound::Excluded(after.to_vec()), Bound::Unbounded::<Vec<u8>>);
        for row in tables.talks.range(from) {
            let row = key(row)?;
            if cold == limit || !row.starts_with(list) {
                break;
            }
            let place = keys::parse_listed(&row).ok_or_else(|| strange(&tables.talks))?;
            if !recent.holds(place.id) {
                found.insert(row.to_vec(), ());
                cold += 1;
            }
        }
        found.keys().take(limit).map(|key| keys::parse_listed(key).ok_or_else(|| strange(&tables.talks))).collect()
    }
}

impl Tables {
    /// A row as it is to be shown: without what retention removed.
    fn thread(&self, id: ConversationId) -> PortResult<Option<Conversation>> {
        let Some(mut row) = self.conversation(id)? else { return Ok(None) };
        if let Some((seq, to_mobile, to_business)) = self.gone(id)? {
            row.forget(seq, to_mobile, to_business);
        }
        Ok(Some(row))
    }

    /// A row as it was written.
    fn conversation(&self, id: ConversationId) -> PortResult<Option<Conversation>> {
        let row = self.talks.get(keys::conversation(b'c', id)).map_err(unread)?;
        row.map(|row| rows::conversation(&row).map_err(|why| broken(&self.talks, &why))).transpose()
    }

    fn gone(&self, id: ConversationId) -> PortResult<Option<Gone>> {
        self.get(&self.talks, &keys::conversation(b'g', id))
    }

    /// Turns that are shown, in an order, from just after one.
    fn thread_page(
        &self,
        id: ConversationId,
        order: Order,
        from: Option<u64>,
        limit: usize,
    ) -> PortResult<Page<Shown, u64>> {
        let limit = limit.max(1);
        let first = self.gone(id)?.map_or(0, |(seq, ..)| seq + 1);
        let mut turns = Vec::with_capacity(limit.min(1_000));
        let mut next = None;
        let mut take = |row| -> PortResult<bool> {
            let (_, value) = pair(row)?;
            let turn: Turn = decode(&self.said, &value)?;
            if !turn.is_shown() {
                return Ok(true);
            }
            if turns.len() == limit {
                next = turns.last().map(|turn: &Turn| turn.seq);
                return Ok(false);
            }
            turns.push(turn);
            Ok(true)
        };
        match order {
            Order::Oldest => {
                let start = from.map_or(first, |from| first.max(from.saturating_add(1)));
                let range = keys::turn(id, start)..=keys::turn(id, u64::MAX);
                for row in self.said.range(range) {
                    if !take(row)? {
                        break;
                    }
                }
            }
            Order::Newest => {
                let end = keys::turn(id, from.unwrap_or(u64::MAX));
                let start = keys::turn(id, first);
                if start < end {
                    for row in self.said.range(start..end).rev() {
                        if !take(row)? {
                            break;
                        }
                    }
                }
            }
        }
        Ok(Page { rows: self.shown(id, turns)?, next })
    }

    /// Turns with what became of them, and their newest text: one look at the changes of all of them together.
    fn shown(&self, id: ConversationId, turns: Vec<Turn>) -> PortResult<Vec<Shown>> {
        let seqs = || turns.iter().map(|turn| turn.seq);
        let (Some(low), Some(high)) = (seqs().min(), seqs().max()) else { return Ok(Vec::new()) };
        let mut changes = BTreeMap::<u64, Vec<Change>>::new();
        for row in self.said.range(keys::change(id, low, 0)..=keys::change(id, high, u64::MAX)) {
            let (at, value) = pair(row)?;
            let of = keys::parse_change(&at).ok_or_else(|| strange(&self.said))?;
            changes.entry(of).or_default().push(decode(&self.said, &value)?);
        }
        let show = |turn: Turn| {
            let (state, changes) = (self.state(turn.message.id)?, changes.remove(&turn.seq).unwrap_or_default());
            Ok(Shown::of(turn, state, changes))
        };
        turns.into_iter().map(show).collect()
    }

    /// Where a message is said.
    fn spot(&self, message: MessageId) -> PortResult<Option<(ConversationId, u64)>> {
        self.get(&self.talks, &keys::said(message))
    }

    fn turn(&self, id: ConversationId, seq: u64) -> PortResult<Option<Turn>> {
        self.get(&self.said, &keys::turn(id, seq))
    }

    fn around(&self, id: ConversationId, message: MessageId, limit: usize) -> PortResult<Option<Around>> {
        let limit = limit.max(1);
        let Some((_, seq)) = self.spot(message)?.filter(|(of, _)| *of == id) else { return Ok(None) };
        let Some(turn) = self.turn(id, seq)? else { return Ok(None) };
        let seq = turn.of.unwrap_or(seq);
        let newest = self.thread_page(id, Order::Newest, Some(seq), limit)?;
        let oldest = self.thread_page(id, Order::Oldest, Some(seq.saturating_sub(1)), limit)?;
        Ok(Some(Around::of(newest, oldest, limit)))
    }

    fn said(&self, message: MessageId) -> PortResult<Option<Shown>> {
        let Some((id, seq)) = self.spot(message)? else { return Ok(None) };
        match self.turn(id, seq)? {
            Some(turn) if turn.is_shown() => Ok(self.shown(id, vec![turn])?.pop()),
            _ => Ok(None),
        }
    }

    /// The turn of a message that retention removes. What went so far is gathered and written last.
    pub(super) fn unsay(
        &self,
        message: &Message,
        gone: &mut BTreeMap<ConversationId, (u64, u64, u64)>,
        writes: &mut Vec<Write>,
    ) -> PortResult<()> {
        let Some((id, seq)) = self.spot(message.id)? else { return Ok(()) };
        writes.push(remove(&self.talks, keys::said(message.id)));
        if let Some(turn) = self.turn(id, seq)? {
            writes.push(remove(&self.said, keys::turn(id, seq)));
            if turn.is_shown() {
                for change in self.said.prefix(keys::changes(id, seq)) {
                    writes.push(remove(&self.said, key(change)?.to_vec()));
                }
            }
            let before = match gone.get(&id) {
                Some(before) => *before,
                None => self.gone(id)?.unwrap_or_default(),
            };
            gone.insert(id, before.max((seq, turn.to_mobile, turn.to_business)));
        }
        Ok(())
    }

    /// The rows of [`Tables::unsay`].
    pub(super) fn gone_rows(&self, gone: BTreeMap<ConversationId, (u64, u64, u64)>) -> Vec<Write> {
        gone.into_iter().map(|(id, gone)| put(&self.talks, keys::conversation(b'g', id), &gone)).collect()
    }
}

#[async_trait]
impl Conversations for EmbeddedHistory {
    async fn conversations(&self, ids: &[ConversationId]) -> PortResult<Vec<Option<Conversation>>> {
        ids.iter().map(|id| self.tables.thread(*id)).collect()
    }

    async fn by_user(
        &self,
        user: &UserId,
        archived: bool,
        from: Option<ByActivity>,
        limit: usize,
    ) -> PortResult<Page<Conversation, ByActivity>> {
        let (user, threads, limit) = (user.clone(), self.threads.clone(), limit.max(1));
        self.read_rows(limit, move |tables| {
            let list = keys::list(&user, archived);
            let mut after = from.map_or_else(|| list.clone(), |from| keys::listed(&user, archived, from));
            let mut rows = Vec::with_capacity(limit.min(1_000));
            loop {
                // One more than fits tells whether there is a next page.
                let asked = limit - rows.len() + 1;
                let places = threads.places(tables, &list, &after, asked)?;
                let more = places.len() == asked;
                let taken = if more { asked - 1 } else { places.len() };
                let last = places[..taken].last().copied();
                for place in &places[..taken] {
                    // A place may be ahead of its row, which is being written.
                    let row = tables.thread(place.id)?;
                    rows.extend(row.filter(|row| {
                        row.side_of(&user)
                            .is_some_and(|side| row.user(side) == user && row.half(side).archived == archived)
                    }));
                }
                let Some(last) = last.filter(|_| more) else { return Ok(Page { rows, next: None }) };
                if rows.len() == limit {
                    return Ok(Page { rows, next: Some(last) });
                }
                after = keys::listed(&user, archived, last);
            }
        })
        .await
    }

    async fn turns(
        &self,
        id: ConversationId,
        order: Order,
        from: Option<u64>,
        limit: usize,
    ) -> PortResult<Page<Shown, u64>> {
        self.read_rows(limit, move |tables| tables.thread_page(id, order, from, limit)).await
    }

    async fn around(&self, id: ConversationId, message: MessageId, limit: usize) -> PortResult<Option<Around>> {
        self.read_rows(2 * limit, move |tables| tables.around(id, message, limit)).await
    }

    async fn said(&self, ids: &[MessageId]) -> PortResult<Vec<Option<Shown>>> {
        ids.iter().map(|id| self.tables.said(*id)).collect()
    }

    async fn unread_total(&self, user: &UserId) -> PortResult<u64> {
        let (user, threads) = (user.clone(), self.threads.clone());
        if let Some(total) = threads.recent.read().total(&user) {
            return Ok(total);
        }
        self.read_rows(usize::MAX, move |tables| threads.unread_total(tables, &user)).await
    }

    async fn list_mark(&self, user: &UserId, _archived: bool, _limit: usize) -> PortResult<Option<ListMark>> {
        Ok(Some(ListMark { mark: self.threads.marks.of(user), rows: Vec::new() }))
    }
}
