//! The books: every accepted message is accounted for, per tenant, at a cut (rule 10, invariant 2).
//!
//! The cut is a vector of offsets: what the pipeline had committed of each lane, read first, and each lane's end. Every
//! message before the committed offset must be known to history; one after it may be or is not recorded yet. What is before
//! it and unknown is residue: an alarm that names ids. Messages are counted once by id, however often they came; records
//! that try a message again are not counted. A message whose facts are not merged yet counts by its earlier status, so a
//! running server's books balance too. The books reach back as far as the log is kept.
//!
//! Memory: 16 bytes for each record of one partition number (all three lanes together), because a message and its repeats
//! share their partition. A million kept messages over 24 partitions: about 700 KB. And what history answers of sixteen thousand
//! messages at a time, a few hundred bytes each.

use std::collections::{BTreeMap, HashMap};

use schemas::{
    MessageId, Offset, Partition, Priority, Tenant, Topic, TopicPartition, codec,
    limits::PAGE_MAX,
    port::{Fetch, Group, History, Log, PortResult, Record},
    record::{LaneRecord, is_again, is_chat},
    status::Status,
};
use serde::{Deserialize, Serialize};

/// The group whose committed offsets are the cut.
pub const PIPELINE: Group = crate::intake::GROUP;

/// Residue that is listed by id; past that it is counted.
const LISTED: usize = 100;

/// Ids asked of history at once: of so many a history on a server answers for all that one inbox has of them together.
const ASKED: usize = 16 * PAGE_MAX;

/// How much is read at once: bounds the memory of a page.
const PAGE: Fetch = Fetch { records: PAGE_MAX, bytes: 4 * 1024 * 1024 };

/// Where one lane was cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// The lane.
    pub lane: Priority,
    /// The partition.
    pub partition: Partition,
    /// The first offset kept.
    pub from: Offset,
    /// The next offset the pipeline would read.
    pub committed: Offset,
    /// The end.
    pub end: Offset,
}

/// One tenant's account, or everybody's: distinct messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Account {
    /// Accepted.
    pub accepted: u64,
    /// Accepted and not recorded yet.
    pub unrecorded: u64,
    /// Recorded; its recipient is not reached yet.
    pub pending: u64,
    /// With a device.
    pub sent: u64,
    /// Acknowledged.
    pub delivered: u64,
    /// Opened.
    pub read: u64,
    /// Given up, with a reason.
    pub failed: u64,
    /// Lost: before the cut and unknown.
    pub residue: u64,
    /// Records that brought a message which had come before; apart from the sum.
    pub repeats: u64,
}

impl Account {
    fn add(&mut self, other: &Self) {
        let Self { accepted, unrecorded, pending, sent, delivered, read, failed, residue, repeats } = other;
        self.accepted += accepted;
        self.unrecorded += unrecorded;
        self.pending += pending;
        self.sent += sent;
        self.delivered += delivered;
        self.read += read;
        self.failed += failed;
        self.residue += residue;
        self.repeats += repeats;
    }

    fn count(&mut self, status: Status) {
        match status {
            Status::Pending => self.pending += 1,
            Status::Sent => self.sent += 1,
            Status::Delivered => self.delivered += 1,
            Status::Read => self.read += 1,
            Status::Failed => self.failed += 1,
        }
    }

    /// Whether everything accepted is accounted for.
    pub fn balanced(&self) -> bool {
        self.residue == 0
            && self.accepted == self.unrecorded + self.pending + self.sent + self.delivered + self.read + self.failed
    }
}

/// A message that is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Residue {
    /// Whose.
    pub tenant: Tenant,
    /// Which.
    pub id: MessageId,
    /// Where it should be.
    pub partition: Partition,
}

/// The books at a cut.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Books {
    /// Everybody's account.
    pub total: Account,
    /// Each tenant's.
    pub tenants: BTreeMap<Tenant, Account>,
    /// Records of lanes that say neither whose they are nor which message they bring.
    pub unreadable: u64,
    /// The first hundred missing messages.
    pub residue: Vec<Residue>,
    /// The cut.
    pub cut: Vec<Cut>,
}

impl Books {
    /// Whether every tenant's account balances.
    pub fn balanced(&self) -> bool {
        self.total.balanced() && self.tenants.values().all(Account::balanced)
    }
}

