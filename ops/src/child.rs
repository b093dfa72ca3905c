//! This same binary as a child process on a folder and ports of its own: the server that drills break and benchmarks load.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail};
use ingest::auth::{NewToken, Permissions, Who, mint};
use schemas::{Clock, Tenant};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

/// A child process that can be killed and started again on the same folder and ports.
pub(crate) struct Server {
    data: PathBuf,
    ports: (u16, u16),
    settings: Vec<String>,
    child: Option<Child>,
}

/// The tenant that drills and benchmarks belong to.
pub(crate) const TENANT: &str = "drill";

impl Server {
    /// Chooses free ports; does not start yet.
    pub(crate) fn new(data: &Path, settings: Vec<String>) -> Result<Self> {
        let probe = || std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr().map(|a| (l, a.port())));
        let ((_one, listen), (_two, admin)) = (probe()?, probe()?);
        Ok(Self { data: data.to_owned(), ports: (listen, admin), settings, child: None })
    }

    /// Starts and waits until it is ready.
    pub(crate) async fn start(&mut self) -> Result<()> {
        if let Some(parent) = self.data.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("the folder {}", parent.display()))?;
        }
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.data.with_extension("log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("up").arg("--json").arg("--data").arg(&self.data);
        command
            .arg("--listen")
            .arg(format!("127.0.0.1:{}", self.ports.0))
            .arg("--admin")
            .arg(format!("127.0.0.1:{}", self.ports.1));
        for setting in &self.settings {
            command.arg("--set").arg(setting);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).kill_on_drop(true);
        let mut child = command.spawn().context("starting the server")?;
        let mut lines = BufReader::new(child.stdout.take().context("no standard output")?).lines();
        loop {
            match lines.next_line().await? {
                Some(line) if line.contains("\"ready\"") => break,
                Some(_) => {}
                None => bail!(
                    "the server ended with {} before it was ready: see {}",
                    child.wait().await?,
                    self.data.with_extension("log").display()
                ),
            }
        }
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        self.child = Some(child);
        Ok(())
    }

    /// `kill -9`, and waits until the process is gone.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// The process, for `/proc`.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Asks it to end and waits.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            if let Some(pid) = child.id().and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?)) {
                rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
            }
            child.wait().await?;
        }
        Ok(())
    }

    /// The public door, as `host:port`.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.ports.0)
    }

    /// The public door.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.0)
    }

    /// What the administrators' door answers.
    pub(crate) async fn admin(&self, http: &reqwest::Client, path: &str, clock: &dyn Clock) -> Result<Value> {
        let token = self.token(Who::Admin, clock)?;
        let url = format!("http://127.0.0.1:{}{path}", self.ports.1);
        Ok(http.get(url).bearer_auth(token).send().await?.error_for_status()?.json().await?)
    }

    /// A token of tenant `drill`, by the folder's own key.
    pub(crate) fn token(&self, who: Who, clock: &dyn Clock) -> Result<String> {
        let key = std::fs::read(self.data.join("signing.key")).context("the folder's signing key")?;
        let (business, admin) = (matches!(who, Who::Server), matches!(who, Who::Admin));
        let can = Permissions { send: business, chat: false, broadcast: false, admin };
        let tenant = Tenant::parse(TENANT).context("a tenant")?;
        Ok(mint(&key, &NewToken { tenant, who, can, ttl_ms: 24 * 3_600_000 }, clock.wall())?)
    }
}
