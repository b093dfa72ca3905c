//! Roles: what one process does of it all, and which set-up can work for it.

use crate::{config::Config, exit::Failure};

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Everything: `esh3ar up`.
    All,
    /// Takes messages in, by HTTP and from topics, and answers reads.
    Ingest,
    /// Decides: the dataflow of the partitions that its group gives it.
    Pipeline,
    /// Holds sockets, and answers reads.
    Gateway,
    /// Serves administrators.
    Admin,
}

impl Role {
    /// Every role that runs alone.
    pub const ALONE: [Self; 4] = [Self::Ingest, Self::Pipeline, Self::Gateway, Self::Admin];

    /// The command that starts it.
    pub fn word(self) -> &'static str {
        match self {
            Self::All => "up",
            Self::Ingest => "ingest",
            Self::Pipeline => "pipeline",
            Self::Gateway => "gateway",
            Self::Admin => "admin",
        }
    }

    /// Whether messages are posted here.
    pub fn takes_in(self) -> bool {
        matches!(self, Self::All | Self::Ingest)
    }

    /// Whether messages, inboxes and events are read here.
    pub fn reads(self) -> bool {
        matches!(self, Self::All | Self::Ingest | Self::Gateway)
    }

    /// Whether sockets are held here.
    pub fn holds_sockets(self) -> bool {
        matches!(self, Self::All | Self::Gateway)
    }

    /// Whether the dataflow runs here.
    pub fn decides(self) -> bool {
        matches!(self, Self::All | Self::Pipeline)
    }

    /// Whether it has a listener for the public.
    pub fn is_public(self) -> bool {
        self.reads()
    }

    /// Whether it takes no new work without the log (rule 11).
    pub fn needs_log(self) -> bool {
        self.takes_in() || self.decides()
    }

    /// Whether it takes no new work without the history (rule 11).
    pub fn needs_history(self) -> bool {
        self.holds_sockets() || self.decides()
    }

    /// Refuses a set-up in which it would do nothing of use, with the one that works.
    pub fn check(self, config: &Config) -> Result<(), Failure> {
        if self == Self::All {
            return Ok(());
        }
        let stores = &config.stores;
        let mut missing = Vec::new();
        if stores.log.is_empty() {
            missing.push("`stores.log` (kafka://HOST:PORT)");
        }
        if stores.history.is_empty() {
            missing.push("`stores.history` (scylla://HOST:PORT/KEYSPACE)");
        }
        // Who decides and who holds sockets find each other there; the others only share quotas through it.
        if stores.presence.is_empty() && matches!(self, Self::Pipeline | Self::Gateway) {
            missing.push("`stores.presence` (redis://HOST:PORT)");
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(Failure::usage(format!(
            "`esh3ar {}` is one part of several that meet at servers, and a data folder serves one process alone: set {} in a file, \
             by --set or in the environment; `esh3ar up` runs every part in one process and needs no server",
            self.word(),
            missing.join(" and ")
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(log: &str, history: &str, presence: &str) -> Config {
        let mut config = Config::default();
        (config.stores.log, config.stores.history) = (log.to_owned(), history.to_owned());
        config.stores.presence = presence.to_owned();
        config
    }

    #[test]
    fn a_role_is_refused_where_it_would_be_alone() {
        let (kafka, scylla, redis) = ("kafka://a:1", "scylla://a:1/k", "redis://a:1");
        for role in Role::ALONE {
            let said = role.check(&Config::default()).unwrap_err().sentence;
            assert!(said.contains("kafka://") && said.contains("esh3ar up") && said.contains(role.word()), "{said}");
            assert!(role.check(&config(kafka, "", redis)).unwrap_err().sentence.contains("stores.history"));
            assert!(role.check(&config(kafka, scylla, redis)).is_ok());
            let without_presence = role.check(&config(kafka, scylla, ""));
            assert_eq!(without_presence.is_err(), role.decides() || role.holds_sockets(), "{role:?}");
        }
        for set_up in [Config::default(), config(kafka, "", ""), config("", scylla, redis)] {
            assert!(Role::All.check(&set_up).is_ok());
        }
    }
}
