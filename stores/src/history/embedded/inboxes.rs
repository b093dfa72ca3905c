//! Inboxes: recording, and everything found by id, by time or at the end of an inbox.

use std::{collections::HashSet, sync::Arc};

use async_trait::async_trait;
use schemas::{
    Epoch, Inbox, MessageId, Partition, Position, State, Timestamp,
    port::{
        Due, DueKind, Entry, Inboxes, Known, Order, Page, Placed, PortError, PortResult, Schedule, Span, Tail, Unread,
    },
};

use super::{
    EmbeddedHistory, keys,
    reading::{self, INLINE},
    rows::{Body, Head, Place},
    tables::{Tables, broken, decode, mark, pair, put, remove, strange, unread, weight},
};
use crate::{embedded::Write, history::unconfirmed::Unconfirmed};

/// What one call of `record` writes, and by how much it makes the counts grow.
#[derive(Default)]
struct Batch {
    writes: Vec<Write>,
    kept: i64,
    due: i64,
}

impl EmbeddedHistory {
    /// Places first and entries after them: whoever meets an entry finds its message by id too.
    fn batch(&self, entries: &[Entry], schedule: &Schedule) -> PortResult<Batch> {
        let tables = &*self.tables;
        let mut batch = Batch { writes: Vec::with_capacity(2 * entries.len() + 3), ..Batch::default() };
        // A sender's own copy is not where a message is found by its id.
        let own = |entry: &&Entry| entry.inbox.user == entry.message.to;
        for entry in entries.iter().filter(own) {
            let notice = Head::of(entry).is_notice();
            let place = Place::Placed { inbox: entry.inbox.clone(), position: entry.position, notice };
            batch.writes.push(put(&tables.places, keys::id(entry.message.id), &place));
        }
        for entry in entries {
            let at = keys::entry(&keys::inbox(&entry.inbox), entry.position);
            batch.writes.push(put(&tables.entries, at, &(Head::of(entry), &entry.message)));
        }
        batch.kept += entries.iter().filter(own).count() as i64;
        for due in &schedule.add {
            self.schedule(due, &mut batch)?;
        }
        if !schedule.done.is_empty() {
            let recorded: HashSet<_> = entries.iter().map(|entry| entry.message.id).collect();
            for due in &schedule.done {
                self.unschedule(due, recorded.contains(&due.id), &mut batch)?;
            }
        }
        self.sizes.add(batch.kept, batch.due);
        if self.sizes.is_time() || batch.due != 0 {
            batch.writes.push(self.sizes.row(tables));
        }
        Ok(batch)
    }

    fn schedule(&self, due: &Due, batch: &mut Batch) -> PortResult<()> {
        let tables = &*self.tables;
        match &due.kind {
            DueKind::Expire { inbox, position, .. } => {
                batch.writes.push(put(&tables.due, keys::due_row(due), &(inbox, position)));
            }
            DueKind::Send(message) => {
                // Known already: it may have been sent or cancelled meanwhile, so it must not come up again.
                if tables.place(due.id)?.is_some() {
                    return Ok(());
                }
                let place = Place::Scheduled { partition: due.partition };
                batch.writes.push(put(&tables.places, keys::id(due.id), &place));
                batch.writes.push(put(&tables.due, keys::scheduled(due.id), &(self.clock.wall(), message)));
                batch.writes.push(mark(&tables.due, keys::due_row(due)));
                batch.kept += 1;
            }
        }
        batch.due += 1;
        Ok(())
    }

    fn unschedule(&self, due: &Due, recorded: bool, batch: &mut Batch) -> PortResult<()> {
        let tables = &*self.tables;
        let at = keys::due_row(due);
        if tables.due.contains_key(&at).map_err(unread)? {
            batch.due -= 1;
        }
        batch.writes.push(remove(&tables.due, at));
        if due.is_send() {
            let waits = matches!(tables.place(due.id)?, Some(Place::Scheduled { .. }));
            let scheduled = tables.due.contains_key(keys::scheduled(due.id)).map_err(unread)?;
            if scheduled && (recorded || !waits) {
                // It was counted when it was scheduled, and again when it was recorded.
                batch.kept -= 1;
            }
            if waits && !recorded {
                // Cancelled before its time: it is still found by its id until retention comes by.
                batch.writes.push(mark(&tables.due, keys::left(due.partition, due.at, due.id)));
            } else {
                batch.writes.push(remove(&tables.due, keys::scheduled(due.id)));
            }
        }
        Ok(())
    }

