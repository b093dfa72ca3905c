//! The rules as tables, and as properties against naive models.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::{
    Phone, Tenant,
    message::{ContentType, Kind},
};

const NOW: Timestamp = Timestamp(1_800_000_000_000);
const SARA: &str = "business:sara";
const OMAR: &str = "business:omar";
const EVE: &str = "business:eve";
const PHONE: &str = "+962790000001";
const OTHER: &str = "+962790000002";

fn by(text: &str) -> Sender {
    text.parse().unwrap()
}

fn pair() -> Pair {
    Pair {
        tenant: Tenant::parse("acme").unwrap(),
        business: Name::parse("sara").unwrap(),
        mobile: Phone::from_stored(PHONE).unwrap(),
    }
}

fn fresh() -> Conversation {
    Conversation::open(pair(), Partition(3), Epoch(1), NOW)
}

fn text(body: &str) -> Content {
    Content { content_type: ContentType::Text, subject: None, body: body.to_owned() }
}

fn id(n: u64) -> MessageId {
    MessageId(Uuid::from_u128(u128::from(n) + 1))
}

fn original(from: &str, n: u64) -> Original {
    Original { conversation: pair().id(), id: id(n), seq: n, from: by(from), at: NOW, edits: 0, deleted: false }
}

fn apply(conversation: &mut Conversation, who: &str, act: &Act<'_>) -> Result<Change, Refused> {
    conversation.apply(&by(who), act, &ChatLimits::default(), Epoch(1), NOW)
}

/// The states in which the table looks: open, closed, blocked, handed from Sara to Omar.
fn states() -> [(&'static str, Conversation); 4] {
    let mut states = ["open", "closed", "blocked", "handed"].map(|name| (name, fresh()));
    let hello = text("hello");
    for (_, conversation) in &mut states {
        for (n, who) in [SARA, PHONE, SARA, PHONE].into_iter().enumerate() {
            apply(conversation, who, &Act::Message { id: id(n as u64), content: &hello }).unwrap();
        }
    }
    apply(&mut states[1].1, SARA, &Act::Close).unwrap();
    apply(&mut states[2].1, PHONE, &Act::Block(true)).unwrap();
    apply(&mut states[3].1, SARA, &Act::Assign(Name::parse("omar").unwrap())).unwrap();
    states
}

/// What is answered, in a word.
fn word(answer: &Result<Change, Refused>) -> &'static str {
    match answer {
        Ok(_) => "yes",
        Err(Refused::Stranger) => "stranger",
        Err(Refused::NotPermitted) => "no",
        Err(Refused::Closed) => "closed",
        Err(Refused::Blocked) => "blocked",
        Err(Refused::AssignedElsewhere(name)) if name.as_str() == "omar" => "omar",
        Err(Refused::AssignedElsewhere(_)) => "sara",
        Err(_) => "other",
    }
}

