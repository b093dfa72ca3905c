//! Addresses: which adapter an address names, in one place.

use std::path::PathBuf;

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
        "kafka" | "scylla" | "redis" => Err(OpenError::Address(format!(
            "this esh3ar has no {scheme} adapter built in: it keeps everything in a folder; name one, e.g. file:./esh3ar-data"
        ))),
        _ => Err(OpenError::Address(format!("no store answers to `{scheme}:`: use file:, memory:, or a plain path"))),
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
        for (url, word) in [("kafka://a:9092", "no kafka adapter"), ("mongo:x", "`mongo:`"), ("file:", "path")] {
            let refusal = parse(url).unwrap_err().to_string();
            assert!(refusal.contains(word), "{refusal}");
        }
        assert_eq!(folder("./data").unwrap(), PathBuf::from("./data"));
        assert_eq!(folder("file:./data").unwrap(), PathBuf::from("./data"));
        assert!(folder("memory:").is_err() && folder("s3://bucket").is_err());
    }
}
