//! The session: what one connection of one device is sent and says, as a machine that knows no socket and no clock.
//!
//! It promises that the inbox goes out in position order, each id once, and never past a gap: what a hint does not continue
//! is read from history first (invariant 5). It asks for reads and look-ups, hands back frames, facts and cursor moves in
//! [`Effects`], and leaves every act to the pump in `socket.rs`.

mod chat;
pub mod frames;
mod inbound;
mod lane;
#[cfg(test)]
mod model;
mod parts;
#[cfg(test)]
mod talk_tests;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, sync::Arc};

use schemas::{
    Cursor, Fact, Inbox, Limits, MessageId, Millis, Partition, Position, Problem, Ref, Sender, What,
    frame::{Close, ServerFrame, WelcomeLimits},
    message::Message,
    port::Span,
    tier::Attempt,
    view::StatusChange,
};

pub use parts::{Ask, Effects, LaneStart, LookUp, Me, Now, Say, SayTo, Start};

use crate::delivery::{Delivery, Rendered, is_own};
use chat::Talk;
use frames::{Frames, Out};
use lane::{Lane, Step};

/// A message sent and not yet acknowledged: what its facts need, without its body.
#[derive(Debug, Clone)]
struct Sent {
    lane: u16,
    round: u8,
    attempt: Attempt,
    position: Position,
    id: MessageId,
    from: Sender,
    client_ref: Option<Ref>,
    at: Millis,
    /// The user's own: it fills the window, and nothing is said about it.
    own: bool,
}

/// The machine.
#[derive(Debug)]
pub struct Session {
    me: Arc<Me>,
    limits: Arc<Limits>,
    lanes: Vec<Lane>,
    /// In the order of sending, so the first is the oldest.
    unacked: VecDeque<Sent>,
    /// The read that is under way: which lane, and how many entries were asked for.
    asked: Option<(u16, u32)>,
    /// The window is full: nothing is sent until acknowledgements have freed half of it.
    paused: bool,
    closed: Option<Close>,
    last_in: Millis,
    last_out: Millis,
    last_ping: Millis,
    token_ends: Option<Millis>,
    /// Frames from the client in the present second.
    storm: (Millis, u32),
    talk: Talk,
}

impl Session {
    /// Says welcome and starts to catch up.
    pub fn open(start: Start, now: Now, fx: &mut Effects) -> Self {
        let Start { me, lanes, recovered, token_ends, limits } = start;
        let mut session = Self {
            lanes: lanes.iter().map(Lane::new).collect(),
            unacked: VecDeque::new(),
            asked: None,
            paused: false,
            closed: None,
            last_in: now.mono,
            last_out: now.mono,
            last_ping: now.mono,
            token_ends,
            storm: (now.mono, 0),
            talk: Talk::default(),
            me,
            limits,
        };
        let welcome = ServerFrame::Welcome {
            session: session.me.session,
            user: session.me.user.party.clone(),
            device: session.me.device.clone(),
            cursor: session.cursor(|lane| lane.have),
            recovered,
            heartbeat_ms: session.limits.socket.heartbeat_ms,
            server_time: now.wall,
            limits: WelcomeLimits {
                frame_bytes: session.limits.socket.frame_bytes,
                unacked: session.limits.socket.unacked,
                ack_ms: session.limits.flow.ack_ms,
            },
        };
        fx.frames.push(Out::of(&welcome));
        session.ask(fx);
        session
    }

    /// Live deliveries, in the order they came; `lost` says that some had no room and were left out.
    pub fn on_hints(&mut self, hints: impl IntoIterator<Item = Arc<Delivery>>, lost: bool, now: Now, fx: &mut Effects) {
        if self.closed.is_some() {
            return;
        }
        let mut frames = Frames::new(&self.limits.socket);
        for delivery in hints {
            self.on_hint(&delivery, now, &mut frames, fx);
        }
        if lost {
            self.lanes.iter_mut().for_each(Lane::on_lost);
        }
        self.flush(frames, now, fx);
        self.ask(fx);
    }

