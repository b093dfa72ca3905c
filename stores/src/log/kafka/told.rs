//! What librdkafka tells: its log lines go to ours, the last trouble of a connection is kept for sentences, and its codes are
//! split by *did it happen?*.

use parking_lot::Mutex;
use rdkafka::{
    ClientContext, config::RDKafkaLogLevel, consumer::ConsumerContext, error::KafkaError,
    types::RDKafkaErrorCode as Code,
};
use schemas::{
    Offset,
    port::{PortError, PortResult},
};

use crate::OpenError;

use super::settings::Settings;

/// What every client of ours listens with.
#[derive(Debug, Default)]
pub(crate) struct Ear {
    trouble: Mutex<Option<(Code, String)>>,
}

impl Ear {
    /// The last trouble, and forgets it.
    pub(crate) fn trouble(&self) -> Option<(Code, String)> {
        self.trouble.lock().take()
    }

    /// Keeps what went wrong.
    pub(crate) fn heard(&self, error: &KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka");
        if let Some(code) = error.rdkafka_error_code() {
            let mut trouble = self.trouble.lock();
            // "All brokers are down" says less than why.
            if code != Code::AllBrokersDown || trouble.is_none() {
                *trouble = Some((code, reason.to_owned()));
            }
        }
    }
}

impl ClientContext for Ear {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.heard(&error, reason);
    }
}

impl ConsumerContext for Ear {}

/// Passes one of librdkafka's log lines on.
pub(crate) fn log(level: RDKafkaLogLevel, facility: &str, line: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
            tracing::warn!(facility, line, "kafka");
        }
        RDKafkaLogLevel::Warning | RDKafkaLogLevel::Notice => tracing::info!(facility, line, "kafka"),
        _ => tracing::debug!(facility, line, "kafka"),
    }
}

/// Why a cluster could not be asked at start, with what to do.
pub(crate) fn unreachable(settings: &Settings, trouble: Option<(Code, String)>, otherwise: &str) -> OpenError {
    let (code, why) = trouble.unwrap_or((Code::BrokerTransportFailure, otherwise.to_owned()));
    let at = &settings.shown;
    match code {
        Code::Authentication | Code::SaslAuthenticationFailed => OpenError::Address(format!(
            "Kafka at {at} refused the login ({why}): check user, password and `mechanism` of `stores.log`, and that the user is \
             known to the brokers"
        )),
        Code::SSL => OpenError::Address(format!(
            "TLS with Kafka at {at} failed ({why}): check that the port is a TLS port and that `ca` names the authority of the \
             brokers' certificates"
        )),
        Code::ClusterAuthorizationFailed | Code::TopicAuthorizationFailed | Code::GroupAuthorizationFailed => {
            OpenError::Address(format!(
                "Kafka at {at} does not let this user ({why}): docs/kafka.md lists what it needs"
            ))
        }
        _ => OpenError::Unreachable { what: "Kafka", hosts: settings.hosts.clone(), setting: "stores.log", why },
    }
}

/// Whether the same words to the same brokers cannot end otherwise.
pub(crate) fn is_final(code: Code) -> bool {
    matches!(code, Code::Authentication | Code::SaslAuthenticationFailed | Code::SSL | Code::ClusterAuthorizationFailed)
}

/// The most that librdkafka puts into one batch, bytes; a larger record goes alone. Topics take at least this
/// ([`super::topics`]), so that only a record which is too large by itself is refused for its size.
pub(crate) const BATCH: usize = 1_000_000;

fn too_large(topic: &str) -> String {
    format!("the record is larger than {topic} takes: raise max.message.bytes of the topic, or send less at once")
}

/// That a topic is not there, with what to do.
pub(crate) fn missing(topic: &str) -> String {
    format!("the topic {topic} is missing from the cluster: make it with `esh3ar topics create`")
}

fn forbidden(topic: &str) -> String {
    format!("Kafka does not let this user write to {topic}: docs/kafka.md lists what it needs")
}

/// What a record is told that librdkafka did not take: it never left this process.
pub(crate) fn not_taken(code: Code, topic: &str) -> PortError {
    match code {
        Code::MessageSizeTooLarge => PortError::Rejected(too_large(topic)),
        Code::QueueFull => PortError::Unavailable("too many records are on their way to Kafka".into()),
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition => {
            PortError::Unavailable(missing(topic))
        }
        Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed => PortError::Unavailable(forbidden(topic)),
        code => PortError::Unavailable(format!("Kafka's client did not take the record: {code}")),
    }
}

/// What a record of so many bytes is told that librdkafka took and gave up. Only what is refused for the record's own sake
/// certainly did not happen. That it "was not persisted" says nothing: librdkafka says it of what a leader refused, and one that
/// has just lost the partition refuses what its followers have; and of what was on its way to a broker that left the metadata.
pub(crate) fn refused(code: Code, topic: &str, bytes: usize) -> PortError {
    match code {
        Code::MessageSizeTooLarge | Code::InvalidMessageSize if bytes >= BATCH => PortError::Rejected(too_large(topic)),
        Code::MessageSizeTooLarge | Code::InvalidMessageSize => PortError::Unknown(format!(
            "{topic} does not take a batch of {BATCH} bytes, and nothing goes in: raise its max.message.bytes"
        )),
        Code::InvalidRecord | Code::PolicyViolation | Code::InvalidTopic | Code::UnsupportedForMessageFormat => {
            PortError::Rejected(format!("{topic} does not take the record: {code}"))
        }
        // Nothing is wrong with these records: they go when somebody has mended the cluster.
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition => {
            PortError::Unknown(missing(topic))
        }
        Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed => PortError::Unknown(forbidden(topic)),
        code => PortError::Unknown(format!("Kafka did not answer for the record: {code}")),
    }
}

