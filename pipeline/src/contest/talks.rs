//! Conversations of the history that two processes write to. Where late owners are left aside, a batch is written in steps,
//! between which its process may be frozen: turns and rows first, entries later; and what an owner is told is sealed before,
//! inboxes first and then the row. A turn stands by its number and the epoch of who wrote it; the row says whose count. Where
//! the entries of a turn were to stand is known by the turn, and of the recipient's also by its id; a sender's own copy is
//! found by no id.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use async_trait::async_trait;
use schemas::{
    Conversation, ConversationId, Epoch, Inbox, Kind, MessageId, Position, State, Timestamp, UserId,
    conversation::{Shown, Side, Turn, Version},
    port::*,
};

use super::store::{Kept, Store};

/// From which number on whose turns count, oldest first.
pub(super) type Path = Vec<(Epoch, u64)>;

/// Where an entry was to stand.
type Spot = (Inbox, Position);

/// One conversation.
#[derive(Default)]
pub(super) struct Thread {
    /// The largest that was written.
    time: Version,
    row: Option<Conversation>,
    path: Path,
    turns: BTreeMap<(u64, Epoch), (Turn, Vec<Spot>)>,
    /// Notes to one's own devices that the row tells of, of the batch that wrote it.
    notes: Vec<(MessageId, Spot)>,
}

fn take(path: &mut Path, epoch: Epoch, first: u64) {
    if path.last().is_none_or(|last| last.0 < epoch) {
        path.retain(|fork| fork.1 < first);
        path.push((epoch, first));
    }
}

impl Thread {
    /// What a reader sees; a number without its turn is a panic.
    pub(super) fn said(&self) -> Vec<&Turn> {
        let last = self.row.as_ref().map_or(0, |row| row.last_seq);
        (1..=last).map(|seq| &self.at(seq).unwrap_or_else(|| panic!("no turn {seq} of {last}")).0).collect()
    }

    pub(super) fn row(&self) -> Option<&Conversation> {
        self.row.as_ref()
    }

    fn at(&self, seq: u64) -> Option<&(Turn, Vec<Spot>)> {
        let (epoch, _) = self.path.iter().rev().find(|fork| fork.1 <= seq)?;
        self.turns.get(&(seq, *epoch))
    }

    fn find(&self, id: MessageId) -> Option<&(Turn, Vec<Spot>)> {
        let last = self.row.as_ref().map_or(0, |row| row.last_seq);
        (1..=last).filter_map(|seq| self.at(seq)).find(|(turn, _)| turn.message.id == id)
    }

    fn put(&mut self, row: Conversation, path: Path, notes: Vec<(MessageId, Spot)>, time: Version) {
        if time > self.time {
            (self.time, self.row, self.path, self.notes) = (time, Some(row), path, notes);
        }
    }
}

/// What a process remembers of what it wrote, as long as it has not taken over anew.
#[derive(Default)]
pub(super) struct Stands {
    written: HashMap<ConversationId, (Version, Path)>,
    /// Rows that failed and were not repeated yet.
    failed: BTreeMap<ConversationId, BTreeSet<Version>>,
    /// Places of inboxes that are so.
    unplaced: BTreeMap<Inbox, BTreeSet<Position>>,
}

impl Stands {
    /// Others may have written since. What failed under a takeover that is still on is to be repeated all the same.
    pub(super) fn forget(&mut self) {
        self.written.clear();
    }

    /// Nothing of a conversation is taken after a row that failed, and nothing of an inbox after such a place.
    pub(super) fn allows(&self, entries: &[Entry], schedule: &Schedule) -> bool {
        let rows = schedule.conversations.iter().all(|row| {
            let mut failed = self.failed.get(&row.id).into_iter().flatten();
            failed.all(|version| version.epoch() != row.version.epoch() || *version >= row.version)
        });
        let mine = |inbox: &Inbox, at: &Position| entries.iter().any(|e| e.inbox == *inbox && e.position == *at);
        let places = entries.iter().all(|entry| {
            let mut failed = self.unplaced.get(&entry.inbox).into_iter().flatten();
            let at = entry.position;
            failed.all(|place| place.epoch != at.epoch || *place >= at || mine(&entry.inbox, place))
        });
        rows && places
    }

    pub(super) fn ended(&mut self, entries: &[Entry], schedule: &Schedule, stands: bool) {
        for entry in entries {
            let unplaced = self.unplaced.entry(entry.inbox.clone()).or_default();
            if stands {
                unplaced.remove(&entry.position)
            } else {
                unplaced.insert(entry.position)
            };
        }
        for row in &schedule.conversations {
            let failed = self.failed.entry(row.id).or_default();
            if stands {
                failed.remove(&row.version)
            } else {
                failed.insert(row.version)
            };
        }
    }
}

