//! The networks between the processes and the servers of a set-up: one for each pair, each of which can be bad by itself.
//!
//! There is none to servers of which there are several: they tell their clients of each other, and their clients go there. Nor
//! is there one for processes that are added later. Between two of our own processes everything goes by way of Redis.

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

/// All of them.
#[derive(Default)]
pub struct Ways(Vec<Way>);

impl Ways {
    /// Ports of a broker for so many processes: its own, and the one that it tells them to come to, which is the network's.
    pub(super) fn kafka_ports(plan: &Plan, processes: usize) -> Result<Vec<(u16, u16)>> {
        let laid = if plan.proxied && plan.kafka == 1 { processes } else { 0 };
        (0..laid).map(|_| Ok(free_ports()?)).collect()
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
                (Kind::Kafka, Some((own, shown))) => Proxy::start(shown, vec![format!("127.0.0.1:{own}")]).await?,
                (Kind::History | Kind::Redis, _) if nodes(kind).count() == 1 => {
                    Proxy::start(0, nodes(kind).addresses.clone()).await?
                }
                _ => continue,
            };
            self.0.push(Way { member, kind, proxy });
        }
        Ok(())
    }

    /// Where a process finds a server, if a network is in between.
    pub(super) fn address(&self, member: usize, kind: Kind) -> Option<String> {
        self.0.iter().find(|way| way.member == member && way.kind == kind).map(|way| way.proxy.address.clone())
    }

    /// The pairs that have one, each a process's place among the members and a kind of server.
    pub fn pairs(&self) -> Vec<(usize, Kind)> {
        self.0.iter().map(|way| (way.member, way.kind)).collect()
    }

    /// Makes those to a kind of server good or bad: that of one process, or of all.
    pub fn set(&self, member: Option<usize>, kind: Kind, mode: Mode) {
        let asked = |way: &&Way| way.kind == kind && member.is_none_or(|member| way.member == member);
        self.0.iter().filter(asked).for_each(|way| way.proxy.set(mode));
    }
}
