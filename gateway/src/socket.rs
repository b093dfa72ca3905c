//! The pump: one task per connection that carries bytes between a socket and its session, and does what the session asks.
//!
//! It is a hand-written future, so that an idle connection is one small allocation; it has no timer of its own (the keeper
//! wakes it when it is due) and no channel (the registry holds its mailbox). It writes before it takes more in: while a
//! client does not read, its hints wait in the mailbox and then in history, and past the deadline it is closed.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use futures::{FutureExt, Sink, Stream, future::BoxFuture};
use schemas::{
    Code, ConversationId, Cursor, DeviceId, Fact, Inbox, MessageId, Millis, Position, Problem, Sender, Timestamp,
    UserId, What,
    conversation::UpTo,
    frame::Close,
    limits::SocketLimits,
    port::{Placed, PortError, PortResult, Span},
};

use crate::{
    Gateway, catch_up,
    connect::Hold,
    delivery::is_own,
    facts::fact_of,
    registry::{Mail, Order},
    session::{Effects, LookUp, Session, frames::Out},
    talking::{Talking, Told},
};

/// The socket's buffers and bounds, set here alone. The defaults would cost 137 KB a connection (`docs/performance.md`).
pub(crate) fn settings(upgrade: WebSocketUpgrade, limits: &SocketLimits) -> WebSocketUpgrade {
    upgrade
        .read_buffer_size(limits.read_buffer_bytes)
        .write_buffer_size(WRITE_AT_BYTES)
        .max_write_buffer_size(limits.write_buffer_bytes.max(WRITE_AT_BYTES + 2 * limits.frame_bytes))
        .max_message_size(limits.frame_bytes)
        .max_frame_size(limits.frame_bytes)
}

/// Frames are gathered up to this before they are written; every turn of the pump flushes, so nothing waits for it.
const WRITE_AT_BYTES: usize = 4 * 1024;
/// How long a closed session waits for the client's own close, so that its code arrives, ms.
const LINGER_MS: u64 = 2_000;
/// Turns of one poll before other tasks have theirs.
const TURNS: usize = 32;
/// Answers that may wait for the socket before the client is not listened to any more.
const ANSWERS: usize = 32;

struct Looked {
    facts: Vec<Fact>,
    read: Vec<MessageId>,
    /// Chat is read up to a place, not message by message.
    marks: HashMap<ConversationId, (Position, MessageId)>,
    missing: usize,
    failed: Option<PortError>,
}

impl Looked {
    /// What a client says of a message of its.
    fn take(&mut self, placed: &Placed, device: Option<&DeviceId>, what: What, at: Timestamp) {
        let (message, position) = (&placed.message, placed.position.unwrap_or_default());
        match (what, message.kind.conversation()) {
            (What::Read, Some(conversation)) => {
                // Whoever read an edit has read what it is about.
                let id = message.kind.about().unwrap_or(message.id);
                let furthest = self.marks.entry(conversation).or_insert((position, id));
                if position >= furthest.0 {
                    *furthest = (position, id);
                }
            }
            (What::Read, None) => {
                self.facts.push(fact_of(placed, device, what, at));
                self.read.push(message.id);
            }
            _ => self.facts.push(fact_of(placed, device, what, at)),
        }
    }
}

/// Whether a user wrote it or received it.
fn is_part(user: &UserId, placed: &Placed) -> bool {
    placed.message.from == Sender::User(user.party.clone()) || placed.inbox.user == *user
}

/// One connection.
pub(crate) struct Pump {
    socket: WebSocket,
    hold: Hold,
    session: Session,
    queue: VecDeque<Out>,
    /// Facts of frames that are in the socket's buffer and not yet with the kernel.
    written: Vec<Fact>,
    /// True facts that the gatherer has not taken yet.
    facts: Vec<Fact>,
    cursor: Option<Cursor>,
    reading: Option<BoxFuture<'static, PortResult<Span>>>,
    looking: Option<BoxFuture<'static, Looked>>,
    /// What it does in conversations; nothing for who does nothing there.
    talking: Option<Box<Talking>>,
    unflushed: bool,
    /// Since when a write stands still.
    stuck: Option<Millis>,
    close: Option<Close>,
    /// The close frame is out, or the client sent its own: until when the other side is waited for.
    until: Option<Millis>,
    over: bool,
}

