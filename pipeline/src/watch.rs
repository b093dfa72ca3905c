//! The watch over acknowledgements: who was sent what and has how long to say so, and which `outcomes` may be committed.
//!
//! A `Sent` fact arms a deadline, an acknowledgement or a failure ends it, and [`Watch::expire`] hands out those that were
//! missed. One chain of attempts per message: a message has at most one deadline, that of the highest attempt of its latest
//! round (P4). A second `Sent` of the same attempt moves it only where it is the same device: that one lost its connection and
//! came back, and has the whole time again, a bounded number of times. Offsets are given out only behind every deadline
//! that stands on them, so that a crash reads those `Sent` facts again and arms them anew.
//!
//! Pure: no clock and no I/O. What is remembered of failed attempts is the message's [`State`], not memory of ours: that is
//! why a restart changes nothing ([`deadline`]). Memory: about 100 bytes a deadline, at most [`Watch::new`]'s bound of them.
//! Leaves to `settle` what follows a missed deadline.

mod ledger;

use std::{
    cmp::{Ordering, Reverse},
    collections::{BinaryHeap, HashMap, VecDeque},
};

use schemas::{
    Fact, MessageId, Millis, Offset, Partition, Timestamp,
    fact::{Past, State, What},
    tier::{Attempt, Next},
};

use ledger::Ledger;

/// A deadline that passed without an acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Missed {
    /// The message.
    pub(crate) id: MessageId,
    /// Its round.
    pub(crate) round: u8,
    /// The attempt that nobody acknowledged.
    pub(crate) attempt: Attempt,
}

/// Where a `Sent` fact stands in `outcomes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stand {
    /// The partition.
    pub(crate) partition: Partition,
    /// The record.
    pub(crate) offset: Offset,
}

/// Whom it was sent to, and what is known of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct To {
    /// What tells the device from others.
    pub(crate) device: Option<u32>,
    /// When the message was accepted, where that is known.
    pub(crate) accepted_at: Option<Timestamp>,
}

/// A message whose acknowledgement is waited for.
#[derive(Debug, Clone, Copy)]
struct Armed {
    round: u8,
    attempt: Attempt,
    /// It was sent while its retry was still to come: the retry itself then finds it sent, or nobody there.
    early: bool,
    /// Handed out by [`Watch::expire`]; what follows is being done.
    missed: bool,
    /// What tells the device it was sent to from others.
    device: Option<u32>,
    /// How often that device came back and was given the whole time again.
    renewed: u8,
    /// When the message was accepted, where that is known.
    accepted_at: Option<Timestamp>,
    due: Millis,
    stand: Stand,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Watch {
    ack_ms: u64,
    bound: usize,
    renewals: u8,
    armed: HashMap<MessageId, Armed>,
    /// Deadlines as they fall, with those that ended still among them until they come up or are swept out.
    queue: VecDeque<(Millis, MessageId)>,
    /// Those of messages sent before their retry was due: they fall out of the queue's order.
    later: BinaryHeap<Reverse<(Millis, MessageId)>>,
    ledger: Ledger,
}

/// Whether a `Sent` fact has a deadline, and how long before its time it came, in ms: a device that connects while a retry
/// waits on its tier is sent the message by catch-up, under the number of that retry. Its time to answer then counts from
/// when the retry is due, or devices that keep connecting would use up six retries in moments (R4.1).
///
/// `state` is what all facts add up to, this one included; `None`: there is nothing to wait for.
pub(crate) fn deadline(sent: &Fact, state: &State, wall: Timestamp, retry_first_ms: u64) -> Option<u64> {
    let failed = |p: &&Past| p.round == sent.round && matches!(p.what, What::AttemptFailed(_));
    if state.is_done(sent.round) || state.round() > sent.round {
        return None;
    }
    if state.past.iter().filter(failed).any(|p| p.attempt >= sent.attempt) {
        return None;
    }
    let Some(before) = sent.attempt.0.checked_sub(1).map(Attempt) else { return Some(0) };
    let Next::Retry(tier, _) = before.failed() else { return Some(0) };
    let Some(failed) = state.past.iter().filter(failed).find(|p| p.attempt == before) else { return Some(0) };
    // Wall times, since the failure may be from before a restart: a jump can neither shorten the wait below nothing nor
    // make it longer than the tier.
    let delay = tier.delay_ms(retry_first_ms);
    Some(failed.at.plus_ms(delay).ms_since(wall).min(delay))
}

impl Watch {
    /// A watch that gives devices `ack_ms` to answer, again up to `renewals` times when they come back, and holds at most
    /// `bound` deadlines.
    pub(crate) fn new(ack_ms: u64, bound: usize, renewals: u8) -> Self {
        let (armed, queue, later, ledger) = Default::default();
        Self { ack_ms, bound: bound.max(1), renewals, armed, queue, later, ledger }
    }

    /// Begins a partition.
    pub(crate) fn open(&mut self, partition: Partition) {
        self.close(partition);
        self.ledger.open(partition);
    }

    /// Ends a partition: its deadlines are the next owner's, who reads their `Sent` facts again.
    pub(crate) fn close(&mut self, partition: Partition) {
        self.ledger.close(partition);
        self.armed.retain(|_, armed| armed.stand.partition != partition);
        self.sweep_out();
    }

    /// A record was read. Says whether its facts are to be settled; the offset is held until [`Watch::settled`].
    pub(crate) fn took(&mut self, stand: Stand) -> bool {
        self.ledger.took(stand.partition, stand.offset)
    }

