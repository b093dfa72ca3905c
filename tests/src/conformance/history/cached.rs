//! Conversations read through a cache: never anything but what history shows, whatever the cache loses, brings late or
//! cannot tell, and at what cost.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

use async_trait::async_trait;
use futures::future::join_all;
use parking_lot::Mutex;
use proptest::prelude::*;
use schemas::{
    Clock, Conversation, ConversationId, Fact, Limits, MessageId, State, Timestamp, UserId, What,
    conversation::{Command, Shown, Side, UpTo},
    port::{
        Around, ByActivity, Cache, CacheKey, Conversations, Facts, History, Kept, ListMark, Order, Page, PortResult,
        Settled,
    },
    time::ManualClock,
    view::Item,
};
use stores::cache::{Cached, LocalCache};

use super::{
    Installation,
    conversations::{everybody, happen, happenings},
    kit::*,
    talking::{Desk, business, mobile},
};

/// A cache that loses what it is told to forget, keeps some pages only later, when they are old, and at times has nothing.
struct Unreliable {
    inner: LocalCache,
    late: Mutex<Vec<(CacheKey, Arc<Kept>, u64)>>,
    seed: AtomicU64,
    away: AtomicBool,
}

impl Unreliable {
    fn new(clock: Arc<dyn Clock>, limits: &Limits, seed: u64) -> Arc<Self> {
        let inner = LocalCache::new(clock, &limits.chat);
        let (late, seed, away) = (Mutex::default(), AtomicU64::new(seed), AtomicBool::new(false));
        Arc::new(Self { inner, late, seed, away })
    }

    fn chance(&self, of: u64) -> bool {
        let next = |seed: u64| seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let seed = self.seed.fetch_update(SeqCst, SeqCst, |seed| Some(next(seed))).unwrap();
        (seed >> 33).is_multiple_of(of)
    }
}

#[async_trait]
impl Cache for Unreliable {
    async fn get(&self, keys: &[CacheKey]) -> Vec<Option<Arc<Kept>>> {
        if self.away.load(SeqCst) || self.chance(9) {
            return keys.iter().map(|_| None).collect();
        }
        if self.chance(3) {
            let late = std::mem::take(&mut *self.late.lock());
            self.inner.put(late).await;
        }
        self.inner.get(keys).await
    }

    async fn put(&self, pages: Vec<(CacheKey, Arc<Kept>, u64)>) {
        if self.away.load(SeqCst) {
            return;
        }
        if self.chance(2) {
            self.late.lock().extend(pages);
        } else {
            self.inner.put(pages).await;
        }
    }

    async fn forget(&self, _keys: &[CacheKey]) {}
}

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::at(NOON))
}

fn limits(turns: usize) -> Arc<Limits> {
    let mut limits = Limits::default();
    limits.chat.cache_turns = turns;
    Arc::new(limits)
}

/// What people are shown of turns. What is kept of a message beyond that grows after it was read, and nobody sees it here.
fn items(page: &Page<Shown, u64>, user: &UserId) -> (Vec<Item>, Option<u64>) {
    (page.rows.iter().map(|shown| Item::of_turn(shown, user)).collect(), page.next)
}

/// The nodes show what history shows: every conversation, every list, pages of this size. Asked together, as people do.
async fn agree(nodes: &[Arc<Cached>], history: &dyn History, desk: &Desk, limit: usize) {
    let threads = desk.rows.iter().map(async |(id, row)| {
        let truth = history.turns(*id, Order::Newest, None, limit).await.unwrap();
        for node in nodes {
            let page = node.turns(*id, Order::Newest, None, limit).await.unwrap();
            for user in Side::BOTH.map(|side| row.user(side)) {
                assert_eq!(items(&page, &user), items(&truth, &user));
            }
            let edits = |page: &Page<Shown, u64>| page.rows.iter().map(|shown| shown.edits).collect::<Vec<_>>();
            assert_eq!(edits(&page), edits(&truth));
        }
    });
    let lists = everybody(desk).into_iter().flat_map(|user| [(user.clone(), false), (user, true)]);
    let lists = lists.map(async |(user, archived)| {
        let truth = history.by_user(&user, archived, None, limit).await.unwrap();
        assert_eq!(truth.rows, desk.model.by_user(&user, archived, None, limit).rows);
        for node in nodes {
            assert_eq!(node.by_user(&user, archived, None, limit).await.unwrap(), truth, "{user} {archived}");
        }
    });
    tokio::join!(join_all(threads), join_all(lists));
}

