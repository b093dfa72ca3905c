//! Record: before anyone is told, each message is in history, with a place in its recipient's inbox.
//!
//! Positions are given on the instance's thread, in the order in which batches come here, from the ends shared by the lanes;
//! writes are handed to history in that order and released in that order, over all lanes. A write that history did not
//! confirm is repeated at the same places with the same bytes, for ever, and nothing after it is released before it (rule 1).
//! What may be known already (a key, a replayed record, an end met for the first time) is asked of history first, in one
//! batched read; the batches of a lane keep their order meanwhile. Each batch's epoch stays open until it is released.
//! Ends are read before ids are asked for: an id that stands beyond the end was written by an owner that had lost the
//! partition by then, and counts as unknown. Items of a partition that was lost ([`crate::ownership`]) are dropped wherever
//! they are.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
};

use futures::{StreamExt, TryStreamExt, join, stream};
use schemas::{
    Conversation, ConversationId, Epoch, Inbox, Lane, MessageId, Tenant,
    conversation::{Command, UpTo},
    port::{Due, DueKind, History, Order, Tail},
};
use timely::{
    dataflow::{
        channels::pact::Pipeline,
        operators::{Capability, generic::Operator},
    },
    scheduling::Activator,
};

use super::{
    Batches, Recorded, named,
    repeat::{is_empty, until_answered, until_recorded},
};
use crate::{
    conversations::Threads,
    gauges,
    item::{Batch, Item, Step, Work},
    ownership::Owners,
    place::{Concerned, Found, Placing, Plan, concerned},
    shared::{Kit, Shared},
    tails::{Tails, is_inherited},
    tenants::Kind,
    trace,
};

/// Turns that are read at once for what marks stand for.
const READS: usize = 16;

/// The items of a batch, each message with its inbox.
type Items = Vec<(Option<Inbox>, Item)>;

/// What is asked of history before a batch's places can be given.
#[derive(Debug, Default)]
struct Questions {
    known: Vec<MessageId>,
    /// To be asked for where the inbox turns out to be inherited.
    doubtful: Vec<(MessageId, Inbox, Epoch)>,
    due: Vec<MessageId>,
    tails: Vec<(Inbox, Epoch)>,
    /// Conversations met for the first time, with the inboxes that what is said there may be written to.
    threads: BTreeMap<(ConversationId, Epoch), BTreeSet<Inbox>>,
    /// Chat messages that may have come before, or that commands are about.
    said: Vec<MessageId>,
    /// Turns whose counts a mark stands for.
    turns: Vec<(ConversationId, u64)>,
    /// What may have been said or asked before, and stand in part.
    counted: Vec<(ConversationId, MessageId)>,
}

impl Questions {
    fn is_empty(&self) -> bool {
        let Self { known, doubtful: _, due, tails, threads, said, turns, counted } = self;
        let plain = known.is_empty() && due.is_empty() && tails.is_empty() && counted.is_empty();
        plain && threads.is_empty() && said.is_empty() && turns.is_empty()
    }
}

/// The answers.
#[derive(Default)]
struct Answers {
    found: Found,
    tails: Vec<((Inbox, Epoch), Tail)>,
    threads: Vec<((ConversationId, Epoch), Option<Conversation>)>,
}

/// What a batch holds for its chat until it has its places.
#[derive(Debug, Default)]
struct Holds {
    threads: Vec<(ConversationId, Epoch)>,
    /// `None` until the rows are known, which say whose inboxes they are.
    inboxes: Option<Vec<(Inbox, Epoch)>>,
}

/// A batch on its way through the operator.
enum Stage {
    /// History is being asked; what it answered so far.
    Asking(Batch<Items>, Holds, Answers),
    /// It answered, or had not to be asked.
    Ready(Batch<Items>, Holds, Answers),
    /// Being written, as this write.
    Writing(Batch<Vec<Step>>, u64),
    /// Between two of them.
    Passing,
}

