//! A batch is many messages: each has its own answer, in order, and a bad one costs itself alone.

use serde_json::{Value, json};
use tests::harness::{Business, Phone, Server, Settings, number};

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_item_costs_that_item_only() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::unmetered());
    let business = Business::new(&server);
    let lines = [
        json!({ "to": number(1), "content": "0", "key": "a" }).to_string(),
        "{not json".to_owned(),
        json!({ "to": "0790000001", "content": "2" }).to_string(),
        json!({ "to": number(1), "content": "3", "key": "b" }).to_string(),
        json!({ "to": number(1), "content": "", }).to_string(),
        json!({ "to": number(1), "content": "5", "ref": "mine" }).to_string(),
    ];
    let expected = [202, 400, 422, 202, 422, 202];
    let array = format!("[{}]", [&lines[0], &lines[2], &lines[3], &lines[4], &lines[5]].map(String::as_str).join(","));
    for (kind, body, expected) in [
        ("application/x-ndjson", lines.join("\n"), &expected[..]),
        ("application/json", array, &[202, 422, 202, 422, 202][..]),
    ] {
        let request = server.http.post(format!("{}/v1/messages/batch", server.url)).bearer_auth(business.token());
        let text = request.header("content-type", kind).body(body).send().await.unwrap().text().await.unwrap();
        let answers: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let statuses: Vec<_> = answers.iter().map(|a| a["status"].as_u64().unwrap()).collect();
        assert_eq!(statuses, expected, "{kind}: {text}");
        for (index, answer) in answers.iter().enumerate() {
            assert_eq!(answer["index"].as_u64(), Some(index as u64), "{kind}");
        }
    }
    let mut phone = Phone::new(&server, &number(1), "one");
    phone.connect().await.unwrap();
    phone.until_seen(4).await;
    assert_eq!(
        phone.contents(),
        ["0", "3", "5", "5"],
        "keyed items were sent twice and are one message; the third had no key"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_stream_can_be_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::unmetered());
    let business = Business::new(&server);
    let items: Vec<_> =
        (0..2_000).map(|n| json!({ "to": number(n % 7), "content": n.to_string(), "key": format!("k{n}") })).collect();
    // The first try breaks off in the middle of a line.
    let half: String = items[..1_200].iter().map(|i| format!("{i}\n")).collect::<String>() + "{\"to\":\"+9627";
    let chunks = futures::stream::iter(vec![Ok(half.into_bytes()), Err(std::io::Error::other("the line broke"))]);
    let request = server.http.post(format!("{}/v1/messages/batch", server.url)).bearer_auth(business.token());
    let _ =
        request.header("content-type", "application/x-ndjson").body(reqwest::Body::wrap_stream(chunks)).send().await;
    let answers = business.batch(&items).await;
    assert!(answers.iter().all(|a| a["status"] == 202));
    for n in 0..7 {
        let mut phone = Phone::new(&server, &number(n), "one");
        phone.connect().await.unwrap();
        let expected: Vec<_> = (0..2_000).filter(|i| i % 7 == n).map(|i| i.to_string()).collect();
        phone.until_seen(expected.len()).await;
        assert_eq!(phone.contents(), expected);
    }
}
