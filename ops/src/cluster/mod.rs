//! A whole set-up on this machine: real Kafka, Cassandra and Redis, and any number of processes of each role, as many machines
//! would run them. What drills break, benchmarks load and tests ask.
//!
//! Clients reach the roles through two load balancers, one in front of those who take messages in and one in front of those
//! who hold sockets. Where a plan asks for it, a bad network can be put between each process and each server, and between
//! servers of one kind.

mod proxy;
mod servers;
mod ways;

use std::{net::Ipv4Addr, path::PathBuf};

use anyhow::{Context, Result, ensure};
use ingest::auth::{NewToken, Permissions, Who, mint};
use rand::Rng;
use rustix::process::{Pid, Signal, kill_process};
use schemas::{Tenant, Timestamp};

pub use proxy::{Mode, Proxy};
pub use servers::{Kind, Nodes};
pub use ways::Ways;

use crate::{
    child::{Launch, Server, free_ports},
    compose::Role,
};

/// What to start.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where the scripts are that start servers.
    pub stack: PathBuf,
    /// The binary.
    pub program: PathBuf,
    /// The folder for everything; it must not exist or be empty.
    pub folder: PathBuf,
    /// Processes of each role.
    pub roles: Vec<(Role, usize)>,
    /// Kafka brokers.
    pub kafka: usize,
    /// Cassandra nodes.
    pub cassandra: usize,
    /// Settings of every process, as `--set` takes them.
    pub set: Vec<String>,
    /// Whether a bad network can be put between processes and servers, and between servers of one kind ([`Ways`]).
    pub proxied: bool,
    /// Whether servers are compiled for long runs.
    pub long: bool,
    /// Whether a node of the history waits for its disk before it answers a write, as `--sync` of its script takes it: `group`,
    /// or with `periodic`, its own default, not (docs/cql.md says what survives).
    pub sync: &'static str,
}

impl Plan {
    /// One server of each kind and one process of each role, the scripts of this checkout.
    pub fn small(program: PathBuf, stack: PathBuf, folder: PathBuf) -> Self {
        let roles = vec![(Role::Ingest, 1), (Role::Pipeline, 1), (Role::Gateway, 1)];
        let set = Vec::new();
        Self { stack, program, folder, roles, kafka: 1, cassandra: 1, set, proxied: false, long: false, sync: "group" }
    }

    /// How many processes of a role.
    pub fn count(mut self, role: Role, count: usize) -> Self {
        self.roles.retain(|(known, _)| *known != role);
        self.roles.push((role, count));
        self
    }
}

/// A process of a role.
pub struct Member {
    /// Its name, e.g. `gateway-2`; its folder and its log have it too.
    pub name: String,
    /// What it does.
    pub role: Role,
    launch: Launch,
    server: Option<Server>,
}

impl Member {
    /// The process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Server::pid)
    }

    /// Whether it runs.
    pub fn runs(&self) -> bool {
        self.server.is_some()
    }

    /// The public door, as `host:port`; empty where the role has none.
    pub fn listen(&self) -> String {
        if self.role.is_public() { format!("127.0.0.1:{}", self.launch.ports.0) } else { String::new() }
    }

    /// The administrators' door, as `host:port`.
    pub fn admin(&self) -> String {
        format!("127.0.0.1:{}", self.launch.ports.1)
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.launch.log()).unwrap_or_default()
    }

    /// Starts it, and waits until it is ready.
    pub async fn start(&mut self) -> Result<()> {
        ensure!(self.server.is_none(), "{} runs already", self.name);
        let started = Server::launch(self.launch.clone()).await;
        self.server = Some(started.with_context(|| format!("starting {}", self.name))?);
        Ok(())
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill();
        }
    }

    /// Asks it to end and waits; whether it ended well.
    pub async fn stop(&mut self) -> bool {
        match self.server.take() {
            Some(server) => server.stop().await == Some(0),
            None => true,
        }
    }

    /// Holds it still, as a machine that swaps or a pause of a virtual machine does.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        Ok(kill_process(pid.with_context(|| format!("{} does not run", self.name))?, signal)?)
    }
}

