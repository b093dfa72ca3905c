//! What values must be to each other. Each rule is a sentence that names the keys, so that a wrong configuration is put right
//! by reading.

use schemas::Limits;
use toml::Value;

use super::Config;

/// Limits that may be nothing: a wait or a reserve of zero makes sense.
const MAY_BE_ZERO: [&str; 17] = [
    "door.batch_wait_ms",
    "door.broadcast_rejected",
    "door.known_keys",
    "door.known_phones",
    "flow.linger_ms",
    "flow.eager_batches",
    "flow.settle_linger_ms",
    "flow.unlocated",
    "flow.tenants_named",
    "flow.ack_renewals",
    "socket.gather_ms",
    "socket.drain_ms",
    "socket.write_buffer_bytes",
    "store.group_every_ms",
    "store.free_bytes",
    "sink.notice_every_ms",
    "sink.breakers",
];

/// What stands around a message's content on the wire, at most.
const ENVELOPE_BYTES: usize = 4 * 1024;

const DAY_MS: u64 = 24 * 3_600_000;

/// How much longer rows of a CQL history must stand than what is kept in them, ms. A week: an installation that stands still for
/// so long, or whose retention is so far behind, still finds what nobody received and tells its senders, before the rows end by
/// themselves and nobody is told. Retention itself walks by lists of weeks. The defaults are a week apart.
const SPARE_MS: u64 = 7 * DAY_MS;

/// Everything that is wrong.
pub fn all(config: &Config) -> Vec<String> {
    let mut wrong = zeros(&config.limits);
    wrong.extend(limits(&config.limits));
    wrong.extend(own(config));
    wrong.extend(kept(config));
    wrong
}

fn zeros(limits: &Limits) -> Vec<String> {
    let Ok(Value::Table(groups)) = Value::try_from(limits) else { return Vec::new() };
    let keys = groups.iter().flat_map(|(group, keys)| {
        let keys = keys.as_table().into_iter().flatten();
        keys.map(move |(key, value)| (format!("{group}.{key}"), value))
    });
    keys.filter(|(path, value)| value.as_integer() == Some(0) && !MAY_BE_ZERO.contains(&path.as_str()))
        .map(|(path, _)| format!("`limits.{path}` must be at least 1: a bound of nothing lets nothing through"))
        .collect()
}

fn limits(limits: &Limits) -> Vec<String> {
    let Limits { message, door, flow, socket, store, .. } = limits;
    failing(&[
        (
            door.lane_slow < door.lane_full,
            "`limits.door.lane_slow` must be below `limits.door.lane_full`: senders are slowed before they are refused",
        ),
        (
            door.body_bytes >= message.content_bytes + message.metadata_bytes + ENVELOPE_BYTES,
            "`limits.door.body_bytes` must exceed `limits.message.content_bytes` and `metadata_bytes` together by 4 KiB: a \
             legal message fits a request",
        ),
        (
            socket.frame_bytes >= message.content_bytes + ENVELOPE_BYTES,
            "`limits.socket.frame_bytes` must exceed `limits.message.content_bytes` by 4 KiB: a legal message fits a frame",
        ),
        (
            message.send_at_ahead_ms <= message.retention_ms,
            "`limits.message.send_at_ahead_ms` must not exceed `limits.message.retention_ms`: what waits must be kept",
        ),
        (
            flow.low_share_of_ten <= 9,
            "`limits.flow.low_share_of_ten` must be 9 at most: the other lanes need a share too",
        ),
        (
            flow.retry_first_ms <= 60_000,
            "`limits.flow.retry_first_ms` must be 60000 at most: the last delay is 32 times it",
        ),
        (
            socket.heartbeat_ms < socket.silent_ms,
            "`limits.socket.heartbeat_ms` must be below `limits.socket.silent_ms`: a silent client is asked before it is left",
        ),
        (
            socket.heartbeat_ms < socket.presence_ms,
            "`limits.socket.heartbeat_ms` must be below `limits.socket.presence_ms`: presence is refreshed by it",
        ),
        (socket.read_buffer_bytes >= 128, "`limits.socket.read_buffer_bytes` must be at least 128"),
        (
            store.partitions <= 1024,
            "`limits.store.partitions` must be 1024 at most: a cursor names a place in each of them",
        ),
        (
            store.group_bytes >= door.body_bytes,
            "`limits.store.group_bytes` must be at least `limits.door.body_bytes`: a message fits a commit group",
        ),
    ])
}

