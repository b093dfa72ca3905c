//! A whole set-up for tests: real servers, processes of each role, and people who knock at one of them or at a load balancer.
//! That of `ops`, which answers tests by panicking with what was said.

use std::{
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
};

use ingest::auth::Who;
use ops::{
    cluster::{self, Plan, Proxy},
    compose::Role,
};
use schemas::{Phone as Number, Timestamp};
use serde_json::Value;

use super::{Business, Person, Phone, binary};

/// Where the scripts are that start servers.
pub fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops/stack")
}

/// One server of each kind and one process of each role, in a new folder.
pub fn small(folder: &Path) -> Plan {
    let mut plan = Plan::small(binary(), scripts(), folder.to_owned());
    plan.set = [
        "limits.store.partitions=6",
        "limits.door.server_per_second=1000000",
        "limits.door.system_per_second=1000000",
        "limits.door.lane_slow=1000000",
        "limits.door.lane_full=2000000",
    ]
    .map(str::to_owned)
    .to_vec();
    plan
}

/// A running set-up, and the folder that it has.
pub struct Cluster {
    cluster: cluster::Cluster,
    _folder: tempfile::TempDir,
}

impl Deref for Cluster {
    type Target = cluster::Cluster;
    fn deref(&self) -> &cluster::Cluster {
        &self.cluster
    }
}

impl DerefMut for Cluster {
    fn deref_mut(&mut self) -> &mut cluster::Cluster {
        &mut self.cluster
    }
}

fn now() -> Timestamp {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    Timestamp(now.as_millis() as i64)
}

impl Cluster {
    /// Starts what a plan says.
    pub async fn start(plan: impl FnOnce(&Path) -> Plan) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let started = cluster::Cluster::start(plan(folder.path())).await;
        let cluster = started.unwrap_or_else(|why| panic!("the set-up did not start: {why:#}"));
        Self { cluster, _folder: folder }
    }

    /// A token for `server`, `admin`, `+NUMBER`, or a business user's name, with or without `business:` in front.
    pub fn token_of(&self, tenant: &str, who: &str) -> String {
        let who = match who {
            "server" => Who::Server,
            "admin" => Who::Admin,
            _ if who.starts_with('+') => Who::Mobile(Number::from_stored(who).expect("a number")),
            _ => Who::Business(who.trim_start_matches("business:").parse().expect("a name")),
        };
        self.cluster.token(tenant, who, now()).expect("a token")
    }

    /// A business of tenant `acme` at the load balancer.
    pub fn business(&self) -> Business {
        Business::at(&format!("http://{}", self.front.address), self.token_of("acme", "server"))
    }

    /// The same at one process.
    pub fn business_at(&self, member: usize) -> Business {
        Business::at(&format!("http://{}", self.members[member].listen()), self.token_of("acme", "server"))
    }

    /// Somebody of tenant `acme` who chats over HTTP, at the load balancer of those who take in or of those who hold sockets.
    pub fn person(&self, name: &str, at: &Proxy) -> Person {
        Person::at(&format!("http://{}", at.address), name, self.token_of("acme", name))
    }

    /// A device of somebody of tenant `acme` at the load balancer.
    pub fn device(&self, name: &str, device: &str) -> Phone {
        Phone::at(&format!("http://{}", self.sockets.address), self.token_of("acme", name), device)
    }

    /// A phone of tenant `acme` at the load balancer.
    pub fn phone(&self, number: &str) -> Phone {
        self.device(number, "phone")
    }

    /// The same at one process.
    pub fn phone_at(&self, member: usize, number: &str) -> Phone {
        Phone::at(&format!("http://{}", self.members[member].listen()), self.token_of("acme", number), "phone")
    }

    /// The n-th process of a role, counted from 0, by its place among the members.
    pub fn nth(&self, role: Role, n: usize) -> usize {
        self.of(role)[n]
    }

    /// What an administrators' door answers.
    pub async fn ask(&self, path: &str) -> Value {
        self.cluster.admin(path, now()).await.unwrap_or_else(|why| panic!("{path}: {why:#}"))
    }

    /// Messages that wait in the lanes.
    pub async fn waiting(&self) -> u64 {
        self.cluster.waiting(now()).await.unwrap_or_else(|why| panic!("what waits: {why:#}"))
    }

    /// What a process tells of its metrics.
    pub async fn metrics(&self, member: usize) -> String {
        let told = reqwest::get(format!("http://{}/metrics", self.members[member].admin())).await;
        told.expect("an answer").text().await.expect("a text")
    }

    /// What the members logged, for a failure's message.
    pub fn logs(&self) -> String {
        let tail = |log: &str| {
            let lines: Vec<_> = log.lines().collect();
            lines[lines.len().saturating_sub(20)..].join("\n")
        };
        self.members.iter().map(|member| format!("--- {}\n{}\n", member.name, tail(&member.log()))).collect()
    }
}
