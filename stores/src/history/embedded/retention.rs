//! Retention: what is old goes, a bounded piece at a time, and never before its sender could be told.
//!
//! An inbox is emptied from its beginning, so what is kept is one whole chain and one mark says what is gone. The inboxes of
//! a partition are visited in turn; a place in memory says where to go on. What nobody has received stops the removal of its
//! inbox until it is settled, and the next call visits that inbox again.

use std::sync::Arc;

use schemas::{
    Message, MessageId, Partition, Timestamp,
    port::{BroadcastState, Placed, PortResult},
};

use super::{
    EmbeddedHistory, facts, keys,
    rows::{Head, Place, Spot},
    tables::{Tables, broken, decode, key, pair, put, remove, strange, unread},
};
use crate::embedded::Write;

/// Inboxes looked at in one call in which nothing is old, for each entry it may remove: one seek each.
const LOOKS: usize = 4;
/// Broadcasts that are over and removed in one call: the recipients of one are up to 100 rows.
const BROADCASTS: usize = 4;

/// What one call comes to.
#[derive(Default)]
struct Sweep {
    writes: Vec<Write>,
    unreached: Vec<Placed>,
    removed: i64,
    due: i64,
    /// Entries and ids that may still be removed or returned.
    left: usize,
    /// Where the next call begins; `None`: at the beginning.
    next: Option<Vec<u8>>,
}

impl EmbeddedHistory {
    pub(super) async fn sweep(&self, partition: Partition, before: Timestamp, limit: usize) -> PortResult<Vec<Placed>> {
        // Settling writes back the rows that are judged here.
        let _turn = self.turns.take([partition].into_iter()).await;
        let begin = self.rounds.lock().get(&partition).cloned();
        let read = move |tables: &Tables| {
            let mut sweep = Sweep { left: limit, ..Sweep::default() };
            sweep.placeless(tables, partition, before)?;
            sweep.inboxes(tables, partition, before, begin)?;
            sweep.broadcasts(tables, before)?;
            Ok(sweep)
        };
        // Always on a thread for long scans: it seeks through many inboxes.
        let Sweep { mut writes, unreached, removed, due, next, .. } = self.read_rows(usize::MAX, read).await?;
        if !writes.is_empty() {
            self.sizes.add(-removed, -due);
            writes.push(self.sizes.row(&self.tables));
            self.tables.engine.write(writes).await.inspect_err(|_| self.sizes.add(removed, due))?;
        }
        let mut rounds = self.rounds.lock();
        match next {
            Some(next) => rounds.insert(partition, next),
            None => rounds.remove(&partition),
        };
        Ok(unreached)
    }
}

impl Sweep {
    /// Ids that never got a place: what was dropped, and what was cancelled before its time.
    fn placeless(&mut self, tables: &Tables, partition: Partition, before: Timestamp) -> PortResult<()> {
        let (from, until) = keys::left_until(partition, before);
        for row in tables.due.range(from..until) {
            if self.left == 0 {
                break;
            }
            let row = key(row)?;
            let id = keys::parse_left(&row).ok_or_else(|| strange(&tables.due))?;
            self.left -= 1;
            self.writes.push(remove(&tables.due, row.to_vec()));
            match tables.place(id)? {
                // It got one after all and goes with its entry.
                Some(Place { spot: Spot::Placed { .. }, .. }) => {}
                // It is still to be sent; its row of the due-table leads to it.
                Some(_) if !tables.state(id)?.status().is_settled() => {}
                place => {
                    self.removed += i64::from(place.is_some());
                    self.writes.push(remove(&tables.due, keys::scheduled(id)));
                    self.forget(tables, id);
                }
            }
        }
        Ok(())
    }

    fn forget(&mut self, tables: &Tables, id: MessageId) {
        self.writes.push(remove(&tables.places, keys::id(id)));
        self.writes.push(remove(&tables.states, keys::id(id)));
    }