/// Where a record is that librdkafka calls written. It also calls that what it has no answer for and a later record of the
/// partition has, trusting the broker to take no number before the one in front of it. A broker that knows nothing of a
/// producer takes any: the one in front may have been refused and not be there. Such a record has no offset.
pub(crate) fn placed(offset: i64) -> PortResult<Offset> {
    u64::try_from(offset).map(Offset).map_err(|_| {
        PortError::Unknown("Kafka answered for a later record, and did not say where this one is".to_owned())
    })
}

/// What a question that was not answered is told. Questions change nothing, so they can be asked again.
pub(crate) fn unanswered(error: &KafkaError) -> PortError {
    PortError::Unavailable(match error.rdkafka_error_code() {
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => {
            "a topic is missing from the cluster: make it with `esh3ar topics create`".to_owned()
        }
        Some(code) => format!("Kafka did not answer: {code}"),
        None => format!("Kafka did not answer: {error}"),
    })
}

/// Whether asking again may be answered.
pub(crate) fn may_pass(error: &KafkaError) -> bool {
    !matches!(
        error.rdkafka_error_code(),
        Some(
            Code::TopicAuthorizationFailed
                | Code::GroupAuthorizationFailed
                | Code::ClusterAuthorizationFailed
                | Code::InvalidTopic
                | Code::InvalidArgument
        )
    )
}

/// What a commit that was not taken is told.
pub(crate) fn uncommitted(code: Code) -> PortError {
    match code {
        Code::UnknownMemberId
        | Code::IllegalGeneration
        | Code::FencedMemberEpoch
        | Code::FencedInstanceId
        | Code::AssignmentLost
        | Code::UnknownGroup => PortError::Fenced(format!("the group has gone on without this member: {code}")),
        Code::OffsetMetadataTooLarge | Code::InvalidCommitOffsetSize | Code::GroupAuthorizationFailed => {
            PortError::Rejected(format!("the group's offsets are not taken: {code}"))
        }
        // A rebalance is under way: the member learns its new epoch with the next heartbeat.
        Code::StaleMemberEpoch | Code::RebalanceInProgress | Code::NotCoordinator | Code::CoordinatorNotAvailable => {
            PortError::Unavailable(format!("the group is not ready: {code}"))
        }
        code => PortError::Unknown(format!("the commit was not answered: {code}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_whether_it_happened() {
        let rejected = |e: &PortError| matches!(e, PortError::Rejected(_));
        let unavailable = |e: &PortError| matches!(e, PortError::Unavailable(_));
        let unknown = |e: &PortError| matches!(e, PortError::Unknown(_));
        type Is<'a> = &'a dyn Fn(&PortError) -> bool;
        let table: [(Code, usize, Is<'_>); 9] = [
            (Code::MessageSizeTooLarge, BATCH, &rejected),
            (Code::MessageSizeTooLarge, 1, &unknown),
            (Code::InvalidRecord, 1, &rejected),
            (Code::MessageTimedOut, 1, &unknown),
            (Code::PurgeQueue, 1, &unknown),
            (Code::PurgeInflight, 1, &unknown),
            (Code::UnknownTopicOrPartition, 1, &unknown),
            (Code::TopicAuthorizationFailed, 1, &unknown),
            (Code::Fatal, 1, &unknown),
        ];
        for (code, bytes, is) in table {
            let said = refused(code, "t", bytes);
            assert!(is(&said), "{code} {bytes}: {said}");
        }
        let table: [(Code, Is<'_>); 4] = [
            (Code::MessageSizeTooLarge, &rejected),
            (Code::QueueFull, &unavailable),
            (Code::UnknownTopic, &unavailable),
            (Code::Fatal, &unavailable),
        ];
        for (code, is) in table {
            let said = not_taken(code, "t");
            assert!(is(&said), "{code}: {said}");
        }
    }

    #[test]
    fn a_record_without_a_place_is_not_acknowledged() {
        assert_eq!(placed(0), Ok(Offset(0)));
        // RD_KAFKA_OFFSET_INVALID, and what a broker says that does not tell.
        for none in [-1_001, -1] {
            assert!(matches!(placed(none), Err(PortError::Unknown(_))), "{none}");
        }
    }

    #[test]
    fn a_member_that_was_left_behind_is_fenced_and_one_in_a_rebalance_waits() {
        for code in [Code::UnknownMemberId, Code::IllegalGeneration, Code::FencedMemberEpoch] {
            assert!(matches!(uncommitted(code), PortError::Fenced(_)), "{code}");
        }
        for code in [Code::StaleMemberEpoch, Code::RebalanceInProgress] {
            assert!(matches!(uncommitted(code), PortError::Unavailable(_)), "{code}");
        }
        assert!(matches!(uncommitted(Code::RequestTimedOut), PortError::Unknown(_)));
    }
}
