//! The door of chat from outside: requests through its router, with an owner behind the log.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use proptest::prelude::*;
use schemas::{Conversation, Kind, MessageId, Position, Sender, conversation::Side, port::Placed, record::LaneRecord};
use serde_json::json;

use super::*;

const MOBILE: &str = "+962790000001";

impl House {
    async fn person(&self, method: &str, path: &str, who: &str, body: Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.ask(request(method, path, &token_of("acme", who, all()), &[], body)).await
    }

    async fn opened(&self) -> String {
        let opened = self.person("POST", "/v1/conversations", "business:sara", json!({ "with": MOBILE })).await;
        assert_eq!(opened.status, StatusCode::CREATED, "{}", opened.body);
        opened.json()["id"].as_str().unwrap().to_owned()
    }

    async fn say(&self, id: &str, who: &str, body: Value) -> Answer {
        self.person("POST", &format!("/v1/conversations/{id}/messages"), who, body).await
    }

    fn row(&self, id: &str) -> Conversation {
        let id = schemas::ConversationId(id.parse().unwrap());
        self.history.talks.conversations(&[id]).pop().flatten().unwrap()
    }
}

#[tokio::test]
async fn a_conversation_is_there_when_it_is_answered_and_is_one_for_both() {
    let house = House::new(open_limits());
    let _owner = house.own();
    let id = house.opened().await;
    for (who, body) in [
        ("business:sara", json!({ "with": MOBILE })),
        (MOBILE, json!({ "with": "business:sara" })),
        (MOBILE, json!({ "participants": [MOBILE, "business:sara"] })),
    ] {
        let again = house.person("POST", "/v1/conversations", who, body).await;
        assert_eq!((again.status, &again.json()["id"]), (StatusCode::OK, &id.clone().into()), "{}", again.body);
    }
    assert_eq!(house.log.records.lock().len(), 1, "what is there is not opened again");
}

// R1.5, R1.6, P13, rule 14.
#[tokio::test]
async fn both_sides_write_and_are_told_their_place() {
    let house = House::new(open_limits());
    let _owner = house.own();
    let id = house.opened().await;
    for (n, who) in ["business:sara", MOBILE, MOBILE, "business:sara"].into_iter().enumerate() {
        let said = house.say(&id, who, json!({ "content": format!("<b>hello</b> {n}"), "ref": n.to_string() })).await;
        assert_eq!((said.status, &said.json()["seq"]), (StatusCode::CREATED, &json!(n + 1)), "{}", said.body);
        assert_eq!(said.json()["durability"], "disk");
        assert!(said.header("ratelimit").contains("person-minute"), "limits per person hold");
    }
    let row = house.row(&id);
    assert_eq!((row.mobile.to, row.business.to, row.last_seq), (2, 2, 4));
    let thread = house.history.talks.log(row.id);
    assert_eq!(thread[3].message.content.body, "hello 3", "tags are removed");
    assert!(thread.iter().all(|turn| turn.message.kind == Kind::Chat(row.id)));
    assert_eq!(thread[1].message.to, row.user(Side::Business));
}

// R4.3: a repeat is the same message, also where only the `ref` names it; another body under it is refused.
#[tokio::test]
async fn a_repeated_ref_or_key_is_one_message() {
    let house = House::new(open_limits());
    let _owner = house.own();
    let id = house.opened().await;
    let body = json!({ "content": "hello", "ref": "17" });
    let first = house.say(&id, MOBILE, body.clone()).await.json();
    let again = house.say(&id, MOBILE, body).await;
    assert_eq!((again.status, again.header("idempotent-replayed")), (StatusCode::CREATED, "true"), "{}", again.body);
    assert_eq!((&again.json()["id"], &again.json()["seq"]), (&first["id"], &first["seq"]));
    let other = house.say(&id, MOBILE, json!({ "content": "another", "ref": "17" })).await;
    assert_eq!(other.slug(), "idempotency-conflict");
    let sara = house.say(&id, "business:sara", json!({ "content": "hello", "ref": "17" })).await;
    assert_ne!(sara.json()["id"], first["id"], "another writer's `ref` is another name");
    // A door that has forgotten the key finds the message.
    let fresh = House::over(open_limits(), house.log.clone(), house.history.clone());
    fresh.clock.pass(1_000);
    let again = fresh.say(&id, MOBILE, json!({ "content": "hello", "ref": "17" })).await;
    assert_eq!((&again.json()["id"], again.header("idempotent-replayed")), (&first["id"], "true"), "{}", again.body);
    let other = fresh.say(&id, MOBILE, json!({ "content": "another", "ref": "17" })).await;
    assert_eq!(other.slug(), "idempotency-conflict");
    assert_eq!(house.row(&id).last_seq, 2);
}