#[test]
#[allow(clippy::type_complexity, reason = "a table")]
fn r11_1_who_may_do_what() {
    let hello = text("hello");
    let acts: [(&str, fn(&Content) -> Act<'_>); 8] = [
        ("write", |content| Act::Message { id: id(9), content }),
        ("read", |_| Act::Read { mark: 1, seq: 1 }),
        ("archive", |_| Act::Archive(true)),
        ("close", |_| Act::Close),
        ("reopen", |_| Act::Reopen),
        ("assign", |_| Act::Assign(Name::parse("nadia").unwrap())),
        ("block", |_| Act::Block(true)),
        ("open", |_| Act::Open),
    ];
    // Columns: the mobile user, Sara, Omar, a server key, another phone, another person of the business.
    let who = [PHONE, SARA, OMAR, "server", OTHER, EVE];
    let table: &[(&str, &str, [&str; 6])] = &[
        ("open", "write", ["yes", "yes", "stranger", "no", "stranger", "stranger"]),
        ("closed", "write", ["closed", "closed", "stranger", "no", "stranger", "stranger"]),
        ("blocked", "write", ["yes", "blocked", "stranger", "no", "stranger", "stranger"]),
        ("handed", "write", ["yes", "omar", "yes", "no", "stranger", "stranger"]),
        ("open", "read", ["yes", "yes", "stranger", "no", "stranger", "stranger"]),
        ("closed", "read", ["yes", "yes", "stranger", "no", "stranger", "stranger"]),
        ("blocked", "read", ["yes", "yes", "stranger", "no", "stranger", "stranger"]),
        ("handed", "read", ["yes", "omar", "yes", "no", "stranger", "stranger"]),
        ("open", "archive", ["yes", "yes", "stranger", "no", "stranger", "stranger"]),
        ("handed", "archive", ["yes", "omar", "yes", "no", "stranger", "stranger"]),
        ("open", "close", ["no", "yes", "stranger", "yes", "stranger", "stranger"]),
        ("handed", "close", ["no", "omar", "yes", "yes", "stranger", "stranger"]),
        ("closed", "reopen", ["no", "yes", "stranger", "yes", "stranger", "stranger"]),
        ("blocked", "reopen", ["no", "yes", "stranger", "yes", "stranger", "stranger"]),
        ("open", "assign", ["no", "yes", "stranger", "yes", "stranger", "stranger"]),
        ("handed", "assign", ["no", "yes", "yes", "yes", "stranger", "stranger"]),
        ("open", "block", ["yes", "no", "stranger", "no", "stranger", "stranger"]),
        ("handed", "open", ["yes", "yes", "yes", "no", "stranger", "stranger"]),
    ];
    for (state, act, expected) in table {
        for (who, expected) in who.iter().zip(expected) {
            let mut conversation = states().into_iter().find(|(name, _)| name == state).unwrap().1;
            let act_of = acts.iter().find(|(name, _)| name == act).unwrap().1;
            let before = conversation.clone();
            let answer = apply(&mut conversation, who, &act_of(&hello));
            assert_eq!(word(&answer), *expected, "{who}: {act} while {state}");
            if answer.is_err() {
                assert_eq!(conversation, before, "{who}: {act} while {state}: a refusal changes nothing");
            }
        }
    }
    // Editing and deleting follow writing, for one's own messages alone.
    for (state, conversation) in states() {
        for who in [PHONE, SARA] {
            for from in [PHONE, SARA] {
                let write = apply(&mut conversation.clone(), who, &Act::Message { id: id(9), content: &hello });
                let original = original(from, 1);
                for act in [
                    Act::Edit { original: Some(&original), content: &hello },
                    Act::Delete { original: Some(&original) },
                ] {
                    let answer = apply(&mut conversation.clone(), who, &act);
                    match &write {
                        Ok(_) if from != who => assert_eq!(answer, Err(Refused::NotYours)),
                        Ok(_) => assert!(answer.is_ok()),
                        Err(why) => assert_eq!(answer, Err(why.clone()), "{who} while {state}"),
                    }
                }
            }
        }
    }
}

#[test]
fn an_edit_has_its_time_its_number_and_its_message() {
    let limits = ChatLimits::default();
    let (content, late) = (text("better"), NOW.plus_ms(limits.edit_ms + 1));
    let own = original(SARA, 1);
    let table: Vec<(Option<Original>, Timestamp, Result<(), Refused>)> = vec![
        (Some(own.clone()), NOW.plus_ms(limits.edit_ms), Ok(())),
        (Some(own.clone()), late, Err(Refused::TooLate)),
        (None, NOW, Err(Refused::NoSuchMessage)),
        (Some(original(PHONE, 1)), NOW, Err(Refused::NotYours)),
        (Some(Original { deleted: true, ..own.clone() }), NOW, Err(Refused::Deleted)),
        (Some(Original { edits: limits.edits, ..own.clone() }), NOW, Err(Refused::TooManyEdits)),
        (
            Some(Original { conversation: Pair { business: Name::parse("x").unwrap(), ..pair() }.id(), ..own.clone() }),
            NOW,
            Err(Refused::NoSuchMessage),
        ),
    ];
    for (original, now, expected) in table {
        let act = Act::Edit { original: original.as_ref(), content: &content };
        let answer = fresh().apply(&by(SARA), &act, &limits, Epoch(1), now);
        assert_eq!(answer.map(drop), expected, "{original:?}");
    }
    // A deletion of what is deleted is done already.
    let gone = Original { deleted: true, ..own };
    let act = Act::Delete { original: Some(&gone) };
    assert_eq!(apply(&mut fresh(), SARA, &act), Ok(Change::Nothing));
}

#[test]
fn the_last_message_is_shown_as_it_reads_now() {
    let (mut conversation, long, better) = (fresh(), text(&"ب".repeat(300)), text("better"));
    apply(&mut conversation, SARA, &Act::Message { id: id(1), content: &long }).unwrap();
    let shown = |c: &Conversation| c.preview.as_ref().unwrap().text.clone();
    assert_eq!(shown(&conversation).unwrap(), "ب".repeat(100));
    let (old, own) = (original(SARA, 0), original(SARA, 1));
    apply(&mut conversation, SARA, &Act::Edit { original: Some(&old), content: &better }).unwrap();
    assert_eq!(shown(&conversation).unwrap().chars().count(), 100, "an older message is not the last one");
    apply(&mut conversation, SARA, &Act::Edit { original: Some(&own), content: &better }).unwrap();
    assert_eq!(shown(&conversation).unwrap(), "better");
    apply(&mut conversation, SARA, &Act::Delete { original: Some(&own) }).unwrap();
    assert_eq!(shown(&conversation), None);
    assert_eq!((conversation.last_seq, conversation.mobile.unread()), (4, 1), "a deletion changes no count");
}

#[test]
fn a_new_message_brings_an_archived_conversation_back() {
    let mut conversation = fresh();
    for who in [SARA, PHONE] {
        assert_eq!(apply(&mut conversation, who, &Act::Archive(true)), Ok(Change::Own(Note::Archived)));
        assert_eq!(apply(&mut conversation, who, &Act::Archive(true)), Ok(Change::Nothing));
    }
    apply(&mut conversation, PHONE, &Act::Message { id: id(1), content: &text("hello") }).unwrap();
    assert!(!conversation.mobile.archived && !conversation.business.archived);
}

#[test]
fn a_newer_owner_s_version_is_larger_whatever_the_older_one_still_does() {
    let taken = Version::default().next(Epoch(5)).next(Epoch(5));
    let (mut late, live) = (taken, taken.next(Epoch(6)));
    for _ in 0..1_000 {
        late = late.next(Epoch(5));
        assert!(late < live);
    }
    assert_eq!((late.epoch(), live.epoch()), (Epoch(5), Epoch(6)));
    assert!(i64::try_from(Version::default().next(Epoch(u32::MAX)).0).is_ok());
}

#[test]
fn p12_one_way_has_no_reply_and_belongs_to_no_conversation() {
    let chat = pair().id();
    for kind in [Kind::OneWay, Kind::Chat(chat), Kind::Edit(chat, id(1)), Kind::Delete(chat, id(1)), Kind::Note(chat)] {
        assert_eq!(kind.may_be_replied_to(), kind.conversation().is_some());
        assert_eq!(kind.word() == "one_way", kind.conversation().is_none());
    }
}

/// Something somebody asks, as the model and the rules both understand it.
#[derive(Debug, Clone)]
enum Ask {
    Message(&'static str),
    Edit(&'static str, usize),
    Delete(&'static str, usize),
    /// Up to a turn that may be far behind, or far ahead.
    Read(&'static str, u64),
    Archive(&'static str, bool),
    Close(bool),
    Block(bool),
    Assign(&'static str),
    /// The one before again, as after a crash: by its name, or as it stands.
    Again,
}

fn people() -> impl Strategy<Value = &'static str> {
    prop_oneof![4 => Just(PHONE), 4 => Just(SARA), 2 => Just(OMAR), 1 => Just(EVE), 1 => Just("server")]
}

fn asks() -> impl Strategy<Value = Vec<Ask>> {
    let one = prop_oneof![
        6 => people().prop_map(Ask::Message),
        2 => (people(), 0usize..30).prop_map(|(who, of)| Ask::Edit(who, of)),
        2 => (people(), 0usize..30).prop_map(|(who, of)| Ask::Delete(who, of)),
        4 => (people(), 0u64..60).prop_map(|(who, seq)| Ask::Read(who, seq)),
        1 => (people(), any::<bool>()).prop_map(|(who, archived)| Ask::Archive(who, archived)),
        1 => any::<bool>().prop_map(Ask::Close),
        1 => any::<bool>().prop_map(Ask::Block),
        1 => prop_oneof![Just("sara"), Just("omar")].prop_map(Ask::Assign),
        2 => Just(Ask::Again),
    ];
    proptest::collection::vec(one, 0..60)
}

/// What a naive reader of the thread remembers of a message.
#[derive(Debug, Clone)]
struct Heard {
    seq: u64,
    from: &'static str,
    to: Side,
    read: bool,
    deleted: bool,
    edits: u32,
}

/// An owner with one conversation, and beside it every message with a tick of its own.
struct Model {
    conversation: Conversation,
    heard: Vec<Heard>,
    counts: BTreeMap<u64, (u64, u64)>,
    names: u64,
}

impl Model {
    fn new() -> Self {
        Self { conversation: fresh(), heard: Vec::new(), counts: BTreeMap::new(), names: 0 }
    }

    fn original(&self, of: usize) -> Option<Original> {
        let n = of.checked_rem(self.heard.len())?;
        let heard = &self.heard[n];
        Some(Original { seq: heard.seq, edits: heard.edits, deleted: heard.deleted, ..original(heard.from, n as u64) })
    }

    fn ask(&mut self, ask: &Ask) -> Result<Change, Refused> {
        let content = text("hello");
        let last_seq = self.conversation.last_seq;
        let answer = match ask {
            Ask::Message(who) => {
                self.names += 1;
                apply(&mut self.conversation, who, &Act::Message { id: id(self.names), content: &content })
            }
            Ask::Edit(who, of) => {
                let original = self.original(*of);
                apply(&mut self.conversation, who, &Act::Edit { original: original.as_ref(), content: &content })
            }
            Ask::Delete(who, of) => {
                let original = self.original(*of);
                apply(&mut self.conversation, who, &Act::Delete { original: original.as_ref() })
            }
            Ask::Read(who, seq) => {
                let side = if *who == PHONE { Side::Mobile } else { Side::Business };
                let counts = self.counts.get(seq).copied();
                let mark = ChatCommand::mark(side, self.conversation.half(side), last_seq, *seq, counts);
                apply(&mut self.conversation, who, &Act::Read { mark, seq: *seq })
            }
            Ask::Archive(who, archived) => apply(&mut self.conversation, who, &Act::Archive(*archived)),
            Ask::Close(true) => apply(&mut self.conversation, "server", &Act::Close),
            Ask::Close(false) => apply(&mut self.conversation, "server", &Act::Reopen),
            Ask::Block(block) => apply(&mut self.conversation, PHONE, &Act::Block(*block)),
            Ask::Assign(to) => apply(&mut self.conversation, "server", &Act::Assign(Name::parse(to).unwrap())),
            Ask::Again => Ok(Change::Nothing),
        };
        if answer.is_ok() {
            self.remember(ask);
        }
        let now = &self.conversation;
        if now.last_seq > last_seq {
            self.counts.insert(now.last_seq, (now.mobile.to, now.business.to));
        }
        answer
    }

    /// The naive half: no arithmetic, one message at a time.
    fn remember(&mut self, ask: &Ask) {
        let seq = self.conversation.last_seq;
        match ask {
            Ask::Message(who) => {
                let to = if *who == PHONE { Side::Business } else { Side::Mobile };
                self.heard.push(Heard { seq, from: who, to, read: false, deleted: false, edits: 0 });
            }
            Ask::Edit(_, of) | Ask::Delete(_, of) => {
                let n = of % self.heard.len();
                if matches!(ask, Ask::Edit(..)) { self.heard[n].edits += 1 } else { self.heard[n].deleted = true }
            }
            Ask::Read(who, up_to) => {
                let side = if *who == PHONE { Side::Mobile } else { Side::Business };
                let read = self.heard.iter_mut().filter(|heard| heard.to == side && heard.seq <= *up_to);
                read.for_each(|heard| heard.read = true);
            }
            _ => {}
        }
    }

    fn unread(&self, side: Side) -> u64 {
        self.heard.iter().filter(|heard| heard.to == side && !heard.read).count() as u64
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(500)))]

    // P6: unread equals the messages not read, whatever happens between, in whatever order, however often.
    #[test]
    fn p6_unread_is_what_was_not_read(asks in asks()) {
        let (mut model, mut last) = (Model::new(), None::<Ask>);
        for ask in asks {
            let before = model.conversation.clone();
            // A mark that comes again is the same mark; a message that comes again is known by its name and not applied.
            let again = match (&ask, &last) {
                (Ask::Again, Some(read @ Ask::Read(..))) => Some(read.clone()),
                _ => None,
            };
            let answer = model.ask(again.as_ref().unwrap_or(&ask));
            if again.is_some() {
                prop_assert!(matches!(answer, Ok(Change::Nothing) | Err(_)));
            }
            let now = &model.conversation;
            for side in Side::BOTH {
                prop_assert_eq!(now.half(side).unread(), model.unread(side), "{:?} after {:?}", side, ask);
                prop_assert!(now.half(side).read >= before.half(side).read, "a mark only grows");
                prop_assert!(now.half(side).read <= now.half(side).to, "and never passes what was written");
                prop_assert!(now.half(side).told <= now.half(side).read);
            }
            match &answer {
                Err(_) | Ok(Change::Nothing) => prop_assert_eq!(now, &before),
                Ok(_) => prop_assert!(now.version > before.version),
            }
            prop_assert!(now.last_at >= before.last_at);
            let turns = u64::from(matches!(answer, Ok(Change::Turn(_))));
            prop_assert_eq!(now.last_seq, before.last_seq + turns, "turns are dense");
            last = Some(again.unwrap_or(ask));
        }
    }

    // P13: both sides can write in a conversation, unless it is closed, or blocked by the one it would be written to.
    #[test]
    fn p13_both_sides_can_write(asks in asks()) {
        let mut model = Model::new();
        for ask in &asks {
            let _ = model.ask(ask);
        }
        let content = text("hello");
        for side in Side::BOTH {
            let mut conversation = model.conversation.clone();
            let writer = Sender::User(conversation.user(side).party);
            let (before, act) = (conversation.clone(), Act::Message { id: id(999), content: &content });
            let answer = conversation.apply(&writer, &act, &ChatLimits::default(), Epoch(1), NOW);
            if before.closed.is_some() {
                prop_assert_eq!(answer, Err(Refused::Closed));
            } else if before.blocked && side == Side::Business {
                prop_assert_eq!(answer, Err(Refused::Blocked));
            } else {
                prop_assert_eq!(answer, Ok(Change::Turn(None)));
                prop_assert_eq!(conversation.half(side.other()).unread(), before.half(side.other()).unread() + 1);
                prop_assert_eq!(conversation.half(side).unread(), before.half(side).unread());
            }
        }
    }

    // P2: whoever creates it, how often and in which order: one conversation of a pair, with the same name and the same two.
    #[test]
    fn p2_two_creators_at_once_make_one(
        creators in proptest::collection::vec((any::<bool>(), any::<bool>(), 0u8..3), 1..30), seed in any::<u64>(),
    ) {
        let tenant = Tenant::parse("acme").unwrap();
        let ask = |(mobile_first, by_message, number): (bool, bool, u8)| {
            let mobile: Party = format!("+96279000000{number}").parse().unwrap();
            let (one, other): (Party, Party) = (SARA.parse().unwrap(), mobile);
            let (from, to) = if mobile_first { (other, one) } else { (one, other) };
            (from, to, by_message)
        };
        let made = |creators: &[(bool, bool, u8)]| {
            let mut all = HashMap::new();
            for (from, to, by_message) in creators.iter().map(|c| ask(*c)) {
                let pair = Pair::of(&tenant, &from, &to).unwrap();
                let named = if by_message {
                    // The first message opens it too, and the door names it by the same two.
                    let command = command(&pair, Command::Open);
                    let open = fresh_of(&pair);
                    let mut message = command.message(&open, None);
                    message.kind = Kind::Chat(pair.id());
                    message.from = Sender::User(from.clone());
                    message.to = UserId { tenant: tenant.clone(), party: to };
                    first_of(&message).unwrap()
                } else {
                    pair
                };
                let row = all.entry(named.id()).or_insert_with(|| fresh_of(&named));
                let answer = row.apply(&Sender::User(from), &Act::Open, &ChatLimits::default(), Epoch(1), NOW);
                assert_eq!(answer, Ok(Change::Nothing));
            }
            all
        };
        let mut shuffled = creators.clone();
        for i in 1..shuffled.len() { shuffled.swap(i, (seed.rotate_left(i as u32) % (i as u64 + 1)) as usize); }
        let (all, again) = (made(&creators), made(&shuffled));
        let pairs: std::collections::BTreeSet<u8> = creators.iter().map(|c| c.2).collect();
        prop_assert_eq!(all.len(), pairs.len(), "one a pair");
        prop_assert_eq!(all, again, "whatever the order");
    }
}

fn fresh_of(pair: &Pair) -> Conversation {
    Conversation::open(pair.clone(), Partition(3), Epoch(1), NOW)
}

fn command(pair: &Pair, command: Command) -> ChatCommand {
    ChatCommand {
        id: id(7),
        pair: pair.clone(),
        by: by(SARA),
        command,
        accepted_at: NOW,
        client_ref: None,
        trace: None,
        fingerprint: [1; 16],
    }
}