    /// Runs where it is called if it is short, and on a thread for long scans if it is not.
    pub(super) async fn read_rows<T: Send + 'static>(
        &self,
        rows: usize,
        read: impl FnOnce(&Tables) -> PortResult<T> + Send + 'static,
    ) -> PortResult<T> {
        if rows <= INLINE {
            return read(&self.tables);
        }
        let tables = Arc::clone(&self.tables);
        tokio::task::spawn_blocking(move || read(&tables)).await.unwrap_or_else(|_| {
            Err(PortError::Unavailable("the reading of the history ended before it answered".into()))
        })
    }
}

impl Tables {
    pub(super) fn tail(&self, inbox: &[u8]) -> PortResult<Tail> {
        let whole = keys::entry(inbox, Position::START)..keys::after_inbox(inbox);
        let Some(last) = self.entries.range(whole).next_back() else {
            // Retention may have removed them all; the numbering goes on from there.
            let ledger = self.ledger(inbox)?;
            return Ok(Tail { position: ledger.gone, one_way: ledger.gone_one_way });
        };
        let (key, row) = pair(last)?;
        let (_, position) = keys::split_entry(&key).ok_or_else(|| strange(&self.entries))?;
        let head = Head::read(&row).map_err(|why| broken(&self.entries, &why))?;
        Ok(Tail { position, one_way: head.one_way })
    }

    pub(super) fn placed(&self, id: MessageId) -> PortResult<Option<Placed>> {
        match self.place(id)? {
            None => Ok(None),
            Some(Place::Placed { inbox, position, .. }) => {
                let Some((head, message)) = self.entry(&keys::inbox(&inbox), position)? else { return Ok(None) };
                let Head { prev, recorded_at, .. } = head;
                let (position, seq, state) = (Some(position), head.seq(), self.state(id)?);
                Ok(Some(Placed { message, inbox, position, prev, recorded_at, seq, state }))
            }
            Some(Place::Scheduled { partition }) => self.waiting(id, partition),
        }
    }

    /// A message that has no place.
    pub(super) fn waiting(&self, id: MessageId, partition: Partition) -> PortResult<Option<Placed>> {
        let Some((recorded_at, message)) = self.get::<Body>(&self.due, &keys::scheduled(id))? else { return Ok(None) };
        let inbox = Inbox { user: message.to.clone(), partition };
        let (position, prev) = (None, Position::START);
        Ok(Some(Placed { message, inbox, position, prev, recorded_at, seq: None, state: self.state(id)? }))
    }

    /// Only an id that is there costs more than one look: a repeated key.
    fn known(&self, id: MessageId) -> PortResult<Option<Known>> {
        let found = self.placed(id)?;
        Ok(found.map(|Placed { message, position, .. }| Known { fingerprint: message.fingerprint, position }))
    }

    fn due_rows(&self, partition: Partition, now: Timestamp, limit: usize) -> PortResult<Vec<Due>> {
        let (from, until) = keys::due_until(partition, now);
        let mut rows = Vec::new();
        for row in self.due.range(from..until) {
            if rows.len() == limit {
                break;
            }
            let (key, value) = pair(row)?;
            let (at, id, kind) = keys::parse_due(&key).ok_or_else(|| strange(&self.due))?;
            let kind = match kind {
                keys::Kind::Expire => {
                    let (inbox, position) = decode(&self.due, &value)?;
                    DueKind::Expire { id, inbox, position }
                }
                keys::Kind::Send => match self.get::<Body>(&self.due, &keys::scheduled(id))? {
                    Some((_, message)) => DueKind::Send(message),
                    // It is being sent at this moment.
                    None => continue,
                },
            };
            rows.push(Due { partition, at, id, kind });
        }
        Ok(rows)
    }
}

#[async_trait]
impl Inboxes for EmbeddedHistory {
    async fn take_over(&self, partitions: &[Partition]) -> PortResult<Vec<Epoch>> {
        let (epochs, pending) = {
            let _line = self.line.lock().await;
            let (epochs, writes) = self.fence.next(&self.tables, partitions);
            let room = self.tables.engine.room(weight(&writes)).await?;
            let pending = self.tables.engine.submit_in(room, writes)?;
            self.fence.raise(partitions, &epochs);
            (epochs, pending)
        };
        pending.wait().await?;
        Ok(epochs)
    }

    /// Nothing is told that would have to be sealed: a late write is refused.
    fn owns(&self, _: &[(Partition, Epoch)]) {}

