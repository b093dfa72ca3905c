//! Facts: merged in memory, where the owner remembers what it wrote, and written once a message and call.

use std::collections::{BTreeMap, HashMap, HashSet};

use async_trait::async_trait;
use schemas::{
    Fact, Inbox, MessageId, Partition, Position, State, Status,
    fact::Past,
    port::{Facts, PortResult, Settled},
};
use scylla::value::CqlValue::{BigInt, Blob, Int, Text, Uuid};

use super::{
    ScyllaHistory, keys,
    rows::{Ledger, Place, blob},
    session::Write,
    shared::{Head, Known, Shared},
    statements::Pick,
    writes,
};

/// Whether a one-way message in this state is one that its reader has yet to open. What was withdrawn before anyone had
/// it is never shown, so it must not stay on a badge.
pub(super) fn counts_as_unread(state: &State) -> bool {
    state.status() != Status::Read && !state.is_withdrawn()
}

/// Messages of one inbox counted at once: the row that says so stays below ten kilobytes.
const TOGETHER: usize = 500;

pub(super) fn ledger_row(name: String, ledger: &Ledger, stamp: i64) -> Write {
    Write::new(Pick::SetLedger, vec![Text(name), Blob(blob(ledger)), BigInt(stamp)])
}

/// What became of a message.
pub(super) fn state_row(shared: &Shared, id: MessageId, state: &State, stamp: i64) -> Write {
    let values = [Int(shared.ttl), BigInt(stamp), Blob(blob(state)), BigInt(keys::slot(id)), Uuid(id.0)];
    Write::new(Pick::SetState, values.into())
}

/// A message whose facts are being merged.
struct Merging {
    id: MessageId,
    partition: Partition,
    unread: bool,
    known: Known,
    grew: bool,
}

/// What a call of `settle` comes to.
#[derive(Default)]
struct Merged {
    settled: Vec<Settled>,
    messages: Vec<Merging>,
    /// Ids that no entry will lead retention to, each with the time of its first fact.
    loose: Vec<(Partition, schemas::Timestamp, MessageId)>,
}

impl Merged {
    fn new(facts: &[Fact], mut known: HashMap<MessageId, Known>) -> Self {
        let (mut merged, mut found) = (Self::default(), HashMap::with_capacity(facts.len()));
        for fact in facts {
            let index = *found.entry(fact.id).or_insert_with(|| {
                let known = known.remove(&fact.id).unwrap_or(Known { state: State::default(), place: None });
                if fact.position == Position::START && known.state.past.is_empty() && known.place.is_none() {
                    merged.loose.push((fact.inbox.partition, fact.at, fact.id));
                }
                let unread = counts_as_unread(&known.state);
                let partition = fact.inbox.partition;
                merged.messages.push(Merging { id: fact.id, partition, unread, known, grew: false });
                merged.messages.len() - 1
            });
            let Some(message) = merged.messages.get_mut(index) else { continue };
            let past = Past::from(fact);
            let told = message.known.state.past.contains(&past);
            let changed = message.known.state.merge(past);
            message.grew |= !told;
            merged.settled.push(Settled { changed, state: message.known.state.clone() });
        }
        merged
    }

    /// Messages whose inbox counts them otherwise now.
    fn counted(&self) -> impl Iterator<Item = (&Merging, &Inbox, Position, bool)> {
        self.messages.iter().filter_map(|message| {
            let unread = counts_as_unread(&message.known.state);
            let (inbox, at, notice) = message.known.place.as_ref()?;
            (*notice && unread != message.unread).then_some((message, inbox, *at, unread))
        })
    }
}

impl Shared {
    /// What is known of the messages of these facts: from memory, else read.
    async fn known_of(&self, facts: &[Fact]) -> PortResult<HashMap<MessageId, Known>> {
        let (mut known, mut missing) = (HashMap::with_capacity(facts.len()), Vec::new());
        {
            let mut remembered = self.known.lock();
            for fact in facts {
                if known.contains_key(&fact.id) {
                    continue;
                }
                match remembered.get(&fact.id) {
                    // Of a message that has a place its place must be known, or it could not be counted.
                    Some(there) if there.place.is_some() || fact.position == Position::START => {
                        known.insert(fact.id, there.clone());
                    }
                    _ => missing.push(fact.id),
                }
            }
        }
        missing.sort_unstable();
        missing.dedup();
        if !missing.is_empty() {
            for (id, place) in self.places(&missing).await? {
                let Place { inbox, position, head, state, .. } = place;
                let place = inbox.zip(position).map(|(inbox, at)| (inbox, at, head.is_some_and(|head| head.notice)));
                known.insert(id, Known { state, place });
            }
        }
        Ok(known)
    }

