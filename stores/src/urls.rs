//! Addresses: which adapter an address names, in one place.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use crate::OpenError;

/// What keeps something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A data folder of this machine.
    Folder(PathBuf),
    /// This process, as long as it runs.
    Process,
}

/// Where messages are kept: a plain path, or an address that names a folder.
pub fn folder(text: &str) -> Result<PathBuf, OpenError> {
    let known = ["file:", "memory:", "kafka:", "scylla:", "redis:"].iter().any(|scheme| text.starts_with(scheme));
    if !known && !text.contains("://") {
        return Ok(text.into());
    }
    match parse(text)? {
        Place::Folder(path) => Ok(path),
        Place::Process => Err(OpenError::Address("`memory:` forgets at its end: messages need a folder".into())),
    }
}

/// Reads `file:PATH` and `memory:`. Addresses of servers are refused with what is missing.
pub fn parse(url: &str) -> Result<Place, OpenError> {
    let (scheme, rest) = url.split_once(':').unwrap_or((url, ""));
    let rest = rest.strip_prefix("//").unwrap_or(rest);
    match scheme {
        "file" if !rest.is_empty() => Ok(Place::Folder(rest.into())),
        "file" => Err(OpenError::Address("`file:` needs a path, e.g. file:./esh3ar-data".into())),
        "memory" => Ok(Place::Process),
        "kafka" | "scylla" | "redis" | "rediss" | "redis-cluster" => Err(OpenError::Address(format!(
            "`{scheme}:` is not a folder: name it as one of `stores.log`, `stores.history` or `stores.presence`; `data` is a \
             folder, e.g. file:./esh3ar-data"
        ))),
        _ => Err(OpenError::Address(format!("no store answers to `{scheme}:`: use file:, memory:, or a plain path"))),
    }
}

/// Schemes of `stores.log`.
pub const LOGS: [&str; 1] = ["kafka"];
/// Schemes of `stores.history`.
pub const HISTORIES: [&str; 1] = ["scylla"];
/// Schemes of `stores.presence`.
pub const PRESENCES: [&str; 3] = ["redis", "rediss", "redis-cluster"];

/// Where the cache is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CachePlace {
    /// Nowhere: everything is read from history.
    Off,
    /// In this process.
    Process,
    /// At servers: those of `stores.presence`, or its own.
    Server(Address),
}

/// Reads `stores.cache`: `memory:`, `off`, or a Redis; where it is empty, the one that presence has, if it has one.
pub fn cache(text: &str, presence: Option<&Address>) -> Result<CachePlace, OpenError> {
    match text {
        "memory:" => return Ok(CachePlace::Process),
        "off" => return Ok(CachePlace::Off),
        _ => {}
    }
    let own = server(text, &PRESENCES).map_err(|why| OpenError::Address(format!("{why}, memory: or off")))?;
    Ok(own.or_else(|| presence.cloned()).map_or(CachePlace::Process, CachePlace::Server))
}

/// The address of servers that a setting names; `None` where it is empty. Another scheme is refused with those there are.
pub fn server(text: &str, schemes: &[&str]) -> Result<Option<Address>, OpenError> {
    if text.is_empty() {
        return Ok(None);
    }
    let known = schemes.iter().map(|scheme| format!("{scheme}://HOST:PORT")).collect::<Vec<_>>().join(" or ");
    let address = Address::parse(text).map_err(|why| OpenError::Address(format!("{why}; write {known}")))?;
    if schemes.contains(&address.scheme.as_str()) {
        return Ok(Some(address));
    }
    Err(OpenError::Address(format!("nothing here answers to `{}://`: write {known}", address.scheme)))
}

/// The address of servers: `scheme://[user[:password]@]host:port[,host:port…][/path][?key=value&…]`. Its text forms never show
/// the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    /// What answers there, e.g. `kafka`.
    pub scheme: String,
    /// Who asks.
    pub user: Option<String>,
    /// What it proves that with.
    pub password: Option<String>,
    /// `host:port` of one or more servers of one cluster.
    pub hosts: Vec<String>,
    /// What stands after the hosts, without its slash.
    pub path: String,
    /// Options; each adapter documents its own and refuses others by [`Address::only`].
    pub options: BTreeMap<String, String>,
}

