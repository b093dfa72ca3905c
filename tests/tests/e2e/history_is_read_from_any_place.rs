//! R1.7, R8.5, R8.6: a conversation is read by cursor in both directions and around a message; a list by cursor; a cursor of
//! another list is refused.

use serde_json::{Value, json};
use tests::harness::{Person, Server, Settings, contents, number};

fn numbers(from: usize, to: usize) -> Vec<String> {
    (from..=to).map(|n| format!("message {n}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ways_and_around() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::chatting());
    let (sara, phone) = (Person::new(&server, "business:sara"), Person::new(&server, &number(1)));
    let id = sara.open(&number(1)).await;
    let mut ids = Vec::new();
    for n in 1..=60 {
        let who = if n % 2 == 0 { &sara } else { &phone };
        ids.push(who.say(&id, &format!("message {n}")).await["id"].as_str().unwrap().to_owned());
    }
    let mut newest = numbers(1, 60);
    assert_eq!(contents(&phone.thread(&id, "oldest", 7).await), newest);
    newest.reverse();
    assert_eq!(contents(&phone.thread(&id, "newest", 11).await), newest);
    let page = sara.get(&format!("/v1/conversations/{id}/messages")).await;
    assert_eq!(page["items"].as_array().unwrap().len(), 50, "R8.1: the last fifty");

    // Around one, and on from there in both directions, all of it exactly once.
    let middle = sara.get(&format!("/v1/conversations/{id}/messages?around={}&limit=10", ids[29])).await;
    let items = middle["items"].as_array().unwrap().clone();
    assert!(contents(&items).contains(&"message 30") && items.len() == 10);
    let first: usize = contents(&items)[0].trim_start_matches("message ").parse().unwrap();
    assert_eq!(contents(&items), numbers(first, first + 9), "oldest first");
    let on = async |order: &str, cursor: &Value| {
        let cursor = cursor.as_str().unwrap();
        let path = format!("/v1/conversations/{id}/messages?order={order}&limit=100&cursor={cursor}");
        sara.get(&path).await["items"].as_array().unwrap().clone()
    };
    let mut older = numbers(1, first - 1);
    older.reverse();
    assert_eq!(contents(&on("newest", &middle["older_cursor"]).await), older);
    assert_eq!(contents(&on("oldest", &middle["newer_cursor"]).await), numbers(first + 10, 60));

    // A cursor belongs to its list and direction.
    let other = phone.open("business:omar").await;
    let cursor = middle["older_cursor"].as_str().unwrap();
    for path in [
        format!("/v1/conversations/{id}/messages?order=oldest&cursor={cursor}"),
        format!("/v1/conversations/{other}/messages?order=newest&cursor={cursor}"),
        format!("/v1/conversations?cursor={cursor}"),
        format!("/v1/conversations/{id}/messages?cursor=nonsense"),
    ] {
        let (status, refused) = phone.ask("GET", &path, &Value::Null).await;
        assert_eq!((status, &refused["type"]), (400, &json!("/problems/invalid-cursor")), "{path}: {refused}");
    }
    let strange = uuid::Uuid::new_v4();
    for (path, status) in [
        (format!("/v1/conversations/{id}/messages?around={strange}"), 404),
        (format!("/v1/conversations/{other}/messages?around={}", ids[0]), 404),
        (format!("/v1/conversations/{id}/messages?around=x"), 400),
        (format!("/v1/conversations/{id}/messages?around={}&order=oldest", ids[0]), 400),
        (format!("/v1/conversations/{id}/messages?limit=0"), 400),
        ("/v1/conversations?status=open".to_owned(), 400),
    ] {
        let (got, refused) = phone.ask("GET", &path, &Value::Null).await;
        assert_eq!(got, status, "{path}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_newest_activity_first_over_pages_and_statuses() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), Settings::chatting());
    let sara = Person::new(&server, "business:sara");
    let mut ids = Vec::new();
    for n in 0..20 {
        let id = sara.open(&number(n)).await;
        Person::new(&server, &number(n)).say(&id, &format!("from {n}")).await;
        ids.push(id);
    }
    for n in [3, 7, 11] {
        sara.does(&ids[n], "close", Value::Null).await;
    }
    for n in [7, 12, 13] {
        sara.does(&ids[n], "archive", Value::Null).await;
    }
    let places = async |query: &str| {
        let rows = sara.pages(&format!("/v1/conversations?limit=4{query}")).await;
        let mut times: Vec<_> = rows.iter().map(|row| row["last_at"].as_str().unwrap().to_owned()).collect();
        let told = times.clone();
        times.sort_by(|a, b| b.cmp(a));
        assert_eq!(told, times, "newest activity first");
        let mut places: Vec<_> = rows.iter().map(|row| ids.iter().position(|id| row["id"] == **id).unwrap()).collect();
        places.sort_unstable();
        places
    };
    let all: Vec<usize> = (0..20).collect();
    let without = |gone: &[usize]| all.iter().copied().filter(|n| !gone.contains(n)).collect::<Vec<_>>();
    assert_eq!(places("").await, without(&[7, 12, 13]));
    assert_eq!(places("&status=active").await, without(&[3, 7, 11, 12, 13]));
    assert_eq!(places("&status=closed").await, [3, 7, 11]);
    assert_eq!(places("&status=archived").await, [12, 13]);
    let row = &sara.pages("/v1/conversations?limit=50").await;
    let row = row.iter().find(|row| row["id"] == *ids[5]).unwrap();
    assert_eq!((&row["last"]["text"], &row["unread"]), (&json!("from 5"), &json!(1)), "with its last message: {row}");
}
