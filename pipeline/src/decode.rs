//! Decode: records of lanes and tiers become items. Bytes that this release cannot read become a dead letter and not a loss:
//! their offset may be committed once they are buried.

use std::sync::Arc;

use schemas::{
    Epoch, Inbox, Lane, MessageId, Name, Position, Priority, Reason, Tenant, Timestamp, Topic, UserId,
    codec::{self, Unreadable},
    port::{Dead, Record},
    record::{Again, LaneRecord},
};

use crate::item::{Asked, Fresh, Item, Work};

/// Reads the body of a record of a lane. `replay`: it was there before its partition was taken over.
pub(crate) fn lane_record(record: &Record, epoch: Epoch, replay: bool, now: Timestamp) -> Item {
    let work = match codec::decode(&record.body) {
        Ok(LaneRecord::Accepted(message)) => {
            Work::Fresh(Fresh { message: Arc::new(message), replay, end: None, conflict: false, due: None })
        }
        Ok(LaneRecord::Again(again)) => Work::Again(Box::new(again)),
        Ok(LaneRecord::Chat(command)) => Work::Chat(Box::new(Asked { command: *command, replay, conflict: false })),
        Err(why) => Work::Dead(Box::new(unreadable(record, &why, now))),
    };
    Item { partition: record.at.partition, epoch, offset: Some(record.offset), work }
}

/// Reads the body of a record of a tier, and says which lane it rides in.
pub(crate) fn tier_record(record: &Record, epoch: Epoch, now: Timestamp) -> (Lane, Item) {
    let (lane, work) = match codec::decode::<Again>(&record.body) {
        Ok(again) => (again.lane, Work::Again(Box::new(again))),
        Err(why) => {
            let lane = record.headers.priority.unwrap_or(Priority::Normal);
            (lane, Work::Dead(Box::new(unreadable(record, &why, now))))
        }
    };
    (lane, Item { partition: record.at.partition, epoch, offset: None, work })
}

/// How long a record of a tier has still to wait, ms, of which it has waited `age` already. Counted from the moment in which
/// a reader meets it: never longer than the delay. `due_at` is for people and decides nothing.
pub(crate) fn still_to_wait(record: &Record, first_ms: u64, age: u64) -> u64 {
    let Topic::Retry(tier) = record.at.topic else { return 0 };
    tier.delay_ms(first_ms).saturating_sub(age)
}

/// The dead letter of a record that cannot be read. It carries what the headers say; whose inbox it was for is not known, so
/// it stands under a name that no user can have by accident.
fn unreadable(record: &Record, why: &Unreadable, now: Timestamp) -> Dead {
    tracing::error!(at = %record.at, offset = %record.offset, %why, "a record cannot be read and is buried");
    metrics::counter!("esh3ar_unreadable_total").increment(1);
    let user = nobody(record.headers.tenant.clone());
    let place = format!("{}/{}", record.at, record.offset);
    Dead {
        id: record.headers.id.unwrap_or_else(|| MessageId::of_key(&user.tenant, "log", &place, &user)),
        at: now,
        reason: Reason::Unreadable,
        round: 0,
        attempts: record.headers.attempt.0,
        inbox: Inbox { user, partition: record.at.partition },
        position: Position::START,
        requeued_at: None,
        message: None,
    }
}

fn nobody(tenant: Option<Tenant>) -> UserId {
    let name = |name: Result<Name, _>| name.ok();
    let tenant = tenant.or_else(|| Tenant::parse("unknown").ok());
    match (tenant, name(Name::parse("unreadable"))) {
        (Some(tenant), Some(name)) => UserId::business(tenant, name),
        // Both names are valid: their own rules say so.
        _ => unreachable!(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::message;
    use bytes::Bytes;
    use proptest::prelude::*;
    use schemas::{
        Offset, Partition, TopicPartition,
        port::Headers,
        record,
        tier::{Attempt, Tier},
    };

    fn record(topic: Topic, body: Bytes, appended_at: i64) -> Record {
        let at = TopicPartition { topic, partition: Partition(3) };
        Record { at, offset: Offset(9), appended_at: Timestamp(appended_at), headers: Headers::default(), body }
    }

    proptest! {
        #[test]
        fn any_bytes_become_an_item(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let bytes = Bytes::from(bytes);
            let item = lane_record(&record(Topic::Lane(Lane::High), bytes.clone(), 0), Epoch(1), false, Timestamp(5));
            prop_assert_eq!(item.partition, Partition(3));
            let (_, item) = tier_record(&record(Topic::Retry(Tier::ALL[0]), bytes, 0), Epoch(1), Timestamp(5));
            if let Work::Dead(dead) = item.work { prop_assert_eq!(dead.reason, Reason::Unreadable); }
        }

        #[test]
        fn nothing_waits_longer_than_its_tier(age in 0u64..100_000, tier in 0usize..6) {
            let wait = still_to_wait(&record(Topic::Retry(Tier::ALL[tier]), Bytes::new(), 0), 100, age);
            let delay = Tier::ALL[tier].delay_ms(100);
            prop_assert!(wait <= delay && wait + age >= delay);
        }
    }

    #[test]
    fn what_was_accepted_comes_out() {
        let message = message(4);
        let read = lane_record(
            &record(Topic::Lane(Lane::Low), record::accepted(&message, 24).body, 0),
            Epoch(2),
            true,
            Timestamp(0),
        );
        assert!(matches!(read.work, Work::Fresh(f) if *f.message == message && f.replay));
        let inbox = message.inbox(24);
        let again = Again {
            id: message.id,
            lane: Lane::Low,
            inbox,
            position: Position::START,
            round: 0,
            attempt: Attempt(1),
            due_at: Timestamp(9),
        };
        let body = record::again(Topic::Retry(Tier::ALL[0]), &again).body;
        let (lane, item) = tier_record(&record(Topic::Retry(Tier::ALL[0]), body, 0), Epoch(2), Timestamp(0));
        assert!(lane == Lane::Low && matches!(item.work, Work::Again(a) if *a == again));
    }
}
