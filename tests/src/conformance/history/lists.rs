//! Lists: an inbox in pages, and the one-way history both ways.

use proptest::prelude::*;
use schemas::{
    ConversationId, Kind, Name, Position, Reason, What,
    port::{Entry, History, Order, Schedule},
};

use super::{Installation, kit::*};

/// Whatever the page size and however many entries: in order, all of them, each once.
pub async fn pages_of_any_size_add_up_to_the_inbox(bed: &mut dyn Installation) {
    let (history, tenant) = (bed.history(), tenant());
    let inbox = inbox(&tenant, 1);
    let written = entries(&inbox, 120);
    record(&*history, &written).await;
    property(&(1usize..130, 0u64..125), async |(limit, from)| {
        let (mut from, mut read, start) = (at(from), Vec::new(), from as usize);
        loop {
            let span = history.read(&inbox, from, limit).await.unwrap();
            assert!(span.entries.len() <= limit && !span.passed_by_retention);
            let page = entries_of(span);
            let Some(last) = page.last() else { break };
            from = last.position;
            read.extend(page);
        }
        assert_eq!(read, written.get(start..).unwrap_or_default());
    });
}

async fn listed(history: &dyn History, inbox: &schemas::Inbox, order: Order, limit: usize) -> Vec<Entry> {
    let (mut from, mut rows) = (None, Vec::new());
    loop {
        let page = history.one_way(inbox, order, from, limit).await.unwrap();
        assert!(page.rows.len() <= limit);
        rows.extend(page.rows.into_iter().map(|(entry, _)| entry));
        match page.next {
            Some(next) => from = Some(next),
            None => return rows,
        }
    }
}

/// R1.8: chronological, paged, oldest or newest first.
pub async fn one_way_history_reads_the_same_both_ways(bed: &mut dyn Installation) {
    let (history, tenant) = (bed.history(), tenant());
    let user = std::sync::atomic::AtomicU32::new(0);
    property(&(0u64..40, 1usize..45), async |(count, limit)| {
        let inbox = inbox(&tenant, user.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let mut written = entries(&inbox, count);
        if count > 0 {
            record(&*history, &written).await;
        }
        assert_eq!(listed(&*history, &inbox, Order::Oldest, limit).await, written);
        written.reverse();
        assert_eq!(listed(&*history, &inbox, Order::Newest, limit).await, written);
    });
}

/// R1.8: only one-way messages; chat stands in the same inbox and keeps its chain.
pub async fn chat_is_not_in_the_one_way_history(bed: &mut dyn Installation) {
    let (history, tenant) = (bed.history(), tenant());
    let user = std::sync::atomic::AtomicU32::new(0);
    let conversation = ConversationId::of_pair(&tenant, &Name::parse("sara").unwrap(), phone(1));
    property(&(proptest::collection::vec(any::<bool>(), 1..30), 1usize..8), async |(kinds, limit)| {
        let inbox = inbox(&tenant, user.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let (mut written, mut one_way) = (Vec::new(), 0);
        for (n, notice) in (1u64..).zip(&kinds) {
            let mut message = message(&inbox);
            if *notice {
                one_way += 1;
            } else {
                message.kind = Kind::Chat(conversation);
            }
            written.push(entry(&inbox, at(n), at(n - 1), one_way, message));
        }
        record(&*history, &written).await;
        assert_eq!(whole(&*history, &inbox).await, written, "catch-up gives both kinds");
        assert_eq!(history.unread(&inbox).await.unwrap().one_way, one_way);
        written.retain(|entry| entry.message.kind == Kind::OneWay);
        assert_eq!(listed(&*history, &inbox, Order::Oldest, limit).await, written);
        written.reverse();
        assert_eq!(listed(&*history, &inbox, Order::Newest, limit).await, written);
    });
}

/// Expired and cancelled entries are still read, with the state that says so: who catches up passes over them.
pub async fn withdrawn_entries_keep_the_chain_whole(bed: &mut dyn Installation) {
    let (history, inbox) = (bed.history(), inbox(&tenant(), 1));
    let written = entries(&inbox, 3);
    history.record(&written, &Schedule::default()).await.unwrap();
    history.settle(&[fact(&written[1], What::Failed(Reason::Cancelled), 1)]).await.unwrap();
    let span = history.read(&inbox, Position::START, 10).await.unwrap();
    let withdrawn: Vec<_> = span.entries.iter().map(|(_, state)| state.is_withdrawn()).collect();
    assert_eq!(withdrawn, [false, true, false]);
    let page = history.one_way(&inbox, Order::Newest, None, 10).await.unwrap();
    assert!(page.rows[1].1.is_withdrawn());
}
