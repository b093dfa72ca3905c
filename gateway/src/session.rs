//! The session: what one connection of one device is sent and says, as a machine that knows no socket and no clock.
//!
//! It promises that the inbox goes out in position order, each id once, and never past a gap: what a hint does not continue
//! is read from history first (invariant 5). It asks for reads and look-ups, hands back frames, facts and cursor moves in
//! [`Effects`], and leaves every act to the pump in `socket.rs`.

pub mod frames;
mod inbound;
mod lane;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, sync::Arc};

use schemas::{
    Cursor, DeviceId, Fact, Inbox, Limits, MessageId, Millis, Partition, Position, Problem, Ref, Sender, SessionId,
    Timestamp, UserId, What,
    frame::{Close, ServerFrame, WelcomeLimits},
    message::Message,
    port::Span,
    tier::Attempt,
    view::StatusChange,
};

use crate::delivery::Delivery;
use frames::{Frames, Out};
use lane::{Lane, Step};

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// What deadlines are counted in.
    pub mono: Millis,
    /// What facts carry.
    pub wall: Timestamp,
}

/// Whose session it is; shared with the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Me {
    /// The user.
    pub user: UserId,
    /// Its device.
    pub device: DeviceId,
    /// This connection.
    pub session: SessionId,
}

/// Where a session starts in one inbox of its user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneStart {
    /// The partition that writes the inbox.
    pub partition: Partition,
    /// Up to where the client says it has everything: taken as acknowledged and not sent again.
    pub have: Position,
    /// Up to where the store knew that already. What lies between gets its `Delivered` now: its acknowledgement may have
    /// died with a node.
    pub stored: Position,
    /// The inbox's end, read after the session was registered (rule 5).
    pub tail: Position,
    /// A new device passes over what the user's other devices have, up to the first that nobody has.
    pub skip_delivered: bool,
}

/// What a session begins with.
#[derive(Debug, Clone)]
pub struct Start {
    /// Whose it is.
    pub me: Arc<Me>,
    /// One for a mobile user; one per partition for a business user.
    pub lanes: Vec<LaneStart>,
    /// Whether everything since the client's cursor follows.
    pub recovered: bool,
    /// When the token ends.
    pub token_ends: Option<Millis>,
    /// The bounds.
    pub limits: Arc<Limits>,
}

/// A read of history that the session waits for. There is one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Which of its inboxes.
    pub partition: Partition,
    /// From just after this.
    pub from: Position,
    /// At most so many.
    pub limit: usize,
}

/// Ids whose messages the session no longer holds: history knows whose they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LookUp {
    /// Which.
    pub ids: Vec<MessageId>,
    /// What the client says of them: [`What::Delivered`] or [`What::Read`].
    pub what: What,
}

/// What is to be done after an input. The pump takes it out piece by piece.
#[derive(Debug, Default)]
pub struct Effects {
    /// Frames to write, in order; each brings the facts that become true when it is handed to the socket.
    pub frames: Vec<Out>,
    /// Facts that are true now.
    pub facts: Vec<Fact>,
    /// The device's cursor as it stands now, if it moved.
    pub cursor: Option<Cursor>,
    /// History to read.
    pub read: Option<Ask>,
    /// Ids to look up.
    pub look_up: Option<LookUp>,
    /// A new token to check.
    pub verify: Option<String>,
    /// The socket is to be closed, after the frames.
    pub close: Option<Close>,
}

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
                if self.lanes.len() == 1 {
                    frames.push(delivery.json(), fact);
                } else {
                    let cursor = self.cursor(|lane| lane.last);
                    frames.push(&crate::delivery::render(&hint.message, &hint.state, &cursor), fact);
                }
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
                fx.facts.push(fact);
            }
            return;
        }
        // Only a retry speaks of what history has for certain: a first delivery of an earlier place is a late owner's
        // (rule 2), or a repeat of what is being acknowledged anyway.
        let retry = hint.round > 0 || hint.attempt > Attempt::default();
        if retry && !hint.state.is_withdrawn() {
            let sent = self.sent(index, hint.position, &hint.message, hint.round, hint.attempt, now);
            let delivered = self.fact(&sent, What::Delivered, now);
            fx.facts.push(delivered);
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
            if !self.lanes[index].pass(entry.position, state) {
                if self.lanes[index].is_had(entry.position)
                    && crate::delivery::is_acknowledged_by_cursor(entry, state, now.wall)
                {
                    let (round, attempt) = (state.round(), state.attempt());
                    let had = self.sent(index, entry.position, &entry.message, round, attempt, now);
                    let delivered = self.fact(&had, What::Delivered, now);
                    fx.facts.push(delivered);
                }
                moved = true;
                continue;
            }
            moved = true;
            // Its time passed while nobody was here: the sweep will say so, and nobody is shown it meanwhile.
            if entry.message.is_expired(now.wall) && !state.status().is_reached() {
                continue;
            }
            let cursor = match self.lanes.as_slice() {
                [lane] => Cursor::at(lane.partition, entry.position),
                _ => self.cursor(|lane| lane.last),
            };
            let sent = self.sent(index, entry.position, &entry.message, state.round(), state.attempt(), now);
            let fact = self.fact(&sent, What::Sent, now);
            frames.push(&crate::delivery::render(&entry.message, state, &cursor), fact);
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

    /// Another of the user's devices read these.
    pub fn on_read_elsewhere(&mut self, ids: Vec<MessageId>, fx: &mut Effects) {
        if self.closed.is_none() && !ids.is_empty() {
            fx.frames.push(Out::of(&ServerFrame::Read { ids, conversation_id: None, up_to: None, by: None }));
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
        Sent { lane: lane as u16, round, attempt, position, id: message.id, from, client_ref, at: now.mono }
    }

    fn fact(&self, sent: &Sent, what: What, now: Now) -> Fact {
        fact(&self.me, self.lanes[usize::from(sent.lane)].partition, sent, what, now)
    }

    fn cursor(&self, at: impl Fn(&Lane) -> Position) -> Cursor {
        Cursor(self.lanes.iter().map(|lane| (lane.partition, at(lane))).collect())
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
