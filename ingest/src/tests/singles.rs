//! One message: what is accepted, and what a repeated key does.

use proptest::{prelude::*, test_runner::TestRunner};
use std::sync::atomic::Ordering;

use super::*;

#[tokio::test]
async fn a_message_is_accepted_when_the_log_has_it() {
    let house = House::new(open_limits());
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let body = r#"{"to":"+962790000001","subject":"<b>Hi</b>","content":"a < b & <i>c</i>","priority":"high","ref":"r1","metadata":{"a": 1}}"#;
    let answer = house.post("/v1/messages", &server(), &[("traceparent", trace)], body).await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    let message = house.log.messages().pop().unwrap();
    let json = answer.json();
    assert_eq!(json["id"], message.id.to_string());
    assert_eq!((&json["status"], &json["durability"]), (&"pending".into(), &"disk".into()));
    assert_eq!(json["accepted_at"], NOW.to_string());
    assert_eq!((message.content.body.as_str(), message.content.subject.as_deref()), ("a < b & c", Some("Hi")));
    assert_eq!((message.trace.as_deref(), message.priority.word()), (Some(trace), "high"));
    assert_eq!(message.to.to_string(), "acme/+962790000001");
    let record = house.log.records.lock()[0].clone();
    assert_eq!(record.at, message.lane(4));
    assert_eq!(record.headers.traceparent.as_deref(), Some(trace));
    assert!(answer.header("ratelimit").starts_with("\"server-second\";r="));
}

#[tokio::test]
async fn the_same_key_names_the_same_message_and_is_not_appended_again() {
    let house = House::new(open_limits());
    let key = [("idempotency-key", "\"order-1\"")];
    let first = house.post("/v1/messages", &server(), &key, draft(1)).await;
    house.clock.pass(5_000);
    let again = house.post("/v1/messages", &server(), &key, draft(1)).await;
    assert_eq!((first.status.as_u16(), again.status.as_u16()), (202, 202));
    assert_eq!(first.json(), again.json(), "also accepted_at is that of the first time");
    assert_eq!((first.header("idempotent-replayed"), again.header("idempotent-replayed")), ("", "true"));
    let in_body = house.send(r#"{"to":"+962790000001","content":"hello 1","key":"order-1"}"#).await;
    assert_eq!(in_body.json()["id"], first.json()["id"], "header and body name alike");
    assert_eq!(house.log.messages().len(), 1);

    let other = house.post("/v1/messages", &server(), &key, r#"{"to":"+962790000001","content":"other"}"#).await;
    assert_eq!((other.status.as_u16(), other.slug().as_str()), (422, "idempotency-conflict"));
    let another_tenant = token_of("zain", "server", all());
    let theirs = house.post("/v1/messages", &another_tenant, &key, draft(1)).await;
    assert_eq!((theirs.status.as_u16(), theirs.header("idempotent-replayed")), (202, ""));
    assert_ne!(theirs.json()["id"], first.json()["id"], "a key belongs to its tenant");
}

#[tokio::test]
async fn a_key_whose_append_failed_is_not_remembered() {
    let house = House::new(open_limits());
    let key = [("idempotency-key", "k")];
    *house.log.fault.lock() = Some(schemas::port::PortError::Unknown("cut off".into()));
    assert_eq!(house.post("/v1/messages", &server(), &key, draft(1)).await.status, 503);
    *house.log.fault.lock() = None;
    let answer = house.post("/v1/messages", &server(), &key, draft(1)).await;
    assert_eq!((answer.status.as_u16(), answer.header("idempotent-replayed")), (202, ""));
    assert_eq!(house.log.messages().len(), 1);
}

#[tokio::test]
async fn a_dry_run_says_what_would_happen_and_sends_nothing() {
    let house = House::new(open_limits());
    let body = r#"{"to":"+962790000001","content":"<b>x</b>","send_at":"2026-06-01T00:00:00Z","dry_run":true}"#;
    let answer = house.send(body).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let json = answer.json();
    assert_eq!((&json["dry_run"], &json["message"]["content"]), (&true.into(), &"x".into()));
    assert_eq!(json["message"]["priority"], "normal");
    let lines = house.batch(&[LINES], body).await.lines();
    assert_eq!((&lines[0]["status"], &lines[0]["dry_run"]), (&200.into(), &true.into()));
    assert_eq!(house.log.calls.load(Ordering::SeqCst), 0);
    assert_eq!(house.send(&body.replace("+96279", "+99979")).await.status, 422);
}

#[tokio::test]
async fn the_library_s_way_in_is_the_same_door() {
    use crate::{Given, auth::Caller};
    let house = House::new(open_limits());
    let caller = Caller { tenant: acme(), who: Who::Server, can: all(), expires_at: None, verified: true };
    let drafts: Vec<schemas::Draft> = [draft(1), draft(2).replace("hello", "")]
        .iter()
        .map(|d| schemas::Draft::<String>::parse(d.as_bytes()).unwrap())
        .collect();
    let answers = house.door.accept(&caller, &drafts, &Given::default()).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(house.log.messages().len(), 2);
    let mobile = Caller { who: Who::Mobile(phone(1)), ..caller };
    let refused = house.door.accept(&mobile, &drafts, &Given::default()).await;
    assert!(refused.iter().all(|r| r.as_ref().unwrap_err().code == schemas::Code::Forbidden));
}

#[test]
fn any_bytes_are_accepted_or_refused_and_never_a_fault() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let house = runtime.block_on(async { House::new(open_limits()) });
    let near = r#"\{"to":"\+96279000000[0-9]","content":("[a-z<>&\\\\"]{0,9}"|[0-9{}\[\]]{0,3})(,"(key|ref|subject|priority|send_at)":"[a-z0-9:TZ-]{0,5}")?\}"#;
    let bytes = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..200),
        near.prop_map(String::into_bytes),
        "[\\[\\]{}\",:a-z0-9 ]{0,60}".prop_map(String::into_bytes),
    ];
    let mut runner = TestRunner::new(cases(500));
    runner
        .run(&bytes, |bytes| {
            let answer = runtime.block_on(house.post("/v1/messages", &server(), &[], bytes));
            prop_assert!(answer.status == 202 || answer.status.is_client_error(), "{} {}", answer.status, answer.body);
            if answer.status != 202 {
                answer.slug();
            }
            Ok(())
        })
        .unwrap();
}
