//! Where a reader begins in partitions that it is given: behind what its group has committed.
//!
//! librdkafka finds that out by itself, by one question. Where the answer is an error or lost (the coordinator moves, a connection
//! breaks), it leaves the partitions as they are: the group means this reader, and it reads nothing of them until they go and
//! come again. So it is asked here, until it is answered, and the partitions are taken up with the answer.

use std::time::Duration;

use rdkafka::{
    TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _, ConsumerContext, RebalanceProtocol},
    error::KafkaError,
    topic_partition_list::Offset as At,
};
use schemas::port::PortError;

use super::told;

/// What became of the question.
pub(super) enum Start {
    /// The partitions, each with where to begin.
    Known(TopicPartitionList),
    /// The group has gone on without this reader: whatever it takes up now, it loses again at once.
    Over,
    /// To be asked again.
    Unanswered(KafkaError),
}

/// Asks where to begin in partitions, and waits so long at most.
pub(super) fn find<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    given: &TopicPartitionList,
    within: Duration,
) -> Start {
    if given.count() == 0 {
        return Start::Known(given.clone());
    }
    let found = consumer.committed_offsets(given.clone(), within).and_then(|found| {
        for mut at in found.elements() {
            at.error()?;
            // Nothing was committed yet: from the first record that is kept.
            if at.offset() == At::Invalid {
                at.set_offset(At::Beginning)?;
            }
        }
        Ok(found)
    });
    match found {
        Ok(found) => Start::Known(found),
        Err(error) => match error.rdkafka_error_code().map(told::uncommitted) {
            Some(PortError::Fenced(_)) => Start::Over,
            _ => Start::Unanswered(error),
        },
    }
}

/// Takes partitions up that the group gave.
pub(super) fn take<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    list: &TopicPartitionList,
) -> Result<(), KafkaError> {
    match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_assign(list),
        _ => consumer.assign(list),
    }
}

/// Gives partitions back to the group.
pub(super) fn give_back<C: ConsumerContext>(consumer: &BaseConsumer<C>, list: &TopicPartitionList) {
    let given = match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_unassign(list),
        _ => consumer.unassign(),
    };
    if let Err(error) = given {
        tracing::warn!(%error, "partitions could not be given back: the group takes them when the session lapses");
    }
}
