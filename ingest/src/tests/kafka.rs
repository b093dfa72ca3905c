//! The Kafka door over a stand-in for the topics: what becomes of each record, and how far is committed.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use schemas::{
    Code, Problem,
    port::{Arrival, Fetch, Ingress, PortError, PortResult, Raw, Spot},
};
use tokio::sync::Notify;

use super::*;
use crate::kafka;

/// Topics of businesses, and what a reader did with them.
#[derive(Default)]
struct Topics {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    ready: VecDeque<Raw>,
    lost: Vec<Spot>,
    paused: HashSet<String>,
    /// Every pause there was.
    pauses: Vec<String>,
    commits: BTreeMap<Spot, u64>,
    rejected: Vec<(Raw, Problem)>,
    /// How many times rejecting fails.
    failing: usize,
    left: bool,
}

struct Reader(Arc<Topics>);

#[async_trait]
impl Ingress for Reader {
    async fn poll(&mut self, max: Fetch) -> PortResult<Arrival> {
        loop {
            let changed = self.0.changed.notified();
            {
                let mut state = self.0.state.lock();
                if !state.lost.is_empty() {
                    return Ok(Arrival::Lost(std::mem::take(&mut state.lost)));
                }
                let (mut taken, mut kept) = (Vec::new(), VecDeque::new());
                for raw in std::mem::take(&mut state.ready) {
                    let is_free = !state.paused.contains(&*raw.spot.topic) && taken.len() < max.records;
                    if is_free { taken.push(raw) } else { kept.push_back(raw) }
                }
                state.ready = kept;
                if !taken.is_empty() {
                    return Ok(Arrival::Records(taken));
                }
            }
            changed.await;
        }
    }
    fn pause(&mut self, topic: &str) -> PortResult<()> {
        let mut state = self.0.state.lock();
        state.paused.insert(topic.to_owned());
        state.pauses.push(topic.to_owned());
        Ok(())
    }
    fn resume(&mut self, topic: &str) -> PortResult<()> {
        self.0.state.lock().paused.remove(topic);
        self.0.changed.notify_one();
        Ok(())
    }
    async fn commit(&mut self, next: &[(Spot, u64)]) -> PortResult<()> {
        self.0.state.lock().commits.extend(next.iter().cloned());
        Ok(())
    }
    async fn reject(&mut self, records: &[(Raw, Problem)]) -> Vec<PortResult<()>> {
        let mut state = self.0.state.lock();
        if state.failing > 0 {
            state.failing -= 1;
            return records.iter().map(|_| Err(PortError::Unavailable("away".to_owned()))).collect();
        }
        state.rejected.extend(records.iter().cloned());
        records.iter().map(|_| Ok(())).collect()
    }
    async fn leave(self: Box<Self>) -> PortResult<()> {
        self.0.state.lock().left = true;
        Ok(())
    }
}

/// A house with a door to topics.
struct Port {
    house: House,
    topics: Arc<Topics>,
    running: kafka::Running,
    next: Mutex<BTreeMap<Spot, u64>>,
}

impl Port {
    fn new(limits: Limits) -> Self {
        Self::of(House::new(limits))
    }

    fn of(house: House) -> Self {
        let topics = Arc::new(Topics::default());
        let running = kafka::open(house.door.clone(), Box::new(Reader(topics.clone())));
        Self { house, topics, running, next: Mutex::default() }
    }

    fn produce(&self, topic: &str, headers: &[(&str, &str)], value: &str) -> Raw {
        let spot = Spot { topic: topic.into(), partition: 0 };
        let mut next = self.next.lock();
        let offset = next.entry(spot.clone()).or_default();
        let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), Bytes::from((*v).to_owned()))).collect();
        let value = Some(Bytes::from(value.to_owned()));
        let raw = Raw { spot, offset: *offset, at: Timestamp(1_000), key: None, headers, value };
        *offset += 1;
        self.topics.state.lock().ready.push_back(raw.clone());
        self.topics.changed.notify_one();
        raw
    }

    fn committed(&self, topic: &str) -> u64 {
        let spot = Spot { topic: topic.into(), partition: 0 };
        self.topics.state.lock().commits.get(&spot).copied().unwrap_or(0)
    }

    /// Lets time pass until it is so.
    async fn until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !so(self) {
                self.house.clock.pass(50);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(20), waiting).await.is_ok(), "waited in vain: {what}");
    }

    fn rejected(&self) -> Vec<(u64, Code)> {
        self.topics.state.lock().rejected.iter().map(|(raw, problem)| (raw.offset, problem.code)).collect()
    }
}

