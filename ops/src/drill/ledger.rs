//! The ledger of a drill: what was promised to whom, what phones saw, and whether the two agree. Pure: no clock, no socket.
//!
//! It is asked when nobody sends and every sender knows what became of its last request. So it is exact: every accepted
//! message is one entry, and what a phone saw without an entry is a fault like what it did not see.

use std::collections::{HashMap, HashSet};

use schemas::{Priority, Reason, Status, Timestamp};

/// Faults that are told in words; the rest are counted.
const TOLD: usize = 20;

/// The numbered messages of one sender to one recipient in one lane: they arrive in this order.
pub(super) type Stream = (&'static str, Priority);

/// What the answer to a cancellation was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cancel {
    /// 200: it is taken back.
    Done,
    /// 409: it has gone.
    TooLate,
    /// 202: asked for, and decided later.
    Open,
}

/// What holds for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Promise {
    /// It arrives, after those of its stream with a smaller number.
    InOrder(Stream, u64),
    /// It arrives.
    Arrives,
    /// It arrives, and not before this.
    NotBefore(Timestamp),
    /// Nobody is connected before its time has passed: it fails and never arrives.
    Expires,
    /// It arrives, or its time passes first.
    MayExpire,
    /// It was taken back while a phone may have been connected.
    Cancelled(Cancel),
    /// It was taken back while nobody was connected and nobody could have been told.
    CancelledUnseen(Cancel),
    /// Whether it was accepted is not known: its answer was lost, and later its time had passed. It arrives at most once.
    Perhaps,
}

/// One message as its sender knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sent {
    /// The recipient's number in the drill.
    pub(super) to: usize,
    /// What it says; no other message to this recipient says the same.
    pub(super) content: String,
    /// Its name; unknown for a broadcast's.
    pub(super) id: Option<String>,
    /// Whether the connected business user sent it.
    pub(super) by_desk: bool,
    /// What holds for it.
    pub(super) promise: Promise,
}

/// One message as a phone saw it, the first time it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    /// Its name.
    pub(super) id: String,
    /// What it says.
    pub(super) content: String,
    /// When.
    pub(super) at: Timestamp,
}

/// How a message must stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stands {
    /// Acknowledged.
    Delivered,
    /// Given up for this reason.
    Failed(Reason),
    /// It was seen and its end came, too. What acknowledged it may have died with the server; and that a phone comes back with
    /// a cursor behind it says no more, because cursors pass over what has ended. So it is acknowledged, or failed for this.
    Either(Reason),
}

impl Stands {
    /// Whether this status and reason are as they must be.
    pub(super) fn allows(self, status: Status, reason: Option<&str>) -> bool {
        let failed = |with: Reason| status == Status::Failed && reason.is_some() && reason == word(with).as_deref();
        match self {
            Self::Delivered => status == Status::Delivered,
            Self::Failed(with) => failed(with),
            Self::Either(with) => status == Status::Delivered || failed(with),
        }
    }

    /// The highest status that a sender may have been told.
    fn highest(self) -> Status {
        match self {
            Self::Delivered | Self::Either(_) => Status::Delivered,
            Self::Failed(_) => Status::Failed,
        }
    }
}

/// A reason as the API names it.
fn word(reason: Reason) -> Option<String> {
    serde_json::to_value(reason).ok()?.as_str().map(str::to_owned)
}

/// What one tenant's books must say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Expected {
    /// Distinct messages accepted.
    pub(super) accepted: u64,
    /// Of those, acknowledged.
    pub(super) delivered: u64,
    /// Of those, failed with a reason.
    pub(super) failed: u64,
    /// Of those, seen, and then ended: acknowledged, or failed where the acknowledgement died with the server.
    pub(super) either: u64,
    /// Messages that may or may not have been accepted, all of which have failed if they were.
    pub(super) perhaps: u64,
}

/// What all of it comes to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Account {
    /// Entries.
    pub(super) accepted: u64,
    /// Did not arrive and should have.
    pub(super) lost: u64,
    /// Arrived more than once, under two names.
    pub(super) doubled: u64,
    /// Arrived and should not have: expired, taken back, too early, or sent by nobody.
    pub(super) unwanted: u64,
    /// Out of order.
    pub(super) out_of_order: u64,
    /// Failed because their time passed, as they should.
    pub(super) expired: u64,
    /// Taken back.
    pub(super) cancelled: u64,
    /// What each tenant's books must say.
    pub(super) tenants: Vec<Expected>,
    /// How each entry must stand; `None`: not known.
    pub(super) stands: Vec<Option<Stands>>,
    /// What is wrong, in words.
    pub(super) faults: Vec<String>,
}

