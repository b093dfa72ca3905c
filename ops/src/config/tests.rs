//! Precedence, refusals and completeness of the configuration.

use super::*;

fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn file(text: &str) -> (tempfolder::Folder, PathBuf) {
    let folder = tempfolder::Folder::new();
    let path = folder.0.join("esh3ar.toml");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

/// A folder that goes when it is dropped.
mod tempfolder {
    pub(super) struct Folder(pub(super) std::path::PathBuf);
    impl Folder {
        pub(super) fn new() -> Self {
            let path = std::env::temp_dir().join(format!("esh3ar-config-{}", uuid::Uuid::new_v4()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }
    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

fn refusal(file: Option<&Path>, env: Vec<(String, String)>, set: &[&str]) -> String {
    let set: Vec<String> = set.iter().map(|s| (*s).to_owned()).collect();
    load(file, env, &[], &set).unwrap_err().to_string()
}

#[test]
fn file_then_environment_then_flags() {
    let (_keep, path) =
        file("listen = \"1.1.1.1:1\"\nnode = \"f\"\n[limits.flow]\nack_ms = 1\nbatch = 11\ncredits = 21\n");
    let env = env(&[("ESH3AR_LIMITS__FLOW__ACK_MS", "2"), ("ESH3AR_LIMITS__FLOW__BATCH", "1_2"), ("PATH", "x")]);
    let flags = [("listen", "2.2.2.2:2".to_owned(), "--listen")];
    let loaded = load(Some(&path), env, &flags, &["limits.flow.ack_ms=3".to_owned()]).unwrap();
    let flow = &loaded.config.limits.flow;
    assert_eq!((flow.ack_ms, flow.batch, flow.credits), (3, 12, 21));
    assert_eq!((loaded.config.listen.as_str(), loaded.config.node.as_str()), ("2.2.2.2:2", "f"));
    let from = |key: &str| loaded.shown().into_iter().find(|s| s.key == key).unwrap().from;
    assert_eq!(from("limits.flow.ack_ms"), "--set");
    assert_eq!(from("limits.flow.batch"), "ESH3AR_LIMITS__FLOW__BATCH");
    assert_eq!(from("limits.flow.credits"), path.display().to_string());
    assert_eq!(from("listen"), "--listen");
    assert_eq!(from("data"), "default");
}

#[test]
fn unknown_keys_are_refused_with_the_nearest() {
    let (_keep, path) = file("[limits.flow]\nakc_ms = 1\n[gateway]\nx = 1\n");
    let said = refusal(
        Some(&path),
        env(&[("ESH3AR_LIMTS__DOOR__LANE_FULL", "1"), ("ESH3AR_LISTN", "x")]),
        &["lgo.level=info"],
    );
    for part in ["`limits.flow.ack_ms`", "`gateway`", "`limits.door.lane_full`", "mean `listen`", "mean `log.level`"] {
        assert!(said.contains(part), "{part} is missing in:\n{said}");
    }
}

#[test]
fn what_orchestrators_put_in_the_environment_is_left_alone() {
    let foreign =
        env(&[("ESH3AR_SERVICE_HOST", "10.0.0.1"), ("ESH3AR_PORT_8080_TCP", "x"), ("ESH3AR_URL", "http://x")]);
    assert!(load(None, foreign, &[], &[]).is_ok());
}

#[test]
fn values_of_the_wrong_form_are_refused_by_name() {
    let (_keep, path) = file("listen = 8080\n[limits.flow]\nack_ms = \"1s\"\nbatch = -1\n");
    let said = refusal(Some(&path), vec![], &["limits.door.lane_full=many", "origins"]);
    for part in ["`listen`", "`limits.flow.ack_ms`", "`limits.flow.batch`", "many", "has no value"] {
        assert!(said.contains(part), "{part} is missing in:\n{said}");
    }
    assert!(refusal(None, vec![], &["limits.store.partitions=70000"]).contains("partitions"));
    let (_keep, path) = file("listen = ");
    assert!(refusal(Some(&path), vec![], &[]).contains("is not TOML"));
    assert!(refusal(Some(Path::new("/no/such.toml")), vec![], &[]).contains("cannot be read"));
}

#[test]
fn values_that_contradict_each_other_are_refused_in_sentences() {
    for (set, part) in [
        ("limits.door.lane_slow=200000", "`limits.door.lane_full`"),
        ("limits.socket.silent_ms=1000", "below `limits.socket.silent_ms`"),
        ("limits.socket.frame_bytes=1000", "fits a frame"),
        ("limits.flow.credits=0", "at least 1"),
        ("limits.flow.low_share_of_ten=10", "9 at most"),
        ("limits.message.send_at_ahead_ms=9999999999", "retention_ms"),
        ("listen=8080", "HOST:PORT"),
        ("admin=127.0.0.1:8080", "different"),
        ("auth.algorithm=none", "must be HS256"),
        ("auth.algorithm=RS256", "needs `auth.jwks`"),
        ("auth.secret=short", "32 bytes"),
        ("log.format=xml", "human or json"),
        ("origins=example.com", "scheme and host"),
        ("node=a b", "`node`"),
        ("address=over there", "`address` must be HOST:PORT"),
        ("address=ftp://a:1", "`address` must be HOST:PORT"),
        ("stores.log=redis://a:1", "`stores.log`"),
        ("stores.history=cassandra", "`stores.history`"),
        ("stores.presence=kafka://a:1", "redis-cluster"),
        ("stores.cache=file:x", "memory:"),
        ("stores.ingress=maybe", "on or off"),
        ("stores.skew_ms=10", "at least 1000"),
        ("notice.webhook=ftp://x", "https://"),
    ] {
        let said = refusal(None, vec![], &[set]);
        assert!(said.contains(part), "{set}: {said}");
    }
    assert_eq!(check::all(&Config::default()), Vec::<String>::new());
    assert_eq!(check::advice(&Config::default()), Vec::<String>::new());
}

#[test]
fn lists_and_tables_can_be_set_from_flags() {
    let keys = format!("auth.api_keys=[{{sha256=\"{}\",tenant=\"acme\",can=[\"send\"]}}]", "a".repeat(64));
    let set = [
        "origins=https://a.example, https://b.example".to_owned(),
        keys,
        "notice.command=[\"mail\", \"-s\"]".to_owned(),
    ];
    let config = load(None, vec![], &[], &set).unwrap().config;
    assert_eq!(config.origins, ["https://a.example", "https://b.example"]);
    assert_eq!((config.auth.api_keys[0].can[0].as_str(), config.notice.command.len()), ("send", 2));
}

#[test]
fn secrets_are_never_shown() {
    let secret = "0123456789abcdef0123456789abcdef";
    let loaded =
        load(None, vec![], &[], &[format!("auth.secret={secret}"), "notice.webhook=https://x/t0ken".to_owned()])
            .unwrap();
    let shown = serde_json::to_string(&loaded.shown()).unwrap();
    assert!(shown.contains("(hidden)") && !shown.contains(secret) && !shown.contains("t0ken"));
}

#[test]
fn an_address_is_shown_without_its_login() {
    let set = vec!["stores.log=kafka://app:hush@a:9092/esh3ar.".to_owned()];
    let shown = load(None, vec![], &[], &set).unwrap().shown();
    let shown = &shown.iter().find(|row| row.key == "stores.log").unwrap().value;
    assert_eq!(shown.as_str(), Some("kafka://a:9092/esh3ar."));
    let from_environment = env(&[("ESH3AR_STORES__PRESENCE", "redis://:hush@b:6379")]);
    let config = load(None, from_environment, &[], &[]).unwrap().config;
    assert!(config.stores.presence.contains("hush"));
}

#[test]
fn a_node_has_a_name_of_its_own_where_there_are_others() {
    let mut config = Config::default();
    assert_eq!(config.node_name(), "node-1");
    config.stores.presence = "redis://a:1".to_owned();
    let own = config.node_name();
    assert!(own.ends_with(&std::process::id().to_string()) && schemas::NodeId::parse(&own).is_ok(), "{own}");
    config.node = "a".to_owned();
    assert_eq!(config.node_name(), "a");
}

#[test]
fn every_field_has_a_key_and_every_key_a_field() {
    fn leaves(prefix: &str, value: &Value, out: &mut Vec<String>) {
        match value {
            Value::Table(table) => {
                for (name, inner) in table {
                    let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                    leaves(&path, inner, out);
                }
            }
            _ => out.push(prefix.to_owned()),
        }
    }
    let mut fields = Vec::new();
    leaves("", &Value::try_from(Config::default()).unwrap(), &mut fields);
    let mut known: Vec<String> = keys::all().into_iter().map(|k| k.path).collect();
    fields.sort();
    known.sort();
    assert_eq!(fields, known);
}

proptest::proptest! {
    #[test]
    fn any_assignment_is_taken_or_refused_in_a_sentence(text in "[a-z._=0-9\\[\\]\" ]{0,40}") {
        if let Err(why) = load(None, vec![], &[], &[text]) {
            proptest::prop_assert!(!why.to_string().is_empty());
        }
    }
}
