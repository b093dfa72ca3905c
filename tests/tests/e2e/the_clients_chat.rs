//! The reference clients send what they are given until it is answered, through broken lines and `kill -9`, and it is there
//! once.

use schemas::frame::{ClientFrame, ServerFrame};
use tests::harness::{Person, Server, Settings, number};

use crate::reference;

const SARA: &str = "business:sara";

#[tokio::test(flavor = "multi_thread")]
async fn what_the_rust_client_is_given_is_said_once_in_its_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(&folder.path().join("data"), Settings::unmetered().on_fixed_ports());
    let token = server.token("acme", &number(1));
    let mut client = reference::Client::new(&server.url, "phone", move || token.clone());
    let outbox = client.outbox();
    let (say, mut answers) = tokio::sync::mpsc::channel(1_000);
    let running = tokio::spawn(async move {
        client
            .run(move |frame| match frame {
                ServerFrame::Accepted { client_ref: Some(_), .. } | ServerFrame::Error { .. } => {
                    say.try_send(frame).is_ok()
                }
                _ => true,
            })
            .await
    });
    for n in 0..40_u32 {
        if n % 10 == 5 {
            server.kill9();
            server = server.restart();
        }
        let frame = serde_json::json!({ "type": "send", "ref": n.to_string(), "to": SARA, "content": n.to_string() });
        outbox.send(serde_json::from_value::<ClientFrame>(frame).unwrap()).await.unwrap();
        let answer = tokio::time::timeout(tests::harness::PATIENCE, answers.recv()).await.expect("an answer").unwrap();
        let ServerFrame::Accepted { client_ref, .. } = &answer else { panic!("{answer:?}") };
        assert_eq!(client_ref.as_ref().map(ToString::to_string), Some(n.to_string()), "one answer for each");
    }
    running.abort();
    let person = Person::new(&server, &number(1));
    let id = person.open(SARA).await;
    let thread = tests::harness::eventually("all of it", async || {
        let thread = person.thread(&id, "oldest", 100).await;
        (thread.len() >= 40).then_some(thread)
    })
    .await;
    assert_eq!(tests::harness::contents(&thread), (0..40).map(|n| n.to_string()).collect::<Vec<_>>());
}