/// Rows of a CQL history end by themselves: what is to be kept must be done with before.
fn kept(config: &Config) -> Vec<String> {
    let history = stores::urls::server(&config.stores.history, &stores::urls::HISTORIES);
    // An address that cannot be read is told of with the other addresses.
    let Ok(Some(history)) = history else { return Vec::new() };
    let days = match stores::ttl_days(&history) {
        Ok(days) => days,
        Err(why) => return vec![format!("`stores.history`: {why}")],
    };
    let most_ms = (days * DAY_MS).saturating_sub(SPARE_MS);
    let Limits { message, store, .. } = &config.limits;
    let mut wrong = Vec::new();
    for (key, value) in [("limits.message.retention_ms", message.retention_ms), ("limits.store.dead_ms", store.dead_ms)]
    {
        if value <= most_ms {
            continue;
        }
        let needed = value.saturating_add(SPARE_MS).div_ceil(DAY_MS);
        let mend = match (needed <= stores::MOST_TTL_DAYS, most_ms > 0) {
            (true, true) => format!("set `ttl_days={needed}` in it, or lower `{key}` to {most_ms} at most"),
            (true, false) => format!("set `ttl_days={needed}` in it"),
            (false, _) => format!("lower `{key}` to {most_ms} at most"),
        };
        wrong.push(format!(
            "`{key}` is {value} and the rows of `stores.history` stand for {days} days (`ttl_days` of its address): they must \
             stand a week longer than what is kept in them, or it goes and nobody is told; {mend}"
        ));
    }
    wrong
}

/// Whether this is a place that a client can connect to.
fn is_place(address: &str) -> bool {
    let rest = ["http://", "https://", "ws://", "wss://"].iter().find_map(|scheme| address.strip_prefix(scheme));
    let is_url = rest.is_some();
    let place = rest.unwrap_or(address).trim_end_matches('/');
    let (host, port) = match place.rsplit_once(':') {
        Some((host, port)) => (host, port.parse::<u16>().is_ok_and(|port| port > 0)),
        None => (place, is_url),
    };
    port && !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c == '/' || c == '@')
}

/// What is legal and probably not meant.
pub fn advice(config: &Config) -> Vec<String> {
    let Limits { door, flow, socket, .. } = &config.limits;
    let stores = &config.stores;
    let everywhere = ["0.0.0.0:", "[::]:"].iter().any(|any| config.listen.starts_with(any));
    failing(&[
        (
            stores.presence.is_empty() || !config.address.is_empty() || !everywhere,
            "`listen` names every address of this machine and `address` none: other nodes tell clients this machine's name; set \
             `address` to what clients can reach",
        ),
        (
            !stores.presence.is_empty() || stores.log.is_empty() || stores.history.is_empty(),
            "`stores.presence` is empty: presence is in this process, so run this one process only, or name a Redis there",
        ),
        (
            door.person_per_minute <= door.person_per_hour,
            "`limits.door.person_per_minute` exceeds `limits.door.person_per_hour`: the hour alone decides",
        ),
        (
            door.server_per_second <= door.system_per_second,
            "`limits.door.server_per_second` exceeds `limits.door.system_per_second`: one business may take all there is",
        ),
        (flow.batch <= flow.in_flight, "`limits.flow.batch` exceeds `limits.flow.in_flight`: no batch is ever full"),
        (
            flow.eager_batches <= flow.credits,
            "`limits.flow.eager_batches` exceeds `limits.flow.credits`: no batch lingers",
        ),
        (
            flow.deliver_ms <= flow.drain_ms,
            "`limits.flow.deliver_ms` exceeds `limits.flow.drain_ms`: leaving may not wait for deliveries under way",
        ),
        (
            2 * socket.heartbeat_ms <= socket.silent_ms,
            "`limits.socket.silent_ms` is less than twice `limits.socket.heartbeat_ms`: one lost heartbeat ends a session",
        ),
        (
            socket.sessions <= door.connections,
            "`limits.socket.sessions` exceeds `limits.door.connections`: the connections run out first",
        ),
    ])
}

