//! What listens loses its connection, or its channel goes elsewhere, while everything else goes on.

use std::process::Stdio;

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use super::frames::{Counting, hint};
use super::*;

/// A `redis-cli` that stays connected.
struct Shell {
    _child: Child,
    says: Lines<BufReader<ChildStdout>>,
    hears: ChildStdin,
}

impl Shell {
    fn open(address: &str) -> Self {
        let (host, port) = address.rsplit_once(':').unwrap();
        let mut command = Command::new("redis-cli");
        command.args(["-h", host, "-p", port]).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let (hears, says) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { _child: child, says: BufReader::new(says).lines(), hears }
    }

    /// The lines of an answer; it ends before that to a question whose answer is known.
    async fn ask(&mut self, command: &str) -> Vec<String> {
        self.hears.write_all(format!("{command}\nECHO over\n").as_bytes()).await.unwrap();
        let mut lines = Vec::new();
        while let Some(line) = self.says.next_line().await.unwrap().filter(|line| line != "over") {
            lines.push(line);
        }
        lines
    }
}

async fn process(address: &str) -> RedisBackplane {
    RedisBackplane::open(open(address).await, 2_000).await
}

/// A pipeline whose ears alone are gone, and that cannot open new ones, blames no node for what it does not hear, says that it
/// may be missing things as long as that lasts, and has everyone compare afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_listen_blames_nobody_and_says_so_again_and_again() {
    let own = Nodes::start("redis", &[]).await;
    let address = format!("redis://{}/{}", own.hosts(), prefix());
    let (a, b) = (process(&address).await, process(&address).await);
    let node: NodeId = "b".parse().unwrap();
    b.attach(node.clone(), Arc::new(Counting::default())).await.unwrap();
    assert_eq!(a.deliver(&node, vec![hint(1)]).await.unwrap(), [Landing::Taken]);

    let mut shell = Shell::open(&own.hosts());
    let (before, told) = (a.missed(0).await.count, b.missed(0).await.count);
    // No more than who is connected already: both processes, the one that listens still, and the shell.
    assert_eq!(shell.ask("CONFIG SET maxclients 4").await, ["OK"]);
    let listening = shell.ask("CLIENT LIST TYPE pubsub").await;
    let channels = |line: &&String| {
        let of = |name: &str| line.split(' ').find_map(|word| word.strip_prefix(name)?.parse::<u32>().ok());
        of("sub=").unwrap_or(0) + of("ssub=").unwrap_or(0)
    };
    let fewest = listening.iter().filter(|line| channels(line) > 0).min_by_key(channels).unwrap();
    let id = fewest.split(' ').next().unwrap().trim_start_matches("id=");
    assert_eq!(shell.ask(&format!("CLIENT KILL ID {id}")).await, ["1"]);
    let seen = tokio::time::timeout(Duration::from_secs(10), a.missed(before)).await.expect("told at the break").count;
    assert_eq!(a.deliver(&node, vec![hint(2)]).await, Ok(vec![Landing::Absent]), "nobody is to blame");
    let again = tokio::time::timeout(Duration::from_secs(30), a.missed(seen)).await.expect("told again").count;
    tokio::time::timeout(Duration::from_secs(30), a.missed(again)).await.expect("and again");

    assert_eq!(shell.ask("CONFIG SET maxclients 100").await, ["OK"]);
    until("frames go from one to the other again", async || {
        a.deliver(&node, vec![hint(3)]).await == Ok(vec![Landing::Taken])
    })
    .await;
    tokio::time::timeout(Duration::from_secs(10), b.missed(told)).await.expect("all nodes are told to compare");
    own.stop().await;
}

/// A cluster moves a slot while everybody is connected: Redis says so to who listens there, and it listens where the slot is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_listens_follows_a_channel_whose_slot_is_moved() {
    let own = Nodes::start("redis", &["--cluster", "--nodes", "3"]).await;
    let address = format!("redis-cluster://{}/{}", own.hosts(), prefix());
    let (a, b) = (process(&address).await, process(&address).await);
    let node: NodeId = "b".parse().unwrap();
    b.attach(node.clone(), Arc::new(Counting::default())).await.unwrap();
    until("b is reached", async || a.deliver(&node, vec![hint(1)]).await == Ok(vec![Landing::Taken])).await;

    let hosts = own.hosts();
    let mut shells: Vec<Shell> = hosts.split(',').map(Shell::open).collect();
    let (mut from, mut channel) = (None, String::new());
    for (n, shell) in shells.iter_mut().enumerate() {
        let held = shell.ask("PUBSUB SHARDCHANNELS").await;
        if let Some(found) = held.into_iter().find(|channel| channel.ends_with("node:b")) {
            (from, channel) = (Some(n), found);
        }
    }
    let from = from.expect("some server has the channel");
    let to = (from + 1) % shells.len();
    let slot = shells[from].ask(&format!("CLUSTER KEYSLOT {channel}")).await.remove(0);
    let source = shells[from].ask("CLUSTER MYID").await.remove(0);
    let target = shells[to].ask("CLUSTER MYID").await.remove(0);
    assert_eq!(shells[to].ask(&format!("CLUSTER SETSLOT {slot} IMPORTING {source}")).await, ["OK"]);
    assert_eq!(shells[from].ask(&format!("CLUSTER SETSLOT {slot} MIGRATING {target}")).await, ["OK"]);
    for n in [to, from] {
        assert_eq!(shells[n].ask(&format!("CLUSTER SETSLOT {slot} NODE {target}")).await, ["OK"]);
    }
    until("b is reached where its channel is now", async || {
        a.deliver(&node, vec![hint(2)]).await == Ok(vec![Landing::Taken])
    })
    .await;
    let held = shells[to].ask("PUBSUB SHARDCHANNELS").await;
    assert!(held.contains(&channel), "{held:?}");
    own.stop().await;
}
