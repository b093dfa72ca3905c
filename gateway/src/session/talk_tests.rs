//! Chat over the session, one promise a test.

use std::sync::Arc;

use schemas::{
    Code, ConversationId, Kind, MessageId, Partition, Party, Problem, Sender, Timestamp,
    conversation::UpTo,
    frame::ServerFrame,
    port::{Hint, Signal},
};

use super::{
    tests::{Bench, P, at, hint, id, live, now, span, start},
    *,
};
use crate::testing::{PHONE, mobile, small_limits};

const CONVERSATION: &str = "00000000-0000-0000-0000-00000000000c";

fn conversation() -> ConversationId {
    ConversationId(CONVERSATION.parse().unwrap())
}

fn sara() -> Party {
    "business:sara".parse().unwrap()
}

/// The `n`th entry, as something the user wrote itself on another device.
fn own(n: u64) -> Hint {
    let mut hint = hint(n);
    let mut message = (*hint.message).clone();
    message.kind = Kind::Chat(conversation());
    message.from = Sender::User(mobile(PHONE).party);
    message.to = "acme/business:sara".parse().unwrap();
    message.client_ref = Some("mine".parse().unwrap());
    (hint.message, hint.seq) = (Arc::new(message), Some(n));
    hint
}

fn said(bench: &mut Bench, text: &str) -> Effects {
    let mut fx = Effects::default();
    bench.session.on_text(text, now(3), &mut fx);
    fx
}

