//! The topics that single tenants produce to, made where they are asked for; what reads them is [`super::ingress`].

use std::time::Duration;

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    config::FromClientConfigAndContext as _,
    consumer::{BaseConsumer, Consumer as _},
    types::RDKafkaErrorCode as Code,
};
use schemas::limits::StoreLimits;

use super::{ingress::SHARED, settings::Settings, told};
use crate::{OpenError, urls::Address};

/// Partitions of a tenant's own topic: as many doors may read it at once.
const PARTITIONS: i32 = 6;

/// The topics of tenants that are missing.
pub(crate) async fn missing(
    address: &Address,
    limits: &StoreLimits,
    tenants: &[String],
) -> Result<Vec<String>, OpenError> {
    let settings = Settings::read(address, limits)?;
    let names: Vec<_> = tenants.iter().map(|tenant| settings.named(&format!("{SHARED}.{tenant}"))).collect();
    let asked = tokio::task::spawn_blocking(move || {
        let client: BaseConsumer<told::Ear> =
            BaseConsumer::from_config_and_context(&settings.client(), told::Ear::default())
                .map_err(|error| OpenError::Address(format!("{}: {error}", settings.shown)))?;
        let mut missing = Vec::new();
        for name in names {
            let found = client
                .fetch_metadata(Some(&name), settings.ask)
                .map_err(|error| told::unreachable(&settings, client.context().trouble(), &error.to_string()))?;
            if found.topics().iter().all(|topic| topic.error().is_some() || topic.partitions().is_empty()) {
                missing.push(name);
            }
        }
        Ok(missing)
    });
    asked.await.map_err(|why| OpenError::Address(why.to_string()))?
}

/// Makes the topics of tenants that are missing, and says which. Copies as the address asks, else as the cluster's own
/// default has it.
pub(crate) async fn create(
    address: &Address,
    limits: &StoreLimits,
    tenants: &[String],
) -> Result<Vec<String>, OpenError> {
    let missing = missing(address, limits, tenants).await?;
    if missing.is_empty() {
        return Ok(missing);
    }
    let settings = Settings::read(address, limits)?;
    let failed = |why: String| OpenError::Address(format!("Kafka at {}: {why}", settings.shown));
    let admin: AdminClient<told::Ear> = AdminClient::from_config_and_context(&settings.client(), told::Ear::default())
        .map_err(|e| failed(e.to_string()))?;
    let kept = limits.log_retention_ms.to_string();
    let replication = settings.replication.map_or(-1, |n| n as i32);
    let new: Vec<_> = missing
        .iter()
        .map(|name| {
            NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(replication))
                .set("retention.ms", &kept)
                .set("message.timestamp.type", "LogAppendTime")
        })
        .collect();
    let options = AdminOptions::new().request_timeout(Some(settings.ask * 4)).operation_timeout(Some(settings.ask * 2));
    let made = admin.create_topics(&new, &options).await.map_err(|error| failed(error.to_string()))?;
    // Ending an admin client waits for its thread.
    drop(tokio::task::spawn_blocking(move || drop(admin)));
    for outcome in made {
        match outcome {
            Ok(_) | Err((_, Code::TopicAlreadyExists)) => {}
            Err((topic, code)) => return Err(failed(format!("the topic {topic} could not be made: {code}"))),
        }
    }
    // Made is not yet known to every broker.
    for _ in 0..KNOWN_TRIES {
        if self::missing(address, limits, tenants).await?.is_empty() {
            return Ok(missing);
        }
        tokio::time::sleep(KNOWN_EVERY).await;
    }
    Err(failed("the topics of tenants were made and are not known yet: look again with `esh3ar topics check`".into()))
}

/// How often, and how many times, it is looked whether a new topic is known.
const KNOWN_EVERY: Duration = Duration::from_millis(100);
const KNOWN_TRIES: usize = 100;