#[tokio::test]
async fn what_businesses_produce_goes_the_way_of_http() {
    let port = Port::new(open_limits());
    let keyed = r#"{"to":"+962790000001","content":"by key","key":"k"}"#;
    port.produce("ingress.acme", &[], keyed);
    port.produce(
        "ingress.acme",
        &[("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")],
        &draft(1),
    );
    let event = [("ce_specversion", "1.0"), ("ce_id", "42"), ("ce_source", "/shop"), ("ce_type", "t")];
    port.produce("ingress.acme", &event, &draft(2));
    port.until("three are committed", |port| port.committed("ingress.acme") == 3).await;
    let messages = port.house.log.messages();
    let to = |n: usize| schemas::UserId::mobile(acme(), phone(n));
    assert_eq!(messages[0].id, schemas::MessageId::of_key(&acme(), "", "k", &to(1)), "the same name as by HTTP");
    assert_eq!(messages[2].id, schemas::MessageId::of_key(&acme(), "/shop", "42", &to(2)));
    assert!(messages[1].id.is_keyed() && messages[1].trace.is_some());
    assert!(messages.iter().all(|m| *m.tenant() == acme() && m.from == schemas::Sender::Server));
    // By HTTP it is a repeat.
    let again = port.house.send(keyed).await;
    assert_eq!((again.status.as_u16(), again.header("idempotent-replayed")), (202, "true"));
    port.running.close().await;
    assert!(port.topics.state.lock().left);
}

