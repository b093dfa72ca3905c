//! Chat: what is said and asked in conversations, applied by their owner in the order of the log, each with its places in the
//! inboxes of both sides and its number in the thread. Pure, as all of [`super`] is: every rule of who may what stands in
//! [`schemas::conversation`].

use std::sync::Arc;

use schemas::{
    Conversation, ConversationId, Epoch, Fact, Inbox, Kind, Message, MessageId, Offset, Partition, Position, Reason,
    Sender, Timestamp, UserId, What,
    conversation::{Act, Applied, Change, ChatCommand, Command, Note, Original, Refused, Side, Turn, UpTo, first_of},
    port::{Counted, Entry, Hint, Signal},
    tier::Attempt,
};

use super::{Placing, Plan, again, conflict};
use crate::item::{Asked, Fresh, Marked, Step};

/// Where something happens: a partition, and since which takeover it is ours.
#[derive(Debug, Clone, Copy)]
pub(super) struct Here {
    pub(super) partition: Partition,
    pub(super) epoch: Epoch,
    /// Where its record stands in the lane.
    pub(super) offset: Option<Offset>,
    /// When it was accepted.
    pub(super) accepted_at: Timestamp,
}

/// The users whose inboxes something may be written to: who holds them for it holds all that it needs.
pub(crate) fn concerned(work: Concerned<'_>, row: Option<&Conversation>) -> Vec<UserId> {
    let mut users: Vec<UserId> =
        row.map_or_else(Vec::new, |row| Side::BOTH.into_iter().map(|side| row.user(side)).collect());
    match work {
        Concerned::Message(message) => {
            users.push(message.to.clone());
            users.extend(person(message.tenant(), &message.from));
        }
        Concerned::Command(command) => {
            users.extend([command.pair.mobile(), command.pair.business()]);
            users.extend(person(&command.pair.tenant, &command.by));
            if let Command::Assign { to } = &command.command {
                users.push(UserId::business(command.pair.tenant.clone(), to.clone()));
            }
        }
    }
    users.sort_unstable();
    users.dedup();
    users
}

/// What is said or asked.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Concerned<'a> {
    /// A chat message.
    Message(&'a Message),
    /// A command.
    Command(&'a ChatCommand),
}

impl Concerned<'_> {
    /// Its name.
    pub(crate) fn id(self) -> MessageId {
        match self {
            Self::Message(message) => message.id,
            Self::Command(command) => command.id,
        }
    }
}

fn person(tenant: &schemas::Tenant, sender: &Sender) -> Option<UserId> {
    match sender {
        Sender::Server => None,
        Sender::User(party) => Some(UserId { tenant: tenant.clone(), party: party.clone() }),
    }
}

/// How much later than all that was applied something that stands before it in the lane can seem to be accepted, ms: clocks of
/// doors differ, and what is beyond this is decided by the row as it is.
const LATER_MS: u64 = 5_000;

/// Whether what stands there in the lane was decided by the owner that wrote this row, or by one before it.
fn is_decided(row: &Conversation, here: Here) -> bool {
    let covers = |(applied, offset): (Applied, Offset)| applied.covers(offset, here.accepted_at, LATER_MS);
    row.applied.zip(here.offset).is_some_and(covers)
}

/// How far the lane is applied with what stands there.
fn applied_with(row: &Conversation, here: Here) -> Option<Applied> {
    let accepted_at = row.applied.map_or(here.accepted_at, |before| before.accepted_at.max(here.accepted_at));
    here.offset.map(|offset| Applied { offset, accepted_at }).or(row.applied)
}

