//! The session against a world that does its worst: hints lost, repeated and out of order, slow reads, connections that
//! break anywhere, acknowledgements that never arrive. Never a gap, always in order, each id once in a session and once for
//! a client that keeps its cursor; in the end everything has arrived.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use proptest::prelude::*;
use schemas::{
    Cursor, Epoch, Inbox, MessageId, Millis, Partition, Position, Reason, State, Status, Timestamp, What,
    fact::Past,
    frame::{ClientFrame, Close, ServerFrame},
    message::Message,
    port::{Entry, Hint, Span},
    tier::Attempt,
};

use super::{Ask, Effects, LaneStart, Me, Now, Out, Session, Start};
use crate::{
    delivery::Delivery,
    testing::{PHONE, message_to, mobile, small_limits},
};

const P: Partition = Partition(0);

#[derive(Debug, Clone, Copy)]
enum Op {
    Grow,
    NewOwner,
    Hint(usize),
    HintTwice(usize),
    LoseHint(usize),
    Overflow,
    Retry(usize),
    Withdraw(usize),
    ReadRuns,
    ReadAnswers,
    Receive(usize),
    AckCursor,
    AckIds,
    AckArrives,
    Pass(u64),
    Disconnect { keep: usize, forget_stored: bool, own_cursor: bool },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let n = 0usize..64;
    let op = prop_oneof![
        8 => Just(Op::Grow),
        1 => Just(Op::NewOwner),
        8 => n.clone().prop_map(Op::Hint),
        2 => n.clone().prop_map(Op::HintTwice),
        2 => n.clone().prop_map(Op::LoseHint),
        1 => Just(Op::Overflow),
        2 => n.clone().prop_map(Op::Retry),
        1 => n.prop_map(Op::Withdraw),
        5 => Just(Op::ReadRuns),
        5 => Just(Op::ReadAnswers),
        6 => (0usize..4).prop_map(Op::Receive),
        4 => Just(Op::AckCursor),
        2 => Just(Op::AckIds),
        5 => Just(Op::AckArrives),
        2 => (0u64..600).prop_map(Op::Pass),
        2 => (0usize..4, any::<bool>(), any::<bool>())
            .prop_map(|(keep, forget_stored, own_cursor)| Op::Disconnect { keep, forget_stored, own_cursor }),
    ];
    proptest::collection::vec(op, 0..160)
}

/// A phone: what it has seen, over all its connections and within the present one.
#[derive(Default)]
struct Phone {
    cursor: Option<Cursor>,
    seen: HashSet<MessageId>,
    /// Numbers in the order in which they were first seen.
    order: Vec<u128>,
    /// Where the present session stands.
    last: u64,
    here: HashSet<MessageId>,
    unacked_ids: Vec<MessageId>,
    claimed: HashSet<MessageId>,
}

struct Model {
    inbox: Vec<Entry>,
    states: HashMap<MessageId, State>,
    epoch: u32,
    stored: Position,
    /// What the store would say after a crash that lost the last move.
    stored_before: Position,
    hints: Vec<Hint>,
    session: Session,
    ask: Option<Ask>,
    span: Option<Span>,
    wire: VecDeque<ServerFrame>,
    acks: VecDeque<String>,
    phone: Phone,
    mono: u64,
    tries: u8,
}

fn entry_state(states: &HashMap<MessageId, State>, entry: &Entry) -> State {
    states.get(&entry.message.id).cloned().unwrap_or_default()
}

impl Model {
    fn new() -> Self {
        let session = open(&mut Effects::default(), Position::START, Position::START, Position::START, 0, 0);
        let mut model = Self {
            inbox: Vec::new(),
            states: HashMap::new(),
            epoch: 1,
            stored: Position::START,
            stored_before: Position::START,
            hints: Vec::new(),
            session,
            ask: None,
            span: None,
            wire: VecDeque::new(),
            acks: VecDeque::new(),
            phone: Phone::default(),
            mono: 0,
            tries: 0,
        };
        model.connect(true);
        model
    }

    fn now(&self) -> Now {
        Now { mono: Millis(self.mono), wall: Timestamp(self.mono as i64) }
    }

    fn tail(&self) -> Position {
        self.inbox.last().map_or(Position::START, |entry| entry.position)
    }

    fn connect(&mut self, own_cursor: bool) {
        let have = match &self.phone.cursor {
            Some(cursor) if own_cursor => cursor.position(P),
            _ => {
                // A client that lost its cursor goes on from the stored one.
                self.phone.cursor = None;
                self.stored
            }
        };
        self.phone.last = have.n;
        self.phone.here.clear();
        self.phone.unacked_ids.clear();
        // By its cursor the client says that it has all of these.
        self.phone.claimed.extend(self.inbox.iter().filter(|e| e.position <= have).map(|e| e.message.id));
        (self.ask, self.span) = (None, None);
        self.wire.clear();
        self.acks.clear();
        self.tries += 1;
        let mut fx = Effects::default();
        self.session = open(&mut fx, have, self.stored, self.tail(), self.mono, self.tries);
        self.apply(fx);
    }

