//! An address, read into what connects there. Which options there are and what a refusal means is said here.

use std::{fs, time::Duration};

use ::redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, ProtocolVersion,
    RedisConnectionInfo, RedisError, ServerErrorKind, TlsCertificates,
    aio::AsyncPushSender,
    cluster::{ClusterClient, ClusterClientBuilder, TlsMode},
};
use schemas::limits::RedisLimits;

use crate::{OpenError, urls::Address};

/// Stands before every key and channel where the address names no prefix.
const PREFIX: &str = "esh3ar:";
/// Commands that may wait to be written to the connection; past that callers wait in line.
const PIPELINE: usize = 1_024;
/// Where Redis listens when an address names no port.
const PORT: u16 = 6379;

/// What an address means.
pub(super) struct Target {
    pub(super) address: Address,
    pub(super) prefix: String,
    nodes: Vec<ConnectionInfo>,
    cluster: bool,
    certificates: Option<TlsCertificates>,
    within: Duration,
}

impl Target {
    pub(super) fn parse(address: &Address, limits: &RedisLimits) -> Result<Self, OpenError> {
        let wrong = |why: String| OpenError::Address(format!("`{address}`: {why}"));
        let cluster = address.scheme == "redis-cluster";
        if cluster {
            address.only(&["tls", "ca"])?;
        } else {
            address.only(&["db", "ca"])?;
        }
        let tls = match (address.scheme.as_str(), address.options.get("tls").map(String::as_str)) {
            ("rediss", _) | (_, Some("true")) => true,
            ("redis" | "redis-cluster", None | Some("false")) => false,
            (_, Some(_)) => return Err(wrong("`tls` is true or false".to_owned())),
            _ => return Err(wrong("Redis is named by redis://, rediss:// or redis-cluster://".to_owned())),
        };
        if !cluster && address.hosts.len() > 1 {
            return Err(wrong("several hosts are a cluster: say redis-cluster://".to_owned()));
        }
        let certificates = match address.options.get("ca") {
            Some(_) if !tls => return Err(wrong("`ca` needs TLS: say rediss://, or tls=true on a cluster".to_owned())),
            Some(path) => {
                let pem = fs::read(path).map_err(|why| wrong(format!("`ca` {path} cannot be read: {why}")))?;
                Some(TlsCertificates { client_tls: None, root_cert: Some(pem) })
            }
            None => None,
        };
        let mut login = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3);
        if let Some(user) = &address.user {
            login = login.set_username(user);
        }
        if let Some(password) = &address.password {
            login = login.set_password(password);
        }
        if let Some(db) = address.number("db")? {
            login = login.set_db(i64::try_from(db).map_err(|_| wrong("`db` is too large".to_owned()))?);
        }
        let nodes = address.hosts.iter().map(|host| {
            let (host, port) = host_port(host).ok_or_else(|| wrong(format!("`{host}` is to be HOST:PORT")))?;
            let at = if tls {
                ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
            } else {
                ConnectionAddr::Tcp(host, port)
            };
            let info = at.into_connection_info().map_err(|why| wrong(why.to_string()))?;
            Ok(info.set_redis_settings(login.clone()))
        });
        let nodes = nodes.collect::<Result<Vec<_>, OpenError>>()?;
        let prefix = if address.path.is_empty() { PREFIX.to_owned() } else { address.path.clone() };
        let within = Duration::from_millis(limits.command_ms);
        let target = Self { address: address.clone(), prefix, nodes, cluster, certificates, within };
        // What is wrong with the certificate or the user is found out now and not at the first connection.
        if target.cluster {
            target.cluster(None).map(drop).map_err(|why| wrong(why.to_string()))?;
        } else {
            target.single().map(drop).map_err(|why| wrong(why.to_string()))?;
        }
        Ok(target)
    }

    pub(super) fn is_cluster(&self) -> bool {
        self.cluster
    }

    pub(super) fn single(&self) -> Result<Client, RedisError> {
        let node = self.nodes.first().cloned().ok_or((ErrorKind::InvalidClientConfig, "no host is named"))?;
        match &self.certificates {
            Some(certificates) => Client::build_with_tls(node, certificates.clone()),
            None => Client::open(node),
        }
    }

    /// How a connection behaves; pushes go to `pushed`, without waiting.
    pub(super) fn config(&self, pushed: Option<impl AsyncPushSender>) -> AsyncConnectionConfig {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.within))
            .set_response_timeout(Some(self.within))
            .set_pipeline_buffer_size(PIPELINE);
        match pushed {
            Some(pushed) => config.set_push_sender(pushed),
            None => config,
        }
    }

    pub(super) fn cluster(&self, pushed: Option<Box<dyn AsyncPushSender>>) -> Result<ClusterClient, RedisError> {
        let mut builder = ClusterClientBuilder::new(self.nodes.clone())
            .use_protocol(ProtocolVersion::RESP3)
            .connection_timeout(self.within)
            .response_timeout(self.within)
            .retries(2);
        if let Some(certificates) = &self.certificates {
            builder = builder.certs(certificates.clone());
        }
        if self.nodes.first().is_some_and(|node| matches!(node.addr(), ConnectionAddr::TcpTls { .. })) {
            builder = builder.tls(TlsMode::Secure);
        }
        if let Some(pushed) = pushed {
            builder = builder.push_sender(move |info| pushed.send(info));
        }
        builder.build()
    }

    /// Why it could not be opened, as a sentence that says what to do.
    pub(super) fn refusal(&self, why: &RedisError) -> OpenError {
        let (address, hosts) = (&self.address, self.address.hosts.join(","));
        let login = || {
            OpenError::Address(format!(
                "Redis at {hosts} does not accept the login ({why}): put the right user and password into \
                 `stores.presence`, redis://USER:PASSWORD@HOST:PORT; ESH3AR_STORES__PRESENCE keeps them out of files"
            ))
        };
        match why.kind() {
            ErrorKind::AuthenticationFailed => login(),
            _ if matches!(why.code(), Some("NOAUTH" | "WRONGPASS" | "NOPERM")) => login(),
            ErrorKind::RESP3NotSupported => OpenError::Address(format!(
                "Redis at {hosts} is too old ({why}): Esh3ar needs 6.0 or newer, a cluster 7.0"
            )),
            ErrorKind::InvalidClientConfig => OpenError::Address(format!("`{address}`: {why}")),
            ErrorKind::Server(ServerErrorKind::ReadOnly) => {
                OpenError::Address(format!("Redis at {hosts} is a replica and takes no writes: name its primary"))
            }
            ErrorKind::Server(ServerErrorKind::ResponseError)
                if self.cluster && why.to_string().contains("cluster") =>
            {
                OpenError::Address(format!("Redis at {hosts} is no cluster ({why}): say redis:// instead"))
            }
            _ => OpenError::Unreachable {
                what: "Redis",
                hosts,
                setting: "stores.presence",
                why: format!("{why}{}", if self.is_tls() { "; TLS is asked for" } else { "" }),
            },
        }
    }

    fn is_tls(&self) -> bool {
        self.nodes.iter().any(|node| matches!(node.addr(), ConnectionAddr::TcpTls { .. }))
    }
}

