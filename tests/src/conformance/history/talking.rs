//! An owner of conversations in few words: applies the rules, gives places, and gathers what one call of `record` writes.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use schemas::{
    Content, ContentType, Conversation, ConversationId, Epoch, Inbox, Kind, Message, MessageId, Name, Partition, Party,
    Position, Priority, Sender, Tenant, Timestamp, UserId,
    conversation::{Change, ChatCommand, Command, Note, Original, Pair, Refused, Side, Turn, UpTo},
    limits::ChatLimits,
    port::{Entry, History, Schedule, Talks},
};
use uuid::Uuid;

use super::kit::*;

/// The owner of one partition.
pub struct Desk {
    /// Whose users they are.
    pub tenant: Tenant,
    /// Its partition.
    pub partition: Partition,
    /// Since which takeover.
    pub epoch: Epoch,
    /// The time; moved by the cases.
    pub now: Timestamp,
    /// The conversations as they are.
    pub rows: HashMap<ConversationId, Conversation>,
    /// The same, as plain maps.
    pub model: Talks,
    originals: HashMap<MessageId, Original>,
    counts: HashMap<(ConversationId, u64), (u64, u64)>,
    tails: HashMap<Inbox, Position>,
    entries: Vec<Entry>,
    schedule: Schedule,
    names: u128,
}

impl Desk {
    /// Of a tenant of its own.
    pub fn new(partition: u16) -> Self {
        Self {
            tenant: tenant(),
            partition: Partition(partition),
            epoch: Epoch(1),
            now: NOON,
            rows: HashMap::new(),
            model: Talks::default(),
            originals: HashMap::new(),
            counts: HashMap::new(),
            tails: HashMap::new(),
            entries: Vec::new(),
            schedule: Schedule::default(),
            names: Uuid::new_v4().as_u128() & !0xffff_ffff,
        }
    }

    /// A business user and a mobile user of the tenant.
    pub fn pair(&self, business: &str, mobile: u32) -> Pair {
        let business = Name::parse(business).expect("a name");
        Pair { tenant: self.tenant.clone(), business, mobile: phone(mobile) }
    }

    /// Somebody else takes its partition over, with a handle to the same store: told what stands of these conversations, and
    /// the ends of these users' inboxes. It knows what was said, and keeps the model from now on.
    pub async fn successor(&mut self, history: &dyn History, pairs: &[Pair], users: &[UserId]) -> Self {
        let epoch = own(history, &[self.partition]).await[0];
        let inboxes: Vec<_> =
            users.iter().map(|user| Inbox { user: user.clone(), partition: self.partition }).collect();
        let asked: Vec<_> = pairs.iter().map(|pair| (pair.id(), inboxes.clone())).collect();
        let told = history.owned(&asked).await.expect("told");
        let tails = history.tails(&inboxes).await.expect("told");
        Self {
            tenant: self.tenant.clone(),
            epoch,
            now: self.now,
            rows: told.into_iter().flatten().map(|row| (row.id, row)).collect(),
            model: std::mem::take(&mut self.model),
            originals: self.originals.clone(),
            counts: self.counts.clone(),
            tails: inboxes.into_iter().zip(tails).map(|(inbox, tail)| (inbox, tail.position)).collect(),
            ..Self::new(self.partition.0)
        }
    }

    /// An entry of a turn that stands, in an inbox that lacks it.
    pub fn complete(&mut self, turn: &Turn, inbox: &Inbox) {
        let message = Message::clone(&turn.message);
        self.schedule.completed.retain(|(_, there)| there.seq != turn.seq);
        self.schedule.completed.push((self.partition, turn.clone()));
        self.entry(message, Some(inbox.user.clone()), Some(turn.seq));
    }

    /// A note to the owner of an inbox, of which the row tells already.
    pub fn note(&mut self, message: Message, inbox: &Inbox) {
        self.entry(message, Some(inbox.user.clone()), None);
    }

    fn name(&mut self) -> MessageId {
        self.names += 1;
        MessageId(Uuid::from_u128(self.names))
    }

    /// The conversation of a pair, opened if it is not there.
    pub fn open(&mut self, pair: &Pair) -> &mut Conversation {
        let (epoch, now) = (self.epoch, self.now);
        let row = || Conversation::open(pair.clone(), self.partition, epoch, now);
        let row = self.rows.entry(pair.id()).or_insert_with(row);
        self.schedule.conversations.retain(|there| there.id != row.id);
        self.schedule.conversations.push(row.clone());
        row
    }

    /// A message; who writes for the business is whoever it is assigned to.
    pub fn say(&mut self, pair: &Pair, from: Side, body: &str) -> Result<MessageId, Refused> {
        let id = self.name();
        self.say_again(pair, from, body, id)?;
        Ok(id)
    }

    /// A message of this name, which somebody else may have recorded.
    pub fn say_again(&mut self, pair: &Pair, from: Side, body: &str, id: MessageId) -> Result<(), Refused> {
        let (epoch, now) = (self.epoch, self.now);
        let row = self.open(pair);
        let (from_user, to) = (row.user(from), row.user(from.other()));
        let content = Content { content_type: ContentType::Text, subject: None, body: body.to_owned() };
        let message = Message {
            id,
            kind: Kind::Chat(pair.id()),
            from: Sender::User(from_user.party.clone()),
            to,
            priority: Priority::High,
            content,
            client_ref: None,
            metadata: None,
            accepted_at: now,
            send_at: None,
            expires_at: None,
            broadcast: None,
            trace: None,
            fingerprint: *id.0.as_bytes(),
        };
        let act = schemas::conversation::Act::Message { id, content: &message.content };
        row.apply(&message.from.clone(), &act, &ChatLimits::default(), epoch, now)?;
        self.turn(pair.id(), message, None, &[from_user]);
        Ok(())
    }

