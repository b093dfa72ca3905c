//! Dead letters: listed, found, replaced, forgotten.

use schemas::{
    MessageId, Reason, Tenant, Timestamp,
    port::{Buried, Dead, Filter, History},
};
use std::sync::Arc;

use super::{Installation, kit::*};

fn dead(tenant: &Tenant, number: u32, ms: i64) -> Dead {
    let inbox = inbox(tenant, number);
    let message = message(&inbox);
    Dead {
        id: message.id,
        at: Timestamp(NOON.0 + ms),
        reason: Reason::NoAck,
        round: 0,
        attempts: 7,
        inbox,
        position: at(1),
        requeued_at: None,
        message: Some(Arc::new(message)),
    }
}

fn of(tenant: &Tenant) -> Filter {
    Filter { tenant: Some(tenant.clone()), ..Filter::default() }
}

async fn listed(history: &dyn History, filter: &Filter, limit: usize) -> Vec<Dead> {
    let (mut from, mut rows) = (None::<Buried>, Vec::new());
    loop {
        let page = history.dead(filter, from, limit).await.unwrap();
        assert!(page.rows.len() <= limit);
        rows.extend(page.rows);
        match page.next {
            Some(next) => from = Some(next),
            None => return rows,
        }
    }
}

fn ids(rows: &[Dead]) -> Vec<MessageId> {
    rows.iter().map(|dead| dead.id).collect()
}

/// All of them, newest first, whatever the page size, also when many died at the same moment.
pub async fn newest_first_in_pages_of_any_size(bed: &mut dyn Installation) {
    let history = bed.history();
    property(&(proptest::collection::vec(0i64..6, 0..25), 1usize..30), async |(times, limit)| {
        let tenant = tenant();
        let mut buried: Vec<_> = times.iter().map(|ms| dead(&tenant, 1, *ms)).collect();
        history.bury(&buried).await.unwrap();
        buried.sort_by_key(|dead| std::cmp::Reverse((dead.at, dead.id)));
        assert_eq!(listed(&*history, &of(&tenant), limit).await, buried);
    });
}

/// Every part of the filter, and all together.
pub async fn a_filter_takes_what_it_names(bed: &mut dyn Installation) {
    let (history, acme, other) = (bed.history(), tenant(), tenant());
    let mut rows: Vec<_> = (0..6).map(|n| dead(&acme, n as u32 % 2, n)).collect();
    rows[1].reason = Reason::Expired;
    rows[2].requeued_at = Some(NOON);
    rows.push(dead(&other, 0, 9));
    history.bury(&rows).await.unwrap();
    let time = |ms| Some(Timestamp(NOON.0 + ms));
    let filters = [
        of(&acme),
        of(&other),
        Filter { requeued: true, ..of(&acme) },
        Filter { reason: Some(Reason::Expired), ..of(&acme) },
        Filter { user: Some(user(&acme, 1)), ..of(&acme) },
        Filter { since: time(2), ..of(&acme) },
        Filter { until: time(4), ..of(&acme) },
        Filter { since: time(1), until: time(4), user: Some(user(&acme, 1)), requeued: true, ..of(&acme) },
        Filter { since: time(4), until: time(2), ..of(&acme) },
    ];
    for filter in filters {
        let mut taken: Vec<_> = rows.iter().filter(|dead| filter.takes(dead)).cloned().collect();
        taken.reverse();
        for limit in [1, 2, 100] {
            assert_eq!(ids(&listed(&*history, &filter, limit).await), ids(&taken), "{filter:?} in pages of {limit}");
        }
    }
}

/// By (id, round): once, with what was said last. The count is of those nobody requeued.
pub async fn burying_again_replaces_and_the_latest_round_is_found(bed: &mut dyn Installation) {
    let tenant = tenant();
    let (first, other) = (dead(&tenant, 1, 1), dead(&tenant, 2, 2));
    let before = bed.history().dead_count().await.unwrap();
    for _ in 0..2 {
        bed.history().bury(&[first.clone(), other.clone(), first.clone()]).await.unwrap();
        assert_eq!(bed.history().dead_count().await.unwrap(), before + 2);
    }
    let requeued = Dead { requeued_at: Some(NOON), ..first.clone() };
    bed.history().bury(std::slice::from_ref(&requeued)).await.unwrap();
    assert_eq!(bed.history().dead_count().await.unwrap(), before + 1);
    let second = Dead { round: 1, at: Timestamp(NOON.0 + 5), ..first.clone() };
    bed.history().bury(std::slice::from_ref(&second)).await.unwrap();
    // A time that changed moves it in the list and leaves nothing behind.
    let moved = Dead { at: Timestamp(NOON.0 + 9), ..other };
    bed.history().bury(std::slice::from_ref(&moved)).await.unwrap();
    bed.restart().await;
    let history = bed.history();
    assert_eq!(history.dead_count().await.unwrap(), before + 2);
    assert_eq!(history.dead_letter(first.id).await.unwrap(), Some(second.clone()));
    assert_eq!(history.dead_letter(message(&inbox(&tenant, 1)).id).await.unwrap(), None);
    assert_eq!(listed(&*history, &of(&tenant), 10).await, [moved.clone(), second.clone()]);
    let all = Filter { requeued: true, ..of(&tenant) };
    assert_eq!(listed(&*history, &all, 10).await, [moved, second, requeued]);
}

/// Kept seven days (R4.5), then removed with all that leads to them.
pub async fn old_ones_are_forgotten_a_piece_at_a_time(bed: &mut dyn Installation) {
    let history = bed.history();
    // Before everything that other cases bury.
    let ago = |ms: i64| Timestamp(NOON.0 - 1_000_000_000_000 + ms);
    while history.forget_dead(ago(1_000), 100).await.unwrap() > 0 {}
    let tenant = tenant();
    let rows: Vec<_> = (0..5).map(|n| Dead { at: ago(n), ..dead(&tenant, 1, 0) }).collect();
    let before = history.dead_count().await.unwrap();
    history.bury(&rows).await.unwrap();
    assert_eq!(history.forget_dead(ago(4), 3).await.unwrap(), 3);
    assert_eq!(ids(&listed(&*history, &of(&tenant), 10).await), ids(&[rows[4].clone(), rows[3].clone()]));
    assert_eq!(history.dead_letter(rows[0].id).await.unwrap(), None);
    assert_eq!(history.forget_dead(ago(4), 3).await.unwrap(), 1);
    assert_eq!(history.forget_dead(ago(4), 3).await.unwrap(), 0);
    assert_eq!(history.dead_count().await.unwrap(), before + 1);
    assert_eq!(history.forget_dead(ago(1_000), 3).await.unwrap(), 1);
}