impl Address {
    /// Reads an address.
    pub fn parse(text: &str) -> Result<Self, OpenError> {
        let wrong = |why: &str| OpenError::Address(format!("`{}`: {why}", redacted(text)));
        let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("an address begins with scheme://"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, hosts) =
            authority.rsplit_once('@').map_or((None, authority), |(login, hosts)| (Some(login), hosts));
        let (user, password) = login.map_or((None, None), |login| match login.split_once(':') {
            Some((user, password)) => (Some(user), Some(password)),
            None => (Some(login), None),
        });
        let plain = |text: &str| {
            let text = percent_encoding::percent_decode_str(text).decode_utf8();
            text.map(|text| text.into_owned()).map_err(|_| wrong("what stands behind % is not UTF-8"))
        };
        let some = |text: Option<&str>| text.filter(|t| !t.is_empty()).map(plain).transpose();
        let hosts: Vec<String> = hosts.split(',').map(str::trim).filter(|h| !h.is_empty()).map(str::to_owned).collect();
        if hosts.is_empty() {
            return Err(wrong("no host is named"));
        }
        let mut options = BTreeMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| wrong("an option is key=value"))?;
            options.insert(plain(key)?, plain(value)?);
        }
        let scheme = scheme.to_owned();
        Ok(Self { scheme, user: some(user)?, password: some(password)?, hosts, path: plain(path)?, options })
    }

    /// Refuses options that the adapter does not know, naming those that it does.
    pub fn only(&self, known: &[&str]) -> Result<(), OpenError> {
        match self.options.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => {
                let known = known.join(", ");
                Err(OpenError::Address(format!("`{self}`: no option is called `{key}`; there are: {known}")))
            }
            None => Ok(()),
        }
    }

    /// An option as a number, where it is given.
    pub fn number(&self, key: &str) -> Result<Option<u64>, OpenError> {
        let Some(text) = self.options.get(key) else { return Ok(None) };
        let wrong = |_| OpenError::Address(format!("`{self}`: `{key}` is to be a whole number, and is `{text}`"));
        text.parse().map(Some).map_err(wrong)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}/{}", self.scheme, self.hosts.join(","), self.path)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An address without its login.
pub fn redacted(text: &str) -> String {
    match text.split_once("://") {
        Some((scheme, rest)) => format!("{scheme}://{}", rest.rsplit_once('@').map_or(rest, |(_, hosts)| hosts)),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_its_adapter_or_what_is_missing() {
        assert_eq!(parse("file:./data").unwrap(), Place::Folder("./data".into()));
        assert_eq!(parse("file:///var/lib/esh3ar").unwrap(), Place::Folder("/var/lib/esh3ar".into()));
        assert_eq!(parse("memory:").unwrap(), Place::Process);
        for (url, word) in [("kafka://a:9092", "`stores.log`"), ("mongo:x", "`mongo:`"), ("file:", "path")] {
            let refusal = parse(url).unwrap_err().to_string();
            assert!(refusal.contains(word), "{refusal}");
        }
        assert_eq!(folder("./data").unwrap(), PathBuf::from("./data"));
        assert_eq!(folder("file:./data").unwrap(), PathBuf::from("./data"));
        assert!(folder("memory:").is_err() && folder("s3://bucket").is_err());
    }

    #[test]
    fn a_setting_names_servers_of_its_own_kind() {
        assert_eq!(server("", &LOGS).unwrap(), None);
        assert_eq!(server("rediss://a:1", &PRESENCES).unwrap().unwrap().scheme, "rediss");
        for (text, schemes, part) in [
            ("redis://a:1", &LOGS[..], "kafka://HOST:PORT"),
            ("localhost:9092", &LOGS[..], "scheme://"),
            ("kafka://a:1", &PRESENCES[..], "redis-cluster://HOST:PORT"),
        ] {
            let said = server(text, schemes).unwrap_err().to_string();
            assert!(said.contains(part), "{said}");
        }
    }

    #[test]
    fn the_cache_is_where_presence_is_unless_it_is_named() {
        let redis = Address::parse("redis://a:1").unwrap();
        assert_eq!(cache("", None).unwrap(), CachePlace::Process);
        assert_eq!(cache("", Some(&redis)).unwrap(), CachePlace::Server(redis.clone()));
        assert_eq!(cache("memory:", Some(&redis)).unwrap(), CachePlace::Process);
        assert_eq!(cache("off", Some(&redis)).unwrap(), CachePlace::Off);
        let own = cache("redis://b:1", Some(&redis)).unwrap();
        assert!(matches!(own, CachePlace::Server(address) if address.hosts == ["b:1"]));
        let said = cache("file:x", None).unwrap_err().to_string();
        assert!(said.contains("memory:") && said.contains("redis://"), "{said}");
    }

    #[test]
    fn an_address_is_read_and_its_password_never_shown() {
        let text = "kafka://app:s%40cret@a:9092,b:9092/esh3ar.?tls=true&partitions=24";
        let address = Address::parse(text).unwrap();
        assert_eq!((address.user.as_deref(), address.password.as_deref()), (Some("app"), Some("s@cret")));
        assert_eq!((address.hosts.join(" "), address.path.as_str()), ("a:9092 b:9092".to_owned(), "esh3ar."));
        assert_eq!(address.number("partitions").unwrap(), Some(24));
        assert!(!format!("{address} {address:?} {}", redacted(text)).contains("cret"));
        let unknown = address.only(&["tls"]).unwrap_err().to_string();
        assert!(unknown.contains("`partitions`") && unknown.contains("tls"), "{unknown}");
        for wrong in ["kafka", "kafka://", "kafka://a:9092?x"] {
            assert!(Address::parse(wrong).is_err(), "{wrong}");
        }
    }
}
