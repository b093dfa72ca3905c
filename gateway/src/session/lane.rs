//! A lane: where a session stands in one inbox, and whether the next delivery continues what was sent (the gap rule).
//! Pure. A mobile user's session has one; a business user's has one for each partition.

use schemas::{Partition, Position, State, port::Span};

use super::LaneStart;

/// What a delivery means to a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// It is the very next one; the lane has moved on to it.
    Next,
    /// The lane has passed this place already.
    Behind,
    /// Not now: history will bring it in its turn.
    Wait,
}

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) partition: Partition,
    /// The last place passed: sent, passed over, or had by the client.
    pub(super) last: Position,
    /// What the client had when it came.
    pub(super) have: Position,
    /// What the client has acknowledged by cursor: what is stored as the device's. It follows the facts: what the client had
    /// when it came is counted only as history has shown it, else a break in between would leave it without its `Delivered`.
    pub(super) acked: Position,
    /// The largest place heard of.
    known: Position,
    /// Something beyond `last` was heard of since the present read was asked for.
    heard: bool,
    /// Deliveries were dropped since then, nobody knows which.
    lost: bool,
    /// Deliveries were left out or may be missing: history is read until it has no more.
    behind: bool,
    skipping: bool,
}

impl Lane {
    pub(super) fn new(start: &LaneStart) -> Self {
        let from = start.stored.min(start.have);
        Self {
            partition: start.partition,
            last: from,
            have: start.have,
            acked: from,
            known: start.tail,
            heard: false,
            lost: false,
            behind: start.tail > from,
            skipping: start.skip_delivered,
        }
    }

    /// The client acknowledges up to here, which it was sent; says whether the cursor moved.
    pub(super) fn on_ack(&mut self, position: Position) -> bool {
        let moved = position > self.acked && self.last >= self.have;
        if moved {
            self.acked = position;
        }
        moved
    }

    /// A delivery has come. `paused`: the session takes nothing on now.
    pub(super) fn on_hint(&mut self, position: Position, prev: Position, paused: bool) -> Step {
        if position <= self.last {
            return Step::Behind;
        }
        self.known = self.known.max(position);
        if self.behind || paused || prev != self.last {
            (self.behind, self.heard) = (true, true);
            return Step::Wait;
        }
        self.last = position;
        self.skipping = false;
        Step::Next
    }

    /// Deliveries were dropped on the way here.
    pub(super) fn on_lost(&mut self) {
        (self.behind, self.lost) = (true, true);
    }

    /// The inbox reaches so far.
    pub(super) fn on_tail(&mut self, tail: Position) {
        if tail > self.last {
            self.known = self.known.max(tail);
            (self.behind, self.heard) = (true, true);
        }
    }

    pub(super) fn wants_read(&self) -> bool {
        self.behind
    }

    /// A read begins; says from where.
    pub(super) fn ask(&mut self) -> Position {
        (self.heard, self.lost) = (false, false);
        self.last
    }

    /// Whether a span continues what was sent, or what the client has.
    pub(super) fn may_follow(&mut self, span: &Span) -> bool {
        let reach = self.last.max(self.have);
        match span.entries.first() {
            Some((entry, _)) if entry.prev == self.last => true,
            // Retention took entries that the client had: nothing it is waiting for is missing.
            Some((entry, _)) if span.passed_by_retention && entry.prev <= reach => {
                self.last = entry.prev;
                true
            }
            Some(_) => false,
            None if span.passed_by_retention && self.last < self.have => {
                (self.last, self.acked) = (self.have, self.have);
                true
            }
            None => !span.passed_by_retention,
        }
    }

    /// Moves on to an entry that was read; says whether it is to be sent. `own`: it is the user's own, which never waited
    /// for a device of its.
    pub(super) fn pass(&mut self, position: Position, state: &State, own: bool) -> bool {
        self.last = position;
        if position <= self.have {
            self.acked = position;
            return false;
        }
        if state.is_withdrawn() {
            return false;
        }
        if self.skipping && (own || state.status().is_reached()) {
            return false;
        }
        self.skipping = false;
        true
    }

    pub(super) fn is_had(&self, position: Position) -> bool {
        position <= self.have
    }

    /// A read has ended. `more`: it stopped before the inbox's end. `moved`: it brought something.
    pub(super) fn read_done(&mut self, more: bool, moved: bool) {
        // What was heard of before the read began and is still missing after a read that brought nothing is not in the
        // inbox (a late owner's hint): asking again would never end.
        self.behind = more || self.lost || (self.known > self.last && (self.heard || moved));
        if !self.behind {
            self.known = self.last;
        }
    }
}
