//! What flows: items from the log or the due-table, batches of them, and the steps that are left once they are recorded.

use std::sync::Arc;

use schemas::{
    Epoch, Lane, Message, Partition, Reason,
    port::{Dead, Due, Hint},
    record::Again,
};

use crate::{
    credit::Credit,
    ownership::{Owners, Ownership},
};

/// A row of the due-table on its way into the flow of its message's lane.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DueItem {
    /// The row; it is done with when its message is recorded.
    pub(crate) due: Due,
    /// Under which takeover of its partition it was read.
    pub(crate) epoch: Epoch,
}

/// One thing to be done, as it goes through the flow up to `record`.
#[derive(Debug)]
pub(crate) struct Item {
    /// Its partition.
    pub(crate) partition: Partition,
    /// Since which takeover the partition is ours: what was remembered under an earlier one no longer counts.
    pub(crate) epoch: Epoch,
    /// What it is.
    pub(crate) work: Work,
}

/// What an item is.
#[derive(Debug)]
pub(crate) enum Work {
    /// A message to be recorded and delivered.
    Fresh(Fresh),
    /// A recorded message to be tried again. It passes by everything up to `route`.
    Again(Box<Again>),
    /// Something that can only be buried.
    Dead(Box<Dead>),
}

/// A message that has no place yet, as far as is known.
#[derive(Debug)]
pub(crate) struct Fresh {
    /// The message.
    pub(crate) message: Arc<Message>,
    /// Its record was there before the partition was taken over, so that an earlier owner may have begun with it.
    pub(crate) replay: bool,
    /// It is recorded and then fails at once, with this reason.
    pub(crate) end: Option<Reason>,
    /// Another request came under its name within the window: history tells which was first.
    pub(crate) conflict: bool,
    /// The due-table's row it comes from.
    pub(crate) due: Option<Box<Due>>,
}

impl Fresh {
    /// Whether history may know it already, and is to be asked.
    pub(crate) fn ask(&self) -> bool {
        self.replay || self.conflict || self.message.id.is_keyed()
    }
}

impl Item {
    /// Bytes it takes in flight, roughly.
    pub(crate) fn weight(&self) -> usize {
        match &self.work {
            Work::Fresh(fresh) => fresh.message.weight(),
            Work::Again(_) | Work::Dead(_) => 256,
        }
    }
}

/// What goes on together, of one lane; holds one of the sinks' credits.
pub(crate) struct Batch<Load> {
    /// The lane.
    pub(crate) lane: Lane,
    /// What it carries.
    pub(crate) load: Load,
    /// The credit it holds until its deliveries have their outcomes.
    pub(crate) credit: Credit,
    /// Whose it is, once `record` has looked.
    pub(crate) owners: Owners,
}

impl<Load> Batch<Load> {
    /// The same batch, a stage further.
    pub(crate) fn with<Next>(self, load: Next) -> Batch<Next> {
        Batch { lane: self.lane, load, credit: self.credit, owners: self.owners }
    }
}

/// What is left to do for an item once it is recorded.
#[derive(Debug)]
pub(crate) enum Step {
    /// To be offered to its recipient's sessions.
    Offer(Box<Hint>),
    /// To be offered again, if its state still asks for it.
    Again(Box<Again>),
    /// It failed at once.
    Fail(Box<Hint>, Reason),
    /// To be buried.
    Bury(Box<Dead>),
    /// A row of the due-table that has been done with once everything else of the batch is durable.
    Done(Box<Due>),
}

impl Step {
    /// The partition it belongs to.
    pub(crate) fn partition(&self) -> Partition {
        match self {
            Self::Offer(hint) | Self::Fail(hint, _) => hint.inbox.partition,
            Self::Again(again) => again.inbox.partition,
            Self::Bury(dead) => dead.inbox.partition,
            Self::Done(due) => due.partition,
        }
    }
}

impl Batch<Vec<Step>> {
    /// Drops the steps of partitions that were lost meanwhile.
    pub(crate) fn drop_lost(&mut self, ownership: &Ownership) {
        let gone = self.owners.drop_lost(ownership);
        if !gone.is_empty() {
            self.load.retain(|step| !gone.contains(&step.partition()));
        }
    }
}
