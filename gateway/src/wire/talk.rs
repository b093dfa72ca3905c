//! Chat over real sockets.

use ingest::auth::Who;
use schemas::{
    Code, ConversationId, MessageId, Party, Problem, Timestamp, UserId,
    conversation::Side,
    port::{Node as _, People as _, Signal},
};
use serde_json::{Value, json};

use super::*;

fn sara() -> UserId {
    "acme/business:sara".parse().unwrap()
}

async fn connect(address: &str, user: &str, device: &str) -> Raw {
    let who: Who = user.parse().unwrap();
    let mut socket = raw(address, &format!("device={device}"), &token("acme", who)).await;
    assert!(matches!(frame(&mut socket).await, Ok(ServerFrame::Welcome { .. })));
    socket
}

async fn say(socket: &mut Raw, frame: Value) {
    socket.send(Message::text(frame.to_string())).await.unwrap();
}

/// The next frame but presence, which comes when it does.
async fn told(socket: &mut Raw) -> ServerFrame {
    loop {
        match frame(socket).await.unwrap() {
            ServerFrame::Presence { .. } => {}
            other => return other,
        }
    }
}

/// Answers to frames, by their ref.
async fn answer(socket: &mut Raw) -> (String, Result<MessageId, Problem>) {
    match told(socket).await {
        ServerFrame::Accepted { client_ref, id } => (client_ref.unwrap().to_string(), Ok(id.unwrap())),
        ServerFrame::Error { client_ref, problem } => {
            (client_ref.map(|r| r.to_string()).unwrap_or_default(), Err(problem))
        }
        other => panic!("no answer: {other:?}"),
    }
}

