//! The common shape of operators that act: each batch's act runs on the rim, and its epoch stays open until the act has ended.
//!
//! Holds one capability per batch, at the batch's least epoch. Acts are first polled in the order in which batches came; their
//! answers are passed on in that order too. A dataflow that is dropped forgets its acts, and no epoch is closed by that.

use std::{cell::RefCell, collections::VecDeque, future::Future, rc::Rc};

use schemas::Lane;
use timely::dataflow::{
    Stream,
    channels::pact::Pipeline,
    operators::{Capability, generic::Operator},
};

use super::named;
use crate::rim::Rim;

/// What an act gives: now, or later.
pub(crate) enum Act<Now, Later> {
    /// Nothing to wait for.
    Now(Now),
    /// A future to be run.
    Later(Later),
}

/// Batches whose acts have not been passed on, oldest first.
struct Waiting<Answer> {
    first: u64,
    line: VecDeque<(Capability<u64>, Option<Answer>)>,
}

impl<Answer> Waiting<Answer> {
    fn add(&mut self, cap: Capability<u64>, answer: Option<Answer>) -> u64 {
        self.line.push_back((cap, answer));
        self.first + self.line.len() as u64 - 1
    }

    fn answered(&mut self, number: u64, answer: Answer) {
        if let Some((_, place)) = self.line.get_mut((number - self.first) as usize) {
            *place = Some(answer);
        }
    }

    fn pop(&mut self) -> Option<(Capability<u64>, Answer)> {
        self.line.front()?.1.as_ref()?;
        self.first += 1;
        let (cap, answer) = self.line.pop_front()?;
        answer.map(|answer| (cap, answer))
    }
}

/// Runs an act for each batch, and passes on the answers in the order of the batches.
pub(crate) fn act_in_order<'scope, Given: 'static, Answer: 'static, Later: Future<Output = Answer> + 'static>(
    batches: Stream<'scope, u64, Vec<Given>>,
    operator: &str,
    lane: Lane,
    rim: Rim,
    mut start: impl FnMut(Given) -> Act<Answer, Later> + 'static,
) -> Stream<'scope, u64, Vec<Answer>> {
    let scope = batches.scope();
    batches.unary(Pipeline, &named(operator, lane), move |_, info| {
        let activator = Rc::new(scope.activator_for(info.address));
        let answers = Rc::new(RefCell::new(Vec::<(u64, Answer)>::new()));
        let mut waiting = Waiting { first: 0, line: VecDeque::new() };
        move |input, output| {
            for (number, answer) in answers.borrow_mut().drain(..) {
                waiting.answered(number, answer);
            }
            input.for_each(|cap, batches| {
                for batch in batches.drain(..) {
                    // Every batch of this flow came under a capability, so there is a least epoch.
                    let Some(cap) = cap.retain_least(output.output_index()) else { continue };
                    match start(batch) {
                        Act::Now(answer) => {
                            waiting.add(cap, Some(answer));
                        }
                        Act::Later(act) => {
                            let number = waiting.add(cap, None);
                            let (answers, activator) = (answers.clone(), activator.clone());
                            rim.give(async move {
                                let answer = act.await;
                                answers.borrow_mut().push((number, answer));
                                activator.activate();
                            });
                        }
                    }
                }
            });
            while let Some((cap, answer)) = waiting.pop() {
                output.session(&cap).give(answer);
            }
        }
    })
}
