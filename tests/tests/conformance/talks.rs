//! Conversations on the embedded store as time passes: those that are quiet go back to the lists on disk, and nobody sees a
//! difference; what lists and threads cost, measured where it is asked for.

use std::time::Instant;

use schemas::{
    conversation::{Command, Pair, Side, UpTo},
    port::{ByActivity, History, Order},
};
use tests::conformance::history::{
    Installation, kit,
    talking::{Desk, business},
};

use crate::history::Embedded;

const MINUTE: u64 = 60_000;

async fn lists(history: &dyn History, desk: &Desk, pairs: &[Pair]) {
    for pair in pairs {
        for user in [pair.business(), pair.mobile()] {
            for archived in [false, true] {
                let expected = desk.model.by_user(&user, archived, None, 1_000).rows;
                assert_eq!(history.by_user(&user, archived, None, 1_000).await.unwrap().rows, expected);
            }
            assert_eq!(history.unread_total(&user).await.unwrap(), desk.model.unread_total(&user));
        }
    }
}

/// Quiet ones go back to disk, busy ones stay in memory, some come again, some are closed over by a stop or a crash: lists
/// are the same at every moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quiet_conversations_go_back_and_lists_stay_as_they_are() {
    let mut bed = Embedded::new().await;
    let mut desk = Desk::new(3);
    let pairs: Vec<_> = (0..40).map(|n| desk.pair(["sara", "omar"][n % 2], n as u32 / 2)).collect();
    let mut seed = 7_u64;
    for round in 0..60 {
        for _ in 0..5 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let pair = &pairs[(seed >> 33) as usize % pairs.len()];
            desk.now = desk.now.plus_ms(3);
            match seed >> 60 {
                0 => drop(desk.ask(pair, kit_mobile(pair), Command::Archive(true))),
                1 => drop(desk.ask(pair, business(pair.business.as_str()), Command::Read { up_to: UpTo::Seq(999) })),
                2 => {
                    let to = "nadia".parse().unwrap();
                    drop(desk.ask(pair, business(pair.business.as_str()), Command::Assign { to }));
                }
                n => drop(desk.say(pair, if n % 2 == 0 { Side::Mobile } else { Side::Business }, "hello")),
            }
        }
        let (entries, schedule) = desk.record(&*bed.history()).await;
        bed.clock.pass(2 * MINUTE);
        match round % 20 {
            7 => bed.crash().await,
            13 => bed.restart().await,
            // A batch that comes again after some of its conversations went back.
            17 => bed.history().record(&entries, &schedule).await.unwrap(),
            _ => {}
        }
        lists(&*bed.history(), &desk, &pairs).await;
    }
}

fn kit_mobile(pair: &Pair) -> schemas::Sender {
    schemas::Sender::User(schemas::Party::Mobile(pair.mobile))
}

/// 50 and 95 of 100 calls, in microseconds.
fn shares(mut micros: Vec<u128>) -> (u128, u128) {
    micros.sort_unstable();
    (micros[micros.len() / 2], micros[micros.len() * 95 / 100])
}

async fn timed<T>(calls: usize, mut call: impl AsyncFnMut(usize) -> T) -> (u128, u128) {
    let mut micros = Vec::with_capacity(calls);
    for n in 0..calls {
        let start = Instant::now();
        std::hint::black_box(call(n).await);
        micros.push(start.elapsed().as_micros());
    }
    shares(micros)
}

