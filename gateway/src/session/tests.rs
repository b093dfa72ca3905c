//! The session's rules, one promise a test.

use std::sync::Arc;

use schemas::{
    Cursor, Fact, Inbox, MessageId, Millis, Partition, Position, Reason, State, Status, Timestamp, What,
    cursor::place,
    fact::Past,
    frame::ServerFrame,
    port::{Entry, Hint, Span},
    tier::Attempt,
    view::StatusChange,
};

use super::*;
use crate::testing::{PHONE, message_to, mobile, small_limits};

pub(super) const P: Partition = Partition(2);

pub(super) fn now(ms: u64) -> Now {
    Now { mono: Millis(ms), wall: Timestamp(10_000 + ms as i64) }
}

fn inbox() -> Inbox {
    Inbox { user: mobile(PHONE), partition: P }
}

pub(super) fn at(n: u64) -> Position {
    if n == 0 { Position::START } else { place(1, n) }
}

pub(super) fn hint(n: u64) -> Hint {
    let message = Arc::new(message_to(PHONE, u128::from(n)));
    let (position, prev) = (at(n), at(n - 1));
    Hint { inbox: inbox(), position, prev, seq: None, message, round: 0, attempt: Attempt(0), state: State::default() }
}

fn retry(n: u64, attempt: u8) -> Hint {
    Hint { attempt: Attempt(attempt), ..hint(n) }
}

pub(super) fn entry(n: u64) -> (Entry, State) {
    let message = Arc::new(message_to(PHONE, u128::from(n)));
    let (position, prev) = (at(n), at(n - 1));
    let recorded_at = Timestamp(0);
    (Entry { inbox: inbox(), position, prev, one_way: n, recorded_at, message, end: None, seq: None }, State::default())
}

fn past(what: What) -> Past {
    Past { at: Timestamp(1), what, round: 0, attempt: Attempt(0), device: None }
}

pub(super) fn span(entries: impl IntoIterator<Item = u64>) -> Span {
    Span { entries: entries.into_iter().map(entry).collect(), passed_by_retention: false }
}

pub(super) fn start(have: u64, stored: u64, tail: u64) -> Start {
    let session = schemas::SessionId(uuid::Uuid::from_u128(0x1234_5678_9abc_def0_1122_3344_5566_7788));
    let me = Arc::new(Me { user: mobile(PHONE), device: "d1".parse().unwrap(), session });
    let lane = LaneStart { partition: P, have: at(have), stored: at(stored), tail: at(tail), skip_delivered: false };
    Start { me, lanes: vec![lane], recovered: true, token_ends: None, limits: Arc::new(small_limits()) }
}

/// A session and what it did, written as people read it.
pub(super) struct Bench {
    pub(super) session: Session,
    pub(super) ask: Option<Ask>,
    look_up: Option<LookUp>,
    cursor: Option<Cursor>,
    pub(super) said: Vec<String>,
}

impl Bench {
    pub(super) fn open(start: Start) -> Self {
        let mut fx = Effects::default();
        let session = Session::open(start, now(0), &mut fx);
        let mut bench = Self { session, ask: None, look_up: None, cursor: None, said: Vec::new() };
        bench.take(fx);
        bench
    }

    pub(super) fn with(&mut self, act: impl FnOnce(&mut Session, &mut Effects)) -> Vec<String> {
        let mut fx = Effects::default();
        act(&mut self.session, &mut fx);
        self.take(fx);
        std::mem::take(&mut self.said)
    }

