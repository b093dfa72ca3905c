//! One process of each role on real servers: a message goes in at one and comes out at another, each may be killed, what is
//! away is told, and what cannot work is refused.

use std::{process::Command, time::Duration};

use ops::{
    cluster::{Kind, Mode, Plan},
    compose::Role,
};
use serde_json::{Value, json};
use tests::harness::{
    binary,
    cluster::{Cluster, small},
    eventually, number,
};

async fn one_of_each() -> Cluster {
    Cluster::start(|folder| small(folder).count(Role::Ingest, 2).count(Role::Gateway, 2).count(Role::Admin, 1)).await
}

/// R7.1, R7.2, R7.7: in at one ingest, out at a phone on another machine's gateway, acknowledged, and its status read at a third.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_goes_in_at_one_process_and_comes_out_at_another() {
    let mut cluster = one_of_each().await;
    let (first, second) = (cluster.nth(Role::Ingest, 0), cluster.nth(Role::Ingest, 1));
    let mut phones = [0, 1].map(|n| cluster.phone_at(cluster.nth(Role::Gateway, n), &number(n as u32)));
    for phone in &mut phones {
        phone.insist().await;
    }
    let business = cluster.business_at(first);
    let mut sent = Vec::new();
    for n in 0..20 {
        sent.push(business.send(&number(n % 2), &format!("{n}")).await);
    }
    for (n, phone) in phones.iter_mut().enumerate() {
        phone.until_seen(10).await;
        let wanted: Vec<_> = (0..20).filter(|k| k % 2 == n).map(|k| k.to_string()).collect();
        assert_eq!(phone.contents(), wanted, "{}", cluster.logs());
    }
    for message in &sent {
        // Any node answers a read: another ingest, and a gateway.
        cluster.business_at(second).until(&message.id, "delivered").await;
    }
    let gateway = cluster.business_at(cluster.nth(Role::Gateway, 0));
    assert_eq!(gateway.status(&sent[0].id).await, "delivered");
    assert_eq!(gateway.post("/v1/messages", &json!({ "to": number(1), "content": "x" })).await.0, 405);
    let (status, body) = cluster.business_at(first).get("/v1/ws").await;
    assert_eq!(status, 404, "{body}");

    // Both sockets are on nodes that everybody knows of; the admin role answers for all.
    let nodes = business.get("/v1/nodes").await.1;
    assert_eq!(nodes["nodes"].as_array().map(Vec::len), Some(2), "{nodes}");
    // Nodes tell their load with their heartbeat.
    eventually("two sessions to be told", async || {
        let lanes = cluster.ask("/admin/v1/lanes").await;
        (lanes["sessions"] == 2).then_some(())
    })
    .await;
    let books = cluster.ask("/admin/v1/books").await;
    assert_eq!((&books["balanced"], &books["total"]["delivered"]), (&json!(true), &json!(20)), "{books}");

    // R6.1: every process may be killed; what was sent meanwhile arrives, in order, once.
    let (business, mut phone) = (cluster.business(), cluster.phone(&number(7)));
    phone.insist().await;
    let mut count = 0;
    for n in 0..cluster.members.len() {
        let name = cluster.members[n].name.clone();
        cluster.members[n].kill();
        for k in 0..5 {
            let content = format!("{name}.{k}");
            business.insist(&number(7), &content, &content).await;
        }
        cluster.members[n].start().await.unwrap();
        count += 5;
        phone.until_seen(count).await;
    }
    assert_eq!((phone.received.len(), phone.repeats_in_session), (count, 0));
    let ends = |n: usize| format!(".{}", n % 5);
    assert!(phone.contents().iter().enumerate().all(|(n, said)| said.ends_with(&ends(n))), "{:?}", phone.contents());

    // R6.6: SIGTERM ends each of them well, and takes the word of its endpoint back.
    for member in &mut cluster.members {
        let name = member.name.clone();
        assert!(member.stop().await, "{name}: {}", member.log());
    }
}

