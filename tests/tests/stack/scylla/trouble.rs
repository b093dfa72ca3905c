//! What is wrong is said in a sentence that says what to do, and a server that dies or freezes loses nothing.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ops::clock::SystemClock;
use schemas::{
    Inbox, Partition, Position, What,
    limits::StoreLimits,
    port::{Due, DueKind, Entry, Facts, Inboxes, PortError, Schedule},
    time::ManualClock,
};
use stores::{
    history::scylla::{ScyllaHistory, schema},
    urls::Address,
};
use tests::{conformance::history::kit::*, harness::stack::Nodes};

use super::{open, shared};

async fn refusal(address: &str) -> String {
    let limits = StoreLimits { cql_ms: 1_500, ..StoreLimits::default() };
    let opened = ScyllaHistory::open(&Address::parse(address).unwrap(), &limits, Arc::new(SystemClock::new())).await;
    opened.err().map(|why| why.to_string()).unwrap_or_else(|| panic!("{address} was opened"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_address_is_told_with_what_mends_it() {
    let good = shared().await;
    let host = good.trim_start_matches("scylla://").split('/').next().unwrap();
    let began = Instant::now();
    let nobody = refusal("scylla://127.0.0.1:1/esh3ar").await;
    assert!(nobody.contains("does not answer") && nobody.contains("stores.history"), "{nobody}");
    let unknown = refusal("scylla://no-such-host.invalid:9042/esh3ar").await;
    assert!(unknown.contains("no-such-host.invalid") && unknown.contains("host"), "{unknown}");
    assert!(began.elapsed() < Duration::from_secs(15), "it gives up within seconds: {:?}", began.elapsed());
    let missing = refusal(&format!("scylla://{host}/nothing_here")).await;
    assert!(missing.contains("no tables") && missing.contains("esh3ar schema apply"), "{missing}");
    for (address, word) in [
        (format!("scylla://{host}/"), "keyspace"),
        (format!("scylla://{host}/Esh3ar"), "keyspace"),
        (format!("scylla://{host}/esh3ar?replicas=3"), "`replicas`"),
        (format!("scylla://{host}/esh3ar?tls=true"), "`ca=FILE`"),
        (format!("scylla://{host}/esh3ar?tls=true&ca=/nowhere.pem"), "/nowhere.pem"),
        (format!("scylla://{host}/esh3ar?ttl_days=0"), "`ttl_days`"),
    ] {
        let why = refusal(&address).await;
        assert!(why.contains(word), "{why}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applying_again_changes_nothing_and_a_newer_schema_is_left_alone() {
    let keyspace = format!("newer_{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
    let address = shared().await.replace("/esh3ar?", &format!("/{keyspace}?"));
    let (parsed, limits) = (Address::parse(&address).unwrap(), StoreLimits::default());
    let first = schema::apply(&parsed, &limits).await.unwrap();
    assert_eq!((first.version, first.scylla), (first.known, false));
    assert_eq!(schema::apply(&parsed, &limits).await.unwrap(), first);
    assert_eq!(schema::check(&parsed, &limits).await.unwrap(), first);
    let host = parsed.hosts[0].clone();
    let session = scylla_session(&host).await;
    let newer = format!("INSERT INTO {keyspace}_control.schema_versions (one, version) VALUES (0, 99)");
    session.query_unpaged(newer, ()).await.unwrap();
    for why in [
        refusal(&address).await,
        schema::apply(&parsed, &limits).await.unwrap_err().to_string(),
        schema::check(&parsed, &limits).await.unwrap_err().to_string(),
    ] {
        assert!(why.contains("version 99") && why.contains("newer release"), "{why}");
    }
}

/// An older schema is refused with what mends it, and mended by it; the tables that were there stay as they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_schema_is_brought_up_to_date() {
    let keyspace = format!("older_{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
    let address = shared().await.replace("/esh3ar?", &format!("/{keyspace}?"));
    let (parsed, limits) = (Address::parse(&address).unwrap(), StoreLimits::default());
    let made = schema::apply(&parsed, &limits).await.unwrap();
    let inbox = inbox(&tenant(), 1);
    record(&*open(&address).await, &entries(&inbox, 3)).await;
    // As version 1 left it.
    let session = scylla_session(&parsed.hosts[0]).await;
    for statement in [
        format!("DROP TABLE {keyspace}_control.installation"),
        format!("DELETE FROM {keyspace}_control.schema_versions WHERE one = 0 AND version > 1"),
    ] {
        session.query_unpaged(statement, ()).await.unwrap();
    }
    let why = refusal(&address).await;
    assert!(why.contains("version 1") && why.contains("esh3ar schema apply"), "{why}");
    assert_eq!(schema::apply(&parsed, &limits).await.unwrap(), made);
    assert_eq!(whole(&*open(&address).await, &inbox).await.len(), 3);
}

/// A history is one log's: who is first says which, also where several are first at once, and another log is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_of_another_log_is_refused() {
    let keyspace = format!("whose_{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
    let address = Address::parse(&shared().await.replace("/esh3ar?", &format!("/{keyspace}?"))).unwrap();
    schema::apply(&address, &StoreLimits::default()).await.unwrap();
    let history = open(&address_text(&address)).await;
    let logs: Vec<_> = (0..6).map(|n| format!("kafka:c{n}/esh3ar.")).collect();
    let claims = futures::future::join_all(logs.iter().map(|log| history.belongs_to(log, &address))).await;
    let won: Vec<_> = claims.iter().zip(&logs).filter(|(claim, _)| claim.is_ok()).map(|(_, log)| log).collect();
    assert_eq!(won.len(), 1, "{claims:?}");
    history.belongs_to(won[0], &address).await.unwrap();
    let why = history.belongs_to("kafka:other/esh3ar.", &address).await.unwrap_err().to_string();
    assert!(why.contains(won[0]) && why.contains("kafka:other/esh3ar.") && why.contains("stores.log"), "{why}");
}

fn address_text(address: &Address) -> String {
    format!("scylla://{}/{}?replication=1", address.hosts.join(","), address.path)
}

async fn scylla_session(host: &str) -> scylla::client::session::Session {
    scylla::client::session_builder::SessionBuilder::new().known_node(host).build().await.unwrap()
}

/// A server that asks for TLS and a login: what is right is let in, and every wrong thing is called by its name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logins_and_certificates_are_checked() {
    let nodes = Nodes::start("cassandra", &["--safe"]).await;
    let (host, ca) = (nodes.hosts(), nodes.folder.join("ca.pem"));
    let address = |login: &str, ca: &str| format!("scylla://{login}@{host}/esh3ar?replication=1&tls=true&ca={ca}");
    let good = address("cassandra:cassandra", ca.to_str().unwrap());
    schema::apply(&Address::parse(&good).unwrap(), &StoreLimits::default()).await.unwrap();
    let history = open(&good).await;
    let inbox = inbox(&tenant(), 1);
    record(&*history, &entries(&inbox, 3)).await;
    assert_eq!(whole(&*history, &inbox).await.len(), 3);
    let wrong = refusal(&address("cassandra:guess", ca.to_str().unwrap())).await;
    assert!(wrong.contains("user `cassandra`") && wrong.contains("password") && !wrong.contains("guess"), "{wrong}");
    let nobody = refusal(&good.replace("cassandra:cassandra@", "")).await;
    assert!(nobody.contains("user") && nobody.contains("password"), "{nobody}");
    let plain = refusal(&format!("scylla://cassandra:cassandra@{host}/esh3ar")).await;
    assert!(plain.contains("tls"), "{plain}");
    let other = Nodes::start("cassandra", &["--safe"]).await;
    let stranger = refusal(&address("cassandra:cassandra", other.folder.join("ca.pem").to_str().unwrap())).await;
    assert!(stranger.contains("`ca`"), "{stranger}");
    other.stop().await;
    nodes.stop().await;
}

/// What an inbox counts is written before the states it counts. An owner that dies in between leaves a count without them: the
/// facts come again, and whoever settles them counts nothing twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_count_whose_states_were_never_written_is_not_made_twice() {
    let address = shared().await;
    let inbox = inbox(&tenant(), 1);
    let first = open(address).await;
    let all = entries(&inbox, 5);
    record(&*first, &all[..3]).await;
    let facts: Vec<_> = all[..3].iter().map(|entry| fact(entry, What::Read, 1)).collect();
    first.settle(&facts).await.unwrap();
    // As it was before the states were written.
    let parsed = Address::parse(address).unwrap();
    let session = scylla_session(&parsed.hosts[0]).await;
    let rows = format!("SELECT slot, id, WRITETIME(state) FROM {}.places", parsed.path);
    let rows = session.query_unpaged(rows, ()).await.unwrap().into_rows_result().unwrap();
    let mut taken = 0;
    for row in rows.rows::<(i64, uuid::Uuid, Option<i64>)>().unwrap() {
        let (slot, id, at) = row.unwrap();
        if let Some(at) = at.filter(|_| all.iter().any(|entry| entry.message.id.0 == id)) {
            let gone =
                format!("DELETE state FROM {}.places USING TIMESTAMP {at} WHERE slot = ? AND id = ?", parsed.path);
            session.query_unpaged(gone, (slot, id)).await.unwrap();
            taken += 1;
        }
    }
    assert_eq!(taken, 3);
    let second = open(address).await;
    let unread = async || second.unread(&inbox).await.unwrap().one_way;
    assert_eq!(unread().await, 0, "it is counted already");
    for _ in 0..2 {
        let settled = second.settle(&facts).await.unwrap();
        assert!(settled.iter().all(|settled| settled.state.status() == schemas::Status::Read));
    }
    record(&*second, &all[3..]).await;
    assert_eq!(unread().await, 2, "a count made twice would be short");
    second.settle(&[fact(&all[3], What::Read, 2)]).await.unwrap();
    assert_eq!(unread().await, 1);
}

/// An owner that was held still for seconds looks who owns its partition before it says of what it wrote that it stands: another
/// may have taken it over, and does not show it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_was_held_still_does_not_take_for_written_what_nobody_is_shown() {
    let clock = Arc::new(ManualClock::at(NOON));
    let address = Address::parse(shared().await).unwrap();
    let owner = ScyllaHistory::open(&address, &StoreLimits::default(), clock.clone()).await.unwrap();
    let next = open(shared().await).await;
    let inbox = Inbox { partition: Partition(31), ..inbox(&tenant(), 1) };
    let epoch = own(&*owner, &[inbox.partition]).await[0];
    let place = |n| Position { epoch, n };
    let first = entry(&inbox, place(1), Position::START, 1, message(&inbox));
    owner.record(std::slice::from_ref(&first), &Schedule::default()).await.unwrap();
    own(&*next, &[inbox.partition]).await;
    next.tails(std::slice::from_ref(&inbox)).await.unwrap();
    clock.pass(7_000);
    let late = entry(&inbox, place(2), place(1), 2, message(&inbox));
    let answer = owner.record(&[late], &Schedule::default()).await;
    assert!(matches!(answer, Err(PortError::Fenced(_))), "{answer:?}");
    let shown = whole(&*next, &inbox).await;
    assert_eq!(shown.iter().map(|entry| entry.message.id).collect::<Vec<_>>(), [first.message.id]);
}

/// An owner dies in the middle of a write, at any moment of it: no entry stands that is not found by its id or does not expire,
/// and no scheduled message is known that will never be sent. What is not known comes again from the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_dies_while_writing_leaves_nothing_half_done() {
    let address = shared().await;
    let reader = open(address).await;
    let (mut whole_write, mut cut) = (Duration::ZERO, 0);
    for step in 0..=24u32 {
        // A partition of its own, so that the rows of those before are not read again.
        let inbox = Inbox { partition: Partition(500 + step as u16), ..inbox(&tenant(), 1) };
        let mut all = entries(&inbox, 150);
        let later: Vec<_> = (0..50).map(|_| message(&inbox)).collect();
        let row = |id, kind| Due { partition: inbox.partition, at: NOON, id, kind };
        let mut add = Vec::new();
        for entry in &mut all {
            let mut message = (*entry.message).clone();
            message.content.body = "x".repeat(3_000);
            entry.message = Arc::new(message);
            let kind = DueKind::Expire { id: entry.message.id, inbox: inbox.clone(), position: entry.position };
            add.push(row(entry.message.id, kind));
        }
        add.extend(later.iter().map(|message| row(message.id, DueKind::Send(Arc::new(message.clone())))));
        // The first is left in peace, and tells how long the others may live.
        let lives = if step == 0 { Duration::from_secs(30) } else { whole_write * (step - 1) / 23 };
        let entries = all.clone();
        let owner = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let took = runtime.block_on(async {
                let owner = open(address).await;
                let schedule = Schedule { add, ..Schedule::default() };
                let began = Instant::now();
                let written = tokio::time::timeout(lives, owner.record(&entries, &schedule)).await;
                written.is_ok_and(|written| written.is_ok()).then(|| began.elapsed())
            });
            runtime.shutdown_background();
            took
        });
        let took = tokio::task::spawn_blocking(|| owner.join().unwrap()).await.unwrap();
        let stands: Vec<_> = whole(&*reader, &inbox).await.into_iter().map(|entry| entry.message.id).collect();
        let waits: Vec<_> = later.iter().map(|message| message.id).collect();
        let known = reader.known(&waits).await.unwrap();
        let known = waits.into_iter().zip(known).filter(|(_, known)| known.is_some()).map(|(id, _)| id);
        let found = reader.messages(&stands).await.unwrap();
        let lost = found.iter().filter(|found| found.is_none()).count();
        assert_eq!(lost, 0, "of {} entries that stand {lost} are not found by their ids", stands.len());
        let due = reader.due(inbox.partition, NOON, 100_000).await.unwrap();
        let due: HashSet<_> = due.into_iter().map(|due| due.id).collect();
        let missing = stands.iter().filter(|id| !due.contains(id)).count();
        assert_eq!(missing, 0, "of {} entries that stand {missing} will not expire", stands.len());
        let never = known.filter(|id| !due.contains(id)).count();
        assert_eq!(never, 0, "{never} scheduled messages are known and will never be sent");
        // To the next owner, whose clock is behind, the time of what is not there may not have come yet: it is put aside, and
        // a place that the dead owner gave it proves nothing.
        let left: Vec<_> = all.iter().filter(|entry| !stands.contains(&entry.message.id)).collect();
        let add = left.iter().map(|entry| row(entry.message.id, DueKind::Send(entry.message.clone()))).collect();
        reader.record(&[], &Schedule { add, ..Schedule::default() }).await.unwrap();
        let due = reader.due(inbox.partition, NOON, 100_000).await.unwrap();
        let due: HashSet<_> = due.into_iter().filter(Due::is_send).map(|due| due.id).collect();
        // What the dead owner had sent the server may carry out after it was looked at; what stands then needs no sending.
        let late: HashSet<_> = whole(&*reader, &inbox).await.into_iter().map(|entry| entry.message.id).collect();
        let lost =
            left.iter().map(|entry| entry.message.id).filter(|id| !due.contains(id) && !late.contains(id)).count();
        assert_eq!(lost, 0, "of {} messages that were put aside {lost} will not be sent", left.len());
        match took {
            Some(took) if step == 0 => whole_write = took,
            None if step > 0 => cut += 1,
            _ => assert!(step > 0, "the write that is left in peace succeeds"),
        }
    }
    assert!(cut > 0, "nobody died in the middle of a write");
}

