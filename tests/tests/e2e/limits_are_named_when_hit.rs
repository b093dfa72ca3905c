//! R5.4, R5.5: a limit that is hit is named with when to come back, before anything is accepted.

use serde_json::json;
use tests::harness::{Business, Server, Settings, number};

#[tokio::test(flavor = "multi_thread")]
async fn a_person_s_quota_is_named_with_when_to_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let server =
        Server::start(&folder.path().join("data"), Settings::default().with(["limits.door.person_per_minute=5"]));
    let token = server.token("acme", "business:sara");
    let post = || {
        let request = server.http.post(format!("{}/v1/messages", server.url)).bearer_auth(&token);
        request.json(&json!({ "to": number(1), "content": "x" })).send()
    };
    for _ in 0..5 {
        let response = post().await.unwrap();
        assert_eq!(response.status(), 202);
        assert!(response.headers().contains_key("ratelimit") && response.headers().contains_key("ratelimit-policy"));
    }
    let refused = post().await.unwrap();
    assert_eq!(refused.status(), 429);
    let retry: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&retry));
    let problem: serde_json::Value = refused.json().await.unwrap();
    assert_eq!(problem["type"], "/problems/quota-exceeded");
    assert!(problem["detail"].as_str().unwrap().contains('5'), "{problem}");
    let (status, limits) = server.get("/v1/limits", &token).await;
    assert_eq!(status, 200, "{limits}");

    // The server key's quota is another.
    Business::new(&server).send(&number(1), "still").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_lane_refuses_and_loses_nothing_it_accepted() {
    let folder = tempfile::tempdir().unwrap();
    // Nothing leaves the lane while only so few may be in flight and every one waits for its batch.
    let settings = Settings::unmetered().with([
        "limits.door.lane_slow=50",
        "limits.door.lane_full=100",
        "limits.flow.fetch_records=1",
        "limits.flow.in_flight=1",
        "limits.door.batch_wait_ms=0",
    ]);
    let server = Server::start(&folder.path().join("data"), settings);
    let business = Business::new(&server);
    let items: Vec<_> = (0..20_000).map(|n| json!({ "to": number(n % 50), "content": "x" })).collect();
    let answers = business.batch(&items).await;
    assert_eq!(answers.len(), items.len());
    let accepted = answers.iter().filter(|a| a["status"] == 202).count();
    let refused: Vec<_> = answers.iter().filter(|a| a["status"] != 202).collect();
    assert!(!refused.is_empty(), "20,000 messages into a lane of 100");
    for answer in &refused {
        let kind = answer["problem"]["type"].as_str().unwrap_or_default();
        assert!(["/problems/lane-slow", "/problems/lane-full"].contains(&kind), "{answer}");
        assert!(answer["problem"]["retry_after_ms"].as_u64().is_some(), "{answer}");
    }
    tests::harness::eventually("the books to balance", async || {
        let (_, books) = server.admin("GET", "/admin/v1/books", None).await;
        let all = &books["total"];
        (all["accepted"].as_u64()? == accepted as u64 && all["unrecorded"] == 0 && books["balanced"] == true)
            .then_some(())
    })
    .await;
}