/// Where a batch has the entries of a turn.
fn spots(entries: &[Entry], of: MessageId) -> Vec<Spot> {
    let mine = entries.iter().filter(|entry| entry.message.id == of);
    mine.map(|entry| (entry.inbox.clone(), entry.position)).collect()
}

/// Whether a batch writes to inboxes that the row which stands does not name: a newer owner that has sealed that row may not have
/// sealed those. Where the row may be the batch's own, from an attempt that failed, nothing is known of the one before.
/// So where it has what was missing of another owner's turns: a newer owner may have read where that was to stand before.
pub(super) fn strangers(kept: &Kept, entries: &[Entry], schedule: &Schedule) -> bool {
    let open = schedule.conversations.iter().any(|row| {
        let users = match kept.threads.get(&row.id).and_then(|thread| thread.row.as_ref()) {
            Some(before) if before.version < row.version => Side::BOTH.map(|side| before.user(side)),
            Some(_) => return true,
            None => [row.pair.mobile(), row.pair.business()],
        };
        let mut there = entries.iter().filter(|entry| entry.message.kind.conversation() == Some(row.id));
        there.any(|entry| !users.contains(&entry.inbox.user))
    });
    open || !schedule.completed.is_empty()
}

/// Writes the conversations of a batch. An older row than stands is passed over, with its turns.
pub(super) fn record(kept: &mut Kept, stands: &mut Stands, entries: &[Entry], schedule: &Schedule) {
    for row in &schedule.conversations {
        let thread = kept.threads.entry(row.id).or_default();
        let (before, mut path) = stands.written.get(&row.id).cloned().unwrap_or((thread.time, thread.path.clone()));
        if before >= row.version {
            continue;
        }
        let turns = || schedule.turns.iter().filter(|turn| turn.conversation == row.id);
        take(&mut path, row.version.epoch(), turns().map(|turn| turn.seq).min().unwrap_or(row.last_seq + 1));
        for turn in turns() {
            thread.turns.insert((turn.seq, turn.version.epoch()), (turn.clone(), spots(entries, turn.message.id)));
        }
        let own = entries.iter().filter(|entry| entry.seq.is_none() && entry.message.kind == Kind::Note(row.id));
        let notes = own.map(|entry| (entry.message.id, (entry.inbox.clone(), entry.position))).collect();
        thread.put(row.clone(), path.clone(), notes, row.version);
        stands.written.insert(row.id, (row.version, path));
    }
    for (_, turn) in &schedule.completed {
        let thread = kept.threads.entry(turn.conversation).or_default();
        let newest = |spots: &[Spot]| spots.iter().map(|(_, at)| at.epoch).max();
        let here = spots(entries, turn.message.id);
        // As with a row the newer owner's stands.
        if let Some((_, there)) = thread.turns.get_mut(&(turn.seq, turn.version.epoch()))
            && newest(there) <= newest(&here)
        {
            *there = here;
        }
    }
}

#[async_trait]
impl Conversations for Store {
    async fn conversations(&self, ids: &[ConversationId]) -> PortResult<Vec<Option<Conversation>>> {
        self.ice.thawed().await;
        let kept = self.kept.lock();
        Ok(ids.iter().map(|id| kept.threads.get(id)?.row.clone()).collect())
    }

    async fn owned(&self, asked: &[(ConversationId, Vec<Inbox>)]) -> PortResult<Vec<Option<Conversation>>> {
        let mine = self.mine.lock().clone();
        // One call of a process at a time: two that seal what they read would contradict each other.
        let _alone = self.taking.lock().await;
        let mut rows = Vec::with_capacity(asked.len());
        for (id, inboxes) in asked {
            let mut sealed = inboxes.clone();
            self.tails(inboxes).await?;
            let (row, mut path, notes) = loop {
                let there = {
                    let kept = self.kept.lock();
                    match kept.threads.get(id) {
                        Some(Thread { row: Some(row), path, notes, .. }) => {
                            (Some(row.clone()), path.clone(), notes.clone())
                        }
                        _ => (None, Path::new(), Vec::new()),
                    }
                };
                // Whose inboxes they are is known by the row alone, which may change until their ends are sealed.
                let sides = there
                    .0
                    .iter()
                    .flat_map(|row| Side::BOTH.map(|side| Inbox { user: row.user(side), partition: row.partition }));
                let open: Vec<_> = sides.filter(|inbox| !sealed.contains(inbox)).collect();
                if open.is_empty() {
                    break there;
                }
                self.tails(&open).await?;
                sealed.extend(open);
            };
            let Some(row) = row else {
                let partition = inboxes.first().map(|inbox| inbox.partition);
                let own = partition.and_then(|of| mine.get(&of)).copied().unwrap_or_default();
                // Read and sealed in two steps.
                self.ice.thawed().await;
                let mut kept = self.kept.lock();
                let thread = kept.threads.entry(*id).or_default();
                let shut = Version::default().under(own);
                if !self.strict && shut > thread.time {
                    (thread.time, thread.row, thread.path) = (shut, None, Path::new());
                }
                rows.push(None);
                continue;
            };
            let own = mine.get(&row.partition).copied().unwrap_or_default();
            if !self.strict && path.last().is_none_or(|last| last.0 < own) {
                // Read and sealed in two steps.
                self.ice.thawed().await;
                take(&mut path, own, row.last_seq + 1);
                let sealed = row.version.under(own);
                let mut kept = self.kept.lock();
                kept.threads.entry(*id).or_default().put(row.clone(), path.clone(), notes, sealed);
                self.stands.lock().written.insert(*id, (sealed, path));
            }
            rows.push(Some(row));
        }
        self.ice.thawed().await;
        Ok(rows)
    }

