//! Cursors: how far each device is.

use std::collections::BTreeMap;

use futures::future::join_all;
use schemas::{Cursor, DeviceId, Partition, UserId, port::History};

use super::{Installation, kit::*};

fn device(name: &str) -> DeviceId {
    DeviceId::parse(name).expect("a device")
}

async fn cursors(history: &dyn History, user: &UserId) -> BTreeMap<DeviceId, Cursor> {
    let found = history.cursors(user).await.unwrap();
    let count = found.len();
    let found: BTreeMap<_, _> = found.into_iter().collect();
    assert_eq!(found.len(), count, "each device once");
    found
}

/// Visible when the call answers, durable soon after.
pub async fn a_moved_cursor_is_seen_at_once_and_survives_a_restart(bed: &mut dyn Installation) {
    let user = user(&tenant(), 1);
    assert!(bed.history().cursors(&user).await.unwrap().is_empty());
    let to = Cursor::at(Partition(3), at(7));
    bed.history().advance(&[(user.clone(), device("phone"), to.clone())]).await.unwrap();
    let expected = BTreeMap::from([(device("phone"), to)]);
    assert_eq!(cursors(&*bed.history(), &user).await, expected);
    bed.restart().await;
    assert_eq!(cursors(&*bed.history(), &user).await, expected);
}

/// No user's devices are another's, also where names begin alike.
pub async fn cursors_of_users_and_devices_keep_apart(bed: &mut dyn Installation) {
    let (history, tenant) = (bed.history(), tenant());
    let users: Vec<UserId> = ["business:a", "business:a.b", "business:ab", "+9627900000", "+96279000001"]
        .iter()
        .map(|name| format!("{tenant}/{name}").parse().unwrap())
        .collect();
    let mut moves = Vec::new();
    for (n, user) in (1u64..).zip(&users) {
        for (m, name) in (0u64..).zip(["p", "phone", "phone2"]) {
            moves.push((user.clone(), device(name), Cursor::at(Partition(3), at(10 * n + m))));
        }
    }
    history.advance(&moves).await.unwrap();
    for (n, user) in (1u64..).zip(&users) {
        let found = cursors(&*history, user).await;
        let expected: BTreeMap<_, _> = (0u64..)
            .zip(["p", "phone", "phone2"])
            .map(|(m, name)| (device(name), Cursor::at(Partition(3), at(10 * n + m))))
            .collect();
        assert_eq!(found, expected);
    }
}

/// Rule 6: whatever moves come in whatever order, in each partition the largest counts.
pub async fn a_stored_cursor_only_grows(bed: &mut dyn Installation) {
    let (history, tenant) = (bed.history(), tenant());
    let number = std::sync::atomic::AtomicU32::new(0);
    let moves = proptest::collection::vec((0usize..3, 0u16..3, 0u32..3, 0u64..20), 1..30);
    property(&(moves, 1usize..6), async |(moves, calls)| {
        let user = user(&tenant, number.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let mut model = BTreeMap::<DeviceId, Cursor>::new();
        for call in moves.chunks(calls) {
            let moves: Vec<_> = call
                .iter()
                .map(|(n, partition, epoch, to)| {
                    let cursor = Cursor::at(Partition(*partition), schemas::cursor::place(*epoch, *to));
                    (user.clone(), device(["a", "b", "c"][*n]), cursor)
                })
                .collect();
            history.advance(&moves).await.unwrap();
            for (_, device, cursor) in moves {
                model.entry(device).or_default().join(&cursor);
            }
            let found = cursors(&*history, &user).await;
            for (device, cursor) in &model {
                let stored = found.get(device).cloned().unwrap_or_default();
                for partition in (0..3).map(Partition) {
                    assert_eq!(stored.position(partition), cursor.position(partition));
                }
            }
        }
    });
}

/// Callers at the same moment do not undo each other.
pub async fn moves_at_once_lose_nothing(bed: &mut dyn Installation) {
    let (history, user) = (bed.history(), user(&tenant(), 1));
    let calls = (0..60u16).map(|n| {
        let (history, user) = (history.clone(), user.clone());
        tokio::spawn(async move {
            let to = Cursor::at(Partition(n % 20), at(u64::from(n / 20) + 1));
            history.advance(&[(user, device("phone"), to)]).await.unwrap();
        })
    });
    for call in join_all(calls).await {
        call.unwrap();
    }
    drop(history);
    for restarted in [false, true] {
        if restarted {
            bed.restart().await;
        }
        let cursor = cursors(&*bed.history(), &user).await.remove(&device("phone")).unwrap();
        assert!((0..20).all(|partition| cursor.position(Partition(partition)) == at(3)));
    }
}
