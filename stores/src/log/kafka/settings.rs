//! What an address of Kafka says, and what every client of ours is told. Pure: nothing here speaks to a broker.

use std::time::Duration;

use rdkafka::ClientConfig;
use schemas::{Topic, limits::StoreLimits, port::Group};

use super::told::BATCH;
use crate::{OpenError, urls::Address};

/// What the names of topics and groups begin with where the address names nothing else.
pub(crate) const PREFIX: &str = "esh3ar.";

/// The options of an address.
pub(crate) const OPTIONS: [&str; 8] =
    ["partitions", "replication", "min_isr", "tls", "ca", "mechanism", "group", "session_ms"];

/// How a broker is convinced of who asks.
const MECHANISMS: [&str; 3] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];

/// How the members of a group come by their partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// The broker assigns (KIP-848, Kafka 4): only what moves changes hands. While a member gives some up, librdkafka reads none
    /// of its others. The session timeout is the broker's setting.
    Consumer,
    /// A member assigns, and all stop for it: brokers before 4.0. The session timeout is the client's.
    Classic,
}

/// An address of Kafka, understood.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// For people: without a login.
    pub(crate) shown: String,
    /// `host:port,…`
    pub(crate) hosts: String,
    /// What the names of topics and groups begin with.
    pub(crate) prefix: String,
    /// How many partitions each topic has.
    pub(crate) partitions: u16,
    /// Copies of each record, where the address asks for a number.
    pub(crate) replication: Option<u64>,
    /// Copies that must have a record before it counts, where the address asks for a number.
    pub(crate) min_isr: Option<u64>,
    /// How groups share.
    pub(crate) protocol: Protocol,
    /// Without a sign of life for so long a member is dead, ms (classic only).
    pub(crate) session_ms: u64,
    /// How long one question to the cluster may take.
    pub(crate) ask: Duration,
    security: Vec<(&'static str, String)>,
}

impl Settings {
    /// Reads an address. Nothing is asked of a broker.
    pub(crate) fn read(address: &Address, limits: &StoreLimits) -> Result<Self, OpenError> {
        address.only(&OPTIONS)?;
        let wrong = |why: String| OpenError::Address(format!("`{address}`: {why}"));
        let option = |key: &str| address.options.get(key).map(String::as_str);
        let prefix = if address.path.is_empty() { PREFIX } else { &address.path };
        let plain = |c: char| c.is_ascii_alphanumeric() || ['.', '_', '-'].contains(&c);
        if !prefix.chars().all(plain) || prefix.len() > 100 {
            return Err(wrong(format!("`{prefix}` cannot begin a topic's name: at most 100 of a-z A-Z 0-9 . _ -")));
        }
        let partitions = match address.number("partitions")? {
            Some(n @ 1..=10_000) => n as u16,
            Some(n) => return Err(wrong(format!("{n} partitions cannot be: 1 to 10000"))),
            None => limits.partitions,
        };
        let protocol = match option("group") {
            None | Some("consumer") => Protocol::Consumer,
            Some("classic") => Protocol::Classic,
            Some(other) => return Err(wrong(format!("`group` is consumer or classic, not {other}"))),
        };
        let tls = match option("tls") {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => return Err(wrong(format!("`tls` is true or false, not {other}"))),
        };
        let mechanism = option("mechanism").unwrap_or("SCRAM-SHA-512");
        if !MECHANISMS.contains(&mechanism) {
            return Err(wrong(format!("`mechanism` is one of {}, not {mechanism}", MECHANISMS.join(", "))));
        }
        if address.password.is_some() != address.user.is_some() {
            return Err(wrong("a user needs a password: kafka://USER:PASSWORD@HOST:PORT".into()));
        }
        if option("mechanism").is_some() && address.user.is_none() {
            return Err(wrong("`mechanism` is for a user: kafka://USER:PASSWORD@HOST:PORT".into()));
        }
        if option("ca").is_some() && !tls {
            return Err(wrong("`ca` is for tls=true".into()));
        }
        let scram = address.user.is_some() && mechanism != "PLAIN";
        if (tls || scram) && !cfg!(feature = "kafka-tls") {
            return Err(OpenError::NotBuilt { what: "Kafka with TLS or SCRAM", feature: "kafka-tls" });
        }
        let mut security = Vec::new();
        let wire = match (tls, address.user.is_some()) {
            (false, false) => "plaintext",
            (true, false) => "ssl",
            (false, true) => "sasl_plaintext",
            (true, true) => "sasl_ssl",
        };
        security.push(("security.protocol", wire.to_owned()));
        if let Some(ca) = option("ca") {
            std::fs::metadata(ca)
                .map_err(|error| wrong(format!("the authority's certificate {ca} cannot be read: {error}")))?;
            security.push(("ssl.ca.location", ca.to_owned()));
        }
        if let (Some(user), Some(password)) = (&address.user, &address.password) {
            security.push(("sasl.mechanism", mechanism.to_owned()));
            security.push(("sasl.username", user.clone()));
            security.push(("sasl.password", password.clone()));
        }
        Ok(Self {
            shown: address.to_string(),
            hosts: address.hosts.join(","),
            prefix: prefix.to_owned(),
            partitions,
            replication: address.number("replication")?,
            min_isr: address.number("min_isr")?,
            protocol,
            session_ms: address.number("session_ms")?.unwrap_or(limits.kafka_session_ms),
            ask: Duration::from_millis(limits.kafka_ask_ms),
            security,
        })
    }

