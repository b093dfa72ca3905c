//! The rules of the Cache port, for any adapter.

use std::sync::Arc;

use async_trait::async_trait;
use schemas::{
    ConversationId, Epoch, Partition, Sender, Timestamp, UserId,
    conversation::{Conversation, Pair, Shown, Turn, Version},
    limits::ChatLimits,
    message::Kind,
    port::{ByActivity, Cache, CacheKey, Kept, Listed, Turns},
};
use uuid::Uuid;

use super::history::kit;

/// Makes a cache, and lets time pass for it.
#[async_trait]
pub trait Maker: Send {
    /// Makes it, with these bounds.
    async fn open(&mut self, limits: ChatLimits) -> Arc<dyn Cache>;
    /// Lets so much time pass.
    async fn pass(&mut self, ms: u64);
}

/// One test of each rule.
#[macro_export]
macro_rules! cache_conformance {
    ($adapter:ident, $make:expr) => {
        $crate::rules!(cache, $adapter, $make;
            what_was_kept_is_given_whole,
            what_was_put_last_stands,
            nothing_is_given_after_its_time,
            what_was_forgotten_is_not_given,
            keys_share_nothing,
            a_page_that_is_too_large_takes_the_place_of_nothing,
            many_at_once_are_each_given_their_own,
        );
    };
}

/// Longer than any test.
const HOUR_MS: u64 = 3_600_000;

fn user(name: &str) -> UserId {
    UserId::business(kit::tenant(), name.parse().expect("a name"))
}

fn list_key(user: &UserId, archived: bool) -> CacheKey {
    CacheKey::List { user: user.clone(), archived }
}

fn turns_key(n: u128) -> CacheKey {
    CacheKey::Turns(ConversationId(Uuid::from_u128(n)))
}

fn listed(mark: u64, rows: usize) -> Arc<Kept> {
    let tenant = kit::tenant();
    let row = |n| {
        let pair = Pair { tenant: tenant.clone(), business: "sara".parse().expect("a name"), mobile: kit::phone(n) };
        Conversation::open(pair, Partition(3), Epoch(1), Timestamp(i64::from(n)))
    };
    let rows: Vec<_> = (0..rows as u32).map(row).collect();
    let next = rows.last().map(ByActivity::of);
    Arc::new(Kept::Listed(Listed { mark, rows, next }))
}

fn turns(version: u64, body: &str) -> Arc<Kept> {
    let to = kit::inbox(&kit::tenant(), 1);
    let conversation = ConversationId(Uuid::from_u128(7));
    let mut message = kit::message(&to);
    (message.kind, message.from) = (Kind::Chat(conversation), Sender::User("business:sara".parse().expect("a party")));
    body.clone_into(&mut message.content.body);
    let turn = Turn {
        conversation,
        seq: 9,
        to_mobile: 5,
        to_business: 4,
        version: Version(version),
        recorded_at: kit::NOON,
        message: Arc::new(message.clone()),
        of: None,
    };
    let facts = [kit::placeless(&message, &to, schemas::What::Delivered, 5)];
    let edit = (kit::NOON, Kind::Edit(conversation, message.id), message.content);
    let shown = Shown::of(turn, kit::merged(&facts), [edit]);
    Arc::new(Kept::Turns(Turns { version: Version(version), rows: vec![shown], next: Some(8) }))
}

async fn one(cache: &dyn Cache, key: &CacheKey) -> Option<Arc<Kept>> {
    cache.get(std::slice::from_ref(key)).await.pop().expect("an answer a key")
}

/// Every field of it, both kinds, in the order they were asked for.
pub async fn what_was_kept_is_given_whole(mut maker: impl Maker) {
    let cache = maker.open(ChatLimits::default()).await;
    let (list, thread) = (list_key(&user("sara"), false), turns_key(1));
    assert_eq!(cache.get(&[list.clone(), thread.clone()]).await, [None, None]);
    let (kept_list, kept_turns) = (listed(u64::MAX, 50), turns(3, "hello \u{1f44b}"));
    cache.put(vec![(list.clone(), kept_list.clone(), HOUR_MS), (thread.clone(), kept_turns.clone(), HOUR_MS)]).await;
    let given = cache.get(&[thread, turns_key(2), list]).await;
    assert_eq!(given, [Some(kept_turns), None, Some(kept_list)]);
    assert!(cache.get(&[]).await.is_empty());
}

