//! The session against a world that does its worst: hints lost, repeated and out of order, slow reads, connections that
//! break anywhere, acknowledgements that never arrive. Never a gap, always in order, each id once in a session and once for
//! a client that keeps its cursor; in the end everything has arrived. The user is a mobile one with one inbox, or a business
//! user with several and what it wrote itself among the rest.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use proptest::prelude::*;
use schemas::{
    ConversationId, Cursor, Epoch, Inbox, Kind, MessageId, Millis, Partition, Position, Reason, Sender, State, Status,
    Timestamp, UserId, What,
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

/// What tells the messages of one lane from another's: the numbers of each begin here.
const LANE: u128 = 1_000_000;
const SARA: &str = "acme/business:sara";

#[derive(Debug, Clone, Copy)]
enum Op {
    /// In that lane; and whether it is the user's own.
    Grow(usize, bool),
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
    Disconnect {
        keep: usize,
        forget_stored: bool,
        own_cursor: bool,
    },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let n = 0usize..64;
    let op = prop_oneof![
        8 => (0usize..3, any::<bool>()).prop_map(|(lane, own)| Op::Grow(lane, own)),
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

/// A device: what it has seen, over all its connections and within the present one.
#[derive(Default)]
struct Phone {
    cursor: Option<Cursor>,
    seen: HashSet<MessageId>,
    /// Of each lane the numbers in the order in which they were first seen.
    order: Vec<Vec<u128>>,
    /// Where the present session stands in each lane.
    last: Vec<u64>,
    /// The last cursor of the present session.
    at: Cursor,
    here: HashSet<MessageId>,
    unacked_ids: Vec<MessageId>,
    claimed: HashSet<MessageId>,
}

struct Model {
    user: UserId,
    /// The inboxes of the partitions 0, 1, …
    inboxes: Vec<Vec<Entry>>,
    states: HashMap<MessageId, State>,
    epoch: u32,
    stored: Cursor,
    /// What the store would say after a crash that lost the last move.
    stored_before: Cursor,
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

fn lane_of(id: MessageId) -> (usize, u64) {
    let n = id.0.as_u128();
    ((n / LANE) as usize, (n % LANE) as u64)
}

fn entry_state(states: &HashMap<MessageId, State>, entry: &Entry) -> State {
    states.get(&entry.message.id).cloned().unwrap_or_default()
}

impl Model {
    fn new(lanes: usize) -> Self {
        let user = if lanes == 1 { mobile(PHONE) } else { SARA.parse().unwrap() };
        let begin = open(&user, Vec::new(), Millis(0), 0, &mut Effects::default());
        let phone = Phone { order: vec![Vec::new(); lanes], last: vec![0; lanes], ..Phone::default() };
        let mut model = Self {
            user,
            inboxes: vec![Vec::new(); lanes],
            states: HashMap::new(),
            epoch: 1,
            stored: Cursor::default(),
            stored_before: Cursor::default(),
            hints: Vec::new(),
            session: begin,
            ask: None,
            span: None,
            wire: VecDeque::new(),
            acks: VecDeque::new(),
            phone,
            mono: 0,
            tries: 0,
        };
        model.connect(true);
        model
    }

    fn now(&self) -> Now {
        Now { mono: Millis(self.mono), wall: Timestamp(self.mono as i64) }
    }

    fn tail(&self, lane: usize) -> Position {
        self.inboxes[lane].last().map_or(Position::START, |entry| entry.position)
    }

    fn all(&self) -> impl Iterator<Item = &Entry> {
        self.inboxes.iter().flatten()
    }

    fn nth(&self, i: usize) -> Option<Entry> {
        let count = self.all().count().max(1);
        self.all().nth(i % count).cloned()
    }

    fn is_own(&self, message: &Message) -> bool {
        crate::delivery::is_own(&self.user, message)
    }

    fn connect(&mut self, own_cursor: bool) {
        let have = match &self.phone.cursor {
            Some(cursor) if own_cursor => cursor.clone(),
            _ => {
                // A client that lost its cursor goes on from the stored one.
                self.phone.cursor = None;
                self.stored.clone()
            }
        };
        let at = |lane: usize| have.position(Partition(lane as u16));
        self.phone.last = (0..self.inboxes.len()).map(|lane| at(lane).n).collect();
        self.phone.at = have.clone();
        self.phone.here.clear();
        self.phone.unacked_ids.clear();
        // By its cursor the client says that it has all of these.
        let had = self.all().filter(|e| e.position <= have.position(e.inbox.partition)).map(|e| e.message.id);
        let had: Vec<_> = had.collect();
        self.phone.claimed.extend(had);
        (self.ask, self.span) = (None, None);
        self.wire.clear();
        self.acks.clear();
        self.tries += 1;
        let start = |lane: usize| {
            let partition = Partition(lane as u16);
            let (have, stored) = (at(lane), self.stored.position(partition));
            LaneStart { partition, have, stored: stored.min(have), tail: self.tail(lane), skip_delivered: false }
        };
        let (mut fx, lanes) = (Effects::default(), (0..self.inboxes.len()).map(start).collect());
        self.session = open(&self.user, lanes, Millis(self.mono), self.tries, &mut fx);
        self.apply(fx);
    }

    fn apply(&mut self, fx: Effects) {
        for out in fx.frames {
            let Out::Text { text, facts } = out else { continue };
            assert!(text.len() <= small_limits().socket.frame_bytes, "a frame ends at its bound");
            let frame: ServerFrame = serde_json::from_str(&text).unwrap();
            if let ServerFrame::Messages { items } = &frame {
                assert!(!items.is_empty() && items.len() <= small_limits().socket.frame_items);
                let me = Sender::User(self.user.party.clone());
                assert_eq!(
                    items.iter().filter(|i| i.from != me).map(|i| i.id).collect::<Vec<_>>(),
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
            self.stored_before = self.stored.clone();
            self.stored.join(&cursor);
        }
        if let Some(ask) = fx.read {
            assert!(self.ask.is_none() && self.span.is_none(), "one read at a time");
            self.ask = Some(ask);
        }
        assert!(self.session.unacked.len() <= small_limits().socket.unacked, "the window holds");
    }

    fn settle(&mut self, fact: &schemas::Fact) {
        assert_eq!(fact.inbox.user, self.user);
        let entry = self.all().find(|entry| entry.message.id == fact.id).unwrap();
        assert!(!self.is_own(&entry.message), "nothing is said about one's own");
        assert_eq!((fact.inbox.partition, fact.position), (entry.inbox.partition, entry.position));
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
            let (lane, n) = lane_of(item.id);
            let last = self.phone.last[lane];
            assert!(n > last, "in order and once: {n} after {last} in lane {lane}");
            for passed in last + 1..n {
                let state = entry_state(&self.states, &self.inboxes[lane][passed as usize - 1]);
                assert!(state.is_withdrawn(), "a gap: {passed} is missing before {n}");
            }
            self.phone.last[lane] = n;
            assert!(self.phone.here.insert(item.id), "once in a session");
            self.phone.unacked_ids.push(item.id);
            if self.phone.seen.insert(item.id) {
                self.phone.order[lane].push(item.id.0.as_u128());
            }
            let cursor = item.cursor.unwrap();
            for lane in 0..self.inboxes.len() {
                let partition = Partition(lane as u16);
                assert!(cursor.position(partition) >= self.phone.at.position(partition), "a cursor never goes back");
            }
            self.phone.at = cursor.clone();
            self.phone.cursor = Some(cursor);
        }
    }

    fn say(&mut self, frame: &ClientFrame) {
        self.acks.push_back(serde_json::to_string(frame).unwrap());
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Grow(lane, own) => {
                let lane = lane % self.inboxes.len();
                let prev = self.tail(lane);
                let position = prev.next(Epoch(self.epoch));
                let mut message = message_to(PHONE, lane as u128 * LANE + u128::from(position.n));
                let mut seq = None;
                if self.inboxes.len() > 1 {
                    message.kind = Kind::Chat(ConversationId(uuid::Uuid::from_u128(lane as u128)));
                    seq = Some(position.n);
                    if own {
                        message.from = Sender::User(self.user.party.clone());
                    } else {
                        message.from = Sender::User(message.to.party.clone());
                        message.to = self.user.clone();
                    }
                }
                let message: Arc<Message> = Arc::new(message);
                let inbox = Inbox { user: self.user.clone(), partition: Partition(lane as u16) };
                let (state, attempt) = (State::default(), Attempt(0));
                let (of, told) = (inbox.clone(), message.clone());
                self.hints.push(Hint { inbox: of, position, prev, seq, message: told, round: 0, attempt, state });
                let (one_way, recorded_at) = (position.n, Timestamp(0));
                self.inboxes[lane].push(Entry { inbox, position, prev, one_way, recorded_at, seq, message, end: None });
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
            Op::Retry(i) => {
                let Some(entry) = self.nth(i) else { return };
                let state = entry_state(&self.states, &entry);
                // Only what was handed over and never acknowledged is tried again.
                if state.status() == Status::Sent {
                    let (inbox, message, seq) = (entry.inbox, entry.message, entry.seq);
                    let (position, prev, attempt) = (entry.position, entry.prev, Attempt(1 + (i % 6) as u8));
                    self.offer(Hint { inbox, position, prev, seq, message, round: 0, attempt, state });
                }
            }
            Op::Withdraw(i) => {
                let Some(entry) = self.nth(i).filter(|entry| !self.is_own(&entry.message)) else { return };
                let state = self.states.entry(entry.message.id).or_default();
                if state.status() == Status::Pending {
                    let what = What::Failed(Reason::Expired);
                    state.merge(Past { at: Timestamp(0), what, round: 0, attempt: Attempt(0), device: None });
                }
            }
            Op::ReadRuns => {
                if let Some(ask) = self.ask.take() {
                    let inbox = &self.inboxes[usize::from(ask.partition.0)];
                    let rest = inbox.iter().filter(|entry| entry.position > ask.from).take(ask.limit);
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
                    self.stored = self.stored_before.clone();
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
        let tails: Vec<_> = (0..self.inboxes.len()).map(|lane| (Partition(lane as u16), self.tail(lane))).collect();
        self.with(|session, _, fx| session.on_tails(&tails, fx));
        for _ in 0..self.all().count() * 4 + 20 {
            for op in [Op::ReadRuns, Op::ReadAnswers, Op::Receive(3), Op::AckCursor, Op::AckArrives, Op::AckArrives] {
                self.step(op);
            }
        }
        while !self.acks.is_empty() {
            self.step(Op::AckArrives);
        }
    }
}

fn open(user: &UserId, lanes: Vec<LaneStart>, mono: Millis, session: u8, fx: &mut Effects) -> Session {
    let session = schemas::SessionId(uuid::Uuid::from_u128(u128::from(session)));
    let me = Arc::new(Me { user: user.clone(), device: "phone".parse().unwrap(), session });
    let start = Start { me, lanes, recovered: true, token_ends: None, limits: Arc::new(small_limits()) };
    Session::open(start, Now { mono, wall: Timestamp(mono.0 as i64) }, fx)
}

fn everything_arrives(lanes: usize, ops: Vec<Op>) -> Result<(), TestCaseError> {
    let mut model = Model::new(lanes);
    for op in ops {
        model.step(op);
    }
    model.finish();
    for entry in model.all() {
        let state = entry_state(&model.states, entry);
        let seen = model.phone.seen.contains(&entry.message.id);
        prop_assert!(seen || state.is_withdrawn(), "{} never arrived", entry.message.id);
        // One that was taken back while its hint was on the way may have been seen and stays failed.
        if seen && !state.is_withdrawn() && !model.is_own(&entry.message) {
            prop_assert!(
                state.status().is_reached(),
                "{} was acknowledged and is {}",
                entry.message.id,
                state.status()
            );
        }
    }
    prop_assert!(model.phone.order.iter().all(|lane| lane.is_sorted()), "first seen in order");
    prop_assert!(model.session.unacked.is_empty());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    // Invariants 4 and 5, P14.
    #[test]
    fn whatever_is_lost_the_phone_sees_everything_once_and_in_order(ops in ops()) {
        everything_arrives(1, ops)?;
    }

    // The same over the inboxes of a business user, whose cursor is a vector.
    #[test]
    fn whatever_is_lost_a_business_user_sees_all_its_inboxes_once_and_each_in_order(ops in ops()) {
        everything_arrives(3, ops)?;
    }
}
