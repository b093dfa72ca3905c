//! The main job: from an HTTP call through the log and the dataflow to a phone's socket, and back as an acknowledgement.

use tests::harness::{Business, Phone, Server, Settings, number};

#[tokio::test(flavor = "multi_thread")]
async fn a_message_goes_out_and_its_status_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::default());
    let business = Business::new(&server);
    let mut phone = Phone::new(&server, &number(1), "one");
    let welcome = phone.connect().await.unwrap();
    assert_eq!((welcome["recovered"].as_bool(), welcome["user"].as_str()), (Some(true), Some(number(1).as_str())));

    let sent = business.send(&number(1), "Hello <b>you</b> & all").await;
    phone.until_seen(1).await;
    assert_eq!(phone.received[0].id, sent.id);
    assert_eq!(phone.contents(), ["Hello you & all"], "tags go, everything else arrives as it was");

    let seen = business.until(&sent.id, "delivered").await;
    assert_eq!((seen["kind"].as_str(), seen["to"].as_str()), (Some("one_way"), Some(number(1).as_str())));
    assert!(seen["status_at"].as_str().unwrap() >= seen["accepted_at"].as_str().unwrap());

    let (status, trace) = business.get(&format!("/v1/messages/{}/trace", sent.id)).await;
    assert_eq!(status, 200, "{trace}");
    let stages: Vec<_> =
        trace["stages"].as_array().unwrap().iter().map(|s| s["stage"].as_str().unwrap().to_owned()).collect();
    for stage in ["accepted", "recorded", "sent", "delivered"] {
        assert!(stages.iter().any(|s| s == stage), "{stage} is missing in {stages:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_was_opened_is_read_and_no_longer_unread() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::default());
    let business = Business::new(&server);
    let mut phone = Phone::new(&server, &number(2), "one");
    phone.connect().await.unwrap();
    let sent = business.send(&number(2), "open me").await;
    business.send(&number(2), "not me").await;
    phone.until_seen(2).await;
    business.until(&sent.id, "delivered").await;
    let token = server.token("acme", &number(2));
    assert_eq!(server.get("/v1/unread", &token).await.1["one_way"], 2);

    phone.say(serde_json::json!({ "type": "read", "ids": [sent.id] })).await;
    business.until(&sent.id, "read").await;
    // Read twice, also over HTTP: counted once.
    let again = server
        .http
        .post(format!("{}/v1/messages/{}/read", server.url, sent.id))
        .bearer_auth(&token)
        .send()
        .await
        .unwrap();
    assert!(again.status().is_success(), "{}", again.status());
    assert_eq!(server.get("/v1/unread", &token).await.1["one_way"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_messages_to_many_phones_arrive_once_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::unmetered());
    let business = Business::new(&server);
    let (users, each) = (20, 100);
    let mut phones: Vec<_> = (0..users).map(|n| Phone::new(&server, &number(n), "one")).collect();
    for phone in &mut phones {
        phone.connect().await.unwrap();
    }
    let items: Vec<_> = (0..users * each)
        .map(|n| serde_json::json!({ "to": number(n % users), "content": format!("{}", n / users) }))
        .collect();
    let answers = business.batch(&items).await;
    assert!(answers.len() == items.len() && answers.iter().all(|a| a["status"] == 202), "{:?}", answers.first());
    let expected: Vec<_> = (0..each).map(|n| n.to_string()).collect();
    for phone in &mut phones {
        phone.until_seen(each as usize).await;
        assert_eq!(phone.contents(), expected);
        assert_eq!((phone.repeats, phone.repeats_in_session), (0, 0));
    }
}