/// The operator.
pub(crate) fn record<'scope>(batches: Batches<'scope>, lane: Lane, shared: &Rc<Shared>) -> Recorded<'scope> {
    let (scope, shared) = (batches.scope(), shared.clone());
    batches.unary(Pipeline, &named("record", lane), move |_, info| {
        shared.releases.gate(lane, scope.activator_for(info.address.clone()));
        let activator = Rc::new(scope.activator_for(info.address));
        let mut line = Line { shared, lane, activator, first: 0, line: VecDeque::new(), answers: Rc::default() };
        move |input, output| {
            input.for_each(|cap, batches| {
                for batch in batches.drain(..) {
                    if let Some(cap) = cap.retain_least(output.output_index()) {
                        line.add(cap, batch);
                    }
                }
            });
            line.turn();
            while let Some((cap, batch)) = line.released() {
                output.session(&cap).give(batch);
            }
        }
    })
}

/// The batches of one lane, in order.
struct Line {
    shared: Rc<Shared>,
    lane: Lane,
    activator: Rc<Activator>,
    /// The number of the first in line.
    first: u64,
    line: VecDeque<(Capability<u64>, Stage)>,
    answers: Rc<RefCell<Vec<(u64, Answers)>>>,
}

impl Line {
    /// A batch joins the line; what history must tell about it is asked at once.
    fn add(&mut self, cap: Capability<u64>, mut batch: Batch<Vec<Item>>) {
        self.shared.kit.counters.tenants.wait_no_more(self.lane, batch.load.iter().map(Item::tenant));
        batch.owners = Owners::of(&mut batch.load, &self.shared.kit.ownership);
        let (items, holds, questions) = self.questions(std::mem::take(&mut batch.load));
        let batch = batch.with(items);
        if questions.is_empty() {
            self.line.push_back((cap, Stage::Ready(batch, holds, Answers::default())));
            return;
        }
        let number = self.first + self.line.len() as u64;
        let owners = batch.owners.clone();
        self.line.push_back((cap, Stage::Asking(batch, holds, Answers::default())));
        self.ask(number, owners, questions);
    }

    /// Asks history for the batch with this number.
    fn ask(&self, number: u64, owners: Owners, questions: Questions) {
        let (answers, activator) = (self.answers.clone(), self.activator.clone());
        let shared = self.shared.clone();
        self.shared.rim.give(async move {
            // Without an answer nothing of the batch is ours any more: it is dropped when it is placed.
            let answer = ask(&shared.kit, &owners, questions).await.unwrap_or_default();
            answers.borrow_mut().push((number, answer));
            activator.activate();
        });
    }

    /// Holds the ends and conversations that a batch will use, and collects what is not known.
    fn questions(&self, items: Vec<Item>) -> (Items, Holds, Questions) {
        let (mut questions, mut holds) = (Questions::default(), Holds::default());
        let mut tails = self.shared.tails.borrow_mut();
        let mut threads = self.shared.threads.borrow_mut();
        let items = items.into_iter().map(|item| {
            if talk(&item, &mut threads, &mut holds, &mut questions) {
                return (None, item);
            }
            let Work::Fresh(fresh) = &item.work else { return (None, item) };
            let inbox = Inbox { user: fresh.message.to.clone(), partition: item.partition };
            let (id, unknown) = (fresh.message.id, tails.pin(&inbox, item.epoch));
            if unknown {
                questions.tails.push((inbox.clone(), item.epoch));
            }
            if fresh.due.is_some() {
                questions.due.push(id);
            } else if fresh.ask() || tails.doubts(&inbox, item.epoch, fresh.message.accepted_at) {
                questions.known.push(id);
            } else if unknown {
                questions.doubtful.push((id, inbox.clone(), item.epoch));
            }
            (Some(inbox), item)
        });
        let items = items.collect();
        // An inbox is asked for once, however many of the batch go there.
        questions.tails.sort_unstable();
        questions.tails.dedup();
        (items, holds, questions)
    }