/// Rule 5: a gateway that is held still for longer than anybody waits for it finds what it missed by itself, also where nobody
/// dares to call it yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_was_held_still_finds_what_it_missed() {
    let cluster = Cluster::start(|folder| {
        let mut plan = small(folder);
        plan.set.extend(["limits.flow.deliver_ms=500", "limits.sink.node_open_ms=3600000"].map(str::to_owned));
        plan
    });
    let cluster = cluster.await;
    let gateway = cluster.nth(Role::Gateway, 0);
    let (business, mut phone) = (cluster.business(), cluster.phone_at(gateway, &number(1)));
    phone.insist().await;
    business.send(&number(1), "before").await;
    phone.until_seen(1).await;
    cluster.members[gateway].freeze().unwrap();
    let mut sent = vec!["before".to_owned()];
    eventually("the node is left alone", async || {
        sent.push(format!("{}", sent.len()));
        business.send(&number(1), &sent[sent.len() - 1]).await;
        let metrics = cluster.metrics(cluster.nth(Role::Pipeline, 0)).await;
        let is_open = |line: &str| line.starts_with("esh3ar_breaker_open{breaker=\"node:") && line.ends_with(" 1");
        metrics.lines().any(is_open).then_some(())
    })
    .await;
    eventually("all is in the history", async || {
        let books = cluster.ask("/admin/v1/books").await;
        (books["total"]["unrecorded"] == 0 && books["total"]["accepted"] == sent.len()).then_some(())
    })
    .await;
    cluster.members[gateway].thaw().unwrap();
    phone.until_seen(sent.len()).await;
    assert_eq!(phone.contents(), sent);
}

/// Rule 5: a pipeline that Redis is away for alone parks what is for other nodes, and the word that they are to compare dies with it:
/// whoever takes its partitions over has them look.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_pipeline_owed_to_nodes_when_it_died_is_shown_by_the_next_owner() {
    const PHONES: u32 = 8;
    let plan = |folder: &std::path::Path| Plan { proxied: true, ..small(folder).count(Role::Pipeline, 2) };
    let mut cluster = Cluster::start(plan).await;
    let mut phones: Vec<_> = (0..PHONES).map(|n| cluster.phone(&number(n))).collect();
    for phone in &mut phones {
        phone.insist().await;
    }
    let (business, blind) = (cluster.business(), cluster.nth(Role::Pipeline, 0));
    eventually("both to have their share", async || {
        let owns = |n| cluster.members[cluster.nth(Role::Pipeline, n)].log().contains("partitions taken over");
        (owns(0) && owns(1)).then_some(())
    })
    .await;
    cluster.ways.set(Some(blind), Kind::Redis, Mode::Cut);
    ready(&cluster, blind, "presence", "down").await;
    for n in 0..PHONES {
        business.send(&number(n), "hello").await;
    }
    eventually("all of it is done with, and some is parked", async || {
        let metrics = cluster.metrics(blind).await;
        let parked = metrics.lines().find(|line| line.starts_with("esh3ar_parked_total{lane=\"normal\"}"));
        let parked = parked.is_some_and(|line| !line.ends_with(" 0"));
        let books = cluster.ask("/admin/v1/books").await;
        let recorded = books["total"]["unrecorded"] == 0 && books["total"]["accepted"] == PHONES;
        (parked && recorded && cluster.waiting().await == 0).then_some(())
    })
    .await;
    cluster.members[blind].kill();
    for phone in &mut phones {
        phone.until_seen(1).await;
    }
}

