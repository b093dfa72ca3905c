//! A phone: one device with a cursor, which drops what it has seen and says what it saw, in order.

use std::collections::HashSet;

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Error, Message, client::IntoClientRequest, protocol::CloseFrame},
};

use super::{PATIENCE, server::Server};

/// Whether a phone acknowledges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taste {
    /// Every frame, by cursor.
    Acks,
    /// Never.
    Silent,
}

/// One message as a phone got it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// Its name.
    pub id: String,
    /// What it says.
    pub content: String,
    /// The cursor after it.
    pub cursor: String,
}

/// One device of one user.
pub struct Phone {
    url: String,
    token: String,
    device: String,
    taste: Taste,
    /// It has something to acknowledge.
    owes: bool,
    socket: Option<WebSocketStream<MaybeTlsStream<TcpStream>>>,
    /// The cursor it keeps.
    pub cursor: Option<String>,
    seen: HashSet<String>,
    /// What it saw, in order, each once.
    pub received: Vec<Receipt>,
    /// The same, whole.
    pub items: Vec<Value>,
    /// How often it was sent what it had seen.
    pub repeats: usize,
    /// How often within one connection: must stay zero.
    pub repeats_in_session: usize,
    in_session: HashSet<String>,
    /// Every frame that was not `messages`, of the present connection.
    pub frames: Vec<Value>,
    /// Why the last connection ended, where the server said so.
    pub closed: Option<(u16, String)>,
}

impl Phone {
    /// A phone of a user of tenant `acme`, not yet connected.
    pub fn new(server: &Server, number: &str, device: &str) -> Self {
        Self::with_token(server, server.token("acme", number), device)
    }

    /// A phone, or a business user's desk, with this token.
    pub fn with_token(server: &Server, token: String, device: &str) -> Self {
        Self::at(&server.url, token, device)
    }

    /// The same at an address, `http://host:port`.
    pub fn at(url: &str, token: String, device: &str) -> Self {
        Self {
            url: url.replacen("http", "ws", 1),
            token,
            device: device.to_owned(),
            taste: Taste::Acks,
            owes: false,
            socket: None,
            cursor: None,
            seen: HashSet::new(),
            received: Vec::new(),
            items: Vec::new(),
            repeats: 0,
            repeats_in_session: 0,
            in_session: HashSet::new(),
            frames: Vec::new(),
            closed: None,
        }
    }

    /// With this taste.
    pub fn taste(mut self, taste: Taste) -> Self {
        self.taste = taste;
        self
    }

    /// Connects with the cursor it keeps; the `welcome`, or the status of a refusal.
    pub async fn connect(&mut self) -> Result<Value, String> {
        let cursor = self.cursor.as_ref().map(|c| format!("&cursor={c}")).unwrap_or_default();
        let mut request = format!("{}/v1/ws?device={}{cursor}", self.url, self.device)
            .into_client_request()
            .map_err(|e| e.to_string())?;
        let bearer = format!("Bearer {}", self.token).parse().map_err(|_| "token")?;
        request.headers_mut().insert("authorization", bearer);
        let protocol = schemas::frame::SUBPROTOCOL.parse().map_err(|_| "protocol")?;
        request.headers_mut().insert("sec-websocket-protocol", protocol);
        let connected = connect_async(request).await;
        let (socket, _) = connected.map_err(|e| match e {
            Error::Http(response) => format!("{}", response.status().as_u16()),
            other => other.to_string(),
        })?;
        self.socket = Some(socket);
        self.owes = false;
        self.in_session.clear();
        self.frames.clear();
        self.closed = None;
        match tokio::time::timeout(PATIENCE, self.next()).await {
            Ok(Some(frame)) if frame["type"] == "welcome" => Ok(frame),
            Ok(other) => Err(format!("no welcome: {other:?} {:?}", self.closed)),
            Err(_) => Err("no welcome in time".to_owned()),
        }
    }