impl Placing<'_> {
    /// A chat message of this conversation.
    #[allow(clippy::needless_pass_by_value, reason = "it is done with here")]
    pub(super) fn say(&mut self, fresh: Fresh, id: ConversationId, here: Here, plan: &mut Plan) {
        let message = fresh.message.clone();
        let inbox = Inbox { user: message.to.clone(), partition: here.partition };
        let row = self.threads.row(id, here.epoch).cloned();
        // A turn beyond the thread's end is one that a late owner wrote: nobody will find it there.
        let end = row.as_ref().map_or(0, |row| row.last_seq);
        let said =
            self.found.said.get(&message.id).filter(|shown| shown.turn.conversation != id || shown.turn.seq <= end);
        if let Some(shown) = said {
            if shown.turn.message.fingerprint != message.fingerprint {
                plan.steps.push(Step::Bury(Box::new(conflict(&fresh, inbox, self.now))));
            } else if self.complete(message.id, id, here, plan) {
                // Offered with the entry that it had not yet.
            } else if fresh.replay {
                // Recorded before a crash, and perhaps not followed up: its state tells.
                plan.steps.push(Step::Again(Box::new(again(self.lane, &fresh, inbox, Position::START, self.now))));
            } else {
                plan.repeats += 1;
            }
            return;
        }
        if fresh.conflict {
            // The first under this name was met within the window and is on its way to history.
            plan.steps.push(Step::Bury(Box::new(conflict(&fresh, inbox, self.now))));
            return;
        }
        if let Some(reason) = fresh.end {
            plan.steps.push(self.refusal(&message, here, reason));
            return;
        }
        let opened = || first_of(&message).map(|pair| Conversation::open(pair, here.partition, here.epoch, self.now));
        let Some(mut row) = row.or_else(opened) else {
            plan.steps.push(self.refusal(&message, here, Refused::Stranger.reason()));
            return;
        };
        let decided = fresh.replay && is_decided(&row, here);
        let act = Act::Message { id: message.id, content: &message.content };
        match row.apply(&message.from, &act, self.chat, here.epoch, self.now) {
            Ok(_) if !decided => {}
            // It was refused when it came first, by the row as it was then, and has left no turn. It stays so.
            Ok(_) => return plan.steps.push(self.refusal(&message, here, Reason::NotPermitted)),
            Err(refused) => return plan.steps.push(self.refusal(&message, here, refused.reason())),
        }
        let side = match &message.from {
            Sender::User(party) => Side::of(party),
            // The rules let no server key write.
            Sender::Server => return,
        };
        // Who answers for the business is known only now.
        let to = row.user(side.other());
        let message = if message.to == to { message } else { Arc::new(Message { to, ..Message::clone(&message) }) };
        let copies = person(message.tenant(), &message.from);
        self.turn(row, message, None, copies.into_iter().collect(), here, plan);
    }

    /// A command.
    pub(super) fn asked(&mut self, asked: &Asked, here: Here, plan: &mut Plan) {
        let command = &asked.command;
        let id = command.pair.id();
        if self.complete(command.id, id, here, plan) {
            plan.repeats += 1;
            return;
        }
        if let Some(known) = self.found.known.get(&command.id).filter(|_| command.command.is_named()) {
            let same = known.fingerprint == command.fingerprint;
            if same && asked.replay {
                let inbox = Inbox { user: command.pair.mobile(), partition: here.partition };
                plan.steps.push(Step::Again(Box::new(schemas::record::Again {
                    id: command.id,
                    lane: self.lane,
                    inbox,
                    position: known.position.unwrap_or_default(),
                    round: 0,
                    attempt: Attempt::default(),
                    due_at: self.now,
                })));
            } else {
                plan.repeats += 1;
            }
            return;
        }
        if asked.conflict || self.complete_note(command, here, plan) {
            plan.repeats += 1;
            return;
        }
        let (mut row, opened) = match self.threads.row(id, here.epoch).cloned() {
            Some(row) => (row, false),
            None if command.command == Command::Open => {
                (Conversation::open(command.pair.clone(), here.partition, here.epoch, self.now), true)
            }
            None => {
                plan.steps.push(self.refused(command, here, &Refused::Stranger));
                return;
            }
        };
        let about = command.command.about();
        let original = about.and_then(|of| self.original(id, here.epoch, of));
        let mark = self.mark(command, &row, original.as_ref());
        let before = row.clone();
        let act = command.command.act(original.as_ref(), mark);
        let reads = matches!(command.command, Command::Read { .. });
        let decided = asked.replay && is_decided(&before, here);
        let change = match row.apply(&command.by, &act, self.chat, here.epoch, self.now) {
            // An edit or a deletion would have left its turn: it was refused.
            Ok(Change::Turn(None)) if decided => {
                plan.steps.push(self.refused(command, here, &Refused::NotPermitted));
                return;
            }
            // It was so when it came first, or was refused: what came after it stands.
            Ok(_) if decided => Change::Nothing,
            Ok(change) => change,
            // It was permitted when it came first, and what followed may not have been told.
            Err(_) if reads && asked.replay => return self.tell_untold(&row, here, plan),
            Err(refused) => {
                plan.steps.push(self.refused(command, here, &refused));
                return;
            }
        };
        match &change {
            Change::Nothing if opened => self.changed(row.clone(), here, plan),
            // As it was decided before, whatever it would come to now.
            Change::Nothing => row = before,
            Change::Row | Change::Marked { .. } => self.changed(row.clone(), here, plan),
            Change::Own(note) => {
                self.changed(row.clone(), here, plan);
                let message = Arc::new(command.message(&row, Some(note)));
                self.place(message, None, None, here, plan);
            }
            Change::Turn(note) => {
                let message = Arc::new(command.message(&row, note.as_ref()));
                let mut copies: Vec<_> = person(&command.pair.tenant, &command.by).into_iter().collect();
                if matches!(note, Some(Note::Assigned { .. } | Note::Closed | Note::Reopened)) {
                    copies.extend([before.user(Side::Business), row.user(Side::Business)]);
                }
                if let Some(mut original) = original.clone() {
                    original.edits += u32::from(matches!(command.command, Command::Edit { .. }));
                    original.deleted |= matches!(command.command, Command::Delete { .. });
                    self.threads.note(original, here.epoch, self.write);
                }
                let of = original.map(|original| original.seq);
                self.turn(row.clone(), message, of, copies, here, plan);
            }
        }
        if reads && asked.replay {
            self.tell_untold(&row, here, plan);
        } else if let Change::Marked { side, after, to, seq } = change {
            self.tell_read(&row, side, (after, to, seq), here, plan);
        }
    }

    /// A turn that an owner before us wrote stands, and some of its entries do not: they are written now. True: also that of
    /// its recipient, who is offered it so.
    fn complete(&mut self, of: MessageId, id: ConversationId, here: Here, plan: &mut Plan) -> bool {
        let end = self.threads.row(id, here.epoch).map_or(0, |row| row.last_seq);
        // What is being written under this takeover will stand.
        let theirs = |it: &&Counted| it.epoch < here.epoch && !it.missing.is_empty();
        let Some(Counted { turn: Some(turn), missing, .. }) = self.found.counted.get(&of).filter(theirs) else {
            return false;
        };
        if turn.conversation != id || turn.seq > end {
            return false;
        }
        for inbox in missing {
            let copy = (inbox.user != turn.message.to).then(|| inbox.user.clone());
            self.place(turn.message.clone(), copy, Some(turn.seq), here, plan);
        }
        plan.schedule.completed.push((here.partition, turn.clone()));
        missing.iter().any(|inbox| inbox.user == turn.message.to)
    }

    /// The row that an owner before us wrote tells of a note to somebody's own devices: what it says is done, and where its entry
    /// is missing it is written now. False: no row tells of it.
    fn complete_note(&mut self, command: &ChatCommand, here: Here, plan: &mut Plan) -> bool {
        let note = command.command.own().zip(self.found.counted.get(&command.id).filter(|it| it.turn.is_none()));
        let Some((note, counted)) = note else { return false };
        let Some(row) = self.threads.row(command.pair.id(), here.epoch).cloned() else { return false };
        // What is being written under this takeover will stand.
        for inbox in counted.missing.iter().filter(|_| counted.epoch < here.epoch) {
            let message = Message { to: inbox.user.clone(), ..command.message(&row, Some(&note)) };
            self.place(Arc::new(message), None, None, here, plan);
        }
        true
    }

    /// A message that is edited, deleted or read up to: as it was changed lately, or as history has it.
    fn original(&mut self, id: ConversationId, epoch: Epoch, of: MessageId) -> Option<Original> {
        let lately = self.threads.lately(id, epoch, of).cloned();
        lately.or_else(|| self.found.said.get(&of)?.original())
    }

    /// What `Read` stands for, and at which turn.
    fn mark(&self, command: &ChatCommand, row: &Conversation, original: Option<&Original>) -> (u64, u64) {
        let (Command::Read { up_to }, Some(side)) = (&command.command, command.side()) else { return (0, 0) };
        let (seq, counts) = match up_to {
            UpTo::Seq(seq) => (*seq, self.found.counts.get(&(row.id, *seq)).copied()),
            UpTo::Id(of) => {
                let turn = self.found.said.get(of).map(|shown| &shown.turn).filter(|turn| turn.conversation == row.id);
                let here = original.filter(|original| original.conversation == row.id);
                let seq = turn.map(|turn| turn.seq).or(here.map(|original| original.seq));
                (seq.unwrap_or(0), turn.map(|turn| (turn.to_mobile, turn.to_business)))
            }
        };
        (ChatCommand::mark(side, row.half(side), row.last_seq, seq, counts), seq)
    }

    /// After a crash the other side of each is told all that it was not told yet.
    fn tell_untold(&self, row: &Conversation, here: Here, plan: &mut Plan) {
        for side in Side::BOTH {
            let half = row.half(side);
            if half.told < half.read {
                self.tell_read(row, side, (half.told, half.read, half.read_seq), here, plan);
            }
        }
    }

    /// The other side is told what was read, and so are the reader's own other devices.
    fn tell_read(
        &self,
        row: &Conversation,
        side: Side,
        (after, to, seq): (u64, u64, u64),
        here: Here,
        plan: &mut Plan,
    ) {
        let (conversation, Here { partition, epoch, .. }) = (row.id, here);
        let marked = Marked { conversation, partition, epoch, side, after, to, seq };
        plan.steps.push(Step::Marked(Box::new(marked)));
        let by = row.user(side).party;
        let signal = Signal::Read { conversation, up_to: seq, by };
        let told = Side::BOTH.map(|side| (row.user(side), signal.clone()));
        plan.steps.push(Step::Tell(partition, told.into_iter().collect()));
    }

    /// The row is written with this batch.
    fn changed(&mut self, row: Conversation, here: Here, plan: &mut Plan) {
        let row = Conversation { applied: applied_with(&row, here), ..row };
        let signal = Signal::Changed { conversation: row.id, version: row.version };
        let told = Side::BOTH.map(|side| (row.user(side), signal.clone()));
        plan.steps.push(Step::Tell(here.partition, told.into_iter().collect()));
        plan.schedule.conversations.retain(|there| there.id != row.id);
        plan.schedule.conversations.push(row.clone());
        self.threads.put(row, here.epoch, self.write);
    }

    /// The row, a turn, and an entry for both sides.
    #[allow(clippy::needless_pass_by_value, reason = "it is done with here")]
    fn turn(
        &mut self,
        row: Conversation,
        message: Arc<Message>,
        of: Option<u64>,
        mut copies: Vec<UserId>,
        here: Here,
        plan: &mut Plan,
    ) {
        let turn = Turn {
            conversation: row.id,
            seq: row.last_seq,
            to_mobile: row.mobile.to,
            to_business: row.business.to,
            version: row.version,
            recorded_at: self.now,
            message: message.clone(),
            of,
        };
        let seq = Some(turn.seq);
        if matches!(message.kind, Kind::Chat(_)) {
            self.threads.note(turn.original(0, false), here.epoch, self.write);
        }
        plan.schedule.turns.push(turn);
        self.changed(row, here, plan);
        copies.sort_unstable();
        copies.dedup();
        copies.retain(|user| *user != message.to);
        self.place(message.clone(), None, seq, here, plan);
        for user in copies {
            self.place(message.clone(), Some(user), seq, here, plan);
        }
    }

    /// An entry in its recipient's inbox, or a copy in another's, and the offer to whoever is there.
    fn place(&mut self, message: Arc<Message>, copy: Option<UserId>, seq: Option<u64>, here: Here, plan: &mut Plan) {
        let user = copy.unwrap_or_else(|| message.to.clone());
        let inbox = Inbox { user, partition: here.partition };
        // The batch holds it; giving a place lets go of one hold.
        let unknown = self.tails.pin(&inbox, here.epoch);
        debug_assert!(!unknown, "the end of an inbox of chat was not read");
        let given = self.tails.give(&inbox, here.epoch, false, self.write);
        let (position, prev, recorded_at) = (given.position, given.prev, self.now);
        let (of, one_way) = (inbox.clone(), given.one_way);
        plan.entries.push(Entry {
            inbox: of,
            position,
            prev,
            one_way,
            recorded_at,
            seq,
            message: message.clone(),
            end: None,
        });
        let (round, attempt, state) = (0, Attempt::default(), Default::default());
        plan.steps.push(Step::Offer(Box::new(Hint { inbox, position, prev, seq, message, round, attempt, state })));
    }

    /// What was accepted and is refused now: never tried again (R4.8), and known by its fact alone.
    fn refusal(&self, message: &Message, here: Here, reason: Reason) -> Step {
        let inbox = Inbox { user: message.to.clone(), partition: here.partition };
        Step::Refuse(Box::new(Fact {
            id: message.id,
            inbox,
            position: Position::START,
            from: message.from.clone(),
            client_ref: message.client_ref.clone(),
            at: self.now,
            round: 0,
            attempt: Attempt::default(),
            device: None,
            what: What::Failed(reason),
        }))
    }

    fn refused(&self, command: &ChatCommand, here: Here, refused: &Refused) -> Step {
        let inbox = Inbox { user: command.pair.mobile(), partition: here.partition };
        Step::Refuse(Box::new(Fact {
            id: command.id,
            inbox,
            position: Position::START,
            from: command.by.clone(),
            client_ref: command.client_ref.clone(),
            at: self.now,
            round: 0,
            attempt: Attempt::default(),
            device: None,
            what: What::Failed(refused.reason()),
        }))
    }
}
