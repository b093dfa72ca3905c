//! The reads, by table: every route for the one whose it is, and for everyone else.

use axum::body::Body;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use ingest::auth::Who;
use schemas::{
    Limits, MessageId, Reason, Status, What,
    fact::Past,
    port::{Hint, Landing},
    tier::Attempt,
};
use serde_json::Value;
use tower::ServiceExt as _;

use crate::testing::{House, PHONE, message_to, phone, token};

const OTHER: &str = "+962790000002";

async fn call(house: &House, method: Method, path: &str, token: &str, body: &str) -> (StatusCode, Value) {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", format!("Bearer {token}"))
        .body(Body::from(body.to_owned()))
        .unwrap();
    let response = house.gateway.routes().oneshot(request).await.unwrap();
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

async fn get(house: &House, path: &str, token: &str) -> (StatusCode, Value) {
    call(house, Method::GET, path, token, "").await
}

fn me() -> String {
    token("acme", phone(PHONE))
}

fn server() -> String {
    token("acme", Who::Server)
}

fn id(n: u128) -> MessageId {
    message_to(PHONE, n).id
}

fn mark(house: &House, n: u128, what: What) {
    let past = Past { at: schemas::Timestamp(5), what, round: 0, attempt: Attempt(0), device: None };
    house.world.inner.lock().states.entry(id(n)).or_default().merge(past);
}

async fn house(messages: u128) -> House {
    let house = House::open(Limits::default()).await;
    for n in 1..=messages {
        let mut message = message_to(PHONE, n);
        message.client_ref = Some(format!("ref-{n}").parse().unwrap());
        message.metadata = Some(schemas::json::Json::parse(r#"{"order":1}"#).unwrap());
        house.world.record(message);
    }
    house
}

// Invariant 11.
#[tokio::test]
async fn every_foreign_id_is_answered_as_one_that_does_not_exist() {
    let house = house(1).await;
    let routes = [
        (Method::GET, format!("/v1/messages/{}", id(1))),
        (Method::GET, format!("/v1/messages/{}/trace", id(1))),
        (Method::DELETE, format!("/v1/messages/{}", id(1))),
        (Method::POST, format!("/v1/messages/{}/read", id(1))),
    ];
    let strangers = [
        token("acme", phone(OTHER)),
        token("acme", Who::Business("sara".parse().unwrap())),
        token("umbrella", phone(PHONE)),
        token("umbrella", Who::Server),
        token("umbrella", Who::Admin),
    ];
    let mut asked = Vec::new();
    for (method, path) in &routes {
        let other = |id_text: &str| path.replace(&id(1).to_string(), id_text);
        let unknown = (other(&id(9).to_string()), server(), "not-recorded-or-unknown");
        let malformed = (other("not-an-id"), server(), "not-found");
        let foreign = strangers.iter().map(|s| (path.clone(), s.clone(), "not-recorded-or-unknown"));
        asked
            .extend(foreign.chain([unknown, malformed]).map(|(path, token, slug)| (method.clone(), path, token, slug)));
    }
    // Each waits its second for something that may yet be recorded: all of them at once.
    futures::future::join_all(asked.into_iter().map(async |(method, path, token, slug)| {
        let (status, body) = call(&house, method.clone(), &path, &token, "").await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{method} {path}: {body}");
        assert_eq!(body["type"], format!("/problems/{slug}"));
    }))
    .await;
    let (status, body) = call(
        &house,
        Method::POST,
        "/v1/messages/ack",
        &token("acme", phone(OTHER)),
        &format!(r#"{{"ids":["{}"]}}"#, id(1)),
    )
    .await;
    assert_eq!(
        (status, &body["acknowledged"], &body["unknown"][0]),
        (StatusCode::OK, &0.into(), &id(1).to_string().into())
    );
    assert_eq!(house.world.status(id(1)), Status::Pending);
}

#[tokio::test]
async fn without_a_token_nothing_is_answered() {
    let house = house(1).await;
    for path in ["/v1/ws?device=d", "/v1/messages", "/v1/inbox", "/v1/unread", "/v1/events", "/v1/nodes"] {
        let (status, body) = get(&house, path, "wrong").await;
        assert_eq!((status, &body["type"]), (StatusCode::UNAUTHORIZED, &"/problems/unauthenticated".into()), "{path}");
    }
}

#[tokio::test]
async fn what_cannot_connect_is_told_why_before_the_upgrade() {
    let house = house(0).await;
    let table = [
        ("/v1/ws?device=d1", server(), 403, "forbidden"),
        ("/v1/ws", me(), 400, "invalid-query"),
        ("/v1/ws?device=a%20b", me(), 400, "invalid-query"),
        ("/v1/ws?device=d1&cursor=nonsense", me(), 400, "invalid-cursor"),
        ("/v1/ws?device=d1", me(), 400, "invalid-header"),
    ];
    for (path, token, status, slug) in table {
        let (got, body) = get(&house, path, &token).await;
        assert_eq!(
            (got.as_u16(), body["type"].as_str()),
            (status, Some(format!("/problems/{slug}").as_str())),
            "{path}"
        );
    }
    house.world.inner.lock().away.push("register");
    assert_eq!(get(&house, "/v1/ws?device=d1", &me()).await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(house.gateway.sessions(), 0, "nothing is held for those who could not connect");
    let mut limits = Limits::default();
    limits.socket.sessions = 0;
    let full = House::open(limits).await;
    let (status, body) = get(&full, "/v1/ws?device=d1", &me()).await;
    assert_eq!((status.as_u16(), &body["type"]), (503, &"/problems/overloaded".into()));
    house.gateway.drain().await;
    let (status, body) = get(&house, "/v1/ws?device=d1", &me()).await;
    assert_eq!((status.as_u16(), &body["type"]), (503, &"/problems/draining".into()));
}

#[tokio::test]
async fn sender_and_recipient_see_the_message_each_in_its_way() {
    let house = house(1).await;
    let path = format!("/v1/messages/{}", id(1));
    let (status, sent) = get(&house, &path, &server()).await;
    assert_eq!((status, &sent["ref"], &sent["metadata"]["order"]), (StatusCode::OK, &"ref-1".into(), &1.into()));
    assert_eq!(sent.get("cursor"), None);
    let (status, received) = get(&house, &path, &me()).await;
    assert_eq!(
        (status, &received["status"], &received["kind"]),
        (StatusCode::OK, &"pending".into(), &"one_way".into())
    );
    assert!(received["cursor"].is_string() && received.get("ref").is_none() && received.get("metadata").is_none());
    mark(&house, 1, What::Sent);
    mark(&house, 1, What::AttemptFailed(Reason::NoAck));
    let (_, trace) = get(&house, &format!("{path}/trace"), &server()).await;
    let mut stages: Vec<_> = trace["stages"].as_array().unwrap().iter().map(|s| s["stage"].as_str().unwrap()).collect();
    stages.sort_unstable();
    assert_eq!(stages, ["accepted", "attempt_failed", "recorded", "sent"]);
}

#[tokio::test]
async fn a_message_that_is_recorded_within_a_second_is_waited_for() {
    let house = house(0).await;
    let (path, token) = (format!("/v1/messages/{}", id(1)), server());
    let asked = get(&house, &path, &token);
    let recorded = async {
        tokio::task::yield_now().await;
        house.world.record(message_to(PHONE, 1));
    };
    let ((status, _), ()) = tokio::join!(asked, recorded);
    assert_eq!(status, StatusCode::OK);
}

// Rule 9.
#[tokio::test]
async fn taking_back_is_answered_by_what_the_owner_decides() {
    let house = house(4).await;
    let delete = |n| {
        let path = format!("/v1/messages/{}", id(n));
        let house = &house;
        async move { call(house, Method::DELETE, &path, &server(), "").await }
    };
    let (status, body) = delete(1).await;
    assert_eq!((status, &body["status"]), (StatusCode::ACCEPTED, &"pending".into()), "nobody decided");
    let asked = house.world.inner.lock().states[&id(1)].past.iter().any(|past| past.what == What::CancelAsked);
    assert!(asked, "and the question is in the log");
    mark(&house, 2, What::Delivered);
    assert_eq!(delete(2).await.0, StatusCode::CONFLICT);
    mark(&house, 3, What::Failed(Reason::Cancelled));
    let (status, body) = delete(3).await;
    assert_eq!((status, &body["reason"]), (StatusCode::OK, &"cancelled".into()));
    let deciding = async {
        let asked = || {
            let inner = house.world.inner.lock();
            inner.states.get(&id(4)).is_some_and(|state| state.past.iter().any(|past| past.what == What::CancelAsked))
        };
        crate::testing::until("it is asked", asked).await;
        mark(&house, 4, What::Failed(Reason::Cancelled));
    };
    let ((status, _), ()) = tokio::join!(delete(4), deciding);
    assert_eq!(status, StatusCode::OK);
    let recipient = call(&house, Method::DELETE, &format!("/v1/messages/{}", id(1)), &me(), "").await;
    assert_eq!(recipient.0, StatusCode::FORBIDDEN);
}

// R1.8.
#[tokio::test]
async fn one_way_history_is_paged_both_ways_without_overlap() {
    let house = house(7).await;
    for (order, expected) in [("oldest", (1..=7).collect::<Vec<u128>>()), ("newest", (1..=7).rev().collect())] {
        let (mut seen, mut next) = (Vec::new(), String::new());
        loop {
            let (status, page) = get(&house, &format!("/v1/messages?order={order}&limit=3&cursor={next}"), &me()).await;
            assert_eq!(status, StatusCode::OK, "{page}");
            let ids = page["items"].as_array().unwrap().iter().map(|i| i["id"].as_str().unwrap().parse::<MessageId>());
            seen.extend(ids.map(|id| id.unwrap().0.as_u128()));
            match page["next_cursor"].as_str() {
                Some(cursor) => next = cursor.to_owned(),
                None => break,
            }
        }
        assert_eq!(seen, expected);
    }
    let (_, page) = get(&house, "/v1/messages?order=oldest&limit=3", &me()).await;
    let cursor = page["next_cursor"].as_str().unwrap();
    for (path, slug) in [
        (format!("/v1/messages?order=newest&cursor={cursor}"), "invalid-cursor"),
        ("/v1/messages?cursor=xyz".to_owned(), "invalid-cursor"),
        ("/v1/messages?limit=0".to_owned(), "invalid-query"),
        ("/v1/messages?limit=1001".to_owned(), "invalid-query"),
        ("/v1/messages?order=sideways".to_owned(), "invalid-query"),
    ] {
        let (status, body) = get(&house, &path, &me()).await;
        assert_eq!(
            (status.as_u16(), body["type"].as_str()),
            (400, Some(format!("/problems/{slug}").as_str())),
            "{path}"
        );
    }
    let (_, theirs) = get(&house, "/v1/messages", &token("acme", phone(OTHER))).await;
    assert_eq!(theirs["items"].as_array().map(Vec::len), Some(0));
    let (status, asked) = get(&house, &format!("/v1/messages?user={}", PHONE.replace('+', "%2B")), &server()).await;
    assert_eq!((status, asked["items"].as_array().map(Vec::len)), (StatusCode::OK, Some(7)));
    let (_, other_tenant) =
        get(&house, &format!("/v1/messages?user={}", PHONE.replace('+', "%2B")), &token("umbrella", Who::Server)).await;
    assert_eq!(other_tenant["items"].as_array().map(Vec::len), Some(0));
}

#[tokio::test]
async fn a_device_without_a_socket_catches_up_and_acknowledges() {
    let house = house(5).await;
    let (status, first) = get(&house, "/v1/inbox?device=d1&limit=3", &me()).await;
    assert_eq!((status, &first["more"], &first["recovered"]), (StatusCode::OK, &true.into(), &true.into()));
    assert_eq!(first["items"].as_array().map(Vec::len), Some(3));
    house.gateway.gather.drained().await;
    assert_eq!((house.world.status(id(3)), house.world.status(id(4))), (Status::Sent, Status::Pending));
    let cursor = first["cursor"].as_str().unwrap().to_owned();
    let body = format!(r#"{{"device":"d1","cursor":"{cursor}"}}"#);
    let (status, acked) = call(&house, Method::POST, "/v1/messages/ack", &me(), &body).await;
    assert_eq!((status, &acked["acknowledged"]), (StatusCode::OK, &3.into()));
    assert_eq!((house.world.status(id(3)), house.world.status(id(4))), (Status::Delivered, Status::Pending));
    let (_, again) = call(&house, Method::POST, "/v1/messages/ack", &me(), &body).await;
    assert_eq!(again["acknowledged"], 0);
    let (_, rest) = get(&house, "/v1/inbox?device=d1", &me()).await;
    assert_eq!((rest["items"].as_array().map(Vec::len), &rest["more"]), (Some(2), &false.into()));
    let (_, new_device) = get(&house, "/v1/inbox?device=d2", &me()).await;
    assert_eq!(new_device["items"].as_array().map(Vec::len), Some(2), "a new device starts at what nobody has");
    let by_id = format!(r#"{{"ids":["{}"]}}"#, id(5));
    let (_, acked) = call(&house, Method::POST, "/v1/messages/ack", &me(), &by_id).await;
    assert_eq!((&acked["acknowledged"], house.world.status(id(5))), (&1.into(), Status::Delivered));
}

#[tokio::test]
async fn acknowledgements_that_cannot_be_are_refused() {
    let house = house(2).await;
    let partition = house.gateway.inboxes(&crate::testing::mobile(PHONE))[0].partition;
    let beyond = schemas::Cursor::at(partition, schemas::cursor::place(1, 3));
    let table = [
        (format!(r#"{{"device":"d","cursor":"{beyond}"}}"#), 409, "ack-beyond-sent"),
        (format!(r#"{{"cursor":"{beyond}"}}"#), 422, "invalid-field"),
        (r#"{"device":"d","cursor":"?"}"#.to_owned(), 400, "invalid-cursor"),
        (r#"{}"#.to_owned(), 422, "invalid-field"),
        (r#"{"ids":["nope"]}"#.to_owned(), 422, "invalid-field"),
        (r#"{"#.to_owned(), 400, "invalid-json"),
    ];
    for (body, status, slug) in table {
        let (got, answer) = call(&house, Method::POST, "/v1/messages/ack", &me(), &body).await;
        assert_eq!(
            (got.as_u16(), answer["type"].as_str()),
            (status, Some(format!("/problems/{slug}").as_str())),
            "{body}"
        );
    }
    let (status, _) = call(&house, Method::POST, "/v1/messages/ack", &server(), r#"{"ids":[]}"#).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn reading_lowers_the_count_of_unread() {
    let house = house(3).await;
    assert_eq!(get(&house, "/v1/unread", &me()).await.1["one_way"], 3);
    let (status, body) = call(&house, Method::POST, &format!("/v1/messages/{}/read", id(2)), &me(), "").await;
    assert_eq!((status, &body["status"]), (StatusCode::OK, &"read".into()));
    assert_eq!(get(&house, "/v1/unread", &me()).await.1["one_way"], 2);
    let sender = call(&house, Method::POST, &format!("/v1/messages/{}/read", id(2)), &server(), "").await;
    assert_eq!(sender.0, StatusCode::FORBIDDEN);
}

// Rule 16.
#[tokio::test]
async fn the_feed_gives_every_change_in_order_from_any_cursor_and_only_ones_own() {
    let house = house(5).await;
    let body = |n| format!(r#"{{"ids":["{}"]}}"#, id(n));
    for n in 1..=5 {
        call(&house, Method::POST, "/v1/messages/ack", &me(), &body(n)).await;
    }
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    for _ in 0..4 {
        let (status, page) = get(&house, &format!("/v1/events?limit=2&metadata=true&cursor={cursor}"), &server()).await;
        assert_eq!(status, StatusCode::OK, "{page}");
        for item in page["items"].as_array().unwrap() {
            assert_eq!((&item["status"], &item["metadata"]["order"]), (&"delivered".into(), &1.into()));
            seen.push(item["ref"].as_str().unwrap().to_owned());
        }
        cursor = page["next_cursor"].as_str().unwrap().to_owned();
    }
    assert_eq!(seen, ["ref-1", "ref-2", "ref-3", "ref-4", "ref-5"]);
    call(&house, Method::POST, "/v1/messages/ack", &me(), &body(1)).await;
    let (_, page) = get(&house, &format!("/v1/events?cursor={cursor}&wait_ms=1000"), &server()).await;
    assert_eq!(page["items"].as_array().map(Vec::len), Some(1));
    for (token, expected) in
        [(token("umbrella", Who::Server), 0), (token("acme", Who::Business("sara".parse().unwrap())), 0)]
    {
        let (status, page) = get(&house, "/v1/events", &token).await;
        assert_eq!((status, page["items"].as_array().map(Vec::len)), (StatusCode::OK, Some(expected)));
    }
    assert_eq!(get(&house, "/v1/events", &me()).await.0, StatusCode::FORBIDDEN);
    assert_eq!(get(&house, "/v1/events?cursor=abc", &server()).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn nodes_are_named_with_their_load() {
    let house = house(0).await;
    let (status, body) = get(&house, "/v1/nodes", &me()).await;
    assert_eq!((status, &body["nodes"][0]["node"]), (StatusCode::OK, &"n1".into()));
}

#[tokio::test]
async fn a_hint_for_somebody_else_lands_nowhere() {
    let house = house(0).await;
    let hint: Hint = house.world.record(message_to(OTHER, 1));
    assert_eq!(house.world.deliver(vec![hint]).await, [Landing::Absent]);
}
