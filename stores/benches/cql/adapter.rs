//! The same through the adapter: `record`, then `settle` of what was sent and delivered.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use schemas::{
    Clock, Content, ContentType, Epoch, Fact, Inbox, Kind, Message, MessageId, Millis, Partition, Position, Priority,
    Sender, Timestamp, What,
    limits::StoreLimits,
    port::{Entry, Facts, Inboxes, Schedule},
    tier::Attempt,
};
use stores::{
    history::scylla::{ScyllaHistory, schema},
    urls::Address,
};
use uuid::Uuid;

use crate::{Count, Shape};

const PARTITIONS: u16 = 24;

struct Machine(Instant);

impl Clock for Machine {
    fn wall(&self) -> Timestamp {
        Timestamp(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64)
    }
    fn mono(&self) -> Millis {
        Millis(self.0.elapsed().as_millis() as u64)
    }
}

/// The adapter, as the owner of all partitions.
pub(crate) struct Adapter {
    history: Arc<ScyllaHistory>,
    clock: Machine,
    epochs: Vec<Epoch>,
    tails: HashMap<u64, Position>,
    keyed: bool,
    seed: u64,
    run: u64,
    /// Rows and requests before this run.
    before: (u64, u64),
}

impl Adapter {
    pub(crate) async fn open(host: &str, keyed: bool) -> Self {
        let address = Address::parse(&format!("scylla://{host}/esh3ar_bench?replication=1")).unwrap();
        let limits = StoreLimits::default();
        schema::apply(&address, &limits).await.unwrap();
        let history = ScyllaHistory::open(&address, &limits, Arc::new(Machine(Instant::now()))).await.unwrap();
        let partitions: Vec<_> = (0..PARTITIONS).map(Partition).collect();
        let epochs = history.take_over(&partitions).await.unwrap();
        history.owns(&partitions.into_iter().zip(epochs.iter().copied()).collect::<Vec<_>>());
        let seed = Uuid::new_v4().as_u128() as u64;
        let (clock, tails, run) = (Machine(Instant::now()), HashMap::new(), seed >> 44);
        Self { history, clock, epochs, tails, keyed, seed, run, before: ScyllaHistory::written() }
    }

    fn entry(&mut self) -> Entry {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let number = (self.seed >> 33) % crate::number("USERS", 2_000);
        let user: schemas::UserId = format!("bench{}/+96279{number:07}", self.run).parse().unwrap();
        let inbox = Inbox { partition: Partition::of(&user, PARTITIONS), user };
        let epoch = self.epochs[usize::from(inbox.partition.0)];
        let tail = self.tails.entry(number).or_default();
        let prev = *tail;
        *tail = prev.next(epoch);
        let now = self.clock.wall();
        let message = Message {
            id: if self.keyed {
                MessageId(Uuid::new_v5(&Uuid::NAMESPACE_OID, &self.seed.to_be_bytes()))
            } else {
                MessageId::fresh(now)
            },
            kind: Kind::OneWay,
            from: Sender::Server,
            to: inbox.user.clone(),
            priority: Priority::Normal,
            content: Content { content_type: ContentType::Text, subject: None, body: "x".repeat(300) },
            client_ref: None,
            metadata: None,
            accepted_at: now,
            send_at: None,
            expires_at: None,
            broadcast: None,
            trace: None,
            fingerprint: [7; 16],
        };
        Entry {
            position: *tail,
            prev,
            one_way: tail.n,
            inbox,
            recorded_at: now,
            message: Arc::new(message),
            end: None,
            seq: None,
        }
    }
}

impl Shape for Adapter {
    fn batch(&mut self, messages: u64, count: &Arc<Count>) -> impl Future<Output = ()> + Send + 'static {
        let entries: Vec<Entry> = (0..messages).map(|_| self.entry()).collect();
        let (history, count, now, before) = (self.history.clone(), count.clone(), self.clock.wall(), self.before);
        async move {
            let began = Instant::now();
            history.record(&entries, &Schedule::default()).await.unwrap();
            count.waited(began);
            let fact = |entry: &Entry, what| Fact {
                id: entry.message.id,
                inbox: entry.inbox.clone(),
                position: entry.position,
                from: Sender::Server,
                client_ref: None,
                at: now,
                round: 0,
                attempt: Attempt(0),
                device: schemas::DeviceId::parse("phone").ok(),
                what,
            };
            let facts: Vec<_> =
                entries.iter().flat_map(|entry| [fact(entry, What::Sent), fact(entry, What::Delivered)]).collect();
            history.settle(&facts).await.unwrap();
            // Counted since the process began, by all batches together.
            let (rows, requests) = ScyllaHistory::written();
            count.rows.fetch_max(rows - before.0, Relaxed);
            count.requests.fetch_max(requests - before.1, Relaxed);
        }
    }
}
