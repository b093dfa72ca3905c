//! A person who chats over HTTP: one side of conversations.

use std::time::Duration;

use serde_json::{Value, json};

use super::server::{Server, answer};

/// A business user or a mobile user, with a token of its own. Keeps the address, so that it outlives restarts on the same
/// ports.
#[derive(Clone)]
pub struct Person {
    http: reqwest::Client,
    url: String,
    token: String,
    /// `business:NAME` or a phone number.
    pub name: String,
}

impl Person {
    /// One of tenant `acme`.
    pub fn new(server: &Server, name: &str) -> Self {
        Self::with_token(server, name, server.token("acme", name))
    }

    /// One with this token.
    pub fn with_token(server: &Server, name: &str, token: String) -> Self {
        Self { http: server.http.clone(), url: server.url.clone(), token, name: name.to_owned() }
    }

    /// One who knocks at an address, `http://host:port`, and gives up on an answer that does not come.
    pub fn at(url: &str, name: &str, token: String) -> Self {
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().expect("a client");
        Self { http, url: url.to_owned(), token, name: name.to_owned() }
    }

    /// Any request; a body of `Null` is none.
    pub async fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let method = method.parse().expect("a method");
        let mut request = self.http.request(method, format!("{}{path}", self.url)).bearer_auth(&self.token);
        if !body.is_null() {
            request = request.json(body);
        }
        answer(request.send().await).await
    }

    /// A `GET` that must be answered.
    pub async fn get(&self, path: &str) -> Value {
        let (status, body) = self.ask("GET", path, &Value::Null).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    /// A `POST`.
    pub async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.ask("POST", path, &body).await
    }

    /// The id of its conversation with somebody.
    pub async fn open(&self, with: &str) -> String {
        let (status, body) = self.post("/v1/conversations", json!({ "with": with })).await;
        assert!([200, 201].contains(&status), "{status}: {body}");
        body["id"].as_str().expect("an id").to_owned()
    }

    /// Says something; it must be recorded at once.
    pub async fn say(&self, conversation: &str, content: &str) -> Value {
        let (status, body) =
            self.post(&format!("/v1/conversations/{conversation}/messages"), json!({ "content": content })).await;
        assert_eq!(status, 201, "{body}");
        body
    }

    /// Asks for something until there is an answer: through refusals for a time, broken connections and restarts.
    pub async fn insist(&self, path: &str, body: &Value) -> (u16, Value) {
        loop {
            let (status, answer) = self.ask("POST", path, body).await;
            match status {
                200..=202 => return (status, answer),
                // What was answered 202 is there a moment later.
                404 if answer["retry_after_ms"].is_u64() => tokio::time::sleep(Duration::from_millis(20)).await,
                0 | 408 | 429 | 500.. => tokio::time::sleep(Duration::from_millis(20)).await,
                _ => panic!("{path}: {status}: {answer}"),
            }
        }
    }

    /// Asks something of a conversation; it must be so at once.
    pub async fn does(&self, conversation: &str, word: &str, body: Value) -> Value {
        let (status, answer) = self.post(&format!("/v1/conversations/{conversation}/{word}"), body).await;
        assert_eq!(status, 200, "{word}: {answer}");
        answer
    }

    /// One of its conversations.
    pub async fn row(&self, conversation: &str) -> Value {
        self.get(&format!("/v1/conversations/{conversation}")).await
    }

    /// All that a conversation has, in this order, page by page.
    pub async fn thread(&self, conversation: &str, order: &str, limit: usize) -> Vec<Value> {
        self.pages(&format!("/v1/conversations/{conversation}/messages?order={order}&limit={limit}")).await
    }

    /// All rows of a list whose path has a query.
    pub async fn pages(&self, path: &str) -> Vec<Value> {
        let (mut all, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = self.get(&format!("{path}&cursor={cursor}")).await;
            all.extend(page["items"].as_array().expect("items").clone());
            match page["next_cursor"].as_str() {
                Some(next) => cursor = next.to_owned(),
                None => return all,
            }
        }
    }
}

/// What rows say.
pub fn contents(rows: &[Value]) -> Vec<&str> {
    rows.iter().map(|row| row["content"].as_str().unwrap_or_default()).collect()
}
