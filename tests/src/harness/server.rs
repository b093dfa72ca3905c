//! `esh3ar up` as a child process that can be killed.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use schemas::{Phone, Tenant, Timestamp};
use serde_json::Value;

/// What a server is started with.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// `--set` arguments, e.g. `limits.flow.ack_ms=300`.
    pub set: Vec<String>,
    /// Environment variables.
    pub env: Vec<(String, String)>,
    /// Fixed public and admin ports, so that clients find the server again after a restart.
    pub ports: Option<(u16, u16)>,
}

impl Settings {
    /// Delays and deadlines a hundred times shorter, so that six retries pass in less than a second.
    pub fn hundredfold() -> Self {
        Self::default().with(["limits.flow.retry_first_ms=10", "limits.flow.ack_ms=300", "limits.flow.due_every_ms=20"])
    }

    /// No quota: tests send as fast as they like.
    pub fn unmetered() -> Self {
        Self::default().with([
            "limits.door.server_per_second=1000000",
            "limits.door.system_per_second=1000000",
            "limits.door.lane_slow=1000000",
            "limits.door.lane_full=2000000",
        ])
    }

    /// Adds settings.
    pub fn with<S: Into<String>>(mut self, set: impl IntoIterator<Item = S>) -> Self {
        self.set.extend(set.into_iter().map(Into::into));
        self
    }

    /// Both settings.
    pub fn and(mut self, other: Self) -> Self {
        self.set.extend(other.set);
        self.env.extend(other.env);
        self
    }
}

/// A running server. Killed when dropped.
pub struct Server {
    child: Child,
    /// `http://host:port` of the public door.
    pub url: String,
    /// `http://host:port` of the administrators' door.
    pub admin: String,
    /// The data folder.
    pub data: PathBuf,
    settings: Settings,
    /// For requests.
    pub http: reqwest::Client,
    key: Vec<u8>,
}

/// The tenant whose administrators see every tenant (configuration key `operators`).
const OPERATORS: &str = "operators";

/// The binary under test, beside the test binaries.
pub fn binary() -> PathBuf {
    let mut path = std::env::current_exe().expect("a test knows its own path");
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    let path = path.join("esh3ar");
    assert!(path.exists(), "{} is not built: run `cargo build --workspace` first", path.display());
    path
}

/// Two ports that are free now.
pub fn free_ports() -> (u16, u16) {
    let probe = || std::net::TcpListener::bind("127.0.0.1:0").expect("a loopback port");
    let (a, b) = (probe(), probe());
    (a.local_addr().expect("bound").port(), b.local_addr().expect("bound").port())
}

impl Server {
    /// Starts a server on a data folder and waits until it says that it is ready.
    pub fn start(data: &Path, settings: Settings) -> Self {
        Self::try_start(data, settings).unwrap_or_else(|said| panic!("the server did not start:\n{said}"))
    }

    /// Starts a server; where it ends before it is ready, what it printed.
    pub fn try_start(data: &Path, settings: Settings) -> Result<Self, String> {
        let (listen, admin) = settings.ports.unwrap_or((0, 0));
        let log = data.with_extension("log");
        let out = std::fs::OpenOptions::new().create(true).append(true).open(&log).map_err(|e| e.to_string())?;
        let mut command = Command::new(binary());
        command.arg("up").arg("--json").arg("--data").arg(data);
        command.arg("--listen").arg(format!("127.0.0.1:{listen}")).arg("--admin").arg(format!("127.0.0.1:{admin}"));
        for set in &settings.set {
            command.arg("--set").arg(set);
        }
        command.envs(settings.env.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(out);
        let mut child = command.spawn().map_err(|e| e.to_string())?;
        let stdout = child.stdout.take().ok_or("no standard output")?;
        let mut line = String::new();
        let mut reader = BufReader::new(stdout);
        while reader.read_line(&mut line).map_err(|e| e.to_string())? > 0 && !line.contains("\"ready\"") {
            line.clear();
        }
        let Ok(ready) = serde_json::from_str::<Value>(&line) else {
            let status = child.wait().map_err(|e| e.to_string())?;
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            let tail: Vec<_> = said.lines().rev().take(30).collect();
            return Err(format!("{status}\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n")));
        };
        // Whatever else it prints is read away, so that the pipe never fills.
        std::thread::spawn(move || reader.lines().for_each(drop));
        let address = |name: &str| format!("http://{}", ready[name].as_str().unwrap_or_default());
        let key = std::fs::read(data.join("signing.key")).map_err(|e| format!("no signing key: {e}"))?;
        Ok(Self {
            child,
            url: address("listen"),
            admin: address("admin"),
            data: data.to_owned(),
            settings,
            http: reqwest::Client::builder().no_proxy().build().map_err(|e| e.to_string())?,
            key,
        })
    }

    /// A token for `server`, `business:NAME`, `+NUMBER` or `admin` of a tenant, made as `esh3ar token` makes it.
    pub fn token(&self, tenant: &str, who: &str) -> String {
        let who = match who {
            "server" => ingest::auth::Who::Server,
            "admin" => ingest::auth::Who::Admin,
            _ if who.starts_with('+') => ingest::auth::Who::Mobile(Phone::from_stored(who).expect("a number")),
            _ => ingest::auth::Who::Business(who.trim_start_matches("business:").parse().expect("a name")),
        };
        let business = matches!(who, ingest::auth::Who::Server | ingest::auth::Who::Business(_));
        let admin = matches!(who, ingest::auth::Who::Admin);
        let can = ingest::auth::Permissions { send: business, chat: business, broadcast: business, admin };
        let tenant = Tenant::parse(tenant).expect("a tenant");
        let claims = ingest::auth::NewToken { tenant, who, can, ttl_ms: 3_600_000 };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        ingest::auth::mint(&self.key, &claims, Timestamp(now.as_millis() as i64)).expect("a token")
    }

    /// The process, for `/proc` and signals.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it without warning.
    pub fn kill9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end and waits; its exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        self.child.wait().ok().and_then(|status| status.code())
    }

    /// Waits until it ends by itself; its exit code.
    pub async fn ended(&mut self) -> Option<i32> {
        super::eventually("the server to end by itself", async || self.child.try_wait().ok().flatten()).await.code()
    }

    /// Starts it again on the same folder with the same settings.
    pub fn restart(self) -> Self {
        let (data, settings) = (self.data.clone(), self.settings.clone());
        drop(self);
        Self::start(&data, settings)
    }

    /// A GET of the public door as JSON, with its status.
    pub async fn get(&self, path: &str, token: &str) -> (u16, Value) {
        let request = self.http.get(format!("{}{path}", self.url)).bearer_auth(token);
        answer(request.send().await).await
    }

    /// A request of the administrators' door.
    pub async fn admin(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let method = method.parse().expect("a method");
        let mut request =
            self.http.request(method, format!("{}{path}", self.admin)).bearer_auth(self.token(OPERATORS, "admin"));
        if let Some(body) = body {
            request = request.json(&body);
        }
        answer(request.send().await).await
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.data.with_extension("log")).unwrap_or_default()
    }
}

/// An answer's status and JSON; status 0 where none came.
pub(super) async fn answer(sent: reqwest::Result<reqwest::Response>) -> (u16, Value) {
    match sent {
        Err(why) => (0, Value::String(why.to_string())),
        Ok(response) => {
            let status = response.status().as_u16();
            let text = response.text().await.unwrap_or_default();
            (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill9();
    }
}
