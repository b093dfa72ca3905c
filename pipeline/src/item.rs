//! What flows: items from the log or the due-table, batches of them, and the steps that are left once they are recorded.

use std::sync::Arc;

use schemas::{
    ChatCommand, ConversationId, Epoch, Fact, Lane, Message, Offset, Partition, Reason, Tenant, UserId,
    conversation::{Command, Side},
    port::{Dead, Due, Hint, Signal},
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
    /// Where its record stands in its lane; what comes from a tier or the due-table has none.
    pub(crate) offset: Option<Offset>,
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
    /// A command of chat.
    Chat(Box<Asked>),
}

/// A command of chat on its way to its conversation.
#[derive(Debug)]
pub(crate) struct Asked {
    /// The command.
    pub(crate) command: ChatCommand,
    /// Its record was there before the partition was taken over, so that an earlier owner may have begun with it.
    pub(crate) replay: bool,
    /// Another command came under its name within the window.
    pub(crate) conflict: bool,
}

impl Asked {
    /// Whether history may know it already, and is to be asked.
    pub(crate) fn ask(&self) -> bool {
        self.command.command.is_named() && (self.replay || self.conflict || self.command.id.is_keyed())
    }
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
    /// Whose it is.
    pub(crate) fn tenant(&self) -> &Tenant {
        match &self.work {
            Work::Fresh(fresh) => fresh.message.tenant(),
            Work::Again(again) => &again.inbox.user.tenant,
            Work::Dead(dead) => &dead.inbox.user.tenant,
            Work::Chat(asked) => &asked.command.pair.tenant,
        }
    }

    /// Bytes it takes in flight, roughly.
    pub(crate) fn weight(&self) -> usize {
        match &self.work {
            Work::Fresh(fresh) => fresh.message.weight(),
            Work::Again(_) | Work::Dead(_) => 256,
            Work::Chat(asked) => match &asked.command.command {
                Command::Edit { content, .. } => 512 + content.body.len(),
                _ => 512,
            },
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
    /// What was refused by the rules of its conversation: the fact that says so. It has no place.
    Refuse(Box<Fact>),
    /// A side has read more of a conversation: the other's messages are to be told so.
    Marked(Box<Marked>),
    /// What is told as it happens, of a partition.
    Tell(Partition, Vec<(UserId, Signal)>),
}

/// What a side has read since it was last told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Marked {
    /// Where.
    pub(crate) conversation: ConversationId,
    /// Of which partition.
    pub(crate) partition: Partition,
    /// Since which takeover it is ours.
    pub(crate) epoch: Epoch,
    /// Who read.
    pub(crate) side: Side,
    /// Just after this number of the side's sequence …
    pub(crate) after: u64,
    /// … up to this one …
    pub(crate) to: u64,
    /// … which stand at or before this turn.
    pub(crate) seq: u64,
}

impl Step {
    /// The partition it belongs to.
    pub(crate) fn partition(&self) -> Partition {
        match self {
            Self::Offer(hint) | Self::Fail(hint, _) => hint.inbox.partition,
            Self::Again(again) => again.inbox.partition,
            Self::Bury(dead) => dead.inbox.partition,
            Self::Done(due) => due.partition,
            Self::Refuse(fact) => fact.inbox.partition,
            Self::Marked(marked) => marked.partition,
            Self::Tell(partition, _) => *partition,
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