/// A running set-up. Everything ends when it is dropped.
pub struct Cluster {
    /// The processes.
    pub members: Vec<Member>,
    /// In front of those who take messages in.
    pub front: Proxy,
    /// In front of those who hold sockets.
    pub sockets: Proxy,
    /// The networks between processes and servers and between servers, where the plan asked for ones that can be bad.
    pub ways: Ways,
    /// The log's servers.
    pub kafka: Nodes,
    /// The history's servers.
    pub cassandra: Nodes,
    /// The server of presence.
    pub redis: Nodes,
    plan: Plan,
    env: Vec<(String, String)>,
    secret: String,
    http: reqwest::Client,
}

impl Cluster {
    /// Starts servers, makes topics and tables, starts the processes, and waits until all are ready.
    pub async fn start(plan: Plan) -> Result<Self> {
        let (stack, folder) = (&plan.stack, &plan.folder);
        let (front_port, sockets_port) = free_ports()?;
        let names: Vec<_> = plan.roles.iter().flat_map(|(role, count)| (1..=*count).map(|n| (*role, n))).collect();
        let ports = Ways::kafka_ports(&plan, names.len())?;
        let listeners: Vec<String> = ports.iter().map(|(own, shown)| format!("{own}:{shown}")).collect();
        let (mut ways, peers) = Ways::among(&plan).await?;
        let more = |of: &[String]| plan.long.then(|| "--long".to_owned()).into_iter().chain(of.to_vec()).collect();
        let (mut kafka_more, mut cassandra_more): (Vec<_>, Vec<_>) = (more(&peers.kafka), more(&peers.cassandra));
        cassandra_more.extend(["--sync", plan.sync].map(str::to_owned));
        kafka_more.extend(listeners.into_iter().flat_map(|ports| ["--listener".to_owned(), ports]));
        let folders = ["kafka", "cassandra", "redis"].map(|name| folder.join(name));
        let (kafka, cassandra, redis) = tokio::try_join!(
            Nodes::start(stack, "kafka", &folders[0], plan.kafka, &kafka_more),
            Nodes::start(stack, "cassandra", &folders[1], plan.cassandra, &cassandra_more),
            Nodes::start(stack, "redis", &folders[2], 1, &[]),
        )?;
        let secret: String = (0..43).map(|_| char::from(rand::rng().sample(rand::distr::Alphanumeric))).collect();
        let copies = plan.cassandra.min(3);
        let settings = |hosts: &dyn Fn(Kind) -> String| {
            let (log, history, presence) = (hosts(Kind::Kafka), hosts(Kind::History), hosts(Kind::Redis));
            vec![
                ("ESH3AR_STORES__LOG".to_owned(), format!("kafka://{log}")),
                ("ESH3AR_STORES__HISTORY".to_owned(), format!("scylla://{history}/esh3ar?replication={copies}")),
                ("ESH3AR_STORES__PRESENCE".to_owned(), format!("redis://{presence}")),
                ("ESH3AR_AUTH__SECRET".to_owned(), secret.clone()),
            ]
        };
        let nodes = |kind: Kind| match kind {
            Kind::Kafka => &kafka,
            Kind::History => &cassandra,
            Kind::Redis => &redis,
        };
        let env = settings(&|kind| nodes(kind).hosts());
        let mut members = Vec::new();
        for (place, (role, n)) in names.into_iter().enumerate() {
            if plan.proxied {
                ways.lay(place, nodes, ports.get(place).copied()).await?;
            }
            let own = settings(&|kind| ways.address(place, kind).unwrap_or_else(|| nodes(kind).hosts()));
            members.push(member(&plan, role, n, &own)?);
        }
        let doors = |role: Role| members.iter().filter(|m| m.role == role).map(Member::listen).collect::<Vec<_>>();
        let front = Proxy::start((Ipv4Addr::LOCALHOST, front_port), doors(Role::Ingest)).await?;
        let sockets = Proxy::start((Ipv4Addr::LOCALHOST, sockets_port), doors(Role::Gateway)).await?;
        let http = reqwest::Client::builder().no_proxy().timeout(std::time::Duration::from_secs(30)).build()?;
        let mut cluster = Self { members, front, sockets, ways, kafka, cassandra, redis, plan, env, secret, http };
        let wanted: Vec<String> = cluster.plan.set.iter().flat_map(|set| ["--set".to_owned(), set.clone()]).collect();
        for command in [["topics", "create"], ["schema", "apply"]] {
            cluster.command(&command, &wanted).await?;
        }
        for member in &mut cluster.members {
            member.start().await?;
        }
        Ok(cluster)
    }