/// Draws the books up. Reads the lanes from their start: takes about a second for a million kept messages, and leaves
/// everything as it is.
pub async fn audit(log: &dyn Log, history: &dyn History) -> PortResult<Books> {
    let lanes: Vec<_> = (0..log.partitions())
        .flat_map(|p| Priority::ALL.map(|lane| TopicPartition { topic: Topic::Lane(lane), partition: Partition(p) }))
        .collect();
    // The committed offsets before the ends and before history is asked: what is counted as recorded was so then.
    let committed = log.committed(PIPELINE, &lanes).await?;
    let mut books = Books::default();
    for (lanes, committed) in lanes.chunks(Priority::ALL.len()).zip(committed.chunks(Priority::ALL.len())) {
        let mut seen = HashMap::<Tenant, Ids>::new();
        for ((at, committed), lane) in lanes.iter().zip(committed).zip(Priority::ALL) {
            let (from, end) = log.bounds(*at).await?;
            let committed = committed.unwrap_or_default();
            books.cut.push(Cut { lane, partition: at.partition, from, committed, end });
            books.unreadable += read_lane(log, *at, (from, end), committed, &mut seen).await?;
        }
        for (tenant, ids) in seen {
            let partition = lanes.first().map(|at| at.partition).unwrap_or_default();
            let account = account(history, ids, &tenant, partition, &mut books.residue).await?;
            books.total.add(&account);
            books.tenants.entry(tenant).or_default().add(&account);
        }
    }
    Ok(books)
}

/// One tenant's ids of one partition: those before the cut, and those after it.
#[derive(Default)]
struct Ids {
    before: Vec<MessageId>,
    after: Vec<MessageId>,
}

async fn read_lane(
    log: &dyn Log,
    at: TopicPartition,
    (from, end): (Offset, Offset),
    committed: Offset,
    seen: &mut HashMap<Tenant, Ids>,
) -> PortResult<u64> {
    let (mut next, mut unreadable) = (from, 0);
    while next < end {
        let records = log.read(at, next, PAGE).await?;
        let Some(last) = records.last() else { break };
        let read_to = last.offset.next();
        for record in records
            .into_iter()
            .filter(|record| record.offset < end && !is_again(&record.body) && !is_chat(&record.body))
        {
            let is_before = record.offset < committed;
            let Some((tenant, id)) = named(record) else {
                unreadable += 1;
                continue;
            };
            let ids = match seen.get_mut(&tenant) {
                Some(ids) => ids,
                None => seen.entry(tenant).or_default(),
            };
            if is_before { ids.before.push(id) } else { ids.after.push(id) }
        }
        next = read_to;
    }
    Ok(unreadable)
}

/// Whose message a record brings and which, by its headers, or by its body where another's producer wrote none.
fn named(record: Record) -> Option<(Tenant, MessageId)> {
    if let (Some(tenant), Some(id)) = (record.headers.tenant, record.headers.id) {
        return Some((tenant, id));
    }
    match codec::decode(&record.body).ok()? {
        LaneRecord::Accepted(message) => Some((message.to.tenant, message.id)),
        LaneRecord::Again(_) | LaneRecord::Chat(_) => None,
    }
}

async fn account(
    history: &dyn History,
    mut ids: Ids,
    tenant: &Tenant,
    partition: Partition,
    residue: &mut Vec<Residue>,
) -> PortResult<Account> {
    let records = ids.before.len() + ids.after.len();
    for ids in [&mut ids.before, &mut ids.after] {
        ids.sort_unstable();
        ids.dedup();
    }
    let Ids { before, mut after } = ids;
    after.retain(|id| before.binary_search(id).is_err());
    let accepted = (before.len() + after.len()) as u64;
    let mut account = Account { accepted, repeats: records as u64 - accepted, ..Account::default() };
    for (is_before, ids) in [(true, before), (false, after)] {
        for ids in ids.chunks(ASKED) {
            let mut untold = Vec::new();
            for (id, state) in ids.iter().zip(history.states(ids).await?) {
                // Facts are said of what was recorded, or dropped or refused before it had a place.
                if state.past.is_empty() { untold.push(*id) } else { account.count(state.status()) }
            }
            // What nothing was said of yet, which are few: a history on a server reads a row for each.
            let known = history.known(&untold).await?;
            for (id, known) in untold.iter().zip(known) {
                if known.is_some() {
                    account.count(Status::Pending);
                    continue;
                }
                if !is_before {
                    account.unrecorded += 1;
                    continue;
                }
                // Of what was refused the fact may have come between the two looks.
                let state = history.states(&[*id]).await?.pop().unwrap_or_default();
                if !state.past.is_empty() {
                    account.count(state.status());
                } else if history.dead_letter(*id).await?.is_some() {
                    // One that could not be read, or whose key was another's, was given up without a row of its own.
                    account.failed += 1;
                } else {
                    account.residue += 1;
                    if residue.len() < LISTED {
                        residue.push(Residue { tenant: tenant.clone(), id: *id, partition });
                    }
                }
            }
        }
    }
    Ok(account)
}

#[cfg(test)]
#[path = "books/tests.rs"]
mod tests;