/// P10, R10.4: random writes, deliveries and reads; what comes through the cache of each of two nodes, and through one that
/// they share, is what history shows, although the caches are told of nothing.
pub async fn p10_what_the_cache_shows_is_what_history_shows(bed: &mut dyn Installation) {
    let (history, other) = (bed.history(), bed.another().await);
    let input = (happenings(40), 1usize..6, 1usize..7, 3usize..7, any::<u64>());
    property_of(bed.long_cases(), &input, async |(happenings, batch, limit, kept, seed)| {
        let (mut desk, mut said, clock) = (Desk::new(3), Vec::new(), clock());
        let limits = limits(kept);
        let cache = |n| Unreliable::new(clock.clone(), &limits, seed ^ n);
        let shared = cache(3);
        let node = |history: &Arc<dyn History>, cache: Arc<Unreliable>| {
            Cached::new(history, cache, clock.clone(), limits.clone())
        };
        let nodes =
            [node(&history, cache(1)), node(&other, cache(2)), node(&history, shared.clone()), node(&other, shared)];
        let mut told: Vec<Fact> = Vec::new();
        for (n, chunk) in happenings.chunks(batch).enumerate() {
            for happening in chunk {
                happen(&mut desk, *happening, &mut said);
            }
            let (entries, _) = desk.record(&*history).await;
            agree(&nodes, &*history, &desk, limit).await;
            // Ticks are no change of a conversation: they come beside it.
            let what = [What::Sent, What::Delivered, What::Read][n % 3];
            told.extend(entries.iter().step_by(2).map(|entry| fact(entry, what, n as i64)));
            let some: Vec<_> = told.iter().skip(n % 2).step_by(2).cloned().collect();
            history.settle(&some).await.unwrap();
            agree(&nodes, &*history, &desk, limit).await;
            clock.pass([1, 60_000, 200_000][n % 3]);
        }
    });
}

