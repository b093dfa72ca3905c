//! What can befall a set-up: chosen by a seed, made, and undone.

use std::{fmt, str::FromStr, time::Duration};

use anyhow::{Context, Result};
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use serde::Serialize;

use crate::{
    cluster::{Cluster, Kind, Mode},
    compose::Role,
};

/// How long a process that was killed stays away, ms.
const AWAY_MS: std::ops::Range<u64> = 500..3_000;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// `kill -9` of one that takes in, and a new start.
    KillIngest,
    /// `kill -9` of one that decides.
    KillPipeline,
    /// `kill -9` of one that holds sockets.
    KillGateway,
    /// One process asked to end, and started again.
    Stop,
    /// One that takes in held still.
    FreezeIngest,
    /// One that decides held still for longer than its session.
    FreezePipeline,
    /// One that holds sockets held still.
    FreezeGateway,
    /// All processes asked to end, one after the other, and started again.
    Rolling,
    /// One more of each role that can be more, then one fewer.
    Scale,
    /// A Kafka broker killed and started again.
    KillKafka,
    /// A Cassandra node killed and started again.
    KillHistory,
    /// Redis killed, and started again empty.
    KillRedis,
    /// A Kafka broker held still.
    FreezeKafka,
    /// A Cassandra node held still.
    FreezeHistory,
    /// Redis held still.
    FreezeRedis,
    /// The networks between all processes and a server slow, thin, silent or cut.
    Network,
    /// The network between one process and a server.
    NetworkPair,
    /// The network between clients and those who take in, or those who hold sockets.
    NetworkClients,
    /// The network between servers of one kind: by which the others reach one of them, or all each other.
    NetworkServers,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::KillIngest,
        Self::KillPipeline,
        Self::KillGateway,
        Self::Stop,
        Self::FreezeIngest,
        Self::FreezePipeline,
        Self::FreezeGateway,
        Self::Rolling,
        Self::Scale,
        Self::KillKafka,
        Self::KillHistory,
        Self::KillRedis,
        Self::FreezeKafka,
        Self::FreezeHistory,
        Self::FreezeRedis,
        Self::Network,
        Self::NetworkPair,
        Self::NetworkClients,
        Self::NetworkServers,
    ];

    /// Whether a set-up of so many Kafka brokers and Cassandra nodes has what it strikes.
    pub fn can_befall(self, (kafka, cassandra): (usize, usize)) -> bool {
        self != Self::NetworkServers || kafka > 1 || cassandra > 1
    }

    /// The word of the command line and of reports.
    pub fn word(self) -> String {
        serde_json::to_value(self).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.word())
    }
}

impl FromStr for Class {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::word).join(", ");
        Self::ALL
            .into_iter()
            .find(|class| class.word() == text)
            .ok_or_else(|| format!("no fault is called {text}; there are {}", known()))
    }
}

/// Between whom a network is bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Between {
    /// All processes and the servers of a kind.
    All(Kind),
    /// One member and the servers of a kind.
    One(usize, Kind),
    /// Those who send and the processes that take in.
    Senders,
    /// Phones and the processes that hold sockets.
    Phones,
    /// A server of a kind and the others that look for it, or all of them.
    Servers(Kind, Option<usize>),
}

impl Between {
    fn set(self, cluster: &Cluster, mode: Mode) {
        match self {
            Self::All(kind) => cluster.ways.set(None, kind, mode),
            Self::One(member, kind) => cluster.ways.set(Some(member), kind, mode),
            Self::Senders => cluster.front.set(mode),
            Self::Phones => cluster.sockets.set(mode),
            Self::Servers(kind, node) => cluster.ways.set_peers(kind, node, mode),
        }
    }

    fn told(self, cluster: &Cluster) -> String {
        match self {
            Self::All(kind) => format!("all and {kind:?}"),
            Self::One(member, kind) => {
                let name = cluster.members.get(member).map_or("nobody", |member| &member.name);
                format!("{name} and {kind:?}")
            }
            Self::Senders => "senders and doors".to_owned(),
            Self::Phones => "phones and gateways".to_owned(),
            Self::Servers(kind, Some(node)) => format!("{kind:?} {node} and those that look for it"),
            Self::Servers(kind, None) => format!("all servers of {kind:?}"),
        }
    }
}

/// One fault, with where it strikes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9` of a member, which is away for so long, ms.
    Kill(usize, u64),
    /// A member is asked to end, and started again.
    Stop(usize),
    /// A member is held still.
    Freeze(usize),
    /// All members, one after the other.
    Rolling,
    /// More, then fewer.
    Scale,
    /// A server is killed and started again after so long, ms.
    KillServer(Kind, usize, u64),
    /// A server is held still.
    FreezeServer(Kind, usize),
    /// A bad network.
    Network(Between, Mode),
}

