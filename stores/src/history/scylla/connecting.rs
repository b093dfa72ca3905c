//! Connecting, and what a start is told that cannot begin: of every failure whether waiting helps.

use std::{fmt::Display, sync::Arc, time::Duration};

use schemas::limits::StoreLimits;
use scylla::{
    client::{PoolSize, execution_profile::ExecutionProfile, session::Session, session_builder::SessionBuilder},
    errors::{DbError, ExecutionError, PrepareError, RequestAttemptError},
    policies::speculative_execution::SimpleSpeculativeExecutionPolicy,
    statement::{Consistency, SerialConsistency},
};

use crate::{OpenError, urls::Address};

/// How often a connection is asked whether its node is there, and how long that may take. A node that hangs closes nothing: until
/// its connections are given up, each request whose turn is its waits for [`SPECULATE`].
const KEEPALIVE: Duration = Duration::from_secs(2);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(2);
/// How long a request may take before the same is asked of another node, as a part of the whole time.
const SPECULATE: u32 = 6;

/// Why a request of the start failed. What the cluster answered stays until somebody changes something; where nobody answered, or
/// nobody who could, it may succeed later.
#[derive(Debug)]
pub(super) struct Fault {
    why: String,
    is_away: bool,
}

impl Fault {
    /// The cluster's answer, or one that is none.
    pub(super) fn answer(why: impl Display) -> Self {
        Self { why: why.to_string(), is_away: false }
    }

    fn away(why: impl Display) -> Self {
        Self { why: why.to_string(), is_away: true }
    }

    /// How a start is told, in its own words.
    pub(super) fn at(self, address: &Address, say: impl FnOnce(&str) -> String) -> OpenError {
        match self {
            Self { why, is_away: true } => away(address, say(&why)),
            Self { why, is_away: false } => OpenError::Address(format!("`{address}`: {}", say(&why))),
        }
    }
}

impl From<RequestAttemptError> for Fault {
    fn from(why: RequestAttemptError) -> Self {
        use RequestAttemptError::{BrokenConnectionError, UnableToAllocStreamId};
        match &why {
            RequestAttemptError::DbError(
                DbError::Unavailable { .. }
                | DbError::Overloaded
                | DbError::IsBootstrapping
                | DbError::ReadTimeout { .. }
                | DbError::ReadFailure { .. }
                | DbError::WriteTimeout { .. }
                | DbError::WriteFailure { .. }
                | DbError::RateLimitReached { .. }
                | DbError::ServerError,
                _,
            )
            | BrokenConnectionError(_)
            | UnableToAllocStreamId => Self::away(why),
            _ => Self::answer(why),
        }
    }
}

impl From<PrepareError> for Fault {
    fn from(why: PrepareError) -> Self {
        match why {
            PrepareError::AllAttemptsFailed { first_attempt } => first_attempt.into(),
            PrepareError::ConnectionPoolError(why) => Self::away(why),
            other => Self::answer(other),
        }
    }
}

impl From<ExecutionError> for Fault {
    fn from(why: ExecutionError) -> Self {
        match why {
            ExecutionError::LastAttemptError(why) => why.into(),
            ExecutionError::PrepareError(why) => why.into(),
            // No statement, or no data centre of that name.
            ExecutionError::BadQuery(_) | ExecutionError::EmptyPlan | ExecutionError::UseKeyspaceError(_) => {
                Self::answer(why)
            }
            other => Self::away(other),
        }
    }
}