/// R6.2, rule 11: without the history the door takes messages in, reads are refused with when to come back, and the pipeline
/// waits; without presence nothing that needs no other node stops. Each says so, by name, and comes back by itself.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_away_is_told_and_stops_only_what_needs_it() {
    let proxied = |plan: Plan| Plan { proxied: true, ..plan };
    let cluster = Cluster::start(|folder| proxied(small(folder))).await;
    let business = cluster.business();
    let mut phone = cluster.phone(&number(1));
    phone.insist().await;
    business.send(&number(1), "before").await;
    phone.until_seen(1).await;
    let of = |role| cluster.nth(role, 0);
    for role in [Role::Ingest, Role::Pipeline, Role::Gateway] {
        assert_eq!(ready(&cluster, of(role), "log", "up").await.0, 200, "{role:?}");
    }

    let way = |kind, mode| cluster.ways.set(None, kind, mode);
    way(Kind::History, Mode::Cut);
    let (status, told) = ready(&cluster, of(Role::Ingest), "history", "down").await;
    assert_eq!((status, &told["status"]), (200, &json!("degraded")), "acceptance goes on: {told}");
    assert_eq!(ready(&cluster, of(Role::Gateway), "history", "down").await.0, 503);
    assert_eq!(ready(&cluster, of(Role::Pipeline), "history", "down").await.0, 503);
    let accepted = business.send(&number(1), "during").await;
    let (status, problem) = business.get(&format!("/v1/messages/{}", accepted.id)).await;
    assert_eq!(status, 503, "{problem}");
    assert!(problem["retry_after_ms"].as_u64() > Some(0), "{problem}");
    way(Kind::History, Mode::Open);
    phone.until_seen(2).await;
    ready(&cluster, of(Role::Gateway), "history", "up").await;

    way(Kind::Redis, Mode::Cut);
    let (status, told) = ready(&cluster, of(Role::Gateway), "presence", "down").await;
    assert_eq!((status, &told["status"]), (200, &json!("degraded")), "{told}");
    business.send(&number(1), "without presence").await;
    way(Kind::Redis, Mode::Open);
    ready(&cluster, of(Role::Gateway), "presence", "up").await;
    phone.until_seen(3).await;
    assert_eq!(phone.contents(), ["before", "during", "without presence"]);

    way(Kind::Kafka, Mode::Cut);
    let (status, told) = ready(&cluster, of(Role::Ingest), "log", "down").await;
    assert_eq!((status, &told["status"]), (503, &json!("not_ready")), "{told}");
    let since = told["dependencies"][0]["since"].as_str().map(str::to_owned);
    assert!(since.is_some() && told["dependencies"][0]["why"].is_string(), "{told}");
    let began = std::time::Instant::now();
    let (status, problem) =
        business.post("/v1/messages", &json!({ "to": number(1), "content": "x", "key": "k" })).await;
    assert!(status == 503 && problem["retry_after_ms"].as_u64() > Some(0), "{status} {problem}");
    assert!(began.elapsed() < Duration::from_secs(2), "what is known to be away is not waited for");
    way(Kind::Kafka, Mode::Open);
    assert_eq!(ready(&cluster, of(Role::Ingest), "log", "up").await.0, 200);
    let kept = business.insist(&number(1), "x", "k").await;
    phone.until_seen(4).await;
    business.until(&kept.id, "delivered").await;
}

/// What a process says of itself once a dependency is in this state.
async fn ready(cluster: &Cluster, member: usize, dependency: &str, state: &str) -> (u16, Value) {
    let what = format!("{} to say that {dependency} is {state}", cluster.members[member].name);
    eventually(&what, async || {
        let (status, told) = cluster.ready(member).await.ok()?;
        let all = told["dependencies"].as_array()?;
        all.iter().any(|d| d["name"] == dependency && d["state"] == state).then_some((status, told))
    })
    .await
}

