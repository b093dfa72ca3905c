//! What the watch promises, by tables and over random histories.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use schemas::{Reason, position::Inbox};

use super::*;

const P: Partition = Partition(1);
const ACK: u64 = 300;

fn id(n: u8) -> MessageId {
    format!("00000000-0000-7000-8000-0000000000{n:02x}").parse().unwrap()
}

fn sent(n: u8, round: u8, attempt: u8) -> Missed {
    Missed { id: id(n), round, attempt: Attempt(attempt) }
}

fn at(offset: u64) -> Stand {
    Stand { partition: P, offset: Offset(offset) }
}

fn watch() -> Watch {
    let mut watch = Watch::new(ACK, 1_000, 2);
    watch.open(P);
    watch
}

/// A record with one `Sent` fact, settled.
fn take(watch: &mut Watch, offset: u64, who: Missed, early: u64, now: u64) {
    assert!(watch.took(at(offset)));
    watch.arm(who, To::default(), at(offset), early, Millis(now));
    watch.settled(at(offset));
}

fn moved(watch: &mut Watch) -> Option<u64> {
    watch.moved().map(|(_, offset)| offset.0).last()
}

fn past(at: i64, what: What, attempt: u8) -> Past {
    Past { at: Timestamp(at), what, round: 0, attempt: Attempt(attempt), device: None }
}

fn fact(what: What, attempt: u8) -> Fact {
    Fact {
        id: id(1),
        inbox: Inbox { user: "acme/+962790000001".parse().unwrap(), partition: P },
        position: schemas::cursor::place(1, 1),
        from: schemas::Sender::Server,
        client_ref: None,
        at: Timestamp(0),
        round: 0,
        attempt: Attempt(attempt),
        device: None,
        what,
    }
}

/// When a `Sent` fact has a deadline, and how much before its time it came.
#[test]
fn a_deadline_follows_from_what_is_known_alone() {
    let no_ack = What::AttemptFailed(Reason::NoAck);
    let requeued = Past { round: 1, ..past(50, What::Requeued, 0) };
    // What is known besides, the attempt that was sent, the wall time, and the answer.
    type Row<'a> = (&'a [Past], u8, i64, Option<u64>, &'a str);
    let table: &[Row<'_>] = &[
        (&[], 0, 100, Some(0), "a first delivery"),
        (&[past(40, What::Parked, 0)], 0, 100, Some(0), "one that waited for its phone"),
        (&[past(90, What::Delivered, 0)], 0, 100, None, "an acknowledgement came first (R4.4)"),
        (&[past(90, What::Read, 0)], 0, 100, None, "it was opened already"),
        (&[past(90, What::Failed(Reason::Expired), 0)], 0, 100, None, "it was given up"),
        (&[past(90, no_ack, 0)], 0, 100, None, "a replay after a crash: this attempt failed already"),
        (&[past(90, no_ack, 0)], 1, 1_090, Some(0), "the retry itself, when due"),
        (&[past(90, no_ack, 0)], 1, 490, Some(600), "catch-up while the retry waits on its tier"),
        (&[past(90, no_ack, 0)], 1, -9_000, Some(1_000), "the wall clock went back: never longer than the tier"),
        (&[past(90, no_ack, 0), past(95, no_ack, 1)], 1, 100, None, "a stale one of a retry that failed"),
        (&[past(90, no_ack, 5)], 6, 90, Some(32_000), "the last tier"),
        (&[past(90, no_ack, 6)], 6, 100, None, "the sixth retry failed: about to be buried"),
        (&[requeued], 0, 100, None, "a new round has begun"),
    ];
    for (known, attempt, wall, answer, case) in table {
        let mut state = State::default();
        let fact = fact(What::Sent, *attempt);
        for past in known.iter().cloned().chain([Past::from(&fact)]) {
            state.merge(past);
        }
        assert_eq!(deadline(&fact, &state, Timestamp(*wall), 1_000), *answer, "{case}");
    }
}

#[test]
fn an_acknowledgement_ends_the_deadline_and_frees_the_offset() {
    let mut watch = watch();
    take(&mut watch, 0, sent(1, 0, 0), 0, 0);
    take(&mut watch, 1, sent(2, 0, 0), 0, 10);
    assert_eq!(moved(&mut watch), None);
    watch.disarm(id(2));
    assert_eq!(moved(&mut watch), None, "the first still stands on its offset");
    watch.disarm(id(1));
    assert_eq!((moved(&mut watch), watch.armed(), watch.next_due()), (Some(2), 0, None));
}