    async fn tails(&self, inboxes: &[Inbox]) -> PortResult<Vec<Tail>> {
        inboxes.iter().map(|inbox| self.tables.tail(&keys::inbox(inbox))).collect()
    }

    async fn known(&self, ids: &[MessageId]) -> PortResult<Vec<Option<Known>>> {
        ids.iter().map(|id| self.tables.known(*id)).collect()
    }

    async fn record(&self, entries: &[Entry], schedule: &Schedule) -> PortResult<()> {
        let rows = schedule.add.len() + schedule.done.len() + schedule.conversations.len();
        if entries.is_empty() && rows == 0 {
            return Ok(());
        }
        // What has ended already brings its state with it, and its turn is over when that can be read.
        let (pending, moves, _turns) = {
            let _line = self.line.lock().await;
            self.fence.check(entries, schedule)?;
            // Until it has its place in the queue: from there what is first stands first, or nothing more does.
            let mut taken = Taken { unconfirmed: &self.unconfirmed, entries, schedule, stands: false };
            self.unconfirmed.allow(entries, schedule)?;
            let ended = || entries.iter().filter(|entry| entry.end.is_some());
            let turns = self.turns.take(ended().map(|entry| entry.inbox.partition.0.into()).collect()).await;
            // Rows of one batch can be read one after the other: whoever meets an entry finds what belongs to it.
            let now = self.clock.mono();
            let (mut writes, moves) = self.threads.plan(&self.tables, schedule, now)?;
            self.tables.end(ended(), &mut writes)?;
            let Batch { writes: last, kept, due } = self.batch(entries, schedule)?;
            writes.extend(last);
            self.rounds.note(entries);
            let submitted = match self.tables.engine.room(weight(&writes)).await {
                // A message waits for its place; rows of the due-table alone wait for nobody.
                Ok(room) => {
                    let along = entries.is_empty() && schedule.conversations.is_empty();
                    let before = self.threads.apply(&moves, now);
                    let room = if along { room.along() } else { room };
                    match self.tables.engine.submit_in(room, writes) {
                        Ok(pending) => Ok(pending),
                        Err(why) => {
                            self.threads.undo(before);
                            Err(why)
                        }
                    }
                }
                Err(why) => Err(why),
            };
            let submitted = submitted.inspect_err(|_| self.sizes.add(-kept, -due))?;
            taken.stands = true;
            (submitted, moves, turns)
        };
        let ended = pending.wait().await;
        self.threads.done(schedule, &moves, ended)
    }

    async fn due(&self, partition: Partition, now: Timestamp, limit: usize) -> PortResult<Vec<Due>> {
        self.read_rows(limit, move |tables| tables.due_rows(partition, now, limit)).await
    }

    async fn read(&self, inbox: &Inbox, from: Position, limit: usize) -> PortResult<Span> {
        let inbox = inbox.clone();
        self.read_rows(limit, move |tables| reading::forward(tables, &inbox, from, limit)).await
    }

    async fn messages(&self, ids: &[MessageId]) -> PortResult<Vec<Option<Placed>>> {
        ids.iter().map(|id| self.tables.placed(*id)).collect()
    }

    async fn one_way(
        &self,
        inbox: &Inbox,
        order: Order,
        from: Option<Position>,
        limit: usize,
    ) -> PortResult<Page<(Entry, State), Position>> {
        let inbox = inbox.clone();
        self.read_rows(limit, move |tables| reading::one_way(tables, &inbox, order, from, limit)).await
    }

    async fn unread(&self, inbox: &Inbox) -> PortResult<Unread> {
        let inbox = keys::inbox(inbox);
        let (tail, ledger) = (self.tables.tail(&inbox)?, self.tables.ledger(&inbox)?);
        Ok(Unread { one_way: tail.one_way.saturating_sub(ledger.seen) })
    }

    async fn retain(&self, partition: Partition, before: Timestamp, limit: usize) -> PortResult<Vec<Placed>> {
        self.sweep(partition, before, limit).await
    }

    async fn sizes(&self) -> PortResult<(u64, u64)> {
        Ok(self.sizes.now())
    }
}

/// A batch on its way to its place in the queue. One that does not get there, whoever waits for it or not, has to be repeated
/// before what follows it.
struct Taken<'a> {
    unconfirmed: &'a Unconfirmed,
    entries: &'a [Entry],
    schedule: &'a Schedule,
    stands: bool,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.unconfirmed.ended(self.entries, self.schedule, self.stands);
    }
}
