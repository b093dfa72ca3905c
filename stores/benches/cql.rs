//! What a delivered message costs a CQL server, by the shape of the tables: rows, requests, server and client CPU.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use scylla::{
    client::{session::Session, session_builder::SessionBuilder},
    statement::{
        batch::{Batch, BatchType},
        prepared::PreparedStatement,
    },
};
use uuid::Uuid;

fn cpu_ms(pid: &str) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = stat.rsplit_once(") ").map_or("", |x| x.1);
    let f: Vec<u64> = rest.split(' ').map(|x| x.parse().unwrap_or(0)).collect();
    if f.len() > 13 { (f[11] + f[12]) * 10 } else { 0 }
}

struct Prepared {
    entry: PreparedStatement,
    place: PreparedStatement,
    state: PreparedStatement,
    entry_b: PreparedStatement,
    place_b: PreparedStatement,
    slot_place: PreparedStatement,
    slot_state: PreparedStatement,
    win_entry: PreparedStatement,
}

struct Msg {
    user: String,
    n: i64,
    id: Uuid,
}

#[derive(Default)]
struct Count {
    rows: AtomicU64,
    requests: AtomicU64,
    wait_us: AtomicU64,
}

type Rows = Vec<(PreparedStatement, Vec<scylla::value::CqlValue>)>;

async fn send(session: Arc<Session>, rows: Rows, count: Arc<Count>) {
    let begun = Instant::now();
    let len = rows.len() as u64;
    if rows.len() == 1 {
        session.execute_unpaged(&rows[0].0, &rows[0].1).await.expect("write");
    } else {
        let mut batch = Batch::new(BatchType::Unlogged);
        let mut values = Vec::new();
        for (s, v) in rows {
            batch.append_statement(s);
            values.push(v);
        }
        session.batch(&batch, values).await.expect("batch");
    }
    count.rows.fetch_add(len, Relaxed);
    count.requests.fetch_add(1, Relaxed);
    count.wait_us.fetch_add(begun.elapsed().as_micros() as u64, Relaxed);
}