/// Connects to the cluster; the keyspace need not be there.
pub(super) async fn connect(address: &Address, limits: &StoreLimits) -> Result<Session, OpenError> {
    let wrong = |why: String| OpenError::Address(format!("`{address}`: {why}"));
    if address.scheme != "scylla" {
        return Err(wrong("the history's address begins with scylla://".into()));
    }
    address.only(&["dc", "replication", "tls", "ca", "ttl_days"])?;
    let name = &address.path;
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if name.is_empty()
        || name.len() > 40
        || !name.chars().all(fine)
        || !name.starts_with(|c: char| c.is_ascii_lowercase())
    {
        return Err(wrong(
            "a keyspace of a-z, 0-9 and '_' is named behind the hosts, e.g. scylla://host:9042/esh3ar".into(),
        ));
    }
    let timeout = Duration::from_millis(limits.cql_ms);
    let profile = ExecutionProfile::builder()
        .consistency(Consistency::LocalQuorum)
        .serial_consistency(Some(SerialConsistency::LocalSerial))
        .request_timeout(Some(timeout))
        .speculative_execution_policy(Some(Arc::new(SimpleSpeculativeExecutionPolicy {
            // One: a second would treble what a cluster has to do that is slow because it has too much to do.
            max_retry_count: 1,
            retry_interval: timeout / SPECULATE,
        })))
        .build();
    let mut builder = SessionBuilder::new()
        .known_nodes(&address.hosts)
        .default_execution_profile_handle(profile.into_handle())
        .pool_size(PoolSize::PerShard(std::num::NonZeroUsize::MIN))
        .keepalive_interval(KEEPALIVE)
        .keepalive_timeout(KEEPALIVE_ANSWER)
        .connection_timeout(timeout)
        .schema_agreement_timeout(Duration::from_secs(30))
        .fetch_schema_metadata(true);
    if let Some(dc) = address.options.get("dc") {
        builder = builder.prefer_datacenter(dc.clone());
    }
    if let Some(user) = &address.user {
        builder = builder.user(user, address.password.as_deref().unwrap_or_default());
    }
    if address.options.get("tls").is_some_and(|tls| tls != "false") {
        builder = builder.tls_context(Some(tls(address)?));
    }
    // The driver tries every host and every address; what it says last is the reason.
    let connecting = tokio::time::timeout(timeout * 3, builder.build()).await;
    match connecting {
        Ok(Ok(session)) => Ok(session),
        Ok(Err(why)) => {
            let mut why = why.to_string();
            if why.contains("frame") && !address.options.contains_key("tls") {
                why.push_str("; if the servers ask for TLS, the address needs `tls=true&ca=FILE`");
            }
            Err(refusal(&why, address).map_or_else(|| away(address, why), wrong))
        }
        Err(_) => Err(away(address, format!("no answer within {} ms", timeout.as_millis() * 3))),
    }
}

/// What to do about a connection that was refused; `None` where nobody answered at all.
fn refusal(why: &str, address: &Address) -> Option<String> {
    let says = |words: &[&str]| words.iter().any(|word| why.contains(word));
    if says(&["credentials", "Authentication", "authentication", "username"]) {
        let user = address.user.as_deref().unwrap_or("nobody");
        return Some(format!(
            "the servers do not let user `{user}` in ({why}): check user and password of the address"
        ));
    }
    if says(&["resolve"]) {
        return Some(format!("no host of it is known by its name ({why}): check the host names"));
    }
    if says(&["certificate", "Tls", "TLS handshake", "tls error"]) {
        return Some(format!("no safe connection is made ({why}): check `tls` and `ca`"));
    }
    None
}

/// Nobody answers there, yet.
fn away(address: &Address, why: String) -> OpenError {
    OpenError::Unreachable { what: "the history", hosts: address.hosts.join(","), setting: "stores.history", why }
}

/// What the servers' certificates are checked with.
fn tls(address: &Address) -> Result<Arc<rustls::ClientConfig>, OpenError> {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    let wrong = |why: String| OpenError::Address(format!("`{address}`: {why}"));
    let Some(path) = address.options.get("ca") else {
        return Err(wrong(
            "`tls` needs `ca=FILE`, the certificate (PEM) that the servers' certificates are signed with".into(),
        ));
    };
    let mut roots = rustls::RootCertStore::empty();
    let unreadable = |why: &dyn std::fmt::Display| wrong(format!("the certificate {path} cannot be read: {why}"));
    for certificate in CertificateDer::pem_file_iter(path).map_err(|why| unreadable(&why))? {
        let certificate = certificate.map_err(|why| unreadable(&why))?;
        roots.add(certificate).map_err(|why| unreadable(&why))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|why| wrong(format!("TLS cannot be set up: {why}")))?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_waits_for_who_is_silent_and_not_for_another_answer() {
        let address = Address::parse("scylla://a:9042/esh3ar").unwrap();
        let says = |error: DbError| ExecutionError::LastAttemptError(RequestAttemptError::DbError(error, "so".into()));
        let unprepared = |error: DbError| {
            let first_attempt = RequestAttemptError::DbError(error, "so".into());
            ExecutionError::PrepareError(PrepareError::AllAttemptsFailed { first_attempt })
        };
        let waits = [
            ExecutionError::RequestTimeout(Duration::from_millis(3_000)),
            ExecutionError::LastAttemptError(RequestAttemptError::UnableToAllocStreamId),
            says(DbError::Overloaded),
            says(DbError::ServerError),
            says(DbError::Unavailable { consistency: Consistency::LocalQuorum, required: 2, alive: 1 }),
            unprepared(DbError::IsBootstrapping),
        ];
        let stays = [
            says(DbError::Unauthorized),
            says(DbError::SyntaxError),
            unprepared(DbError::Invalid),
            ExecutionError::EmptyPlan,
        ];
        let told = |why: ExecutionError| Fault::from(why).at(&address, |why| format!("the tables are odd: {why}"));
        for why in waits {
            let told = told(why);
            assert!(matches!(told, OpenError::Unreachable { .. }), "{told}");
        }
        for why in stays {
            let told = told(why);
            assert!(matches!(&told, OpenError::Address(why) if why.contains("the tables are odd")), "{told}");
        }
    }
}
