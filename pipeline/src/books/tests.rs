//! What the books promise, against stores in memory.

use proptest::prelude::*;
use schemas::{
    Message, Reason, Timestamp, What,
    fact::Past,
    port::{Append, Dead, Headers},
    position::Position,
    record::{self, Again},
    tier::Attempt,
};

use super::*;
use crate::memory::{MemoryHistory, MemoryLog, PLACE, message};

#[derive(Default)]
struct Bench {
    log: MemoryLog,
    history: MemoryHistory,
}

impl Bench {
    fn accept(&self, message: &Message) {
        self.log.push(record::accepted(message, 4), Timestamp(0));
    }

    /// Everything read so far is committed.
    fn commit(&self) {
        for p in 0..4 {
            for lane in Priority::ALL {
                let at = TopicPartition { topic: Topic::Lane(lane), partition: Partition(p) };
                let end = self.log.all(at.topic).iter().filter(|record| record.at == at).count();
                self.log.committed.lock().insert(at, Offset(end as u64));
            }
        }
    }

    fn happened(&self, id: MessageId, what: What) {
        let past = Past { at: Timestamp(1), what, round: 0, attempt: Attempt(0), device: None };
        self.history.facts.lock().entry(id).or_default().merge(past);
    }
}

#[tokio::test]
async fn everything_accepted_is_accounted_for() {
    let bench = Bench::default();
    let messages: Vec<_> = (0..10).map(message).collect();
    messages.iter().for_each(|message| bench.accept(message));
    messages[..7].iter().for_each(|message| bench.history.keep(message, Some(PLACE)));
    for (n, what) in [(1, What::Sent), (2, What::Delivered), (3, What::Read), (4, What::Failed(Reason::NoAck))] {
        bench.happened(messages[n].id, what);
    }
    // Dropped by a function, and one whose key was another's: given up without a row of their own.
    bench.happened(messages[7].id, What::Failed(Reason::Dropped));
    let dead = Dead {
        id: messages[8].id,
        at: Timestamp(0),
        reason: Reason::IdempotencyConflict,
        round: 0,
        attempts: 0,
        inbox: messages[8].inbox(4),
        position: Position::START,
        requeued_at: None,
        message: None,
    };
    bench.history.letters.lock().insert((dead.id, 0), dead);
    bench.commit();
    // After the cut: one repeated, one recorded already and not committed, one not recorded; one tried again.
    bench.accept(&messages[0]);
    let (eager, late) = (message(20), message(21));
    bench.accept(&eager);
    bench.history.keep(&eager, Some(PLACE));
    bench.accept(&late);
    bench.accept(&late);
    let again = Again {
        id: messages[4].id,
        lane: Priority::Normal,
        inbox: messages[4].inbox(4),
        position: PLACE,
        round: 1,
        attempt: Attempt(0),
        due_at: Timestamp(0),
    };
    bench.log.push(record::again(Topic::Lane(Priority::Normal), &again), Timestamp(0));
    let books = audit(&bench.log, &bench.history).await.unwrap();
    let total = Account {
        accepted: 12,
        unrecorded: 1,
        pending: 4,
        sent: 1,
        delivered: 1,
        read: 1,
        failed: 3,
        residue: 1,
        repeats: 2,
    };
    assert_eq!(books.total, total);
    assert_eq!(books.residue.iter().map(|missing| missing.id).collect::<Vec<_>>(), [messages[9].id]);
    assert!(!books.balanced());
    bench.history.keep(&messages[9], Some(PLACE));
    let books = audit(&bench.log, &bench.history).await.unwrap();
    assert!(books.balanced() && books.residue.is_empty());
    assert_eq!(serde_json::from_str::<Books>(&serde_json::to_string(&books).unwrap()).unwrap(), books);
}

#[tokio::test]
async fn tenants_are_kept_apart_and_ids_listed_up_to_a_bound() {
    let bench = Bench::default();
    for n in 0..150 {
        let tenant = if n % 3 == 0 { "bank" } else { "acme" };
        let mut lost = (*message(0)).clone();
        lost.id = MessageId::fresh(Timestamp(n));
        lost.to = format!("{tenant}/+9627900{n:05}").parse().unwrap();
        bench.accept(&lost);
    }
    let mine = message(200);
    bench.accept(&mine);
    bench.history.keep(&mine, None);
    bench.commit();
    let books = audit(&bench.log, &bench.history).await.unwrap();
    assert_eq!((books.total.residue, books.residue.len(), books.total.pending), (150, LISTED, 1));
    let of = |tenant: &str| books.tenants[&tenant.parse::<Tenant>().unwrap()];
    assert_eq!((of("bank").residue, of("acme").residue, of("acme").accepted), (50, 100, 101));
}

#[tokio::test]
async fn a_record_without_headers_is_read_by_its_body_and_junk_is_counted() {
    let bench = Bench::default();
    let known = message(1);
    bench.history.keep(&known, Some(PLACE));
    let bare = Append { headers: Headers::default(), ..record::accepted(&known, 4) };
    bench.log.push(bare.clone(), Timestamp(0));
    bench.log.push(Append { body: "junk".into(), ..bare }, Timestamp(0));
    bench.commit();
    let books = audit(&bench.log, &bench.history).await.unwrap();
    assert_eq!((books.total.accepted, books.unreadable, books.balanced()), (1, 1, true));
}

#[tokio::test]
async fn empty_books_balance() {
    let bench = Bench::default();
    let books = audit(&bench.log, &bench.history).await.unwrap();
    assert!(books.balanced() && books.cut.len() == 12);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Rule 10 over any mix: the sum holds, and the residue is exactly what was committed and is nowhere.
    #[test]
    fn the_books_find_exactly_what_is_missing(
        arrivals in proptest::collection::vec((0u8..60, any::<bool>()), 0..120),
        cut in 0usize..120,
        known in proptest::collection::btree_set(0u8..60, 0..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let bench = Bench::default();
        let mut committed = std::collections::BTreeSet::new();
        let mut accepted = std::collections::BTreeSet::new();
        for (i, (n, high)) in arrivals.iter().enumerate() {
            let mut message = (*message(*n)).clone();
            if *high { message.priority = Priority::High; }
            bench.accept(&message);
            accepted.insert(*n);
            if i < cut { bench.commit(); committed.insert(*n); }
        }
        known.iter().for_each(|n| bench.history.keep(&message(*n), Some(PLACE)));
        let books = runtime.block_on(audit(&bench.log, &bench.history)).unwrap();
        let missing: Vec<_> = committed.difference(&known).map(|n| message(*n).id).collect();
        let mut found: Vec<_> = books.residue.iter().map(|missing| missing.id).collect();
        found.sort();
        prop_assert_eq!(&found, &missing);
        prop_assert_eq!(books.total.accepted, accepted.len() as u64);
        prop_assert_eq!(books.total.repeats, (arrivals.len() - accepted.len()) as u64);
        prop_assert_eq!(books.total.pending, accepted.intersection(&known).count() as u64);
        prop_assert_eq!(books.balanced(), missing.is_empty());
        let unrecorded = accepted.iter().filter(|n| !known.contains(n) && !committed.contains(n)).count();
        prop_assert_eq!(books.total.unrecorded, unrecorded as u64);
    }
}
