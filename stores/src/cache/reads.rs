//! Reads of conversations through a cache: the newest turns of a conversation and the first page of a list. Everything else
//! is history's, as it is.
//!
//! A kept page is given only while history says that it still holds, so that nobody is ever shown what has changed, whatever
//! became of the cache:
//!
//! | what | history is asked for | and without the cache |
//! |---|---|---|
//! | newest turns | the conversation's row, whose version tells; the states of those that nobody has read yet | the row, the turns, their edits, the states of all |
//! | a list | its mark | the list, and the rows of its page |
//!
//! Retention is no change that a version tells: a page of turns is kept no longer than its oldest turn. What retention
//! removes may be counted as unread in a list for as long as a page is kept, where the store's mark does not tell it.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use schemas::{
    Clock, Conversation, ConversationId, Inbox, Limits, MessageId, Status, UserId,
    conversation::{Shown, Version},
    port::{
        Around, ByActivity, Cache, CacheKey, Conversations, Counted, Facts, History, Kept, ListMark, Listed, Order,
        Page, PortResult, Turns,
    },
};

/// Conversations of a history, read through a cache.
pub struct Cached {
    history: Arc<dyn Conversations>,
    facts: Arc<dyn Facts>,
    cache: Arc<dyn Cache>,
    clock: Arc<dyn Clock>,
    limits: Arc<Limits>,
}

impl Cached {
    /// Those of this history.
    pub fn new(
        history: &Arc<dyn History>,
        cache: Arc<dyn Cache>,
        clock: Arc<dyn Clock>,
        limits: Arc<Limits>,
    ) -> Arc<Self> {
        Self::over(history.clone(), history.clone(), cache, clock, limits)
    }

    /// Those that these two answer for.
    pub fn over(
        history: Arc<dyn Conversations>,
        facts: Arc<dyn Facts>,
        cache: Arc<dyn Cache>,
        clock: Arc<dyn Clock>,
        limits: Arc<Limits>,
    ) -> Arc<Self> {
        Arc::new(Self { history, facts, cache, clock, limits })
    }

    async fn kept(&self, key: &CacheKey) -> Option<Arc<Kept>> {
        self.cache.get(std::slice::from_ref(key)).await.pop().flatten()
    }

    async fn keep(&self, key: CacheKey, page: Kept, ms: u64) {
        if ms > 0 {
            self.cache.put(vec![(key, Arc::new(page), ms)]).await;
        }
    }

    /// The newest turns.
    async fn newest(&self, id: ConversationId, limit: usize) -> PortResult<Page<Shown, u64>> {
        let key = CacheKey::Turns(id);
        let ids = [id];
        let (row, kept) = futures::join!(self.history.conversations(&ids), self.kept(&key));
        let Some(row) = row?.pop().flatten() else { return Ok(Page { rows: Vec::new(), next: None }) };
        if let Some(Kept::Turns(turns)) = kept.as_deref() {
            if turns.version == row.version {
                count(&key, "hit");
                return self.ticked(turns, limit).await;
            }
            count(&key, "old");
        } else {
            count(&key, "miss");
        }
        // Whatever is read now is at least as new as the row.
        let page = self.history.turns(id, Order::Newest, None, self.limits.chat.cache_turns).await?;
        let ms = self.turns_ms(&page.rows);
        let turns = Turns { version: row.version, rows: page.rows, next: page.next };
        let shown = cut(&turns.rows, turns.next, limit, |shown| shown.turn.seq);
        self.keep(key, Kept::Turns(turns), ms).await;
        Ok(shown)
    }

    /// Kept turns with what became of their messages by now. `Read` is the last that can become of one.
    async fn ticked(&self, turns: &Turns, limit: usize) -> PortResult<Page<Shown, u64>> {
        let mut page = cut(&turns.rows, turns.next, limit, |shown| shown.turn.seq);
        let open = |shown: &&mut Shown| shown.state.status() != Status::Read;
        let ids: Vec<MessageId> = page.rows.iter_mut().filter(open).map(|shown| shown.turn.message.id).collect();
        let states = self.facts.states(&ids).await?;
        for (shown, state) in page.rows.iter_mut().filter(open).zip(states) {
            shown.state = state;
        }
        Ok(page)
    }