    fn on_hint(&mut self, delivery: &Delivery, now: Now, frames: &mut Frames, fx: &mut Effects) {
        let hint = delivery.hint();
        let Some(index) = self.lanes.iter().position(|lane| lane.partition == hint.inbox.partition) else { return };
        match self.lanes[index].on_hint(hint.position, hint.prev, self.paused) {
            Step::Wait => {}
            Step::Behind => self.repeat(index, delivery, now, fx),
            Step::Next if hint.state.is_withdrawn() => {}
            Step::Next => {
                let sent = self.sent(index, hint.position, &hint.message, hint.round, hint.attempt, now);
                let fact = self.fact(&sent, What::Sent, now);
                frames.push(delivery.item(), &self.reached(), fact);
                self.keep(sent);
            }
        }
    }

    /// A delivery of something this session has passed already. It is never sent twice on one connection: a retry only says
    /// that it stands on a socket, or that the device has it.
    fn repeat(&mut self, index: usize, delivery: &Delivery, now: Now, fx: &mut Effects) {
        let hint = delivery.hint();
        let again = |sent: &&mut Sent| sent.id == hint.message.id && usize::from(sent.lane) == index;
        if let Some(sent) = self.unacked.iter_mut().find(again) {
            if (hint.round, hint.attempt) > (sent.round, sent.attempt) {
                (sent.round, sent.attempt) = (hint.round, hint.attempt);
                let fact = fact(&self.me, self.lanes[index].partition, sent, What::Sent, now);
                fx.facts.extend((!sent.own).then_some(fact));
            }
            return;
        }
        // Only a retry speaks of what history has for certain: a first delivery of an earlier place is a late owner's
        // (rule 2), or a repeat of what is being acknowledged anyway.
        let retry = hint.round > 0 || hint.attempt > Attempt::default();
        if retry && !hint.state.is_withdrawn() {
            let sent = self.sent(index, hint.position, &hint.message, hint.round, hint.attempt, now);
            fx.facts.extend(self.fact(&sent, What::Delivered, now));
        }
    }

    /// What a read of history answered.
    pub fn on_span(&mut self, span: &Span, now: Now, fx: &mut Effects) {
        let Some((index, limit)) = self.asked.take() else { return };
        let index = usize::from(index);
        if self.closed.is_some() {
            return;
        }
        let full = span.entries.len() >= limit as usize;
        let acked = self.lanes[index].acked;
        if !self.lanes[index].may_follow(span) {
            // Retention removed what was to come next: coming back, the client is told so with `recovered: false`.
            self.reconnect("retention", Close::Unavailable, 0, fx);
            return;
        }
        let mut frames = Frames::new(&self.limits.socket);
        let mut moved = false;
        for (entry, state) in &span.entries {
            if self.unacked.len() >= self.limits.socket.unacked {
                self.paused = true;
                break;
            }
            if entry.prev != self.lanes[index].last {
                break;
            }
            let own = is_own(&self.me.user, &entry.message);
            if !self.lanes[index].pass(entry.position, state, own) {
                if self.lanes[index].is_had(entry.position)
                    && crate::delivery::is_acknowledged_by_cursor(entry, state, now.wall)
                {
                    let (round, attempt) = (state.round(), state.attempt());
                    let had = self.sent(index, entry.position, &entry.message, round, attempt, now);
                    fx.facts.extend(self.fact(&had, What::Delivered, now));
                }
                moved = true;
                continue;
            }
            moved = true;
            // Its time passed while nobody was here: the sweep will say so, and nobody is shown it meanwhile.
            if entry.message.is_expired(now.wall) && !state.status().is_reached() {
                continue;
            }
            let sent = self.sent(index, entry.position, &entry.message, state.round(), state.attempt(), now);
            let fact = self.fact(&sent, What::Sent, now);
            let item = Rendered::of(&self.me.user, &entry.message, state, entry.seq);
            frames.push(&item, &self.reached(), fact);
            self.keep(sent);
        }
        self.flush(frames, now, fx);
        self.lanes[index].read_done(full || self.paused, moved);
        if self.lanes[index].acked > acked {
            fx.cursor = Some(self.cursor(|lane| lane.acked));
        }
        self.ask(fx);
    }