    /// The servers of a kind.
    pub fn nodes(&self, kind: Kind) -> &Nodes {
        match kind {
            Kind::Kafka => &self.kafka,
            Kind::History => &self.cassandra,
            Kind::Redis => &self.redis,
        }
    }

    /// Runs a command of the binary against this set-up; what it printed.
    pub async fn command(&self, command: &[&str], more: &[String]) -> Result<String> {
        let mut run = tokio::process::Command::new(&self.plan.program);
        run.args(command).args(more).envs(self.env.iter().cloned());
        let output = run.output().await?;
        let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "esh3ar {} failed: {said}{errors}", command.join(" "));
        Ok(said.into_owned())
    }

    /// Adds a process of a role that is not started yet; its place among the members. No load balancer knows of it.
    pub fn add(&mut self, role: Role) -> Result<usize> {
        let n = self.members.iter().filter(|member| member.role == role).count() + 1;
        self.members.push(member(&self.plan, role, n, &self.env)?);
        Ok(self.members.len() - 1)
    }

    /// The places of a role's processes among the members.
    pub fn of(&self, role: Role) -> Vec<usize> {
        (0..self.members.len()).filter(|n| self.members[*n].role == role).collect()
    }

    /// The settings of the environment that lead here.
    pub fn env(&self) -> &[(String, String)] {
        &self.env
    }

    /// A token of a tenant, for a day.
    pub fn token(&self, tenant: &str, who: Who, now: Timestamp) -> Result<String> {
        let business = matches!(who, Who::Server | Who::Business(_));
        let admin = matches!(who, Who::Admin);
        let can = Permissions { send: business, chat: business, broadcast: business, admin };
        let tenant = Tenant::parse(tenant).context("a tenant")?;
        Ok(mint(self.secret.as_bytes(), &NewToken { tenant, who, can, ttl_ms: 24 * 3_600_000 }, now)?)
    }

    /// What one administrators' door answers; of the first member that does.
    pub async fn admin(&self, path: &str, now: Timestamp) -> Result<serde_json::Value> {
        let token = self.token("operators", Who::Admin, now)?;
        let mut last = None;
        for member in self.members.iter().filter(|member| member.runs()) {
            let asked = self.http.get(format!("http://{}{path}", member.admin())).bearer_auth(&token).send().await;
            match asked.and_then(reqwest::Response::error_for_status) {
                Ok(answer) => return Ok(answer.json().await?),
                Err(why) => last = Some(why),
            }
        }
        Err(last.map_or_else(|| anyhow::anyhow!("no process runs"), anyhow::Error::from))
    }

    /// Messages that wait in the lanes.
    pub async fn waiting(&self, now: Timestamp) -> Result<u64> {
        let lanes = self.admin("/admin/v1/lanes", now).await?;
        Ok(lanes["lanes"].as_array().into_iter().flatten().filter_map(|lane| lane["waiting"].as_u64()).sum())
    }

    /// What a process says of its readiness, with the status of the answer.
    pub async fn ready(&self, member: usize) -> Result<(u16, serde_json::Value)> {
        let asked = self.http.get(format!("http://{}/health/ready", self.members[member].admin())).send().await?;
        Ok((asked.status().as_u16(), asked.json().await?))
    }

    /// Stops everything, gently.
    pub async fn stop(mut self) -> Result<()> {
        for member in &mut self.members {
            member.stop().await;
        }
        tokio::try_join!(self.kafka.stop(), self.cassandra.stop(), self.redis.stop()).map(drop)
    }
}

fn member(plan: &Plan, role: Role, n: usize, env: &[(String, String)]) -> Result<Member> {
    let name = format!("{}-{n}", role.word());
    let mut launch = Launch::new(plan.program.clone(), &plan.folder.join(&name));
    (launch.role, launch.ports, launch.env) = (role, free_ports()?, env.to_vec());
    launch.set = plan.set.clone();
    launch.set.push(format!("node={name}"));
    Ok(Member { name, role, launch, server: None })
}