impl Fault {
    /// One of a class.
    pub fn choose(class: Class, cluster: &Cluster, rng: &mut StdRng) -> Self {
        let any = |rng: &mut StdRng, role: Role| cluster.of(role).choose(rng).copied().unwrap_or_default();
        let away = |rng: &mut StdRng| rng.random_range(AWAY_MS);
        let node = |rng: &mut StdRng, kind: Kind| rng.random_range(1..=cluster.nodes(kind).count());
        let mode = |rng: &mut StdRng| {
            let modes = [Mode::Slow(Duration::from_millis(50)), Mode::Thin(200_000), Mode::Silent, Mode::Cut];
            modes.choose(rng).copied().unwrap_or(Mode::Cut)
        };
        match class {
            Class::KillIngest => Self::Kill(any(rng, Role::Ingest), away(rng)),
            Class::KillPipeline => Self::Kill(any(rng, Role::Pipeline), away(rng)),
            Class::KillGateway => Self::Kill(any(rng, Role::Gateway), away(rng)),
            Class::Stop => Self::Stop(rng.random_range(0..cluster.members.len().max(1))),
            Class::FreezeIngest => Self::Freeze(any(rng, Role::Ingest)),
            Class::FreezePipeline => Self::Freeze(any(rng, Role::Pipeline)),
            Class::FreezeGateway => Self::Freeze(any(rng, Role::Gateway)),
            Class::Rolling => Self::Rolling,
            Class::Scale => Self::Scale,
            Class::KillKafka => Self::KillServer(Kind::Kafka, node(rng, Kind::Kafka), away(rng)),
            Class::KillHistory => Self::KillServer(Kind::History, node(rng, Kind::History), away(rng)),
            Class::KillRedis => Self::KillServer(Kind::Redis, 1, away(rng)),
            Class::FreezeKafka => Self::FreezeServer(Kind::Kafka, node(rng, Kind::Kafka)),
            Class::FreezeHistory => Self::FreezeServer(Kind::History, node(rng, Kind::History)),
            Class::FreezeRedis => Self::FreezeServer(Kind::Redis, 1),
            Class::Network => {
                let kinds: Vec<_> = cluster.ways.pairs().into_iter().map(|(_, kind)| kind).collect();
                Self::Network(Between::All(kinds.choose(rng).copied().unwrap_or(Kind::Redis)), mode(rng))
            }
            Class::NetworkPair => {
                let (member, kind) = cluster.ways.pairs().choose(rng).copied().unwrap_or((0, Kind::Redis));
                Self::Network(Between::One(member, kind), mode(rng))
            }
            Class::NetworkClients => {
                let between = if rng.random() { Between::Senders } else { Between::Phones };
                Self::Network(between, mode(rng))
            }
            Class::NetworkServers => {
                let kind = cluster.ways.peers().choose(rng).copied().unwrap_or(Kind::Kafka);
                let one = rng.random::<bool>().then(|| node(rng, kind));
                Self::Network(Between::Servers(kind, one), mode(rng))
            }
        }
    }

    /// Makes it and undoes it; what befell whom.
    pub async fn befall(&self, cluster: &mut Cluster, lasting_s: u64) -> Result<String> {
        let lasting = Duration::from_secs(lasting_s);
        let name = |cluster: &Cluster, n: usize| cluster.members.get(n).map(|member| member.name.clone());
        match *self {
            Self::Kill(n, away_ms) => {
                let member = cluster.members.get_mut(n).context("nobody to kill")?;
                member.kill();
                tokio::time::sleep(Duration::from_millis(away_ms)).await;
                member.start().await?;
                Ok(format!("kill -9 {}, away for {away_ms} ms", member.name))
            }
            Self::Stop(n) => {
                let member = cluster.members.get_mut(n).context("nobody to stop")?;
                anyhow::ensure!(member.stop().await, "{} did not end well", member.name);
                member.start().await?;
                Ok(format!("SIGTERM {}", member.name))
            }
            Self::Freeze(n) => {
                let member = cluster.members.get(n).context("nobody to freeze")?;
                member.freeze()?;
                tokio::time::sleep(lasting).await;
                member.thaw()?;
                Ok(format!("SIGSTOP {} for {lasting_s} s", member.name))
            }
            Self::Rolling => {
                for n in 0..cluster.members.len() {
                    let ended = cluster.members[n].stop().await;
                    anyhow::ensure!(ended, "{} did not end well", name(cluster, n).unwrap_or_default());
                    cluster.members[n].start().await?;
                }
                Ok("rolling restart of every process".to_owned())
            }
            Self::Scale => {
                let before = cluster.members.len();
                for role in [Role::Pipeline, Role::Pipeline, Role::Gateway] {
                    let n = cluster.add(role)?;
                    cluster.members[n].start().await?;
                }
                tokio::time::sleep(lasting / 2).await;
                while cluster.members.len() > before {
                    if let Some(mut member) = cluster.members.pop() {
                        anyhow::ensure!(member.stop().await, "{} did not end well", member.name);
                    }
                }
                Ok("two more pipelines and a gateway, and gone again".to_owned())
            }
            Self::KillServer(kind, node, away_ms) => {
                let nodes = cluster.nodes(kind);
                nodes.kill(node).await?;
                tokio::time::sleep(Duration::from_millis(away_ms)).await;
                nodes.restart(node).await?;
                Ok(format!("kill -9 {kind:?} {node}, away for {away_ms} ms and its start"))
            }
            Self::FreezeServer(kind, node) => {
                let nodes = cluster.nodes(kind);
                nodes.freeze(node)?;
                tokio::time::sleep(lasting).await;
                nodes.thaw(node)?;
                Ok(format!("SIGSTOP {kind:?} {node} for {lasting_s} s"))
            }
            Self::Network(between, mode) => {
                between.set(cluster, mode);
                tokio::time::sleep(lasting).await;
                between.set(cluster, Mode::Open);
                Ok(format!("the network between {} {mode:?} for {lasting_s} s", between.told(cluster)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_is_named_and_read_back() {
        for class in Class::ALL {
            assert_eq!(class.word().parse(), Ok(class));
        }
        assert!("kill-everybody".parse::<Class>().unwrap_err().contains("kill-gateway"));
    }
}