    fn take(&mut self, fx: Effects) {
        let n = |id: MessageId| id.0.as_u128();
        for out in fx.frames {
            match out {
                Out::Heartbeat => self.said.push("heartbeat".to_owned()),
                Out::Text { text, facts } => {
                    let frame: ServerFrame = serde_json::from_str(&text).unwrap();
                    self.said.push(match frame {
                        ServerFrame::Welcome { recovered, cursor, .. } => {
                            format!("welcome {} {recovered}", cursor.position(P).n)
                        }
                        ServerFrame::Messages { items } => {
                            let ids: Vec<_> = items.iter().map(|item| n(item.id)).collect();
                            // Of one's own nothing is said.
                            let own = |item: &&schemas::view::Item| item.from != Sender::User(mobile(PHONE).party);
                            let told: Vec<_> = items.iter().filter(own).map(|item| n(item.id)).collect();
                            assert_eq!(told, facts.iter().map(|fact| n(fact.id)).collect::<Vec<_>>());
                            assert!(facts.iter().all(|fact| fact.what == What::Sent));
                            format!("messages {ids:?}")
                        }
                        ServerFrame::Error { problem, .. } => format!("error {}", problem.code.slug()),
                        ServerFrame::Reconnect { reason, .. } => format!("reconnect {reason}"),
                        ServerFrame::Status(change) => format!("status {} {}", n(change.id), change.status),
                        other => serde_json::to_value(other).unwrap()["type"].as_str().unwrap().to_owned(),
                    });
                }
            }
        }
        let fact = |fact: &Fact| {
            let what = fact.what.status().map(Status::word).unwrap_or("other");
            format!("{what} {} by {}", n(fact.id), fact.attempt.0)
        };
        self.said.extend(fx.facts.iter().map(fact));
        self.said.extend(fx.close.map(|close| format!("close {}", close.code())));
        self.ask = fx.read.or(self.ask);
        self.look_up = fx.look_up.or(self.look_up.take());
        self.cursor = fx.cursor.or(self.cursor.take());
    }

    pub(super) fn hints(&mut self, hints: impl IntoIterator<Item = Hint>) -> Vec<String> {
        let hints: Vec<_> = hints.into_iter().map(|hint| Arc::new(Delivery::new(hint))).collect();
        self.with(|session, fx| session.on_hints(hints, false, now(1), fx))
    }

    #[allow(clippy::needless_pass_by_value)] // Each span is made where it is answered.
    pub(super) fn span(&mut self, span: Span) -> Vec<String> {
        self.ask = None;
        self.with(|session, fx| session.on_span(&span, now(2), fx))
    }

    pub(super) fn text(&mut self, text: &str) -> Vec<String> {
        self.with(|session, fx| session.on_text(text, now(3), fx))
    }

