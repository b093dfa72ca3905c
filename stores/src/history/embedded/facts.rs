//! Facts: merged into one row a message, and into what its inbox counts as unread, in one write.

use std::collections::HashMap;

use async_trait::async_trait;
use schemas::{
    Fact, Inbox, Kind, MessageId, Position, State, Status,
    fact::Past,
    port::{Entry, Facts, PortResult, Settled},
};

use super::{
    EmbeddedHistory, keys,
    rows::{Ledger, Place},
    tables::{Tables, mark, put},
};
use crate::embedded::Write;

/// Whether a one-way message in this state is one that its reader has yet to open. What was withdrawn before anyone had
/// it is never shown, so it must not stay on a badge.
pub(super) fn counts_as_unread(state: &State) -> bool {
    state.status() != Status::Read && !state.is_withdrawn()
}

/// Ledgers that are being written back, by their inboxes.
type Ledgers = HashMap<Vec<u8>, Ledger>;

/// A message whose facts are being merged.
struct Merging {
    id: MessageId,
    unread: bool,
    state: State,
    grew: bool,
}

impl Tables {
    fn merge(&self, facts: &[Fact]) -> PortResult<(Vec<Settled>, Vec<Write>)> {
        let (mut found, mut merging) = (HashMap::with_capacity(facts.len()), Vec::<Merging>::new());
        let (mut settled, mut writes) = (Vec::with_capacity(facts.len()), Vec::with_capacity(facts.len()));
        for fact in facts {
            let index = match found.get(&fact.id) {
                Some(index) => *index,
                None => {
                    let state = self.state(fact.id)?;
                    if fact.position == Position::START && state.past.is_empty() {
                        // No entry will lead retention to this id; this row does.
                        writes.push(mark(&self.due, keys::left(fact.inbox.partition, fact.at, fact.id)));
                    }
                    merging.push(Merging { id: fact.id, unread: counts_as_unread(&state), state, grew: false });
                    found.insert(fact.id, merging.len() - 1);
                    merging.len() - 1
                }
            };
            let Some(message) = merging.get_mut(index) else { continue };
            let past = Past::from(fact);
            let told = message.state.past.contains(&past);
            let changed = message.state.merge(past);
            message.grew |= !told;
            settled.push(Settled { changed, state: message.state.clone() });
        }
        let mut ledgers = Ledgers::new();
        for message in &merging {
            if message.grew {
                writes.push(put(&self.states, keys::id(message.id), &message.state));
            }
            let unread = counts_as_unread(&message.state);
            if unread != message.unread {
                // Without a place it was never counted as written.
                if let Some(Place::Placed { inbox, notice: true, .. }) = self.place(message.id)? {
                    self.count(&inbox, unread, &mut ledgers)?;
                }
            }
        }
        writes.extend(ledgers.iter().map(|(inbox, ledger)| put(&self.ledgers, &inbox[..], ledger)));
        // Nothing new was told, but what was told before may not be durable yet: its rows again wait for it.
        if let (true, Some(message)) = (writes.is_empty(), merging.first()) {
            writes.push(put(&self.states, keys::id(message.id), &message.state));
        }
        Ok((settled, writes))
    }

    /// The states of entries that have ended before they are recorded.
    pub(super) fn end<'a>(&self, ended: impl Iterator<Item = &'a Entry>, writes: &mut Vec<Write>) -> PortResult<()> {
        let mut ledgers = Ledgers::new();
        for entry in ended {
            let (id, mut state) = (entry.message.id, self.state(entry.message.id)?);
            // Recorded before: it is counted, and by what was known of it then.
            let placed = matches!(self.place(id)?, Some(Place::Placed { .. }));
            let before = !placed || counts_as_unread(&state);
            if let Some(past) = entry.end.as_ref().filter(|past| !state.past.contains(past)) {
                state.merge(past.clone());
                writes.push(put(&self.states, keys::id(id), &state));
            }
            let unread = counts_as_unread(&state);
            if unread != before && matches!(entry.message.kind, Kind::OneWay) {
                self.count(&entry.inbox, unread, &mut ledgers)?;
            }
        }
        writes.extend(ledgers.iter().map(|(inbox, ledger)| put(&self.ledgers, &inbox[..], ledger)));
        Ok(())
    }

    /// A message is unread no more, or again (a late acknowledgement corrects a failure).
    fn count(&self, inbox: &Inbox, unread: bool, ledgers: &mut Ledgers) -> PortResult<()> {
        let key = keys::inbox(inbox);
        let ledger = match ledgers.get_mut(&key) {
            Some(ledger) => ledger,
            None => {
                let ledger = self.ledger(&key)?;
                ledgers.entry(key).or_insert(ledger)
            }
        };
        ledger.seen = if unread { ledger.seen.saturating_sub(1) } else { ledger.seen.saturating_add(1) };
        Ok(())
    }
}

#[async_trait]
impl Facts for EmbeddedHistory {
    async fn settle(&self, facts: &[Fact]) -> PortResult<Vec<Settled>> {
        if facts.is_empty() {
            return Ok(Vec::new());
        }
        let _turns = self.turns.take(facts.iter().map(|fact| fact.inbox.partition.0.into()).collect()).await;
        let (settled, writes) = self.tables.merge(facts)?;
        // Whoever acknowledged has gone on; what waits for this is told a moment later.
        self.tables.engine.write_along(writes).await?;
        Ok(settled)
    }

    async fn states(&self, ids: &[MessageId]) -> PortResult<Vec<State>> {
        ids.iter().map(|id| self.tables.state(*id)).collect()
    }
}
