//! Chat through the flow: messages and commands of a few conversations, ports that end in any order, and a process that
//! dies in between.

mod saying;

use schemas::{
    ChatCommand, Content, ContentType, Conversation, Epoch, Fact, Kind, Message, Name, Offset, Partition, Phone,
    Sender, Status, Tenant,
    conversation::{Act as Does, Command, Pair, Side, Turn, UpTo},
    port::Order,
};

use self::saying::{Deed, Said, by, id_of, pair, sides, text, whats};
use super::*;

/// Puts something at the end of the lane.
fn append(lane: &Mutex<Vec<Said>>, said: &Said) -> (Offset, Said) {
    let mut lane = lane.lock();
    lane.push(said.clone());
    (Offset(lane.len() as u64 - 1), said.clone())
}

fn stands(row: &Conversation) -> (bool, bool, Name, [bool; 2]) {
    let archived = [row.business.archived, row.mobile.archived];
    (row.closed.is_some(), row.blocked, row.assigned_to.clone(), archived)
}

#[derive(Debug, Clone)]
enum Act {
    /// New things, and some that came before.
    Feed(Vec<usize>),
    LetGo(usize),
    /// The process dies; what is not passed comes again, marked as replayed.
    Die,
}

fn acts() -> impl Strategy<Value = (Vec<Said>, Vec<Act>)> {
    let said =
        (0u16..40, 0u8..3, sides(), whats()).prop_map(|(n, pair, side, what)| Said { n, pair: pair * 3, side, what });
    let act = prop_oneof![
        6 => proptest::collection::vec(any::<usize>(), 1..10).prop_map(Act::Feed),
        12 => any::<usize>().prop_map(Act::LetGo),
        1 => Just(Act::Die),
    ];
    (proptest::collection::vec(said, 1..60), proptest::collection::vec(act, 1..60)).prop_map(|(mut said, acts)| {
        // One thing a number and writer: the first.
        let mut seen = HashSet::new();
        said.retain(|said| seen.insert(said.id()));
        (said, acts)
    })
}

/// What was fed, an epoch after the other, each with its place in the lane.
type Fed = Vec<Vec<(Offset, Said)>>;

/// What is durable, whatever the process still has in memory.
struct Kept {
    history: Arc<MemoryHistory>,
    log: Arc<MemoryLog>,
    /// The lane.
    lane: Arc<Mutex<Vec<Said>>>,
    /// Whether everything stands in the lane once. A key that comes again in another life, of something that left no trace,
    /// is a new request: what was refused may be permitted then, and its writer is told that it failed, and later that it arrived,
    /// which outranks it.
    once: bool,
    /// Whether a process died.
    died: bool,
}

impl Kept {
    /// Whether something may be fed.
    fn takes(&self, said: &Said) -> bool {
        !self.once || self.lane.lock().iter().all(|other| other.id() != said.id())
    }

    /// How the lane says that a conversation stands, each thing applied once and in its order: whether it is closed and
    /// blocked, whose it is, and who has put it away.
    fn told(&self, n: u8) -> (bool, bool, Name, [bool; 2]) {
        let (limits, now, mut seen) = (ChatLimits::default(), Timestamp(1_000), HashSet::new());
        let mut row: Option<Conversation> = None;
        for said in self.lane.lock().iter().filter(|said| said.pair == n && seen.insert(said.id())) {
            if matches!(said.what, Deed::Message | Deed::Open) {
                row.get_or_insert_with(|| Conversation::open(pair(n), Partition(0), Epoch(1), now));
            }
            let body = text("");
            let act = match said.what {
                Deed::Message => Does::Message { id: said.id(), content: &body },
                Deed::Close(true) => Does::Close,
                Deed::Close(false) => Does::Reopen,
                Deed::Block(block) => Does::Block(block),
                Deed::Assign(to) => Does::Assign(Name::parse(to).unwrap()),
                Deed::Archive(archived) => Does::Archive(archived),
                Deed::Edit(_) | Deed::Delete(_) | Deed::Read(_) | Deed::ReadAt(_) | Deed::Open => continue,
            };
            if let Some(row) = &mut row {
                // What is refused changes nothing.
                let _ = row.apply(&by(said.side, &pair(n)), &act, &limits, Epoch(1), now);
            }
        }
        row.map(|row| stands(&row)).unwrap_or_else(|| (false, false, pair(n).business, [false; 2]))
    }