/// Nothing of that kind comes before the answer to a ping.
async fn nothing(socket: &mut Raw) {
    say(socket, json!({ "type": "ping" })).await;
    assert!(matches!(told(socket).await, ServerFrame::Pong));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_sends_stands_in_the_log_in_its_order_before_it_is_accepted() {
    let house = House::open(Limits::default()).await;
    let address = house.serve().await;
    let mut phone = connect(&address, PHONE, "d1").await;
    for n in 0..20 {
        let text = format!("message {n}");
        say(&mut phone, json!({ "type": "send", "ref": format!("r{n}"), "to": "business:sara", "content": text }))
            .await;
    }
    let mut ids = std::collections::HashMap::new();
    for _ in 0..20 {
        let (client_ref, outcome) = answer(&mut phone).await;
        let id = outcome.unwrap();
        assert!(house.world.accepted().iter().any(|message| message.id == id), "accepted is durable");
        ids.insert(client_ref, id);
    }
    let accepted = house.world.accepted();
    assert_eq!(accepted.len(), 20);
    for (n, message) in accepted.iter().enumerate() {
        assert_eq!(message.content.body, format!("message {n}"));
        assert_eq!(ids[&format!("r{n}")], message.id);
        assert_eq!(message.client_ref.as_ref().map(ToString::to_string), Some(format!("r{n}")));
    }
    // R4.3: the same ref is the same message, also from another connection.
    drop(phone);
    let mut phone = connect(&address, PHONE, "d2").await;
    let again = json!({ "type": "send", "ref": "r7", "to": "business:sara", "content": "message 7" });
    say(&mut phone, again).await;
    assert_eq!(answer(&mut phone).await, ("r7".to_owned(), Ok(ids["r7"])));
    assert_eq!(house.world.accepted().len(), 20);
    let other = json!({ "type": "send", "ref": "r7", "to": "business:sara", "content": "another text" });
    say(&mut phone, other).await;
    assert_eq!(answer(&mut phone).await.1.unwrap_err().code, Code::IdempotencyConflict);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_not_be_sent_is_refused_by_its_ref_and_the_session_goes_on() {
    let house = House::open(Limits::default()).await;
    let address = house.serve().await;
    let blocked = house.world.converse("sara", |row| row.blocked = true);
    let closed = house.world.converse("omar", |row| {
        row.closed = Some(schemas::conversation::Closed { at: Timestamp(1), by: schemas::Sender::Server });
    });
    let mut desk = connect(&address, "business:sara", "d1").await;
    let table = [
        (json!({ "conversation_id": blocked.id, "content": "hi" }), Code::Blocked),
        (json!({ "conversation_id": closed.id, "content": "hi" }), Code::NotRecordedOrUnknown),
        (
            json!({ "conversation_id": ConversationId(uuid::Uuid::from_u128(9)), "content": "hi" }),
            Code::NotRecordedOrUnknown,
        ),
        (json!({ "to": "+962790000007", "content": "" }), Code::InvalidContent),
        (json!({ "to": "+962790000007", "content": "x".repeat(20_000) }), Code::InvalidContent),
        (json!({ "content": "hi" }), Code::InvalidField),
    ];
    for (n, (mut body, code)) in table.into_iter().enumerate() {
        (body["type"], body["ref"]) = ("send".into(), format!("r{n}").into());
        say(&mut desk, body).await;
        let (client_ref, outcome) = answer(&mut desk).await;
        assert_eq!((client_ref, outcome.unwrap_err().code), (format!("r{n}"), code));
    }
    let mut omar = connect(&address, "business:omar", "d1").await;
    say(&mut omar, json!({ "type": "send", "ref": "r", "conversation_id": closed.id, "content": "hi" })).await;
    assert_eq!(answer(&mut omar).await.1.unwrap_err().code, Code::ConversationClosed);
    assert!(house.world.accepted().is_empty());
    nothing(&mut desk).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn typing_reaches_the_other_side_alone_and_is_kept_nowhere() {
    let house = House::open(Limits::default()).await;
    let address = house.serve().await;
    let row = house.world.converse("sara", |_| {});
    let mut phone = connect(&address, PHONE, "d1").await;
    let mut desk = connect(&address, "business:sara", "d1").await;
    let mut outsider = connect(&address, "business:omar", "d1").await;
    for _ in 0..5 {
        say(&mut phone, json!({ "type": "typing", "conversation_id": row.id })).await;
    }
    let by = mobile(PHONE).party;
    assert_eq!(told(&mut desk).await, ServerFrame::Typing { conversation_id: row.id, by });
    nothing(&mut phone).await;
    nothing(&mut desk).await;
    say(&mut outsider, json!({ "type": "typing", "conversation_id": row.id })).await;
    assert_eq!(answer(&mut outsider).await.1.unwrap_err().code, Code::NotRecordedOrUnknown);
    nothing(&mut phone).await;
    nothing(&mut outsider).await;
    let inner = house.world.inner.lock();
    assert!(inner.lane.is_empty() && inner.outcomes.is_empty() && inner.entries.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_refuses_a_business_does_not_see_it_type() {
    let house = House::open(Limits::default()).await;
    let address = house.serve().await;
    let row = house.world.converse("sara", |row| row.blocked = true);
    let mut phone = connect(&address, PHONE, "d1").await;
    let mut desk = connect(&address, "business:sara", "d1").await;
    say(&mut desk, json!({ "type": "typing", "conversation_id": row.id })).await;
    nothing(&mut desk).await;
    nothing(&mut phone).await;
}

/// The next presence frame.
async fn presence(socket: &mut Raw) -> (Party, bool, Option<Timestamp>) {
    loop {
        if let ServerFrame::Presence { user, online, last_seen } = frame(socket).await.unwrap() {
            return (user, online, last_seen);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_and_goes_is_known_to_those_who_share_a_conversation_and_only_where_it_is_permitted() {
    let mut limits = Limits::default();
    limits.chat.away_ms = 50;
    let house = House::open(limits).await;
    let address = house.serve().await;
    house.world.converse("sara", |_| {});
    house.world.converse("omar", |row| row.blocked = true);
    let mut desk = connect(&address, "business:sara", "d1").await;
    let mut omar = connect(&address, "business:omar", "d1").await;
    let mut stranger = connect(&address, "business:nadia", "d1").await;
    let party = mobile(PHONE).party;
    let phone = connect(&address, PHONE, "d1").await;
    assert_eq!(presence(&mut desk).await, (party.clone(), true, None));
    // Another device is no news, and neither is it that one of two went.
    let second = connect(&address, PHONE, "d2").await;
    drop(phone);
    until("one is left", || house.gateway.sessions() == 4).await;
    drop(second);
    let (user, online, last_seen) = presence(&mut desk).await;
    assert!(user == party && !online && last_seen.is_some());
    let people = house.world.people(&[mobile(PHONE)]).await.unwrap();
    assert_eq!(people[0].last_seen, last_seen);
    let about = house.gateway.about(&[mobile(PHONE), sara()]).await;
    assert_eq!((about[0].online, about[0].last_seen), (Some(false), last_seen));
    assert_eq!((about[1].online, about[1].last_seen), (Some(true), None));
    // Hidden: nobody learns anything.
    house.world.prefer(&mobile(PHONE), false).await.unwrap();
    let phone = connect(&address, PHONE, "d1").await;
    assert_eq!(house.gateway.about(&[mobile(PHONE)]).await, [Default::default()]);
    drop(phone);
    until("its going was looked at", || house.world.talks.people(&[mobile(PHONE)])[0].last_seen > last_seen).await;
    house.world.prefer(&mobile(PHONE), true).await.unwrap();
    let _phone = connect(&address, PHONE, "d1").await;
    assert_eq!(presence(&mut desk).await, (party.clone(), true, None));
    for socket in [&mut desk, &mut omar, &mut stranger] {
        say(socket, json!({ "type": "ping" })).await;
        assert!(matches!(frame(socket).await, Ok(ServerFrame::Pong)), "nobody else was told, and nobody twice");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_pressure_typing_goes_first_and_marks_only_grow() {
    let mut limits = Limits::default();
    limits.socket.signals = 3;
    let house = House::open(limits).await;
    let handle = Arc::new(crate::registry::Handle::new(Arc::new(crate::session::Me {
        user: sara(),
        device: "d1".parse().unwrap(),
        session: schemas::SessionId(uuid::Uuid::from_u128(1)),
    })));
    house.gateway.registry.insert(&handle).unwrap();
    let at = |n: u128| ConversationId(uuid::Uuid::from_u128(n));
    let by = mobile(PHONE).party;
    let typing = |n| Signal::Typing { conversation: at(n), by: by.clone() };
    let read = |n, up_to| Signal::Read { conversation: at(n), up_to, by: by.clone() };
    let signals =
        [typing(1), typing(1), read(1, 9), read(1, 4), typing(2), read(2, 1), read(3, 1), typing(3), read(4, 1)];
    house.gateway.registry.signal(signals.into_iter().map(|signal| (sara(), signal)).collect()).await;
    let mail = handle.take().unwrap();
    assert_eq!(mail.signals, [read(1, 9), read(2, 1), read(3, 1)]);
    assert_eq!(Side::of(&by), Side::Mobile);
}

// The JavaScript reference client, where Node is there (20 has a WebSocket behind a flag).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_javascript_client_sends_until_it_is_answered() {
    let house = House::open(Limits::default()).await;
    let address = house.serve().await;
    let client = concat!(env!("CARGO_MANIFEST_DIR"), "/../clients/reference.js");
    let script = format!(
        "import({client:?}).then(async ({{ connect }}) => {{ const c = connect({{ url: 'http://{address}', \
         token: () => '{}', device: 'js', onItem: () => {{}} }}); \
         for (const n of [1, 2, 3]) console.log(await c.send({{ to: 'business:sara', content: `${{n}}`, ref: `r${{n}}` }})); \
         await c.send({{ to: 'business:sara', content: '' }}).catch((problem) => console.log(problem.type)); setTimeout(() => c.close(), 300); }});",
        token("acme", phone(PHONE))
    );
    let node = tokio::process::Command::new("node")
        .args(["--experimental-websocket", "--input-type=module", "-e", &script])
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    // It sends before it is connected, and the line breaks once.
    let break_it = async {
        until("it is connected", || house.gateway.sessions() == 1).await;
        house.gateway.registry.each(|handle| handle.order(crate::registry::Order::Drain(1)));
    };
    let (output, ()) = tokio::join!(tokio::time::timeout(Duration::from_secs(20), node), break_it);
    let Ok(Ok(output)) = output else {
        println!("skipped: there is no `node` here");
        return;
    };
    let said: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    let accepted = house.world.accepted();
    let mut expected: Vec<_> = accepted.iter().map(|message| message.id.to_string()).collect();
    expected.push("/problems/invalid-content".to_owned());
    assert_eq!(said, expected);
    assert_eq!(accepted.iter().map(|message| message.content.body.as_str()).collect::<Vec<_>>(), ["1", "2", "3"]);
}
