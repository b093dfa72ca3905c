//! What is in flight is bounded, whatever waits to come in.

use schemas::{
    Message, Position,
    port::{Due, DueKind},
};

use super::*;

/// Of so many messages as many are in flight as may be, and none gets further.
async fn full(messages: u64) -> (House, Pipeline) {
    let mut house = House::new();
    house.limits = FlowLimits { in_flight: 64, fetch_records: 16, ..house.limits };
    house.history = Arc::new(MemoryHistory { gate: crate::testing::Gate::closed(), ..MemoryHistory::default() });
    house.accept(0..messages).await;
    let pipeline = house.start();
    let lane = |house: &House| house.log.paused.lock().iter().any(|at| at.topic == Topic::Lane(Priority::Normal));
    house.until("the lane is paused", lane).await;
    (house, pipeline)
}

/// Lets everything get on until it is done.
async fn let_go(house: &House) {
    house
        .until("all is committed", |house| {
            while house.history.gate.let_go(0) {}
            house.committed()
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_flight_is_bounded_and_goes_on() {
    let (house, pipeline) = full(400).await;
    let_go(&house).await;
    assert_eq!(house.history.written.lock().len(), 400);
    assert!(pipeline.stop().await);
}

/// A lane at its bound keeps back no scheduled message of another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduled_message_goes_in_while_another_lane_is_full() {
    let (house, pipeline) = full(100).await;
    let message = Arc::new(Message { priority: Priority::High, ..message(1_000) });
    house.history.keep(&message, None);
    let (at, partition) = (Timestamp(0), message.inbox(4).partition);
    let due = Due { partition, at, id: message.id, kind: DueKind::Send(message) };
    house.history.dues.lock().push(due);
    house.until("it goes in", |_| pipeline.gauges().in_flight[0] > 0).await;
    let_go(&house).await;
    pipeline.stop().await;
}

/// Those that are overdue, as after a long stop, come all at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_wait_where_their_lane_has_no_room() {
    let (house, pipeline) = full(100).await;
    let again = |n| {
        let message = message(n);
        let (id, inbox, position) = (message.id, message.inbox(4), Position { epoch: Epoch(1), n });
        let due_at = Timestamp(0);
        record::Again { id, lane: Lane::Normal, inbox, position, round: 0, attempt: Attempt(1), due_at }
    };
    let retries = (1_000..1_300).map(|n| record::again(Topic::Retry(Tier::ALL[0]), &again(n))).collect();
    for answer in house.log.log.append(retries).await {
        answer.unwrap();
    }
    house.log.came.notify_one();
    house.until("retries wait", |_| pipeline.gauges().retries_waiting > 0).await;
    let [_, in_flight, _] = pipeline.gauges().in_flight;
    assert!(in_flight <= 64 + 2 * 16, "{in_flight} are in flight");
    let_go(&house).await;
    pipeline.stop().await;
}