impl Account {
    fn fault(&mut self, say: impl FnOnce() -> String) {
        if self.faults.len() < TOLD {
            self.faults.push(say());
        }
    }
}

/// Draws the account up: `seen[n]` is what the phone of recipient `n` saw, in order, and `tenant(n)` whose recipient it is.
pub(super) fn account(sent: &[Sent], seen: &[Vec<Seen>], tenants: usize, tenant: impl Fn(usize) -> usize) -> Account {
    let mut account = Account { tenants: vec![Expected::default(); tenants], ..Account::default() };
    let mut by_content: HashMap<(usize, &str), Vec<&Seen>> = HashMap::new();
    for (to, seen) in seen.iter().enumerate() {
        for one in seen {
            by_content.entry((to, &one.content)).or_default().push(one);
        }
    }
    for one in sent {
        let came = by_content.remove(&(one.to, one.content.as_str())).unwrap_or_default();
        arrival(&mut account, one, &came);
        let stands = stands(one.promise, !came.is_empty());
        let expected = &mut account.tenants[tenant(one.to)];
        match stands {
            None => expected.perhaps += 1,
            Some(stands) => {
                expected.accepted += 1;
                expected.delivered += u64::from(stands == Stands::Delivered);
                expected.failed += u64::from(matches!(stands, Stands::Failed(_)));
                expected.either += u64::from(matches!(stands, Stands::Either(_)));
                account.accepted += 1;
            }
        }
        match stands {
            Some(Stands::Failed(Reason::Expired)) => account.expired += 1,
            Some(Stands::Failed(Reason::Cancelled)) => account.cancelled += 1,
            _ => {}
        }
        account.stands.push(stands);
    }
    for ((to, content), came) in by_content {
        account.unwanted += came.len() as u64;
        account.fault(|| format!("recipient {to} was shown {content:?}, which nobody sent"));
    }
    order(&mut account, sent, seen);
    account
}

/// How a message must stand, by whether it was seen.
fn stands(promise: Promise, was_seen: bool) -> Option<Stands> {
    let end = match promise {
        Promise::InOrder(..) | Promise::Arrives | Promise::NotBefore(_) => return Some(Stands::Delivered),
        Promise::Perhaps if !was_seen => return None,
        Promise::Expires | Promise::MayExpire | Promise::Perhaps => Reason::Expired,
        Promise::Cancelled(_) | Promise::CancelledUnseen(_) => Reason::Cancelled,
    };
    Some(if was_seen { Stands::Either(end) } else { Stands::Failed(end) })
}

fn arrival(account: &mut Account, sent: &Sent, came: &[&Seen]) {
    let Sent { to, content, id, promise, .. } = sent;
    if came.len() > 1 {
        account.doubled += came.len() as u64 - 1;
        account.fault(|| format!("recipient {to} was shown {content:?} under {} names: {came:?}", came.len()));
    }
    let must = match promise {
        Promise::InOrder(..) | Promise::Arrives | Promise::NotBefore(_) => true,
        Promise::Cancelled(cancel) | Promise::CancelledUnseen(cancel) => *cancel == Cancel::TooLate,
        Promise::Expires | Promise::MayExpire | Promise::Perhaps => false,
    };
    let Some(first) = came.first() else {
        if must {
            account.lost += 1;
            account.fault(|| format!("{content:?} ({id:?}, {promise:?}) to recipient {to} never arrived"));
        }
        return;
    };
    if id.as_ref().is_some_and(|id| *id != first.id) {
        account.doubled += 1;
        account.fault(|| format!("{content:?} to recipient {to} was accepted as {id:?} and shown as {}", first.id));
    }
    let unwanted = match promise {
        Promise::Expires => Some("its time had passed"),
        Promise::CancelledUnseen(Cancel::Done) => Some("it had been taken back"),
        Promise::NotBefore(at) if first.at < *at => Some("its time had not come"),
        _ => None,
    };
    if let Some(why) = unwanted {
        account.unwanted += 1;
        account.fault(|| format!("recipient {to} was shown {content:?} ({}) although {why}", first.id));
    }
}

