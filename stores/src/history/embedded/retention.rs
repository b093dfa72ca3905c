//! Retention: what is old goes, a bounded piece at a time, and never before its sender could be told.
//!
//! An inbox is emptied from its beginning, so what is kept is one whole chain and one mark says what is gone. The inboxes of
//! a partition are visited in rounds ([`Rounds`]), one seek each; what nobody has received stops the removal of its inbox
//! until it is settled, and the next call visits that inbox again.

use std::{collections::BTreeMap, sync::Arc};

use schemas::{
    ConversationId, Message, MessageId, Partition, Sender, Timestamp,
    port::{BroadcastState, Placed, PortResult},
};

use super::{
    EmbeddedHistory, facts, keys,
    rows::{Head, Place},
    tables::{Tables, broken, decode, key, pair, put, remove, strange, unread},
};
use crate::embedded::Write;

/// Inboxes looked at in one call: one seek each, of some tens of microseconds, for every partition and every call.
const LOOKS: usize = 128;
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
    /// Where the next call begins; empty: at the beginning, with a new round.
    next: Vec<u8>,
    /// The oldest entry met that stays.
    oldest: Option<Timestamp>,
    /// What goes of conversations.
    gone: BTreeMap<ConversationId, (u64, u64, u64)>,
    talks: bool,
}

impl EmbeddedHistory {
    pub(super) async fn sweep(&self, partition: Partition, before: Timestamp, limit: usize) -> PortResult<Vec<Placed>> {
        // Settling writes back the rows that are judged here.
        let _turn = self.turns.take(vec![partition.0.into()]).await;
        let begin = self.rounds.begin(partition, before);
        let visits = begin.is_some();
        let read = move |tables: &Tables| {
            let mut sweep = Sweep { left: limit, ..Sweep::default() };
            sweep.placeless(tables, partition, before)?;
            if let Some(begin) = begin {
                sweep.inboxes(tables, partition, before, &begin)?;
            }
            sweep.broadcasts(tables, before)?;
            let gone = std::mem::take(&mut sweep.gone);
            sweep.talks = !gone.is_empty();
            sweep.writes.extend(tables.gone_rows(gone));
            Ok(sweep)
        };
        // Always on a thread for long scans: it seeks through many inboxes.
        let Sweep { mut writes, unreached, removed, due, next, oldest, talks: unread, .. } =
            self.read_rows(usize::MAX, read).await?;
        if !writes.is_empty() {
            self.sizes.add(-removed, -due);
            writes.push(self.sizes.row(&self.tables));
            self.tables.engine.write_along(writes).await.inspect_err(|_| self.sizes.add(removed, due))?;
        }
        if unread {
            self.threads.forget_totals();
        }
        if visits {
            self.rounds.end(partition, next, oldest);
        }
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
                Some(Place::Placed { .. }) => {}
                // It is still to be sent; its row of the due-table leads to it.
                Some(_) if !tables.state(id)?.is_over() => {}
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

    fn inboxes(&mut self, tables: &Tables, partition: Partition, before: Timestamp, begin: &[u8]) -> PortResult<()> {
        let (start, end) = keys::partition(partition);
        let mut at = if begin.is_empty() { start } else { begin.to_vec() };
        let mut again = None;
        for looks in 0.. {
            let first = match &end {
                Some(end) => tables.entries.range(&at[..]..&end[..]).next(),
                None => tables.entries.range(&at[..]..).next(),
            };
            let Some(first) = first else {
                at.clear();
                break;
            };
            if self.left == 0 || looks == LOOKS {
                break;
            }
            let first = key(first)?;
            let (inbox, _) = keys::split_entry(&first).ok_or_else(|| strange(&tables.entries))?;
            let (waiting, removed) = (self.unreached.len(), self.removed);
            let finished = self.inbox(tables, partition, inbox, before)?;
            // What was returned is to be settled by the next call, which begins there. When nothing was, that call goes on
            // all the same: nobody else's entries wait for it.
            let stuck = inbox == begin && self.removed == removed;
            if !stuck && (self.unreached.len() > waiting || !finished) {
                again.get_or_insert_with(|| inbox.to_vec());
            }
            at = keys::after_inbox(inbox);
        }
        self.next = again.unwrap_or(at);
        Ok(())
    }

    /// Empties one inbox as far as it may; `false`: the call's bound ended it.
    fn inbox(&mut self, tables: &Tables, partition: Partition, inbox: &[u8], before: Timestamp) -> PortResult<bool> {
        let known = tables.ledger(inbox)?;
        let (mut ledger, mut oldest, mut finished) = (known, None, true);
        for row in tables.entries.range(inbox.to_vec()..keys::after_inbox(inbox)) {
            let (at, value) = pair(row)?;
            let (_, position) = keys::split_entry(&at).ok_or_else(|| strange(&tables.entries))?;
            let head = Head::read(&value).map_err(|why| broken(&tables.entries, &why))?;
            if head.recorded_at >= before || self.left == 0 {
                oldest = oldest.or(Some(head.recorded_at));
                finished = head.recorded_at >= before;
                break;
            }
            self.left -= 1;
            let (_, message): (Head, Arc<Message>) = decode(&tables.entries, &value)?;
            let state = tables.state(message.id)?;
            // In chat a copy, and what one did for one's own other devices, waits for nobody's answer.
            let of = message.kind.conversation().and_then(|_| keys::parse_inbox(inbox));
            let is_copy = of.as_ref().is_some_and(|of| of.user != message.to);
            let own = is_copy || of.is_some_and(|of| message.from == Sender::User(of.user.party));
            if own && oldest.is_none() {
                self.writes.push(remove(&tables.entries, &at[..]));
                if !is_copy {
                    self.message(tables, partition, &message)?;
                }
                (ledger.gone, ledger.gone_one_way) = (position, head.one_way);
            } else if !own && !state.is_over() {
                let inbox = keys::parse_inbox(inbox).ok_or_else(|| strange(&tables.entries))?;
                let Head { prev, recorded_at, .. } = head;
                oldest = oldest.or(Some(recorded_at));
                self.unreached.push(Placed {
                    message,
                    inbox,
                    position: Some(position),
                    prev,
                    recorded_at,
                    seq: None,
                    state,
                });
            } else if oldest.is_none() {
                self.writes.push(remove(&tables.entries, &at[..]));
                self.message(tables, partition, &message)?;
                (ledger.gone, ledger.gone_one_way) = (position, head.one_way);
                // What nobody can read any more is not unread.
                ledger.seen += u64::from(head.is_notice() && facts::counts_as_unread(&state));
            }
        }
        if ledger != known {
            self.writes.push(put(&tables.ledgers, inbox, &ledger));
        }
        self.oldest = self.oldest.into_iter().chain(oldest).min();
        Ok(finished)
    }

    /// All that is known by a message's id.
    fn message(&mut self, tables: &Tables, partition: Partition, message: &Message) -> PortResult<()> {
        self.forget(tables, message.id);
        self.removed += 1;
        if message.kind.conversation().is_some() {
            tables.unsay(message, &mut self.gone, &mut self.writes)?;
        }
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
