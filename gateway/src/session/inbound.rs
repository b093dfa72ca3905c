//! What a client says, and what it means: acknowledgements, reads, heartbeats, tokens; what belongs to conversations is in
//! [`super::chat`]. Unknown types are answered with `error`, unknown fields are ignored, storms end the session.

use std::collections::HashSet;

use schemas::{
    Code, Cursor, MessageId, Problem, What,
    frame::{ClientFrame, Close, ServerFrame},
};

use super::{Effects, LookUp, Now, Session, frames::Out};

impl Session {
    /// A text frame has come.
    pub fn on_text(&mut self, text: &str, now: Now, fx: &mut Effects) {
        self.on_alive(now);
        if self.is_storm(now) {
            self.close(Close::Storm, fx);
            return;
        }
        match parse(text) {
            // What a client acknowledges after it was told to come back still counts.
            Ok(ClientFrame::Ack { cursor, ids }) => self.on_ack(cursor.as_ref(), ids, now, fx),
            Ok(ClientFrame::Read { ids, conversation_id: None, .. }) => self.on_read(ids, now, fx),
            _ if self.closed.is_some() => {}
            Ok(ClientFrame::Read { ids, conversation_id: Some(conversation), up_to }) => {
                self.on_mark(conversation, up_to, &ids, fx);
            }
            Ok(ClientFrame::Typing { conversation_id }) => self.on_typing(conversation_id, now, fx),
            Ok(ClientFrame::Send { client_ref, conversation_id, to, content, content_type, key }) => {
                let to = (conversation_id, to);
                self.on_send(client_ref, to, content, content_type, key, fx);
            }
            Ok(ClientFrame::Ping) => fx.frames.push(Out::of(&ServerFrame::Pong)),
            Ok(ClientFrame::Pong) => {}
            Ok(ClientFrame::Token { token }) => fx.verify = Some(token),
            Err(problem) => self.refuse(None, problem, fx),
        }
    }

    /// Anything came from the client: it is there.
    pub fn on_alive(&mut self, now: Now) {
        self.last_in = now.mono;
    }

    fn is_storm(&mut self, now: Now) -> bool {
        let (since, count) = &mut self.storm;
        if now.mono.since(*since) >= 1_000 {
            (*since, *count) = (now.mono, 0);
        }
        *count += 1;
        *count > self.limits.socket.frames_per_second
    }

    fn on_ack(&mut self, cursor: Option<&Cursor>, ids: Vec<MessageId>, now: Now, fx: &mut Effects) {
        if let Some(cursor) = cursor {
            self.on_ack_cursor(cursor, now, fx);
        }
        if !ids.is_empty() && self.check_ids(&ids, fx) {
            let unknown = self.take_ids(ids, now, fx);
            if !unknown.is_empty() {
                fx.look_up = Some(LookUp { ids: unknown, what: What::Delivered });
            }
        }
        self.trim();
        self.ask(fx);
    }

    fn on_ack_cursor(&mut self, cursor: &Cursor, now: Now, fx: &mut Effects) {
        let reaches = |session: &Self, partition, position| {
            session.lanes.iter().any(|lane| lane.partition == partition && position <= lane.last.max(lane.have))
        };
        if !cursor.0.iter().all(|(partition, position)| reaches(self, *partition, *position)) {
            let detail = "`cursor` lies beyond what this session was sent";
            self.refuse(None, Problem::new(Code::AckBeyondSent, detail).at("/cursor"), fx);
            return;
        }
        let mut moved = false;
        for lane in &mut self.lanes {
            moved |= lane.on_ack(cursor.position(lane.partition));
        }
        if !moved {
            return;
        }
        // Sent in order, so with one lane what is acknowledged stands in front.
        let acked = |session: &Self, i: usize| {
            let sent = &session.unacked[i];
            sent.position <= session.lanes[usize::from(sent.lane)].acked
        };
        if self.lanes.len() == 1 {
            while !self.unacked.is_empty() && acked(self, 0) {
                self.deliver_front(now, fx);
            }
        } else {
            for _ in 0..self.unacked.len() {
                if acked(self, 0) {
                    self.deliver_front(now, fx);
                } else {
                    self.unacked.rotate_left(1);
                }
            }
        }
        fx.cursor = Some(self.cursor(|lane| lane.acked));
    }

    fn deliver_front(&mut self, now: Now, fx: &mut Effects) {
        if let Some(sent) = self.unacked.pop_front() {
            fx.facts.extend(self.fact(&sent, What::Delivered, now));
        }
    }

    fn on_read(&mut self, ids: Vec<MessageId>, now: Now, fx: &mut Effects) {
        if ids.is_empty() || !self.check_ids(&ids, fx) {
            return;
        }
        // What is read was received: the window is freed, and the reading itself is noted by id.
        self.take_ids(ids.clone(), now, fx);
        fx.look_up = Some(LookUp { ids, what: What::Read });
        self.trim();
        self.ask(fx);
    }

    fn check_ids(&mut self, ids: &[MessageId], fx: &mut Effects) -> bool {
        let most = self.limits.socket.ids_per_frame;
        if ids.len() > most {
            let detail = format!("`ids` has {} entries, the most is {most}", ids.len());
            self.refuse(None, Problem::new(Code::InvalidField, detail).at("/ids"), fx);
        }
        ids.len() <= most
    }

    /// Acknowledges those that wait for it; answers the others.
    fn take_ids(&mut self, ids: Vec<MessageId>, now: Now, fx: &mut Effects) -> Vec<MessageId> {
        let mut wanted: HashSet<MessageId> = ids.into_iter().collect();
        let mut kept = std::mem::take(&mut self.unacked);
        kept.retain(|sent| {
            let hit = wanted.remove(&sent.id);
            if hit {
                fx.facts.extend(self.fact(sent, What::Delivered, now));
            }
            !hit
        });
        self.unacked = kept;
        wanted.into_iter().collect()
    }

    /// An idle session gives the room of its busy time back.
    fn trim(&mut self) {
        if self.unacked.is_empty() && self.unacked.capacity() > 32 {
            self.unacked = Default::default();
        }
    }
}

/// Reads a frame. Any text gives a frame or a refusal that says what was wrong.
fn parse(text: &str) -> Result<ClientFrame, Problem> {
    #[derive(serde::Deserialize)]
    struct Kind<'a> {
        #[serde(borrow, rename = "type")]
        kind: std::borrow::Cow<'a, str>,
    }
    serde_json::from_str(text).map_err(|why| match serde_json::from_str::<Kind<'_>>(text) {
        Ok(Kind { kind }) if !ClientFrame::TYPES.contains(&kind.as_ref()) => {
            let kind: String = kind.chars().take(40).collect();
            let known = ClientFrame::TYPES.join(", ");
            Problem::new(Code::UnknownFrame, format!("`{kind}` is not a type of frame; known are {known}")).at("/type")
        }
        Ok(_) => Problem::new(Code::InvalidField, why.to_string()),
        Err(_) => Problem::new(Code::InvalidJson, format!("a frame is a JSON object with a `type`: {why}")),
    })
}
