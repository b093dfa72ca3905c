//! Real servers, started by the scripts of `ops/stack` as an operator would start them. A script is told this process' id, so
//! that its servers end and its folder goes when the tests end, however they end. What several tests may share is started once
//! a process; who kills servers starts its own.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use tokio::sync::OnceCell;

/// Servers of one kind that were started together.
#[derive(Debug)]
pub struct Nodes {
    script: PathBuf,
    /// Their folder: data, logs, certificates.
    pub folder: PathBuf,
    /// `host:port` of each, in order.
    pub addresses: Vec<String>,
}

impl Nodes {
    /// Starts servers: `NAME` is a script of `ops/stack`, `more` are its further arguments.
    pub async fn start(name: &str, more: &[&str]) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops/stack").join(name);
        let folder = tempfile::Builder::new().prefix(&format!("esh3ar-{name}-")).tempdir().unwrap().keep();
        let until = std::process::id().to_string();
        let mut arguments = vec!["start", "--folder", folder.to_str().unwrap(), "--until", &until];
        arguments.extend(more);
        let said = run(&script, &arguments).await;
        let addresses = addresses(&said);
        Self { script, folder, addresses }
    }

    /// All addresses, as clients take them.
    pub fn hosts(&self) -> String {
        self.addresses.join(",")
    }

    /// SIGKILL to one, counted from 1.
    pub async fn kill(&self, node: usize) {
        run(&self.script, &["kill", "--folder", self.folder(), "--node", &node.to_string()]).await;
    }

    /// Starts one again that was killed, at its old address.
    pub async fn restart(&self, node: usize) {
        run(&self.script, &["start", "--folder", self.folder(), "--node", &node.to_string()]).await;
    }

    /// Stops all.
    pub async fn stop(&self) {
        run(&self.script, &["stop", "--folder", self.folder()]).await;
    }

    fn folder(&self) -> &str {
        self.folder.to_str().unwrap()
    }
}

/// The second word of each line that a script printed.
fn addresses(said: &str) -> Vec<String> {
    said.lines().filter_map(|line| line.split_whitespace().nth(1)).map(str::to_owned).collect()
}

/// Runs a script to its end, and gives what it printed.
async fn run(script: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(script);
    command.args(arguments);
    // Its errors go to a file and not to a pipe: a server that it leaves behind would hold the pipe open.
    let errors = tempfile::NamedTempFile::new().unwrap();
    command.stderr(errors.reopen().unwrap());
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let said = std::fs::read_to_string(errors.path()).unwrap_or_default();
    assert!(output.status.success(), "{} {arguments:?} failed: {said}", script.display());
    String::from_utf8(output.stdout).unwrap()
}

/// One Kafka, shared by all tests of this process; each takes a prefix of its own.
pub async fn kafka() -> &'static Nodes {
    static NODES: OnceCell<Nodes> = OnceCell::const_new();
    NODES.get_or_init(|| Nodes::start("kafka", &[])).await
}

/// One Kafka that asks for TLS and a login: user `esh3ar`, password `secret`, its authority in `ca.pem` of its folder.
pub async fn safe_kafka() -> &'static Nodes {
    static NODES: OnceCell<Nodes> = OnceCell::const_new();
    NODES.get_or_init(|| Nodes::start("kafka", &["--sasl"])).await
}
