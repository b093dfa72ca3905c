//! This same binary as a child process on a folder of its own: the server that drills break, benchmarks load and tests ask.
//!
//! Starting waits until the server says that it is ready, or tells what it said instead. A server is killed when it is dropped.
//! Where the children of a test or a drill live and what they are told is the caller's.

use std::{
    collections::BTreeSet,
    fmt,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use ingest::auth::{NewToken, Permissions, Who, mint};
use parking_lot::Mutex;
use rand::Rng;
use schemas::{Tenant, Timestamp};
use serde_json::Value;

use crate::compose::Role;

/// Lines of its log that a server which did not start is quoted with.
const QUOTED: usize = 30;
/// Ports that no outgoing connection is given (Linux gives those from 32768 on): one chosen here stays free while its server
/// is down.
const PORTS: std::ops::Range<u16> = 10_240..32_000;
/// How many ports are tried.
const TRIES: usize = 1_000;

/// How a server is started.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The binary.
    pub program: PathBuf,
    /// A command that runs it as its last arguments, e.g. a shell that sets a bound first; none: it is run itself.
    pub under: Vec<String>,
    /// What it does: `up`, or a role alone.
    pub role: Role,
    /// The data folder; what it logs goes beside it, into a file with the ending `log`.
    pub data: PathBuf,
    /// The ports of the public and the administrators' door; 0: a free one.
    pub ports: (u16, u16),
    /// `--set` arguments, e.g. `limits.flow.ack_ms=300`.
    pub set: Vec<String>,
    /// Environment variables.
    pub env: Vec<(String, String)>,
}

impl Launch {
    /// A server of this program on that folder.
    pub fn new(program: PathBuf, data: &Path) -> Self {
        let (under, set, env) = (Vec::new(), Vec::new(), Vec::new());
        Self { program, under, role: Role::All, data: data.to_owned(), ports: (0, 0), set, env }
    }

    /// Where it logs.
    pub fn log(&self) -> PathBuf {
        self.data.with_extension("log")
    }

    fn command(&self) -> Command {
        let mut command = match self.under.split_first() {
            None => Command::new(&self.program),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(&self.program);
                command
            }
        };
        command.arg(self.role.word()).arg("--json").arg("--data").arg(&self.data);
        let (listen, admin) = self.ports;
        if self.role.is_public() {
            command.arg("--listen").arg(format!("127.0.0.1:{listen}"));
        }
        command.arg("--admin").arg(format!("127.0.0.1:{admin}"));
        for set in &self.set {
            command.arg("--set").arg(set);
        }
        command.envs(self.env.iter().cloned());
        command
    }
}

/// A server that did not start.
#[derive(Debug)]
pub struct NotStarted {
    /// Its exit code, where it had one.
    pub code: Option<i32>,
    /// What it said last, or why it could not be run at all.
    pub said: String,
}

impl fmt::Display for NotStarted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            Some(code) => write!(f, "the server ended with code {code} before it was ready:\n{}", self.said),
            None => write!(f, "the server was not ready: {}", self.said),
        }
    }
}

impl std::error::Error for NotStarted {}

impl From<std::io::Error> for NotStarted {
    fn from(why: std::io::Error) -> Self {
        Self { code: None, said: why.to_string() }
    }
}

/// A running server.
pub struct Server {
    child: Child,
    launch: Launch,
    /// The public door, as `host:port`.
    pub listen: String,
    /// The administrators' door, as `host:port`.
    pub admin: String,
}

impl Server {
    /// Starts a server and waits until it is ready. Blocks: from a task, [`Server::launch`].
    pub fn start(launch: Launch) -> Result<Self, NotStarted> {
        if let Some(parent) = launch.data.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let log = std::fs::OpenOptions::new().create(true).append(true).open(launch.log())?;
        let mut command = launch.command();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut server = Self { child: command.spawn()?, launch, listen: String::new(), admin: String::new() };
        let out = server.child.stdout.take().ok_or_else(|| std::io::Error::other("it has no standard output"))?;
        let (mut reader, mut line) = (BufReader::new(out), String::new());
        while reader.read_line(&mut line)? > 0 && !line.contains("\"ready\"") {
            line.clear();
        }
        let Ok(ready) = serde_json::from_str::<Value>(&line) else {
            let code = server.child.wait()?.code();
            return Err(NotStarted { code, said: tail(&server.log()) });
        };
        // Whatever else it prints is read away, so that the pipe never fills.
        std::thread::spawn(move || reader.lines().for_each(drop));
        let address = |name: &str| ready[name].as_str().unwrap_or_default().to_owned();
        (server.listen, server.admin) = (address("listen"), address("admin"));
        Ok(server)
    }

    /// Starts a server from a task.
    pub async fn launch(launch: Launch) -> Result<Self, NotStarted> {
        let started = tokio::task::spawn_blocking(|| Self::start(launch)).await;
        started.map_err(|why| NotStarted { code: None, said: why.to_string() })?
    }

    /// How it was started.
    pub fn launched(&self) -> &Launch {
        &self.launch
    }

    /// The process, for `/proc` and signals.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`, and waits until the process is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end and waits; its exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        let _ =
            rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), rustix::process::Signal::TERM);
        self.child.wait().ok()?.code()
    }

    /// Asks it to end and waits, from a task.
    pub async fn stop(mut self) -> Option<i32> {
        tokio::task::spawn_blocking(move || self.terminate()).await.ok().flatten()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// A token of a tenant, signed with the folder's own key as `esh3ar token` does it; for a day.
    pub fn token(&self, tenant: &str, who: Who, now: Timestamp) -> Result<String, String> {
        let path = self.launch.data.join("signing.key");
        let key = std::fs::read(&path).map_err(|why| format!("{}: {why}", path.display()))?;
        let business = matches!(who, Who::Server | Who::Business(_));
        let admin = matches!(who, Who::Admin);
        let can = Permissions { send: business, chat: business, broadcast: business, admin };
        let tenant = Tenant::parse(tenant).map_err(|why| why.to_string())?;
        mint(&key, &NewToken { tenant, who, can, ttl_ms: 24 * 3_600_000 }, now).map_err(|why| why.to_string())
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.launch.log()).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(QUOTED)..].join("\n")
}

/// Two ports that are free now and stay so while nobody asks for them by number; none that was given before, as whoever got it may
/// listen there only later.
pub fn free_ports() -> std::io::Result<(u16, u16)> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock();
    let mut probe = || {
        let mut tries = (0..TRIES).map(|_| rand::rng().random_range(PORTS));
        let free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok() && given.insert(*port);
        tries.find(free).ok_or_else(|| std::io::Error::other("no port of this machine is free"))
    };
    Ok((probe()?, probe()?))
}
