//! Every way the door says no: its status, its code, the field and the bound it names.

use schemas::port::PortError;
use std::sync::atomic::Ordering;

use super::*;

/// Headers, body; status, code, field, what the detail names.
type Row<'a> = (&'a [(&'a str, &'a str)], &'a str, u16, &'a str, &'a str, &'a str);

#[tokio::test]
async fn a_single_message_is_refused_with_its_reason() {
    let house = House::new(open_limits());
    let ok = draft(1);
    let long = format!(r#"{{"to":"+962790000001","content":"{}"}}"#, "x".repeat(10_001));
    let wide = format!(r#"{{"to":"+962790000001","content":"{}"}}"#, "\\u0001".repeat(9_000));
    let labels = format!(r#"{{"to":"+962790000001","content":"x","metadata":"{}"}}"#, "x".repeat(4_096));
    let huge = format!(r#"{{"to":"+962790000001","content":"{}"}}"#, "x".repeat(140_000));
    let key = "k".repeat(256);
    let (json, json_form) =
        (("content-type", "application/json"), ("content-type", "application/x-www-form-urlencoded"));
    #[rustfmt::skip]
    let table: &[Row] = &[
        (&[json], "", 400, "invalid-json", "", "EOF"),
        (&[json], "{", 400, "invalid-json", "", "EOF"),
        (&[json], "[]", 400, "invalid-json", "", "not an array"),
        (&[json], "{}", 422, "invalid-field", "", "`to`"),
        (&[json], r#"{"to":"+962790000001","content":"x","subjcet":"y"}"#, 422, "invalid-field", "", "subjcet"),
        (&[json], r#"{"to":"0790000001","content":"x"}"#, 422, "invalid-phone", "/to", "E.164"),
        (&[json], r#"{"to":"+999790000001","content":"x"}"#, 422, "invalid-phone", "/to", "numbering plan"),
        (&[json], r#"{"to":"+962790000001","content":" "}"#, 422, "invalid-content", "/content", "empty"),
        (&[json], r#"{"to":"+962790000001","content":"<b></b>"}"#, 422, "invalid-content", "/content", "empty"),
        (&[json], r#"{"to":"+962790000001","content":{"a":1}}"#, 422, "invalid-content", "/content", "must be a string"),
        (&[json], &long, 422, "invalid-content", "/content", "the most is 10000"),
        (&[json], &wide, 422, "invalid-content", "/content", "the most is 49152"),
        (&[json], &labels, 422, "invalid-field", "/metadata", "the most is 4096"),
        (&[json], r#"{"to":"+962790000001","content":"x","priority":"urgent"}"#, 422, "invalid-field", "", "urgent"),
        (&[json], r#"{"to":"+962790000001","content":"x","send_at":"tomorrow"}"#, 422, "invalid-field", "", "RFC 3339"),
        (&[json], r#"{"to":"+962790000001","content":"x","send_at":"2099-01-01T00:00:00Z"}"#, 422, "invalid-field", "/send_at", "must not be later"),
        (&[json], r#"{"to":"+962790000001","content":"x","expires_at":"2000-01-01T00:00:00Z"}"#, 422, "invalid-field", "/expires_at", "must be later"),
        (&[json, ("idempotency-key", "a")], r#"{"to":"+962790000001","content":"x","key":"b"}"#, 422, "invalid-field", "/key", "Idempotency-Key"),
        (&[json, ("idempotency-key", &key)], &ok, 400, "invalid-header", "Idempotency-Key", "1 to 255"),
        (&[json, ("idempotency-key", "\"open")], &ok, 400, "invalid-header", "Idempotency-Key", "quoted"),
        (&[json, ("idempotency-key", "\"\"")], &ok, 400, "invalid-header", "Idempotency-Key", "1 to 255"),
        (&[json_form], &ok, 415, "unsupported-media-type", "Content-Type", "application/json"),
        (&[LINES], &ok, 415, "unsupported-media-type", "Content-Type", "application/json"),
        (&[json, ("content-encoding", "gzip")], &ok, 415, "unsupported-media-type", "Content-Encoding", "unpacked"),
        (&[json], &huge, 413, "too-large", "", "131072 bytes"),
        (&[json, ("content-length", "1000000000")], &ok, 413, "too-large", "", "131072 bytes"),
    ];
    for (headers, body, status, slug, field, names) in table {
        let answer = house.post("/v1/messages", &server(), headers, (*body).to_owned()).await;
        let what = format!("{slug} of {headers:?} {}: {}", &body[..body.len().min(80)], answer.body);
        assert_eq!((answer.status.as_u16(), answer.slug().as_str()), (*status, *slug), "{what}");
        let json = answer.json();
        assert_eq!(json["field"].as_str().unwrap_or_default(), *field, "{what}");
        assert!(json["detail"].as_str().unwrap().contains(names), "{what}");
    }
    assert_eq!(house.log.calls.load(Ordering::SeqCst), 0, "nothing refused reaches the log");
}

/// R1.10, R1.4: who may use which route.
#[tokio::test]
async fn r1_10_only_a_business_with_the_permission_may_send() {
    let house = House::new(open_limits());
    let (none, send) = (Permissions::default(), Permissions { send: true, ..Default::default() });
    let broadcast = Permissions { broadcast: true, ..Default::default() };
    let list = r#"{"to":["+962790000001"],"content":"x"}"#;
    let single = draft(1);
    let table = [
        ("server", send, [202, 200, 403]),
        ("business:sara", send, [202, 200, 403]),
        ("business:sara", none, [403, 403, 403]),
        ("business:sara", broadcast, [403, 403, 202]),
        ("+962790000001", all(), [403, 403, 403]),
        ("admin", all(), [403, 403, 403]),
    ];
    for (who, can, want) in table {
        let token = token_of("acme", who, can);
        let one = house.post("/v1/messages", &token, &[], single.clone()).await;
        let many = house.post("/v1/messages/batch", &token, &[LINES], single.clone()).await;
        let all = house.post("/v1/broadcasts", &token, &[], list).await;
        let got = [&one, &many, &all].map(|a| a.status.as_u16());
        assert_eq!(got, want, "of {who} with {can:?}");
        for answer in [one, many, all].iter().filter(|a| a.status == 403) {
            assert_eq!(answer.slug(), "forbidden");
        }
    }
}

#[tokio::test]
async fn a_caller_without_a_valid_token_is_told_how() {
    let house = House::new(open_limits());
    for path in ["/v1/messages", "/v1/messages/batch", "/v1/broadcasts"] {
        for (token, slug) in [("", "unauthenticated"), ("nonsense", "unauthenticated")] {
            let answer = house.post(path, token, &[], draft(1)).await;
            assert_eq!((answer.status.as_u16(), answer.slug().as_str()), (401, slug));
            assert!(answer.header("www-authenticate").starts_with("Bearer"));
        }
    }
    let token = server();
    house.clock.pass(4_000_000);
    assert_eq!(house.post("/v1/messages", &token, &[], draft(1)).await.slug(), "token-expired");
    let by_key = house.post("/v1/messages", "", &[("x-api-key", "key-of-acme")], draft(1)).await;
    assert_eq!(by_key.status, 202);
}

#[tokio::test]
async fn an_unknown_path_or_method_is_a_problem_too() {
    let house = House::new(open_limits());
    let nowhere = house.get("/v1/nowhere", "").await;
    assert_eq!((nowhere.status.as_u16(), nowhere.slug().as_str()), (404, "not-found"));
    let wrong = house.ask(request("PUT", "/v1/messages", "", &[], "")).await;
    assert_eq!((wrong.status.as_u16(), wrong.slug().as_str()), (405, "method-not-allowed"));
    assert_eq!(wrong.header("allow"), "POST");
}

#[tokio::test]
async fn what_the_log_answers_is_what_the_sender_is_told() {
    let house = House::new(open_limits());
    let table = [
        (PortError::Full("no room".into()), 507, "disk-full", true),
        (PortError::Unknown("cut off".into()), 503, "unknown-outcome", true),
        (PortError::Unavailable("away".into()), 503, "unavailable", true),
        (PortError::Rejected("odd".into()), 500, "internal", false),
    ];
    for (fault, status, slug, again) in table {
        *house.log.fault.lock() = Some(fault);
        let answer = house.send(&draft(1)).await;
        assert_eq!((answer.status.as_u16(), answer.slug().as_str()), (status, slug));
        assert_eq!(!answer.header("retry-after").is_empty(), again);
        let lines = house.batch(&[LINES], draft(1)).await.lines();
        assert_eq!((lines.len(), &lines[0]["status"]), (1, &status.into()));
    }
}

/// R5.5: the quota of a person is named with when it is there again.
#[tokio::test]
async fn r5_5_a_person_sends_a_hundred_messages_a_minute() {
    let limits = Limits::default();
    let house = House::new(limits);
    let (sara, omar) = (token_of("acme", "business:sara", all()), token_of("acme", "business:omar", all()));
    for n in 0..100 {
        let answer = house.post("/v1/messages", &sara, &[], draft(n)).await;
        assert_eq!(answer.status, 202, "{}", answer.body);
        let left = 99 - n;
        assert!(answer.header("ratelimit").starts_with(&format!("\"person-minute\";r={left};t=")));
    }
    let refused = house.post("/v1/messages", &sara, &[], draft(1)).await;
    assert_eq!((refused.status.as_u16(), refused.slug().as_str()), (429, "quota-exceeded"));
    assert_eq!(refused.json()["field"], "person-minute");
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(refused.header("ratelimit-policy"), "\"person-minute\";q=100;w=60, \"person-hour\";q=1000;w=3600");
    assert_eq!(house.post("/v1/messages", &omar, &[], draft(1)).await.status, 202, "another person has its own");
    assert_eq!(house.post("/v1/messages", &server(), &[], draft(1)).await.status, 202, "so have servers");
    house.clock.jump(-3_600_000);
    assert_eq!(house.post("/v1/messages", &sara, &[], draft(1)).await.status, 429, "the wall clock does not count");
    house.clock.jump(3_600_000);
    house.clock.pass(600);
    assert_eq!(house.post("/v1/messages", &sara, &[], draft(1)).await.status, 202);
}

#[tokio::test]
async fn r5_5_the_hour_and_all_together_have_quotas_too() {
    let mut limits = Limits::default();
    (limits.door.person_per_hour, limits.door.system_per_second) = (3, 4);
    let house = House::new(limits);
    let sara = token_of("acme", "business:sara", all());
    let mut seen = Vec::new();
    for n in 0..4 {
        let answer = house.post("/v1/messages", &sara, &[], draft(n)).await;
        seen.push((answer.status.as_u16(), answer.json()["field"].as_str().unwrap_or_default().to_owned()));
    }
    assert_eq!(seen[2].0, 202);
    assert_eq!(seen[3], (429, "person-hour".to_owned()));
    assert_eq!(house.send(&draft(1)).await.status, 202);
    assert_eq!(house.send(&draft(1)).await.json()["field"], "system-second");
    let shown = house.get("/v1/limits", &sara).await.json();
    assert_eq!(shown["quotas"][1]["policy"], "person-hour");
    assert_eq!((&shown["quotas"][1]["quota"], &shown["quotas"][1]["remaining"]), (&3.into(), &0.into()));
    assert!(shown["quotas"].as_array().unwrap().last().unwrap().get("remaining").is_none());
}

/// R5.4: a lane slows at one mark and refuses at the other.
#[tokio::test]
async fn r5_4_a_backlog_slows_and_then_refuses_its_lane() {
    let mut limits = open_limits();
    (limits.door.lane_slow, limits.door.lane_full) = (100, 1_000);
    let house = House::new(limits);
    for (waiting, status, slug) in [(100, 429, "lane-slow"), (1_000, 503, "lane-full")] {
        house.log.waiting.store(waiting, Ordering::SeqCst);
        while house.door.waiting()[1] != waiting {
            house.door.asked.notified().await;
        }
        let refused = house.send(&draft(1)).await;
        assert_eq!((refused.status.as_u16(), refused.slug().as_str()), (status, slug));
        assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 1);
        let lines = house.batch(&[LINES], draft(1)).await.lines();
        assert_eq!((lines.len(), lines[0]["status"].as_u64()), (1, Some(status.into())));
        let lanes = house.get("/v1/limits", &server()).await.json()["lanes"][1]["state"].clone();
        assert_eq!(lanes, slug.trim_start_matches("lane-"));
    }
    house.log.waiting.store(0, Ordering::SeqCst);
    while house.door.waiting()[1] != 0 {
        house.door.asked.notified().await;
    }
    assert_eq!(house.send(&draft(1)).await.status, 202);
}

#[tokio::test]
async fn a_closed_door_and_a_crowded_one_say_so() {
    let mut limits = open_limits();
    limits.door.concurrent_requests = 0;
    let house = House::new(limits);
    assert_eq!(house.send(&draft(1)).await.slug(), "overloaded");
    house.door.close().await;
    let answer = house.send(&draft(1)).await;
    assert_eq!((answer.status.as_u16(), answer.slug().as_str()), (503, "draining"));
}

/// Bodies that never come, or come without end, are cut; neither is held in memory.
#[tokio::test]
async fn a_slow_or_endless_body_is_cut() {
    let mut limits = open_limits();
    (limits.door.request_ms, limits.door.idle_body_ms) = (40, 20);
    let house = House::new(limits);
    let never = || Body::from_stream(futures::stream::pending::<Result<bytes::Bytes, std::io::Error>>());
    for path in ["/v1/messages", "/v1/messages/batch", "/v1/broadcasts"] {
        let answer = house.post(path, &server(), &[], never()).await;
        assert_eq!((answer.status.as_u16(), answer.slug().as_str()), (408, "request-timeout"), "{path}");
    }
    let drip = futures::stream::unfold((), |()| async {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        Some((Ok::<_, std::io::Error>(bytes::Bytes::from_static(b" ")), ()))
    });
    let answer = house.post("/v1/messages", &server(), &[], Body::from_stream(drip)).await;
    assert_eq!(answer.slug(), "request-timeout");
    let flood = || futures::stream::repeat_with(|| Ok::<_, std::io::Error>(bytes::Bytes::from(vec![b' '; 65_536])));
    let answer = house.post("/v1/messages", &server(), &[], Body::from_stream(flood())).await;
    assert_eq!((answer.status.as_u16(), answer.slug().as_str()), (413, "too-large"));
}

#[test]
fn headers_are_read_as_their_standards_say() {
    use crate::http::{idempotency_key, traceparent};
    let headers = |name: &str, value: &str| {
        let mut map = http::HeaderMap::new();
        map.insert(http::HeaderName::try_from(name).unwrap(), value.parse().unwrap());
        map
    };
    for (value, want) in [("\"a b\"", "a b"), ("bare-1", "bare-1"), ("\"q\\\"\\\\\"", "q\"\\"), (" x ", "x")] {
        assert_eq!(idempotency_key(&headers("idempotency-key", value)).unwrap().unwrap(), want);
    }
    let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    assert_eq!(traceparent(&headers("traceparent", good)), Some(good));
    let future = format!("cc{}-what-the-future-brings", &good[2..]);
    assert_eq!(traceparent(&headers("traceparent", &future)), Some(&future[..55]));
    for bad in [
        "",
        "00",
        &good.to_uppercase(),
        &format!("ff{}", &good[2..]),
        &format!("{good}-more"),
        &good.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
        &good.replace("00f067aa0ba902b7", &"0".repeat(16)),
        &good.replace('-', "_"),
    ] {
        assert_eq!(traceparent(&headers("traceparent", bad)), None, "{bad}");
    }
}

/// R6.5: what is known to be away is not waited for.
#[tokio::test]
async fn a_log_that_is_known_to_be_away_is_refused_at_once() {
    let house = House::new(open_limits());
    house.door.log_is_away(true);
    let answer = house.send(&draft(1)).await;
    assert_eq!(
        (answer.status.as_u16(), answer.slug().as_str(), answer.header("retry-after")),
        (503, "unavailable", "1")
    );
    assert!(house.log.messages().is_empty());
    house.door.log_is_away(false);
    assert_eq!(house.send(&draft(1)).await.status, 202);
}