impl Pump {
    pub(crate) fn new(socket: WebSocket, hold: Hold, session: Session, fx: Effects) -> Self {
        let mut pump = Self {
            socket,
            hold,
            session,
            queue: VecDeque::new(),
            written: Vec::new(),
            facts: Vec::new(),
            cursor: None,
            reading: None,
            looking: None,
            talking: None,
            unflushed: false,
            stuck: None,
            close: None,
            until: None,
            over: false,
        };
        pump.apply(fx);
        pump
    }

    fn gateway(&self) -> &Arc<Gateway> {
        &self.hold.gateway
    }

    /// Does what the session asks.
    fn apply(&mut self, mut fx: Effects) {
        loop {
            self.queue.extend(fx.frames.drain(..));
            self.facts.append(&mut fx.facts);
            if fx.cursor.is_some() {
                self.cursor = fx.cursor.take();
            }
            if let Some(ask) = fx.read.take() {
                let inbox = Inbox { user: self.hold.handle.me.user.clone(), partition: ask.partition };
                let gateway = self.gateway().clone();
                let read = async move { catch_up::read(&gateway, &inbox, ask.from, ask.limit).await };
                self.reading = Some(Box::pin(read));
            }
            if let Some(what) = fx.look_up.take() {
                let user = self.hold.handle.me.user.clone();
                self.looking = Some(Box::pin(look_up(self.gateway().clone(), user, self.hold.handle.clone(), what)));
            }
            self.apply_talk(&mut fx);
            if let Some(close) = fx.close.take() {
                self.close = Some(close);
                self.reading = None;
                self.hold.leave();
                metrics::counter!("esh3ar_sessions_closed_total", "reason" => close.word()).increment(1);
            }
            let Some(token) = fx.verify.take() else { break };
            let renewed = self.hold.gateway.renew(&self.hold.handle.me.user, &token);
            let ends = renewed.map(|(caller, ends)| {
                self.hold.caller = caller;
                ends
            });
            self.session.renewed(ends, &mut fx);
        }
    }

    fn apply_talk(&mut self, fx: &mut Effects) {
        if fx.say.is_none() && fx.mark.is_none() && fx.typing.is_none() {
            return;
        }
        let talking = self.talking.get_or_insert_default();
        if let Some(say) = fx.say.take() {
            talking.say(say);
        }
        if let Some((conversation, up_to)) = fx.mark.take() {
            talking.mark(conversation, up_to);
        }
        if let Some(conversation) = fx.typing.take() {
            talking.types(&self.hold, conversation);
        }
    }

    /// Goes on with what is under way in conversations; says whether there was something to tell the session.
    fn poll_talk(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(talking) = self.talking.as_mut() else { return false };
        let told = talking.poll(&self.hold, cx);
        if told.is_none() && talking.is_idle() {
            self.talking = None;
        }
        let (now, mut fx) = (self.hold.gateway.now(), Effects::default());
        let any = told.is_some();
        match told {
            Some(Told::Said(client_ref, outcome)) => self.session.said(client_ref, outcome, now, &mut fx),
            Some(Told::Refused(problem)) => self.session.refuse(None, problem, &mut fx),
            None => {}
        }
        self.apply(fx);
        any
    }

    /// Hands facts to the gatherer; false while it has no room.
    fn hand_over(&mut self, cx: &Context<'_>) -> bool {
        if self.facts.is_empty() && self.cursor.is_none() {
            return true;
        }
        self.hold.gateway.gather.push(&mut self.facts, &mut self.cursor, &self.hold.handle.me, cx)
    }

