//! What keeps: the stores as the configuration names them, opened once every server has answered and its clock agrees.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use schemas::{Clock, Timestamp, port::PortResult};
use stores::{OpenError, Places, Stores, urls};

use super::{Role, people};
use crate::{config::Config, exit::Failure, folder};

/// The stores while they are open; taken out when they are closed.
pub type Kept = Arc<Mutex<Option<Stores>>>;

/// Between two tries of a server that does not answer.
const AGAIN: Duration = Duration::from_millis(500);
/// How long a server may take to tell its time.
const TELL: Duration = Duration::from_secs(2);
/// A part of `stores.skew_ms` past which there is a warning.
const WARN_PART: u64 = 10;

/// What the stores are opened with.
pub fn settings(config: &Config) -> Result<stores::Settings, Failure> {
    let server = |key: &str, text: &str, schemes: &[&str]| {
        urls::server(text, schemes).map_err(|why| Failure::usage(format!("`{key}`: {why}")))
    };
    let presence = server("stores.presence", &config.stores.presence, &urls::PRESENCES)?;
    let cache = urls::cache(&config.stores.cache, presence.as_ref());
    let cache = cache.map_err(|why| Failure::usage(format!("`stores.cache`: {why}")))?;
    Ok(stores::Settings {
        data: config.data.clone(),
        limits: config.limits.store.clone(),
        chat: config.limits.chat.clone(),
        redis: config.limits.redis.clone(),
        presence_ms: config.limits.socket.presence_ms,
        deliver_ms: config.limits.flow.deliver_ms,
        quota_holders: usize::try_from(config.limits.door.quota_holders).unwrap_or(usize::MAX),
        places: Places {
            log: server("stores.log", &config.stores.log, &urls::LOGS)?,
            history: server("stores.history", &config.stores.history, &urls::HISTORIES)?,
            presence,
            cache: Some(cache),
        },
    })
}

/// `data` as a folder: a plain path or `file:`; another address is refused with where it belongs.
pub fn resolve(config: &mut Config) -> Result<(), Failure> {
    if let Some(text) = config.data.to_str() {
        config.data = urls::folder(text).map_err(|why| Failure::usage(format!("`data`: {why}")))?;
    }
    Ok(())
}

/// Opens the stores. Servers that do not answer are waited for as long as `stores.wait_s` says; what is wrong otherwise is
/// said at once.
pub(super) async fn open(role: Role, config: &Config, clock: &Arc<dyn Clock>) -> Result<Stores, Failure> {
    let settings = settings(config)?;
    let keeps_in_folder = settings.places.needs_folder();
    let signs_by_folder = people::uses_folder_key(&config.auth);
    // A process that keeps nothing here needs no folder at all.
    if keeps_in_folder || signs_by_folder {
        folder::prepare(&config.data)?;
    }
    if !keeps_in_folder && signs_by_folder {
        tracing::warn!(
            key = %folder::key_path(&config.data).display(),
            "tokens are signed with this folder's own key: processes on other machines need the same one (`auth.secret_file`), \
             or your identity provider's (`auth.jwks`)"
        );
    }
    if settings.places.presence.is_none() && role != Role::All {
        tracing::warn!("`stores.presence` is empty: each process holds senders to quotas of its own");
    }
    let stores = insist(&settings, clock, config.stores.wait_s).await?;
    clocks(&stores, &**clock, config.stores.skew_ms).await?;
    Ok(stores)
}