fn send(client_ref: &str) -> String {
    format!(r#"{{"type":"send","ref":"{client_ref}","conversation_id":"{CONVERSATION}","content":"hi"}}"#)
}

#[test]
fn a_message_goes_to_the_door_and_is_answered_by_its_ref() {
    let mut bench = live();
    let fx = said(&mut bench, &send("r1"));
    let say = fx.say.unwrap();
    assert_eq!((say.client_ref.as_str(), &say.to), ("r1", &SayTo::Conversation(conversation())));
    assert!(fx.frames.is_empty(), "not accepted before it is durable");
    let text = r#"{"type":"send","ref":"r2","to":"business:sara","content":{"a":1},"content_type":"json","key":"k"}"#;
    let say = said(&mut bench, text).say.unwrap();
    assert_eq!((say.to, say.key.as_deref()), (SayTo::Party(sara()), Some("k")));
    let id = MessageId(uuid::Uuid::from_u128(7));
    let mut fx = Effects::default();
    bench.session.said("r2".parse().unwrap(), Ok(id), now(4), &mut fx);
    bench.session.said("r1".parse().unwrap(), Err(Problem::new(Code::Blocked, "blocked")), now(4), &mut fx);
    let frames: Vec<ServerFrame> = fx.frames.iter().map(frame).collect();
    assert_eq!(frames[0], ServerFrame::Accepted { client_ref: Some("r2".parse().unwrap()), id: Some(id) });
    let ServerFrame::Error { client_ref, problem } = &frames[1] else { panic!("{frames:?}") };
    assert_eq!((client_ref.as_ref().map(Ref::as_str), problem.code), (Some("r1"), Code::Blocked));
}

fn frame(out: &Out) -> ServerFrame {
    let Out::Text { text, .. } = out else { panic!("a text") };
    serde_json::from_str(text).unwrap()
}

#[test]
fn only_so_many_messages_are_under_way_and_the_next_is_refused_until_one_is_answered() {
    let mut limits = small_limits();
    limits.socket.sends = 2;
    let mut bench = Bench::open(Start { limits: Arc::new(limits), ..start(0, 0, 0) });
    bench.said.clear();
    assert!(said(&mut bench, &send("r1")).say.is_some() && said(&mut bench, &send("r2")).say.is_some());
    assert_eq!(bench.text(&send("r3")), ["error overloaded"]);
    bench.with(|session, fx| session.said("r1".parse().unwrap(), Err(Problem::new(Code::NotFound, "")), now(4), fx));
    assert!(said(&mut bench, &send("r3")).say.is_some());
}

#[test]
fn a_message_goes_to_one_place() {
    for places in ["", r#","conversation_id":"00000000-0000-0000-0000-00000000000c","to":"business:sara""#] {
        let text = format!(r#"{{"type":"send","ref":"r1","content":"hi"{places}}}"#);
        assert_eq!(live().text(&text), ["error invalid-field"], "{text}");
    }
}

#[test]
fn a_conversation_is_read_up_to_a_number_or_a_message() {
    for (up_to, meant) in [("7".to_owned(), UpTo::Seq(7)), (format!("{:?}", id(9)), UpTo::Id(id(9).parse().unwrap()))] {
        let text = format!(r#"{{"type":"read","conversation_id":"{CONVERSATION}","up_to":{up_to}}}"#);
        assert_eq!(said(&mut live(), &text).mark, Some((conversation(), meant)));
    }
}

#[test]
fn typing_is_sent_on_once_in_a_while_and_in_few_places() {
    let mut bench = live();
    let typing =
        |n: u32| format!(r#"{{"type":"typing","conversation_id":"00000000-0000-0000-0000-0000000000{n:02}"}}"#);
    let mut at = |ms: u64, n: u32| {
        let mut fx = Effects::default();
        bench.session.on_text(&typing(n), now(ms), &mut fx);
        assert!(fx.frames.is_empty(), "what is dropped is dropped without a word");
        fx.typing.is_some()
    };
    assert!(at(0, 1) && !at(10, 1) && !at(999, 1) && at(1_000, 1));
    assert!(at(1_001, 2) && at(1_002, 3) && at(1_003, 4) && !at(1_004, 5), "four conversations within a second");
    assert!(at(2_000, 5) && !at(2_000, 1));
}

#[test]
fn one_s_own_goes_to_one_s_other_devices_and_nothing_is_said_about_it() {
    let mut bench = live();
    let mut fx = Effects::default();
    let hints = [hint(1), own(2), hint(3)].map(|hint| Arc::new(Delivery::new(hint)));
    bench.session.on_hints(hints, false, now(1), &mut fx);
    let ServerFrame::Messages { items } = frame(&fx.frames[0]) else { panic!() };
    let item = &items[1];
    assert_eq!((item.client_ref.as_ref().map(Ref::as_str), item.seq), (Some("mine"), Some(2)));
    assert_eq!(items[0].client_ref, None);
    let Out::Text { facts, .. } = &fx.frames[0] else { panic!() };
    assert_eq!(facts.iter().map(|fact| fact.position.n).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(bench.ack(3), ["delivered 1 by 0", "delivered 3 by 0"]);
    bench.hints([own(4)]);
    assert!(bench.text(&format!(r#"{{"type":"ack","ids":["{}"]}}"#, id(4))).is_empty());
    // A cursor past it says nothing either.
    let mut bench = Bench::open(start(2, 0, 2));
    bench.said.clear();
    let mut read = span([1, 2]);
    read.entries[1].0.message = own(2).message;
    assert_eq!(bench.span(read), ["delivered 1 by 0"]);
}

#[test]
fn a_new_device_starts_at_what_nobody_has_and_not_at_one_s_own() {
    let mut begin = start(0, 0, 3);
    begin.lanes[0].skip_delivered = true;
    let mut bench = Bench::open(begin);
    bench.said.clear();
    let mut read = span([1, 2, 3]);
    read.entries[0].0.message = own(1).message;
    read.entries[2].0.message = own(3).message;
    assert_eq!(bench.span(read), ["messages [2, 3]"]);
}

#[test]
fn what_happens_is_told_as_it_happens() {
    let mut bench = live();
    let typing = || Signal::Typing { conversation: conversation(), by: sara() };
    let read = Signal::Read { conversation: conversation(), up_to: 4, by: sara() };
    let seen = Signal::Presence { user: sara(), online: false, last_seen: Some(Timestamp(5)) };
    let mut fx = Effects::default();
    bench.session.on_signals(vec![typing(), read, seen], now(1), &mut fx);
    let texts: Vec<_> = fx.frames.iter().map(|out| serde_json::to_value(frame(out)).unwrap()).collect();
    assert_eq!(texts[0], serde_json::json!({"type":"typing","conversation_id":CONVERSATION,"by":"business:sara"}));
    assert_eq!((&texts[1]["up_to"], &texts[1]["by"]), (&4.into(), &"business:sara".into()));
    assert_eq!((&texts[2]["type"], &texts[2]["online"]), (&"presence".into(), &false.into()));
    assert!(texts[2]["last_seen"].is_string());
    // Whoever catches up has more important things to read.
    bench.hints([hint(9)]);
    assert!(bench.asked_from().is_some());
    assert!(bench.with(|session, fx| session.on_signals(vec![typing()], now(2), fx)).is_empty());
    bench.with(|session, fx| session.drain(1, fx));
    assert!(bench.with(|session, fx| session.on_signals(vec![typing()], now(2), fx)).is_empty());
}

#[test]
fn the_cursor_of_one_inbox_never_takes_another_back() {
    let mut begin = start(0, 0, 0);
    // What the client has there is not stored yet, and is read again before it is counted.
    begin.lanes.push(LaneStart {
        partition: Partition(5),
        have: at(3),
        stored: at(1),
        tail: at(3),
        skip_delivered: false,
    });
    let mut bench = Bench::open(begin);
    bench.said.clear();
    let mut fx = Effects::default();
    bench.session.on_hints([Arc::new(Delivery::new(hint(1)))], false, now(1), &mut fx);
    let ServerFrame::Messages { items } = frame(&fx.frames[0]) else { panic!() };
    let cursor = items[0].cursor.clone().unwrap();
    assert_eq!((cursor.position(P), cursor.position(Partition(5))), (at(1), at(3)));
}

#[test]
fn a_retry_of_one_s_own_place_says_nothing() {
    let mut bench = live();
    bench.hints([own(1)]);
    let again = Hint { attempt: Attempt(1), ..own(1) };
    assert!(bench.hints([again]).is_empty());
}