/// One stored broadcast, several processes that could expand it: every recipient gets it once, also when the process that took
/// it in dies in the middle.
#[tokio::test(flavor = "multi_thread")]
async fn a_broadcast_outlives_the_process_that_took_it_in() {
    let mut cluster = Cluster::start(|folder| {
        let mut plan = small(folder).count(Role::Ingest, 3);
        // Little room, so that the expansion lasts.
        plan.set.push("limits.door.lane_slow=400".to_owned());
        plan
    })
    .await;
    let mut phone = cluster.phone(&number(5));
    phone.insist().await;
    let to: Vec<_> = (0..3_000).map(number).collect();
    let first = cluster.nth(Role::Ingest, 0);
    let (status, made) =
        cluster.business_at(first).post("/v1/broadcasts", &json!({ "to": to, "content": "news" })).await;
    assert_eq!(status, 202, "{made}");
    cluster.members[first].kill();
    let business = cluster.business();
    let path = format!("/v1/broadcasts/{}", made["id"].as_str().unwrap());
    let done = tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            let now = business.get(&path).await.1;
            if now["state"] == "done" {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    let done = done.await.unwrap_or_else(|_| panic!("nobody went on with it: {}", cluster.logs()));
    assert_eq!(done["expanded"], 3_000, "{done}");
    phone.until_seen(1).await;
    let books = eventually("everything to be recorded", async || {
        let books = cluster.ask("/admin/v1/books").await;
        (books["total"]["unrecorded"] == 0).then_some(books)
    })
    .await;
    let total = &books["total"];
    assert_eq!((&total["accepted"], &books["balanced"]), (&json!(3_000), &json!(true)), "{books}");
    // To take it over costs a few repeats at most, not a second expansion beside the first.
    assert!(total["repeats"].as_u64() <= Some(1_000), "{books}");
}

/// What a start says and how it ends.
fn start(role: &str, cluster: &Cluster, more: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(binary());
    command.args([role, "--admin", "127.0.0.1:0", "--set", "stores.wait_s=0"]);
    command.args(["--set", "limits.store.partitions=6"]).args(more).envs(cluster.env().iter().cloned());
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Bad input and trouble: a start that cannot work says what and what to do, and ends; it does not hang and touches nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_set_up_that_cannot_work_is_refused_in_a_sentence() {
    let cluster = Cluster::start(small).await;
    let (kafka, cql) = (cluster.kafka.hosts(), cluster.cassandra.hosts());
    // Another installation's log, whole and well, beside this one's history.
    let others = ["--set", &format!("stores.log=kafka://{kafka}/others."), "--set", "limits.store.partitions=6"];
    cluster.command(&["topics", "create"], &others.map(str::to_owned)).await.unwrap();
    let table: [(&str, String, i32, &[&str]); 9] = [
        (
            "pipeline",
            format!("stores.log=kafka://{kafka}/others."),
            3,
            &["belongs to", "esh3ar.", "others.", "stores.history"],
        ),
        ("pipeline", "stores.log=kafka://127.0.0.1:9/".into(), 3, &["Kafka", "stores.log"]),
        ("gateway", "stores.history=scylla://127.0.0.1:9/esh3ar".into(), 3, &["stores.history"]),
        ("ingest", format!("stores.log=kafka://{kafka}/other."), 3, &["topic", "topics create"]),
        ("ingest", format!("stores.history=scylla://{cql}/other"), 3, &["schema apply"]),
        ("ingest", "limits.store.partitions=7".into(), 3, &["partitions", "6", "7"]),
        ("gateway", "stores.presence=".into(), 2, &["stores.presence", "esh3ar up"]),
        ("gateway", "stores.log=".into(), 2, &["stores.log", "esh3ar up"]),
        ("ingest", format!("stores.log=kafka://{kafka}/?partition=6"), 3, &["partitions"]),
    ];
    for (role, set, code, parts) in table {
        let (ended, said) = start(role, &cluster, &["--set", &set]);
        assert_eq!(ended, Some(code), "{set}: {said}");
        for part in parts {
            assert!(said.contains(part), "{set}: {part} is missing in: {said}");
        }
    }
}

/// R6.4: a start waits for a log or a history that is not there yet, says so, and goes on when it comes. Redis is not waited
/// for: what needs it waits, and readiness says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_waits_for_its_servers() {
    let mut at = std::path::PathBuf::new();
    let mut cluster = Cluster::start(|folder| {
        folder.clone_into(&mut at);
        let mut plan = small(folder);
        // Longer than a server takes to come back on a busy machine.
        plan.set.push("stores.wait_s=120".to_owned());
        plan
    })
    .await;
    let (gateway, pipeline) = (cluster.nth(Role::Gateway, 0), cluster.nth(Role::Pipeline, 0));
    cluster.redis.kill(1).await.unwrap();
    cluster.members[gateway].kill();
    cluster.members[gateway].start().await.unwrap();
    ready(&cluster, gateway, "presence", "down").await;
    cluster.redis.restart(1).await.unwrap();
    ready(&cluster, gateway, "presence", "up").await;

    cluster.kafka.kill(1).await.unwrap();
    cluster.members[pipeline].kill();
    let log = at.join(&cluster.members[pipeline].name).with_extension("log");
    let ops::cluster::Cluster { members, kafka, .. } = &mut *cluster;
    let coming = async {
        eventually("the start to say that it waits", async || {
            std::fs::read_to_string(&log).ok().filter(|said| said.contains("waiting, for"))
        })
        .await;
        kafka.restart(1).await.unwrap();
    };
    let (started, ()) = tokio::join!(members[pipeline].start(), coming);
    started.unwrap();
    let mut phone = cluster.phone(&number(1));
    phone.insist().await;
    cluster.business().insist(&number(1), "hello", "k").await;
    phone.until_seen(1).await;
}
