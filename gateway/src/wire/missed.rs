//! What no hint brings, and who is not told: a session has it all the same (rule 5).

use schemas::{Partition, port::Backplane as _};

use super::*;

const OTHER: &str = "+962790000002";

/// Two who are connected and have what there was for them: what they see.
async fn two(house: &House) -> [mpsc::Receiver<ServerFrame>; 2] {
    let address = house.serve().await;
    let (_task, mut seen) = listen(&address, "d1");
    let (_other_task, mut other_seen) = listen_as(OTHER, &address, "d1");
    house.world.record(message_to(PHONE, 1));
    house.world.record(message_to(OTHER, 2));
    assert_eq!((items(&mut seen, 1).await, items(&mut other_seen, 1).await), (vec![1], vec![2]));
    [seen, other_seen]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_missed_while_presence_was_away_comes_when_it_is_back() {
    let mut limits = Limits::default();
    limits.socket.presence_ms = 60;
    let house = House::open(limits).await;
    let address = house.serve().await;
    let (_task, mut seen) = listen(&address, "d1");
    until("it is connected", || house.gateway.sessions() == 1).await;
    house.world.inner.lock().away.extend(["heartbeat", "refresh"]);
    until("the node noticed", || house.world.failed() > 0).await;
    // Its place lapsed, so nobody is given a hint.
    house.world.inner.lock().places.clear();
    house.world.record(message_to(PHONE, 1));
    house.world.inner.lock().away.clear();
    assert_eq!(items(&mut seen, 1).await, [1]);
    until("it is registered again", || house.world.inner.lock().places.len() == 1).await;
}

// Others wait for a node for so long, and then it has missed what they gave up. The history may be away just then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_held_still_for_as_long_as_deliveries_wait_finds_what_was_missed() {
    let mut limits = Limits::default();
    limits.flow.deliver_ms = 500;
    let house = House::open(limits).await;
    let address = house.serve().await;
    let (_task, mut seen) = listen(&address, "d1");
    house.world.record(message_to(PHONE, 1));
    assert_eq!(items(&mut seen, 1).await, [1], "it is connected, and has what there was");
    house.world.record(message_to(PHONE, 2));
    house.world.inner.lock().away.push("tails");
    house.clock.put_forward(500);
    until("it looked in vain", || house.world.failed() > 0).await;
    house.world.inner.lock().away.clear();
    assert_eq!(items(&mut seen, 1).await, [2]);
}

// What cannot be read of one keeps nobody else waiting, and is looked at again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inbox_that_cannot_be_read_keeps_no_others_back() {
    let house = House::open(Limits::default()).await;
    let [mut seen, mut other_seen] = two(&house).await;
    house.world.record(message_to(PHONE, 3));
    house.world.record(message_to(OTHER, 4));
    house.world.inner.lock().unreadable = Some(mobile(PHONE));
    house.clock.put_forward(Limits::default().flow.deliver_ms);
    assert_eq!(items(&mut other_seen, 1).await, [4]);
    house.world.inner.lock().unreadable = None;
    assert_eq!(items(&mut seen, 1).await, [3]);
}

// What the owner before owed to this node went with it. Who is in other partitions is not looked at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_owed_by_who_owned_the_partition_before_is_looked_for() {
    let house = House::open(Limits::default()).await;
    let [mut seen, _other_seen] = two(&house).await;
    house.world.inner.lock().looked.clear();
    house.world.record(message_to(PHONE, 3));
    let [own, other] = [PHONE, OTHER].map(|phone| house.gateway.inboxes(&mobile(phone)).remove(0));
    assert_ne!(own.partition, other.partition);
    let nobodys = (0..4).map(Partition).filter(|p| ![own.partition, other.partition].contains(p)).collect::<Vec<_>>();
    house.world.taken_over(&nobodys).await.unwrap();
    house.world.taken_over(&[own.partition]).await.unwrap();
    assert_eq!(items(&mut seen, 1).await, [3]);
    assert!(house.world.inner.lock().looked.contains(&vec![own]), "it alone is looked at");
}

// The client goes while presence is asked: presence has the new session then, and would never find the older one again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_dropped_halfway_ends_the_older_one_all_the_same() {
    let house = House::open(Limits::default()).await;
    let address = house.serve().await;
    let mut older = raw(&address, "device=d1", &token("acme", phone(PHONE))).await;
    assert!(matches!(frame(&mut older).await, Ok(ServerFrame::Welcome { .. })));
    let answers = house.world.answers.write().await;
    let mut newer = half_a_connection(&address, PHONE).await;
    until("presence has it", || house.world.inner.lock().places.first().is_some_and(|(_, place)| place.number == 2))
        .await;
    newer.shutdown().await.unwrap();
    newer.read_to_end(&mut Vec::new()).await.unwrap();
    drop(answers);
    assert_eq!(last_words(&mut older).await, (vec!["newer_session".to_owned()], 4200));
    drop(older);
    until("nobody is there", || house.world.inner.lock().places.is_empty() && house.gateway.sessions() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_left_while_presence_was_away_is_taken_out_of_it_when_it_is_back() {
    let house = House::open(Limits::default()).await;
    let address = house.serve().await;
    let socket = raw(&address, "device=d1", &token("acme", phone(PHONE))).await;
    house.world.inner.lock().away.push("remove");
    drop(socket);
    until("it was tried in vain", || house.world.failed() > 0).await;
    assert_eq!(house.world.inner.lock().places.len(), 1);
    house.world.inner.lock().away.clear();
    until("it is out", || house.world.inner.lock().places.is_empty()).await;
}
