//! Recent: conversations in use, in memory, so that a busy one costs its list nothing.
//!
//! A conversation that is written leaves the list on disk and stands in this one until it has been quiet for a while; then it
//! goes back, once. So between the rows of a list on disk nothing is removed and put again with every message, and its order
//! is exact all the same. A mark on disk names those that stand here: after a crash they are read again from their rows.
//!
//! What is known here of a conversation is what stands once everything submitted so far is written: older rows, and a late
//! owner's, are told by it without a read.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
};

use schemas::{
    Conversation, ConversationId, Millis, UserId,
    conversation::{Side, Version},
    port::ByActivity,
};

use super::keys;

/// A conversation that was quiet for so long goes back to the list on disk, ms: who talks now answers within minutes.
const QUIET_MS: u64 = 10 * 60_000;
/// Past so many in use the quietest go earlier: about 25 MB.
const MOST: usize = 50_000;
/// Even then none goes that was written within this, ms: its rows may not be readable yet.
const FRESH_MS: u64 = 30_000;
/// Users whose total of unread messages is remembered; past that all are counted again when they are asked for.
const TOTALS: usize = 10_000;
/// So many go with one batch at most: more than one batch brings.
const GO: usize = 256;

/// What of a conversation stands elsewhere than in its row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stand {
    pub(super) version: Version,
    pub(super) place: ByActivity,
    sides: [Held; 2],
}

/// What stands of it for one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) user: UserId,
    pub(super) archived: bool,
    /// Messages addressed to the user's side, and those read.
    pub(super) counts: (u64, u64),
}

impl Stand {
    pub(super) fn of(row: &Conversation) -> Self {
        let held = |side| {
            let half = row.half(side);
            Held { user: row.user(side), archived: half.archived, counts: (half.to, half.read) }
        };
        Self { version: row.version, place: ByActivity::of(row), sides: Side::BOTH.map(held) }
    }

    /// Its places in lists.
    pub(super) fn listed(&self) -> impl Iterator<Item = Vec<u8>> {
        self.sides.iter().map(|held| keys::listed(&held.user, held.archived, self.place))
    }

    /// Its sides and what they have yet to read.
    pub(super) fn sides(&self) -> &[Held; 2] {
        &self.sides
    }
}

#[derive(Debug, Clone)]
struct Warm {
    stand: Stand,
    touched: Millis,
    /// It is on its way back to the list on disk, or there already.
    going: bool,
}

/// The conversations in use.
#[derive(Debug, Default)]
pub(super) struct Recent {
    warm: HashMap<ConversationId, Warm>,
    lists: BTreeSet<Vec<u8>>,
    ages: BTreeSet<(Millis, ConversationId)>,
    /// Unread messages of users that were asked for, as they stand with everything submitted so far.
    totals: HashMap<UserId, i64>,
}

/// What a batch changes here, and how it was before.
#[derive(Debug, Default)]
pub(in super::super) struct Moves {
    /// Those written, as they stand then.
    pub(super) stands: BTreeMap<ConversationId, Stand>,
    /// Those that go back, as they stand.
    pub(super) gone: Vec<(ConversationId, Stand)>,
    /// By how much what users have yet to read changes.
    pub(super) unread: Vec<(UserId, i64)>,
}

/// How it was before a batch, to be put back if the batch is not written after all.
pub(in super::super) struct Before {
    warm: Vec<(ConversationId, Option<Warm>)>,
    unread: Vec<(UserId, i64)>,
}

impl Recent {
    /// What stands, and whether it stands here and nowhere else; `None`: it is not in use.
    pub(super) fn stand(&self, id: ConversationId) -> Option<(&Stand, bool)> {
        self.warm.get(&id).map(|warm| (&warm.stand, !warm.going))
    }

    /// Those that have been quiet long enough to go back.
    pub(super) fn quiet(&self, now: Millis) -> Vec<(ConversationId, Stand)> {
        let most = if self.warm.len() > MOST { FRESH_MS } else { QUIET_MS };
        let quiet = self.ages.iter().take_while(|(touched, _)| now.since(*touched) >= most).take(GO);
        quiet.filter_map(|(_, id)| self.warm.get(id).map(|warm| (*id, warm.stand.clone()))).collect()
    }