// Rule 14: 202 where recording takes longer, and nothing is lost by it.
#[tokio::test]
async fn what_is_not_recorded_in_time_is_accepted() {
    let mut limits = open_limits();
    limits.chat.answer_ms = 30;
    let house = House::new(limits);
    let awake = Arc::new(AtomicBool::new(true));
    let _owner = house.own_while(awake.clone());
    let id = house.opened().await;
    awake.store(false, Ordering::SeqCst);
    let said = house.say(&id, MOBILE, json!({ "content": "hello" })).await;
    assert_eq!((said.status, &said.json()["seq"]), (StatusCode::ACCEPTED, &Value::Null), "{}", said.body);
    let closed = house.person("POST", &format!("/v1/conversations/{id}/close"), "business:sara", Value::Null).await;
    assert_eq!(closed.status, StatusCode::ACCEPTED, "{}", closed.body);
    let other = house.person("POST", "/v1/conversations", "business:omar", json!({ "with": MOBILE })).await;
    assert_eq!(other.status, StatusCode::ACCEPTED, "{}", other.body);
    awake.store(true, Ordering::SeqCst);
    let row = loop {
        let row = house.row(&id);
        if row.closed.is_some() {
            break row;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(row.last_seq, 2, "the message, and the note that it was closed");
}

// What changes between the door's look and the owner's turn is the owner's to refuse, and it is told.
#[tokio::test]
async fn a_refusal_of_the_owner_is_answered() {
    let house = House::new(open_limits());
    let awake = Arc::new(AtomicBool::new(true));
    let _owner = house.own_while(awake.clone());
    let id = house.opened().await;
    for (command, who, slug) in [
        (json!("close"), "business:sara", "conversation-closed"),
        (json!("reopen"), "business:sara", ""),
        (json!({ "assign": "business:omar" }), "business:sara", "assigned-elsewhere"),
    ] {
        awake.store(false, Ordering::SeqCst);
        let (path, body) = match &command {
            Value::String(word) => (word.as_str(), Value::Null),
            _ => ("assign", json!({ "to": command["assign"] })),
        };
        let path = format!("/v1/conversations/{id}/{path}");
        // In the log the command comes first; the row the door reads for the message knows nothing of it.
        let ask = house.person("POST", &path, who, body);
        let say = async {
            tokio::task::yield_now().await;
            house.say(&id, "business:sara", json!({ "content": "hello" })).await
        };
        let wake = async {
            while house.log.records.lock().len() < 2 {
                tokio::task::yield_now().await;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
            awake.store(true, Ordering::SeqCst);
        };
        let (asked, said, ()) = tokio::join!(ask, say, wake);
        assert_eq!(asked.status, StatusCode::OK, "{}", asked.body);
        if slug.is_empty() {
            continue;
        }
        assert_eq!(said.slug(), slug, "{}", said.body);
        if slug == "assigned-elsewhere" {
            assert!(said.body.contains("business:omar"), "{}", said.body);
        }
    }
}

// Part 6: who may, where, and what.
#[tokio::test]
async fn everything_that_is_not_permitted_is_refused_before_the_log() {
    let mut limits = open_limits();
    limits.chat.answer_ms = 20;
    let house = House::new(limits);
    let _owner = house.own();
    let id = house.opened().await;
    house.say(&id, MOBILE, json!({ "content": "hello", "key": "1" })).await;
    let hers = house.say(&id, "business:sara", json!({ "content": "hi", "key": "1" })).await.json()["id"].clone();
    let before = house.log.records.lock().len();
    let unverified = crate::auth::mint_as(
        SECRET,
        &NewToken { tenant: acme(), who: MOBILE.parse().unwrap(), can: all(), ttl_ms: 60_000 },
        false,
        NOW,
    );
    let none = Permissions { send: true, ..Permissions::default() };
    let (sara, mobile) = (token_of("acme", "business:sara", all()), token_of("acme", MOBILE, all()));
    let stranger = token_of("acme", "+962790000002", all());
    let server = server();
    let mine = format!("/v1/conversations/{id}");
    let nobody = format!("/v1/conversations/{}", uuid::Uuid::nil());
    let hers = hers.as_str().unwrap();
    let table: Vec<(&str, String, &String, Value, u16, &str)> = vec![
        ("POST", format!("{mine}/messages"), &stranger, json!({ "content": "x" }), 404, "not-recorded-or-unknown"),
        ("POST", format!("{nobody}/messages"), &mobile, json!({ "content": "x" }), 404, "not-recorded-or-unknown"),
        ("POST", "/v1/conversations/no-id/messages".into(), &mobile, json!({ "content": "x" }), 404, "not-found"),
        ("POST", format!("{mine}/messages"), &server, json!({ "content": "x" }), 403, "forbidden"),
        ("POST", format!("{mine}/messages"), &mobile, json!({ "content": "" }), 422, "invalid-content"),
        ("POST", format!("{mine}/messages"), &mobile, json!({ "content": "x".repeat(10_001) }), 422, "invalid-content"),
        ("POST", format!("{mine}/messages"), &mobile, json!({ "content": "x", "to": "y" }), 422, "invalid-field"),
        ("POST", format!("{mine}/messages"), &mobile, json!({ "content": "x", "ref": "" }), 422, "invalid-field"),
        ("POST", format!("{mine}/messages"), &mobile, json!([]), 400, "invalid-json"),
        ("POST", "/v1/conversations".into(), &mobile, json!({ "with": "+962790000002" }), 422, "invalid-field"),
        ("POST", "/v1/conversations".into(), &sara, json!({ "with": "business:omar" }), 422, "invalid-field"),
        ("POST", "/v1/conversations".into(), &sara, json!({ "with": "0790000001" }), 422, "invalid-phone"),
        ("POST", "/v1/conversations".into(), &sara, json!({}), 422, "invalid-field"),
        ("POST", "/v1/conversations".into(), &sara, json!({ "participants": [MOBILE] }), 422, "invalid-field"),
        ("POST", "/v1/conversations".into(), &sara, json!({ "participants": [MOBILE, MOBILE] }), 422, "invalid-field"),
        ("POST", "/v1/conversations".into(), &server, json!({ "with": MOBILE }), 403, "forbidden"),
        ("POST", format!("{mine}/read"), &mobile, json!({ "up_to": 3 }), 422, "read-beyond-end"),
        ("POST", format!("{mine}/read"), &mobile, json!({ "up_to": uuid::Uuid::nil() }), 404, "not-found"),
        ("POST", format!("{mine}/read"), &mobile, json!({ "up_to": "x" }), 422, "invalid-field"),
        ("POST", format!("{mine}/read"), &server, json!({ "up_to": 1 }), 403, "forbidden"),
        ("POST", format!("{mine}/close"), &mobile, Value::Null, 403, "forbidden"),
        ("POST", format!("{mine}/block"), &sara, Value::Null, 403, "forbidden"),
        ("POST", format!("{mine}/assign"), &mobile, json!({ "to": "business:omar" }), 403, "forbidden"),
        ("POST", format!("{mine}/assign"), &sara, json!({ "to": MOBILE }), 422, "invalid-field"),
        ("PATCH", format!("{mine}/messages/{hers}"), &mobile, json!({ "content": "x" }), 403, "not-your-message"),
        ("DELETE", format!("{mine}/messages/{hers}"), &mobile, Value::Null, 403, "not-your-message"),
        ("DELETE", format!("{mine}/messages/{}", uuid::Uuid::nil()), &mobile, Value::Null, 404, "not-found"),
    ];
    let unverified = unverified.unwrap();
    let may_not = [(&unverified, "not-verified"), (&token_of("acme", "business:sara", none), "forbidden")];
    let may_not = may_not.map(|(token, slug)| (token.clone(), slug));
    for (method, path, token, body, status, slug) in &table {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = house.ask(request(method, path, token, &[], body.clone())).await;
        assert_eq!((answer.status.as_u16(), answer.slug().as_str()), (*status, *slug), "{method} {path} {body}");
        for (token, slug) in &may_not {
            let answer = house.ask(request(method, path, token, &[], body.clone())).await;
            assert_eq!((answer.status.as_u16(), answer.slug().as_str()), (403, *slug), "{method} {path}");
        }
    }
    assert_eq!(house.log.records.lock().len(), before, "nothing of it came to the log");
}

// Part 8, and the states a conversation goes through.
#[tokio::test]
async fn what_is_asked_is_so_when_it_is_answered() {
    let house = House::new(open_limits());
    let _owner = house.own();
    let id = house.opened().await;
    let said = house.say(&id, MOBILE, json!({ "content": "helo" })).await.json();
    let own = format!("/v1/conversations/{id}/messages/{}", said["id"].as_str().unwrap());
    let edited = house.person("PATCH", &own, MOBILE, json!({ "content": "hello" })).await;
    assert_eq!((edited.status, &edited.json()["content"]), (StatusCode::OK, &json!("hello")), "{}", edited.body);
    let deleted = house.person("DELETE", &own, MOBILE, Value::Null).await;
    assert_eq!((deleted.status, &deleted.json()["content"]), (StatusCode::OK, &json!("")), "{}", deleted.body);
    assert!(deleted.json()["deleted_at"].is_string());
    let late = house.person("PATCH", &own, MOBILE, json!({ "content": "again" })).await;
    assert_eq!(late.slug(), "message-deleted");
    let again = house.person("DELETE", &own, MOBILE, Value::Null).await;
    assert_eq!(again.status, StatusCode::OK, "deleting what is deleted changes nothing: {}", again.body);
    let unread = house.row(&id).business.unread();
    assert_eq!(unread, 1, "edits and deletions change no count");

    let ask = async |word: &str, who: &str, body: Value| {
        let answer = house.person("POST", &format!("/v1/conversations/{id}/{word}"), who, body).await;
        assert_eq!(answer.status, StatusCode::OK, "{word}: {}", answer.body);
        answer.json()
    };
    let seq = ask("read", "business:sara", json!({ "up_to": said["id"] })).await;
    assert_eq!((&seq["unread"], &seq["read_seq"]), (&json!(0), &json!(1)));
    assert_eq!(ask("archive", MOBILE, Value::Null).await["status"], "archived");
    assert_eq!(ask("archive", MOBILE, Value::Null).await["status"], "archived", "twice is once");
    assert_eq!(ask("unarchive", MOBILE, Value::Null).await["status"], "active");
    assert_eq!(ask("close", "server", Value::Null).await["status"], "closed");
    assert_eq!(house.say(&id, MOBILE, json!({ "content": "x" })).await.slug(), "conversation-closed");
    assert_eq!(ask("reopen", "business:sara", Value::Null).await["status"], "active");
    assert_eq!(ask("block", MOBILE, Value::Null).await["blocked"], true);
    assert_eq!(house.say(&id, "business:sara", json!({ "content": "x" })).await.slug(), "blocked");
    assert_eq!(ask("unblock", MOBILE, Value::Null).await["blocked"], false);
    assert_eq!(ask("assign", "business:sara", json!({ "to": "business:omar" })).await["assigned_to"], "business:omar");
    let refused = house.say(&id, "business:sara", json!({ "content": "x" })).await;
    assert_eq!(refused.slug(), "assigned-elsewhere");
    assert!(refused.body.contains("business:omar"), "409 names who it is: {}", refused.body);
    assert_eq!(house.say(&id, "business:omar", json!({ "content": "x" })).await.status, StatusCode::CREATED);
    let again = house.person("POST", "/v1/conversations", "business:sara", json!({ "with": MOBILE })).await;
    assert_eq!(again.json()["id"], json!(id), "the old pair leads to the thread");
}

proptest! {
    #![proptest_config(cases(100))]
    // P2: however many ask at once, from either side, there is one.
    #[test]
    fn p2_creators_at_once_make_one(sides in proptest::collection::vec(any::<bool>(), 1..12)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let house = House::new(open_limits());
            let _owner = house.own();
            let open = |mobile: bool| match mobile {
                true => house.person("POST", "/v1/conversations", MOBILE, json!({ "with": "business:sara" })),
                false => house.person("POST", "/v1/conversations", "business:sara", json!({ "with": MOBILE })),
            };
            let answers = futures::future::join_all(sides.into_iter().map(open)).await;
            let ids: std::collections::BTreeSet<String> =
                answers.iter().map(|answer| answer.json()["id"].as_str().unwrap().to_owned()).collect();
            prop_assert!(answers.iter().all(|answer| answer.status.is_success()));
            prop_assert_eq!(ids.len(), 1);
            let rows = house.history.talks.by_user(&house.row(ids.first().unwrap()).user(Side::Mobile), false, None, 9);
            prop_assert_eq!(rows.rows.len(), 1);
            Ok(())
        })?;
    }

    // P12: whatever one-way message somebody answers, by whatever name, it is refused and nothing is kept.
    #[test]
    fn p12_one_way_has_no_reply(n in any::<u128>(), text in "[a-z ]{1,20}x", keyed in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut limits = open_limits();
            limits.chat.answer_ms = 1;
            let house = House::new(limits);
            let id = MessageId(uuid::Uuid::from_u128(n));
            let sent = house.send(&json!({ "to": MOBILE, "content": text.clone() }).to_string()).await;
            prop_assert_eq!(sent.status, StatusCode::ACCEPTED);
            let mut message = house.log.messages().remove(0);
            message.id = id;
            let (inbox, message) = (message.inbox(4), Arc::new(message));
            let (position, prev, recorded_at, state) = (Some(Position::START), Position::START, NOW, Default::default());
            house.history.placed.lock().insert(id, Placed { message, inbox, position, prev, recorded_at, seq: None, state });
            let key = keyed.then_some("k");
            let refused = house.say(&id.to_string(), MOBILE, json!({ "content": text, "key": key })).await;
            prop_assert_eq!(refused.slug(), "no-reply");
            // Who did not receive it learns nothing of it.
            let other = house.say(&id.to_string(), "+962790000002", json!({ "content": text })).await;
            prop_assert_eq!(other.slug(), "not-recorded-or-unknown");
            prop_assert_eq!(house.log.records.lock().len(), 1);
            Ok(())
        })?;
    }

    // P6, P13: whoever writes and reads what, repeated as often as one likes: each side's unread is what it has not read.
    #[test]
    fn p6_p13_both_write_and_unread_is_what_was_not_read(
        acts in proptest::collection::vec((any::<bool>(), proptest::option::of(0u64..12), 0u8..6), 1..25),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let house = House::new(open_limits());
            let _owner = house.own();
            let id = house.opened().await;
            let who = |mobile: bool| if mobile { MOBILE } else { "business:sara" };
            // What was said, by its `ref`: who wrote it and its number.
            let (mut said, mut read) = (BTreeMap::<(bool, u8), u64>::new(), [0_u64; 2]);
            for (mobile, up_to, name) in acts {
                match up_to {
                    None => {
                        let body = json!({ "content": "x", "ref": name.to_string() });
                        let answer = house.say(&id, who(mobile), body).await;
                        prop_assert_eq!(answer.status, StatusCode::CREATED);
                        let (next, seq) = (said.len() as u64 + 1, answer.json()["seq"].as_u64().unwrap());
                        prop_assert_eq!(*said.entry((mobile, name)).or_insert(next), seq);
                    }
                    Some(up_to) => {
                        let path = format!("/v1/conversations/{id}/read");
                        let answer = house.person("POST", &path, who(mobile), json!({ "up_to": up_to })).await;
                        if up_to > said.len() as u64 {
                            prop_assert_eq!(answer.slug(), "read-beyond-end");
                        } else {
                            prop_assert_eq!(answer.status, StatusCode::OK);
                            let mark = &mut read[usize::from(mobile)];
                            *mark = (*mark).max(up_to);
                        }
                    }
                }
                let row = house.row(&id);
                for side in [Side::Business, Side::Mobile] {
                    let mobile = side == Side::Mobile;
                    let theirs = said.iter().filter(|((by, _), seq)| *by != mobile && **seq > read[usize::from(mobile)]);
                    prop_assert_eq!(row.half(side).unread(), theirs.count() as u64);
                }
            }
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn a_socket_may_say_several_at_once_and_they_stand_in_its_order() {
    let house = House::new(open_limits());
    let _owner = house.own();
    let id = schemas::ConversationId(house.opened().await.parse().unwrap());
    let caller = house.door.parts.auth.verify(&token_of("acme", MOBILE, all())).unwrap();
    let mut underway = Vec::new();
    for n in 0..20 {
        let say = crate::chat::Say {
            to: crate::chat::Where::Party("business:sara".parse().unwrap()),
            content: schemas::json::Json::parse(&format!("\"{n}\"")).unwrap(),
            content_type: Default::default(),
            key: None,
            client_ref: Some(n.to_string().parse().unwrap()),
            trace: None,
        };
        underway.push(house.door.say(&caller, say).await.unwrap());
        assert_eq!(underway[n].conversation(), id);
    }
    for one in underway {
        one.accepted().await.unwrap();
    }
    let said: Vec<_> = house.log.records.lock().iter().skip(1).cloned().collect();
    let bodies: Vec<String> = said
        .iter()
        .map(|record| match schemas::codec::decode::<LaneRecord>(&record.body).unwrap() {
            LaneRecord::Accepted(message) => {
                assert_eq!(message.from, Sender::User(MOBILE.parse().unwrap()));
                message.content.body
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(bodies, (0..20).map(|n| n.to_string()).collect::<Vec<_>>());
}
