//! Tests of the engine: order, groups, bounds, and what happens when the disk or the folder is not as it should be.

use std::sync::Arc;

use bytes::Bytes;
use fjall::Keyspace;
use schemas::{limits::StoreLimits, port::PortError};

use super::*;
use crate::OpenError;

fn limits() -> StoreLimits {
    StoreLimits { free_bytes: 0, ..StoreLimits::default() }
}

fn put(to: &Keyspace, key: &str, value: &str) -> Write {
    Write::Put { to: to.clone(), key: key.into(), value: Bytes::copy_from_slice(value.as_bytes()) }
}

fn get(rows: &Keyspace, key: &str) -> Option<String> {
    rows.get(key).unwrap().map(|value| String::from_utf8(value.to_vec()).unwrap())
}

#[tokio::test]
async fn the_last_write_of_a_row_wins_within_a_group_too() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let engine = Engine::open(dir.path(), &limits()).unwrap();
        let rows = engine.keyspace("rows", Shape::Rows).unwrap();
        let mut last = None;
        for n in 0..50 {
            engine.submit(vec![put(&rows, "a", &n.to_string()), put(&rows, "b", "x")]).unwrap();
            last = Some(engine.submit(vec![Write::Remove { from: rows.clone(), key: "b".into() }]).unwrap());
        }
        last.unwrap().wait().await.unwrap();
        assert_eq!((get(&rows, "a"), get(&rows, "b")), (Some("49".into()), None));
        drop(rows);
        engine.close().await;
        drop(engine);
        let engine = Engine::open(dir.path(), &limits()).unwrap();
        let rows = engine.keyspace("rows", Shape::Rows).unwrap();
        assert_eq!((get(&rows, "a"), get(&rows, "b")), (Some("49".into()), None));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_that_come_together_share_a_sync() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path(), &limits()).unwrap();
    let rows = engine.keyspace("rows", Shape::Rows).unwrap();
    let writers = (0..64).map(|who| {
        let (engine, rows) = (engine.clone(), rows.clone());
        tokio::spawn(async move {
            for turn in 0..20 {
                engine.write(vec![put(&rows, &format!("{who}.{turn}"), "x")]).await.unwrap();
            }
        })
    });
    for writer in futures::future::join_all(writers).await {
        writer.unwrap();
    }
    let stats = engine.stats();
    assert_eq!((stats.jobs, stats.writes), (1_280, 1_280));
    assert!(stats.syncs * 4 < stats.jobs, "{stats:?}");
    assert_eq!(rows.len().unwrap(), 1_280);
}

#[tokio::test]
async fn a_full_queue_refuses_or_waits_as_asked() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path(), &StoreLimits { queue: 2, ..limits() }).unwrap();
    let rows = engine.keyspace("rows", Shape::Rows).unwrap();
    let rooms = (engine.room(1).await.unwrap(), engine.room(1).await.unwrap());
    assert!(matches!(engine.submit(vec![put(&rows, "a", "1")]), Err(PortError::Unavailable(_))));
    let waits = {
        let (engine, rows) = (engine.clone(), rows.clone());
        // Larger than the whole queue: it waits for all of it, and gets it.
        tokio::spawn(async move { engine.write(vec![put(&rows, "b", &"x".repeat(1_000_000))]).await })
    };
    tokio::task::yield_now().await;
    assert!(!waits.is_finished());
    drop(rooms);
    waits.await.unwrap().unwrap();
    assert!(get(&rows, "b").is_some());
}

#[tokio::test]
async fn closing_finishes_what_was_submitted_and_refuses_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path(), &limits()).unwrap();
    let rows = engine.keyspace("rows", Shape::Rows).unwrap();
    let pending: Vec<_> = (0..100).map(|n| engine.submit(vec![put(&rows, &n.to_string(), "x")]).unwrap()).collect();
    engine.close().await;
    for pending in pending {
        pending.wait().await.unwrap();
    }
    assert!(matches!(engine.submit(vec![put(&rows, "a", "1")]), Err(PortError::Unavailable(_))));
    assert!(matches!(engine.write(Vec::new()).await, Err(PortError::Unavailable(_))));
    assert_eq!(rows.len().unwrap(), 100);
}