    /// A batch is about to be submitted.
    pub(super) fn apply(&mut self, moves: &Moves, now: Millis) -> Before {
        let mut before = Vec::with_capacity(moves.stands.len() + moves.gone.len());
        for (id, stand) in &moves.stands {
            before.push((*id, self.warm.get(id).cloned()));
            self.set(*id, Some(Warm { stand: stand.clone(), touched: now, going: false }));
        }
        for (id, _) in &moves.gone {
            if moves.stands.contains_key(id) {
                continue;
            }
            if let Some(warm) = self.warm.get(id).cloned() {
                before.push((*id, Some(warm.clone())));
                self.set(*id, Some(Warm { going: true, ..warm }));
            }
        }
        self.count(moves.unread.iter().cloned());
        let unread = moves.unread.iter().map(|(user, change)| (user.clone(), -change)).collect();
        Before { warm: before, unread }
    }

    fn count(&mut self, changes: impl Iterator<Item = (UserId, i64)>) {
        for (user, change) in changes {
            if let Some(total) = self.totals.get_mut(&user) {
                *total += change;
            }
        }
    }

    /// What a user has yet to read, if it is remembered.
    pub(super) fn total(&self, user: &UserId) -> Option<u64> {
        self.totals.get(user).map(|total| u64::try_from(*total).unwrap_or(0))
    }

    /// It was counted.
    pub(super) fn remember(&mut self, user: UserId, total: u64) {
        if self.totals.len() >= TOTALS {
            self.totals.clear();
        }
        self.totals.insert(user, i64::try_from(total).unwrap_or(i64::MAX));
    }

    /// Retention removed messages that were not read.
    pub(super) fn forget_totals(&mut self) {
        self.totals.clear();
    }

    /// What a user has in conversations that are in use: messages to it and those read.
    pub(super) fn of_user<'a>(&'a self, user: &'a UserId) -> impl Iterator<Item = (ConversationId, (u64, u64))> + 'a {
        let held = |(id, warm): (&ConversationId, &'a Warm)| {
            let held = warm.stand.sides.iter().find(|held| held.user == *user)?;
            Some((*id, held.counts))
        };
        self.warm.iter().filter_map(held)
    }

    /// It was not submitted.
    pub(super) fn undo(&mut self, before: Before) {
        for (id, warm) in before.warm.into_iter().rev() {
            self.set(id, warm);
        }
        self.count(before.unread.into_iter());
    }

    /// What went back can be read there.
    pub(super) fn forget(&mut self, gone: &[(ConversationId, Stand)]) {
        for (id, stand) in gone {
            // What was written meanwhile stays.
            if self.warm.get(id).is_some_and(|warm| warm.going && warm.stand == *stand) {
                self.set(*id, None);
            }
        }
    }

    /// One that was in use when the store was last open.
    pub(super) fn load(&mut self, row: &Conversation, now: Millis) {
        self.set(row.id, Some(Warm { stand: Stand::of(row), touched: now, going: false }));
    }

    fn set(&mut self, id: ConversationId, warm: Option<Warm>) {
        if let Some(old) = self.warm.remove(&id) {
            self.ages.remove(&(old.touched, id));
            for key in old.stand.listed() {
                self.lists.remove(&key);
            }
        }
        if let Some(new) = warm {
            self.ages.insert((new.touched, id));
            self.lists.extend(new.stand.listed());
            self.warm.insert(id, new);
        }
    }

    /// Places of a list from just after this key, at most so many.
    pub(super) fn places(&self, after: &[u8], list: &[u8], limit: usize) -> Vec<Vec<u8>> {
        let from = (Bound::Excluded(after), Bound::Unbounded);
        let here = self.lists.range::<[u8], _>(from).take_while(|key| key.starts_with(list));
        here.take(limit).cloned().collect()
    }

    /// Whether it stands here, so that a row on disk is not its place.
    pub(super) fn holds(&self, id: ConversationId) -> bool {
        self.warm.contains_key(&id)
    }
}
