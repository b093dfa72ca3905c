//! A business that sends: with keys, and again until it knows.

use std::time::Duration;

use serde_json::{Value, json};

use super::server::{Server, answer};

/// A message that the door accepted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Accepted {
    /// Its name.
    pub id: String,
    /// To whom.
    pub to: String,
    /// What it says.
    pub content: String,
}

/// A sender with a server key. Keeps the address, so that it outlives restarts on the same ports.
#[derive(Clone)]
pub struct Business {
    http: reqwest::Client,
    url: String,
    token: String,
}

impl Business {
    /// A business of tenant `acme`.
    pub fn new(server: &Server) -> Self {
        Self::of(server, "acme")
    }

    /// A business of that tenant.
    pub fn of(server: &Server, tenant: &str) -> Self {
        Self { http: server.http.clone(), url: server.url.clone(), token: server.token(tenant, "server") }
    }

    /// A business that knocks at an address, `http://host:port`, with this token.
    pub fn at(url: &str, token: String) -> Self {
        let http = reqwest::Client::builder().no_proxy().build().expect("a client");
        Self { http, url: url.to_owned(), token }
    }

    /// Its token.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// One `POST` with a JSON body.
    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        answer(self.http.post(format!("{}{path}", self.url)).bearer_auth(&self.token).json(body).send().await).await
    }

    /// One `DELETE`.
    pub async fn delete(&self, path: &str) -> (u16, Value) {
        answer(self.http.delete(format!("{}{path}", self.url)).bearer_auth(&self.token).send().await).await
    }

    /// One `GET`.
    pub async fn get(&self, path: &str) -> (u16, Value) {
        answer(self.http.get(format!("{}{path}", self.url)).bearer_auth(&self.token).send().await).await
    }

    /// Sends one text; it must be accepted.
    pub async fn send(&self, to: &str, content: &str) -> Accepted {
        let (status, body) = self.post("/v1/messages", &json!({ "to": to, "content": content })).await;
        assert_eq!(status, 202, "{body}");
        Accepted { id: body["id"].as_str().expect("an id").to_owned(), to: to.to_owned(), content: content.to_owned() }
    }

    /// Sends one text under a key, again and again through refusals, broken connections and restarts, until it is accepted.
    pub async fn insist(&self, to: &str, content: &str, key: &str) -> Accepted {
        let body = json!({ "to": to, "content": content, "key": key });
        loop {
            let (status, answer) = self.post("/v1/messages", &body).await;
            match status {
                202 => {
                    let id = answer["id"].as_str().expect("an id").to_owned();
                    return Accepted { id, to: to.to_owned(), content: content.to_owned() };
                }
                0 | 408 | 429 | 500.. => tokio::time::sleep(Duration::from_millis(20)).await,
                _ => panic!("{status}: {answer}"),
            }
        }
    }

    /// Sends a batch as NDJSON; one answer per item, in order.
    pub async fn batch(&self, items: &[Value]) -> Vec<Value> {
        let lines: String = items.iter().map(|item| format!("{item}\n")).collect();
        let request = self.http.post(format!("{}/v1/messages/batch", self.url)).bearer_auth(&self.token);
        let sent = request.header("content-type", "application/x-ndjson").body(lines).send().await;
        let text = sent.expect("an answer").text().await.expect("a body");
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
    }

    /// Where a message stands; empty where it is not known.
    pub async fn status(&self, id: &str) -> String {
        let (_, body) = self.get(&format!("/v1/messages/{id}")).await;
        body["status"].as_str().unwrap_or_default().to_owned()
    }

    /// Waits until a message stands there.
    pub async fn until(&self, id: &str, status: &str) -> Value {
        let what = format!("{id} to be {status}");
        super::eventually(&what, async || {
            let (_, body) = self.get(&format!("/v1/messages/{id}")).await;
            (body["status"] == status).then_some(body)
        })
        .await
    }
}