    /// Somebody who takes its partition over, reads what stands, and sleeps before it is told of it.
    pub async fn sleeper(&self, history: &dyn History) -> Self {
        Self {
            tenant: self.tenant.clone(),
            epoch: own(history, &[self.partition]).await[0],
            now: self.now,
            rows: self.rows.clone(),
            originals: self.originals.clone(),
            counts: self.counts.clone(),
            tails: self.tails.clone(),
            ..Self::new(self.partition.0)
        }
    }

    /// A command, as its owner applies it.
    pub fn ask(&mut self, pair: &Pair, by: Sender, command: Command) -> Result<Change, Refused> {
        let id = self.name();
        let (epoch, now) = (self.epoch, self.now);
        let fingerprint = *id.0.as_bytes();
        let pair = pair.clone();
        let asked = ChatCommand { id, pair, by, command, accepted_at: now, client_ref: None, trace: None, fingerprint };
        let conversation = asked.pair.id();
        let original = asked.command.about().and_then(|of| self.originals.get(&of).cloned());
        let up_to = match &asked.command {
            Command::Read { up_to: UpTo::Seq(seq) } => *seq,
            _ => original.as_ref().map_or(0, |original| original.seq),
        };
        let counts = self.counts.get(&(conversation, up_to)).copied();
        let row = self.open(&asked.pair);
        let side = asked.side().unwrap_or(Side::Business);
        let before = row.assigned_to.clone();
        let mark = ChatCommand::mark(side, row.half(side), row.last_seq, up_to, counts);
        let act = asked.command.act(original.as_ref(), (mark, up_to));
        let change = row.apply(&asked.by, &act, &ChatLimits::default(), epoch, now)?;
        let own = match &asked.by {
            Sender::User(party) => vec![UserId { tenant: asked.pair.tenant.clone(), party: party.clone() }],
            Sender::Server => Vec::new(),
        };
        let row = row.clone();
        match &change {
            Change::Nothing => {}
            Change::Row | Change::Marked { .. } => self.row(&row),
            Change::Own(note) => {
                self.row(&row);
                self.entry(asked.message(&row, Some(note)), None, None);
            }
            Change::Turn(note) => {
                if let Some(original) = asked.command.about().and_then(|of| self.originals.get_mut(&of)) {
                    original.edits += u32::from(matches!(asked.command, Command::Edit { .. }));
                    original.deleted |= matches!(asked.command, Command::Delete { .. });
                }
                let mut copies = own;
                if let Some(Note::Assigned { .. }) = note {
                    copies.push(UserId::business(asked.pair.tenant.clone(), before));
                    copies.push(row.user(Side::Business));
                }
                let of = original.map(|original| original.seq);
                self.turn(conversation, asked.message(&row, note.as_ref()), of, &copies);
            }
        }
        Ok(change)
    }

    fn row(&mut self, row: &Conversation) {
        self.schedule.conversations.retain(|there| there.id != row.id);
        self.schedule.conversations.push(row.clone());
    }

    #[allow(clippy::needless_pass_by_value, reason = "it is done with here")]
    fn turn(&mut self, id: ConversationId, message: Message, of: Option<u64>, copies: &[UserId]) {
        let row = self.rows[&id].clone();
        self.row(&row);
        let turn = Turn {
            conversation: id,
            seq: row.last_seq,
            to_mobile: row.mobile.to,
            to_business: row.business.to,
            version: row.version,
            recorded_at: self.now,
            message: Arc::new(message.clone()),
            of,
        };
        self.counts.insert((id, turn.seq), (turn.to_mobile, turn.to_business));
        if matches!(message.kind, Kind::Chat(_)) {
            self.originals.insert(message.id, turn.original(0, false));
        }
        self.schedule.turns.push(turn);
        let others: BTreeSet<_> = copies.iter().filter(|user| **user != message.to).cloned().collect();
        let seq = self.schedule.turns.last().map(|turn| turn.seq);
        self.entry(message.clone(), None, seq);
        for user in others {
            self.entry(message.clone(), Some(user), seq);
        }
    }

    fn entry(&mut self, message: Message, copy_to: Option<UserId>, seq: Option<u64>) {
        let inbox = Inbox { user: copy_to.unwrap_or_else(|| message.to.clone()), partition: self.partition };
        let prev = self.tails.get(&inbox).copied().unwrap_or_default();
        let position = prev.next(self.epoch);
        self.tails.insert(inbox.clone(), position);
        let message = Arc::new(message);
        self.entries.push(Entry { inbox, position, prev, one_way: 0, recorded_at: self.now, seq, message, end: None });
    }

    /// What was gathered, for one call.
    pub fn take(&mut self) -> (Vec<Entry>, Schedule) {
        let epochs = BTreeSet::from([(self.partition, self.epoch)]);
        (std::mem::take(&mut self.entries), Schedule { epochs, ..std::mem::take(&mut self.schedule) })
    }

    /// Records what was gathered, here and in the model.
    pub async fn record(&mut self, history: &dyn History) -> (Vec<Entry>, Schedule) {
        let (entries, schedule) = self.take();
        history.record(&entries, &schedule).await.expect("recorded");
        self.model.record(&schedule);
        (entries, schedule)
    }
}

/// That a business user of this name is to answer from now on.
pub fn assign(to: &str) -> Command {
    Command::Assign { to: Name::parse(to).expect("a name") }
}

/// A business user's name as a sender.
pub fn business(name: &str) -> Sender {
    Sender::User(Party::Business(Name::parse(name).expect("a name")))
}

/// A mobile user as a sender.
pub fn mobile(number: u32) -> Sender {
    Sender::User(Party::Mobile(phone(number)))
}