    /// Gives places to the batches at the front that have their answers, and starts their writes.
    fn turn(&mut self) {
        for (number, answer) in self.answers.borrow_mut().drain(..) {
            if let Some((_, stage)) = self.line.get_mut((number - self.first) as usize)
                && let Stage::Asking(batch, holds, so_far) = std::mem::replace(stage, Stage::Passing)
            {
                *stage = Stage::Ready(batch, holds, so_far.and(answer));
            }
        }
        for i in 0..self.line.len() {
            match std::mem::replace(&mut self.line[i].1, Stage::Passing) {
                Stage::Ready(mut batch, mut holds, answers) => {
                    drop_lost(&self.shared, &mut batch);
                    let unknown = hold(&self.shared, &batch.load, &mut holds, &answers);
                    if unknown.is_empty() {
                        self.line[i].1 = write(&self.shared, self.lane, batch, holds, &answers);
                    } else {
                        // Whose inboxes they are is known by now; their ends are not.
                        let owners = batch.owners.clone();
                        self.line[i].1 = Stage::Asking(batch, holds, answers);
                        let questions = Questions { tails: unknown, ..Questions::default() };
                        self.ask(self.first + i as u64, owners, questions);
                        return;
                    }
                }
                other => {
                    let asking = matches!(other, Stage::Asking(..));
                    self.line[i].1 = other;
                    if asking {
                        return;
                    }
                }
            }
        }
    }

    /// The front batch, once it may go on.
    fn released(&mut self) -> Option<(Capability<u64>, Batch<Vec<Step>>)> {
        match self.line.front()? {
            (_, Stage::Writing(_, number)) if self.shared.releases.released(*number) => {}
            _ => return None,
        }
        self.first += 1;
        match self.line.pop_front()? {
            (cap, Stage::Writing(mut batch, _)) => {
                batch.drop_lost(&self.shared.kit.ownership);
                if trace::on() {
                    told(self.lane, &batch.load);
                }
                Some((cap, batch))
            }
            _ => None,
        }
    }
}

/// Messages that were recorded.
fn told(lane: Lane, steps: &[Step]) {
    for step in steps {
        if let Step::Offer(hint) | Step::Fail(hint, _) = step {
            trace::reached(trace::Stage::Recorded, &hint.message, lane, hint.attempt);
        }
    }
}

/// Gives places and hands the write to history: from here on its order among all writes is fixed.
#[allow(clippy::needless_pass_by_value, reason = "what the batch held is let go when its places are given")]
fn write(shared: &Rc<Shared>, lane: Lane, mut batch: Batch<Items>, holds: Holds, answers: &Answers) -> Stage {
    let number = shared.releases.begin();
    let (mut tails, mut threads) = (shared.tails.borrow_mut(), shared.threads.borrow_mut());
    let now = shared.kit.clock.wall();
    for ((inbox, epoch), tail) in &answers.tails {
        tails.learn(inbox, *epoch, *tail, now);
    }
    for (inbox, item) in &mut batch.load {
        match (inbox, &mut item.work) {
            (Some(inbox), Work::Fresh(fresh)) => {
                fresh.replay |= tails.doubts(inbox, item.epoch, fresh.message.accepted_at);
            }
            (None, Work::Fresh(fresh)) => {
                let id = fresh.message.kind.conversation();
                fresh.replay |= id.is_some_and(|id| threads.doubts(id, item.epoch, fresh.message.accepted_at));
            }
            (_, Work::Chat(asked)) => {
                let (id, at) = (asked.command.pair.id(), asked.command.accepted_at);
                asked.replay |= threads.doubts(id, item.epoch, at);
            }
            _ => {}
        }
    }
    let chat = &shared.kit.limits.chat;
    let mut placing = Placing {
        lane,
        now,
        write: number,
        found: &answers.found,
        tails: &mut tails,
        threads: &mut threads,
        chat,
        retention_ms: shared.kit.limits.message.retention_ms,
    };
    let Plan { entries, schedule, steps, repeats } = placing.plan(std::mem::take(&mut batch.load));
    holds.threads.iter().for_each(|(id, epoch)| threads.unpin(*id, *epoch));
    holds.inboxes.iter().flatten().for_each(|(inbox, epoch)| tails.unpin(inbox, *epoch));
    drop((tails, threads));
    // A writer's own copy is no message of its own.
    let messages = entries.iter().filter(|entry| entry.inbox.user == entry.message.to).count();
    gauges::add(&shared.count(lane).recorded, messages);
    shared.tell(lane, Kind::Recorded, entries.iter().map(|entry| entry.message.tenant()));
    shared.tell(lane, Kind::Scheduled, schedule.add.iter().filter_map(|due| scheduled(due)));
    gauges::add(&shared.count(lane).repeats, repeats);
    if entries.is_empty() && is_empty(&schedule) {
        let below = shared.releases.end(number);
        shared.release(below);
    } else {
        let (shared, owners) = (shared.clone(), batch.owners.clone());
        let rim = shared.rim.clone();
        rim.give(async move {
            let begun = shared.kit.clock.mono();
            until_recorded(&shared.kit, entries, schedule, owners).await;
            shared.took(&shared.stages.recorded, begun);
            let below = shared.releases.end(number);
            shared.release(below);
        });
    }
    Stage::Writing(batch.with(steps), number)
}