    async fn counted(&self, asked: &[(ConversationId, MessageId)]) -> PortResult<Vec<Option<Counted>>> {
        self.ice.thawed().await;
        // What the threads say; where entries are then said to be missing none comes any more.
        let told: Vec<_> = {
            let kept = self.kept.lock();
            let one = |(of, id): &(ConversationId, MessageId)| {
                let thread = kept.threads.get(of)?;
                let noted = || thread.notes.iter().find(|note| note.0 == *id).map(|note| (None, vec![note.1.clone()]));
                thread.find(*id).map(|(turn, spots)| (Some(turn.clone()), spots.clone())).or_else(noted)
            };
            asked.iter().map(|asked| if self.strict { None } else { one(asked) }).collect()
        };
        let inboxes: BTreeSet<_> =
            told.iter().flatten().flat_map(|(_, spots)| spots).map(|spot| spot.0.clone()).collect();
        self.tails(&inboxes.into_iter().collect::<Vec<_>>()).await?;
        let kept = self.kept.lock();
        let one = |id: MessageId, (turn, spots): (Option<Turn>, Vec<Spot>)| {
            let lacks = |(inbox, at): &&Spot| {
                let own = turn.as_ref().is_none_or(|turn| inbox.user == turn.message.to);
                let here = |entry: &&Entry| entry.message.id == id && (own || entry.position == *at);
                !kept.chain(inbox).iter().any(here)
            };
            let missing = spots.iter().filter(lacks).map(|(inbox, _)| inbox.clone()).collect();
            let written = spots.first().map(|(_, at)| at.epoch).unwrap_or_default();
            let epoch = turn.as_ref().map_or(written, |turn| turn.version.epoch());
            Counted { turn, epoch, missing }
        };
        Ok(asked.iter().zip(told).map(|((_, id), told)| Some(one(*id, told?))).collect())
    }

    async fn by_user(
        &self,
        _: &UserId,
        _: bool,
        _: Option<ByActivity>,
        _: usize,
    ) -> PortResult<Page<Conversation, ByActivity>> {
        Ok(Page { rows: Vec::new(), next: None })
    }

    async fn turns(
        &self,
        id: ConversationId,
        order: Order,
        from: Option<u64>,
        limit: usize,
    ) -> PortResult<Page<Shown, u64>> {
        self.ice.thawed().await;
        assert_eq!(order, Order::Newest, "an owner reads no other way");
        let kept = self.kept.lock();
        let turns = kept.threads.get(&id).map(Thread::said).unwrap_or_default();
        let before = turns.into_iter().rev().filter(|turn| from.is_none_or(|from| turn.seq < from));
        let shown = before.filter(|turn| turn.is_shown()).take(limit);
        Ok(Page { rows: shown.map(|turn| Shown::of(turn.clone(), State::default(), [])).collect(), next: None })
    }

    async fn around(&self, _: ConversationId, _: MessageId, _: usize) -> PortResult<Option<Around>> {
        Ok(None)
    }

    async fn said(&self, ids: &[MessageId]) -> PortResult<Vec<Option<Shown>>> {
        self.ice.thawed().await;
        let kept = self.kept.lock();
        let one = |id: &MessageId| {
            let (turn, _) = kept.threads.values().find_map(|thread| thread.find(*id))?;
            turn.is_shown().then(|| Shown::of(turn.clone(), State::default(), []))
        };
        Ok(ids.iter().map(one).collect())
    }

    async fn unread_total(&self, _: &UserId) -> PortResult<u64> {
        Ok(0)
    }

    async fn list_mark(&self, _: &UserId, _: bool, _: usize) -> PortResult<Option<ListMark>> {
        Ok(None)
    }
}

#[async_trait]
impl People for Store {
    async fn people(&self, users: &[UserId]) -> PortResult<Vec<Person>> {
        Ok(vec![Person::default(); users.len()])
    }
    async fn prefer(&self, _: &UserId, _: bool) -> PortResult<()> {
        Ok(())
    }
    async fn seen(&self, _: &[(UserId, Timestamp)]) -> PortResult<()> {
        Ok(())
    }
}
