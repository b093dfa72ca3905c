//! Where values come from: defaults, a TOML file, the environment, flags. A later one wins. Names that nobody knows are
//! refused with the nearest that is known, because a setting that is silently ignored is worse than none.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use serde::Serialize;
use toml::{Table, Value};

use super::keys::{self, Key, Kind};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Nobody said otherwise.
    Default,
    /// A configuration file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// The command line.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(name) => f.write_str(name),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// Why a configuration was refused, in sentences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadConfig(pub Vec<String>);

impl fmt::Display for BadConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for BadConfig {}

impl From<String> for BadConfig {
    fn from(sentence: String) -> Self {
        Self(vec![sentence])
    }
}

/// Values said so far, each with its source.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    values: BTreeMap<String, (Value, Source)>,
}

/// Variables that are for commands and name no key.
const NOT_KEYS: [&str; 6] =
    ["ESH3AR_CONFIG", "ESH3AR_URL", "ESH3AR_ADMIN_URL", "ESH3AR_TOKEN", "ESH3AR_TENANT", "ESH3AR_DEVICE"];

impl Layers {
    /// Lays a file's values over.
    pub fn file(&mut self, path: &Path) -> Result<(), BadConfig> {
        let text = std::fs::read_to_string(path)
            .map_err(|why| format!("the configuration file {} cannot be read: {why}", path.display()))?;
        self.text(&text, path)
    }

    /// Lays the values of a file's text over.
    pub fn text(&mut self, text: &str, path: &Path) -> Result<(), BadConfig> {
        let table: Table = text.parse().map_err(|why| format!("{} is not TOML: {why}", path.display()))?;
        let (known, mut wrong) = (keys::all(), Vec::new());
        self.table("", table, &known, &Source::File(path.to_owned()), &mut wrong);
        if wrong.is_empty() { Ok(()) } else { Err(BadConfig(wrong)) }
    }

    fn table(&mut self, prefix: &str, table: Table, known: &[Key], source: &Source, wrong: &mut Vec<String>) {
        for (name, value) in table {
            let path = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
            match (known.iter().find(|k| k.path == path), value) {
                (Some(key), value) if fits(key.kind, &value) => {
                    self.values.insert(path, (value, source.clone()));
                }
                (Some(key), _) => wrong.push(format!("`{path}` in {source} must be {}", key.kind.word())),
                (None, Value::Table(inner)) if known.iter().any(|k| k.path.starts_with(&format!("{path}."))) => {
                    self.table(&path, inner, known, source, wrong);
                }
                (None, _) => wrong.push(unknown(&path, &source.to_string(), known)),
            }
        }
    }

    /// Lays environment variables over: `ESH3AR_LIMITS__FLOW__ACK_MS` is `limits.flow.ack_ms`.
    pub fn environment(&mut self, variables: impl IntoIterator<Item = (String, String)>) -> Result<(), BadConfig> {
        let (known, mut wrong) = (keys::all(), Vec::new());
        for (name, text) in variables {
            let Some(rest) = name.strip_prefix("ESH3AR_").filter(|_| !NOT_KEYS.contains(&name.as_str())) else {
                continue;
            };
            let path = rest.to_lowercase().replace("__", ".");
            match known.iter().find(|k| k.path == path) {
                Some(key) => match read(key, &text) {
                    Ok(value) => {
                        self.values.insert(path, (value, Source::Environment(name)));
                    }
                    Err(why) => wrong.push(format!("{name}: {why}")),
                },
                // Orchestrators put variables of their own beside ours (a service called esh3ar gives ESH3AR_PORT_8080_TCP):
                // only what is written like a key, or nearly is one, is taken for a mistake.
                None if path.contains('.') || known.iter().any(|k| keys::likeness(&k.path, &path) > 0.8) => {
                    wrong.push(unknown(&path, &name, &known));
                }
                None => {}
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(BadConfig(wrong)) }
    }

    /// Lays one `--set a.b.c=value` over.
    pub fn set(&mut self, assignment: &str) -> Result<(), BadConfig> {
        let Some((path, text)) = assignment.split_once('=') else {
            return Err(format!("`--set {assignment}` has no value: write --set limits.flow.ack_ms=300").into());
        };
        self.flag(path.trim(), text.trim(), "--set")
    }

    /// Lays one flag's value over.
    pub fn flag(&mut self, path: &str, text: &str, flag: &str) -> Result<(), BadConfig> {
        let known = keys::all();
        let key = known.iter().find(|k| k.path == path).ok_or_else(|| unknown(path, flag, &known))?;
        let value = read(key, text).map_err(|why| format!("{flag} {path}: {why}"))?;
        self.values.insert(path.to_owned(), (value, Source::Flag(flag.to_owned())));
        Ok(())
    }

    /// The values as one nested table.
    pub fn nested(&self) -> Table {
        let mut root = Table::new();
        for (path, (value, _)) in &self.values {
            let mut parts: Vec<&str> = path.split('.').collect();
            let Some(last) = parts.pop() else { continue };
            let mut table = Some(&mut root);
            for part in parts {
                let inner = table.map(|t| t.entry(part).or_insert_with(|| Value::Table(Table::new())));
                table = inner.and_then(Value::as_table_mut);
            }
            if let Some(table) = table {
                table.insert(last.to_owned(), value.clone());
            }
        }
        root
    }

    /// Where a key's value came from.
    pub fn source(&self, path: &str) -> Source {
        self.values.get(path).map_or(Source::Default, |(_, source)| source.clone())
    }
}

fn unknown(path: &str, place: &str, known: &[Key]) -> String {
    match keys::nearest(path, known) {
        Some(key) => format!("`{path}` ({place}) is not a configuration key; did you mean `{}`?", key.path),
        None => format!("`{path}` ({place}) is not a configuration key"),
    }
}

fn fits(kind: Kind, value: &Value) -> bool {
    match (kind, value) {
        (Kind::Text, Value::String(_)) => true,
        (Kind::Integer, Value::Integer(n)) => *n >= 0,
        (Kind::List, Value::Array(items)) => items.iter().all(Value::is_str),
        (Kind::Tables, Value::Array(items)) => items.iter().all(Value::is_table),
        _ => false,
    }
}

/// Reads a value from text, as its key wants it.
fn read(key: &Key, text: &str) -> Result<Value, String> {
    let value = match key.kind {
        Kind::Text => Some(Value::String(text.to_owned())),
        Kind::Integer => text.replace('_', "").parse().ok().map(Value::Integer),
        Kind::List if !text.trim_start().starts_with('[') => {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            Some(Value::Array(parts.map(|part| Value::String(part.to_owned())).collect()))
        }
        Kind::List | Kind::Tables => format!("v = {text}").parse::<Table>().ok().and_then(|mut t| t.remove("v")),
    };
    value.filter(|v| fits(key.kind, v)).ok_or_else(|| {
        let shown = if key.secret { "the value" } else { text };
        format!("`{}` must be {}, and {shown} is not", key.path, key.kind.word())
    })
}