    /// Writes what is queued. `Ok(true)`: everything is with the kernel.
    fn write(&mut self, cx: &mut Context<'_>, now: Millis) -> Result<bool, axum::Error> {
        let mut socket = Pin::new(&mut self.socket);
        loop {
            if self.queue.is_empty() && (self.close.is_none() || self.until.is_some()) {
                break;
            }
            match socket.as_mut().poll_ready(cx)? {
                Poll::Ready(()) => {}
                Poll::Pending => {
                    self.stuck.get_or_insert(now);
                    return Ok(false);
                }
            }
            self.unflushed = true;
            match self.queue.pop_front() {
                Some(Out::Text { text, mut facts }) => {
                    socket.as_mut().start_send(Message::Text(text.into()))?;
                    self.written.append(&mut facts);
                }
                Some(Out::Heartbeat) => {
                    socket.as_mut().start_send(Message::Text(PING.into()))?;
                    socket.as_mut().start_send(Message::Ping(Default::default()))?;
                }
                None => {
                    let (code, reason) = self.close.map_or((1000, ""), |close| (close.code(), close.word()));
                    self.until = Some(now.plus(LINGER_MS));
                    socket.as_mut().start_send(Message::Close(Some(CloseFrame { code, reason: reason.into() })))?;
                }
            }
        }
        if self.unflushed {
            match socket.as_mut().poll_flush(cx)? {
                Poll::Ready(()) => self.unflushed = false,
                Poll::Pending => {
                    self.stuck.get_or_insert(now);
                    return Ok(false);
                }
            }
            self.facts.append(&mut self.written);
            if self.queue.capacity() > 16 {
                self.queue = VecDeque::new();
            }
        }
        self.stuck = None;
        Ok(true)
    }

    /// Takes what the node has for this session.
    fn take_mail(&mut self, mail: Mail) {
        let (now, mut fx) = (self.hold.gateway.now(), Effects::default());
        match mail.order {
            Some(Order::Supersede) => self.session.supersede(&mut fx),
            Some(Order::Drain(within_ms)) => self.session.drain(within_ms, &mut fx),
            None => {}
        }
        if !mail.hints.is_empty() || mail.lost {
            self.session.on_hints(mail.hints, mail.lost, now, &mut fx);
        }
        if !mail.tails.is_empty() {
            self.session.on_tails(&mail.tails, &mut fx);
        }
        self.session.on_read_elsewhere(mail.read_elsewhere, &mut fx);
        self.session.on_notes(mail.notes, now, &mut fx);
        self.session.on_signals(mail.signals, now, &mut fx);
        self.apply(fx);
    }

    /// Takes one frame from the client.
    fn take_frame(&mut self, frame: Option<Result<Message, axum::Error>>) {
        let (now, mut fx) = (self.hold.gateway.now(), Effects::default());
        match frame {
            Some(Ok(Message::Text(text))) => self.session.on_text(&text, now, &mut fx),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => self.session.on_alive(now),
            Some(Ok(Message::Binary(_))) => self.session.close(Close::Protocol, &mut fx),
            Some(Ok(Message::Close(_))) => {
                // Its library answers by itself when the socket is flushed.
                self.hold.leave();
                self.until.get_or_insert(now.mono.plus(LINGER_MS));
                self.unflushed = true;
            }
            // Too long, or not a WebSocket frame: a last word, if the socket still takes one.
            Some(Err(_)) if self.until.is_none() && self.close.is_none() => {
                self.session.close(Close::Protocol, &mut fx);
                self.say_close(Close::Protocol);
                self.until = Some(now.mono.plus(LINGER_MS));
            }
            Some(Err(_)) | None => self.over = true,
        }
        self.apply(fx);
    }

    fn take_looked(&mut self, looked: Looked) {
        let mut fx = Effects { facts: looked.facts, ..Effects::default() };
        for (conversation, (_, id)) in looked.marks {
            self.talking.get_or_insert_default().mark(conversation, UpTo::Id(id));
        }
        if !looked.read.is_empty() {
            self.hold.gateway.registry.read_elsewhere(&self.hold.handle.me, &looked.read);
        }
        if looked.missing > 0 {
            let detail = format!("{} of `ids` name no message of this user", looked.missing);
            self.session.refuse(None, Problem::new(Code::NotFound, detail).at("/ids"), &mut fx);
        }
        if let Some(why) = looked.failed {
            self.session.refuse(None, why.into(), &mut fx);
        }
        self.apply(fx);
    }

    /// The client does not read. What waits is left to its inbox; the code goes behind what is in the buffer already, for a
    /// client that wakes up within the linger.
    fn give_up(&mut self, now: Millis) {
        let mut fx = Effects::default();
        self.session.stuck(&mut fx);
        self.apply(fx);
        self.queue = VecDeque::new();
        self.say_close(Close::Slow);
        self.until = Some(now.plus(LINGER_MS));
    }

    /// Puts a close frame into the socket's buffer, whether or not it is ready.
    fn say_close(&mut self, close: Close) {
        let frame = CloseFrame { code: close.code(), reason: close.word().into() };
        self.over |= Pin::new(&mut self.socket).start_send(Message::Close(Some(frame))).is_err();
        self.unflushed = true;
    }

