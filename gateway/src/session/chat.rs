//! Conversations over the session: what the client sends, marks and types, with the bounds on each, and what is told of the
//! other side as it happens. Who may what is not known here: the door says it, and its answer comes back by [`Session::said`].

use std::collections::VecDeque;

use schemas::{
    Code, ContentType, ConversationId, MessageId, Millis, Party, Problem, Ref, conversation::UpTo, frame::ServerFrame,
    json::Json, port::Signal,
};

use super::{Effects, Now, Say, SayTo, Session, frames::Out};

/// What a session keeps of its chat: nothing for whoever does not.
#[derive(Debug, Default)]
pub(super) struct Talk {
    /// Messages handed to the door and not answered yet.
    under_way: usize,
    /// Where `typing` was sent on lately, oldest first.
    typed: VecDeque<(ConversationId, Millis)>,
}

impl Session {
    pub(super) fn on_send(
        &mut self,
        client_ref: Ref,
        to: (Option<ConversationId>, Option<Party>),
        content: Json,
        content_type: ContentType,
        key: Option<String>,
        fx: &mut Effects,
    ) {
        let to = match to {
            (Some(conversation), None) => SayTo::Conversation(conversation),
            (None, Some(party)) => SayTo::Party(party),
            (None, None) | (Some(_), Some(_)) => {
                let detail = "give either `conversation_id` or `to`, the other side";
                return self.refuse(Some(client_ref), Problem::new(Code::InvalidField, detail).at("/to"), fx);
            }
        };
        let most = self.limits.socket.sends;
        if self.talk.under_way >= most {
            let detail = format!("{most} messages of this session wait for their answers, which is the most");
            let problem = Problem::new(Code::Overloaded, detail).retry_after_ms(100);
            return self.refuse(Some(client_ref), problem, fx);
        }
        self.talk.under_way += 1;
        fx.say = Some(Say { client_ref, to, content, content_type, key });
    }

    /// What came of a message that the client sent: its id once it is durable, or why not.
    pub fn said(&mut self, client_ref: Ref, outcome: Result<MessageId, Problem>, now: Now, fx: &mut Effects) {
        self.talk.under_way = self.talk.under_way.saturating_sub(1);
        match outcome {
            Err(problem) => self.refuse(Some(client_ref), problem, fx),
            Ok(_) if self.closed.is_some() => {}
            Ok(id) => {
                fx.frames.push(Out::of(&ServerFrame::Accepted { client_ref: Some(client_ref), id: Some(id) }));
                self.last_out = now.mono;
            }
        }
    }

    pub(super) fn on_mark(
        &mut self,
        conversation: ConversationId,
        up_to: Option<UpTo>,
        ids: &[MessageId],
        fx: &mut Effects,
    ) {
        match up_to {
            Some(up_to) if ids.is_empty() => fx.mark = Some((conversation, up_to)),
            _ => {
                let detail = "with `conversation_id` comes `up_to`, a number or a message's id, and no `ids`";
                self.refuse(None, Problem::new(Code::InvalidField, detail).at("/up_to"), fx);
            }
        }
    }

    /// A person types. What comes more often than it may is dropped without a word: the next will do.
    pub(super) fn on_typing(&mut self, conversation: ConversationId, now: Now, fx: &mut Effects) {
        let chat = &self.limits.chat;
        let typed = &mut self.talk.typed;
        while typed.front().is_some_and(|(_, at)| now.mono.since(*at) >= chat.typing_ms) {
            typed.pop_front();
        }
        if typed.len() < chat.typing_rooms && typed.iter().all(|(there, _)| *there != conversation) {
            typed.push_back((conversation, now.mono));
            fx.typing = Some(conversation);
        }
    }

    /// What happens as it happens. Whoever has messages to catch up with first is not told that somebody types.
    pub fn on_signals(&mut self, signals: Vec<Signal>, now: Now, fx: &mut Effects) {
        if self.closed.is_some() {
            return;
        }
        let busy = self.paused || self.asked.is_some();
        let before = fx.frames.len();
        let frames = signals.into_iter().filter_map(|signal| match signal {
            Signal::Typing { .. } if busy => None,
            Signal::Typing { conversation, by } => Some(ServerFrame::Typing { conversation_id: conversation, by }),
            Signal::Read { conversation, up_to, by } => {
                let (conversation_id, up_to) = (Some(conversation), Some(up_to));
                Some(ServerFrame::Read { ids: Vec::new(), conversation_id, up_to, by: Some(by) })
            }
            Signal::Presence { user, online, last_seen } => Some(ServerFrame::Presence { user, online, last_seen }),
            Signal::Changed { .. } => None,
        });
        fx.frames.extend(frames.map(|frame| Out::of(&frame)));
        if fx.frames.len() > before {
            self.last_out = now.mono;
        }
    }

    /// Another of the user's devices read these one-way messages.
    pub fn on_read_elsewhere(&mut self, ids: Vec<MessageId>, fx: &mut Effects) {
        if self.closed.is_none() && !ids.is_empty() {
            fx.frames.push(Out::of(&ServerFrame::Read { ids, conversation_id: None, up_to: None, by: None }));
        }
    }
}
