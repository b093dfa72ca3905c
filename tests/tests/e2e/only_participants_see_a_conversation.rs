//! R11.1, R1.9, invariant 11: every route of chat with every foreign id, and every caller who may not chat.

use futures::future::join_all;
use serde_json::{Value, json};
use tests::harness::{Person, Server, Settings, number};

#[tokio::test(flavor = "multi_thread")]
async fn every_route_answers_strangers_as_if_it_were_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::chatting());
    let (sara, phone) = (Person::new(&server, "business:sara"), Person::new(&server, &number(1)));
    let id = sara.open(&number(1)).await;
    let said = phone.say(&id, "between us").await["id"].as_str().unwrap().to_owned();
    let before = sara.row(&id).await;

    // Each stranger has a conversation of its own, whose ids it mixes in.
    let strangers: Vec<Person> = [
        ("acme", number(2)),
        ("acme", "business:omar".to_owned()),
        ("globex", number(1)),
        ("globex", "business:sara".to_owned()),
        ("globex", "server".to_owned()),
    ]
    .into_iter()
    .map(|(tenant, who)| Person::with_token(&server, &who, server.token(tenant, &who)))
    .collect();
    let conversation = format!("/v1/conversations/{id}");
    let table = [
        ("GET", conversation.clone(), Value::Null),
        ("GET", format!("{conversation}/messages"), Value::Null),
        ("GET", format!("{conversation}/messages?around={said}"), Value::Null),
        ("POST", format!("{conversation}/messages"), json!({ "content": "x" })),
        ("PATCH", format!("{conversation}/messages/{said}"), json!({ "content": "x" })),
        ("DELETE", format!("{conversation}/messages/{said}"), Value::Null),
        ("POST", format!("{conversation}/read"), json!({ "up_to": 1 })),
        ("POST", format!("{conversation}/archive"), Value::Null),
        ("POST", format!("{conversation}/unarchive"), Value::Null),
        ("POST", format!("{conversation}/close"), Value::Null),
        ("POST", format!("{conversation}/reopen"), Value::Null),
        ("POST", format!("{conversation}/block"), Value::Null),
        ("POST", format!("{conversation}/unblock"), Value::Null),
        ("POST", format!("{conversation}/assign"), json!({ "to": "business:omar" })),
        ("GET", format!("/v1/messages/{said}"), Value::Null),
        ("GET", format!("/v1/messages/{said}/trace"), Value::Null),
        ("POST", format!("/v1/messages/{said}/read"), Value::Null),
        ("DELETE", format!("/v1/messages/{said}"), Value::Null),
    ];
    // All at once: each waits a moment for something that may yet be recorded.
    let asked = strangers.iter().flat_map(|stranger| {
        table.iter().map(move |(method, path, body)| async move {
            let (status, answer) = stranger.ask(method, path, body).await;
            assert!([403, 404].contains(&status), "{} {method} {path}: {status} {answer}", stranger.name);
            assert!(!answer.to_string().contains("between us"), "{answer}");
            // What is another's is answered exactly as what is not there.
            let nowhere = path.replace(&id_in(path), &uuid::Uuid::nil().to_string());
            let (unknown, _) = stranger.ask(method, &nowhere, body).await;
            assert_eq!(status, unknown, "{} {method} {path}", stranger.name);
        })
    });
    join_all(asked).await;
    let server_key = Person::new(&server, "server");
    for path in [format!("/v1/messages/{said}"), conversation.clone(), format!("{conversation}/messages")] {
        let (status, answer) = server_key.ask("GET", &path, &Value::Null).await;
        assert!([403, 404].contains(&status), "the business's server is no participant: {path}: {answer}");
    }

    // Own ones with a foreign message, and foreign ids in the body.
    let (omar, other) = (&strangers[1], &strangers[0]);
    let own = omar.open(&number(2)).await;
    let path = format!("/v1/conversations/{own}");
    for (who, method, path, body) in [
        (omar, "PATCH", format!("{path}/messages/{said}"), json!({ "content": "x" })),
        (omar, "DELETE", format!("{path}/messages/{said}"), Value::Null),
        (other, "POST", format!("{path}/read"), json!({ "up_to": said })),
        (other, "GET", format!("{path}/messages?around={said}"), Value::Null),
    ] {
        let (status, answer) = who.ask(method, &path, &body).await;
        assert_eq!(status, 404, "{method} {path}: {answer}");
    }
    assert_eq!(sara.row(&id).await, before, "nothing of it did anything");
    for stranger in &strangers[2..4] {
        let page = stranger.get("/v1/conversations").await;
        assert_eq!(page["items"], json!([]), "the same names in another business are other people");
    }
}

/// The id that stands in a path.
fn id_in(path: &str) -> String {
    path.split(['/', '?']).nth(3).unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_chat_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::chatting());
    let sara = Person::new(&server, "business:sara");
    let id = sara.open(&number(1)).await;
    let token = |arguments: &[&str]| {
        let mut command = std::process::Command::new(tests::harness::binary());
        command.args(["token", "--tenant", "acme", "--data"]).arg(&server.data).args(arguments);
        String::from_utf8(command.output().unwrap().stdout).unwrap().trim().to_owned()
    };
    let phone = number(1);
    let unverified = Person::with_token(&server, &phone, token(&["--user", &phone, "--unverified"]));
    let silent = Person::with_token(&server, "business:sara", token(&["--business", "sara", "--can", "send"]));
    let verified = Person::with_token(&server, &phone, token(&["--user", &phone]));
    let chats = Person::with_token(&server, "business:sara", token(&["--business", "sara", "--can", "chat"]));
    let conversation = format!("/v1/conversations/{id}");
    for (who, slug) in [(&unverified, "not-verified"), (&silent, "forbidden")] {
        for (method, path, body) in [
            ("POST", "/v1/conversations".to_owned(), json!({ "with": "business:sara" })),
            ("GET", "/v1/conversations".to_owned(), Value::Null),
            ("GET", conversation.clone(), Value::Null),
            ("GET", format!("{conversation}/messages"), Value::Null),
            ("POST", format!("{conversation}/messages"), json!({ "content": "x" })),
            ("POST", format!("{conversation}/read"), json!({ "up_to": 0 })),
            ("POST", format!("{conversation}/close"), Value::Null),
        ] {
            let (status, answer) = who.ask(method, &path, &body).await;
            assert_eq!((status, &answer["type"]), (403, &json!(format!("/problems/{slug}"))), "{method} {path}");
        }
    }
    verified.say(&id, "I am who I say").await;
    chats.say(&id, "so am I").await;
}

// R5.5: the limits of a person hold for chat.
#[tokio::test(flavor = "multi_thread")]
async fn a_person_writes_only_so_much() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings::chatting().with(["limits.door.person_per_minute=5"]);
    let server = Server::start(&folder.path().join("data"), settings);
    let (sara, phone) = (Person::new(&server, "business:sara"), Person::new(&server, &number(1)));
    let id = phone.open("business:sara").await;
    let path = format!("/v1/conversations/{id}/messages");
    let mut refused = None;
    for n in 0..6 {
        let (status, answer) = phone.post(&path, json!({ "content": n.to_string() })).await;
        if status == 429 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("a refusal");
    assert_eq!((&refused["type"], &refused["field"]), (&json!("/problems/quota-exceeded"), &json!("person-minute")));
    sara.say(&id, "nobody else is held back").await;
    phone.does(&id, "read", json!({ "up_to": sara.row(&id).await["last_seq"] })).await;
}