    /// All facts of a record are merged and acted on.
    pub(crate) fn settled(&mut self, stand: Stand) {
        self.ledger.release(stand.partition, stand.offset);
    }

    /// A session sent it: its deadline begins, `early_ms` from now ([`deadline`]). A higher attempt takes the place of a
    /// lower one. The same attempt again is either another device, which changes nothing, or the same one on a new
    /// connection (on one connection nothing is sent twice): it has the whole time again, but only so often, or connecting
    /// again and again would put the deadline off for ever.
    pub(crate) fn arm(&mut self, sent: Missed, to: To, stand: Stand, early_ms: u64, now: Millis) {
        let Missed { id, round, attempt } = sent;
        let due = now.plus(early_ms).plus(self.ack_ms);
        let mut renewed = 0;
        if let Some(there) = self.armed.get(&id) {
            let came_back = there.device.is_some() && there.device == to.device && !there.missed && there.due < due;
            match (there.round, there.attempt).cmp(&(round, attempt)) {
                Ordering::Less => {}
                Ordering::Equal if came_back && there.renewed < self.renewals => renewed = there.renewed + 1,
                Ordering::Equal | Ordering::Greater => return,
            }
        }
        if !self.ledger.hold(stand.partition, stand.offset) {
            return;
        }
        self.disarm(id);
        let To { device, accepted_at } = to;
        let (early, missed) = (early_ms > 0, false);
        self.armed.insert(id, Armed { round, attempt, early, missed, device, renewed, accepted_at, due, stand });
        if early {
            self.later.push(Reverse((due, id)));
        } else {
            self.queue.push_back((due, id));
        }
        if self.queue.len() + self.later.len() > 1_024 + 2 * self.armed.len() {
            self.sweep_out();
        }
    }

    /// It was acknowledged, read or given up: nothing is waited for. Gives when it was accepted, where that is known.
    pub(crate) fn disarm(&mut self, id: MessageId) -> Option<Timestamp> {
        let armed = self.armed.remove(&id)?;
        self.ledger.release(armed.stand.partition, armed.stand.offset);
        armed.accepted_at
    }

    /// The chain of this round ended, or this attempt failed: a deadline up to there ends.
    pub(crate) fn failed(&mut self, id: MessageId, round: u8, attempt: Attempt) {
        if self.armed.get(&id).is_some_and(|there| (there.round, there.attempt) <= (round, attempt)) {
            self.disarm(id);
        }
    }

    /// The retry came due and nobody was connected: the attempts end, also where a device had been sent it early. A
    /// deadline that was running in its own time stands: that device was there after the pipeline looked.
    pub(crate) fn parked(&mut self, id: MessageId, round: u8, attempt: Attempt) {
        if self.armed.get(&id).is_some_and(|there| there.early && (there.round, there.attempt) == (round, attempt)) {
            self.disarm(id);
        }
    }

    /// At most `limit` deadlines that passed, oldest first. Each still holds its offset until [`Watch::ended`].
    pub(crate) fn expire(&mut self, now: Millis, limit: usize) -> Vec<Missed> {
        let mut missed = Vec::new();
        // Room is worth more than the last seconds of the oldest deadlines: beyond the bound they are judged by what is
        // known of them, at once.
        let spare = self.armed.len().saturating_sub(self.bound);
        while missed.len() < limit
            && let Some((due, id)) = self.front()
            && (due <= now || missed.len() < spare)
            && let Some(armed) = self.armed.get_mut(&id)
        {
            armed.missed = true;
            missed.push(Missed { id, round: armed.round, attempt: armed.attempt });
        }
        missed
    }

    /// What follows a missed deadline is durable: its offset is free.
    pub(crate) fn ended(&mut self, missed: &Missed) {
        if self.armed.get(&missed.id).is_some_and(|there| there.missed && there.attempt == missed.attempt) {
            self.disarm(missed.id);
        }
    }

    /// When to look again, if anything is waited for.
    pub(crate) fn next_due(&mut self) -> Option<Millis> {
        self.front().map(|(due, _)| due)
    }

    /// The next offsets to read of partitions where they moved since this was last asked: what may be committed.
    pub(crate) fn moved(&mut self) -> impl Iterator<Item = (Partition, Offset)> {
        self.ledger.moved()
    }

    /// Deadlines that are running.
    pub(crate) fn armed(&self) -> usize {
        self.armed.len()
    }

    /// Records read and not yet free.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.ledger.held()
    }

    /// The deadline that falls next. Those that ended and came up in front are dropped.
    fn front(&mut self) -> Option<(Millis, MessageId)> {
        let armed = &self.armed;
        let alive = |due: Millis, id: MessageId| armed.get(&id).is_some_and(|a| a.due == due && !a.missed);
        while self.queue.front().is_some_and(|(due, id)| !alive(*due, *id)) {
            self.queue.pop_front();
        }
        while self.later.peek().is_some_and(|Reverse((due, id))| !alive(*due, *id)) {
            self.later.pop();
        }
        let later = self.later.peek().map(|Reverse(late)| *late);
        self.queue.front().copied().into_iter().chain(later).min()
    }

    fn sweep_out(&mut self) {
        let armed = &self.armed;
        let alive = |(due, id): &(Millis, MessageId)| armed.get(id).is_some_and(|a| a.due == *due && !a.missed);
        self.queue.retain(alive);
        self.later.retain(|Reverse(late)| alive(late));
    }
}

#[cfg(test)]
#[path = "watch/tests.rs"]
mod tests;
