//! A user's side of the socket, for `esh3ar listen` and `chat`: keeps its cursor, drops what it has seen, comes back when it is told to.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use reqwest::Url;
use schemas::{
    ConversationId, Cursor, DeviceId, MessageId, Party, Problem, Ref, Timestamp,
    frame::{ClientFrame, SUBPROTOCOL, ServerFrame},
    view::{Item, StatusChange},
};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Error, Message, client::IntoClientRequest, protocol::CloseFrame},
};

use crate::exit::Failure;

/// The shortest and the longest wait before coming back, ms.
const BACK_OFF_MS: (u64, u64) = (100, 10_000);

/// What a phone meets.
#[derive(Debug)]
pub(super) enum Met {
    /// Connected; whether everything since its cursor follows.
    Welcome { recovered: bool },
    /// New messages, in order.
    Items(Vec<Item>),
    /// One of its own messages changed.
    Status(StatusChange),
    /// A frame of its own was done.
    Accepted { client_ref: Option<Ref>, id: Option<MessageId> },
    /// A frame of its own that it gave a name was refused.
    Refused { client_ref: Ref, problem: Problem },
    /// Somebody has read up to a number of a conversation.
    Read { conversation: ConversationId, up_to: u64, by: Party },
    /// Somebody types in a conversation.
    Typing { conversation: ConversationId, by: Party },
    /// Somebody came or went.
    Presence { user: Party, online: bool, last_seen: Option<Timestamp> },
    /// The connection ended; it comes back after so long.
    Gone { after_ms: u64, why: String },
}

/// A phone.
pub(super) struct Phone {
    url: Url,
    token: String,
    device: DeviceId,
    /// Everything up to here was met: what comes again is dropped.
    seen: Option<Cursor>,
    /// Where it asks the server to go on. Naming a place says that everything before it has arrived, so one that does not
    /// acknowledge does not move it either.
    resume: Option<Cursor>,
    acknowledges: bool,
    socket: Option<WebSocketStream<MaybeTlsStream<TcpStream>>>,
    failures: u32,
    was_connected: bool,
    /// Before the next try.
    wait_ms: u64,
    /// When the server said to come back, of which it says once.
    told_ms: u64,
    /// Without a frame for so long, the connection is dead and nobody said so: three heartbeats.
    silence: Duration,
}

impl Phone {
    /// A phone of the server at `url`, which starts at `cursor`, or where its device stood.
    pub(super) fn new(
        url: &str,
        token: String,
        device: DeviceId,
        cursor: Option<Cursor>,
        acknowledges: bool,
    ) -> Result<Self, Failure> {
        let bad = || Failure::usage(format!("{url} is not an address: write http://HOST:PORT"));
        let mut socket = Url::parse(url).map_err(|_| bad())?;
        let scheme = if socket.scheme() == "https" { "wss" } else { "ws" };
        socket.set_scheme(scheme).map_err(|()| bad())?;
        socket.set_path(&format!("{}/v1/ws", socket.path().trim_end_matches('/')));
        let (failures, was_connected, wait_ms, told_ms, silence) = (0, false, 0, 0, Duration::from_secs(75));
        let (seen, resume) = (cursor.clone(), cursor);
        Ok(Self {
            url: socket,
            token,
            device,
            seen,
            resume,
            acknowledges,
            socket: None,
            failures,
            was_connected,
            wait_ms,
            told_ms,
            silence,
        })
    }