    async fn settle_all(&self, facts: &[Fact]) -> PortResult<Vec<Settled>> {
        if facts.is_empty() {
            return Ok(Vec::new());
        }
        let merged = Merged::new(facts, self.known_of(facts).await?);
        for fact in facts {
            if !self.mine.lock().contains_key(&fact.inbox.partition) {
                self.met(fact.inbox.partition, fact.position.epoch);
            }
        }
        let mut stamps = BTreeMap::new();
        for message in &merged.messages {
            if let std::collections::btree_map::Entry::Vacant(free) = stamps.entry(message.partition) {
                free.insert(self.stamp(message.partition).await?);
            }
        }
        let stamp = |partition| stamps.get(&partition).copied().unwrap_or_default();
        let counted: HashSet<MessageId> = merged.counted().map(|(message, ..)| message.id).collect();
        let mut rows: Vec<Write> = Vec::with_capacity(merged.messages.len());
        for (partition, at, id) in &merged.loose {
            rows.extend(writes::loose(self, *partition, *at, *id, stamp(*partition)));
        }
        for message in merged.messages.iter().filter(|message| message.grew && !counted.contains(&message.id)) {
            rows.push(state_row(self, message.id, &message.known.state, stamp(message.partition)));
        }
        // Nothing new was told, but what was told before may not stand yet: its row again waits for it.
        if let (true, true, Some(message)) = (rows.is_empty(), counted.is_empty(), merged.messages.first()) {
            rows.push(state_row(self, message.id, &message.known.state, stamp(message.partition)));
        }
        // Rows of one slot side by side, so that they fall into few requests.
        rows.sort_by_key(|row| match row.values.get(3) {
            Some(BigInt(slot)) => *slot,
            _ => i64::MIN,
        });
        self.cql.send_all(rows).await?;
        if !counted.is_empty() {
            self.count(&merged, stamp).await?;
        }
        for (partition, at, _) in &merged.loose {
            self.marked(super::due::loose(*partition), super::due::bucket(*at));
        }
        let mut known = self.known.lock();
        for message in merged.messages {
            known.put(message.id, message.known);
        }
        Ok(merged.settled)
    }

    /// Writes what inboxes count, and then the states of the messages that they count otherwise. In this order, and with the
    /// messages named in the count, because a process may die in between: the facts come again then, and whoever settles them
    /// finds that the count is made.
    async fn count(&self, merged: &Merged, stamp: impl Fn(Partition) -> i64) -> PortResult<()> {
        let inboxes: HashSet<Inbox> = merged.counted().map(|(_, inbox, ..)| inbox.clone()).collect();
        let _alone = self.ledgers.hold(inboxes.iter().map(keys::inbox)).await;
        let mut heads: HashMap<Inbox, Head> = self.heads(inboxes).await?;
        let mut inboxes = HashMap::<&Inbox, Vec<_>>::new();
        for (message, inbox, at, unread) in merged.counted() {
            inboxes.entry(inbox).or_default().push((message, at, unread));
        }
        self.catch_up(&mut heads).await?;
        let most = inboxes.values().map(Vec::len).max().unwrap_or(0);
        for round in 0..most.div_ceil(TOGETHER) {
            let (mut ledgers, mut states, mut stand) = (Vec::new(), Vec::new(), HashMap::new());
            for (inbox, messages) in &inboxes {
                let Some(head) = heads.get_mut(inbox) else { continue };
                let stamp = stamp(inbox.partition);
                let before = head.ledger.clone();
                for (message, at, unread) in messages.iter().skip(round * TOGETHER).take(TOGETHER) {
                    states.push(state_row(self, message.id, &message.known.state, stamp));
                    stand.insert(message.id, *unread);
                    // What retention removed was taken off then; what an overtaken owner wrote was never counted.
                    if head.has(*at) {
                        head.ledger.count(message.id, message.unread, *unread);
                    }
                }
                if head.ledger != before {
                    ledgers.push(ledger_row(keys::inbox(inbox), &head.ledger, stamp));
                }
            }
            self.cql.send_all(ledgers).await?;
            self.cql.send_all(states).await?;
            for head in heads.values_mut() {
                head.ledger.caught_up(|id| stand.get(&id).copied());
            }
        }
        Ok(())
    }

    /// Drops from the counts the messages that were counted ahead and whose states stand by now.
    pub(super) async fn catch_up(&self, heads: &mut HashMap<Inbox, Head>) -> PortResult<()> {
        let (mut stand, mut missing) = (HashMap::new(), Vec::new());
        {
            let mut known = self.known.lock();
            for id in heads.values().flat_map(|head| head.ledger.ahead()) {
                match known.get(&id) {
                    Some(there) => {
                        stand.insert(id, counts_as_unread(&there.state));
                    }
                    None => missing.push(id),
                }
            }
        }
        if !missing.is_empty() {
            let read = self.states_of(&missing).await?;
            stand.extend(read.iter().map(|(id, state)| (*id, counts_as_unread(state))));
        }
        for head in heads.values_mut() {
            head.ledger.caught_up(|id| stand.get(&id).copied());
        }
        Ok(())
    }
}

#[async_trait]
impl Facts for ScyllaHistory {
    async fn settle(&self, facts: &[Fact]) -> PortResult<Vec<Settled>> {
        self.shared.settle_all(facts).await
    }

    async fn states(&self, ids: &[MessageId]) -> PortResult<Vec<State>> {
        self.shared.kept_states(ids).await
    }
}