/// Whatever it says of itself: whoever reads it compares.
pub async fn what_was_put_last_stands(mut maker: impl Maker) {
    let cache = maker.open(ChatLimits::default()).await;
    let key = turns_key(1);
    for version in [5, 7, 6] {
        let page = turns(version, "hello");
        cache.put(vec![(key.clone(), page.clone(), HOUR_MS)]).await;
        assert_eq!(one(&*cache, &key).await, Some(page));
    }
}

/// R8.1: five minutes are five minutes; each has its own time.
pub async fn nothing_is_given_after_its_time(mut maker: impl Maker) {
    let cache = maker.open(ChatLimits::default()).await;
    let page = turns(1, "hello");
    cache.put(vec![(turns_key(1), page.clone(), 2_000), (turns_key(2), page.clone(), HOUR_MS)]).await;
    assert_eq!(cache.get(&[turns_key(1), turns_key(2)]).await, [Some(page.clone()), Some(page.clone())]);
    maker.pass(2_200).await;
    assert_eq!(cache.get(&[turns_key(1), turns_key(2)]).await, [None, Some(page.clone())]);
    cache.put(vec![(turns_key(1), page.clone(), 2_000)]).await;
    assert_eq!(one(&*cache, &turns_key(1)).await, Some(page), "its time begins anew");
}

/// A person who is erased is not given any more.
pub async fn what_was_forgotten_is_not_given(mut maker: impl Maker) {
    let cache = maker.open(ChatLimits::default()).await;
    let page = listed(1, 3);
    let keys = [list_key(&user("sara"), false), list_key(&user("sara"), true), turns_key(1)];
    cache.put(keys.iter().map(|key| (key.clone(), page.clone(), HOUR_MS)).collect()).await;
    cache.forget(&keys[..2]).await;
    assert_eq!(cache.get(&keys).await, [None, None, Some(page.clone())]);
    cache.forget(&keys).await;
    assert_eq!(cache.get(&keys).await, [None, None, None]);
    cache.put(vec![(keys[0].clone(), page.clone(), HOUR_MS)]).await;
    assert_eq!(one(&*cache, &keys[0]).await, Some(page));
}

/// Invariant 11: another tenant's user of the same name, and one's other list, are other pages.
pub async fn keys_share_nothing(mut maker: impl Maker) {
    let cache = maker.open(ChatLimits::default()).await;
    let (here, there) = (user("sara"), user("sara"));
    let mobile = UserId::mobile(here.tenant.clone(), kit::phone(1));
    let keys = [
        list_key(&here, false),
        list_key(&here, true),
        list_key(&there, false),
        list_key(&mobile, false),
        turns_key(1),
        turns_key(2),
    ];
    for (n, key) in keys.iter().enumerate() {
        cache.put(vec![(key.clone(), listed(n as u64, 1), HOUR_MS)]).await;
    }
    for (n, key) in keys.iter().enumerate() {
        let given = one(&*cache, key).await;
        assert!(matches!(given.as_deref(), Some(Kept::Listed(list)) if list.mark == n as u64), "{key}: {given:?}");
    }
}

/// Neither is it kept, nor is what it was to replace given in its place.
pub async fn a_page_that_is_too_large_takes_the_place_of_nothing(mut maker: impl Maker) {
    let limits = ChatLimits { cache_page_bytes: 8_000, ..ChatLimits::default() };
    let cache = maker.open(limits).await;
    let (key, small) = (turns_key(1), turns(1, "hello"));
    cache.put(vec![(key.clone(), small.clone(), HOUR_MS)]).await;
    assert_eq!(one(&*cache, &key).await, Some(small));
    cache.put(vec![(key.clone(), turns(2, &"a".repeat(9_000)), HOUR_MS)]).await;
    assert_eq!(one(&*cache, &key).await, None);
}

/// Callers at the same time do not meet each other's.
pub async fn many_at_once_are_each_given_their_own(mut maker: impl Maker) {
    let cache = maker.open(ChatLimits::default()).await;
    let calls = (0..200_u64).map(|n| {
        let cache = cache.clone();
        tokio::spawn(async move {
            let key = turns_key(u128::from(n));
            cache.put(vec![(key.clone(), listed(n, 2), HOUR_MS)]).await;
            let given = one(&*cache, &key).await;
            assert!(matches!(given.as_deref(), Some(Kept::Listed(list)) if list.mark == n), "{n}: {given:?}");
        })
    });
    for call in futures::future::join_all(calls).await {
        call.expect("it was given its own");
    }
}
