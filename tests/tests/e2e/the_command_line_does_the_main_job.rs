//! What a newcomer types: token, send, listen, trace, and answers that scripts can use.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use tests::harness::{Server, Settings, binary, number};

fn run(data: &Path, args: &[&str]) -> Output {
    Command::new(binary())
        .args(args)
        .arg("--data")
        .arg(data)
        .env_remove("ESH3AR_URL")
        .env_remove("ESH3AR_TOKEN")
        .output()
        .unwrap()
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

#[test]
fn send_and_listen_find_the_server_by_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::default());
    let user = number(1);
    let mut listen = Command::new(binary());
    listen
        .args(["listen", "--user", &user, "--json", "--data"])
        .arg(&server.data)
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut listen = listen.spawn().unwrap();
    let mut lines = BufReader::new(listen.stdout.take().unwrap()).lines();

    let sent = run(&server.data, &["send", "--to", &user, "--text", "Hello", "--wait", "delivered", "--json"]);
    assert_eq!(sent.status.code(), Some(0), "{sent:?}");
    let sent = json_of(&sent);
    assert_eq!(sent["status"], "delivered", "{sent}");
    let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!((line["content"].as_str(), line["id"].as_str()), (Some("Hello"), sent["id"].as_str()));
    listen.kill().unwrap();
    listen.wait().unwrap();

    let trace = run(&server.data, &["trace", sent["id"].as_str().unwrap(), "--json"]);
    assert_eq!(trace.status.code(), Some(0), "{trace:?}");
    assert!(json_of(&trace)["stages"].as_array().unwrap().len() >= 4);
    let dead = run(&server.data, &["dead", "list", "--json"]);
    assert_eq!(dead.status.code(), Some(0), "{dead:?}");
    let token = run(&server.data, &["token", "--tenant", "acme", "--user", &user]);
    assert_eq!(String::from_utf8_lossy(&token.stdout).trim().split('.').count(), 3, "the token alone");
}

#[test]
fn wrong_input_has_a_sentence_and_a_code() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::default());
    let refused = run(&server.data, &["send", "--to", "12345", "--text", "x"]);
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("E.164"), "{refused:?}");
    let nowhere = run(&folder.path().join("nothing"), &["send", "--to", &number(1), "--text", "x"]);
    assert_eq!(nowhere.status.code(), Some(3), "{nowhere:?}");
    let usage = Command::new(binary()).args(["send", "--colour"]).output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn every_command_has_help_with_an_example() {
    let help = Command::new(binary()).arg("--help").output().unwrap();
    let text = String::from_utf8_lossy(&help.stdout).into_owned();
    let commands = [
        "up",
        "token",
        "send",
        "listen",
        "chat",
        "conversations",
        "trace",
        "dead",
        "books",
        "config",
        "data",
        "tail",
        "bench",
        "drill",
        "completions",
    ];
    for command in commands {
        assert!(text.contains(command), "{command} is missing in --help");
        let help = Command::new(binary()).args([command, "--help"]).output().unwrap();
        assert!(String::from_utf8_lossy(&help.stdout).contains("esh3ar "), "{command} --help has no example");
    }
}

/// Processes whose parent this is, as Linux tells it.
fn children(of: u32) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let parent = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // Behind the name, which may hold anything: the state, and the parent.
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse::<u32>().ok()
    };
    all.filter(|pid| parent(pid) == Some(of)).collect()
}

#[tokio::test]
async fn a_bench_that_is_told_to_end_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Command::new(binary());
    bench.args(["bench", "idle", "--seconds", "60", "--users", "10"]).current_dir(folder.path());
    let bench = bench.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let server = tests::harness::eventually("the bench starts a server", async || children(bench.id()).pop()).await;
    let pid = rustix::process::Pid::from_child(&bench);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ended = tokio::task::spawn_blocking(move || bench.wait_with_output().unwrap()).await.unwrap();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(String::from_utf8_lossy(&ended.stderr).contains("told to end"), "{ended:?}");
    tests::harness::eventually("its server is gone", async || {
        (!Path::new(&format!("/proc/{server}")).exists()).then_some(())
    })
    .await;
}
