//! Shapes of tables, written through the driver alone.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

use futures::future::join_all;
use scylla::{
    client::{session::Session, session_builder::SessionBuilder},
    statement::{
        batch::{Batch, BatchType},
        prepared::PreparedStatement,
    },
    value::CqlValue as V,
};
use uuid::Uuid;

use crate::{Count, Shape};

const TABLES: [&str; 5] = [
    "inbox (user text, bucket bigint, epoch int, n bigint, head blob, body blob, state blob, PRIMARY KEY ((user, bucket), epoch, n))",
    "places (id uuid PRIMARY KEY, user text, epoch int, n bigint, fp blob, at bigint)",
    "beside (user text, bucket bigint, id uuid, epoch int, n bigint, fp blob, PRIMARY KEY ((user, bucket), id))",
    "slots (slot bigint, id uuid, user text, epoch int, n bigint, fp blob, at bigint, state blob, PRIMARY KEY (slot, id))",
    "windows (win bigint, user text, epoch int, n bigint, head blob, body blob, PRIMARY KEY (win, user, epoch, n))",
];

type Row = (usize, Vec<V>);

/// A shape by its name.
pub(crate) struct Raw {
    session: Arc<Session>,
    statements: Arc<Vec<PreparedStatement>>,
    name: String,
    n: i64,
    seed: u64,
}

impl Raw {
    pub(crate) async fn open(host: &str, name: &str) -> Self {
        let session = SessionBuilder::new().known_node(host).build().await.unwrap();
        let keyspace = "CREATE KEYSPACE IF NOT EXISTS bench WITH replication = {'class': 'NetworkTopologyStrategy', 'datacenter1': 1}";
        session.query_unpaged(keyspace, ()).await.unwrap();
        for table in TABLES {
            session.query_unpaged(format!("CREATE TABLE IF NOT EXISTS bench.{table}"), ()).await.unwrap();
        }
        let mut statements = Vec::new();
        for text in [
            "INSERT INTO bench.inbox (user, bucket, epoch, n, head, body) VALUES (?, ?, ?, ?, ?, ?)",
            "INSERT INTO bench.places (id, user, epoch, n, fp, at) VALUES (?, ?, ?, ?, ?, ?)",
            "UPDATE bench.inbox SET state = ? WHERE user = ? AND bucket = ? AND epoch = ? AND n = ?",
            "INSERT INTO bench.beside (user, bucket, id, epoch, n, fp) VALUES (?, ?, ?, ?, ?, ?)",
            "INSERT INTO bench.slots (slot, id, user, epoch, n, fp, at) VALUES (?, ?, ?, ?, ?, ?, ?)",
            "UPDATE bench.slots SET state = ? WHERE slot = ? AND id = ?",
            "INSERT INTO bench.windows (win, user, epoch, n, head, body) VALUES (?, ?, ?, ?, ?, ?)",
        ] {
            let mut statement = session.prepare(text).await.unwrap();
            statement.set_is_idempotent(true);
            statements.push(statement);
        }
        let seed = Uuid::new_v4().as_u128() as u64;
        Self {
            session: Arc::new(session),
            statements: Arc::new(statements),
            name: name.to_owned(),
            n: (seed >> 20) as i64,
            seed,
        }
    }

    /// The rows of one message: when it is recorded, and when it was delivered.
    fn rows(&mut self) -> (Vec<Row>, Row) {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.n += 1;
        let user = V::Text(format!("acme/+96279{:07}", (self.seed >> 33) % 100_000));
        let (id, n, zero, epoch) = (V::Uuid(Uuid::now_v7()), V::BigInt(self.n), V::BigInt(0), V::Int(1));
        let blob = |bytes: usize| V::Blob(vec![7; bytes]);
        // Sixteen seconds of messages share a slot.
        let slot = V::BigInt(self.n >> 15);
        let entry = (0, vec![user.clone(), zero.clone(), epoch.clone(), n.clone(), blob(30), blob(420)]);
        let place = (1, vec![id.clone(), user.clone(), epoch.clone(), n.clone(), blob(16), zero.clone()]);
        let state = (2, vec![blob(60), user.clone(), zero.clone(), epoch.clone(), n.clone()]);
        let beside = (3, vec![user.clone(), zero.clone(), id.clone(), epoch.clone(), n.clone(), blob(16)]);
        let in_slot = (4, vec![slot.clone(), id.clone(), user.clone(), epoch.clone(), n.clone(), blob(16), zero]);
        let slot_state = (5, vec![blob(60), slot.clone(), id]);
        match self.name.as_str() {
            "single" | "batched" => (vec![entry, place], state),
            "beside" => (vec![entry, beside], state),
            "slots" => (vec![entry, in_slot], slot_state),
            "windows" => (vec![(6, vec![slot, user, epoch, n, blob(30), blob(420)]), in_slot], slot_state),
            other => panic!("no shape is called {other}"),
        }
    }
}

async fn send(session: &Session, statements: &[PreparedStatement], rows: &[Row], count: &Count) {
    let began = Instant::now();
    if let [(statement, values)] = rows {
        session.execute_unpaged(&statements[*statement], values).await.unwrap();
    } else {
        let mut batch = Batch::new(BatchType::Unlogged);
        for (statement, _) in rows {
            batch.append_statement(statements[*statement].clone());
        }
        session.batch(&batch, rows.iter().map(|row| &row.1).collect::<Vec<_>>()).await.unwrap();
    }
    count.rows.fetch_add(rows.len() as u64, Relaxed);
    count.requests.fetch_add(1, Relaxed);
    count.waited(began);
}

impl Shape for Raw {
    fn batch(&mut self, messages: u64, count: &Arc<Count>) -> impl Future<Output = ()> + Send + 'static {
        let (mut recorded, mut settled) = (Vec::new(), Vec::new());
        for _ in 0..messages {
            let (rows, state) = self.rows();
            recorded.extend(rows);
            settled.push(state);
        }
        let at_once = if self.name == "single" { 1 } else { 40 };
        let (session, statements, count) = (self.session.clone(), self.statements.clone(), count.clone());
        async move {
            for mut rows in [recorded, settled] {
                // Rows of one table side by side.
                let mut by = BTreeMap::<usize, Vec<Row>>::new();
                for row in rows.drain(..) {
                    by.entry(row.0).or_default().push(row);
                }
                let rows: Vec<Row> = by.into_values().flatten().collect();
                join_all(rows.chunks(at_once).map(|rows| send(&session, &statements, rows, &count))).await;
            }
        }
    }
}
