//! A wall clock that somebody turns by an hour, forth and back: tiers, deadlines and limits go by monotonic time, so nobody is
//! tried too early, buried in a hurry, locked out or disconnected, and nothing is lost.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tests::harness::{Business, Phone, Server, Settings, Taste, eventually, not_run, number};

/// A wall clock for one process, which a test may turn while it runs: libfaketime reads how far it is off from a file.
struct TurnedClock(PathBuf);

impl TurnedClock {
    /// Where Debian and others put the library.
    const PLACES: [&str; 4] = [
        "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
        "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
        "/usr/lib64/faketime/libfaketimeMT.so.1",
        "/usr/lib/faketime/libfaketimeMT.so.1",
    ];

    /// A clock that is right, and the settings that put it into a server; `None`: the library is not here.
    fn new(folder: &Path) -> Option<(Self, Settings)> {
        let library = Self::PLACES.iter().find(|place| Path::new(place).exists())?;
        let clock = Self(folder.join("offset"));
        clock.turn(0);
        let env = [
            ("LD_PRELOAD", *library),
            ("FAKETIME_TIMESTAMP_FILE", clock.0.to_str()?),
            ("FAKETIME_NO_CACHE", "1"),
            // Monotonic time is what nobody can turn.
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        Some((clock, Settings { env, ..Settings::default() }))
    }

    /// Turns it to so many seconds off from the truth, at once for all threads.
    fn turn(&self, seconds: i64) {
        let fresh = self.0.with_extension("new");
        std::fs::write(&fresh, format!("{seconds:+}")).unwrap();
        std::fs::rename(&fresh, &self.0).unwrap();
    }
}

/// The server's wall clock now, off by so many seconds, and some milliseconds more.
fn time(off: i64, ms: i64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    schemas::Timestamp(now.as_millis() as i64 + off * 1_000 + ms).to_string()
}

const HOUR: i64 = 3_600;

#[tokio::test(flavor = "multi_thread")]
async fn an_hour_forth_and_two_back_change_nothing_for_anybody() {
    let folder = tempfile::tempdir().unwrap();
    let Some((clock, turned)) = TurnedClock::new(folder.path()) else {
        return not_run("a clock that jumps: libfaketime is not installed (Debian: libfaketime)");
    };
    // A jump forward is believed after a second, and not after ten minutes.
    let settings = Settings::hundredfold().and(turned).with(["limits.flow.jump_send_ms=1000"]).on_fixed_ports();
    let server = Server::start(&folder.path().join("data"), settings);
    let business = Business::new(&server);
    let mut phone = Phone::new(&server, &number(1), "one");
    phone.connect().await.unwrap();
    let mut said = Vec::new();
    for (round, off) in [0, HOUR, -HOUR, 0].into_iter().enumerate() {
        clock.turn(off);
        // The same session goes on: its token and its heartbeat are counted in monotonic time.
        let content = format!("at {off}");
        let sent = business.send(&number(1), &content).await;
        said.push(content);
        phone.until_seen(said.len()).await;
        assert!(phone.is_connected());
        let seen = business.until(&sent.id, "delivered").await;
        let (least, most) = (time(off, -20_000), time(off, 20_000));
        let accepted = seen["accepted_at"].as_str().unwrap();
        assert!(*accepted >= *least && *accepted <= *most, "the clock was turned: {accepted} at {off}");
        buried_after_all_its_attempts(&server, &business, &number(100 + round as u32), off).await;
        let later = json!({ "to": number(1), "content": format!("later {off}"), "send_at": time(off, 400) });
        let (status, body) = business.post("/v1/messages", &later).await;
        assert_eq!(status, 202, "{body}");
        said.push(format!("later {off}"));
        phone.until_seen(said.len()).await;
        business.until(body["id"].as_str().unwrap(), "delivered").await;
    }
    assert_eq!(phone.contents(), said, "in the order of acceptance, none twice");
    assert_eq!(phone.repeats_in_session, 0);

    // What waited through a jump and a kill is there too.
    phone.drop_line();
    let waiting = business.send(&number(1), "waits").await;
    clock.turn(-HOUR);
    let mut server = server;
    server.kill9();
    let server = server.restart();
    let business = Business::new(&server);
    phone.insist().await;
    said.push("waits".to_owned());
    phone.until_seen(said.len()).await;
    assert_eq!(phone.contents(), said);
    business.until(&waiting.id, "delivered").await;
    eventually("balanced books", async || {
        let (_, books) = server.admin("GET", "/admin/v1/books", None).await;
        (books["balanced"] == true).then_some(())
    })
    .await;
}

/// A phone that never answers gets all seven attempts, each after the one before, whatever the clock says meanwhile.
async fn buried_after_all_its_attempts(server: &Server, business: &Business, user: &str, off: i64) {
    let mut silent = Phone::new(server, user, "one").taste(Taste::Silent);
    silent.connect().await.unwrap();
    let sent = business.send(user, "nobody answers").await;
    let begun = std::time::Instant::now();
    loop {
        if !silent.is_connected() {
            silent.insist().await;
        }
        let _ = tokio::time::timeout(std::time::Duration::from_millis(50), silent.next()).await;
        let (_, body) = business.get(&format!("/v1/messages/{}", sent.id)).await;
        if body["status"] == "failed" {
            assert_eq!(body["reason"], "no_ack");
            break;
        }
        assert!(begun.elapsed() < tests::harness::PATIENCE, "not buried at {off}: {body}");
    }
    // Seven deadlines of 300 ms lie between, and the six tiers of 10 to 320 ms.
    assert!(begun.elapsed().as_millis() >= 7 * 300 + 630, "in a hurry at {off}: {:?}", begun.elapsed());
    let (_, trace) = business.get(&format!("/v1/messages/{}/trace", sent.id)).await;
    let failed = |stage: &&Value| stage["stage"] == "attempt_failed";
    let attempts: Vec<_> =
        trace["stages"].as_array().unwrap().iter().filter(failed).map(|stage| stage["attempt"].as_u64()).collect();
    assert_eq!(attempts, (0..7).map(Some).collect::<Vec<_>>(), "{trace}");
}