/// `cargo test -p esh3ar-tests --test conformance measure -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn measure_conversations() {
    let many: u32 = std::env::var("CONVERSATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(100_000);
    let mut bed = Embedded::new().await;
    let mut desk = Desk::new(3);
    let start = Instant::now();
    for first in (0..many).step_by(100) {
        for n in first..(first + 100).min(many) {
            desk.now = desk.now.plus_ms(1);
            let pair = desk.pair("sara", n);
            desk.say(&pair, Side::Mobile, "When will it come?").unwrap();
        }
        let (entries, schedule) = desk.take();
        bed.history().record(&entries, &schedule).await.unwrap();
    }
    println!("{many} conversations of one user: filled in {:?}", start.elapsed());
    let sara = desk.pair("sara", 0).business();
    let end = desk.now;
    for state in ["all in use", "after a restart", "all quiet", "quiet, after a restart"] {
        match state {
            "after a restart" | "quiet, after a restart" => {
                let start = Instant::now();
                bed.restart().await;
                println!("  restart: {:?}", start.elapsed());
            }
            "all quiet" => {
                bed.clock.pass(11 * MINUTE);
                let other = desk.pair("omar", 1);
                for _ in 0..=many / 200 {
                    desk.say(&other, Side::Business, "tick").unwrap();
                    let (entries, schedule) = desk.take();
                    bed.history().record(&entries, &schedule).await.unwrap();
                }
            }
            _ => {}
        }
        let history = bed.history();
        let first = timed(500, async |_| history.by_user(&sara, false, None, 50).await.unwrap()).await;
        let somewhere = timed(500, async |n| {
            let at = end.0 - i64::from(many) * n as i64 / 500;
            let from = ByActivity { last_at: schemas::Timestamp(at), id: schemas::ConversationId(uuid::Uuid::nil()) };
            let page = history.by_user(&sara, false, Some(from), 50).await.unwrap();
            assert!(!page.rows.is_empty() || n > 490);
            page
        })
        .await;
        let total = timed(20, async |_| history.unread_total(&sara).await.unwrap()).await;
        println!(
            "  {state}: list of 50, first page p50 {} p95 {} us; anywhere p50 {} p95 {} us; unread total p50 {} p95 {} us",
            first.0, first.1, somewhere.0, somewhere.1, total.0, total.1
        );
    }
    // One thread of as many turns, one message a minute, among nine quiet ones of the same user.
    let nine: Vec<_> = (0..10).map(|n| desk.pair("nadia", n)).collect();
    for pair in &nine {
        desk.say(pair, Side::Mobile, "hello").unwrap();
    }
    let (entries, schedule) = desk.take();
    bed.history().record(&entries, &schedule).await.unwrap();
    let nadia = nine[0].business();
    let history = bed.history();
    let before = timed(500, async |_| history.by_user(&nadia, false, None, 50).await.unwrap()).await;
    let start = Instant::now();
    for _ in 0..many / 100 {
        for _ in 0..100 {
            desk.now = desk.now.plus_ms(MINUTE);
            desk.say(&nine[0], Side::Mobile, "When will it come?").unwrap();
        }
        bed.clock.pass(100 * MINUTE);
        let (entries, schedule) = desk.take();
        history.record(&entries, &schedule).await.unwrap();
    }
    println!("{many} messages in one conversation, one a minute: filled in {:?}", start.elapsed());
    let after = timed(500, async |_| history.by_user(&nadia, false, None, 50).await.unwrap()).await;
    println!(
        "  list of its user: p50 {} p95 {} us before, p50 {} p95 {} us after",
        before.0, before.1, after.0, after.1
    );
    // The same with a pause of 11 minutes after each message: it goes back to disk every time.
    let pauses = (many / 10).min(10_000);
    for _ in 0..pauses {
        desk.now = desk.now.plus_ms(11 * MINUTE);
        desk.say(&nine[0], Side::Mobile, "When will it come?").unwrap();
        let (entries, schedule) = desk.take();
        history.record(&entries, &schedule).await.unwrap();
        bed.clock.pass(11 * MINUTE);
    }
    let paused = timed(500, async |_| history.by_user(&nadia, false, None, 50).await.unwrap()).await;
    println!("  after {pauses} more, 11 minutes apart: p50 {} p95 {} us", paused.0, paused.1);
    let id = nine[0].id();
    let last = timed(1_000, async |_| history.turns(id, Order::Newest, None, 50).await.unwrap()).await;
    println!("  last 50: p50 {} p95 {} us", last.0, last.1);
    let seq = u64::from(many + pauses);
    for (order, near, far) in [(Order::Newest, seq - 50, 60), (Order::Oldest, 50, seq - 60)] {
        let shallow = timed(1_000, async |_| history.turns(id, order, Some(near), 50).await.unwrap()).await;
        let deep = timed(1_000, async |_| history.turns(id, order, Some(far), 50).await.unwrap()).await;
        println!(
            "  page at depth 50: p50 {} us; at depth {seq}: p50 {} us; ratio {:.2} ({order:?})",
            shallow.0,
            deep.0,
            deep.0 as f64 / shallow.0 as f64
        );
    }
    let message = history.turns(id, Order::Oldest, Some(seq / 2), 1).await.unwrap().rows[0].turn.message.id;
    let around = timed(1_000, async |_| history.around(id, message, 50).await.unwrap()).await;
    println!("  50 around the middle: p50 {} p95 {} us", around.0, around.1);
    // What a message costs: rows written, and no read.
    let before = bed.writes();
    for _ in 0..100 {
        desk.say(&nine[1], Side::Business, "hello").unwrap();
        let (entries, schedule) = desk.take();
        history.record(&entries, &schedule).await.unwrap();
    }
    println!("rows written for a chat message: {:.2}", (bed.writes() - before) as f64 / 100.0);
    let _ = kit::NOON;
}