/// `host`, `host:port`, `[v6]:port`.
fn host_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port.parse().ok()?),
        _ => (text, PORT),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Target, OpenError> {
        Target::parse(&Address::parse(text)?, &RedisLimits::default())
    }

    #[test]
    fn an_address_says_what_it_means_or_what_is_wrong_with_it() {
        let target = parse("redis://app:s%40cret@a:7000/mine:?db=2").unwrap();
        assert_eq!((target.prefix.as_str(), target.is_cluster(), target.is_tls()), ("mine:", false, false));
        let login = target.nodes[0].redis_settings();
        assert_eq!((login.username(), login.password(), login.db()), (Some("app"), Some("s@cret"), 2));
        assert_eq!(parse("redis://a").unwrap().nodes[0].addr().to_string(), "a:6379");
        assert_eq!(parse("redis://[::1]:7").unwrap().nodes[0].addr().to_string(), "::1:7");
        assert!(parse("rediss://a:1").unwrap().is_tls());
        let cluster = parse("redis-cluster://a:1,b:2?tls=true").unwrap();
        assert!(cluster.is_cluster() && cluster.is_tls() && cluster.nodes.len() == 2);
        let table = [
            ("redis://a:1,b:2", "redis-cluster"),
            ("redis://a:1?database=2", "`database`"),
            ("redis://a:x", "HOST:PORT"),
            ("redis://a:1?ca=/x", "TLS"),
            ("rediss://a:1?ca=/nowhere.pem", "/nowhere.pem"),
            ("redis-cluster://a:1?tls=maybe", "true or false"),
            ("valkey://a:1", "redis://"),
        ];
        for (text, word) in table {
            let refusal = parse(text).map(drop).unwrap_err().to_string();
            assert!(refusal.contains(word), "{text}: {refusal}");
        }
    }
}
