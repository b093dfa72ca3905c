//! `esh3ar up` as a child process that can be killed: the child of `ops`, which answers tests by panicking with what was said.

use std::{
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
};

use ingest::auth::Who;
use ops::child::{self, Launch};
use schemas::{Phone, Timestamp};
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
    /// A command that runs it as its last arguments.
    pub under: Vec<String>,
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

    /// No quota, and on a busy machine too a chat write is waited for until it is recorded.
    pub fn chatting() -> Self {
        Self::unmetered().with([
            "limits.door.person_per_minute=1000000",
            "limits.door.person_per_hour=1000000",
            "limits.chat.answer_ms=5000",
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

    /// On ports that it keeps through restarts.
    pub fn on_fixed_ports(mut self) -> Self {
        self.ports = Some(free_ports());
        self
    }

    /// No file may grow past so many bytes, and writing past that is refused instead of ending the process: what a full disk
    /// is like for whoever may not mount one.
    pub fn files_of_at_most(mut self, bytes: u64) -> Self {
        // The signal stays ignored through `exec`; bash counts in blocks of 1,024 bytes.
        let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", bytes / 1_024);
        self.under = ["bash", "-c", &script, "bounded"].map(str::to_owned).to_vec();
        self
    }
}

/// A running server. Killed when dropped.
pub struct Server {
    child: child::Server,
    /// `http://host:port` of the public door.
    pub url: String,
    /// `http://host:port` of the administrators' door.
    pub admin: String,
    /// The data folder.
    pub data: PathBuf,
    settings: Settings,
    /// For requests.
    pub http: reqwest::Client,
}

impl Deref for Server {
    type Target = child::Server;
    fn deref(&self) -> &child::Server {
        &self.child
    }
}

impl DerefMut for Server {
    fn deref_mut(&mut self) -> &mut child::Server {
        &mut self.child
    }
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
    child::free_ports().expect("loopback ports")
}

impl Server {
    /// Starts a server on a data folder and waits until it says that it is ready.
    pub fn start(data: &Path, settings: Settings) -> Self {
        Self::try_start(data, settings).unwrap_or_else(|said| panic!("{said}"))
    }

    /// Starts a server; where it ends before it is ready, its exit code and what it printed.
    pub fn try_start(data: &Path, settings: Settings) -> Result<Self, child::NotStarted> {
        let Settings { set, env, ports, under } = settings.clone();
        let launch = Launch { set, env, under, ports: ports.unwrap_or_default(), ..Launch::new(binary(), data) };
        let child = child::Server::start(launch)?;
        let (url, admin) = (format!("http://{}", child.listen), format!("http://{}", child.admin));
        let http = reqwest::Client::builder().no_proxy().build().expect("a client");
        Ok(Self { child, url, admin, data: data.to_owned(), settings, http })
    }

    /// A token for `server`, `business:NAME`, `+NUMBER` or `admin` of a tenant, made as `esh3ar token` makes it.
    pub fn token(&self, tenant: &str, who: &str) -> String {
        let who = match who {
            "server" => Who::Server,
            "admin" => Who::Admin,
            _ if who.starts_with('+') => Who::Mobile(Phone::from_stored(who).expect("a number")),
            _ => Who::Business(who.trim_start_matches("business:").parse().expect("a name")),
        };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        self.child.token(tenant, who, Timestamp(now.as_millis() as i64)).expect("a token")
    }

    /// Kills it without warning.
    pub fn kill9(&mut self) {
        self.child.kill();
    }

    /// Waits until it ends by itself; its exit code.
    pub async fn until_ended(&mut self) -> Option<i32> {
        super::eventually("the server to end by itself", async || self.child.ended()).await.code()
    }

    /// Starts it again on the same folder with the same settings.
    pub fn restart(self) -> Self {
        let settings = self.settings.clone();
        self.restart_with(settings)
    }

    /// Starts it again on the same folder with other settings.
    pub fn restart_with(self, settings: Settings) -> Self {
        let data = self.data.clone();
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
