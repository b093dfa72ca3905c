//! Conversations in the memory of their owner: the rows from which the next turns are made, as [`crate::tails`] has the ends
//! of inboxes.
//!
//! Bounded, and exact: a row is forgotten only when everything written after it is durable and nobody is about to use it. A
//! row learnt under an earlier takeover of its partition is not believed. Beside a row stand its messages that were written
//! or changed lately: an edit may follow its message before history can be asked for it.

use std::collections::HashMap;

use schemas::{
    Conversation, ConversationId, Epoch, MessageId, Timestamp,
    conversation::{Original, Side},
};

use crate::{ages::Fold, tails::SKEW_MS};

/// Messages beside one row past which those that are durable are forgotten: a batch's worth.
const LATELY: usize = 128;

/// The conversations in memory.
pub(crate) struct Threads {
    young: HashMap<ConversationId, Slot, Fold>,
    old: HashMap<ConversationId, Slot, Fold>,
    half: usize,
    released: u64,
}

struct Slot {
    /// Whether it was read.
    known: bool,
    /// As it is, once all writes so far are made; `None`: there is none.
    row: Option<Conversation>,
    /// The takeover it was learnt under.
    epoch: Epoch,
    /// Batches that are about to use it.
    pins: u32,
    /// The last write that changed it.
    write: u64,
    /// What was accepted by then may have been recorded by the owner before us.
    doubtful_until: Option<Timestamp>,
    /// Messages that were written or changed lately, each with the write that did it.
    lately: HashMap<MessageId, (Original, u64)>,
}

impl Slot {
    fn unknown(epoch: Epoch) -> Self {
        let doubtful_until = None;
        Self { known: false, row: None, epoch, pins: 0, write: 0, doubtful_until, lately: HashMap::new() }
    }
}

impl Threads {
    /// Keeps at most `most`, and those in use.
    pub(crate) fn new(most: usize) -> Self {
        Self { young: HashMap::default(), old: HashMap::default(), half: (most / 2).max(1), released: 0 }
    }

    /// Holds one for a batch that will use it. True: it is not known and must be read.
    pub(crate) fn pin(&mut self, id: ConversationId, epoch: Epoch) -> bool {
        let slot = self.slot(id, epoch);
        slot.pins += 1;
        !slot.known
    }

    /// What a read told at this time; believed where nothing is known yet.
    pub(crate) fn learn(&mut self, id: ConversationId, epoch: Epoch, row: Option<Conversation>, now: Timestamp) {
        let slot = self.slot(id, epoch);
        // What was read under an earlier takeover tells nothing of this one.
        if slot.epoch == epoch && !slot.known {
            slot.known = true;
            let inherited = row.as_ref().is_some_and(|row| row.version.epoch() < epoch);
            slot.doubtful_until = inherited.then(|| now.plus_ms(SKEW_MS));
            slot.row = row;
        }
    }

    /// Whether what was accepted then may have been recorded by the owner before us, as [`crate::tails`] has it.
    pub(crate) fn doubts(&mut self, id: ConversationId, epoch: Epoch, accepted_at: Timestamp) -> bool {
        self.slot(id, epoch).doubtful_until.is_some_and(|until| accepted_at <= until)
    }

    /// Lets go of one.
    pub(crate) fn unpin(&mut self, id: ConversationId, epoch: Epoch) {
        let released = self.released;
        let slot = self.slot(id, epoch);
        slot.pins = slot.pins.saturating_sub(1);
        // Whoever asks history from here on finds what is durable there.
        if slot.pins == 0 && slot.lately.len() > LATELY {
            slot.lately.retain(|_, (_, write)| *write >= released);
        }
    }

    /// A held one, as it is.
    pub(crate) fn row(&mut self, id: ConversationId, epoch: Epoch) -> Option<&Conversation> {
        self.slot(id, epoch).row.as_ref()
    }

    /// What a held one becomes with this write.
    pub(crate) fn put(&mut self, row: Conversation, epoch: Epoch, write: u64) {
        let slot = self.slot(row.id, epoch);
        slot.write = write;
        slot.known = true;
        slot.row = Some(row);
    }

    /// A message as it was written or changed lately.
    pub(crate) fn lately(&mut self, id: ConversationId, epoch: Epoch, message: MessageId) -> Option<&Original> {
        self.slot(id, epoch).lately.get(&message).map(|(original, _)| original)
    }

    /// A message is written or changed with this write.
    pub(crate) fn note(&mut self, original: Original, epoch: Epoch, write: u64) {
        let slot = self.slot(original.conversation, epoch);
        slot.lately.insert(original.id, (original, write));
    }