    /// How long turns may be kept: until retention comes for the oldest.
    fn turns_ms(&self, rows: &[Shown]) -> u64 {
        let now = self.clock.wall();
        let ends = rows.last().map(|shown| shown.turn.recorded_at.plus_ms(self.limits.message.retention_ms));
        self.limits.chat.cache_ms.min(ends.map_or(u64::MAX, |ends| ends.ms_since(now)))
    }

    /// The first page of a list.
    async fn first(
        &self,
        user: &UserId,
        archived: bool,
        limit: usize,
    ) -> PortResult<Option<Page<Conversation, ByActivity>>> {
        let rows = self.limits.chat.cache_turns;
        let key = CacheKey::List { user: user.clone(), archived };
        let (mark, kept) = futures::join!(self.history.list_mark(user, archived, rows), self.kept(&key));
        let Some(mark) = mark? else { return Ok(None) };
        if let Some(Kept::Listed(list)) = kept.as_deref() {
            if list.mark == mark.mark {
                count(&key, "hit");
                return Ok(Some(cut(&list.rows, list.next, limit, ByActivity::of)));
            }
            count(&key, "old");
        } else {
            count(&key, "miss");
        }
        let page = self.history.by_user(user, archived, None, rows).await?;
        let list = Listed { mark: mark.mark, rows: page.rows, next: page.next };
        let shown = cut(&list.rows, list.next, limit, ByActivity::of);
        if stands(&mark, &list.rows) {
            self.keep(key, Kept::Listed(list), self.limits.chat.cache_ms).await;
        }
        Ok(Some(shown))
    }

    fn fits(&self, limit: usize) -> bool {
        limit.max(1) <= self.limits.chat.cache_turns
    }
}

/// Whether a list shows what its mark tells of.
fn stands(mark: &ListMark, rows: &[Conversation]) -> bool {
    let versions: HashMap<ConversationId, Version> = rows.iter().map(|row| (row.id, row.version)).collect();
    mark.rows.iter().all(|(id, version)| versions.get(id).is_some_and(|read| read >= version))
}

/// The first rows of a page, and where it goes on from there.
fn cut<T: Clone, C>(rows: &[T], next: Option<C>, limit: usize, place: impl Fn(&T) -> C) -> Page<T, C> {
    let limit = limit.max(1);
    if rows.len() <= limit {
        return Page { rows: rows.to_vec(), next };
    }
    let rows = rows[..limit].to_vec();
    let next = rows.last().map(place);
    Page { rows, next }
}

fn count(key: &CacheKey, outcome: &'static str) {
    metrics::counter!("esh3ar_cache_reads_total", "page" => key.word(), "outcome" => outcome).increment(1);
}

#[async_trait]
impl Conversations for Cached {
    async fn conversations(&self, ids: &[ConversationId]) -> PortResult<Vec<Option<Conversation>>> {
        self.history.conversations(ids).await
    }

    async fn owned(&self, asked: &[(ConversationId, Vec<Inbox>)]) -> PortResult<Vec<Option<Conversation>>> {
        self.history.owned(asked).await
    }

    async fn counted(&self, asked: &[(ConversationId, MessageId)]) -> PortResult<Vec<Option<Counted>>> {
        self.history.counted(asked).await
    }

    async fn by_user(
        &self,
        user: &UserId,
        archived: bool,
        from: Option<ByActivity>,
        limit: usize,
    ) -> PortResult<Page<Conversation, ByActivity>> {
        if from.is_none()
            && self.fits(limit)
            && let Some(page) = self.first(user, archived, limit).await?
        {
            return Ok(page);
        }
        self.history.by_user(user, archived, from, limit).await
    }

    async fn turns(
        &self,
        id: ConversationId,
        order: Order,
        from: Option<u64>,
        limit: usize,
    ) -> PortResult<Page<Shown, u64>> {
        if order == Order::Newest && from.is_none() && self.fits(limit) {
            return self.newest(id, limit).await;
        }
        self.history.turns(id, order, from, limit).await
    }

    async fn around(&self, id: ConversationId, message: MessageId, limit: usize) -> PortResult<Option<Around>> {
        self.history.around(id, message, limit).await
    }

    async fn said(&self, ids: &[MessageId]) -> PortResult<Vec<Option<Shown>>> {
        self.history.said(ids).await
    }

    async fn unread_total(&self, user: &UserId) -> PortResult<u64> {
        self.history.unread_total(user).await
    }

    async fn list_mark(&self, user: &UserId, archived: bool, limit: usize) -> PortResult<Option<ListMark>> {
        self.history.list_mark(user, archived, limit).await
    }
}