fn grouped<K: Ord>(rows: impl IntoIterator<Item = (K, PreparedStatement, Vec<scylla::value::CqlValue>)>) -> Vec<Rows> {
    let mut by = std::collections::BTreeMap::<K, Rows>::new();
    for (k, s, v) in rows {
        by.entry(k).or_default().push((s, v));
    }
    by.into_values().collect()
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let Ok(host) = std::env::var("ESH3AR_BENCH_CQL") else { return };
    let pid = std::env::var("ESH3AR_BENCH_PID").unwrap_or_default();
    let rate: u64 = std::env::var("RATE").ok().and_then(|r| r.parse().ok()).unwrap_or(2000);
    let secs: u64 = std::env::var("SECS").ok().and_then(|r| r.parse().ok()).unwrap_or(8);
    let shapes = std::env::var("SHAPES").unwrap_or("A1,A2,B,C,C2,D".into());
    let tick: u64 = std::env::var("TICK").ok().and_then(|r| r.parse().ok()).unwrap_or(5);
    let session = Arc::new(SessionBuilder::new().known_node(host).build().await.unwrap());
    session
        .query_unpaged(
            "CREATE KEYSPACE IF NOT EXISTS bench WITH replication={'class':'NetworkTopologyStrategy','datacenter1':1}",
            (),
        )
        .await
        .unwrap();
    for ddl in [
        "CREATE TABLE IF NOT EXISTS bench.inbox (user text, bucket bigint, epoch int, n bigint, head blob, body blob, state blob, PRIMARY KEY ((user,bucket),epoch,n))",
        "CREATE TABLE IF NOT EXISTS bench.places (id uuid PRIMARY KEY, user text, epoch int, n bigint, fp blob, at bigint)",
        "CREATE TABLE IF NOT EXISTS bench.places_b (user text, bucket bigint, id uuid, epoch int, n bigint, fp blob, PRIMARY KEY ((user,bucket),id))",
        "CREATE TABLE IF NOT EXISTS bench.slots (slot bigint, id uuid, user text, epoch int, n bigint, fp blob, at bigint, state blob, PRIMARY KEY (slot,id))",
        "CREATE TABLE IF NOT EXISTS bench.windows (win bigint, user text, epoch int, n bigint, head blob, body blob, PRIMARY KEY (win,user,epoch,n))",
    ] {
        session.query_unpaged(ddl, ()).await.unwrap();
    }
    let prep = async |q: &str| {
        let mut s = session.prepare(q).await.unwrap();
        s.set_is_idempotent(true);
        s
    };
    let p = Prepared {
        entry: prep("INSERT INTO bench.inbox (user,bucket,epoch,n,head,body) VALUES (?,?,?,?,?,?)").await,
        place: prep("INSERT INTO bench.places (id,user,epoch,n,fp,at) VALUES (?,?,?,?,?,?)").await,
        state: prep("UPDATE bench.inbox SET state=? WHERE user=? AND bucket=? AND epoch=? AND n=?").await,
        entry_b: prep("INSERT INTO bench.inbox (user,bucket,epoch,n,head,body) VALUES (?,?,?,?,?,?)").await,
        place_b: prep("INSERT INTO bench.places_b (user,bucket,id,epoch,n,fp) VALUES (?,?,?,?,?,?)").await,
        slot_place: prep("INSERT INTO bench.slots (slot,id,user,epoch,n,fp,at) VALUES (?,?,?,?,?,?,?)").await,
        slot_state: prep("UPDATE bench.slots SET state=? WHERE slot=? AND id=?").await,
        win_entry: prep("INSERT INTO bench.windows (win,user,epoch,n,head,body) VALUES (?,?,?,?,?,?)").await,
    };
    let mut round = 0;
    for warm in [true, false] {
        for shape in shapes.split(',') {
            round += 1;
            let secs = if warm { 4 } else { secs };
            let count = Arc::new(Count::default());
            let (s0, c0, t0) = (cpu_ms(&pid), cpu_ms("self"), Instant::now());
            let per = (rate * tick / 1000).max(1);
            let mut sent = 0u64;
            let mut every = tokio::time::interval(Duration::from_millis(tick));
            let mut all = tokio::task::JoinSet::new();
            let mut seed = 12345u64 + round;
            while t0.elapsed() < Duration::from_secs(secs) {
                every.tick().await;
                let mut msgs = Vec::new();
                for _ in 0..per {
                    seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let u = (seed >> 33) % 100_000;
                    sent += 1;
                    msgs.push(Msg {
                        user: format!("acme/+96279{u:07}"),
                        n: (sent + round * 10_000_000) as i64,
                        id: Uuid::now_v7(),
                    });
                }
                let (recs, sets) = rows(&p, shape, &msgs, round);
                let (session, count) = (session.clone(), count.clone());
                all.spawn(async move {
                    let mut w = tokio::task::JoinSet::new();
                    for r in recs {
                        w.spawn(send(session.clone(), r, count.clone()));
                    }
                    while w.join_next().await.is_some() {}
                    for r in sets {
                        w.spawn(send(session.clone(), r, count.clone()));
                    }
                    while w.join_next().await.is_some() {}
                });
                while all.try_join_next().is_some() {}
                while all.len() > 200 {
                    all.join_next().await;
                }
            }
            while all.join_next().await.is_some() {}
            let took = t0.elapsed().as_secs_f64();
            let (s1, c1) = (cpu_ms(&pid), cpu_ms("self"));
            let (rows, reqs) = (count.rows.load(Relaxed), count.requests.load(Relaxed));
            println!(
                "{}{shape}: {:.0} msg/s, rows/msg {:.2}, requests/msg {:.2}, rows/request {:.1}, server {:.0} us/msg, client {:.0} us/msg, mean wait {:.1} ms",
                if warm { "(warm) " } else { "" },
                sent as f64 / took,
                rows as f64 / sent as f64,
                reqs as f64 / sent as f64,
                rows as f64 / reqs as f64,
                (s1 - s0) as f64 * 1000.0 / sent as f64,
                (c1 - c0) as f64 * 1000.0 / sent as f64,
                count.wait_us.load(Relaxed) as f64 / reqs as f64 / 1000.0
            );
        }
    }
}