fn order(account: &mut Account, sent: &[Sent], seen: &[Vec<Seen>]) {
    let place = |one: &Sent| match one.promise {
        Promise::InOrder(stream, n) => Some(((one.to, one.content.clone()), (stream, n))),
        _ => None,
    };
    let places: HashMap<_, _> = sent.iter().filter_map(place).collect();
    for (to, seen) in seen.iter().enumerate() {
        let mut last = HashMap::<Stream, u64>::new();
        for one in seen {
            let Some((stream, n)) = places.get(&(to, one.content.clone())) else { continue };
            match last.insert(*stream, *n) {
                Some(before) if before >= *n => {
                    account.out_of_order += 1;
                    account.fault(|| format!("recipient {to} was shown {:?} after number {before}", one.content));
                }
                _ => {}
            }
        }
    }
}

/// Whether one tenant's books say what they must: `Err` in words.
pub(super) fn books(expected: &Expected, said: &serde_json::Value) -> Result<(), String> {
    let of = |name: &str| said[name].as_u64().unwrap_or(u64::MAX);
    let extra = of("accepted").wrapping_sub(expected.accepted);
    let either = of("delivered").wrapping_sub(expected.delivered);
    let right = extra <= expected.perhaps
        && either <= expected.either
        && of("failed") == expected.failed + extra + (expected.either - either)
        && ["unrecorded", "pending", "sent", "read", "residue"].iter().all(|name| of(name) == 0);
    if right { Ok(()) } else { Err(format!("the books say {said}, and the drill {expected:?}")) }
}

/// Whether a status that a sender was told of can be: never above what the message came to, and on one connection never back.
pub(super) fn told(frames: &[(u32, Status)], stands: Stands) -> Result<(), String> {
    let mut highest = HashMap::<u32, Status>::new();
    for (connection, status) in frames {
        let before = highest.entry(*connection).or_insert(*status);
        if *status > stands.highest() || *status < *before {
            return Err(format!("the sender was told {frames:?} of a message that is {stands:?}"));
        }
        *before = *status;
    }
    Ok(())
}

