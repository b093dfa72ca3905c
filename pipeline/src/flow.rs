//! The flow: a message's way through one lane. Three copies of it run in each instance, one a lane, each with an input and a
//! frontier of its own, so that a waiting Low never holds High's commits (rule 4).

use std::{rc::Rc, sync::Arc};

use schemas::Lane;
use timely::dataflow::Scope;
use tokio::sync::mpsc::Receiver;

use crate::{
    operators::{
        batch::batch,
        commit::commit,
        dedupe::dedupe,
        deliver::deliver,
        expire::expire,
        functions::functions,
        prioritise::prioritise,
        record::record,
        route::route,
        source::{Feed, source},
    },
    shared::Shared,
    wake::Wake,
};

/// Builds one lane's flow. Gives the bell to ring when its feeder has sent something.
pub(crate) fn flow(scope: Scope<'_, u64>, lane: Lane, shared: &Rc<Shared>, feeds: Receiver<Feed>) -> Arc<Wake> {
    let s = shared;
    let (items, bell) = source(scope, lane, s, feeds);
    items
        .then(|items| expire(items, lane, s))
        .then(|items| dedupe(items, lane, s))
        .then(|items| functions(items, lane, s))
        .then(|items| prioritise(items, lane, s))
        .then(|items| batch(items, lane, s))
        .then(|batches| record(batches, lane, s))
        .then(|batches| route(batches, lane, s))
        .then(|batches| deliver(batches, lane, s))
        .then(|done| commit(done, lane, s));
    bell
}

/// Lets the flow read as it runs.
trait Then: Sized {
    fn then<Next>(self, next: impl FnOnce(Self) -> Next) -> Next {
        next(self)
    }
}

impl<S> Then for S {}

#[cfg(test)]
mod tests;