fn rows(p: &Prepared, shape: &str, msgs: &[Msg], round: u64) -> (Vec<Rows>, Vec<Rows>) {
    use scylla::value::CqlValue as V;
    let body = |_: &Msg| V::Blob(vec![7u8; 420]);
    let blob = |n: usize| V::Blob(vec![3u8; n]);
    let entry = |m: &Msg| vec![V::Text(m.user.clone()), V::BigInt(0), V::Int(1), V::BigInt(m.n), blob(30), body(m)];
    let place =
        |m: &Msg| vec![V::Uuid(m.id), V::Text(m.user.clone()), V::Int(1), V::BigInt(m.n), blob(16), V::BigInt(5)];
    let state = |m: &Msg| vec![blob(60), V::Text(m.user.clone()), V::BigInt(0), V::Int(1), V::BigInt(m.n)];
    let place_b =
        |m: &Msg| vec![V::Text(m.user.clone()), V::BigInt(0), V::Uuid(m.id), V::Int(1), V::BigInt(m.n), blob(16)];
    let slot = |m: &Msg| (round * 4 + (m.id.as_u128() as u64 % 4)) as i64;
    let slot_place = |m: &Msg| {
        vec![
            V::BigInt(slot(m)),
            V::Uuid(m.id),
            V::Text(m.user.clone()),
            V::Int(1),
            V::BigInt(m.n),
            blob(16),
            V::BigInt(5),
        ]
    };
    let slot_state = |m: &Msg| vec![blob(60), V::BigInt(slot(m)), V::Uuid(m.id)];
    let win = |m: &Msg| vec![V::BigInt(slot(m)), V::Text(m.user.clone()), V::Int(1), V::BigInt(m.n), blob(30), body(m)];
    let one = |rows: Vec<(PreparedStatement, Vec<V>)>| rows.into_iter().map(|r| vec![r]).collect::<Vec<Rows>>();
    let chunk =
        |rows: Vec<(PreparedStatement, Vec<V>)>, n: usize| rows.chunks(n).map(|c| c.to_vec()).collect::<Vec<Rows>>();
    let slots =
        |st: &PreparedStatement, f: &dyn Fn(&Msg) -> Vec<V>| grouped(msgs.iter().map(|m| (slot(m), st.clone(), f(m))));
    match shape {
        "A1" => (
            one(msgs.iter().flat_map(|m| [(p.entry.clone(), entry(m)), (p.place.clone(), place(m))]).collect()),
            one(msgs.iter().map(|m| (p.state.clone(), state(m))).collect()),
        ),
        "A2" => (
            chunk(msgs.iter().flat_map(|m| [(p.entry.clone(), entry(m)), (p.place.clone(), place(m))]).collect(), 40),
            chunk(msgs.iter().map(|m| (p.state.clone(), state(m))).collect(), 40),
        ),
        "B" => (
            msgs.iter().map(|m| vec![(p.entry_b.clone(), entry(m)), (p.place_b.clone(), place_b(m))]).collect(),
            one(msgs.iter().map(|m| (p.state.clone(), state(m))).collect()),
        ),
        "B2" => (
            chunk(
                msgs.iter().flat_map(|m| [(p.entry_b.clone(), entry(m)), (p.place_b.clone(), place_b(m))]).collect(),
                40,
            ),
            chunk(msgs.iter().map(|m| (p.state.clone(), state(m))).collect(), 40),
        ),
        "C" => (
            [one(msgs.iter().map(|m| (p.entry.clone(), entry(m))).collect()), slots(&p.slot_place, &slot_place)]
                .concat(),
            slots(&p.slot_state, &slot_state),
        ),
        "C2" => (
            [chunk(msgs.iter().map(|m| (p.entry.clone(), entry(m))).collect(), 40), slots(&p.slot_place, &slot_place)]
                .concat(),
            slots(&p.slot_state, &slot_state),
        ),
        "C3" => (
            // entries, and in the same request the places of one slot
            vec![
                msgs.iter()
                    .map(|m| (p.entry.clone(), entry(m)))
                    .chain(msgs.iter().map(|m| {
                        let mut v = slot_place(m);
                        v[0] = V::BigInt(round as i64);
                        (p.slot_place.clone(), v)
                    }))
                    .collect(),
            ],
            vec![
                msgs.iter()
                    .map(|m| {
                        let mut v = slot_state(m);
                        v[1] = V::BigInt(round as i64);
                        (p.slot_state.clone(), v)
                    })
                    .collect(),
            ],
        ),
        "D" => {
            ([slots(&p.win_entry, &win), slots(&p.slot_place, &slot_place)].concat(), slots(&p.slot_state, &slot_state))
        }
        _ => panic!("no shape {shape}"),
    }
}