    fn row(&self, n: u8) -> Option<Conversation> {
        self.history.talks.conversations(&[pair(n).id()]).remove(0)
    }

    fn thread(&self, n: u8) -> Vec<Turn> {
        self.history.talks.log(pair(n).id())
    }

    fn facts(&self, id: MessageId, what: fn(&What) -> bool) -> Vec<Fact> {
        self.log.facts().into_iter().filter(|fact| fact.id == id && what(&fact.what)).collect()
    }

    /// Whether what was fed has had its effect.
    fn is_done(&self, said: &Said) -> bool {
        let turn = self.thread(said.pair).into_iter().any(|turn| turn.message.id == said.id());
        let refused = !self.facts(said.id(), |what| matches!(what, What::Failed(_))).is_empty();
        assert!(!((self.once || !self.died) && turn && refused), "{said:?} was done and refused");
        turn || refused
    }
}

/// Runs one life of a process over what is kept. Says what was fed and not passed for good.
fn live(gate: Gate, kept: &Kept, again: Fed, acts: Vec<Act>, said: Vec<Said>, end: bool) -> Result<Fed, TestCaseError> {
    let kept = Kept {
        history: kept.history.clone(),
        log: kept.log.clone(),
        lane: kept.lane.clone(),
        once: kept.once,
        died: kept.died,
    };
    // What was under way when the process died never came to be.
    kept.history.written.lock().retain(|(_, durable)| *durable);
    *kept.history.line.lock() = Some(Arc::default());
    timely::execute_directly(move |worker| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
        let _entered = runtime.enter();
        let mut bench = Bench::over(worker, gate, kept.history.clone(), kept.log.clone());
        let verdict = one_life(worker, &mut bench, &kept, again, acts, &said, end);
        // Dead or failed, it leaves work behind: without this its dataflows would be waited for.
        worker.installed_dataflows().into_iter().for_each(|flow| worker.drop_dataflow(flow));
        verdict
    })
}

