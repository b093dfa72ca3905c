//! Configuration: one tree of values with a documented key each, from a TOML file, the environment and flags, in that order
//! of precedence rising. Everything has a default, so that none of them is needed.

pub mod check;
pub mod keys;
pub mod sources;

use std::path::{Path, PathBuf};

use schemas::Limits;
use serde::{Deserialize, Serialize};
use toml::Value;

pub use sources::{BadConfig, Source};

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The data folder.
    pub data: PathBuf,
    /// The public listener.
    pub listen: String,
    /// The administrators' listener.
    pub admin: String,
    /// Where clients reach this node; empty: where it listens.
    pub address: String,
    /// This node's name; empty: one of its own.
    pub node: String,
    /// Origins whose pages may open sockets.
    pub origins: Vec<String>,
    /// Dataflow threads; 0: half the cores.
    pub instances: usize,
    /// The tenant whose administrators run the installation.
    pub operators: String,
    /// What keeps and carries: addresses.
    pub stores: StoresConfig,
    /// Who is believed.
    pub auth: AuthConfig,
    /// Who is told of dead letters.
    pub notice: NoticeConfig,
    /// What is logged, and how.
    pub log: LogConfig,
    /// Every bound.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data: PathBuf::from("./esh3ar-data"),
            listen: "127.0.0.1:8080".to_owned(),
            admin: "127.0.0.1:8081".to_owned(),
            address: String::new(),
            node: String::new(),
            origins: Vec::new(),
            instances: 0,
            operators: "operators".to_owned(),
            stores: StoresConfig::default(),
            auth: AuthConfig::default(),
            notice: NoticeConfig::default(),
            log: LogConfig::default(),
            limits: Limits::default(),
        }
    }
}

/// What keeps and carries, by address. Empty: what stands in the data folder, and this process alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoresConfig {
    /// The log.
    pub log: String,
    /// The history.
    pub history: String,
    /// Presence, backplane and shared quotas.
    pub presence: String,
    /// The cache.
    pub cache: String,
    /// Whether the Kafka door is open: `on` or `off`.
    pub ingress: String,
    /// How long a start waits for servers that do not answer, s.
    pub wait_s: u64,
    /// How far this machine's clock may be from a server's, ms.
    pub skew_ms: u64,
}

impl Default for StoresConfig {
    fn default() -> Self {
        Self {
            log: String::new(),
            history: String::new(),
            presence: String::new(),
            cache: String::new(),
            ingress: "on".to_owned(),
            wait_s: 30,
            skew_ms: 30_000,
        }
    }
}

/// Who is believed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthConfig {
    /// The one signature algorithm.
    pub algorithm: String,
    /// The HS256 secret.
    pub secret: String,
    /// A file that holds it.
    pub secret_file: PathBuf,
    /// A JWKS file.
    pub jwks: PathBuf,
    /// The issuer a token must name.
    pub issuer: String,
    /// The audience a token must name.
    pub audience: String,
    /// API keys.
    pub api_keys: Vec<ApiKeyConfig>,
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self {
            algorithm: "HS256".to_owned(),
            secret: String::new(),
            secret_file: PathBuf::new(),
            jwks: PathBuf::new(),
            issuer: String::new(),
            audience: String::new(),
            api_keys: Vec::new(),
        }
    }
}

/// One API key, known by its digest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKeyConfig {
    /// SHA-256 of the key, in hex.
    pub sha256: String,
    /// Whose key it is.
    pub tenant: String,
    /// What it permits: send, chat, broadcast, admin.
    pub can: Vec<String>,
}

/// Who is told of dead letters.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NoticeConfig {
    /// A URL.
    pub webhook: String,
    /// A command.
    pub command: Vec<String>,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// `human` or `json`.
    pub format: String,
    /// The least important that is logged.
    pub level: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: "human".to_owned(), level: "info".to_owned() }
    }
}

impl Config {
    /// This node's name: what was configured, `node-1` for a process that is the whole installation, else one that no other
    /// process has: the machine's name and the number of the process.
    pub fn node_name(&self) -> String {
        if !self.node.is_empty() {
            return self.node.clone();
        }
        if self.stores.presence.is_empty() {
            return "node-1".to_owned();
        }
        let fine = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let host: String = host().chars().filter(fine).take(48).collect();
        let host = if host.is_empty() { "node" } else { &host };
        format!("{host}-{}", std::process::id())
    }

    /// Dataflow threads, counted out.
    pub fn threads(&self) -> usize {
        match self.instances {
            0 => std::thread::available_parallelism().map_or(1, |n| (n.get() / 2).max(1)),
            n => n,
        }
    }
}

/// The machine's name.
pub fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// A configuration with where each value came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    layers: sources::Layers,
}

/// One row of `config show`.
#[derive(Debug, Clone, Serialize)]
pub struct Shown {
    /// The key.
    pub key: String,
    /// Its value; of a secret only whether there is one.
    pub value: Value,
    /// Where it came from.
    pub from: String,
    /// What it means.
    pub doc: &'static str,
}

/// Reads a configuration: the file, then the environment, then flags as (key, value, flag), then `--set` assignments.
/// Everything that is wrong is told at once.
pub fn load(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
    flags: &[(&str, String, &str)],
    set: &[String],
) -> Result<Loaded, BadConfig> {
    let mut layers = sources::Layers::default();
    let mut wrong = Vec::new();
    let mut note = |outcome: Result<(), BadConfig>| {
        if let Err(BadConfig(sentences)) = outcome {
            wrong.extend(sentences);
        }
    };
    if let Some(path) = file {
        note(layers.file(path));
    }
    note(layers.environment(environment));
    for (path, text, flag) in flags {
        note(layers.flag(path, text, flag));
    }
    for assignment in set {
        note(layers.set(assignment));
    }
    if !wrong.is_empty() {
        return Err(BadConfig(wrong));
    }
    let config: Config =
        Value::Table(layers.nested()).try_into().map_err(|why: toml::de::Error| why.to_string().trim().to_owned())?;
    let wrong = check::all(&config);
    if wrong.is_empty() { Ok(Loaded { config, layers }) } else { Err(BadConfig(wrong)) }
}

impl Loaded {
    /// Every key with its value, source and documentation; secrets hidden.
    pub fn shown(&self) -> Vec<Shown> {
        let tree = Value::try_from(&self.config).unwrap_or(Value::Boolean(false));
        keys::all()
            .into_iter()
            .map(|key| {
                let value = key.path.split('.').try_fold(&tree, |at, part| at.get(part));
                let value = value.cloned().unwrap_or(Value::String(String::new()));
                let is_empty = value.as_str() == Some("") || value.as_array().is_some_and(Vec::is_empty);
                let value = match value {
                    // An address says where, and never by which password.
                    Value::String(text) if keys::is_address(&key.path) => Value::String(stores::urls::redacted(&text)),
                    _ if key.secret && !is_empty => Value::String("(hidden)".to_owned()),
                    value => value,
                };
                Shown { from: self.layers.source(&key.path).to_string(), key: key.path, value, doc: key.doc }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