    /// The name of a topic in this cluster.
    pub(crate) fn topic(&self, topic: Topic) -> String {
        self.named(topic.name())
    }

    /// The name of a group in this cluster.
    pub(crate) fn group(&self, group: Group) -> String {
        self.named(group.0)
    }

    /// A name of ours with this installation's prefix.
    pub(crate) fn named(&self, name: &str) -> String {
        format!("{}{}", self.prefix, name.strip_prefix(PREFIX).unwrap_or(name))
    }

    /// What every client is told.
    pub(crate) fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.hosts)
            .set("client.id", "esh3ar")
            .set("socket.nagle.disable", "true")
            .set("socket.keepalive.enable", "true")
            // A broker that was restarted is found again soon.
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "500")
            .set("retry.backoff.ms", "20")
            .set("topic.metadata.refresh.interval.ms", "60000");
        for (key, value) in &self.security {
            config.set(*key, value);
        }
        config
    }

    /// What a producer is told beyond that: nothing twice, and nothing counts that not all copies in sync have.
    pub(crate) fn producer(&self, limits: &StoreLimits) -> ClientConfig {
        let mut config = self.client();
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", limits.kafka_linger_ms.to_string())
            .set("message.timeout.ms", limits.kafka_append_ms.to_string())
            .set("message.max.bytes", limits.kafka_record_bytes.to_string())
            .set("batch.size", BATCH.to_string());
        config
    }

    /// What a reader is told beyond that: from where it is told to, and soon. `group`: whose offsets it asks for.
    pub(crate) fn reader(&self, group: &str, prefetch_kib: usize) -> ClientConfig {
        let mut config = self.client();
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest")
            .set("fetch.error.backoff.ms", "50")
            // Past the bound on what is fetched ahead it looks again after so long; the default is a second.
            .set("fetch.queue.backoff.ms", "10")
            .set("queued.min.messages", "100000")
            .set("queued.max.messages.kbytes", prefetch_kib.to_string())
            .set("fetch.message.max.bytes", (prefetch_kib * 1024).to_string());
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings, OpenError> {
        Settings::read(&Address::parse(text).unwrap(), &StoreLimits::default())
    }

    #[test]
    fn an_address_says_where_and_how() {
        let settings = read("kafka://a:1,b:2/shop.?partitions=6&replication=3&min_isr=2&group=classic").unwrap();
        assert_eq!(
            (settings.hosts.as_str(), settings.partitions, settings.protocol),
            ("a:1,b:2", 6, Protocol::Classic)
        );
        assert_eq!(settings.topic(Topic::Dead), "shop.dead");
        assert_eq!(settings.group(Group("esh3ar.pipeline")), "shop.pipeline");
        assert_eq!(settings.group(Group("other")), "shop.other");
        let plain = read("kafka://a:1").unwrap();
        assert_eq!((plain.prefix.as_str(), plain.partitions, plain.protocol), (PREFIX, 24, Protocol::Consumer));
        assert_eq!(plain.client().get("security.protocol"), Some("plaintext"));
        let plain = read("kafka://u:p@a:1?mechanism=PLAIN").unwrap().client();
        assert_eq!((plain.get("security.protocol"), plain.get("sasl.password")), (Some("sasl_plaintext"), Some("p")));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_what_can() {
        for (text, part) in [
            ("kafka://a:1/sh op", "a-z A-Z"),
            ("kafka://a:1?partitions=0", "1 to 10000"),
            ("kafka://a:1?partition=6", "partitions"),
            ("kafka://a:1?group=sticky", "classic"),
            ("kafka://a:1?tls=yes", "true or false"),
            ("kafka://a:1?mechanism=PLAIN", "for a user"),
            ("kafka://u@a:1", "password"),
            ("kafka://u:p@a:1?mechanism=GSSAPI", "SCRAM-SHA-256"),
            ("kafka://a:1?ca=/nowhere", "tls=true"),
        ] {
            let said = read(text).unwrap_err().to_string();
            assert!(said.contains(part), "{text}: {said}");
        }
    }

    #[cfg(feature = "kafka-tls")]
    #[test]
    fn a_certificate_that_is_not_there_is_said_at_once() {
        let said = read("kafka://a:1?tls=true&ca=/nowhere/ca.pem").unwrap_err().to_string();
        assert!(said.contains("/nowhere/ca.pem"), "{said}");
        let scram = read("kafka://u:p@a:1?tls=true").unwrap().client();
        assert_eq!(
            (scram.get("security.protocol"), scram.get("sasl.mechanism")),
            (Some("sasl_ssl"), Some("SCRAM-SHA-512"))
        );
    }

    #[cfg(not(feature = "kafka-tls"))]
    #[test]
    fn what_needs_openssl_is_refused_where_it_is_missing() {
        for text in ["kafka://a:1?tls=true", "kafka://u:p@a:1"] {
            assert!(matches!(read(text), Err(OpenError::NotBuilt { feature: "kafka-tls", .. })), "{text}");
        }
    }
}
