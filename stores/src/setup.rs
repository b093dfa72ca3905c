//! What the servers need before the first start: topics, keyspaces and tables. Made by a command of its own and never by a
//! start, because a start that makes what is missing also makes it in the wrong place.

use schemas::limits::StoreLimits;

use crate::{OpenError, urls::Address};

/// What was found or made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Said {
    /// What is well, or was made.
    pub fine: Vec<String>,
    /// What is wrong, each with what mends it.
    pub wrong: Vec<String>,
}

/// Makes the topics of a log that are missing, or says what is wrong with them; with them those that `tenants` produce to.
#[cfg_attr(not(feature = "kafka"), allow(unused_variables))]
pub async fn topics(
    address: &Address,
    limits: &StoreLimits,
    tenants: &[String],
    create: bool,
) -> Result<Said, OpenError> {
    #[cfg(feature = "kafka")]
    {
        use crate::log::kafka::{tenants as own, topics};
        let mut said = Said::default();
        if create {
            let mut made = topics::create(address, limits).await?;
            made.extend(own::create(address, limits, tenants).await?);
            said.fine.extend(made.into_iter().map(|name| format!("made the topic {name}")));
        }
        said.wrong.extend(topics::check(address, limits).await?.iter().map(ToString::to_string));
        let missing = own::missing(address, limits, tenants).await?;
        let mend =
            |name: String| format!("the topic {name} is missing; make it with `esh3ar topics create --ingress TENANT`");
        said.wrong.extend(missing.into_iter().map(mend));
        if said.wrong.is_empty() {
            said.fine.push("all topics are there and as they have to be".to_owned());
        }
        Ok(said)
    }
    #[cfg(not(feature = "kafka"))]
    Err(OpenError::NotBuilt { what: "Kafka", feature: "kafka" })
}

/// Brings a history's schema up to this release, or says what is wrong with it.
#[cfg_attr(not(feature = "scylla"), allow(unused_variables))]
pub async fn schema(address: &Address, limits: &StoreLimits, apply: bool) -> Result<Said, OpenError> {
    #[cfg(feature = "scylla")]
    {
        use crate::history::scylla::schema;
        let found = if apply { schema::apply(address, limits).await? } else { schema::check(address, limits).await? };
        let server = if found.scylla { "ScyllaDB" } else { "Apache Cassandra" };
        let (version, known) = (found.version, found.known);
        let mut said = Said::default();
        if version == known {
            said.fine.push(format!("the schema is version {version}, the one of this release, on {server}"));
        } else {
            let mend = "make it this release's with `esh3ar schema apply`";
            said.wrong.push(format!("the schema is version {version} and this release works with {known}; {mend}"));
        }
        Ok(said)
    }
    #[cfg(not(feature = "scylla"))]
    Err(OpenError::NotBuilt { what: "ScyllaDB", feature: "scylla" })
}