    /// The other side was told what this one has read. The next row that is written says so.
    pub(crate) fn told(&mut self, id: ConversationId, epoch: Epoch, side: Side, up_to: u64) {
        if let Some(slot) = self.young.get_mut(&id).or_else(|| self.old.get_mut(&id))
            && slot.epoch == epoch
            && let Some(row) = &mut slot.row
        {
            row.told(side, up_to);
        }
    }

    /// All writes below this number are durable.
    pub(crate) fn release(&mut self, below: u64) {
        self.released = below;
    }

    fn slot(&mut self, id: ConversationId, epoch: Epoch) -> &mut Slot {
        if !self.young.contains_key(&id) && self.young.len() >= self.half {
            self.turn();
        }
        // Turning may have brought it back among the young: it was in use.
        if !self.young.contains_key(&id) {
            let slot = self.old.remove(&id).unwrap_or_else(|| Slot::unknown(epoch));
            self.young.insert(id, slot);
        }
        let slot = self.young.entry(id).or_insert_with(|| Slot::unknown(epoch));
        if slot.epoch < epoch {
            *slot = Slot { pins: slot.pins, ..Slot::unknown(epoch) };
        }
        slot
    }

    fn turn(&mut self) {
        let released = self.released;
        let mut gone = std::mem::replace(&mut self.old, std::mem::take(&mut self.young));
        gone.retain(|_, slot| slot.pins > 0 || slot.write >= released);
        self.young = gone;
    }

    /// How many are kept.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use schemas::{
        Name, Partition, Phone, Tenant,
        conversation::{Act, Pair},
        limits::ChatLimits,
        message::{Content, ContentType},
    };
    use std::collections::VecDeque;

    fn pair(n: u16) -> Pair {
        Pair {
            tenant: Tenant::parse("acme").unwrap(),
            business: Name::parse("sara").unwrap(),
            mobile: Phone::from_stored(&format!("+96279000{n:04}")).unwrap(),
        }
    }

    proptest! {
        // Whatever is forgotten and read again, turns stay dense and counts exact.
        #[test]
        fn turns_are_dense_however_little_is_kept(
            uses in proptest::collection::vec((0u16..12, 0u8..3), 1..200), most in 2usize..8,
        ) {
            let mut threads = Threads::new(most);
            let mut durable = HashMap::<u16, Conversation>::new();
            let mut writing = VecDeque::<(u64, u16, Conversation)>::new();
            let mut said = HashMap::<u16, u64>::new();
            let (mut write, mut released, mut held) = (1_u64, 1_u64, 0);
            let content = Content { content_type: ContentType::Text, subject: None, body: "hello".into() };
            for (who, settle) in uses {
                let id = pair(who).id();
                if threads.pin(id, Epoch(1)) {
                    threads.learn(id, Epoch(1), durable.get(&who).cloned(), Timestamp(0));
                }
                let opened = || Conversation::open(pair(who), Partition(0), Epoch(1), Timestamp(0));
                let mut row = threads.row(id, Epoch(1)).cloned().unwrap_or_else(opened);
                let act = Act::Message { id: MessageId::fresh(Timestamp(write as i64)), content: &content };
                let by = "business:sara".parse().unwrap();
                row.apply(&by, &act, &ChatLimits::default(), Epoch(1), Timestamp(1)).unwrap();
                let count = said.entry(who).or_default();
                *count += 1;
                prop_assert_eq!((row.last_seq, row.mobile.unread()), (*count, *count));
                threads.put(row.clone(), Epoch(1), write);
                threads.unpin(id, Epoch(1));
                writing.push_back((write, who, row));
                write += 1;
                for _ in 0..settle {
                    if let Some((n, who, row)) = writing.pop_front() {
                        durable.insert(who, row);
                        released = n + 1;
                        threads.release(released);
                    }
                }
                held = held.max((write - released) as usize);
                prop_assert!(threads.len() <= most + 2 * held + 2, "{} kept, {} held", threads.len(), held);
            }
        }
    }

    #[test]
    fn a_row_of_an_earlier_takeover_is_read_again() {
        let (mut threads, id) = (Threads::new(10), pair(1).id());
        assert!(threads.pin(id, Epoch(1)));
        threads.put(Conversation::open(pair(1), Partition(0), Epoch(1), Timestamp(0)), Epoch(1), 1);
        assert!(!threads.pin(id, Epoch(1)));
        assert!(threads.pin(id, Epoch(2)), "another may have written between");
        threads.learn(id, Epoch(1), None, Timestamp(0));
        assert!(threads.pin(id, Epoch(2)), "what was read then tells nothing now");
    }
}
