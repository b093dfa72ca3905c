//! The networks of a set-up, each of which can be bad by itself: one between each process and the server of each kind, and one
//! into each server of a kind of which there are several, by which its peers reach it.
//!
//! There is none from processes to servers of which there are several: they tell their clients of each other, and their clients
//! go there. Nor is there one for processes that are added later. Between two of our own processes everything goes by way of Redis.
//! What a server says to its peers goes by their ways: one that nobody reaches still reaches the others.

use std::net::Ipv4Addr;

use anyhow::Result;

use super::{Kind, Mode, Nodes, Plan, Proxy};
use crate::child::free_ports;

/// One of them.
struct Way {
    /// The process's place among the members.
    member: usize,
    kind: Kind,
    proxy: Proxy,
}

/// One into a server.
struct PeerWay {
    kind: Kind,
    /// Counted from 1.
    node: usize,
    proxy: Proxy,
}

/// What the scripts that start servers are to be told of the ways between them.
pub(super) struct PeerArguments {
    pub(super) kafka: Vec<String>,
    pub(super) cassandra: Vec<String>,
}

/// All of them.
#[derive(Default)]
pub struct Ways {
    members: Vec<Way>,
    peers: Vec<PeerWay>,
}

impl Ways {
    /// Ports of a broker for so many processes: its own, and the one that it tells them to come to, which is the network's.
    pub(super) fn kafka_ports(plan: &Plan, processes: usize) -> Result<Vec<(u16, u16)>> {
        let laid = if plan.proxied && plan.kafka == 1 { processes } else { 0 };
        (0..laid).map(|_| Ok(free_ports()?)).collect()
    }

    /// Lays those between servers of one kind, before there are any.
    pub(super) async fn among(plan: &Plan) -> Result<(Self, PeerArguments)> {
        let (mut peers, mut told) = (Vec::new(), PeerArguments { kafka: Vec::new(), cassandra: Vec::new() });
        let laid = |count: usize| if plan.proxied && count > 1 { count } else { 0 };
        for node in 1..=laid(plan.kafka) {
            let mut ports = Vec::new();
            // To the broker, and to the controller.
            for _ in 0..2 {
                let (own, shown) = free_ports()?;
                let proxy = Proxy::start((Ipv4Addr::LOCALHOST, shown), vec![format!("127.0.0.1:{own}")]).await?;
                peers.push(PeerWay { kind: Kind::Kafka, node, proxy });
                ports.push(format!("{own}:{shown}"));
            }
            told.kafka.extend(["--peer".to_owned(), ports.join(",")]);
        }
        let (port, _) = free_ports()?;
        for node in 1..=laid(plan.cassandra) {
            let at = (Ipv4Addr::new(127, 0, 1, u8::try_from(node)?), port);
            let proxy = Proxy::start(at, vec![format!("127.0.0.{node}:{port}")]).await?;
            peers.push(PeerWay { kind: Kind::History, node, proxy });
            told.cassandra = vec!["--peers".to_owned(), port.to_string()];
        }
        Ok((Self { members: Vec::new(), peers }, told))
    }

    /// Lays those of one process.
    pub(super) async fn lay<'a>(
        &mut self,
        member: usize,
        nodes: impl Fn(Kind) -> &'a Nodes,
        kafka: Option<(u16, u16)>,
    ) -> Result<()> {
        for kind in Kind::ALL {
            let proxy = match (kind, kafka) {
                (Kind::Kafka, Some((own, shown))) => {
                    Proxy::start((Ipv4Addr::LOCALHOST, shown), vec![format!("127.0.0.1:{own}")]).await?
                }
                (Kind::History | Kind::Redis, _) if nodes(kind).count() == 1 => {
                    Proxy::start((Ipv4Addr::LOCALHOST, 0), nodes(kind).addresses.clone()).await?
                }
                _ => continue,
            };
            self.members.push(Way { member, kind, proxy });
        }
        Ok(())
    }

    /// Where a process finds a server, if a network is in between.
    pub(super) fn address(&self, member: usize, kind: Kind) -> Option<String> {
        self.members.iter().find(|way| way.member == member && way.kind == kind).map(|way| way.proxy.address.clone())
    }

    /// The pairs that have one, each a process's place among the members and a kind of server.
    pub fn pairs(&self) -> Vec<(usize, Kind)> {
        self.members.iter().map(|way| (way.member, way.kind)).collect()
    }

    /// Makes those to a kind of server good or bad: that of one process, or of all.
    pub fn set(&self, member: Option<usize>, kind: Kind, mode: Mode) {
        let asked = |way: &&Way| way.kind == kind && member.is_none_or(|member| way.member == member);
        self.members.iter().filter(asked).for_each(|way| way.proxy.set(mode));
    }

    /// The kinds of servers of which there are several, with a way into each.
    pub fn peers(&self) -> Vec<Kind> {
        Kind::ALL.into_iter().filter(|kind| self.peers.iter().any(|way| way.kind == *kind)).collect()
    }

    /// Makes the ways by which servers of a kind reach one of them good or bad, or those into each of them.
    pub fn set_peers(&self, kind: Kind, node: Option<usize>, mode: Mode) {
        let asked = |way: &&PeerWay| way.kind == kind && node.is_none_or(|node| way.node == node);
        self.peers.iter().filter(asked).for_each(|way| way.proxy.set(mode));
    }
}