fn one_life(
    worker: &mut Worker,
    bench: &mut Bench,
    kept: &Kept,
    again: Fed,
    acts: Vec<Act>,
    said: &[Said],
    end: bool,
) -> Result<Fed, TestCaseError> {
    for epoch in &again {
        bench.feed(0, epoch.iter().map(|(at, said)| said.item(true, *at)).collect());
    }
    let mut fed = again;
    for act in acts {
        match act {
            Act::Feed(which) => {
                let epoch = which.iter().map(|n| &said[n % said.len()]);
                let epoch = epoch.filter(|said| kept.takes(said));
                let epoch: Vec<_> = epoch.map(|said| append(&kept.lane, said)).collect();
                bench.feed(0, epoch.iter().map(|(at, said)| said.item(false, *at)).collect());
                fed.push(epoch);
            }
            Act::LetGo(which) => drop(bench.gate.let_go(which)),
            Act::Die => {}
        }
        bench.turn(worker);
        // Invariant 3: an offset is passed only behind what came of it.
        let passed = bench.progress.of(Priority::High);
        for epoch in &fed[..(passed as usize).min(fed.len())] {
            for (_, said) in epoch.iter().filter(|(_, said)| said.is_told()) {
                prop_assert!(kept.is_done(said), "{said:?} was passed before it was done");
            }
        }
    }
    if end {
        bench.finish(worker);
        prop_assert!(!worker.has_dataflows(), "the flows have ended");
        prop_assert_eq!(&*bench.deliveries.early.lock(), &Vec::<MessageId>::new());
    }
    let passed = bench.progress.of(Priority::High).min(fed.len() as u64) as usize;
    Ok(fed.split_off(passed))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(150)))]

    // P2, P6, P8 and invariants 3 to 5 and 8 for chat: whatever ends in whatever order, however often the process dies.
    #[test]
    fn chat_is_whole_whatever_ends_in_whatever_order((said, acts) in acts(), once in any::<bool>()) {
        let gate = Gate::closed();
        let mut kept = Kept {
            history: Arc::new(MemoryHistory {
                gate: gate.clone(),
                ..MemoryHistory::default()
            }),
            log: Arc::new(MemoryLog::default()),
            lane: Arc::default(),
            once,
            died: acts.iter().any(|act| matches!(act, Act::Die)),
        };
        let mut lives: Vec<Vec<Act>> = vec![Vec::new()];
        let mut all = HashSet::new();
        for act in acts {
            match &act {
                Act::Die => lives.push(Vec::new()),
                Act::Feed(which) => all.extend(which.iter().map(|n| n % said.len())),
                Act::LetGo(_) => {}
            }
            lives.last_mut().unwrap().push(act);
        }
        let mut again = Vec::new();
        for acts in lives {
            again = live(gate.clone(), &kept, again, acts, said.clone(), false)?;
        }
        // The last life ends in peace. What it is given again was under way when the one before it ended, which is a death too.
        kept.died |= !again.is_empty();
        let left = live(gate, &kept, again, Vec::new(), said.clone(), true)?;
        prop_assert!(left.is_empty());
        for said in all.iter().map(|n| &said[*n]).filter(|said| said.is_told()) {
            prop_assert!(kept.is_done(said), "{said:?} was lost");
        }
        // Inboxes: dense, each entry once.
        let mut entries = HashMap::<(UserId, MessageId), usize>::new();
        let mut ends = HashMap::<Inbox, schemas::Position>::new();
        for (entry, durable) in kept.history.written.lock().iter().filter(|(_, durable)| *durable) {
            prop_assert!(*durable);
            let end = ends.entry(entry.inbox.clone()).or_default();
            prop_assert!(entry.prev == *end && entry.position.n == end.n + 1, "{entry:?} after {end}");
            *end = entry.position;
            *entries.entry((entry.inbox.user.clone(), entry.message.id)).or_default() += 1;
        }
        prop_assert!(entries.values().all(|times| *times == 1), "one message, one effect");
        for n in [0, 3, 6] {
            let (turns, Some(row)) = (kept.thread(n), kept.row(n)) else { continue };
            if once {
                prop_assert_eq!(stands(&row), kept.told(n), "what was done in its order");
            }
            prop_assert_eq!(row.last_seq, turns.len() as u64);
            let (mut to_mobile, mut to_business) = (0, 0);
            for (seq, turn) in (1u64..).zip(&turns) {
                let chat = matches!(turn.message.kind, Kind::Chat(_));
                let to = Side::of(&turn.message.to.party);
                to_mobile += u64::from(chat && to == Side::Mobile);
                to_business += u64::from(chat && to == Side::Business);
                prop_assert_eq!((turn.seq, turn.to_mobile, turn.to_business), (seq, to_mobile, to_business));
                // Both sides have it: who wrote it, and who answers now.
                let mobile = (pair(n).mobile(), turn.message.id);
                prop_assert!(entries.contains_key(&mobile), "{:?} is not with the mobile user", turn.message.kind);
                let writer = UserId { tenant: turn.message.to.tenant.clone(), party: match &turn.message.from {
                    Sender::User(party) => party.clone(),
                    Sender::Server => continue,
                }};
                prop_assert!(entries.contains_key(&(writer, turn.message.id)));
                prop_assert!(entries.contains_key(&(turn.message.to.clone(), turn.message.id)));
                // P6 and ticks: it is read exactly if its number is within the mark, and its writer was told so.
                if chat {
                    let (number, half) = match to {
                        Side::Mobile => (turn.to_mobile, &row.mobile),
                        Side::Business => (turn.to_business, &row.business),
                    };
                    let told = !kept.facts(turn.message.id, |what| *what == What::Read).is_empty();
                    prop_assert_eq!(told, number <= half.read, "{} of {:?}", number, half);
                }
            }
            prop_assert_eq!((row.mobile.to, row.business.to), (to_mobile, to_business));
        }
    }
}