    fn apply(&mut self, fx: Effects) {
        for out in fx.frames {
            let Out::Text { text, facts } = out else { continue };
            assert!(text.len() <= small_limits().socket.frame_bytes, "a frame ends at its bound");
            let frame: ServerFrame = serde_json::from_str(&text).unwrap();
            if let ServerFrame::Messages { items } = &frame {
                assert!(!items.is_empty() && items.len() <= small_limits().socket.frame_items);
                assert_eq!(
                    items.iter().map(|i| i.id).collect::<Vec<_>>(),
                    facts.iter().map(|f| f.id).collect::<Vec<_>>()
                );
            }
            facts.iter().for_each(|fact| self.settle(fact));
            self.wire.push_back(frame);
        }
        for fact in &fx.facts {
            if fact.what == What::Delivered {
                assert!(self.phone.claimed.contains(&fact.id), "delivered is only what the client said it has");
            }
            self.settle(fact);
        }
        if let Some(cursor) = fx.cursor {
            self.stored_before = self.stored;
            self.stored = self.stored.max(cursor.position(P));
        }
        if let Some(ask) = fx.read {
            assert!(self.ask.is_none() && self.span.is_none(), "one read at a time");
            self.ask = Some(ask);
        }
        assert!(self.session.unacked.len() <= small_limits().socket.unacked, "the window holds");
    }

    fn settle(&mut self, fact: &schemas::Fact) {
        self.states.entry(fact.id).or_default().merge(fact.into());
    }

    fn with(&mut self, act: impl FnOnce(&mut Session, Now, &mut Effects)) {
        let (mut fx, now) = (Effects::default(), self.now());
        act(&mut self.session, now, &mut fx);
        self.apply(fx);
    }

    fn offer(&mut self, hint: Hint) {
        self.with(|session, now, fx| session.on_hints([Arc::new(Delivery::new(hint))], false, now, fx));
    }

    fn receive(&mut self) {
        let Some(frame) = self.wire.pop_front() else { return };
        let ServerFrame::Messages { items } = frame else { return };
        for item in items {
            let n = item.id.0.as_u128() as u64;
            assert!(n > self.phone.last, "in order and once: {n} after {}", self.phone.last);
            for passed in self.phone.last + 1..n {
                let state = entry_state(&self.states, &self.inbox[passed as usize - 1]);
                assert!(state.is_withdrawn(), "a gap: {passed} is missing before {n}");
            }
            self.phone.last = n;
            assert!(self.phone.here.insert(item.id), "once in a session");
            self.phone.unacked_ids.push(item.id);
            if self.phone.seen.insert(item.id) {
                self.phone.order.push(item.id.0.as_u128());
            }
            let mut cursor = self.phone.cursor.take().unwrap_or_default();
            cursor.join(&item.cursor.unwrap());
            self.phone.cursor = Some(cursor);
        }
    }

