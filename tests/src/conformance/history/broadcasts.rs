//! Broadcasts: stored as one, expanded little by little, resumed after a crash.

use proptest::prelude::*;
use schemas::{
    BroadcastId, Phone, Sender, Tenant, Timestamp,
    port::{Asked, Broadcast, BroadcastState, Expanding},
};
use uuid::Uuid;

use super::{Installation, kit::*};

fn broadcast(tenant: &Tenant, recipients: u64, ms: i64) -> Broadcast {
    let asked = Asked {
        tenant: tenant.clone(),
        from: Sender::Server,
        accepted_at: Timestamp(NOON.0 + ms),
        trace: None,
        draft: r#"{"to":"","content":"sale"}"#.into(),
        fingerprint: [7; 16],
    };
    let id = BroadcastId(Uuid::new_v4());
    Broadcast { id, asked, recipients, expanded: 0, state: BroadcastState::Running }
}

fn phones(count: u64) -> Vec<Phone> {
    (0..count).map(|n| phone(n as u32)).collect()
}

/// The same id again changes nothing and answers what is there.
pub async fn a_broadcast_begins_once(bed: &mut dyn Installation) {
    let tenant = tenant();
    let first = broadcast(&tenant, 3, 0);
    assert_eq!(bed.history().broadcast(first.id).await.unwrap(), None);
    assert_eq!(bed.history().begin(&first, &phones(3)).await.unwrap(), first);
    let there = bed.history().progress(first.id, 2, BroadcastState::Running).await.unwrap();
    assert_eq!(there.expanded, 2);
    let other = Broadcast { id: first.id, ..broadcast(&tenant, 1, 9) };
    assert_eq!(bed.history().begin(&other, &phones(1)).await.unwrap(), there);
    bed.restart().await;
    assert_eq!(bed.history().broadcast(first.id).await.unwrap(), Some(there));
    assert_eq!(bed.history().recipients(first.id, 0, 10).await.unwrap(), phones(3));
}

/// In the order given, from any place, as many as asked.
pub async fn recipients_come_in_order_from_anywhere(bed: &mut dyn Installation) {
    let history = bed.history();
    let all = phones(3_456);
    let big = broadcast(&tenant(), all.len() as u64, 0);
    history.begin(&big, &all).await.unwrap();
    property(&(0usize..3_600, 0usize..2_500), async |(from, limit)| {
        let some = history.recipients(big.id, from as u64, limit).await.unwrap();
        let rest = all.get(from..).unwrap_or_default();
        assert_eq!(some, rest[..limit.min(rest.len())]);
    });
    let stranger = BroadcastId(Uuid::new_v4());
    assert!(history.recipients(stranger, 0, 10).await.unwrap().is_empty());
}

/// Whatever is said of it in whatever order.
pub async fn progress_grows_and_what_is_over_stays_so(bed: &mut dyn Installation) {
    let (history, tenant) = (bed.history(), tenant());
    let states = prop_oneof![4 => Just(BroadcastState::Running), 1 => Just(BroadcastState::Done), 1 => Just(BroadcastState::Cancelled)];
    property(&proptest::collection::vec((0u64..=10, states), 1..8), async |told| {
        let begun = broadcast(&tenant, 10, 0);
        history.begin(&begun, &phones(10)).await.unwrap();
        let (mut expanded, mut state) = (0, BroadcastState::Running);
        for (upto, next) in told {
            let now = history.progress(begun.id, upto, next).await.unwrap();
            expanded = expanded.max(upto);
            if state == BroadcastState::Running {
                state = next;
            }
            assert_eq!((now.expanded, now.state), (expanded, state));
            assert_eq!(history.broadcast(begun.id).await.unwrap(), Some(now));
        }
        let running = history.running().await.unwrap().running.iter().any(|other| other.id == begun.id);
        assert_eq!(running, state == BroadcastState::Running);
    });
    let stranger = BroadcastId(Uuid::new_v4());
    assert!(history.progress(stranger, 1, BroadcastState::Running).await.is_err());
}

/// What one process began another goes on with: nobody is left out and nobody comes twice.
pub async fn running_ones_come_oldest_first_and_resume_after_a_crash(bed: &mut dyn Installation) {
    let tenant = tenant();
    let mine = |found: Expanding| -> Vec<_> {
        found.running.into_iter().filter(|b| b.asked.tenant == tenant).map(|b| b.id).collect()
    };
    let (young, old, over) = (broadcast(&tenant, 2_500, 20), broadcast(&tenant, 1, 10), broadcast(&tenant, 1, 5));
    for begun in [&young, &old, &over] {
        bed.history().begin(begun, &phones(begun.recipients)).await.unwrap();
    }
    bed.history().progress(over.id, 1, BroadcastState::Done).await.unwrap();
    assert_eq!(mine(bed.history().running().await.unwrap()), [old.id, young.id]);
    let mut reached = Vec::new();
    for step in [700usize, 1, 999, 800] {
        let history = bed.history();
        let now = history.broadcast(young.id).await.unwrap().unwrap();
        let some = history.recipients(young.id, now.expanded, step).await.unwrap();
        let upto = now.expanded + some.len() as u64;
        reached.extend(some);
        let state = if upto == now.recipients { BroadcastState::Done } else { BroadcastState::Running };
        history.progress(young.id, upto, state).await.unwrap();
        drop(history);
        bed.crash().await;
    }
    assert_eq!(reached, phones(2_500));
    assert_eq!(mine(bed.history().running().await.unwrap()), [old.id]);
}
