//! What the machine may refuse while the process runs: what was accepted stays, what was not is said. Each test runs this
//! program once more as a process of its own, which loses a right or meets a limit that tests beside it must not. They stand
//! apart from the others, and take turns: a process that is just being started holds every open file, locks too.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Command, Output},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::process::{Resource, Rlimit, getuid, setrlimit};
use schemas::{
    Offset, Partition, Priority, Timestamp, Topic, TopicPartition,
    limits::StoreLimits,
    port::{Append, Fetch, Headers, Log, PortError, PortResult},
    time::ManualClock,
};

use stores::{OpenError, data, embedded::Engine, log::EmbeddedLog};

/// Names the folder in the process that is started.
const FOLDER: &str = "ESH3AR_TEST_FOLDER";
const HERE: TopicPartition = TopicPartition { topic: Topic::Lane(Priority::Normal), partition: Partition(0) };

fn limits() -> StoreLimits {
    StoreLimits { free_bytes: 0, ..StoreLimits::default() }
}

fn open(path: &Path) -> Result<(Engine, EmbeddedLog), OpenError> {
    let engine = Engine::open(path, &limits())?;
    let clock = Arc::new(ManualClock::at(Timestamp(1_700_000_000_000)));
    let log = EmbeddedLog::open(engine.clone(), clock, &limits())?;
    Ok((engine, log))
}

async fn append(log: &EmbeddedLog, n: u64) -> PortResult<Offset> {
    let body = n.to_be_bytes().repeat(500).into();
    log.append(vec![Append { at: HERE, headers: Headers::default(), body }]).await.remove(0)
}

/// This program, to run one of the tests below on a folder.
fn run(command: &mut Command, test: &str, folder: &Path) -> std::io::Result<Output> {
    command.args([test, "--exact", "--ignored", "--nocapture"]).env(FOLDER, folder).output()
}

fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn folder() -> std::path::PathBuf {
    std::env::var_os(FOLDER).expect("started by the test that needs it").into()
}

#[tokio::test]
#[expect(clippy::await_holding_lock, reason = "the only task of its runtime")]
async fn a_file_that_may_not_grow_ends_the_store_and_keeps_what_was_accepted() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let program = std::env::current_exe().unwrap();
    // The signal that comes with the refusal is ignored, as it is under most supervisors of services.
    let mut shell = Command::new("sh");
    let output = run(
        shell.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(program),
        "a_process_whose_files_may_not_grow",
        dir.path(),
    );
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said} {}", String::from_utf8_lossy(&output.stderr));
    let accepted = said.lines().find_map(|line| line.strip_prefix("accepted ")).expect("it says how many");
    let accepted: u64 = accepted.parse().unwrap();
    assert!(data::check(dir.path()).unwrap().is_whole());
    let (_engine, log) = open(dir.path()).unwrap();
    let end = log.bounds(HERE).await.unwrap().1.0;
    assert!(end >= accepted, "{accepted} were accepted and {end} are there");
    let mut next = 0;
    while next < end {
        let read = log.read(HERE, Offset(next), Fetch { records: 1_000, bytes: 1 << 24 }).await.unwrap();
        for record in &read {
            assert_eq!((record.offset.0, &record.body[..8]), (next, &next.to_be_bytes()[..]));
            next += 1;
        }
    }
    assert_eq!(append(&log, end).await, Ok(Offset(end)), "it goes on");
}

#[tokio::test]
#[ignore = "run by the test above, in a process of its own"]
async fn a_process_whose_files_may_not_grow() {
    let (engine, log) = open(&folder()).unwrap();
    let mut accepted = 0;
    while accepted < 200 {
        assert_eq!(append(&log, accepted).await, Ok(Offset(accepted)));
        accepted += 1;
    }
    let most = Some(1024 * 1024 + 1_000);
    setrlimit(Resource::Fsize, Rlimit { current: most, maximum: most }).unwrap();
    let mut fatal = engine.fatal();
    let refusal = loop {
        match append(&log, accepted).await {
            Ok(offset) => assert_eq!(offset, Offset(accepted)),
            Err(refusal) => break refusal,
        }
        accepted += 1;
    };
    assert!(matches!(refusal, PortError::Unknown(_)), "it may be there: {refusal}");
    let why = fatal.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert!(why.contains("Check the disk, then start again"), "{why}");
    assert!(matches!(append(&log, accepted).await, Err(PortError::Unavailable(_))), "nothing is written after it");
    assert!(matches!(log.check().await, Err(PortError::Unavailable(_))));
    println!("accepted {accepted}");
}

#[test]
fn a_folder_that_may_not_be_written_to_is_refused_in_a_sentence() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    let allow = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    allow(dir.path(), 0o755);
    allow(&data, 0o555);
    let mut program = Command::new(std::env::current_exe().unwrap());
    if getuid().is_root() {
        // Nothing is forbidden to root: the process is nobody's.
        program.uid(65_534).gid(65_534);
    }
    match run(&mut program, "a_process_that_may_not_write", &data) {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{said} {}", String::from_utf8_lossy(&output.stderr));
        }
        // Nobody may not even run this program where it lies.
        Err(why) => assert_eq!(why.kind(), std::io::ErrorKind::PermissionDenied),
    }
    assert_eq!(fs::read_dir(&data).unwrap().count(), 0, "a refusal leaves nothing behind");
    allow(&data, 0o755);
}

#[test]
#[ignore = "run by the test above, in a process of its own"]
fn a_process_that_may_not_write() {
    let folder = folder();
    for path in [folder.clone(), folder.join("deeper")] {
        let refusal = Engine::open(&path, &limits()).map(drop).unwrap_err();
        assert!(matches!(refusal, OpenError::ReadOnly { .. }), "{refusal:?}");
        let sentence = refusal.to_string();
        assert!(sentence.contains(&path.display().to_string()) && sentence.contains("--data"), "{sentence}");
    }
}