    fn inboxes(
        &mut self,
        tables: &Tables,
        partition: Partition,
        before: Timestamp,
        begin: Option<Vec<u8>>,
    ) -> PortResult<()> {
        let (start, end) = keys::partition(partition);
        let mut at = begin.unwrap_or(start);
        let mut looks = self.left.saturating_mul(LOOKS);
        loop {
            let first = match &end {
                Some(end) => tables.entries.range(&at[..]..&end[..]).next(),
                None => tables.entries.range(&at[..]..).next(),
            };
            let Some(first) = first else {
                at.clear();
                break;
            };
            if self.left == 0 || looks == 0 {
                break;
            }
            looks -= 1;
            let first = key(first)?;
            let (inbox, _) = keys::split_entry(&first).ok_or_else(|| strange(&tables.entries))?;
            let waiting = self.unreached.len();
            self.inbox(tables, partition, inbox, before)?;
            if self.unreached.len() > waiting && self.next.is_none() {
                self.next = Some(inbox.to_vec());
            }
            at = keys::after_inbox(inbox);
        }
        if self.next.is_none() && !at.is_empty() {
            self.next = Some(at);
        }
        Ok(())
    }

    fn inbox(&mut self, tables: &Tables, partition: Partition, inbox: &[u8], before: Timestamp) -> PortResult<()> {
        let known = tables.ledger(inbox)?;
        let (mut ledger, mut whole) = (known, true);
        for row in tables.entries.range(inbox.to_vec()..keys::after_inbox(inbox)) {
            if self.left == 0 {
                break;
            }
            let (at, value) = pair(row)?;
            let (_, position) = keys::split_entry(&at).ok_or_else(|| strange(&tables.entries))?;
            let head = Head::read(&value).map_err(|why| broken(&tables.entries, &why))?;
            if head.recorded_at >= before {
                break;
            }
            self.left -= 1;
            let (_, message): (Head, Arc<Message>) = decode(&tables.entries, &value)?;
            let state = tables.state(message.id)?;
            if !state.status().is_settled() {
                let inbox = keys::parse_inbox(inbox).ok_or_else(|| strange(&tables.entries))?;
                let Head { prev, recorded_at, .. } = head;
                self.unreached.push(Placed { message, inbox, position: Some(position), prev, recorded_at, state });
                whole = false;
            } else if whole {
                self.writes.push(remove(&tables.entries, &at[..]));
                self.message(tables, partition, &message)?;
                (ledger.gone, ledger.gone_one_way) = (position, head.one_way);
                // What nobody can read any more is not unread.
                ledger.seen += u64::from(head.notice && facts::counts_as_unread(&state));
            }
        }
        if ledger != known {
            self.writes.push(put(&tables.ledgers, inbox, &ledger));
        }
        Ok(())
    }

    /// All that is known by a message's id.
    fn message(&mut self, tables: &Tables, partition: Partition, message: &Message) -> PortResult<()> {
        self.forget(tables, message.id);
        self.removed += 1;
        if let Some(expires_at) = message.expires_at {
            let due = keys::due(partition, expires_at, message.id, keys::Kind::Expire);
            if tables.due.contains_key(&due).map_err(unread)? {
                self.due += 1;
                self.writes.push(remove(&tables.due, due));
            }
        }
        Ok(())
    }

    /// Broadcasts that are over, whichever partition asks.
    fn broadcasts(&mut self, tables: &Tables, before: Timestamp) -> PortResult<()> {
        let (from, until) = keys::order_until(true, before);
        for row in tables.broadcasts.range(from..until).take(BROADCASTS) {
            let row = key(row)?;
            let id = keys::parse_order(&row).ok_or_else(|| strange(&tables.broadcasts))?;
            debug_assert!(tables.broadcast(id)?.is_none_or(|b| b.state != BroadcastState::Running));
            for chunk in tables.broadcasts.prefix(keys::broadcast(b'c', id)) {
                self.writes.push(remove(&tables.broadcasts, key(chunk)?.to_vec()));
            }
            for tag in [b'h', b'p'] {
                self.writes.push(remove(&tables.broadcasts, keys::broadcast(tag, id)));
            }
            self.writes.push(remove(&tables.broadcasts, row.to_vec()));
        }
        Ok(())
    }
}
