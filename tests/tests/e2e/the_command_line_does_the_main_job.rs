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
