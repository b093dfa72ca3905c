//! Record: before anyone is told, each message is in history, with a place in its recipient's inbox.
//!
//! Positions are given on the instance's thread, in the order in which batches come here, from the ends shared by the lanes;
//! writes are handed to history in that order and released in that order, over all lanes. A write that history did not
//! confirm is repeated at the same places with the same bytes, for ever, and nothing after it is released before it (rule 1).
//! What may be known already (a key, a replayed record, an end met for the first time) is asked of history first, in one
//! batched read; the batches of a lane keep their order meanwhile. Each batch's epoch stays open until it is released.

use std::{cell::RefCell, collections::VecDeque, rc::Rc, time::Duration};

use futures::join;
use schemas::{
    Epoch, Inbox, Lane, MessageId,
    port::{Entry, History, PortResult, Schedule, Tail},
};
use timely::{
    dataflow::{
        channels::pact::Pipeline,
        operators::{Capability, generic::Operator},
    },
    scheduling::Activator,
};

use super::{Batches, Recorded, named};
use crate::{
    backoff::Backoff,
    gauges,
    item::{Batch, Item, Step, Work},
    place::{Found, Placing, Plan},
    shared::Shared,
};

/// The items of a batch, each message with its inbox.
type Items = Vec<(Option<Inbox>, Item)>;

/// What is asked of history before a batch's places can be given.
#[derive(Default)]
struct Questions {
    known: Vec<MessageId>,
    due: Vec<MessageId>,
    tails: Vec<(Inbox, Epoch)>,
}

/// The answers.
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
        let (items, questions) = self.questions(std::mem::take(&mut batch.load));
        let batch = batch.with(items);
        if questions.known.is_empty() && questions.due.is_empty() && questions.tails.is_empty() {
            let answers = Answers { found: Found::default(), tails: Vec::new() };
            self.line.push_back((cap, Stage::Ready(batch, answers)));
            return;
        }
        let number = self.first + self.line.len() as u64;
        self.line.push_back((cap, Stage::Asking(batch)));
        let (answers, activator) = (self.answers.clone(), self.activator.clone());
        let history = self.shared.kit.ports.history.clone();
        self.shared.rim.give(async move {
            let answer = ask(&*history, questions).await;
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
            if tails.pin(&inbox, item.epoch) {
                questions.tails.push((inbox.clone(), item.epoch));
            }
            if fresh.due.is_some() {
                questions.due.push(fresh.message.id);
            } else if fresh.ask() {
                questions.known.push(fresh.message.id);
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
            (cap, Stage::Writing(batch, _)) => Some((cap, batch)),
            _ => None,
        }
    }
}

/// Gives places and hands the write to history: from here on its order among all writes is fixed.
fn write(shared: &Rc<Shared>, lane: Lane, mut batch: Batch<Items>, answers: &Answers) -> Stage {
    let number = shared.releases.begin();
    let mut tails = shared.tails.borrow_mut();
    for ((inbox, epoch), tail) in &answers.tails {
        tails.learn(inbox, *epoch, *tail);
    }
    let now = shared.kit.clock.wall();
    let mut placing = Placing { lane, now, write: number, found: &answers.found, tails: &mut tails };
    let Plan { entries, schedule, steps, repeats } = placing.plan(std::mem::take(&mut batch.load));
    drop(tails);
    gauges::add(&shared.count(lane).recorded, entries.len());
    gauges::add(&shared.count(lane).repeats, repeats);
    if entries.is_empty() && schedule.add.is_empty() && schedule.done.is_empty() {
        let below = shared.releases.end(number);
        shared.tails.borrow_mut().release(below);
    } else {
        let shared = shared.clone();
        let rim = shared.rim.clone();
        rim.give(async move {
            let within = Duration::from_millis(shared.kit.limits.flow.record_ms);
            until_recorded(&*shared.kit.ports.history, &entries, &schedule, within).await;
            let below = shared.releases.end(number);
            shared.tails.borrow_mut().release(below);
        });
    }
    Stage::Writing(batch.with(steps), number)
}

/// Writes, and writes again at the same places with the same bytes, until history has confirmed it.
pub(super) async fn until_recorded(history: &dyn History, entries: &[Entry], schedule: &Schedule, within: Duration) {
    let mut backoff = Backoff::default();
    loop {
        match tokio::time::timeout(within, history.record(entries, schedule)).await {
            Ok(Ok(())) => return,
            Ok(Err(why)) => again("record", &why, &backoff),
            Err(_) => again("record", &"history did not answer in time", &backoff),
        }
        backoff.wait().await;
    }
}

/// Asks, and asks again until history answers.
async fn ask(history: &dyn History, questions: Questions) -> Answers {
    let Questions { known, due, tails } = questions;
    let inboxes: Vec<_> = tails.iter().map(|(inbox, _)| inbox.clone()).collect();
    let (found, placed, ends) = join!(
        until_answered(&known, || history.known(&known)),
        until_answered(&due, || history.messages(&due)),
        until_answered(&inboxes, || history.tails(&inboxes)),
    );
    let known = known.into_iter().zip(found).filter_map(|(id, known)| Some((id, known?))).collect();
    let due = due.into_iter().zip(placed).filter_map(|(id, placed)| Some((id, placed?))).collect();
    Answers { found: Found { known, due }, tails: tails.into_iter().zip(ends).collect() }
}

/// Reads until there is one answer for each that is asked.
pub(crate) async fn until_answered<Asked, Answer, Reading>(asked: &[Asked], read: impl Fn() -> Reading) -> Vec<Answer>
where
    Reading: Future<Output = PortResult<Vec<Answer>>>,
{
    let mut backoff = Backoff::default();
    loop {
        if asked.is_empty() {
            return Vec::new();
        }
        match read().await {
            Ok(answers) if answers.len() == asked.len() => return answers,
            Ok(_) => again("read", &"history answered another number than was asked", &backoff),
            Err(why) => again("read", &why, &backoff),
        }
        backoff.wait().await;
    }
}

/// Says that an act is repeated: at once for the first time, then less and less often.
pub(crate) fn again(act: &'static str, why: &dyn std::fmt::Display, backoff: &Backoff) {
    metrics::counter!("esh3ar_port_retries_total", "call" => act).increment(1);
    if backoff.count().is_power_of_two() || backoff.count() == 0 {
        tracing::warn!(act, %why, times = backoff.count(), "an act did not succeed and is repeated");
    }
}