    fn say(&mut self, frame: &ClientFrame) {
        self.acks.push_back(serde_json::to_string(frame).unwrap());
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Grow => {
                let prev = self.tail();
                let position = prev.next(Epoch(self.epoch));
                let message: Arc<Message> = Arc::new(message_to(PHONE, u128::from(position.n)));
                let inbox = Inbox { user: mobile(PHONE), partition: P };
                self.hints.push(Hint {
                    inbox: inbox.clone(),
                    position,
                    prev,
                    message: message.clone(),
                    round: 0,
                    attempt: Attempt(0),
                    state: State::default(),
                });
                let (one_way, recorded_at) = (position.n, Timestamp(0));
                self.inbox.push(Entry { inbox, position, prev, one_way, recorded_at, message, end: None });
            }
            Op::NewOwner => self.epoch += 1,
            Op::Hint(i) if !self.hints.is_empty() => {
                let hint = self.hints.remove(i % self.hints.len());
                self.offer(hint);
            }
            Op::HintTwice(i) if !self.hints.is_empty() => {
                let hint = self.hints[i % self.hints.len()].clone();
                self.offer(hint);
            }
            Op::LoseHint(i) if !self.hints.is_empty() => {
                let i = i % self.hints.len();
                self.hints.remove(i);
            }
            Op::Overflow => {
                self.hints.clear();
                self.with(|session, now, fx| session.on_hints([], true, now, fx));
            }
            Op::Retry(i) if !self.inbox.is_empty() => {
                let entry = self.inbox[i % self.inbox.len()].clone();
                let state = entry_state(&self.states, &entry);
                // Only what was handed over and never acknowledged is tried again.
                if state.status() == Status::Sent {
                    let (inbox, message) = (entry.inbox, entry.message);
                    let (position, prev, attempt) = (entry.position, entry.prev, Attempt(1 + (i % 6) as u8));
                    self.offer(Hint { inbox, position, prev, message, round: 0, attempt, state });
                }
            }
            Op::Withdraw(i) if !self.inbox.is_empty() => {
                let id = self.inbox[i % self.inbox.len()].message.id;
                let state = self.states.entry(id).or_default();
                if state.status() == Status::Pending {
                    let what = What::Failed(Reason::Expired);
                    state.merge(Past { at: Timestamp(0), what, round: 0, attempt: Attempt(0), device: None });
                }
            }
            Op::ReadRuns => {
                if let Some(ask) = self.ask.take() {
                    let rest = self.inbox.iter().filter(|entry| entry.position > ask.from).take(ask.limit);
                    let entries = rest.map(|entry| (entry.clone(), entry_state(&self.states, entry))).collect();
                    self.span = Some(Span { entries, passed_by_retention: false });
                }
            }
            Op::ReadAnswers => {
                if let Some(span) = self.span.take() {
                    self.with(|session, now, fx| session.on_span(&span, now, fx));
                }
            }
            Op::Receive(n) => (0..=n).for_each(|_| self.receive()),
            Op::AckCursor => {
                if let Some(cursor) = self.phone.cursor.clone() {
                    self.say(&ClientFrame::Ack { cursor: Some(cursor), ids: Vec::new() });
                }
            }
            Op::AckIds => {
                let ids = std::mem::take(&mut self.phone.unacked_ids);
                if !ids.is_empty() {
                    self.say(&ClientFrame::Ack { cursor: None, ids });
                }
            }
            Op::AckArrives => {
                if let Some(text) = self.acks.pop_front() {
                    let seen = self.phone.seen.clone();
                    self.phone.claimed.extend(seen);
                    self.with(|session, now, fx| session.on_text(&text, now, fx));
                }
            }
            Op::Pass(ms) => {
                self.mono += ms;
                if self.session.due().0 <= self.mono {
                    self.with(Session::on_tick);
                }
            }
            Op::Disconnect { keep, forget_stored, own_cursor } => {
                self.wire.truncate(keep);
                while !self.wire.is_empty() {
                    self.receive();
                }
                if forget_stored {
                    self.stored = self.stored_before;
                }
                self.connect(own_cursor);
            }
            _ => {}
        }
        if self.session.closed().is_some() {
            while !self.wire.is_empty() {
                self.receive();
            }
            assert_eq!(self.session.closed(), Some(Close::NoAck), "nothing else ends a session here");
            self.connect(true);
        }
    }

    /// Lets everything come to rest.
    fn finish(&mut self) {
        let tail = self.tail();
        self.with(|session, _, fx| session.on_tails(&[(P, tail)], fx));
        for _ in 0..self.inbox.len() * 4 + 20 {
            for op in [Op::ReadRuns, Op::ReadAnswers, Op::Receive(3), Op::AckCursor, Op::AckArrives, Op::AckArrives] {
                self.step(op);
            }
        }
        while !self.acks.is_empty() {
            self.step(Op::AckArrives);
        }
    }
}

fn open(fx: &mut Effects, have: Position, stored: Position, tail: Position, mono: u64, session: u8) -> Session {
    let lane = LaneStart { partition: P, have, stored: stored.min(have), tail, skip_delivered: false };
    let session = schemas::SessionId(uuid::Uuid::from_u128(u128::from(session)));
    let me = Arc::new(Me { user: mobile(PHONE), device: "phone".parse().unwrap(), session });
    let start = Start { me, lanes: vec![lane], recovered: true, token_ends: None, limits: Arc::new(small_limits()) };
    Session::open(start, Now { mono: Millis(mono), wall: Timestamp(mono as i64) }, fx)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    // Invariants 4 and 5, P14.
    #[test]
    fn whatever_is_lost_the_phone_sees_everything_once_and_in_order(ops in ops()) {
        let mut model = Model::new();
        for op in ops {
            model.step(op);
        }
        model.finish();
        for entry in &model.inbox {
            let state = entry_state(&model.states, entry);
            let seen = model.phone.seen.contains(&entry.message.id);
            prop_assert!(seen || state.is_withdrawn(), "{} never arrived", entry.message.id);
            // One that was taken back while its hint was on the way may have been seen and stays failed.
            if seen && !state.is_withdrawn() {
                prop_assert!(state.status().is_reached(), "{} was acknowledged and is {}", entry.message.id, state.status());
            }
        }
        prop_assert!(model.phone.order.is_sorted(), "first seen in order");
        prop_assert!(model.session.unacked.is_empty());
    }
}
