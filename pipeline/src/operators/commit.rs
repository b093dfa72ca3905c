//! Commit: where a lane's flow ends. Tells who owns the consumer how far the lane is done: every epoch below the frontier.

use std::{rc::Rc, sync::Arc};

use schemas::Lane;
use timely::dataflow::{channels::pact::Pipeline, operators::generic::Operator};

use super::{Done, named};
use crate::{progress::Progress, shared::Shared};

/// The operator.
pub(crate) fn commit(done: Done<'_>, lane: Lane, shared: &Rc<Shared>) {
    let progress: Arc<Progress> = shared.kit.progress.clone();
    done.sink(Pipeline, &named("commit", lane), move |(input, frontier)| {
        input.for_each(|_, _| {});
        // No frontier: everything is done and nothing comes any more.
        progress.reached(lane, frontier.frontier().first().copied().unwrap_or(u64::MAX));
    });
}