/// Holds a conversation for what is said or asked in it, and collects what is not known of it. False: it is no chat.
fn talk(item: &Item, threads: &mut Threads, holds: &mut Holds, questions: &mut Questions) -> bool {
    let (id, of, ask, replay, accepted_at) = match &item.work {
        Work::Fresh(fresh) => match fresh.message.kind.conversation() {
            Some(id) => (id, fresh.message.id, fresh.ask(), fresh.replay, fresh.message.accepted_at),
            None => return false,
        },
        Work::Chat(asked) => {
            (asked.command.pair.id(), asked.command.id, asked.ask(), asked.replay, asked.command.accepted_at)
        }
        Work::Again(_) | Work::Dead(_) => return false,
    };
    let unknown = threads.pin(id, item.epoch);
    holds.threads.push((id, item.epoch));
    if unknown {
        let inboxes = questions.threads.entry((id, item.epoch)).or_default();
        let users = chat(&item.work).map(|(_, work)| concerned(work, None)).unwrap_or_default();
        inboxes.extend(users.into_iter().map(|user| Inbox { user, partition: item.partition }));
    }
    // Of one that is met for the first time after a takeover, the owner before us may have recorded what came lately; what it
    // recorded in part comes again as such, so that a name alone is asked for once.
    let begun = replay || unknown || threads.doubts(id, item.epoch, accepted_at);
    let ask = ask || begun;
    match &item.work {
        Work::Chat(asked) => {
            if ask && asked.command.command.is_named() {
                questions.known.push(of);
                questions.counted.extend(begun.then_some((id, of)));
            }
            questions.said.extend(asked.command.command.about());
            if let Command::Read { up_to: UpTo::Seq(seq) } = asked.command.command {
                questions.turns.push((id, seq));
            }
        }
        _ if ask => {
            questions.said.push(of);
            questions.counted.extend(begun.then_some((id, of)));
        }
        _ => {}
    }
    true
}

/// What an item is of a conversation.
fn chat(work: &Work) -> Option<(ConversationId, Concerned<'_>)> {
    match work {
        Work::Fresh(fresh) => {
            let id = fresh.message.kind.conversation()?;
            Some((id, Concerned::Message(&fresh.message)))
        }
        Work::Chat(asked) => Some((asked.command.pair.id(), Concerned::Command(&asked.command))),
        Work::Again(_) | Work::Dead(_) => None,
    }
}

/// Drops what belongs to partitions that were lost.
fn drop_lost(shared: &Shared, batch: &mut Batch<Items>) {
    let gone = batch.owners.drop_lost(&shared.kit.ownership);
    if !gone.is_empty() {
        let mut tails = shared.tails.borrow_mut();
        let_go(&mut batch.load, &mut tails, |item| gone.contains(&item.partition));
    }
}

/// Holds the inboxes that a batch's chat may write to, by the rows as they are once everything before it is placed. Names
/// those whose ends are not known.
fn hold(shared: &Shared, items: &Items, holds: &mut Holds, answers: &Answers) -> Vec<(Inbox, Epoch)> {
    if holds.threads.is_empty() || holds.inboxes.is_some() {
        return Vec::new();
    }
    let (mut tails, mut threads) = (shared.tails.borrow_mut(), shared.threads.borrow_mut());
    let now = shared.kit.clock.wall();
    for ((id, epoch), row) in &answers.threads {
        threads.learn(*id, *epoch, row.clone(), now);
    }
    let (mut held, mut unknown) = (BTreeSet::new(), Vec::new());
    for (_, item) in items {
        let Some((id, work)) = chat(&item.work) else { continue };
        for user in concerned(work, threads.row(id, item.epoch)) {
            held.insert((Inbox { user, partition: item.partition }, item.epoch));
        }
        let counted = answers.found.counted.get(&work.id());
        held.extend(counted.iter().flat_map(|counted| &counted.missing).map(|inbox| (inbox.clone(), item.epoch)));
    }
    for (inbox, epoch) in &held {
        if tails.pin(inbox, *epoch) {
            unknown.push((inbox.clone(), *epoch));
        }
    }
    holds.inboxes = Some(held.into_iter().collect());
    // What one-way messages of the batch asked for is answered already.
    unknown.retain(|asked| answers.tails.iter().all(|(there, _)| there != asked));
    unknown
}

