//! Every configuration key with its documentation and form: what `config show` lists and unknown keys are measured against.

use schemas::Limits;

/// What a key's value looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A string.
    Text,
    /// A whole number, zero or more.
    Integer,
    /// A list of strings. In the environment and flags: parts with commas between, or a TOML array.
    List,
    /// A list of tables. In the environment and flags: a TOML array of inline tables.
    Tables,
}

impl Kind {
    /// The words for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Text => "a string",
            Self::Integer => "a whole number, zero or more",
            Self::List => "a list of strings",
            Self::Tables => "a list of tables",
        }
    }
}

/// One key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its place, with dots between.
    pub path: String,
    /// What it means.
    pub doc: &'static str,
    /// What its value looks like.
    pub kind: Kind,
    /// Whether its value is never shown.
    pub secret: bool,
}

const OWN: &[(&str, Kind, &str)] = &[
    ("data", Kind::Text, "The folder that keeps everything: log, history, signing key."),
    ("listen", Kind::Text, "Where clients connect: HOST:PORT. Port 0 takes a free one."),
    ("admin", Kind::Text, "Where administrators connect: HOST:PORT. Keep it off the public network."),
    ("address", Kind::Text, "Where clients reach this node, as other nodes tell them; empty: where it listens."),
    (
        "node",
        Kind::Text,
        "This node's name among the nodes; empty: `node-1` for a process alone, else the machine's name and the process's number.",
    ),
    ("origins", Kind::List, "Origins whose web pages may open sockets, e.g. https://app.example.com; \"*\" lets all."),
    ("instances", Kind::Integer, "Dataflow threads; 0: half the cores, at least one."),
    (
        "operators",
        Kind::Text,
        "The tenant whose administrators run this installation and see every tenant's dead letters.",
    ),
    ("stores.log", Kind::Text, "What keeps the log: `kafka://HOST:PORT,…/PREFIX`; empty: the data folder."),
    ("stores.history", Kind::Text, "What keeps the history: `scylla://HOST:PORT,…/KEYSPACE`; empty: the data folder."),
    (
        "stores.presence",
        Kind::Text,
        "What knows who is where, carries deliveries between nodes and counts quotas: `redis://`, `rediss://` or `redis-cluster://HOST:PORT`; empty: this process.",
    ),
    (
        "stores.cache",
        Kind::Text,
        "What keeps recent messages and lists of conversations near: a Redis of its own, `memory:` for this process, or `off`; empty: the Redis of `stores.presence`, else this process.",
    ),
    (
        "stores.ingress",
        Kind::Text,
        "`on`: a process that takes messages in also reads the topics `ingress` and `ingress.TENANT` of a Kafka log; `off`: it does not.",
    ),
    (
        "stores.wait_s",
        Kind::Integer,
        "How long a start waits for servers that do not answer, s; 0: it fails at once. What is set up wrongly always fails at once.",
    ),
    (
        "stores.skew_ms",
        Kind::Integer,
        "How far this machine's clock may be from a server's, ms: past that a start is refused, and past a tenth of it there is a warning.",
    ),
    (
        "auth.algorithm",
        Kind::Text,
        "How tokens are signed: HS256, RS256, ES256 or EdDSA. A token that says otherwise is refused.",
    ),
    ("auth.secret", Kind::Text, "The HS256 secret; empty: `signing.key` in the data folder, made on first start."),
    ("auth.secret_file", Kind::Text, "A file that holds the HS256 secret, instead of `auth.secret`."),
    ("auth.jwks", Kind::Text, "A JWKS file with the public keys, for RS256, ES256 and EdDSA."),
    ("auth.issuer", Kind::Text, "The `iss` a token must carry; empty: any."),
    ("auth.audience", Kind::Text, "The `aud` a token must carry; empty: any."),
    ("auth.api_keys", Kind::Tables, "API keys: a list of {sha256, tenant, can}; the key itself is never written down."),
    ("notice.webhook", Kind::Text, "A URL that is told of dead letters by POST; empty: none."),
    (
        "notice.command",
        Kind::List,
        "A command and its arguments that is told of dead letters on its standard input; empty: none.",
    ),
    ("log.format", Kind::Text, "`human` or `json`."),
    ("log.level", Kind::Text, "error, warn, info, debug or trace; also per part: `info,gateway=debug`."),
];

/// Keys whose values are never shown. A webhook's URL often carries a token.
const SECRET: [&str; 3] = ["auth.secret", "auth.api_keys", "notice.webhook"];

/// Whether a key's value is an address, which is shown without its login.
pub fn is_address(path: &str) -> bool {
    matches!(path, "stores.log" | "stores.history" | "stores.presence" | "stores.cache")
}

/// All keys, in the order they are shown.
pub fn all() -> Vec<Key> {
    let own = OWN.iter().map(|(path, kind, doc)| Key {
        path: (*path).to_owned(),
        doc,
        kind: *kind,
        secret: SECRET.contains(path) || is_address(path),
    });
    let limits = Limits::GROUPS.iter().flat_map(|(group, keys)| {
        keys.iter().map(move |(name, doc)| Key {
            path: format!("limits.{group}.{name}"),
            doc: doc.trim(),
            kind: Kind::Integer,
            secret: false,
        })
    });
    own.chain(limits).collect()
}

/// The known key that is nearest to a name nobody knows: by the whole path, or by its last part alone, so that both a
/// slip of the finger and a forgotten table are understood.
pub fn nearest<'a>(unknown: &str, keys: &'a [Key]) -> Option<&'a Key> {
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let likeness = |key: &Key| {
        let whole = strsim::normalized_damerau_levenshtein(unknown, &key.path);
        let part = 0.9 * strsim::normalized_damerau_levenshtein(&last(unknown), &last(&key.path));
        whole.max(part)
    };
    keys.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
}

/// How alike two names are, from 0 to 1.
pub fn likeness(a: &str, b: &str) -> f64 {
    strsim::normalized_damerau_levenshtein(a, b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_documented_and_stands_once() {
        let keys = all();
        let names: std::collections::HashSet<_> = keys.iter().map(|k| &k.path).collect();
        assert_eq!(names.len(), keys.len());
        for key in &keys {
            assert!(key.doc.len() > 10 && !key.doc.ends_with(' '), "{} has no documentation", key.path);
        }
    }

    #[test]
    fn an_unknown_key_is_told_its_nearest() {
        let keys = all();
        for (wrong, right) in [
            ("lisen", "listen"),
            ("limits.flow.akc_ms", "limits.flow.ack_ms"),
            ("ack_ms", "limits.flow.ack_ms"),
            ("limits.lane_full", "limits.door.lane_full"),
            ("auth.api_key", "auth.api_keys"),
            ("log.fromat", "log.format"),
        ] {
            assert_eq!(nearest(wrong, &keys).unwrap().path, right, "{wrong}");
        }
    }
}