fn failing(rules: &[(bool, &str)]) -> Vec<String> {
    rules.iter().filter(|(holds, _)| !holds).map(|(_, sentence)| (*sentence).to_owned()).collect()
}

fn own(config: &Config) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut must = |holds: bool, sentence: String| {
        if !holds {
            wrong.push(sentence);
        }
    };
    for (key, value) in [("listen", &config.listen), ("admin", &config.admin)] {
        let port = value.rsplit_once(':').and_then(|(host, port)| port.parse::<u16>().ok().map(|p| (host, p)));
        must(
            port.is_some_and(|(host, _)| !host.is_empty()),
            format!("`{key}` must be HOST:PORT, e.g. 127.0.0.1:8080, and {value} is not"),
        );
    }
    must(
        config.listen != config.admin || config.listen.ends_with(":0"),
        "`listen` and `admin` must be different addresses".to_owned(),
    );
    must(!config.data.as_os_str().is_empty(), "`data` must name a folder".to_owned());
    must(config.instances <= 256, "`instances` must be 256 at most".to_owned());
    if let Err(why) = schemas::NodeId::parse(&config.node_name()) {
        must(false, format!("`node`: {why}"));
    }
    must(
        config.address.is_empty() || is_place(&config.address),
        format!(
            "`address` must be HOST:PORT, or a URL with http://, https://, ws:// or wss://, as clients reach this node, and {} is \
             not",
            config.address
        ),
    );
    for (key, value, schemes) in [
        ("stores.log", &config.stores.log, &stores::urls::LOGS[..]),
        ("stores.history", &config.stores.history, &stores::urls::HISTORIES[..]),
        ("stores.presence", &config.stores.presence, &stores::urls::PRESENCES[..]),
    ] {
        if let Err(why) = stores::urls::server(value, schemes) {
            must(false, format!("`{key}`: {why}"));
        }
    }
    if let Err(why) = stores::urls::cache(&config.stores.cache, None) {
        must(false, format!("`stores.cache`: {why}"));
    }
    must(
        ["on", "off"].contains(&config.stores.ingress.as_str()),
        format!("`stores.ingress` must be on or off, and {} is not", config.stores.ingress),
    );
    must(config.stores.skew_ms >= 1_000, "`stores.skew_ms` must be at least 1000: clocks are never equal".to_owned());
    if let Err(why) = schemas::Tenant::parse(&config.operators) {
        must(false, format!("`operators`: {why}"));
    }
    for origin in &config.origins {
        let formed = origin == "*" || (origin.contains("://") && !origin.ends_with('/'));
        must(
            formed,
            format!("`origins` holds {origin}: write scheme and host without a slash, e.g. https://app.example.com"),
        );
    }
    let auth = &config.auth;
    let (has_jwks, has_file) = (!auth.jwks.as_os_str().is_empty(), !auth.secret_file.as_os_str().is_empty());
    match auth.algorithm.as_str() {
        "HS256" => must(!has_jwks, "`auth.jwks` needs `auth.algorithm` RS256, ES256 or EdDSA".to_owned()),
        "RS256" | "ES256" | "EdDSA" => {
            must(
                has_jwks,
                format!("`auth.algorithm` {} needs `auth.jwks`, a file with the public keys", auth.algorithm),
            );
            must(auth.secret.is_empty() && !has_file, "`auth.secret` is for HS256 alone".to_owned());
        }
        other => must(false, format!("`auth.algorithm` must be HS256, RS256, ES256 or EdDSA, and {other} is not")),
    }
    must(auth.secret.is_empty() || !has_file, "`auth.secret` and `auth.secret_file` exclude each other".to_owned());
    must(
        auth.secret.is_empty() || auth.secret.len() >= 32,
        "`auth.secret` must have at least 32 bytes: a shorter one can be guessed".to_owned(),
    );
    for key in &auth.api_keys {
        let is_digest = key.sha256.len() == 64 && key.sha256.bytes().all(|b| b.is_ascii_hexdigit());
        must(is_digest, format!("an API key of {} must give `sha256` as 64 hex digits", key.tenant));
        must(
            schemas::Tenant::parse(&key.tenant).is_ok(),
            format!("an API key names the tenant {}, which none can have", key.tenant),
        );
        for can in &key.can {
            let known = ["send", "chat", "broadcast", "admin"].contains(&can.as_str());
            must(
                known,
                format!("an API key of {} permits `{can}`: known are send, chat, broadcast, admin", key.tenant),
            );
        }
    }
    let webhook = &config.notice.webhook;
    must(
        webhook.is_empty() || webhook.starts_with("http://") || webhook.starts_with("https://"),
        "`notice.webhook` must begin with https:// or http://".to_owned(),
    );
    must(
        ["human", "json"].contains(&config.log.format.as_str()),
        format!("`log.format` must be human or json, and {} is not", config.log.format),
    );
    must(
        tracing_subscriber::EnvFilter::try_new(&config.log.level).is_ok(),
        format!("`log.level` must be like info or info,gateway=debug, and {} is not", config.log.level),
    );
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is wrong with a history at this address that keeps messages and dead letters for so many days.
    fn wrong(history: &str, messages: u64, dead: u64) -> Vec<String> {
        let mut config = Config::default();
        config.stores.history = history.to_owned();
        config.limits.message.retention_ms = messages * DAY_MS;
        config.limits.message.send_at_ahead_ms = messages * DAY_MS;
        config.limits.store.dead_ms = dead * DAY_MS;
        all(&config)
    }

    #[test]
    fn what_is_kept_until_its_rows_end_is_refused_with_both_settings_and_what_to_do() {
        for (history, messages, dead) in [
            ("scylla://a:1/k", 30, 30),
            ("scylla://a:1/k?ttl_days=40", 33, 7),
            // A folder's rows end by retention alone.
            ("", 400, 400),
        ] {
            assert_eq!(wrong(history, messages, dead), Vec::<String>::new(), "{history}");
        }
        for (history, messages, dead, key, mend) in [
            ("scylla://a:1/k", 31, 7, "`limits.message.retention_ms`", "`ttl_days=38`"),
            ("scylla://u:hush@a:1/k?ttl_days=30", 30, 7, "`limits.message.retention_ms`", "1987200000 at most"),
            ("scylla://a:1/k", 30, 31, "`limits.store.dead_ms`", "2592000000 at most"),
            ("scylla://a:1/k?ttl_days=3", 3, 1, "`limits.store.dead_ms`", "`ttl_days=8`"),
            ("scylla://a:1/k?ttl_days=3650", 9_000, 7, "`limits.message.retention_ms`", "lower"),
            ("scylla://a:1/k?ttl_days=0", 30, 7, "`stores.history`", "`ttl_days`"),
            ("scylla://a:1/k?ttl_days=month", 30, 7, "`stores.history`", "`ttl_days`"),
        ] {
            let said = wrong(history, messages, dead).join("\n");
            for part in [key, mend, "`stores.history`", "`ttl_days"] {
                assert!(said.contains(part), "{history}: {part} is missing in: {said}");
            }
            assert!(!said.contains("hush"), "{said}");
        }
        // Both are told at once.
        assert_eq!(wrong("scylla://a:1/k", 60, 60).len(), 2);
    }
}
