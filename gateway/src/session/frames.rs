//! What goes out: small frames as they are, and `messages` frames put together by hand from items that were each rendered
//! once. A frame ends at its bound of items or bytes (rule 17); one message always fits.

use schemas::{Fact, frame::ServerFrame, limits::SocketLimits};

use crate::delivery::Rendered;

/// Something to write.
#[derive(Debug, PartialEq)]
pub enum Out {
    /// A text frame, and the facts that become true when it is handed to the socket.
    Text {
        /// The JSON.
        text: String,
        /// What it means.
        facts: Vec<Fact>,
    },
    /// A `ping` frame, that the client sees, with a WebSocket ping, that its library answers.
    Heartbeat,
}

impl Out {
    /// A frame that tells of no message.
    pub fn of(frame: &ServerFrame) -> Self {
        // Frames are plain data; serialising them does not fail.
        Self::Text { text: serde_json::to_string(frame).unwrap_or_default(), facts: Vec::new() }
    }
}

const HEAD: &str = r#"{"type":"messages","items":["#;
const TAIL: &str = "]}";

/// Gathers items into `messages` frames.
pub(super) struct Frames {
    most_items: usize,
    most_bytes: usize,
    done: Vec<Out>,
    text: String,
    items: usize,
    facts: Vec<Fact>,
}

impl Frames {
    pub(super) fn new(limits: &SocketLimits) -> Self {
        let (most_items, most_bytes) = (limits.frame_items, limits.frame_bytes);
        Self { most_items, most_bytes, done: Vec::new(), text: String::new(), items: 0, facts: Vec::new() }
    }

    /// Adds an item, with its cursor and what becomes true by it.
    pub(super) fn push(&mut self, item: &Rendered, cursor: &str, sent: Option<Fact>) {
        let bytes = item.bytes() + cursor.len();
        let full = self.items >= self.most_items || self.text.len() + 1 + bytes + TAIL.len() > self.most_bytes;
        if full && self.items > 0 {
            self.end();
        }
        if self.items == 0 {
            self.text.reserve(HEAD.len() + bytes + TAIL.len());
            self.text.push_str(HEAD);
        } else {
            self.text.push(',');
        }
        item.write(cursor, &mut self.text);
        self.items += 1;
        self.facts.extend(sent);
    }

    fn end(&mut self) {
        self.text.push_str(TAIL);
        let (text, facts) = (std::mem::take(&mut self.text), std::mem::take(&mut self.facts));
        self.items = 0;
        self.done.push(Out::Text { text, facts });
    }

    /// Hands over what was gathered; says whether there was anything.
    pub(super) fn finish(mut self, to: &mut Vec<Out>) -> bool {
        if self.items > 0 {
            self.end();
        }
        let any = !self.done.is_empty();
        to.append(&mut self.done);
        any
    }
}
