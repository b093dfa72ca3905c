//! R1.3, P14: messages to a user who is away stay Pending and arrive, in order, on its return; nothing is hidden.

use tests::harness::{Business, Phone, Server, Settings, number};

#[tokio::test(flavor = "multi_thread")]
async fn p14_messages_wait_pending_and_arrive_in_order_on_return() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::unmetered());
    let business = Business::new(&server);
    let mut sent = Vec::new();
    for n in 0..30 {
        sent.push(business.send(&number(1), &n.to_string()).await);
    }
    for message in &sent {
        business.until(&message.id, "pending").await;
    }
    // A restart in between loses none of them.
    let server = server.restart();
    let business = Business::new(&server);
    let mut phone = Phone::new(&server, &number(1), "one");
    phone.connect().await.unwrap();
    phone.until_seen(30).await;
    assert_eq!(phone.contents(), (0..30).map(|n| n.to_string()).collect::<Vec<_>>());
    business.until(&sent[29].id, "delivered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_keeps_its_cursor_gets_exactly_what_it_missed() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::unmetered());
    let business = Business::new(&server);
    let mut phone = Phone::new(&server, &number(1), "one");
    phone.connect().await.unwrap();
    for n in 0..5 {
        business.send(&number(1), &n.to_string()).await;
    }
    phone.until_seen(5).await;
    phone.drop_line();
    for n in 5..12 {
        business.send(&number(1), &n.to_string()).await;
    }
    let welcome = phone.connect().await.unwrap();
    assert_eq!(welcome["recovered"], true);
    phone.until_seen(12).await;
    assert_eq!(phone.contents(), (0..12).map(|n| n.to_string()).collect::<Vec<_>>());
    assert_eq!(phone.repeats, 0, "what came before the cursor does not come again");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_inbox_can_be_read_and_acknowledged_without_a_socket() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::unmetered());
    let business = Business::new(&server);
    let mut sent = Vec::new();
    for n in 0..7 {
        sent.push(business.send(&number(1), &n.to_string()).await);
    }
    business.until(&sent[6].id, "pending").await;
    let token = server.token("acme", &number(1));
    let (mut cursor, mut got) = (String::new(), Vec::new());
    loop {
        let page = if cursor.is_empty() { String::new() } else { format!("&cursor={cursor}") };
        let (status, body) = server.get(&format!("/v1/inbox?device=web&limit=3{page}"), &token).await;
        assert_eq!(status, 200, "{body}");
        let items = body["items"].as_array().unwrap();
        got.extend(items.iter().map(|item| item["content"].as_str().unwrap().to_owned()));
        match items.last() {
            Some(last) => cursor = last["cursor"].as_str().unwrap().to_owned(),
            None => break,
        }
    }
    assert_eq!(got, (0..7).map(|n| n.to_string()).collect::<Vec<_>>());
    let body = serde_json::json!({ "device": "web", "cursor": cursor });
    let request = server.http.post(format!("{}/v1/messages/ack", server.url)).bearer_auth(&token).json(&body);
    assert!(request.send().await.unwrap().status().is_success());
    business.until(&sent[0].id, "delivered").await;
    business.until(&sent[6].id, "delivered").await;

    // One-way history, both ways, in pages (R1.8).
    for (order, expected) in [("oldest", "0"), ("newest", "6")] {
        let (status, body) = server.get(&format!("/v1/messages?order={order}&limit=2"), &token).await;
        assert_eq!(status, 200, "{body}");
        assert_eq!(body["items"][0]["content"], expected);
        let next = body["next_cursor"].as_str().expect("there is more");
        let (_, more) = server.get(&format!("/v1/messages?order={order}&limit=100&cursor={next}"), &token).await;
        assert_eq!(more["items"].as_array().unwrap().len(), 5, "{more}");
        assert!(more["next_cursor"].is_null(), "{more}");
    }
}