#[tokio::test]
async fn a_full_disk_refuses_before_it_writes() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path(), &StoreLimits { free_bytes: u64::MAX, ..limits() }).unwrap();
    let rows = engine.keyspace("rows", Shape::Rows).unwrap();
    assert!(matches!(engine.check(), Err(PortError::Full(_))));
    assert!(matches!(engine.submit(vec![put(&rows, "a", "1")]), Err(PortError::Full(_))));
    assert!(engine.fatal().borrow().is_none(), "a refusal is not the end");
}

#[tokio::test]
async fn a_failed_sync_ends_everything_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path(), &limits()).unwrap();
    let rows = engine.keyspace("rows", Shape::Rows).unwrap();
    let mut fatal = engine.fatal();
    engine.poison("the disk is gone");
    fatal.changed().await.unwrap();
    assert_eq!(fatal.borrow().as_deref(), Some("the disk is gone"));
    let refusal = PortError::Unavailable("the disk is gone".into());
    assert_eq!(engine.write(vec![put(&rows, "a", "1")]).await, Err(refusal.clone()));
    assert_eq!(engine.submit(vec![put(&rows, "a", "1")]).map(drop), Err(refusal.clone()));
    assert_eq!(engine.check(), Err(refusal));
    assert_eq!(get(&rows, "a"), None);
}

#[tokio::test]
async fn a_key_the_journal_cannot_hold_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path(), &limits()).unwrap();
    let rows = engine.keyspace("rows", Shape::Rows).unwrap();
    let long = put(&rows, &"k".repeat(65_536), "1");
    assert!(matches!(engine.write(vec![long]).await, Err(PortError::Rejected(_))));
    engine.write(vec![put(&rows, &"k".repeat(65_535), "1")]).await.unwrap();
}

#[test]
fn a_second_opener_is_refused_with_the_folder_s_name() {
    let dir = tempfile::tempdir().unwrap();
    let first = Engine::open(dir.path(), &limits()).unwrap();
    let refusal = Engine::open(dir.path(), &limits()).map(drop).unwrap_err();
    assert!(matches!(refusal, OpenError::Busy { .. }));
    assert!(refusal.to_string().contains(&dir.path().display().to_string()), "{refusal}");
    drop(first);
    Engine::open(dir.path(), &limits()).map(drop).unwrap();
}

#[tokio::test]
async fn the_last_handle_may_go_with_an_answer() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path(), &limits()).unwrap();
    let rows = engine.keyspace("rows", Shape::Rows).unwrap();
    let (tell, told) = tokio::sync::oneshot::channel();
    let room = engine.room(1).await.unwrap();
    let held = Arc::new(engine.clone());
    let answer = move |outcome| {
        drop(held);
        drop(tell.send(outcome));
    };
    engine.submit_then(room, vec![put(&rows, "a", "1")], answer).unwrap();
    drop((engine, rows));
    assert_eq!(told.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn the_disk_of_removed_values_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path(), &limits()).unwrap();
    let rows = engine.keyspace("bodies", Shape::Bodies).unwrap();
    // Each generation is of the same 500 inboxes, as days of messages are.
    let key =
        |generation: u32, n: u32| [&(n % 500).to_be_bytes()[..], &generation.to_be_bytes(), &n.to_be_bytes()].concat();
    let value = Bytes::from(vec![7; 2_000]);
    let turn = async |generation: u32| {
        let puts = (0..10_000).map(|n| Write::Put { to: rows.clone(), key: key(generation, n), value: value.clone() });
        for call in puts.collect::<Vec<_>>().chunks(500) {
            engine.write(call.to_vec()).await.unwrap();
        }
        if generation >= 2 {
            let gone = (0..10_000).map(|n| Write::Remove { from: rows.clone(), key: key(generation - 2, n) });
            engine.write(gone.collect()).await.unwrap();
        }
    };
    for generation in 0..24 {
        turn(generation).await;
    }
    // 20 MB a generation, of which two are kept; what waits to be merged is a few flushes of 16 MB. 480 MB were written. Where
    // merging lagged behind, it is what is written next that has it catch up.
    let mut last = 23;
    let given_back = async || {
        while rows.disk_space() > 240_000_000 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    while tokio::time::timeout(std::time::Duration::from_secs(10), given_back()).await.is_err() {
        last += 1;
        assert!(last < 48, "{} bytes are left", rows.disk_space());
        turn(last).await;
    }
    assert_eq!(rows.len().unwrap(), 20_000);
    for n in 0..10_000 {
        assert_eq!(rows.get(key(last, n)).unwrap().as_deref(), Some(&value[..]));
        assert_eq!(rows.get(key(3, n)).unwrap(), None);
    }
}