    /// Connects, again and again until the server is there.
    pub async fn insist(&mut self) -> Value {
        loop {
            match self.connect().await {
                Ok(welcome) => return welcome,
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        }
    }

    /// Whether it is connected.
    pub fn is_connected(&self) -> bool {
        self.socket.is_some()
    }

    /// Sends a frame; nothing where the connection is gone.
    pub async fn say(&mut self, frame: Value) {
        if let Some(socket) = &mut self.socket
            && socket.send(Message::text(frame.to_string())).await.is_err()
        {
            self.socket = None;
        }
    }

    /// The next frame. Messages are taken note of and, as its taste is, acknowledged. `None`: the connection ended. Whoever
    /// stops waiting for it loses nothing.
    pub async fn next(&mut self) -> Option<Value> {
        self.acknowledge().await;
        loop {
            let message = match self.socket.as_mut()?.next().await {
                Some(Ok(message)) => message,
                _ => {
                    self.socket = None;
                    return None;
                }
            };
            match message {
                Message::Text(text) => {
                    let frame: Value = serde_json::from_str(&text).expect("frames are JSON");
                    self.take(&frame).await;
                    return Some(frame);
                }
                Message::Close(close) => {
                    self.closed = close.map(|CloseFrame { code, reason }| (code.into(), reason.to_string()));
                    self.socket = None;
                    return None;
                }
                _ => {}
            }
        }
    }

    async fn take(&mut self, frame: &Value) {
        if frame["type"] != "messages" {
            self.frames.push(frame.clone());
            if frame["type"] == "ping" {
                self.say(json!({ "type": "pong" })).await;
            }
            return;
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        for item in frame["items"].as_array().into_iter().flatten() {
            let receipt =
                Receipt { id: text(&item["id"]), content: text(&item["content"]), cursor: text(&item["cursor"]) };
            if !self.in_session.insert(receipt.id.clone()) {
                self.repeats_in_session += 1;
            }
            // To come back with a cursor is to say that one has everything up to it: whoever stays silent keeps none.
            if self.taste == Taste::Acks {
                self.cursor = Some(receipt.cursor.clone());
            }
            if self.seen.insert(receipt.id.clone()) {
                self.received.push(receipt);
                self.items.push(item.clone());
            } else {
                self.repeats += 1;
            }
        }
        self.owes = self.taste == Taste::Acks;
        self.acknowledge().await;
    }

    async fn acknowledge(&mut self) {
        if self.owes {
            let cursor = self.cursor.clone();
            self.say(json!({ "type": "ack", "cursor": cursor })).await;
            self.owes = false;
        }
    }

    /// The id of what it sent under this `ref`, once that is accepted.
    pub async fn accepted(&mut self, client_ref: &str) -> String {
        let answer =
            self.until_frame("an answer", |frame| frame["ref"] == client_ref && frame["type"] != "status").await;
        assert_eq!(answer["type"], "accepted", "{answer}");
        answer["id"].as_str().unwrap().to_owned()
    }

    /// Reads until it has seen so many messages, reconnecting whenever the connection ends.
    pub async fn until_seen(&mut self, count: usize) {
        let read = async {
            while self.received.len() < count {
                if self.socket.is_none() {
                    self.insist().await;
                } else {
                    self.next().await;
                }
            }
        };
        if tokio::time::timeout(PATIENCE, read).await.is_err() {
            panic!("{} of {count} messages came to {}", self.received.len(), self.device);
        }
    }

    /// Reads until there is an item that `wanted` takes, also among those that came before.
    pub async fn until_item(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let read = async {
            loop {
                if let Some(item) = self.items.iter().find(|item| wanted(item)) {
                    return item.clone();
                }
                assert!(self.next().await.is_some(), "the connection ended ({:?}) before {what}", self.closed);
            }
        };
        match tokio::time::timeout(PATIENCE, read).await {
            Ok(item) => item,
            Err(_) => panic!("waited in vain for {what}"),
        }
    }

    /// Reads until a frame that `wanted` takes.
    pub async fn until_frame(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let read = async {
            loop {
                match self.next().await {
                    Some(frame) if wanted(&frame) => return frame,
                    Some(_) => {}
                    None => panic!("the connection ended ({:?}) before {what}", self.closed),
                }
            }
        };
        match tokio::time::timeout(PATIENCE, read).await {
            Ok(frame) => frame,
            Err(_) => panic!("waited in vain for {what}"),
        }
    }

    /// Reads until the server closes; its code.
    pub async fn until_closed(&mut self) -> u16 {
        let read = async { while self.next().await.is_some() {} };
        if tokio::time::timeout(PATIENCE, read).await.is_err() {
            panic!("the connection was not closed");
        }
        self.closed.as_ref().map_or(0, |(code, _)| *code)
    }

    /// Drops the connection without a word.
    pub fn drop_line(&mut self) {
        self.socket = None;
    }

    /// What it saw, in order.
    pub fn contents(&self) -> Vec<&str> {
        self.received.iter().map(|r| r.content.as_str()).collect()
    }
}