#[tokio::test]
async fn a_bad_record_costs_itself_alone() {
    let port = Port::new(open_limits());
    port.topics.state.lock().failing = 2;
    let wrong = ["{", r#"{"to":"0790000001","content":"x"}"#, r#"{"to":"+962790000001","content":""}"#];
    for value in wrong {
        port.produce("ingress.acme", &[], value);
        port.produce("ingress.acme", &[], &draft(1));
    }
    port.produce("ingress.NOBODY", &[], &draft(1));
    port.until("all are committed", |p| p.committed("ingress.acme") == 6 && p.committed("ingress.NOBODY") == 1).await;
    assert_eq!(port.house.log.messages().len(), 3);
    let mut rejected = port.rejected();
    rejected.sort_by_key(|(offset, code)| (*offset, code.slug()));
    assert_eq!(
        rejected,
        [(0, Code::Forbidden), (0, Code::InvalidJson), (2, Code::InvalidPhone), (4, Code::InvalidContent)]
    );
}

#[tokio::test]
async fn records_of_the_shared_topic_say_by_token_whose_they_are() {
    let port = Port::new(open_limits());
    let bearer = |token: String| format!("Bearer {token}");
    let (acme, zain) = (bearer(server()), bearer(token_of("zain", "server", all())));
    let phone = bearer(token_of("acme", "+962790000001", all()));
    port.produce("ingress", &[("Authorization", &acme)], &draft(1));
    port.produce("ingress", &[("authorization", &zain)], &draft(2));
    port.produce("ingress", &[("authorization", "key-of-acme")], &draft(3));
    port.produce("ingress", &[], &draft(4));
    port.produce("ingress", &[("authorization", "Bearer x.y.z")], &draft(5));
    port.produce("ingress", &[("authorization", &phone)], &draft(6));
    port.produce("ingress.acme", &[("authorization", &zain)], &draft(7));
    port.until("all are committed", |p| p.committed("ingress") == 6 && p.committed("ingress.acme") == 1).await;
    let mut tenants: Vec<_> = port.house.log.messages().iter().map(|m| m.to.to_string()).collect();
    tenants.sort();
    assert_eq!(tenants, ["acme/+962790000001", "acme/+962790000003", "zain/+962790000002"]);
    let mut codes: Vec<_> = port.rejected().iter().map(|(_, code)| code.slug()).collect();
    codes.sort_unstable();
    assert_eq!(codes, ["forbidden", "forbidden", "unauthenticated", "unauthenticated"]);
}

#[tokio::test]
async fn a_tenant_over_its_quota_waits_alone_and_loses_no_order() {
    let mut limits = open_limits();
    limits.door.server_per_second = 10;
    let port = Port::new(limits);
    for n in 0..35 {
        port.produce("ingress.acme", &[], &format!(r#"{{"to":"+962790000001","content":"{n}"}}"#));
    }
    port.produce("ingress.zain", &[], &draft(1));
    port.until("the other tenant is served", |port| port.committed("ingress.zain") == 1).await;
    assert!(
        port.committed("ingress.acme") < 35 && port.topics.state.lock().pauses.contains(&"ingress.acme".to_owned())
    );
    port.until("all are accepted in time", |port| port.committed("ingress.acme") == 35).await;
    let said: Vec<_> =
        port.house.log.messages().iter().filter(|m| *m.tenant() == acme()).map(|m| m.content.body.clone()).collect();
    assert_eq!(said, (0..35).map(|n| n.to_string()).collect::<Vec<_>>());
    assert!(port.rejected().is_empty());
    assert!(!port.topics.state.lock().pauses.contains(&"ingress.zain".to_owned()));
}

#[tokio::test]
async fn on_the_shared_topic_a_tenant_over_its_quota_is_rejected_and_the_others_go_on() {
    let mut limits = open_limits();
    limits.door.server_per_second = 10;
    let port = Port::new(limits);
    let (acme, zain) = (format!("Bearer {}", server()), format!("Bearer {}", token_of("zain", "server", all())));
    for n in 0..15 {
        port.produce("ingress", &[("authorization", &acme)], &draft(n));
    }
    port.produce("ingress", &[("authorization", &zain)], &draft(1));
    port.until("all are committed", |port| port.committed("ingress") == 16).await;
    let rejected = port.rejected();
    assert!(!rejected.is_empty() && rejected.iter().all(|(_, code)| *code == Code::QuotaExceeded), "{rejected:?}");
    assert!(port.house.log.messages().iter().any(|m| m.tenant().as_str() == "zain"));
}

#[tokio::test]
async fn a_backlog_pauses_and_what_waited_comes_in_order() {
    let mut limits = open_limits();
    (limits.door.lane_slow, limits.door.lane_full) = (10, 20);
    let house = House::new(limits);
    house.log.waiting.store(100, std::sync::atomic::Ordering::SeqCst);
    while house.door.waiting()[1] != 100 {
        house.door.asked.notified().await;
    }
    let port = Port::of(house);
    for n in 0..4 {
        port.produce("ingress.acme", &[], &format!(r#"{{"to":"+962790000001","content":"{n}"}}"#));
    }
    port.until("the topic is paused", |port| !port.topics.state.lock().paused.is_empty()).await;
    assert_eq!((port.house.log.messages().len(), port.committed("ingress.acme")), (0, 0));
    port.house.log.waiting.store(0, std::sync::atomic::Ordering::SeqCst);
    port.until("all are accepted", |port| port.committed("ingress.acme") == 4).await;
    let said: Vec<_> = port.house.log.messages().iter().map(|m| m.content.body.clone()).collect();
    assert_eq!(said, ["0", "1", "2", "3"]);
    assert!(port.topics.state.lock().paused.is_empty());
}

/// Invariant 3: while the log is away nothing is committed; a crash in between gives no second message.
#[tokio::test]
async fn what_is_not_durable_is_not_committed_and_comes_again_under_its_name() {
    let house = House::new(open_limits());
    *house.log.fault.lock() = Some(PortError::Unknown("cut".to_owned()));
    house.log.spared.store(1, std::sync::atomic::Ordering::SeqCst);
    let port = Port::of(house);
    let first = port.produce("ingress.acme", &[], &draft(1));
    let second = port.produce("ingress.acme", &[], &draft(2));
    port.until("the topic is paused", |port| !port.topics.state.lock().paused.is_empty()).await;
    assert!(port.committed("ingress.acme") <= 1);
    // Its partition becomes another's, who reads it from the committed offset on.
    {
        let mut state = port.topics.state.lock();
        state.lost.push(first.spot.clone());
        state.ready.extend([first.clone(), second]);
        state.paused.clear();
    }
    *port.house.log.fault.lock() = None;
    port.topics.changed.notify_one();
    port.until("both are committed", |port| port.committed("ingress.acme") == 2).await;
    let messages = port.house.log.messages();
    let ids: HashSet<_> = messages.iter().map(|m| m.id).collect();
    let prints: HashSet<_> = messages.iter().map(|m| m.fingerprint).collect();
    assert_eq!((ids.len(), prints.len()), (2, 2), "a repeat has the same name and the same fingerprint");
}