#[test]
fn a_missed_deadline_holds_its_offset_until_what_follows_is_durable() {
    let mut watch = watch();
    take(&mut watch, 0, sent(1, 0, 0), 0, 5);
    assert_eq!(watch.next_due(), Some(Millis(5 + ACK)));
    assert_eq!(watch.expire(Millis(4 + ACK), 10), []);
    let missed = watch.expire(Millis(5 + ACK), 10);
    assert_eq!(missed, [sent(1, 0, 0)]);
    assert_eq!(watch.expire(Millis(9_999), 10), [], "handed out once");
    assert_eq!(moved(&mut watch), None);
    watch.ended(&missed[0]);
    assert_eq!((moved(&mut watch), watch.held()), (Some(1), 0));
}

#[test]
fn sent_again_starts_no_second_chain() {
    let mut watch = watch();
    take(&mut watch, 0, sent(1, 0, 1), 0, 0);
    // The second device's, and one of an earlier attempt: neither puts the deadline off.
    take(&mut watch, 1, sent(1, 0, 1), 0, 200);
    take(&mut watch, 2, sent(1, 0, 0), 0, 250);
    assert_eq!(watch.armed(), 1);
    // A retry of its own takes the earlier one's place, and its offset.
    take(&mut watch, 3, sent(1, 0, 2), 0, 260);
    assert_eq!((watch.armed(), moved(&mut watch)), (1, Some(3)));
    assert_eq!(watch.expire(Millis(ACK), 10), [], "the deadline of attempt 1 ended with it");
    assert_eq!(watch.expire(Millis(260 + ACK), 10), [sent(1, 0, 2)]);
    // An administrator's new round counts from zero again.
    take(&mut watch, 4, sent(1, 1, 0), 0, 600);
    assert_eq!(watch.expire(Millis(600 + ACK), 10), [sent(1, 1, 0)]);
}

/// A device that lost its connection just before the deadline has the whole time on its new one. It may come back so often
/// that an attempt lasts (1 + renewals) times the time at most: a device that comes back again and again and never answers
/// is one that does not acknowledge, and its attempts end too.
#[test]
fn who_comes_back_has_the_whole_time_again_and_not_for_ever() {
    let mut watch = watch();
    let to = |device| To { device: Some(device), accepted_at: None };
    let send = |watch: &mut Watch, offset, device, now| {
        assert!(watch.took(at(offset)));
        watch.arm(sent(1, 0, 0), to(device), at(offset), 0, Millis(now));
        watch.settled(at(offset));
    };
    send(&mut watch, 0, 7, 0);
    send(&mut watch, 1, 7, ACK - 1);
    assert_eq!(watch.expire(Millis(ACK), 10), [], "no failed attempt is charged for a lost connection");
    assert_eq!(moved(&mut watch), Some(1), "the later fact says it: the earlier one is free");
    send(&mut watch, 2, 8, ACK + 50);
    assert_eq!(watch.next_due(), Some(Millis(2 * ACK - 1)), "another device puts nothing off");
    send(&mut watch, 3, 7, 2 * ACK - 2);
    send(&mut watch, 4, 7, 3 * ACK - 3);
    assert_eq!(watch.expire(Millis(3 * ACK - 2), 10), [sent(1, 0, 0)], "the third time it is judged");
}

#[test]
fn one_sent_before_its_retry_is_due_has_until_the_retry_s_own_deadline() {
    let mut watch = watch();
    take(&mut watch, 0, sent(1, 0, 1), 600, 100);
    take(&mut watch, 1, sent(2, 0, 0), 0, 110);
    assert_eq!(watch.expire(Millis(100 + ACK + 599), 10), [sent(2, 0, 0)]);
    assert_eq!(watch.expire(Millis(100 + ACK + 600), 10), [sent(1, 0, 1)]);
}

#[test]
fn parked_ends_what_was_sent_early_and_spares_who_is_there_now() {
    let mut watch = watch();
    take(&mut watch, 0, sent(1, 0, 1), 600, 100);
    take(&mut watch, 1, sent(2, 0, 0), 0, 100);
    watch.parked(id(1), 0, Attempt(1));
    watch.parked(id(2), 0, Attempt(0));
    assert_eq!(watch.expire(Millis(100_000), 10), [sent(2, 0, 0)]);
}

#[test]
fn beyond_the_bound_the_oldest_are_judged_at_once() {
    let mut watch = Watch::new(ACK, 2, 0);
    watch.open(P);
    for n in 0..5 {
        take(&mut watch, u64::from(n), sent(n, 0, 0), 0, u64::from(n));
    }
    assert_eq!(watch.expire(Millis(5), 10), [sent(0, 0, 0), sent(1, 0, 0), sent(2, 0, 0)]);
}

#[test]
fn a_partition_given_up_leaves_nothing_behind() {
    let mut watch = watch();
    take(&mut watch, 0, sent(1, 0, 0), 0, 0);
    watch.close(P);
    assert!(!watch.took(at(1)));
    watch.arm(sent(2, 0, 0), To::default(), at(1), 0, Millis(0));
    assert_eq!((watch.armed(), watch.held(), watch.next_due()), (0, 0, None));
    watch.open(P);
    take(&mut watch, 0, sent(1, 0, 0), 0, 50);
    assert_eq!(watch.expire(Millis(50 + ACK), 10), [sent(1, 0, 0)], "the next owner reads it again and arms it");
}

