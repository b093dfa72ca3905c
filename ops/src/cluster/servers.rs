//! The real servers of a set-up, started by the scripts of `ops/stack`, as an operator would start them; and what can befall
//! them. They end when this process has ended, however it ended.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;

/// A kind of server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The log's.
    Kafka,
    /// The history's.
    History,
    /// That of presence.
    Redis,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Kafka, Self::History, Self::Redis];
}

/// Servers of one kind. They end when this is dropped.
pub struct Nodes {
    script: PathBuf,
    folder: PathBuf,
    /// `host:port` of each, in order.
    pub addresses: Vec<String>,
}

impl Nodes {
    /// Starts servers: `name` is a script in the folder `stack`, `more` are its further arguments.
    pub async fn start(stack: &Path, name: &str, folder: &Path, count: usize, more: &[String]) -> Result<Self> {
        let script = stack.join(name);
        ensure!(script.exists(), "there is no {}: name the folder of the scripts by --stack", script.display());
        std::fs::create_dir_all(folder)?;
        let (count, until) = (count.to_string(), std::process::id().to_string());
        let text = folder.to_str().context("the folder's name is not UTF-8")?;
        let mut arguments = vec!["start", "--folder", text, "--nodes", &count, "--until", &until];
        arguments.extend(more.iter().map(String::as_str));
        let said = run(&script, &arguments).await?;
        let addresses: Vec<_> = said.lines().filter_map(|line| line.split(' ').nth(1)).map(str::to_owned).collect();
        ensure!(!addresses.is_empty(), "{name} named no address: {said}");
        Ok(Self { script, folder: folder.to_owned(), addresses })
    }

    /// All addresses, as clients take them.
    pub fn hosts(&self) -> String {
        self.addresses.join(",")
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.addresses.len()
    }

    /// SIGKILL to one, counted from 1.
    pub async fn kill(&self, node: usize) -> Result<()> {
        run(&self.script, &["kill", "--folder", self.folder()?, "--node", &node.to_string()]).await.map(drop)
    }

    /// Starts one again that was killed, at its old address.
    pub async fn restart(&self, node: usize) -> Result<()> {
        run(&self.script, &["start", "--folder", self.folder()?, "--node", &node.to_string()]).await.map(drop)
    }

    /// Stops all.
    pub async fn stop(&self) -> Result<()> {
        run(&self.script, &["stop", "--folder", self.folder()?]).await.map(drop)
    }

    /// Holds one still: it answers nobody, and nobody is told.
    pub fn freeze(&self, node: usize) -> Result<()> {
        Ok(kill_process(self.pid(node)?, Signal::STOP)?)
    }

    /// Lets it go on.
    pub fn thaw(&self, node: usize) -> Result<()> {
        Ok(kill_process(self.pid(node)?, Signal::CONT)?)
    }

    /// The process of one.
    pub fn pid(&self, node: usize) -> Result<Pid> {
        let path = self.folder.join(format!("node{node}/pid"));
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let number = text.split_whitespace().next().and_then(|word| word.parse().ok());
        number.and_then(Pid::from_raw).with_context(|| format!("{} names no process", path.display()))
    }

    fn folder(&self) -> Result<&str> {
        self.folder.to_str().context("the folder's name is not UTF-8")
    }

    /// Ends what still runs. A process whose id was given again since is another's and is left alone.
    fn end(&self) {
        for node in 1..=self.count() {
            let text = std::fs::read_to_string(self.folder.join(format!("node{node}/pid"))).unwrap_or_default();
            let mut words = text.split_whitespace();
            let (Some(number), Some(born)) = (words.next().and_then(|word| word.parse().ok()), words.next()) else {
                continue;
            };
            let stat = std::fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
            // After the name in brackets, which may hold anything, the twentieth word is when it began.
            let began = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(19));
            if let Some(pid) = Pid::from_raw(number)
                && began == Some(born)
            {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        self.end();
    }
}

/// Runs a script to its end, and gives what it printed.
async fn run(script: &Path, arguments: &[&str]) -> Result<String> {
    // Its errors go to a file and not to a pipe: a server that it leaves behind would hold the pipe open.
    let path = std::env::temp_dir().join(format!("esh3ar-stack-{}", uuid::Uuid::new_v4()));
    let errors = std::fs::File::create(&path)?;
    let output = Command::new(script).args(arguments).stdin(std::process::Stdio::null()).stderr(errors).output().await;
    let said = std::fs::read_to_string(&path).unwrap_or_default();
    let _ = std::fs::remove_file(&path);
    let output = output.with_context(|| script.display().to_string())?;
    ensure!(output.status.success(), "{} {arguments:?} failed: {said}", script.display());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