    /// One turn: facts out, frames out, then one piece of each input. Says whether anything moved.
    fn turn(&mut self, cx: &mut Context<'_>) -> bool {
        let now = self.hold.gateway.now();
        let room = self.hand_over(cx);
        if self.over {
            return false;
        }
        let all_out = match self.write(cx, now.mono) {
            Ok(all_out) => all_out,
            Err(_) => {
                self.over = true;
                return true;
            }
        };
        let write_ms = self.hold.gateway.parts.limits.socket.write_ms;
        if self.until.is_some_and(|until| until <= now.mono) {
            self.over = true;
            return true;
        }
        if self.until.is_none() && self.stuck.is_some_and(|since| now.mono.since(since) >= write_ms) {
            self.give_up(now.mono);
            return true;
        }
        let mut moved = false;
        if now.mono >= self.session.due() && self.session.closed().is_none() {
            let mut fx = Effects::default();
            self.session.on_tick(now, &mut fx);
            self.apply(fx);
            moved = true;
        }
        if !room {
            return moved;
        }
        if all_out && self.session.closed().is_none() {
            if let Some(mail) = self.hold.handle.take() {
                self.take_mail(mail);
                moved = true;
            }
            if let Some(Poll::Ready(span)) = self.reading.as_mut().map(|reading| reading.poll_unpin(cx)) {
                self.reading = None;
                let mut fx = Effects::default();
                match span {
                    Ok(span) => self.session.on_span(&span, now, &mut fx),
                    Err(why) => {
                        tracing::warn!(user = ?self.hold.handle.me.user, %why, "a session could not read its inbox");
                        self.session.on_unreadable(&mut fx);
                    }
                }
                self.apply(fx);
                moved = true;
            }
        }
        moved |= self.poll_talk(cx);
        if let Some(looking) = self.looking.as_mut() {
            if let Poll::Ready(looked) = looking.poll_unpin(cx) {
                self.looking = None;
                self.take_looked(looked);
                moved = true;
            }
        } else if self.queue.len() < ANSWERS
            && let Poll::Ready(frame) = Pin::new(&mut self.socket).poll_next(cx)
        {
            self.take_frame(frame);
            moved = true;
        }
        moved || !self.facts.is_empty() || (all_out && !self.queue.is_empty())
    }

    /// When this connection wants to be looked at again, if nothing happens before.
    fn due(&self) -> Millis {
        let write_ms = self.hold.gateway.parts.limits.socket.write_ms;
        let session = if self.session.closed().is_none() { self.session.due() } else { Millis(u64::MAX) };
        let stuck = self.stuck.filter(|_| self.until.is_none()).map(|since| since.plus(write_ms));
        [stuck, self.until].into_iter().flatten().fold(session, Millis::min)
    }
}

const PING: &str = r#"{"type":"ping"}"#;

impl Future for Pump {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.hold.handle.waker.register(cx.waker());
        for _ in 0..TURNS {
            let moved = this.turn(cx);
            if this.over && this.hand_over(cx) {
                return Poll::Ready(());
            }
            if !moved {
                this.hold.handle.wake_at(this.due());
                return Poll::Pending;
            }
        }
        this.hold.handle.wake_at(this.due());
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

async fn look_up(gateway: Arc<Gateway>, user: UserId, handle: Arc<crate::registry::Handle>, asked: LookUp) -> Looked {
    let at = gateway.now().wall;
    let placed = gateway.parts.history.messages(&asked.ids).await;
    let mut looked = Looked { facts: Vec::new(), read: Vec::new(), marks: HashMap::new(), missing: 0, failed: None };
    match placed {
        Ok(placed) => {
            for placed in placed {
                // Of one's own there is nothing to say.
                let mine = |placed: &Placed| {
                    placed.message.tenant() == &user.tenant && is_own(&user, &placed.message) && is_part(&user, placed)
                };
                match placed {
                    Some(placed) if mine(&placed) => {}
                    Some(placed) if placed.inbox.user == user && placed.position.is_some() => {
                        looked.take(&placed, Some(&handle.me.device), asked.what, at);
                    }
                    _ => looked.missing += 1,
                }
            }
        }
        Err(why) => looked.failed = Some(why),
    }
    looked
}