/// What may happen to a message, at a moment.
#[derive(Debug, Clone, Copy)]
enum Step {
    Sent { early: u64 },
    Acked,
    Failed,
    Parked,
    Pass(u64),
    Expire,
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<(u8, Step)>> {
    let step = prop_oneof![
        4 => prop_oneof![3 => Just(0u64), 1 => 1u64..400].prop_map(|early| Step::Sent { early }),
        1 => Just(Step::Acked),
        1 => Just(Step::Failed),
        1 => Just(Step::Parked),
        3 => (1u64..400).prop_map(Step::Pass),
        3 => Just(Step::Expire),
        1 => Just(Step::Crash),
    ];
    proptest::collection::vec((0u8..4, step), 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// P4 and §3.3: over any history, with crashes: attempts only grow and never pass six, a chain ends, and an offset is
    /// given out only when no deadline stands on it or before it.
    #[test]
    fn p4_attempts_end_and_no_offset_passes_a_deadline(steps in steps()) {
        let mut watch = watch();
        let (mut now, mut next) = (0u64, 0u64);
        let mut committed = 0u64;
        // The model: what a replay would bring (offset → message and attempt), the attempt due per message, who is done.
        let mut log: Vec<(u8, u8)> = Vec::new();
        let mut attempts = BTreeMap::<u8, u8>::new();
        let mut done = BTreeSet::<u8>::new();
        // Deadlines that must stand, by message: the attempt.
        let mut waited = BTreeMap::<u8, (u8, u64)>::new();
        for (n, step) in steps {
            let attempt = attempts.get(&n).copied().unwrap_or(0);
            match step {
                Step::Sent { early } if !done.contains(&n) => {
                    take(&mut watch, next, sent(n, 0, attempt), early, now);
                    if waited.get(&n).is_none_or(|(there, _)| *there < attempt) { waited.insert(n, (attempt, next)); }
                    log.push((n, attempt));
                    next += 1;
                }
                Step::Acked => { done.insert(n); waited.remove(&n); watch.disarm(id(n)); }
                Step::Failed if waited.contains_key(&n) => {
                    watch.failed(id(n), 0, Attempt(attempt));
                    waited.remove(&n);
                    match Attempt(attempt).failed() { Next::Retry(_, next) => { attempts.insert(n, next.0); } Next::Bury => { done.insert(n); } }
                }
                Step::Parked => {
                    let before = watch.armed();
                    watch.parked(id(n), 0, Attempt(attempt));
                    if watch.armed() < before { waited.remove(&n); }
                }
                Step::Pass(ms) => now += ms,
                Step::Expire => for missed in watch.expire(Millis(now), 3) {
                    let n = (0..4).find(|n| id(*n) == missed.id).unwrap();
                    let (attempt, _) = waited.remove(&n).expect("only what is waited for can be missed");
                    prop_assert_eq!(missed.attempt, Attempt(attempt));
                    prop_assert!(missed.attempt <= Attempt::LAST);
                    match missed.attempt.failed() {
                        Next::Retry(_, next) => { prop_assert!(attempts.insert(n, next.0).is_none_or(|before| before < next.0)); }
                        Next::Bury => { done.insert(n); }
                    }
                    watch.ended(&missed);
                },
                Step::Crash => {
                    if let Some(offset) = moved(&mut watch) { committed = offset; }
                    watch = self::watch();
                    waited.clear();
                    for (offset, (n, attempt)) in (0u64..).zip(&log).skip(committed as usize) {
                        prop_assert!(watch.took(at(offset)));
                        // What `deadline` says from the state.
                        if !done.contains(n) && attempts.get(n).is_none_or(|due| attempt >= due) {
                            watch.arm(sent(*n, 0, *attempt), To::default(), at(offset), 0, Millis(now));
                            if waited.get(n).is_none_or(|(there, _)| there < attempt) { waited.insert(*n, (*attempt, offset)); }
                        }
                        watch.settled(at(offset));
                    }
                }
                Step::Sent { .. } | Step::Failed => {}
            }
            if let Some(offset) = moved(&mut watch) { committed = offset; }
            prop_assert_eq!(watch.armed(), waited.len());
            prop_assert!(waited.values().all(|(_, offset)| *offset >= committed), "an offset passed a deadline");
        }
        // Nothing is left standing: every chain ends and every offset comes free.
        now += 10_000;
        while let Some(missed) = watch.expire(Millis(now), 1).pop() { watch.ended(&missed); }
        if let Some(offset) = moved(&mut watch) { committed = offset; }
        prop_assert_eq!((committed, watch.armed(), watch.held()), (next, 0, 0));
    }
}
