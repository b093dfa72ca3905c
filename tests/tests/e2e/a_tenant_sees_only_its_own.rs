//! Invariant 11: every route, every foreign id: 403 or 404, whoever asks.

use serde_json::json;
use tests::harness::{Business, Phone, Server, Settings, number};

#[tokio::test(flavor = "multi_thread")]
async fn every_foreign_id_is_as_unknown() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::unmetered());
    let acme = Business::of(&server, "acme");
    let sent = acme.send(&number(1), "acme's own").await;
    acme.until(&sent.id, "pending").await;
    let (_, broadcast) = acme.post("/v1/broadcasts", &json!({ "to": [number(5)], "content": "acme's news" })).await;
    let broadcast = broadcast["id"].as_str().unwrap();

    let strangers = [
        server.token("globex", "server"),
        server.token("globex", "business:sam"),
        server.token("globex", &number(1)),
        server.token("acme", &number(2)),
    ];
    let routes = [
        ("GET", format!("/v1/messages/{}", sent.id)),
        ("GET", format!("/v1/messages/{}/trace", sent.id)),
        ("DELETE", format!("/v1/messages/{}", sent.id)),
        ("POST", format!("/v1/messages/{}/read", sent.id)),
        ("GET", format!("/v1/broadcasts/{broadcast}")),
        ("DELETE", format!("/v1/broadcasts/{broadcast}")),
    ];
    for token in &strangers {
        for (method, path) in &routes {
            let request =
                server.http.request(method.parse().unwrap(), format!("{}{path}", server.url)).bearer_auth(token);
            let status = request.send().await.unwrap().status().as_u16();
            assert!([403, 404].contains(&status), "{method} {path}: {status}");
        }
        let ack = server.http.post(format!("{}/v1/messages/ack", server.url)).bearer_auth(token);
        let status = ack.json(&json!({ "device": "d", "ids": [sent.id] })).send().await.unwrap().status().as_u16();
        assert!(status < 500, "{status}");
    }
    assert_eq!(acme.until(&sent.id, "pending").await["content"], "acme's own", "no stranger's acknowledgement counted");

    // The same number in another business is another user.
    let mut stranger = Phone::with_token(&server, server.token("globex", &number(1)), "one");
    stranger.connect().await.unwrap();
    Business::of(&server, "globex").send(&number(1), "globex's own").await;
    stranger.until_seen(1).await;
    assert_eq!(stranger.contents(), ["globex's own"]);
    let (_, events) = server.get("/v1/events", &strangers[0]).await;
    assert!(!events.to_string().contains(&sent.id), "{events}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_valid_token_nothing_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::default());
    let (good, mut forged) = (server.token("acme", "server"), server.token("acme", "server"));
    forged.truncate(forged.len() - 4);
    forged.push_str("AAAA");
    let id = uuid::Uuid::new_v4();
    for path in [
        "/v1/limits",
        "/v1/messages",
        "/v1/inbox",
        "/v1/unread",
        "/v1/events",
        &format!("/v1/messages/{id}"),
        "/v1/ws?device=a",
    ] {
        for token in ["", "nonsense", forged.as_str()] {
            let (status, problem) = server.get(path, token).await;
            assert_eq!(
                (status, problem["type"].as_str()),
                (401, Some("/problems/unauthenticated")),
                "{path} {problem}"
            );
        }
    }
    for path in ["/admin/v1/dead", "/admin/v1/books", "/admin/v1/lanes"] {
        let response = server.http.get(format!("{}{path}", server.admin)).bearer_auth(&good).send().await.unwrap();
        assert_eq!(response.status(), 403, "{path} is for administrators");
    }
    let phone = server.token("acme", &number(1));
    let send = server.http.post(format!("{}/v1/messages", server.url)).bearer_auth(&phone);
    let refused = send.json(&json!({ "to": number(2), "content": "x" })).send().await.unwrap();
    assert_eq!(refused.status(), 403, "R1.4, R1.10: a mobile user sends no one-way message");
}