/// One life in peace: feeds these one after the other, everything ends.
fn peace(limits: ChatLimits, said: Vec<Vec<Said>>) -> (Kept, Vec<(MessageId, UserId, Priority)>) {
    let kept = Kept { history: Arc::default(), log: Arc::default(), lane: Arc::default(), once: true, died: false };
    let (history, log, lane) = (kept.history.clone(), kept.log.clone(), kept.lane.clone());
    let handed = timely::execute_directly(move |worker| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
        let _entered = runtime.enter();
        let mut bench = Bench::with(worker, Gate::default(), history, log, limits);
        for epoch in said {
            bench.feed(0, epoch.iter().map(|said| said.item(false, append(&lane, said).0)).collect());
            bench.turn(worker);
        }
        bench.finish(worker);
        let handed = bench.deliveries.handed.lock().clone();
        worker.installed_dataflows().into_iter().for_each(|flow| worker.drop_dataflow(flow));
        handed
    });
    (kept, handed)
}

fn said(n: u16, side: Side, what: Deed) -> Said {
    Said { n, pair: 1, side, what }
}

#[test]
fn an_edit_may_follow_its_message_in_the_same_breath() {
    let batch = vec![
        said(1, Side::Mobile, Deed::Message),
        said(2, Side::Mobile, Deed::Edit(1)),
        said(3, Side::Business, Deed::Edit(1)),
        said(4, Side::Mobile, Deed::Delete(1)),
        said(5, Side::Mobile, Deed::Edit(1)),
    ];
    let (kept, _) = peace(ChatLimits::default(), vec![batch.clone()]);
    let shown = kept.history.talks.turns(pair(1).id(), Order::Oldest, None, 10, |_| Default::default()).rows;
    assert_eq!(shown.len(), 1, "edits and deletions are shown in what they are about");
    assert!(shown[0].deleted_at.is_some() && shown[0].edits == 1 && shown[0].content().is_none());
    let refused = |said: &Said| kept.facts(said.id(), |what| matches!(what, What::Failed(_)));
    assert_eq!(
        refused(&batch[2])[0].what,
        What::Failed(Reason::UnknownMessage),
        "the business names a message of its own"
    );
    assert_eq!(refused(&batch[4])[0].what, What::Failed(Reason::MessageDeleted));
}

