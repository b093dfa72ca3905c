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

use std::{cell::RefCell, collections::VecDeque, rc::Rc};

use futures::join;
use schemas::{Epoch, Inbox, Lane, MessageId, port::Tail};
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
    gauges,
    item::{Batch, Item, Step, Work},
    ownership::Owners,
    place::{Found, Placing, Plan},
    shared::{Kit, Shared},
    tails::{Tails, is_inherited},
};

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
}

/// The answers.
#[derive(Default)]
struct Answers {
    found: Found,
    tails: Vec<((Inbox, Epoch), Tail)>,
}

/// A batch on its way through the operator.
enum Stage {
    /// History is being asked.
    Asking(Batch<Items>),
    /// It answered, or had not to be asked.
    Ready(Batch<Items>, Answers),
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
        batch.owners = Owners::of(&mut batch.load, &self.shared.kit.ownership);
        let (items, questions) = self.questions(std::mem::take(&mut batch.load));
        let batch = batch.with(items);
        if questions.known.is_empty() && questions.due.is_empty() && questions.tails.is_empty() {
            self.line.push_back((cap, Stage::Ready(batch, Answers::default())));
            return;
        }
        let number = self.first + self.line.len() as u64;
        let owners = batch.owners.clone();
        self.line.push_back((cap, Stage::Asking(batch)));
        let (answers, activator) = (self.answers.clone(), self.activator.clone());
        let shared = self.shared.clone();
        self.shared.rim.give(async move {
            // Without an answer nothing of the batch is ours any more: it is dropped when it is placed.
            let answer = ask(&shared.kit, &owners, questions).await.unwrap_or_default();
            answers.borrow_mut().push((number, answer));
            activator.activate();
        });
    }

    /// Holds the ends that a batch will use, and collects what is not known.
    fn questions(&self, items: Vec<Item>) -> (Items, Questions) {
        let mut questions = Questions::default();
        let mut tails = self.shared.tails.borrow_mut();
        let items = items.into_iter().map(|item| {
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
        (items, questions)
    }

    /// Gives places to the batches at the front that have their answers, and starts their writes.
    fn turn(&mut self) {
        for (number, answer) in self.answers.borrow_mut().drain(..) {
            if let Some((_, stage)) = self.line.get_mut((number - self.first) as usize)
                && let Stage::Asking(batch) = std::mem::replace(stage, Stage::Passing)
            {
                *stage = Stage::Ready(batch, answer);
            }
        }
        for i in 0..self.line.len() {
            let stage = &mut self.line[i].1;
            match std::mem::replace(stage, Stage::Passing) {
                Stage::Ready(batch, answers) => *stage = write(&self.shared, self.lane, batch, &answers),
                other => {
                    let asking = matches!(other, Stage::Asking(_));
                    *stage = other;
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
                Some((cap, batch))
            }
            _ => None,
        }
    }
}

/// Gives places and hands the write to history: from here on its order among all writes is fixed.
fn write(shared: &Rc<Shared>, lane: Lane, mut batch: Batch<Items>, answers: &Answers) -> Stage {
    let number = shared.releases.begin();
    let mut tails = shared.tails.borrow_mut();
    let gone = batch.owners.drop_lost(&shared.kit.ownership);
    if !gone.is_empty() {
        let_go(&mut batch.load, &mut tails, |item| gone.contains(&item.partition));
    }
    let now = shared.kit.clock.wall();
    for ((inbox, epoch), tail) in &answers.tails {
        tails.learn(inbox, *epoch, *tail, now);
    }
    for (inbox, item) in &mut batch.load {
        if let (Some(inbox), Work::Fresh(fresh)) = (inbox, &mut item.work) {
            fresh.replay |= tails.doubts(inbox, item.epoch, fresh.message.accepted_at);
        }
    }
    let mut placing = Placing { lane, now, write: number, found: &answers.found, tails: &mut tails };
    let Plan { entries, schedule, steps, repeats } = placing.plan(std::mem::take(&mut batch.load));
    drop(tails);
    gauges::add(&shared.count(lane).recorded, entries.len());
    gauges::add(&shared.count(lane).repeats, repeats);
    if entries.is_empty() && is_empty(&schedule) {
        let below = shared.releases.end(number);
        shared.tails.borrow_mut().release(below);
    } else {
        let (shared, owners) = (shared.clone(), batch.owners.clone());
        let rim = shared.rim.clone();
        rim.give(async move {
            until_recorded(&shared.kit, entries, schedule, owners).await;
            let below = shared.releases.end(number);
            shared.tails.borrow_mut().release(below);
        });
    }
    Stage::Writing(batch.with(steps), number)
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

/// Asks, and asks again until history answers. The ends first, and then what is known.
async fn ask(kit: &Kit, owners: &Owners, questions: Questions) -> Option<Answers> {
    let Questions { mut known, doubtful, due, tails } = questions;
    let inboxes: Vec<_> = tails.iter().map(|(inbox, _)| inbox.clone()).collect();
    let history = &kit.ports.history;
    let ends = until_answered(kit, owners, &inboxes, || history.tails(&inboxes)).await?;
    let inherited = |inbox: &Inbox, epoch: Epoch| {
        let at = tails.binary_search_by(|(there, _)| there.cmp(inbox)).ok();
        at.and_then(|at| ends.get(at)).is_some_and(|tail| is_inherited(tail, epoch))
    };
    known.extend(doubtful.iter().filter(|(_, inbox, epoch)| inherited(inbox, *epoch)).map(|(id, ..)| *id));
    let (found, placed) = join!(
        until_answered(kit, owners, &known, || history.known(&known)),
        until_answered(kit, owners, &due, || history.messages(&due)),
    );
    let known = known.into_iter().zip(found?).filter_map(|(id, known)| Some((id, known?))).collect();
    let due = due.into_iter().zip(placed?).filter_map(|(id, placed)| Some((id, placed?))).collect();
    Some(Answers { found: Found { known, due }, tails: tails.into_iter().zip(ends).collect() })
}
