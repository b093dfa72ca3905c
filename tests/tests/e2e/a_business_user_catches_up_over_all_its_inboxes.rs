//! R1.3, P14 for a business user: what came from many mobile users, written by many partitions, arrives on each of its
//! sessions, each message once and each conversation in its order, through lost lines and `kill -9`.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tests::harness::{Phone, Server, Settings, number};

const SARA: &str = "business:sara";
const PHONES: u32 = 12;

/// Each phone says the next three things; every one is accepted.
async fn talk(phones: &mut [Phone], round: u32) {
    for (p, phone) in phones.iter_mut().enumerate() {
        for n in 0..3 {
            let client_ref = format!("{round}-{n}");
            let content = format!("{p}: {}", round * 3 + n);
            let send = json!({ "type": "send", "ref": client_ref, "to": SARA, "content": content });
            // Said again on every connection until it is answered: a repeat is one message.
            while !answered(phone, &send).await {
                phone.insist().await;
            }
        }
    }
}

/// Says it and waits for the answer; false: the connection ended.
async fn answered(phone: &mut Phone, send: &Value) -> bool {
    phone.say(send.clone()).await;
    while let Some(frame) = phone.next().await {
        if frame["ref"] == send["ref"] && frame["type"] != "status" {
            assert_eq!(frame["type"], "accepted", "{frame}");
            return true;
        }
    }
    false
}

fn in_order(device: &Phone, rounds: u32) {
    let mut by_phone = BTreeMap::<String, Vec<u32>>::new();
    for content in device.contents() {
        let (phone, n) = content.split_once(": ").unwrap();
        by_phone.entry(phone.to_owned()).or_default().push(n.parse().unwrap());
    }
    assert_eq!(by_phone.len(), PHONES as usize);
    for (phone, said) in by_phone {
        assert_eq!(said, (0..rounds * 3).collect::<Vec<_>>(), "phone {phone}: all of it, once, in order");
    }
    assert_eq!(device.repeats_in_session, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sessions_miss_nothing_through_lost_lines_and_kills() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings::unmetered().on_fixed_ports();
    let mut server = Server::start(&folder.path().join("data"), settings);
    let mut phones: Vec<_> = (0..PHONES).map(|n| Phone::new(&server, &number(n), "phone")).collect();
    let mut desk = Phone::new(&server, SARA, "desk");
    let mut laptop = Phone::new(&server, SARA, "laptop");
    let each = PHONES as usize * 3;

    // Live to both.
    desk.connect().await.unwrap();
    laptop.connect().await.unwrap();
    talk(&mut phones, 0).await;
    desk.until_seen(each).await;
    laptop.until_seen(each).await;
    let partitions: schemas::Cursor = desk.cursor.clone().unwrap().parse().unwrap();
    assert!(partitions.0.len() > 3, "written by many partitions: {partitions:?}");

    // One is away and comes back with its own cursor.
    desk.drop_line();
    talk(&mut phones, 1).await;
    desk.until_seen(2 * each).await;
    laptop.until_seen(2 * each).await;

    // An orderly stop keeps every cursor. Then nobody is there, and the process dies with what it knew.
    desk.drop_line();
    laptop.drop_line();
    server.terminate();
    server = server.restart();
    talk(&mut phones, 2).await;
    server.kill9();
    server = server.restart();
    desk.until_seen(3 * each).await;
    in_order(&desk, 3);
    assert_eq!(desk.repeats, 0, "a device that keeps its cursor is sent nothing twice");

    // Without its own cursor the stored one counts, not the other device's.
    laptop.cursor = None;
    laptop.until_seen(3 * each).await;
    server.kill9();
    let _server = server.restart();
    talk(&mut phones, 3).await;
    desk.until_seen(4 * each).await;
    laptop.until_seen(4 * each).await;
    in_order(&desk, 4);
    in_order(&laptop, 4);
}