/// Ids that are asked for one by one: all of those with a story of their own, and every `nth` of the others. `from` on.
pub(super) fn sample(sent: &[Sent], from: usize, nth: usize) -> Vec<usize> {
    let plain = |one: &Sent| matches!(one.promise, Promise::InOrder(..)) && !one.by_desk;
    let mut wanted: HashSet<usize> = (from..sent.len()).filter(|n| !plain(&sent[*n])).collect();
    wanted.extend((from..sent.len()).step_by(nth.max(1)));
    let mut wanted: Vec<_> = wanted.into_iter().filter(|n| sent[*n].id.is_some()).collect();
    wanted.sort_unstable();
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const HIGH: Stream = ("single", Priority::High);

    fn sent(content: &str, promise: Promise) -> Sent {
        Sent { to: 0, content: content.to_owned(), id: Some(format!("id-{content}")), by_desk: false, promise }
    }

    fn seen(content: &str, at: i64) -> Seen {
        Seen { id: format!("id-{content}"), content: content.to_owned(), at: Timestamp(at) }
    }

    fn drawn(sent: &[Sent], seen: Vec<Seen>) -> Account {
        account(sent, &[seen], 1, |_| 0)
    }

    #[test]
    fn each_promise_that_is_broken_is_a_fault_and_one_that_is_kept_is_none() {
        use Promise::{Arrives, Cancelled, CancelledUnseen, Expires, MayExpire, NotBefore, Perhaps};
        // (promise, seen when it is fine, not seen when it is fine)
        let table = [
            (Arrives, true, false),
            (NotBefore(Timestamp(5)), true, false),
            (NotBefore(Timestamp(50)), false, false),
            (Expires, false, true),
            (MayExpire, true, true),
            (Cancelled(Cancel::Done), true, true),
            (Cancelled(Cancel::Open), true, true),
            (Cancelled(Cancel::TooLate), true, false),
            (CancelledUnseen(Cancel::Done), false, true),
            (CancelledUnseen(Cancel::Open), true, true),
            (Perhaps, true, true),
        ];
        for (promise, when_seen, when_not) in table {
            let one = [sent("x", promise)];
            assert_eq!(drawn(&one, vec![seen("x", 10)]).faults.is_empty(), when_seen, "{promise:?} seen");
            assert_eq!(drawn(&one, Vec::new()).faults.is_empty(), when_not, "{promise:?} not seen");
        }
    }

    #[test]
    fn what_nobody_sent_and_what_has_two_names_is_found() {
        let one = [sent("x", Promise::Arrives)];
        assert_eq!(drawn(&one, vec![seen("x", 1), seen("y", 1)]).unwanted, 1);
        let other = Seen { id: "other".to_owned(), ..seen("x", 2) };
        assert_eq!(drawn(&one, vec![seen("x", 1), other.clone()]).doubled, 1);
        assert_eq!(drawn(&one, vec![other]).doubled, 1, "accepted under one name and shown under another");
    }

    #[test]
    fn books_must_say_exactly_what_was_seen() {
        let entries = [sent("a", Promise::Arrives), sent("b", Promise::Expires), sent("c", Promise::Perhaps)];
        let account = drawn(&entries, vec![seen("a", 1)]);
        let expected = account.tenants[0];
        assert_eq!(expected, Expected { accepted: 2, delivered: 1, failed: 1, either: 0, perhaps: 1 });
        let said = |accepted: u64, delivered: u64, failed: u64, pending: u64| {
            json!({ "accepted": accepted, "delivered": delivered, "failed": failed, "pending": pending,
                    "unrecorded": 0, "sent": 0, "read": 0, "residue": 0 })
        };
        assert!(books(&expected, &said(2, 1, 1, 0)).is_ok());
        assert!(books(&expected, &said(3, 1, 2, 0)).is_ok(), "the one that may have been accepted was, and failed");
        let seen_and_ended = Expected { accepted: 3, delivered: 1, failed: 0, either: 2, perhaps: 0 };
        for (delivered, failed, fine) in [(1, 2, true), (2, 1, true), (3, 0, true), (0, 3, false), (2, 2, false)] {
            assert_eq!(books(&seen_and_ended, &said(3, delivered, failed, 0)).is_ok(), fine, "{delivered} {failed}");
        }
        for wrong in [said(1, 1, 0, 0), said(2, 1, 0, 1), said(2, 2, 0, 0), said(4, 1, 3, 0), said(3, 2, 1, 0)] {
            assert!(books(&expected, &wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    #[allow(clippy::type_complexity, reason = "a table")]
    fn frames_never_go_above_what_holds_nor_back_on_a_connection() {
        use Status::{Delivered, Failed, Sent};
        let table: [(&[(u32, Status)], Stands, bool); 6] = [
            (&[(1, Sent), (1, Delivered)], Stands::Delivered, true),
            (&[(1, Failed), (1, Delivered)], Stands::Delivered, true),
            (&[(1, Delivered), (2, Sent)], Stands::Delivered, true),
            (&[(1, Delivered), (1, Sent)], Stands::Delivered, false),
            (&[(1, Delivered)], Stands::Failed(Reason::Expired), false),
            (&[(1, Delivered)], Stands::Either(Reason::Expired), true),
        ];
        for (frames, stands, fine) in table {
            assert_eq!(told(frames, stands).is_ok(), fine, "{frames:?} {stands:?}");
        }
    }

    proptest! {
        #[test]
        fn any_two_that_change_places_are_found(count in 2usize..40, a in 0usize..40, b in 0usize..40) {
            let (a, b) = (a % count, b % count);
            let entries: Vec<_> = (0..count).map(|n| sent(&n.to_string(), Promise::InOrder(HIGH, n as u64))).collect();
            let mut order: Vec<_> = (0..count).map(|n| seen(&n.to_string(), 1)).collect();
            order.swap(a, b);
            let account = drawn(&entries, order);
            prop_assert_eq!(account.out_of_order > 0, a != b);
            prop_assert_eq!(account.lost, 0);
        }

        #[test]
        fn any_one_that_is_missing_is_found(count in 1usize..40, missing in 0usize..40) {
            let entries: Vec<_> = (0..count).map(|n| sent(&n.to_string(), Promise::InOrder(HIGH, n as u64))).collect();
            let kept = (0..count).filter(|n| *n != missing % count).map(|n| seen(&n.to_string(), 1)).collect();
            let account = drawn(&entries, kept);
            prop_assert_eq!((account.lost, account.out_of_order), (1, 0));
        }
    }
}