    /// The next thing met. Connects and comes back by itself; fails where coming back is useless. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Met, Failure> {
        loop {
            let Some(socket) = &mut self.socket else {
                tokio::time::sleep(Duration::from_millis(self.wait_ms)).await;
                if let Some(met) = self.connect().await? {
                    return Ok(met);
                }
                continue;
            };
            let Ok(frame) = tokio::time::timeout(self.silence, socket.next()).await else {
                return Ok(self.gone("nothing came for three heartbeats".to_owned(), None));
            };
            match frame {
                Some(Ok(Message::Text(text))) => {
                    if let Some(met) = self.frame(&text).await? {
                        return Ok(met);
                    }
                }
                Some(Ok(Message::Close(close))) => return self.closed(close),
                Some(Ok(_)) => {}
                Some(Err(why)) => return Ok(self.gone(why.to_string(), None)),
                None => return Ok(self.gone("the connection ended".to_owned(), None)),
            }
        }
    }

    /// Tells the server that everything up to here has arrived, if this phone does.
    pub(super) async fn acknowledge(&mut self, cursor: &Cursor) {
        if self.acknowledges {
            self.resume = Some(cursor.clone());
            self.say(&ClientFrame::Ack { cursor: Some(cursor.clone()), ids: Vec::new() }).await;
        }
    }

    /// Says goodbye and waits until the server has heard it, so that the last acknowledgement arrives.
    pub(super) async fn close(mut self) {
        if let Some(mut socket) = self.socket.take() {
            let _ = socket.close(None).await;
            let drained = async { while let Some(Ok(_)) = socket.next().await {} };
            let _ = tokio::time::timeout(Duration::from_secs(2), drained).await;
        }
    }

    async fn connect(&mut self) -> Result<Option<Met>, Failure> {
        let mut url = self.url.clone();
        url.query_pairs_mut().append_pair("device", self.device.as_str());
        if let Some(cursor) = &self.resume {
            url.query_pairs_mut().append_pair("cursor", &cursor.to_string());
        }
        let bad = |why: &dyn std::fmt::Display| Failure::usage(format!("this address or token cannot be used: {why}"));
        let mut request = url.as_str().into_client_request().map_err(|why| bad(&why))?;
        let headers = request.headers_mut();
        headers.insert("authorization", format!("Bearer {}", self.token).parse().map_err(|why| bad(&why))?);
        headers.insert("sec-websocket-protocol", SUBPROTOCOL.parse().map_err(|why| bad(&why))?);
        match connect_async(request).await {
            Ok((socket, _)) => {
                self.socket = Some(socket);
                (self.failures, self.was_connected) = (0, true);
                Ok(None)
            }
            Err(Error::Http(answer)) => {
                let body = answer.body().as_deref().unwrap_or_default();
                match serde_json::from_slice::<Problem>(body) {
                    Ok(problem) if matches!(answer.status().as_u16(), 429 | 503) => {
                        Ok(Some(self.gone(problem.to_string(), problem.retry_after_ms)))
                    }
                    Ok(problem) => Err(Failure::refused(problem)),
                    Err(_) => Err(Failure::unreachable(format!("what listens there answers {}", answer.status()))),
                }
            }
            Err(why) if self.was_connected => Ok(Some(self.gone(why.to_string(), None))),
            Err(why) => {
                let host = self.url.host_str().unwrap_or_default();
                let port = self.url.port_or_known_default().unwrap_or_default();
                Err(Failure::unreachable(format!(
                    "{host}:{port} cannot be reached ({why}): is `esh3ar up` running there?"
                )))
            }
        }
    }

    async fn frame(&mut self, text: &str) -> Result<Option<Met>, Failure> {
        // A frame of a kind that this release does not know is for newer clients.
        let Ok(frame) = serde_json::from_str::<ServerFrame>(text) else { return Ok(None) };
        Ok(match frame {
            ServerFrame::Welcome { recovered, heartbeat_ms, .. } => {
                self.silence = Duration::from_millis(heartbeat_ms.saturating_mul(3).max(1_000));
                Some(Met::Welcome { recovered })
            }
            ServerFrame::Messages { items } => {
                let fresh: Vec<_> = items.into_iter().filter(|item| self.is_fresh(item)).collect();
                (!fresh.is_empty()).then_some(Met::Items(fresh))
            }
            ServerFrame::Status(change) => Some(Met::Status(change)),
            ServerFrame::Ping => {
                self.say(&ClientFrame::Pong).await;
                None
            }
            ServerFrame::Reconnect { after_ms, .. } => {
                self.told_ms = after_ms;
                None
            }
            ServerFrame::Error { client_ref: Some(client_ref), problem } => Some(Met::Refused { client_ref, problem }),
            ServerFrame::Error { problem, .. } => return Err(Failure::refused(problem)),
            ServerFrame::Accepted { client_ref, id } => Some(Met::Accepted { client_ref, id }),
            ServerFrame::Read { conversation_id: Some(conversation), up_to: Some(up_to), by: Some(by), .. } => {
                Some(Met::Read { conversation, up_to, by })
            }
            ServerFrame::Typing { conversation_id: conversation, by } => Some(Met::Typing { conversation, by }),
            ServerFrame::Presence { user, online, last_seen } => Some(Met::Presence { user, online, last_seen }),
            ServerFrame::Read { .. } | ServerFrame::Pong => None,
        })
    }

    /// Moves over an item; one that moves nothing came before.
    fn is_fresh(&mut self, item: &Item) -> bool {
        let Some(at) = &item.cursor else { return true };
        let mut moved = self.seen.clone().unwrap_or_default();
        moved.join(at);
        let fresh = self.seen.as_ref() != Some(&moved);
        self.seen = Some(moved);
        fresh
    }

    /// Sends a frame, if it is connected. Whether it arrived, the answer tells.
    pub(super) async fn say(&mut self, frame: &ClientFrame) {
        let Ok(text) = serde_json::to_string(frame) else { return };
        if let Some(socket) = &mut self.socket {
            // A broken connection shows itself at the next read.
            let _ = socket.send(Message::text(text)).await;
        }
    }

    fn closed(&mut self, close: Option<CloseFrame>) -> Result<Met, Failure> {
        let (code, reason) = close.map_or((1006, String::new()), |c| (u16::from(c.code), c.reason.to_string()));
        match code {
            4100..=4199 => {
                let detail = format!("the token has ended or is not valid ({reason})");
                Err(Failure::refused(Problem::new(schemas::Code::TokenExpired, detail)))
            }
            4200..=4299 => Err(Failure::failed(format!("the server ended the session for good: {reason} ({code})"))),
            _ => Ok(self.gone(format!("closed: {reason} ({code})"), None)),
        }
    }

    /// The connection is no more: it comes back when the server said, or later each time, at a moment of its own.
    fn gone(&mut self, why: String, after_ms: Option<u64>) -> Met {
        self.socket = None;
        let (first, last) = BACK_OFF_MS;
        let own = (first << self.failures.min(10)).min(last);
        self.failures = self.failures.saturating_add(1);
        let told = after_ms.unwrap_or(0).max(std::mem::take(&mut self.told_ms));
        self.wait_ms = if told > 0 { told } else { rand::random_range(own / 2..=own) };
        Met::Gone { after_ms: self.wait_ms, why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(phone: &mut Phone) -> u64 {
        match phone.gone("refused".to_owned(), None) {
            Met::Gone { after_ms, .. } => after_ms,
            met => panic!("{met:?}"),
        }
    }

    #[test]
    fn a_server_that_stays_away_is_asked_less_and_less_often() {
        let device = "one".parse().unwrap();
        let mut phone = Phone::new("http://127.0.0.1:1", String::new(), device, None, true).unwrap();
        phone.told_ms = 3_000;
        assert_eq!(waits(&mut phone), 3_000, "as it was told");
        let waits: Vec<u64> = (0..9).map(|_| waits(&mut phone)).collect();
        let (first, last) = BACK_OFF_MS;
        assert!(waits[0] <= 2 * first, "{waits:?}");
        assert!(waits[7..].iter().all(|wait| (last / 2..=last).contains(wait)), "{waits:?}");
    }
}