#[test]
fn what_is_written_to_a_handed_conversation_goes_to_who_has_it() {
    let (kept, handed) = peace(
        ChatLimits::default(),
        vec![
            vec![said(1, Side::Mobile, Deed::Message), said(2, Side::Business, Deed::Assign("omar"))],
            vec![said(3, Side::Mobile, Deed::Message), said(4, Side::Business, Deed::Message)],
        ],
    );
    let to = |n: u16, side| {
        let id = id_of(n, 1, side);
        handed.iter().filter(|(of, ..)| *of == id).map(|(_, to, _)| to.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(to(3, Side::Mobile), ["acme/business:omar"; 2], "to who has it, and a copy to its writer");
    let last = kept.thread(1).pop().unwrap();
    assert_eq!(last.message.to.to_string(), "acme/business:omar");
    let refused = kept.facts(id_of(4, 1, Side::Business), |what| matches!(what, What::Failed(_)));
    assert_eq!(refused[0].what, What::Failed(Reason::AssignedElsewhere));
    assert!(refused[0].position == schemas::Position::START && !Reason::AssignedElsewhere.is_retryable());
    for inbox in ["acme/business:sara", "acme/business:omar", "acme/+962790000001"] {
        let written = kept.history.written.lock();
        let note = |entry: &schemas::port::Entry| matches!(entry.message.kind, Kind::Note(_));
        let has = written.iter().any(|(entry, _)| entry.inbox.user.to_string() == inbox && note(entry));
        assert!(has, "{inbox} was told who has it");
    }
}

#[test]
fn r9_4_each_message_is_told_that_it_was_read_in_pieces_that_fit() {
    let messages = (0..9).map(|n| said(n, Side::Business, Deed::Message)).collect();
    let reads = vec![
        said(20, Side::Mobile, Deed::Read(4)),
        said(21, Side::Mobile, Deed::Read(2)),
        said(22, Side::Business, Deed::Read(99)),
        said(23, Side::Mobile, Deed::ReadAt(6)),
        said(24, Side::Mobile, Deed::Read(6)),
    ];
    let limits = ChatLimits { receipts: 2, ..ChatLimits::default() };
    let (kept, _) = peace(limits, vec![messages, reads]);
    for n in 0..9 {
        let told = kept.facts(id_of(n, 1, Side::Business), |what| *what == What::Read);
        assert_eq!(told.len(), usize::from(n < 7), "message {n}");
        assert!(told.iter().all(|fact| fact.inbox.user == pair(1).mobile() && fact.position.n > 0));
    }
    let row = kept.row(1).unwrap();
    assert_eq!((row.mobile.unread(), row.mobile.read_seq), (2, 7));
    let records = kept.log.all(Topic::Outcomes);
    let sizes = records.iter().map(|record| codec::decode::<Vec<Fact>>(&record.body).unwrap());
    assert!(sizes.filter(|facts| facts.iter().any(|fact| fact.what == What::Read)).all(|facts| facts.len() <= 2));
}

#[test]
fn nobody_waits_for_a_copy_and_nothing_is_said_about_it() {
    // User 9 is nowhere, user 8's node does not answer: both write.
    for of in [8, 9] {
        let message = Said { n: 1, pair: of, side: Side::Mobile, what: Deed::Message };
        let (kept, _) = peace(ChatLimits::default(), vec![vec![message.clone()]]);
        assert!(kept.log.facts().is_empty(), "the business has taken it; its writer's devices say nothing");
        assert!(kept.log.all(Topic::Retry(Tier::ALL[0])).is_empty());
        let written = kept.history.written.lock();
        assert_eq!(written.iter().filter(|(entry, _)| entry.message.id == message.id()).count(), 2);
    }
}

#[test]
fn what_one_does_for_oneself_is_told_to_one_s_own_devices_alone() {
    let (kept, _) = peace(
        ChatLimits::default(),
        vec![vec![
            said(1, Side::Business, Deed::Message),
            said(2, Side::Business, Deed::Archive(true)),
            said(3, Side::Mobile, Deed::Block(true)),
            said(4, Side::Business, Deed::Message),
        ]],
    );
    let row = kept.row(1).unwrap();
    assert!(row.business.archived && row.blocked && row.last_seq == 1);
    let written = kept.history.written.lock();
    let of = |n, side| {
        let id = id_of(n, 1, side);
        written
            .iter()
            .filter(|(entry, _)| entry.message.id == id)
            .map(|(e, _)| e.inbox.user.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(of(2, Side::Business), ["acme/business:sara"]);
    assert_eq!(of(3, Side::Mobile), ["acme/+962790000001"]);
    let refused = kept.facts(id_of(4, 1, Side::Business), |what| matches!(what, What::Failed(Reason::Blocked)));
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].what.status(), Some(Status::Failed));
}

#[test]
fn p2_two_creators_at_once_make_one() {
    for (first, second) in [(Side::Mobile, Side::Business), (Side::Business, Side::Mobile)] {
        let batch = vec![
            said(1, first, Deed::Open),
            said(2, second, Deed::Open),
            said(3, second, Deed::Message),
            said(4, first, Deed::Message),
        ];
        let (kept, _) = peace(ChatLimits::default(), vec![batch]);
        let row = kept.row(1).unwrap();
        assert_eq!((row.last_seq, row.mobile.unread(), row.business.unread()), (2, 1, 1));
    }
}