/// Whose message a row is to send later.
fn scheduled(due: &Due) -> Option<&Tenant> {
    match &due.kind {
        DueKind::Send(message) => Some(message.tenant()),
        DueKind::Expire { .. } => None,
    }
}

/// Removes items, and lets go of the ends that they hold.
fn let_go(items: &mut Items, tails: &mut Tails, gone: impl Fn(&Item) -> bool) {
    items.retain(|(inbox, item)| {
        let gone = gone(item);
        if let Some(inbox) = inbox.as_ref().filter(|_| gone) {
            tails.unpin(inbox, item.epoch);
        }
        !gone
    });
}

impl Answers {
    /// These, and what was answered later.
    fn and(mut self, later: Self) -> Self {
        let Self { found, tails, threads } = later;
        self.found.known.extend(found.known);
        self.found.due.extend(found.due);
        self.found.said.extend(found.said);
        self.found.counts.extend(found.counts);
        self.found.counted.extend(found.counted);
        self.tails.extend(tails);
        self.threads.extend(threads);
        self
    }
}

/// Asks, and asks again until history answers. The ends and rows first, and then what is known.
async fn ask(kit: &Kit, owners: &Owners, questions: Questions) -> Option<Answers> {
    let Questions { mut known, doubtful, due, tails, threads, said, turns, counted } = questions;
    let inboxes: Vec<_> = tails.iter().map(|(inbox, _)| inbox.clone()).collect();
    let taken: Vec<_> = threads.iter().map(|((id, _), inboxes)| (*id, inboxes.iter().cloned().collect())).collect();
    let history: &dyn History = &*kit.ports.history;
    let (ends, rows) = join!(
        until_answered(kit, owners, &inboxes, || history.tails(&inboxes)),
        until_answered(kit, owners, &taken, || history.owned(&taken)),
    );
    let (ends, rows) = (ends?, rows?);
    let inherited = |inbox: &Inbox, epoch: Epoch| {
        let at = tails.binary_search_by(|(there, _)| there.cmp(inbox)).ok();
        at.and_then(|at| ends.get(at)).is_some_and(|tail| is_inherited(tail, epoch))
    };
    known.extend(doubtful.iter().filter(|(_, inbox, epoch)| inherited(inbox, *epoch)).map(|(id, ..)| *id));
    let counts = || {
        let one = async |(id, seq): (ConversationId, u64)| {
            let last = history.turns(id, Order::Newest, Some(seq.saturating_add(1)), 1).await?.rows.pop();
            Ok(last.map(|shown| (shown.turn.to_mobile, shown.turn.to_business)))
        };
        stream::iter(turns.iter().copied()).map(one).buffered(READS).try_collect::<Vec<_>>()
    };
    let (found, placed, heard, counts, parts) = join!(
        until_answered(kit, owners, &known, || history.known(&known)),
        until_answered(kit, owners, &due, || history.messages(&due)),
        until_answered(kit, owners, &said, || history.said(&said)),
        until_answered(kit, owners, &turns, counts),
        until_answered(kit, owners, &counted, || history.counted(&counted)),
    );
    let found = Found {
        known: known.into_iter().zip(found?).filter_map(|(id, known)| Some((id, known?))).collect(),
        due: due.into_iter().zip(placed?).filter_map(|(id, placed)| Some((id, placed?))).collect(),
        said: said.into_iter().zip(heard?).filter_map(|(id, shown)| Some((id, shown?))).collect(),
        counts: turns.into_iter().zip(counts?).filter_map(|(at, counts)| Some((at, counts?))).collect(),
        counted: counted.into_iter().zip(parts?).filter_map(|((_, id), counted)| Some((id, counted?))).collect(),
    };
    let (tails, threads) = (tails.into_iter().zip(ends).collect(), threads.into_keys().zip(rows).collect());
    Some(Answers { found, tails, threads })
}
