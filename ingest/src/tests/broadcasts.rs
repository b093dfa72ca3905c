//! Broadcasts: accepted as one, expanded in the lane's free room, nobody sent two.

use std::{collections::HashSet, sync::atomic::Ordering, time::Duration};

use schemas::{
    BroadcastId, Sender,
    limits::MessageLimits,
    port::{Asked, Broadcast, BroadcastState, PortError},
};
use uuid::Uuid;

use super::*;
use crate::faults::LONGEST_WAIT_MS;

const STORED: &str = r#"{"to":"","content":"news"}"#;

fn body(count: usize) -> String {
    let to: Vec<_> = (0..count).map(|n| phone(n).to_string()).collect();
    serde_json::json!({ "to": to, "content": "news", "ref": "r" }).to_string()
}

async fn until(house: &House, path: &str, state: &str) -> Value {
    until_is(house, path, "state", state).await
}

/// Until this is shown of a broadcast, which must not end before.
async fn until_is(house: &House, path: &str, key: &str, wanted: impl Into<Value>) -> Value {
    let wanted = wanted.into();
    let looking = async {
        loop {
            let now = house.get(path, &server()).await.json();
            if now[key] == wanted {
                return now;
            }
            assert_eq!(now["state"], "running", "{now}");
            // The expander works on this thread between requests.
            tokio::task::yield_now().await;
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(30), looking).await;
    found.unwrap_or_else(|_| panic!("{path} never came so far that `{key}` was {wanted}"))
}

/// A broadcast as it stands in history, accepted so many ms after [`NOW`].
fn stored(draft: &str, count: usize, ms: u64) -> (Broadcast, Vec<Phone>) {
    let asked = Asked {
        tenant: acme(),
        from: Sender::Server,
        accepted_at: NOW.plus_ms(ms),
        trace: None,
        draft: draft.to_owned(),
        fingerprint: [7; 16],
    };
    let id = BroadcastId(Uuid::from_u128(u128::from(ms) + 1));
    let broadcast = Broadcast { id, asked, recipients: count as u64, expanded: 0, state: BroadcastState::Running };
    (broadcast, (0..count).map(phone).collect())
}

fn history_of(stored: impl IntoIterator<Item = (Broadcast, Vec<Phone>)>) -> Arc<FakeHistory> {
    let history = Arc::new(FakeHistory::default());
    history.broadcasts.lock().extend(stored.into_iter().map(|row| (row.0.id, row)));
    history
}

/// Begins one under this key; its name.
async fn begin(house: &House, key: &str, body: String) -> BroadcastId {
    let answer = house.post("/v1/broadcasts", &server(), &[("idempotency-key", key)], body).await;
    BroadcastId(Uuid::parse_str(answer.json()["id"].as_str().unwrap()).unwrap())
}

/// Lets so long pass, and the expander look.
async fn pass(house: &House, ms: u64) {
    house.clock.pass(ms);
    house.door.broadcast_begun.notify_one();
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

fn path(id: BroadcastId) -> String {
    format!("/v1/broadcasts/{id}")
}

#[tokio::test]
async fn a_broadcast_is_accepted_as_one_and_becomes_a_message_each() {
    let house = House::new(open_limits());
    let to = ["+962790000001", "0790000002", "+962790000003", "+962790000001", "x"];
    let body = serde_json::json!({ "to": to, "content": "a <b>b</b>", "metadata": {"a": 1} }).to_string();
    let answer = house.post("/v1/broadcasts", &server(), &[], body).await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    let json = answer.json();
    assert_eq!((&json["recipients"], &json["repeated"], &json["rejected_count"]), (&2.into(), &1.into(), &2.into()));
    assert_eq!((&json["rejected"][0]["index"], &json["rejected"][1]["index"]), (&1.into(), &4.into()));
    assert_eq!(json["durability"], "disk");
    let path = format!("/v1/broadcasts/{}", json["id"].as_str().unwrap());
    let done = until(&house, &path, "done").await;
    assert_eq!((&done["expanded"], &done["recipients"]), (&2.into(), &2.into()));
    let messages = house.log.messages();
    assert_eq!(
        messages.iter().map(|m| m.to.to_string()).collect::<Vec<_>>(),
        ["acme/+962790000001", "acme/+962790000003"]
    );
    for message in &messages {
        assert_eq!((message.priority.word(), message.content.body.as_str()), ("low", "a b"));
        assert_eq!(message.id, schemas::MessageId::of_broadcast(message.broadcast.unwrap(), &message.to));
    }
}

#[tokio::test]
async fn a_broadcast_s_refusals_name_what_is_wrong() {
    let mut limits = open_limits();
    (limits.door.broadcast_recipients, limits.door.broadcast_bytes, limits.door.broadcasts_per_minute) = (10, 2_000, 2);
    let house = House::new(limits);
    let table = [
        (r#"{"to":[],"content":"x"}"#.to_owned(), 422, "invalid-phone"),
        (r#"{"to":["1","2"],"content":"x"}"#.to_owned(), 422, "invalid-phone"),
        (r#"{"to":"+962790000001","content":"x"}"#.to_owned(), 422, "invalid-field"),
        (r#"{"to":["+962790000001"],"content":""}"#.to_owned(), 422, "invalid-content"),
        (body(11), 422, "invalid-field"),
        (body(200), 413, "too-large"),
        ("[".to_owned(), 400, "invalid-json"),
    ];
    for (body, status, slug) in table {
        let answer = house.post("/v1/broadcasts", &server(), &[], body.clone()).await;
        assert_eq!((answer.status.as_u16(), answer.slug().as_str()), (status, slug), "{body}");
    }
    assert!(house.history.broadcasts.lock().is_empty());
    for status in [202, 202, 429] {
        assert_eq!(house.post("/v1/broadcasts", &server(), &[], body(1)).await.status, status);
    }
    let dry = body(3).replace("\"news\"", "\"news\",\"dry_run\":true");
    let answer = house.post("/v1/broadcasts", &server(), &[], dry).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["recipients"]), (200, &3.into()));
    assert_eq!(house.history.broadcasts.lock().len(), 2);
}

#[tokio::test]
async fn a_broadcast_s_key_names_it() {
    let house = House::new(open_limits());
    let key = [("idempotency-key", "\"sale\"")];
    let first = house.post("/v1/broadcasts", &server(), &key, body(3)).await;
    let again = house.post("/v1/broadcasts", &server(), &key, body(3)).await;
    assert_eq!((first.json()["id"].clone(), again.header("idempotent-replayed")), (again.json()["id"].clone(), "true"));
    let other = house.post("/v1/broadcasts", &server(), &key, body(4)).await;
    assert_eq!((other.status.as_u16(), other.slug().as_str()), (422, "idempotency-conflict"));
}

#[tokio::test]
async fn another_tenant_s_broadcast_is_not_there() {
    let house = House::new(open_limits());
    let id = house.post("/v1/broadcasts", &server(), &[], body(1)).await.json()["id"].as_str().unwrap().to_owned();
    let theirs = token_of("zain", "server", all());
    for path in [format!("/v1/broadcasts/{id}"), "/v1/broadcasts/nonsense".to_owned()] {
        assert_eq!(house.get(&path, &theirs).await.slug(), "not-found");
        let delete = house.ask(request("DELETE", &path, &theirs, &[], "")).await;
        assert_eq!((delete.status.as_u16(), delete.slug().as_str()), (404, "not-found"));
    }
}

/// Rule 13: the expansion waits while its lane has no free room, can be cancelled meanwhile, and then stops.
#[tokio::test]
async fn a_broadcast_uses_free_room_only_and_can_be_cancelled() {
    let mut limits = open_limits();
    limits.door.lane_slow = 200;
    let house = House::new(limits);
    house.log.waiting.store(100, Ordering::SeqCst);
    while house.door.waiting()[2] != 100 {
        house.door.asked.notified().await;
    }
    let id = house.post("/v1/broadcasts", &server(), &[], body(900)).await.json()["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/broadcasts/{id}");
    for _ in 0..5 {
        house.door.asked.notified().await;
    }
    assert_eq!(house.get(&path, &server()).await.json()["expanded"], 0, "half of the slow mark is taken already");
    house.log.waiting.store(60, Ordering::SeqCst);
    while house.log.messages().is_empty() {
        house.door.asked.notified().await;
    }
    let first = house.log.messages().len();
    assert!(first <= 40, "{first} were appended into room for 40");
    let cancelled = house.ask(request("DELETE", &path, &server(), &[], "")).await;
    assert_eq!((cancelled.status.as_u16(), &cancelled.json()["state"]), (200, &"cancelled".into()));
    let after = house.log.messages().len();
    for _ in 0..5 {
        house.door.asked.notified().await;
    }
    assert!(house.log.messages().len() <= after + 40, "at most what was on its way");
    assert_eq!(house.ask(request("DELETE", &path, &server(), &[], "")).await.status, 200, "twice is as once");
}

/// A crash between append and progress repeats a chunk with the same ids and the same bytes: the pipeline drops repeats by id.
#[tokio::test]
async fn an_expansion_that_starts_again_repeats_the_same_messages() {
    let house = House::new(open_limits());
    house.history.forgets.store(1, Ordering::SeqCst);
    let id = house.post("/v1/broadcasts", &server(), &[], body(20)).await.json()["id"].as_str().unwrap().to_owned();
    while house.log.records.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    pass(&house, LONGEST_WAIT_MS).await;
    until(&house, &format!("/v1/broadcasts/{id}"), "done").await;
    let records = house.log.records.lock().clone();
    assert_eq!(records.len(), 40, "the chunk was appended twice");
    assert_eq!(records[..20], records[20..], "byte for byte");
    let ids: HashSet<_> = records.iter().map(|r| r.headers.id).collect();
    assert_eq!(ids.len(), 20);
    let state = house.history.broadcasts.lock().values().next().unwrap().0.state;
    assert_eq!(state, BroadcastState::Done);
    let late = house.ask(request("DELETE", &format!("/v1/broadcasts/{id}"), &server(), &[], "")).await;
    assert_eq!((late.status.as_u16(), late.slug().as_str()), (409, "too-late"));
}

/// What was accepted is carried out: the limits of today judge what comes today.
#[tokio::test]
async fn lower_limits_cancel_no_broadcast_that_was_accepted() {
    let (content, send_at) = ("c".repeat(90), NOW.plus_ms(86_400_000));
    let draft = serde_json::json!({
        "to": "", "subject": "a title", "content": content, "metadata": {"a": "label"}, "send_at": send_at,
    });
    let row = stored(&draft.to_string(), 3, 0);
    let id = row.0.id;
    let mut limits = open_limits();
    limits.message = MessageLimits {
        content_chars: 1,
        content_bytes: 1,
        subject_chars: 1,
        metadata_bytes: 1,
        send_at_ahead_ms: 1,
        ..limits.message
    };
    let house = House::over(limits, Arc::default(), history_of([row]));
    until(&house, &path(id), "done").await;
    let messages = house.log.messages();
    assert_eq!(messages.len(), 3);
    for message in messages {
        assert_eq!((message.content.body.as_str(), message.send_at), (content.as_str(), Some(send_at)));
        assert!(message.content.subject.is_some() && message.metadata.is_some());
    }
}

/// As where a newer release accepted it, and this process is still of an older one.
#[tokio::test]
async fn a_broadcast_that_cannot_be_read_here_waits_for_who_can_and_holds_up_no_other() {
    let newer = stored(r#"{"to":"","content":"news","of_tomorrow":1}"#, 2, 0);
    let good = stored(STORED, 2, 1);
    let (newer_id, good_id) = (newer.0.id, good.0.id);
    let house = House::over(open_limits(), Arc::default(), history_of([newer, good]));
    until(&house, &path(good_id), "done").await;
    let kept = house.get(&path(newer_id), &server()).await.json();
    assert_eq!((&kept["state"], &kept["expanded"]), (&"running".into(), &0.into()));
    house.history.broadcasts.lock().get_mut(&newer_id).unwrap().0.asked.draft = STORED.to_owned();
    house.door.broadcast_begun.notify_one();
    until(&house, &path(newer_id), "done").await;
    assert_eq!(house.log.messages().len(), 4);
}

#[tokio::test]
async fn a_broadcast_is_not_done_while_recipients_of_it_are_missing() {
    let (mut torn, good) = (stored(STORED, 3, 0), stored(STORED, 2, 1));
    torn.0.expanded = 2;
    torn.1.truncate(2);
    let (torn_id, good_id) = (torn.0.id, good.0.id);
    let house = House::over(open_limits(), Arc::default(), history_of([torn, good]));
    until(&house, &path(good_id), "done").await;
    let kept = house.get(&path(torn_id), &server()).await.json();
    assert_eq!((&kept["state"], &kept["expanded"]), (&"running".into(), &2.into()));
    house.history.broadcasts.lock().get_mut(&torn_id).unwrap().1.push(phone(2));
    pass(&house, LONGEST_WAIT_MS).await;
    until(&house, &path(torn_id), "done").await;
    let messages = house.log.messages();
    let of_torn = messages.iter().filter(|message| message.broadcast == Some(torn_id));
    assert_eq!(of_torn.map(|message| message.to.to_string()).collect::<Vec<_>>(), [format!("acme/{}", phone(2))]);
}

/// Nobody else would begin what this process accepted: it must not forget it because another one errs.
#[tokio::test]
async fn a_broadcast_that_errs_holds_up_no_other_and_goes_on_when_it_can() {
    let house = House::beside_others(open_limits(), Arc::default(), Arc::default(), u64::MAX);
    let errs = begin(&house, "first", body(3).replace("\"news\"", "\"news\",\"dry_run\":true")).await;
    house.history.broken.lock().insert(errs, 0);
    assert_eq!(begin(&house, "first", body(3)).await, errs);
    house.clock.pass(1);
    let good = begin(&house, "second", body(2)).await;
    until(&house, &path(good), "done").await;
    let kept = house.get(&path(errs), &server()).await.json();
    assert_eq!((&kept["state"], &kept["expanded"]), (&"running".into(), &0.into()));
    house.history.broken.lock().clear();
    pass(&house, LONGEST_WAIT_MS).await;
    until(&house, &path(errs), "done").await;
    assert_eq!(house.log.messages().len(), 5);
}

#[tokio::test]
async fn a_broadcast_that_a_fault_stopped_half_way_is_gone_on_with_by_the_same_process() {
    let house = House::beside_others(open_limits(), Arc::default(), Arc::default(), u64::MAX);
    house.log.spared.store(5, Ordering::SeqCst);
    *house.log.fault.lock() = Some(PortError::Unavailable("away".to_owned()));
    let id = house.post("/v1/broadcasts", &server(), &[], body(20)).await.json()["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/broadcasts/{id}");
    until_is(&house, &path, "expanded", 5).await;
    *house.log.fault.lock() = None;
    pass(&house, LONGEST_WAIT_MS).await;
    until(&house, &path, "done").await;
    assert_eq!(house.log.messages().len(), 20);
}

/// Nor is it forgotten: nobody else would begin what this process accepted.
#[tokio::test]
async fn a_broadcast_whose_header_cannot_be_read_stops_no_other_and_goes_on_once_it_can() {
    let house = House::beside_others(open_limits(), Arc::default(), Arc::default(), u64::MAX);
    let torn = begin(&house, "first", body(3).replace("\"news\"", "\"news\",\"dry_run\":true")).await;
    house.history.unread.lock().insert(torn);
    assert_eq!(begin(&house, "first", body(3)).await, torn);
    let good = begin(&house, "second", body(2)).await;
    until(&house, &path(good), "done").await;
    pass(&house, LONGEST_WAIT_MS).await;
    assert_eq!(house.get(&path(torn), &server()).await.json()["expanded"], 0);
    house.history.unread.lock().clear();
    pass(&house, 1).await;
    until(&house, &path(torn), "done").await;
    assert_eq!(house.log.messages().len(), 5);
}

#[tokio::test]
async fn a_broadcast_that_errs_waits_longer_each_time_and_no_other_waits_with_it() {
    let (errs, good) = (stored(STORED, 2, 0), stored(STORED, 4_000, 1));
    let (errs_id, good_id) = (errs.0.id, good.0.id);
    let history = history_of([errs, good]);
    history.broken.lock().insert(errs_id, 0);
    let house = House::over(open_limits(), Arc::default(), history);
    // Eight rounds: a pause after each would take longer.
    let done = tokio::time::timeout(Duration::from_secs(6), until(&house, &path(good_id), "done")).await;
    assert!(done.is_ok(), "it waits with the one that errs");
    let tries = || house.history.broken.lock()[&errs_id];
    assert_eq!(tries(), 1, "the clock stands still");
    let mut expected = 1;
    for wait_ms in [1_000, 2_000, 4_000] {
        pass(&house, wait_ms - 1).await;
        assert_eq!(tries(), expected);
        pass(&house, 1).await;
        expected += 1;
        assert_eq!(tries(), expected, "after {wait_ms} ms");
    }
    house.history.broken.lock().clear();
    pass(&house, 8_000).await;
    until(&house, &path(errs_id), "done").await;
    assert_eq!(house.log.messages().len(), 4_002);
}

#[tokio::test]
async fn one_broadcast_too_many_of_a_tenant_is_refused_until_one_ends() {
    let mut limits = open_limits();
    (limits.door.lane_slow, limits.door.broadcasts_running) = (200, 1);
    let house = House::new(limits);
    house.log.waiting.store(100, Ordering::SeqCst);
    while house.door.waiting()[2] != 100 {
        house.door.asked.notified().await;
    }
    let post =
        async |token: &str, key: &str| house.post("/v1/broadcasts", token, &[("idempotency-key", key)], body(3)).await;
    let first = post(&server(), "first").await;
    assert_eq!(first.status, 202);
    for _ in 0..3 {
        let more = post(&server(), "more").await;
        let field = more.json()["field"].clone();
        assert_eq!((more.status.as_u16(), more.slug().as_str()), (429, "quota-exceeded"), "{}", more.body);
        assert_eq!((field, more.header("retry-after")), ("broadcasts-running".into(), "5"));
        house.door.asked.notified().await;
    }
    assert_eq!(house.history.broadcasts.lock().len(), 1, "nothing of it was kept");
    assert_eq!(post(&server(), "first").await.header("idempotent-replayed"), "true", "what runs is no second one");
    assert_eq!(post(&token_of("zain", "server", all()), "more").await.status, 202, "each tenant by itself");
    let path = format!("/v1/broadcasts/{}", first.json()["id"].as_str().unwrap());
    assert_eq!(house.ask(request("DELETE", &path, &server(), &[], "")).await.status, 200);
    while house.door.begun.running(&acme()) > 0 {
        house.door.asked.notified().await;
    }
    assert_eq!(post(&server(), "more").await.status, 202);
}

/// A limit that was lowered refuses what comes, not what was accepted.
#[tokio::test]
async fn more_running_broadcasts_than_today_s_limit_are_all_carried_out() {
    let mut limits = open_limits();
    limits.door.broadcasts_running = 1;
    let house = House::over(limits, Arc::default(), history_of((0..3).map(|ms| stored(STORED, 2, ms))));
    for ms in 0..3 {
        until(&house, &path(BroadcastId(Uuid::from_u128(ms + 1))), "done").await;
    }
    assert_eq!(house.log.messages().len(), 6);
}