async fn insist(settings: &stores::Settings, clock: &Arc<dyn Clock>, wait_s: u64) -> Result<Stores, Failure> {
    let until = clock.mono().plus(wait_s.saturating_mul(1_000));
    let mut told = None;
    loop {
        let why = match Stores::open(settings.clone(), clock.clone()).await {
            Ok(stores) => return Ok(stores),
            Err(why) => why,
        };
        let left_s = until.since(clock.mono()) / 1_000;
        if !why.may_pass() || clock.mono() >= until {
            return Err(refusal(&why));
        }
        // Said again every five seconds: whoever starts it sees what it waits for.
        if told.is_none_or(|told: u64| told >= left_s + 5) {
            tracing::warn!("waiting, for {left_s} s more: {why}");
            told = Some(left_s);
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn refusal(why: &OpenError) -> Failure {
    match why {
        OpenError::NotBuilt { .. } => Failure::usage(why.to_string()),
        _ => Failure::unreachable(why.to_string()),
    }
}

/// Refuses a machine whose clock is far from a server's: `send_at`, `expires_at` and tokens would come true at wrong times.
async fn clocks(stores: &Stores, clock: &dyn Clock, limit_ms: u64) -> Result<(), Failure> {
    for (name, asking) in stores.clocks() {
        match skew(clock, asking).await {
            Ok(skew) => judge(name, skew, limit_ms)?,
            Err(why) => tracing::warn!(server = name, %why, "its clock could not be compared with this machine's"),
        }
    }
    Ok(())
}

fn judge(name: &str, skew_ms: i64, limit_ms: u64) -> Result<(), Failure> {
    let (by, word) = (skew_ms.unsigned_abs(), if skew_ms > 0 { "ahead of" } else { "behind" });
    if by > limit_ms {
        return Err(Failure::unreachable(format!(
            "this machine's clock is {by} ms {word} that of {name}, and {limit_ms} is the most (`stores.skew_ms`): set both by NTP"
        )));
    }
    if by > limit_ms / WARN_PART {
        tracing::warn!("this machine's clock is {by} ms {word} that of {name}: set both by NTP");
    }
    Ok(())
}

/// How far this machine's clock is ahead of a server's, ms; as of the middle of the question.
pub async fn skew(clock: &dyn Clock, asking: impl Future<Output = PortResult<Timestamp>>) -> Result<i64, String> {
    let began = clock.mono();
    let told = tokio::time::timeout(TELL, asking).await.map_err(|_| "it did not answer in time".to_owned())?;
    let told = told.map_err(|why| why.to_string())?;
    let took = clock.mono().since(began);
    Ok(clock.wall().0.saturating_sub(told.plus_ms(took / 2).0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::time::ManualClock;

    #[test]
    fn a_clock_two_minutes_off_is_refused_in_a_sentence() {
        for (skew, fine) in [(0, true), (-29_999, true), (30_000, true), (120_000, false), (-120_000, false)] {
            assert_eq!(judge("Redis", skew, 30_000).is_ok(), fine, "{skew}");
        }
        let said = judge("Redis", -120_000, 30_000).unwrap_err().sentence;
        assert!(said.contains("120000 ms behind that of Redis") && said.contains("NTP"), "{said}");
    }

    #[tokio::test]
    async fn skew_is_counted_from_the_middle_of_the_question() {
        let clock = ManualClock::at(Timestamp(1_000_000));
        let asking = async {
            clock.pass(100);
            Ok(Timestamp(1_000_000))
        };
        assert_eq!(skew(&clock, asking).await, Ok(50));
    }

    #[tokio::test]
    async fn what_waiting_does_not_cure_is_said_at_once() {
        let mut config = Config::default();
        config.stores.log = "kafka://127.0.0.1:1/x?no_such_option=1".to_owned();
        config.stores.wait_s = 3_600;
        config.auth.secret = "0123456789abcdef0123456789abcdef".to_owned();
        config.data = std::env::temp_dir().join(format!("esh3ar-keep-{}", uuid::Uuid::new_v4()));
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(Timestamp(0)));
        let said = open(Role::All, &config, &clock).await.map(drop).unwrap_err();
        assert!(said.sentence.contains("no_such_option") || said.sentence.contains("--features"), "{said}");
        let _ = std::fs::remove_dir_all(&config.data);
    }
}