/// What was answered, by inbox.
struct Answered {
    inboxes: Vec<Inbox>,
    upto: Vec<AtomicU64>,
}

/// Writes to some inboxes as owners do, each write repeated at its place until it is confirmed, until told to stop.
async fn write(history: Arc<ScyllaHistory>, answered: Arc<Answered>, who: usize, stop: Arc<AtomicBool>) -> Duration {
    let (inbox, mut longest) = (answered.inboxes[who].clone(), Duration::ZERO);
    let mut n = 0;
    while !stop.load(Ordering::SeqCst) {
        let batch: Vec<_> = (n + 1..=n + 3).map(|n| entry(&inbox, at(n), at(n - 1), n, message(&inbox))).collect();
        let began = Instant::now();
        loop {
            match history.record(&batch, &Schedule::default()).await {
                Ok(()) => break,
                Err(PortError::Unavailable(_) | PortError::Unknown(_)) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(other) => panic!("{other}"),
            }
        }
        longest = longest.max(began.elapsed());
        // The second changes what the inbox counts.
        for what in [What::Delivered, What::Read] {
            let facts: Vec<_> = batch.iter().map(|entry| fact(entry, what, 1)).collect();
            let began = Instant::now();
            while history.settle(&facts).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            longest = longest.max(began.elapsed());
        }
        n += 3;
        answered.upto[who].store(n, Ordering::SeqCst);
    }
    longest
}