/// R10.7: while many read the same pages through all nodes, a write that was confirmed is in the next read of each.
pub async fn r10_7_a_confirmed_write_is_seen_through_every_node_at_once(bed: &mut dyn Installation) {
    let (history, other) = (bed.history(), bed.another().await);
    let (mut desk, clock, limits) = (Desk::new(3), clock(), limits(50));
    let shared: Arc<dyn Cache> = Arc::new(LocalCache::new(clock.clone(), &limits.chat));
    let own: Arc<dyn Cache> = Arc::new(LocalCache::new(clock.clone(), &limits.chat));
    let node = |history: &Arc<dyn History>, cache: &Arc<dyn Cache>| {
        Cached::new(history, cache.clone(), clock.clone(), limits.clone())
    };
    let nodes = [node(&history, &shared), node(&other, &shared), node(&other, &own)];
    let pairs: Vec<_> = (0..4).map(|n| desk.pair("sara", n)).collect();
    let ended = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..6)
        .map(|n| {
            let (node, pair, ended) = (nodes[n % 3].clone(), pairs[n % 4].clone(), ended.clone());
            tokio::spawn(async move {
                let mut seen = 0;
                while !ended.load(SeqCst) {
                    let page = node.turns(pair.id(), Order::Newest, None, 50).await.unwrap();
                    let last = page.rows.first().map_or(0, |shown| shown.turn.seq);
                    assert!(last >= seen, "it went back from {seen} to {last}");
                    seen = last;
                    node.by_user(&pair.business(), false, None, 50).await.unwrap();
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for n in 0..120_usize {
        let pair = &pairs[n % 4];
        desk.now = desk.now.plus_ms(1);
        match n % 10 {
            8 => drop(desk.ask(pair, business("sara"), Command::Read { up_to: UpTo::Seq(9_999) })),
            9 => drop(desk.ask(pair, mobile(n as u32 % 4), Command::Archive(true))),
            _ => drop(desk.say(pair, if n % 3 == 0 { Side::Mobile } else { Side::Business }, "hello")),
        }
        desk.record(&*history).await;
        let row = desk.rows[&pair.id()].clone();
        for node in &nodes {
            let page = node.turns(pair.id(), Order::Newest, None, 50).await.unwrap();
            assert_eq!(page.rows.first().map(|shown| shown.turn.seq), Some(row.last_seq));
            for user in [pair.business(), pair.mobile()] {
                let expected = desk.model.by_user(&user, false, None, 50);
                assert_eq!(node.by_user(&user, false, None, 50).await.unwrap().rows, expected.rows);
            }
        }
    }
    ended.store(true, SeqCst);
    for reader in readers {
        reader.await.unwrap();
    }
}

/// R8.7: a cache that has nothing, goes away in the middle or is switched off costs time and no answer.
pub async fn r8_7_without_a_cache_everything_answers(bed: &mut dyn Installation) {
    let (history, mut desk, clock) = (bed.history(), Desk::new(3), clock());
    let cache = Unreliable::new(clock.clone(), &limits(50), 7);
    let through = Cached::new(&history, cache.clone(), clock.clone(), limits(50));
    let off = Cached::new(&history, cache.clone(), clock.clone(), limits(0));
    for n in 0..12 {
        let pair = desk.pair("sara", n % 3);
        desk.now = desk.now.plus_ms(10);
        let id = desk.say(&pair, Side::Business, "hello").unwrap();
        desk.record(&*history).await;
        cache.away.store(n % 4 >= 2, SeqCst);
        agree(&[through.clone(), off.clone()], &*history, &desk, 5).await;
        let ids = [pair.id()];
        assert_eq!(through.conversations(&ids).await.unwrap(), history.conversations(&ids).await.unwrap());
        assert_eq!(through.said(&[id]).await.unwrap(), history.said(&[id]).await.unwrap());
        let around = history.around(pair.id(), id, 5).await.unwrap();
        assert_eq!(through.around(pair.id(), id, 5).await.unwrap(), around);
        let total = history.unread_total(&pair.mobile()).await.unwrap();
        assert_eq!(through.unread_total(&pair.mobile()).await.unwrap(), total);
        let oldest = history.turns(pair.id(), Order::Oldest, None, 5).await.unwrap();
        assert_eq!(through.turns(pair.id(), Order::Oldest, None, 5).await.unwrap(), oldest);
    }
}

/// A history whose reads are counted.
struct Counted {
    history: Arc<dyn History>,
    calls: Mutex<HashMap<&'static str, usize>>,
}

impl Counted {
    fn count(&self, what: &'static str, by: usize) {
        *self.calls.lock().entry(what).or_default() += by;
    }

    fn take(&self) -> Vec<(&'static str, usize)> {
        let mut calls: Vec<_> = std::mem::take(&mut *self.calls.lock()).into_iter().collect();
        calls.sort_unstable();
        calls
    }
}

#[async_trait]
impl Conversations for Counted {
    async fn conversations(&self, ids: &[ConversationId]) -> PortResult<Vec<Option<Conversation>>> {
        self.count("rows", ids.len());
        self.history.conversations(ids).await
    }
    async fn by_user(
        &self,
        user: &UserId,
        archived: bool,
        from: Option<ByActivity>,
        limit: usize,
    ) -> PortResult<Page<Conversation, ByActivity>> {
        self.count("list", 1);
        self.history.by_user(user, archived, from, limit).await
    }
    async fn turns(
        &self,
        id: ConversationId,
        order: Order,
        from: Option<u64>,
        limit: usize,
    ) -> PortResult<Page<Shown, u64>> {
        self.count("turns", 1);
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
        self.count("mark", 1);
        self.history.list_mark(user, archived, limit).await
    }
}

#[async_trait]
impl Facts for Counted {
    async fn settle(&self, facts: &[Fact]) -> PortResult<Vec<Settled>> {
        self.history.settle(facts).await
    }
    async fn states(&self, ids: &[MessageId]) -> PortResult<Vec<State>> {
        self.count("states", ids.len());
        self.history.states(ids).await
    }
}

/// R8.1: five minutes long a page costs the row or the mark that says it holds, and the ticks that may still come.
pub async fn r8_1_a_page_that_holds_costs_one_look_and_no_page(bed: &mut dyn Installation) {
    let (mut desk, clock, limits) = (Desk::new(3), clock(), limits(50));
    let counted = Arc::new(Counted { history: bed.history(), calls: Mutex::default() });
    let cache = Arc::new(LocalCache::new(clock.clone(), &limits.chat));
    let node = Cached::over(counted.clone(), counted.clone(), cache, clock.clone(), limits.clone());
    let (pair, other) = (desk.pair("sara", 1), desk.pair("sara", 2));
    for n in 0..60 {
        desk.now = desk.now.plus_ms(10);
        desk.say(&pair, if n % 2 == 0 { Side::Mobile } else { Side::Business }, "hello").unwrap();
    }
    desk.say(&other, Side::Mobile, "hello").unwrap();
    let history = counted.history.clone();
    let (entries, _) = desk.record(&*history).await;
    // All but the last three were read.
    let own = |entry: &&schemas::port::Entry| entry.inbox.user == entry.message.to;
    let read: Vec<_> = entries.iter().filter(own).take(57).map(|entry| fact(entry, What::Read, 5)).collect();
    history.settle(&read).await.unwrap();
    let turns = async || node.turns(pair.id(), Order::Newest, None, 50).await.unwrap();
    let list = async || node.by_user(&pair.business(), false, None, 50).await.unwrap();
    turns().await;
    assert_eq!(counted.take(), [("rows", 1), ("turns", 1)], "the first reader brings it");
    for _ in 0..3 {
        assert_eq!(turns().await.rows.len(), 50);
        assert_eq!(counted.take(), [("rows", 1), ("states", 3)]);
    }
    list().await;
    assert_eq!(counted.take(), [("list", 1), ("mark", 1)]);
    for _ in 0..3 {
        assert_eq!(list().await.rows.len(), 2);
        assert_eq!(counted.take(), [("mark", 1)]);
    }
    // A page that asks for less is cut from it, one that asks for more is history's.
    node.turns(pair.id(), Order::Newest, None, 2).await.unwrap();
    assert_eq!(counted.take(), [("rows", 1), ("states", 2)]);
    node.turns(pair.id(), Order::Newest, None, 51).await.unwrap();
    assert_eq!(counted.take(), [("turns", 1)]);
    // A change of the conversation is a new page, of it and of its list.
    desk.now = desk.now.plus_ms(10);
    desk.say(&pair, Side::Mobile, "and now").unwrap();
    desk.record(&*history).await;
    assert_eq!(turns().await.rows[0].turn.message.content.body, "and now");
    assert_eq!(counted.take(), [("rows", 1), ("turns", 1)]);
    assert_eq!(list().await.rows[0].last_seq, 61);
    assert_eq!(counted.take(), [("list", 1), ("mark", 1)]);
    // The other conversation's page was none of that.
    node.turns(other.id(), Order::Newest, None, 50).await.unwrap();
    counted.take();
    clock.pass(limits.chat.cache_ms - 1);
    node.turns(other.id(), Order::Newest, None, 50).await.unwrap();
    assert_eq!(counted.take(), [("rows", 1), ("states", 1)]);
    clock.pass(1);
    node.turns(other.id(), Order::Newest, None, 50).await.unwrap();
    assert_eq!(counted.take(), [("rows", 1), ("turns", 1)], "five minutes are over");
}

/// R11.4: a page is not kept past the time at which retention comes for what is in it.
pub async fn what_retention_takes_is_not_shown_from_the_cache(bed: &mut dyn Installation) {
    let (history, mut desk, clock) = (bed.history(), Desk::new(3), clock());
    let limits = {
        let mut limits = Limits::default();
        limits.message.retention_ms = 100_000;
        Arc::new(limits)
    };
    let cache = Arc::new(LocalCache::new(clock.clone(), &limits.chat));
    let node = Cached::new(&history, cache, clock.clone(), limits);
    let pair = desk.pair("sara", 1);
    let mut entries = Vec::new();
    for _ in 0..3 {
        desk.say(&pair, Side::Mobile, "hello").unwrap();
        let (some, _) = desk.record(&*history).await;
        entries.extend(some);
        desk.now = desk.now.plus_ms(60_000);
    }
    let read: Vec<_> = entries.iter().map(|entry| fact(entry, What::Read, 5)).collect();
    history.settle(&read).await.unwrap();
    clock.pass(99_000);
    let seqs = async || -> Vec<u64> {
        let page = node.turns(pair.id(), Order::Newest, None, 50).await.unwrap();
        page.rows.iter().map(|shown| shown.turn.seq).collect()
    };
    assert_eq!(seqs().await, [3, 2, 1]);
    clock.pass(2_000);
    super::retention::sweep(&*history, desk.partition, Timestamp(NOON.0 + 1_000), 100).await;
    assert_eq!(seqs().await, [3, 2]);
}
