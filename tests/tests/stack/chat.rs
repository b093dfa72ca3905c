//! Chat where its two sides are on two machines: each at its own gateway, over Redis, with every role apart.

use ops::compose::Role;
use serde_json::{Value, json};
use tests::harness::{
    Phone,
    cluster::{Cluster, small},
    eventually, number,
};

const SARA: &str = "business:sara";

fn status<'a>(client_ref: &'a str, status: &'a str) -> impl Fn(&Value) -> bool + 'a {
    move |frame| frame["type"] == "status" && frame["ref"] == client_ref && frame["status"] == status
}

/// Sends over the socket; the id that was answered.
async fn send(device: &mut Phone, client_ref: &str, to: (&str, &Value), content: &str) -> String {
    device.say(json!({ "type": "send", "ref": client_ref, to.0: to.1, "content": content })).await;
    device.accepted(client_ref).await
}

/// A frame that has come already, or comes.
async fn told(device: &mut Phone, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    match device.frames.iter().find(|frame| wanted(frame)).cloned() {
        Some(frame) => frame,
        None => device.until_frame(what, wanted).await,
    }
}

/// R1.2, R7.7, rule 5: messages, ticks, marks, typing and presence pass between two gateways; and when one of them dies its
/// client comes back at the other and has missed nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_chat_passes_between_two_gateways() {
    let mut cluster = Cluster::start(|folder| {
        let mut plan = small(folder).count(Role::Gateway, 2).count(Role::Pipeline, 2);
        plan.set.push("limits.chat.away_ms=100".to_owned());
        plan
    })
    .await;
    let (first, second) = (cluster.nth(Role::Gateway, 0), cluster.nth(Role::Gateway, 1));
    let mut phone = cluster.phone_at(first, &number(1));
    let mut desk =
        Phone::at(&format!("http://{}", cluster.members[second].listen()), cluster.token_of("acme", "sara"), "desk");
    phone.insist().await;
    desk.insist().await;

    // There and back, in one order.
    let id = send(&mut phone, "p1", ("to", &json!(SARA)), "is it here?").await;
    let item = desk.until_item("the message", |item| item["id"] == id.as_str()).await;
    assert_eq!((&item["kind"], &item["seq"], &item["content"]), (&json!("chat"), &json!(1), &json!("is it here?")));
    let conversation = item["conversation_id"].clone();
    send(&mut desk, "d1", ("conversation_id", &conversation), "it is").await;
    let back = phone.until_item("the answer", |item| item["content"] == "it is").await;
    assert_eq!((&back["seq"], &back["conversation_id"]), (&json!(2), &conversation), "{back}");

    // Ticks and marks, to the other machine.
    told(&mut phone, "the tick", status("p1", "delivered")).await;
    desk.say(json!({ "type": "read", "conversation_id": conversation, "up_to": 1 })).await;
    told(&mut phone, "the second tick", status("p1", "read")).await;
    let mark = told(&mut phone, "the mark", |frame| frame["type"] == "read").await;
    assert_eq!((&mark["by"], &mark["up_to"], &mark["conversation_id"]), (&json!(SARA), &json!(1), &conversation));

    // Who types, who goes and who comes.
    desk.say(json!({ "type": "typing", "conversation_id": conversation })).await;
    let typing = told(&mut phone, "typing", |frame| frame["type"] == "typing").await;
    assert_eq!((&typing["by"], &typing["conversation_id"]), (&json!(SARA), &conversation));
    let here = |online: bool| {
        move |frame: &Value| frame["type"] == "presence" && frame["user"] == number(1) && frame["online"] == online
    };
    desk.frames.clear();
    phone.drop_line();
    let gone = told(&mut desk, "the phone's going", here(false)).await;
    assert!(gone["last_seen"].is_string(), "{gone}");
    phone.insist().await;
    told(&mut desk, "the phone's coming", here(true)).await;

    // The desk's machine dies. What is said meanwhile comes at the other one, once and in order.
    cluster.members[second].kill();
    for n in 0..5 {
        send(&mut phone, &format!("m{n}"), ("conversation_id", &conversation), &format!("meanwhile {n}")).await;
    }
    let before = desk.received.len();
    let mut moved =
        Phone::at(&format!("http://{}", cluster.members[first].listen()), cluster.token_of("acme", "sara"), "desk");
    moved.cursor.clone_from(&desk.cursor);
    moved.insist().await;
    moved.until_seen(5).await;
    let wanted: Vec<_> = (0..5).map(|n| format!("meanwhile {n}")).collect();
    assert_eq!(moved.contents(), wanted, "{before} came before: {}", cluster.logs());
    told(&mut phone, "the last tick", status("m4", "delivered")).await;

    // The machine is back, and both sides meet across again.
    cluster.members[second].start().await.unwrap();
    moved.drop_line();
    desk.cursor.clone_from(&moved.cursor);
    desk.insist().await;
    send(&mut desk, "d2", ("conversation_id", &conversation), "back").await;
    phone.until_item("the answer", |item| item["content"] == "back").await;
    assert_eq!((phone.repeats_in_session, desk.repeats_in_session), (0, 0));
    eventually("the books to balance", async || {
        let books = cluster.ask("/admin/v1/books").await;
        (books["balanced"] == true && books["total"]["unrecorded"] == 0).then_some(())
    })
    .await;
}