/// Runs writers while something happens to the servers; then every answered entry is there once, read, in a whole chain, and
/// counted once. Says the longest time a write took.
async fn under_writes(address: &str, happens: impl AsyncFnOnce()) -> Duration {
    let history = open(address).await;
    let tenant = tenant();
    let inboxes: Vec<_> = (0..16).map(|number| inbox(&tenant, number)).collect();
    let upto = inboxes.iter().map(|_| AtomicU64::new(0)).collect();
    let answered = Arc::new(Answered { inboxes, upto });
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> =
        (0..16).map(|who| tokio::spawn(write(history.clone(), answered.clone(), who, stop.clone()))).collect();
    let total = || answered.upto.iter().map(|n| n.load(Ordering::SeqCst)).sum::<u64>();
    let more = async |than: u64| {
        while total() < than {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), more(300)).await.expect("writes go on before it happens");
    happens().await;
    tokio::time::timeout(Duration::from_secs(60), more(total() + 300)).await.expect("writes go on afterwards");
    stop.store(true, Ordering::SeqCst);
    let mut longest = Duration::ZERO;
    for writer in writers {
        longest = longest.max(writer.await.unwrap());
    }
    // Another process, which remembers nothing, finds all of it.
    let reader = open(address).await;
    for (inbox, upto) in answered.inboxes.iter().zip(&answered.upto) {
        let upto = upto.load(Ordering::SeqCst);
        let chain = whole(&*reader, inbox).await;
        assert!(chain.len() as u64 >= upto, "{upto} were answered and {} are there", chain.len());
        assert_eq!(places(&chain), (1..=chain.len() as u64).map(at).collect::<Vec<_>>());
        let ids: Vec<_> = chain[..upto as usize].iter().map(|entry| entry.message.id).collect();
        let states = reader.states(&ids).await.unwrap();
        assert!(states.iter().all(|state| state.status() == schemas::Status::Read));
        assert_eq!(reader.unread(inbox).await.unwrap().one_way, chain.len() as u64 - upto);
        assert_eq!(reader.tails(std::slice::from_ref(inbox)).await.unwrap()[0].position.n, chain.len() as u64);
    }
    longest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_and_restarted_under_writes_loses_nothing() {
    let nodes = Nodes::start("cassandra", &[]).await;
    let address = format!("scylla://{}/esh3ar?replication=1", nodes.hosts());
    schema::apply(&Address::parse(&address).unwrap(), &StoreLimits::default()).await.unwrap();
    let longest = under_writes(&address, async || {
        nodes.kill(1).await;
        nodes.restart(1).await;
    })
    .await;
    eprintln!("longest write over kill -9 and restart: {longest:?}");
    // Frozen for longer than a request may take, as a machine that swaps or a virtual machine that is moved.
    let pid = std::fs::read_to_string(nodes.folder.join("node1/pid")).unwrap();
    let pid = rustix::process::Pid::from_raw(pid.split_whitespace().next().unwrap().parse().unwrap()).unwrap();
    let longest = under_writes(&address, async || {
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        tokio::time::sleep(Duration::from_secs(8)).await;
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    })
    .await;
    eprintln!("longest write over a freeze of 8 s: {longest:?}");
    // Several writes to one inbox are on their way: the first is repeated in its place, and those behind it wait for it and are
    // not sent away to come again in an order of their own.
    let history = open(&address).await;
    let inbox = inbox(&tenant(), 1);
    let all = entries(&inbox, 12 * 30);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let writes: Vec<_> = all.chunks(30).map(<[Entry]>::to_vec).collect();
    let writes = writes.into_iter().map(|entries| {
        let history = history.clone();
        tokio::spawn(async move { history.record(&entries, &Schedule::default()).await })
    });
    let writes: Vec<_> = writes.collect();
    tokio::time::sleep(Duration::from_secs(6)).await;
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    let thawed = Instant::now();
    for write in writes {
        write.await.unwrap().expect("recorded without being asked again");
    }
    assert!(thawed.elapsed() < Duration::from_secs(5), "{:?}", thawed.elapsed());
    assert_eq!(places(&whole(&*open(&address).await, &inbox).await), places(&all));
    nodes.stop().await;
}

/// How long one of three is away: longer than any write may wait.
const AWAY: Duration = Duration::from_secs(12);

/// Of three servers one is killed, comes back, and one is frozen: writes go on without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_three_servers_may_die_or_freeze() {
    let nodes = Nodes::start("cassandra", &["--nodes", "3", "--heap", "320m"]).await;
    let address = format!("scylla://{}/esh3ar?replication=3", nodes.hosts());
    schema::apply(&Address::parse(&address).unwrap(), &StoreLimits::default()).await.unwrap();
    let longest = under_writes(&address, async || {
        nodes.kill(2).await;
        // The others believe it to be alive for twenty seconds.
        tokio::time::sleep(AWAY).await;
        nodes.restart(2).await;
    })
    .await;
    eprintln!("longest write over kill -9 of one of three: {longest:?}");
    assert!(longest < AWAY, "no write waits for it to come back: {longest:?}");
    let pid = std::fs::read_to_string(nodes.folder.join("node3/pid")).unwrap();
    let pid = rustix::process::Pid::from_raw(pid.split_whitespace().next().unwrap().parse().unwrap()).unwrap();
    let longest = under_writes(&address, async || {
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        tokio::time::sleep(AWAY).await;
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    })
    .await;
    eprintln!("longest write over a freeze of one of three: {longest:?}");
    assert!(longest < AWAY, "no write waits for it to go on: {longest:?}");
    nodes.stop().await;
}