    /// History could not be read.
    pub fn on_unreadable(&mut self, fx: &mut Effects) {
        self.asked = None;
        let after = self.spread(2_000);
        self.reconnect("unavailable", Close::Unavailable, after, fx);
    }

    /// Changes of status of messages this user sent.
    pub fn on_notes(&mut self, notes: Vec<StatusChange>, now: Now, fx: &mut Effects) {
        if self.closed.is_none() && !notes.is_empty() {
            fx.frames.extend(notes.into_iter().map(|note| Out::of(&ServerFrame::Status(note))));
            self.last_out = now.mono;
        }
    }

    /// The ends of its inboxes, after presence may have lost sight of this session: hints may be missing (rule 5).
    pub fn on_tails(&mut self, tails: &[(Partition, Position)], fx: &mut Effects) {
        for (partition, tail) in tails {
            if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.partition == *partition) {
                lane.on_tail(*tail);
            }
        }
        self.ask(fx);
    }

    /// Time has passed: heartbeat, silence, missed acknowledgements, the token's end.
    pub fn on_tick(&mut self, now: Now, fx: &mut Effects) {
        if self.closed.is_some() {
            return;
        }
        let socket = &self.limits.socket;
        let (silent_ms, heartbeat_ms) = (socket.silent_ms, socket.heartbeat_ms);
        if self.token_ends.is_some_and(|at| at <= now.mono) {
            self.close(Close::TokenExpired, fx);
        } else if self.unacked.front().is_some_and(|sent| now.mono.since(sent.at) >= self.limits.flow.ack_ms) {
            let after = self.spread(1_000);
            self.reconnect("no_ack", Close::NoAck, after, fx);
        } else if now.mono.since(self.last_in) >= silent_ms {
            self.close(Close::Silent, fx);
        } else if now.mono >= self.ping_due(heartbeat_ms) {
            (self.last_ping, self.last_out) = (now.mono, now.mono);
            fx.frames.push(Out::Heartbeat);
        }
    }

    /// When the next tick is due.
    pub fn due(&self) -> Millis {
        let socket = &self.limits.socket;
        let ack = self.unacked.front().map(|sent| sent.at.plus(self.limits.flow.ack_ms));
        let silent = self.last_in.plus(socket.silent_ms);
        let first = silent.min(self.ping_due(socket.heartbeat_ms));
        [ack, self.token_ends].into_iter().flatten().fold(first, Millis::min)
    }

    /// A heartbeat is due when nothing went out for its time, or nothing came in: the client is to be heard, too.
    fn ping_due(&self, heartbeat_ms: u64) -> Millis {
        self.last_ping.max(self.last_in.min(self.last_out)).plus(heartbeat_ms)
    }

    /// A newer session of the same device has taken over.
    pub fn supersede(&mut self, fx: &mut Effects) {
        self.reconnect("newer_session", Close::NewerSession, 0, fx);
    }

    /// The node goes away: clients come back spread over this time.
    pub fn drain(&mut self, within_ms: u64, fx: &mut Effects) {
        let after = self.spread(within_ms);
        self.reconnect("drain", Close::Drain, after, fx);
    }

    /// The client did not read what was written in time. Nothing more can be said to it.
    pub fn stuck(&mut self, fx: &mut Effects) {
        self.close(Close::Slow, fx);
    }

    /// The new token was checked: until when it holds, or that it does not. (`Ok(None)`: without end.)
    pub fn renewed(&mut self, ends: Result<Option<Millis>, ()>, fx: &mut Effects) {
        match ends {
            Ok(ends) => {
                self.token_ends = ends;
                fx.frames.push(Out::of(&ServerFrame::Accepted { client_ref: None, id: None }));
            }
            Err(()) => self.close(Close::TokenInvalid, fx),
        }
    }

    /// Something the client asked for was refused.
    pub fn refuse(&mut self, client_ref: Option<Ref>, problem: Problem, fx: &mut Effects) {
        if self.closed.is_none() {
            fx.frames.push(Out::of(&ServerFrame::Error { client_ref, problem }));
        }
    }

    /// Why it was closed, once it is.
    pub fn closed(&self) -> Option<Close> {
        self.closed
    }

    /// Ends the session. What is on its way to it is left to the inbox.
    pub fn close(&mut self, close: Close, fx: &mut Effects) {
        if self.closed.is_none() {
            self.closed = Some(close);
            fx.close = Some(close);
            fx.read = None;
        }
    }

    fn reconnect(&mut self, reason: &str, close: Close, after_ms: u64, fx: &mut Effects) {
        if self.closed.is_none() {
            fx.frames.push(Out::of(&ServerFrame::Reconnect { after_ms, reason: reason.to_owned() }));
            self.close(close, fx);
        }
    }

    /// A moment within `ms` of this session's own: chance is the random session id, so the machine stays a function.
    fn spread(&self, ms: u64) -> u64 {
        let (_, random) = self.me.session.0.as_u64_pair();
        random % ms.max(1)
    }

    /// Asks for the next piece of history if one is wanted and none is under way.
    fn ask(&mut self, fx: &mut Effects) {
        let socket = &self.limits.socket;
        if self.paused && self.unacked.len() <= socket.unacked / 2 {
            self.paused = false;
        }
        if self.asked.is_some() || self.paused || self.closed.is_some() {
            return;
        }
        let room = socket.unacked.saturating_sub(self.unacked.len());
        let limit = socket.frame_items.min(room).max(1);
        if let Some((index, lane)) = self.lanes.iter_mut().enumerate().find(|(_, lane)| lane.wants_read()) {
            self.asked = Some((index as u16, limit as u32));
            fx.read = Some(Ask { partition: lane.partition, from: lane.ask(), limit });
        }
    }

    fn flush(&mut self, frames: Frames, now: Now, fx: &mut Effects) {
        if frames.finish(&mut fx.frames) {
            self.last_out = now.mono;
        }
    }

    fn keep(&mut self, sent: Sent) {
        self.unacked.push_back(sent);
        if self.unacked.len() >= self.limits.socket.unacked {
            self.paused = true;
        }
    }

    fn sent(&self, lane: usize, position: Position, message: &Message, round: u8, attempt: Attempt, now: Now) -> Sent {
        let (from, client_ref) = (message.from.clone(), message.client_ref.clone());
        let own = is_own(&self.me.user, message);
        Sent { lane: lane as u16, round, attempt, position, id: message.id, from, client_ref, at: now.mono, own }
    }

    /// That this happened to it; of the user's own nothing is said.
    fn fact(&self, sent: &Sent, what: What, now: Now) -> Option<Fact> {
        (!sent.own).then(|| fact(&self.me, self.lanes[usize::from(sent.lane)].partition, sent, what, now))
    }

    /// The cursor of an item: in its own lane up to it, in each other one up to what the client was sent or has.
    fn reached(&self) -> String {
        self.cursor(|lane| lane.last.max(lane.have)).to_string()
    }

    fn cursor(&self, at: impl Fn(&Lane) -> Position) -> Cursor {
        let begun = self.lanes.iter().map(|lane| (lane.partition, at(lane)));
        Cursor(begun.filter(|(_, position)| *position > Position::START).collect())
    }
}

fn fact(me: &Me, partition: Partition, sent: &Sent, what: What, now: Now) -> Fact {
    Fact {
        id: sent.id,
        inbox: Inbox { user: me.user.clone(), partition },
        position: sent.position,
        from: sent.from.clone(),
        client_ref: sent.client_ref.clone(),
        at: now.wall,
        round: sent.round,
        attempt: sent.attempt,
        device: Some(me.device.clone()),
        what,
    }
}