    pub(super) fn ack(&mut self, n: u64) -> Vec<String> {
        self.text(&format!(r#"{{"type":"ack","cursor":"{}"}}"#, Cursor::at(P, at(n))))
    }

    pub(super) fn asked_from(&self) -> Option<u64> {
        self.ask.map(|ask| ask.from.n)
    }
}

/// A session that has nothing behind it and has said welcome.
pub(super) fn live() -> Bench {
    let mut bench = Bench::open(start(0, 0, 0));
    assert_eq!(std::mem::take(&mut bench.said), ["welcome 0 true"]);
    assert_eq!(bench.ask, None);
    bench
}

pub(super) fn id(n: u128) -> String {
    MessageId(uuid::Uuid::from_u128(n)).to_string()
}

#[test]
fn what_comes_together_goes_out_in_one_frame_and_frames_end_at_their_bounds() {
    let mut bench = live();
    assert_eq!(bench.hints([hint(1), hint(2)]), ["messages [1, 2]"]);
    assert_eq!(bench.hints([hint(3), hint(4), hint(5)]), ["messages [3, 4, 5]"]);
    let mut bench = live();
    assert_eq!(bench.hints((1..=5).map(hint)), ["messages [1, 2, 3]", "messages [4, 5]"], "three items a frame");
    let mut bench = live();
    let large = |n| {
        let mut hint = hint(n);
        let mut message = (*hint.message).clone();
        message.content.body = "x".repeat(900);
        hint.message = Arc::new(message);
        hint
    };
    assert_eq!(bench.hints([large(1), large(2)]), ["messages [1]", "messages [2]"], "1,200 bytes a frame");
}

#[test]
fn a_delivery_that_does_not_continue_is_read_from_history_first() {
    let mut bench = live();
    assert!(bench.hints([hint(1)]).len() == 1 && bench.hints([hint(3)]).is_empty());
    assert_eq!(bench.asked_from(), Some(1));
    assert!(bench.hints([hint(4)]).is_empty(), "nothing is sent meanwhile");
    assert_eq!(bench.span(span([2, 3, 4])), ["messages [2, 3, 4]"]);
    assert_eq!(bench.asked_from(), Some(4), "a full answer may not be the end");
    assert!(bench.span(span([])).is_empty());
    assert_eq!(bench.hints([hint(5)]), ["messages [5]"], "live again");
}

#[test]
fn a_hint_that_history_does_not_know_is_not_asked_for_without_end() {
    let mut bench = live();
    assert!(bench.hints([hint(9)]).is_empty());
    assert_eq!(bench.asked_from(), Some(0));
    assert!(bench.span(span([])).is_empty());
    assert_eq!(bench.asked_from(), None);
    assert_eq!(bench.hints([hint(1)]), ["messages [1]"]);
}

#[test]
fn a_hint_during_a_read_that_began_before_it_makes_another_read() {
    let mut bench = Bench::open(start(0, 0, 1));
    bench.said.clear();
    assert_eq!(bench.asked_from(), Some(0));
    assert!(bench.hints([hint(2)]).is_empty());
    assert_eq!(bench.span(span([1])), ["messages [1]"]);
    assert_eq!(bench.asked_from(), Some(1));
    assert_eq!(bench.span(span([2])), ["messages [2]"]);
    assert_eq!(bench.asked_from(), None);
}

#[test]
fn a_mailbox_that_ran_over_is_made_good_from_history() {
    let mut bench = live();
    bench.with(|session, fx| session.on_hints([], true, now(1), fx));
    assert_eq!(bench.asked_from(), Some(0));
    assert_eq!(bench.span(span([1, 2])), ["messages [1, 2]"]);
    assert_eq!(bench.asked_from(), None);
}

#[test]
fn past_the_window_it_waits_for_acknowledgements_and_reads_on_at_half() {
    let mut bench = live();
    assert_eq!(bench.hints((1..=7).map(hint)), ["messages [1, 2, 3]", "messages [4, 5]"]);
    assert_eq!(bench.asked_from(), None);
    assert_eq!(bench.ack(2), ["delivered 1 by 0", "delivered 2 by 0"]);
    assert_eq!(bench.asked_from(), None, "three of five are outstanding");
    bench.ack(3);
    assert_eq!(bench.ask, Some(Ask { partition: P, from: at(5), limit: 3 }));
    assert_eq!(bench.span(span([6, 7])), ["messages [6, 7]"]);
    assert_eq!(bench.cursor, Some(Cursor::at(P, at(3))));
}

#[test]
fn a_cursor_acknowledges_everything_up_to_it_once() {
    let mut bench = live();
    bench.hints((1..=3).map(hint));
    assert_eq!(bench.ack(2), ["delivered 1 by 0", "delivered 2 by 0"]);
    assert!(bench.ack(2).is_empty() && bench.ack(1).is_empty());
    assert_eq!(bench.ack(3), ["delivered 3 by 0"]);
}

#[test]
fn an_acknowledgement_beyond_what_was_sent_is_refused() {
    let mut bench = live();
    bench.hints([hint(1)]);
    assert_eq!(bench.ack(2), ["error ack-beyond-sent"]);
    assert_eq!(bench.cursor, None);
    let foreign = Cursor::at(Partition(9), at(1));
    let text = format!(r#"{{"type":"ack","cursor":"{foreign}"}}"#);
    assert_eq!(bench.text(&text), ["error ack-beyond-sent"]);
}

#[test]
fn ids_set_the_status_and_move_no_cursor() {
    let mut bench = live();
    bench.hints((1..=3).map(hint));
    let text = format!(r#"{{"type":"ack","ids":["{}","{}"],"unknown_field":1}}"#, id(2), id(9));
    assert_eq!(bench.text(&text), ["delivered 2 by 0"]);
    let unknown = vec![MessageId(uuid::Uuid::from_u128(9))];
    assert_eq!(bench.look_up, Some(LookUp { ids: unknown, what: What::Delivered }));
    assert_eq!(bench.cursor, None);
    assert_eq!(bench.ack(3), ["delivered 1 by 0", "delivered 3 by 0"]);
}

#[test]
fn reading_is_also_receiving() {
    let mut bench = live();
    bench.hints([hint(1)]);
    assert_eq!(bench.text(&format!(r#"{{"type":"read","ids":["{}"]}}"#, id(1))), ["delivered 1 by 0"]);
    assert_eq!(bench.look_up.as_ref().map(|l| (l.ids.len(), l.what)), Some((1, What::Read)));
    assert_eq!(
        bench.text(r#"{"type":"read","conversation_id":"00000000-0000-0000-0000-000000000001"}"#),
        ["error invalid-field"]
    );
}

#[test]
fn a_retry_of_what_stands_on_the_socket_only_says_so() {
    let mut bench = live();
    bench.hints([hint(1), hint(2)]);
    assert_eq!(bench.hints([retry(1, 1)]), ["sent 1 by 1"]);
    assert!(bench.hints([retry(1, 1), hint(1)]).is_empty(), "once for each attempt");
    assert_eq!(bench.ack(1), ["delivered 1 by 1"]);
    assert_eq!(bench.hints([retry(1, 2)]), ["delivered 1 by 2"], "its device has it: that is said again");
    assert!(bench.hints([hint(1)]).is_empty(), "a first delivery of an earlier place says nothing");
}

#[test]
fn what_is_not_acknowledged_in_time_ends_the_session() {
    let mut bench = live();
    bench.hints([hint(1)]);
    assert_eq!(bench.session.due(), Millis(1 + 1_000));
    assert!(bench.with(|session, fx| session.on_tick(now(1_000), fx)).is_empty());
    assert_eq!(bench.with(|session, fx| session.on_tick(now(1_001), fx)), ["reconnect no_ack", "close 4003"]);
    assert!(bench.hints([hint(2)]).is_empty(), "closed is closed");
    assert_eq!(bench.ack(1), ["delivered 1 by 0"], "what it still says counts");
}

#[test]
fn heartbeats_go_out_when_nothing_else_does_and_silence_ends_the_session() {
    let mut bench = live();
    assert_eq!(bench.session.due(), Millis(25_000));
    assert_eq!(bench.with(|session, fx| session.on_tick(now(25_000), fx)), ["heartbeat"]);
    bench.session.on_alive(now(25_001));
    assert_eq!(bench.session.due(), Millis(50_000));
    assert_eq!(bench.with(|session, fx| session.on_tick(now(50_000), fx)), ["heartbeat"]);
    assert_eq!(bench.with(|session, fx| session.on_tick(now(100_001), fx)), ["close 4002"]);
}

#[test]
fn the_session_ends_with_its_token_unless_it_is_renewed() {
    let mut begin = start(0, 0, 0);
    begin.token_ends = Some(Millis(500));
    let mut bench = Bench::open(begin.clone());
    bench.said.clear();
    assert_eq!(bench.session.due(), Millis(500));
    assert_eq!(bench.with(|session, fx| session.renewed(Ok(Some(Millis(900))), fx)), ["accepted"]);
    assert!(bench.with(|session, fx| session.on_tick(now(500), fx)).is_empty());
    assert_eq!(bench.with(|session, fx| session.on_tick(now(900), fx)), ["close 4100"]);
    let mut bench = Bench::open(begin);
    bench.said.clear();
    assert_eq!(bench.with(|session, fx| session.renewed(Err(()), fx)), ["close 4101"]);
    let mut fx = Effects::default();
    live().session.on_text(r#"{"type":"token","token":"t"}"#, now(1), &mut fx);
    assert_eq!(fx.verify.as_deref(), Some("t"));
}

#[test]
fn the_node_says_why_it_ends_a_session() {
    let mut bench = live();
    assert_eq!(bench.with(|session, fx| session.supersede(fx)), ["reconnect newer_session", "close 4200"]);
    let mut bench = live();
    assert_eq!(bench.with(|session, fx| session.drain(10_000, fx)), ["reconnect drain", "close 4000"]);
    let mut bench = live();
    assert_eq!(bench.with(|session, fx| session.on_unreadable(fx)), ["reconnect unavailable", "close 4005"]);
}

#[test]
fn drained_clients_come_back_spread_over_the_time() {
    let afters: std::collections::HashSet<u64> = (0..50u128)
        .map(|n| {
            let mut begin = start(0, 0, 0);
            let random = uuid::Uuid::from_u128(n.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835));
            begin.me = Arc::new(Me { session: schemas::SessionId(random), ..(*begin.me).clone() });
            Bench::open(begin).session.spread(10_000)
        })
        .collect();
    assert!(afters.len() > 40 && afters.iter().all(|after| *after < 10_000));
}

#[test]
fn frames_it_does_not_know_are_answered_and_storms_end_the_session() {
    let mut limits = small_limits();
    limits.socket.frames_per_second = 6;
    let mut bench = Bench::open(Start { limits: Arc::new(limits), ..start(0, 0, 0) });
    bench.said.clear();
    let table = [
        (r#"{"type":"dance"}"#, "error unknown-frame"),
        (r#"not json"#, "error invalid-json"),
        (r#"{"type":"ack","cursor":"!"}"#, "error invalid-field"),
        (r#"{"type":"ping","extra":true}"#, "pong"),
        (r#"{"type":"send","ref":"r1","content":"hi"}"#, "error invalid-field"),
        (r#"{"type":"send","content":"hi"}"#, "error invalid-field"),
    ];
    for (text, answer) in table {
        assert_eq!(bench.text(text), [answer], "{text}");
    }
    assert_eq!(bench.text(r#"{"type":"ping"}"#), ["close 4202"]);
}

#[test]
fn too_many_ids_are_refused() {
    let mut limits = small_limits();
    limits.socket.ids_per_frame = 1;
    let mut bench = Bench::open(Start { limits: Arc::new(limits), ..start(0, 0, 0) });
    bench.said.clear();
    let text = format!(r#"{{"type":"ack","ids":["{}","{}"]}}"#, id(1), id(2));
    assert_eq!(bench.text(&text), ["error invalid-field"]);
}

#[test]
fn withdrawn_entries_are_passed_over_and_the_chain_stays_whole() {
    let mut bench = Bench::open(start(0, 0, 3));
    bench.said.clear();
    let mut read = span([1, 2, 3]);
    read.entries[1].1.merge(past(What::Failed(Reason::Cancelled)));
    assert_eq!(bench.span(read), ["messages [1, 3]"]);
    bench.span(span([]));
    let mut withdrawn = hint(4);
    withdrawn.state.merge(past(What::Failed(Reason::Expired)));
    assert_eq!(bench.hints([withdrawn, hint(5)]), ["messages [5]"]);
}

#[test]
fn what_the_client_has_is_acknowledged_before_its_cursor_is_stored() {
    let mut bench = Bench::open(start(3, 1, 4));
    assert_eq!(std::mem::take(&mut bench.said), ["welcome 3 true"]);
    assert_eq!((bench.asked_from(), &bench.cursor), (Some(1), &None));
    assert!(bench.ack(3).is_empty() && bench.cursor.is_none(), "not beyond what was sent, and not yet shown");
    let mut read = span([2, 3, 4]);
    read.entries[0].1.merge(past(What::Delivered));
    assert_eq!(bench.span(read), ["messages [4]", "delivered 3 by 0"]);
    assert_eq!(bench.cursor, Some(Cursor::at(P, at(3))));
}

#[test]
fn a_cursor_past_what_expired_unseen_does_not_say_that_it_arrived() {
    let expired = |n, what: Option<What>| {
        let (mut entry, mut state) = entry(n);
        let mut message = (*entry.message).clone();
        message.expires_at = Some(Timestamp(0));
        entry.message = std::sync::Arc::new(message);
        if let Some(what) = what {
            state.merge(past(what));
        }
        (entry, state)
    };
    let table = [(entry(1), true), (expired(1, None), false), (expired(1, Some(What::Sent)), true)];
    for ((entry, state), acknowledged) in table {
        assert_eq!(crate::delivery::is_acknowledged_by_cursor(&entry, &state, Timestamp(1)), acknowledged, "{state:?}");
    }
}

#[test]
fn a_new_device_passes_over_what_the_others_have() {
    let mut begin = start(0, 0, 4);
    begin.lanes[0].skip_delivered = true;
    let mut bench = Bench::open(begin);
    bench.said.clear();
    let mut read = span([1, 2, 3]);
    read.entries[0].1.merge(past(What::Delivered));
    read.entries[2].1.merge(past(What::Read));
    assert_eq!(bench.span(read), ["messages [2, 3]"], "from the first that nobody has, everything");
}

#[test]
fn retention_that_overtakes_a_session_is_not_hidden() {
    let mut bench = live();
    bench.hints([hint(1), hint(9)]);
    let passed = Span { passed_by_retention: true, ..span([5, 6]) };
    assert_eq!(bench.span(passed), ["reconnect retention", "close 4005"]);
    // What the client had already may go.
    let mut bench = Bench::open(start(4, 1, 6));
    bench.said.clear();
    let passed = Span { passed_by_retention: true, ..span([4, 5, 6]) };
    assert_eq!(bench.span(passed)[0], "messages [5, 6]");
    let mut bench = Bench::open(start(4, 1, 4));
    bench.said.clear();
    assert!(bench.span(Span { passed_by_retention: true, ..span([]) }).is_empty());
    assert_eq!(bench.cursor, Some(Cursor::at(P, at(4))));
    assert_eq!(bench.hints([hint(5)]), ["messages [5]"]);
}

#[test]
fn after_presence_lost_sight_the_tails_tell_what_is_missing() {
    let mut bench = live();
    bench.hints([hint(1)]);
    bench.with(|session, fx| session.on_tails(&[(P, at(1))], fx));
    assert_eq!(bench.asked_from(), None);
    bench.with(|session, fx| session.on_tails(&[(P, at(2))], fx));
    assert_eq!(bench.asked_from(), Some(1));
}

#[test]
fn a_sender_is_told_of_changes() {
    let mut bench = live();
    let id = MessageId(uuid::Uuid::from_u128(7));
    let note =
        StatusChange { id, status: Status::Read, at: Timestamp(1), reason: None, client_ref: None, metadata: None };
    assert_eq!(bench.with(|session, fx| session.on_notes(vec![note], now(1), fx)), ["status 7 read"]);
}

#[test]
fn a_user_with_several_inboxes_is_given_a_cursor_over_all() {
    let mut begin = start(0, 0, 0);
    let other = LaneStart { partition: Partition(5), ..begin.lanes[0] };
    begin.lanes.push(other);
    let mut bench = Bench::open(begin);
    bench.said.clear();
    let mut elsewhere = hint(1);
    elsewhere.inbox.partition = Partition(5);
    elsewhere.message = Arc::new(message_to(PHONE, 100));
    let hints = [hint(1), elsewhere, hint(2)].map(|hint| Arc::new(Delivery::new(hint)));
    let mut fx = Effects::default();
    bench.session.on_hints(hints, false, now(1), &mut fx);
    let Out::Text { text, .. } = &fx.frames[0] else { panic!() };
    let ServerFrame::Messages { items } = serde_json::from_str(text).unwrap() else { panic!() };
    let cursors: Vec<_> = items.into_iter().map(|item| item.cursor.unwrap()).collect();
    assert_eq!((cursors[1].position(P), cursors[1].position(Partition(5))), (at(1), at(1)));
    let mut fx = Effects::default();
    let ack = format!(r#"{{"type":"ack","cursor":"{}"}}"#, cursors[1]);
    bench.session.on_text(&ack, now(2), &mut fx);
    assert_eq!(fx.facts.iter().map(|fact| fact.id.0.as_u128()).collect::<Vec<_>>(), [1, 100]);
    assert_eq!(bench.session.unacked.len(), 1);
}
