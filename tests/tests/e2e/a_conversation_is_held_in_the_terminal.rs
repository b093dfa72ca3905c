//! `esh3ar chat` and `esh3ar conversations`: what is typed on one side is read on the other, in a pipe as in a terminal, with
//! ticks; lists and exports tell the same afterwards.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, Command, Output, Stdio},
};

use serde_json::Value;
use tests::harness::{Server, Settings, binary, number};

const SARA: &str = "business:acme:sara";

fn command(data: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(args).arg("--data").arg(data).env_remove("ESH3AR_URL").env_remove("ESH3AR_TOKEN");
    command
}

fn run(data: &Path, args: &[&str]) -> Output {
    command(data, args).stdin(Stdio::null()).output().unwrap()
}

/// Runs with these lines as its input.
fn fed(data: &Path, args: &[&str], lines: &str) -> Output {
    let mut child =
        command(data, args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn objects(output: &Output) -> Vec<Value> {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Somebody who stays and reads.
struct Open {
    child: Child,
    input: ChildStdin,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Open {
    fn start(data: &Path, args: &[&str]) -> Self {
        let mut child =
            command(data, args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, input, lines: BufReader::new(output).lines() }
    }

    fn say(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
        self.input.flush().unwrap();
    }

    /// The next object that this takes.
    fn until(&mut self, what: &str, takes: impl Fn(&Value) -> bool) -> Value {
        for line in self.lines.by_ref() {
            let value: Value = serde_json::from_str(&line.unwrap()).unwrap();
            if takes(&value) {
                return value;
            }
        }
        panic!("it ended before {what}");
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn server(folder: &tempfile::TempDir) -> Server {
    Server::start(&folder.path().join("data"), Settings::default())
}

#[test]
fn what_one_side_types_the_other_reads_and_ticks_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let (server, user) = (server(&folder), number(1));
    let data = &server.data;
    let mut phone = Open::start(data, &["chat", "--as", &user, "--with", "business:sara", "--follow", "--json"]);
    let mut sara = Open::start(data, &["chat", "--as", SARA, "--with", &user, "--follow", "--json"]);
    sara.say("Your parcel is at the door");
    let said = sara.until("it was accepted", |line| line["event"] == "accepted");
    assert_eq!((said["number"].as_u64(), said["content"].as_str()), (Some(1), Some("Your parcel is at the door")));
    let heard = phone.until("it came", |line| line["event"] == "message");
    assert_eq!((heard["content"].as_str(), &heard["id"]), (Some("Your parcel is at the door"), &said["id"]));
    // The phone's reader has read it by showing it.
    let read = sara.until("it was read", |line| line["event"] == "status" && line["status"] == "read");
    assert_eq!(read["id"], said["id"]);
    phone.say("Thank you");
    let answer = sara.until("the answer came", |line| line["event"] == "message");
    assert_eq!((answer["content"].as_str(), answer["from"].as_str()), (Some("Thank you"), Some(user.as_str())));

    // Afterwards lists and exports tell the same.
    let list = objects(&run(data, &["conversations", "list", "--as", SARA, "--json"]));
    assert_eq!((list.len(), list[0]["mobile"].as_str()), (1, Some(user.as_str())));
    let id = list[0]["id"].as_str().unwrap();
    let shown = &objects(&run(data, &["conversations", "show", id, "--as", SARA, "--json"]))[0];
    let texts = |of: &Value| of.as_array().unwrap().iter().map(|m| m["content"].clone()).collect::<Vec<_>>();
    assert_eq!(texts(&shown["messages"]), ["Your parcel is at the door", "Thank you"]);
    let file = folder.path().join("all.ndjson");
    let told = run(data, &["conversations", "export", "--as", SARA, "--json", "--output", file.to_str().unwrap()]);
    assert_eq!(objects(&told)[0], serde_json::json!({ "conversations": 1, "messages": 2 }));
    let lines: Vec<Value> =
        std::fs::read_to_string(&file).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.iter().map(|line| line["seq"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2]);
    assert!(lines.iter().all(|line| line["conversation_id"] == id));
}

#[test]
fn a_pipe_says_every_line_once_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let (server, user) = (server(&folder), number(1));
    let lines: String = (0..30).map(|n| format!("line {n}\n")).collect();
    let said = objects(&fed(&server.data, &["chat", "--as", SARA, "--with", &user, "--json"], &lines));
    let accepted: Vec<_> = said.iter().filter(|line| line["event"] == "accepted").collect();
    assert_eq!(accepted.len(), 30);
    let list = objects(&run(&server.data, &["conversations", "list", "--as", &user, "--json"]));
    let id = list[0]["id"].as_str().unwrap();
    let export = objects(&run(&server.data, &["conversations", "export", id, "--as", &user]));
    let texts: Vec<_> = export.iter().map(|line| line["content"].as_str().unwrap().to_owned()).collect();
    assert_eq!(texts, (0..30).map(|n| format!("line {n}")).collect::<Vec<_>>());
    assert_eq!(list[0]["unread"], 30);
    // And for people: one line each, with its tick.
    let text = fed(&server.data, &["chat", "--as", SARA, "--with", &user, "--last", "2"], "one more\n/quit\nnever\n");
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("you: line 29") && text.contains("#1 √ accepted") && !text.contains("never"), "{text}");
}

#[test]
fn what_is_waited_for_and_what_is_refused_has_its_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let (server, user) = (server(&folder), number(1));
    let data = &server.data;
    let alone =
        fed(data, &["chat", "--as", SARA, "--with", &user, "--wait", "delivered", "--timeout", "1s"], "Hello\n");
    assert_eq!(alone.status.code(), Some(1), "nobody is there: {alone:?}");
    let _phone = Open::start(data, &["chat", "--as", &user, "--with", "business:sara", "--follow", "--json"]);
    let read = fed(data, &["chat", "--as", SARA, "--with", &user, "--wait", "read"], "Are you there?\n");
    assert_eq!(read.status.code(), Some(0), "{read:?}");
    assert!(String::from_utf8_lossy(&read.stdout).contains("√√ read"), "{read:?}");
    let closed = fed(data, &["chat", "--as", SARA, "--with", &user], "/close\nStill there?\n");
    assert_eq!(closed.status.code(), Some(4), "{closed:?}");
    assert!(String::from_utf8_lossy(&closed.stderr).contains("conversation-closed"), "{closed:?}");
    let unknown = "0192f0c1-2b3c-5def-8123-456789abcdef";
    let foreign = run(data, &["conversations", "show", unknown, "--as", SARA]);
    assert_eq!(foreign.status.code(), Some(4), "{foreign:?}");
    let nobody = run(data, &["conversations", "list", "--as", "business:acme:nobody"]);
    assert_eq!(nobody.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&nobody.stdout).contains("no conversations"));
    let nowhere = run(&folder.path().join("nothing"), &["conversations", "list", "--as", SARA]);
    assert_eq!(nowhere.status.code(), Some(3), "{nowhere:?}");
}

#[test]
fn one_s_last_message_is_changed_and_taken_back_from_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let (server, user) = (server(&folder), number(1));
    let input = "at seven\n/edit at eight\nnonsense\n/delete\n";
    let done = fed(&server.data, &["chat", "--as", SARA, "--with", &user], input);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let list = objects(&run(&server.data, &["conversations", "list", "--as", SARA, "--json"]));
    let export =
        objects(&run(&server.data, &["conversations", "export", list[0]["id"].as_str().unwrap(), "--as", SARA]));
    assert_eq!((export.len(), export[0]["content"].as_str()), (2, Some("at eight")));
    assert!(export[0]["edited_at"].is_string() && export[1]["deleted_at"].is_string());
}
