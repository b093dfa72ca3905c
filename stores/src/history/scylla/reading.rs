//! Reading an inbox: forward for devices that catch up, both ways for people who look at what they were told.
//!
//! Numbers are dense and each belongs to one epoch ([`super::forks`]), so a reader takes the rows of one bucket after the
//! other, leaves out those that are not entries, and stops before the first number that is missing: it may be on its way.
//!
//! Where retention did not come by in time, rows have ended by their time to live, and the number that a reader goes on from is
//! missing for good. It begins behind that break then, where nothing stands right before it and the entry behind it is so old
//! that nothing before that is on its way.

use std::sync::Arc;

use schemas::{
    Inbox, Message, Position, State, Timestamp,
    port::{Entry, Order, Page, PortResult, Span},
};

use super::{
    keys,
    rows::{EntryHead, unblob},
    session::broken,
    shared::{Head, Shared},
    statements::Pick,
};

/// Rows looked at for one page besides those it holds: entries that are no one-way messages.
const PASSED: usize = 1_000;
/// Rows of one request: a page of the largest messages is then 12 MB.
const STEP: usize = 256;

/// Rows of one request besides: those that late owners wrote.
const MARGIN: usize = 4;

/// An hour: how old an entry is before which nothing is on its way any more. Writes take seconds, and an owner that died or
/// was held still amid one is followed by another, which repeats it behind its own fork.
const BREAK_MS: u64 = 3_600_000;

type Row = (i64, i32, Option<Vec<u8>>, Option<Vec<u8>>);

/// An entry as it stands.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) position: Position,
    pub(super) head: EntryHead,
    pub(super) message: Arc<Message>,
}

fn found(row: Row) -> PortResult<Found> {
    let (n, epoch, head, body) = row;
    let unread = |why: &dyn std::fmt::Display| broken("entries_by_inbox", why);
    Ok(Found {
        position: keys::position(n, epoch),
        head: unblob(&head.unwrap_or_default()).map_err(|why| unread(&why))?,
        message: unblob(&body.unwrap_or_default()).map_err(|why| unread(&why))?,
    })
}

/// Whether all that was written before an entry of this time stands, or never will.
fn is_settled(recorded_at: Timestamp, now: Timestamp) -> bool {
    now.ms_since(recorded_at) > BREAK_MS
}

impl Shared {
    /// Entries from this number on, or from where the first ones behind it stand that did not end, without a break, at most
    /// `limit`.
    pub(super) async fn gather(&self, inbox: &str, head: &Head, from: u64, limit: usize) -> PortResult<Vec<Found>> {
        let (mut entries, mut next, mut dead) = (Vec::<Found>::new(), from.max(head.ledger.gone.n + 1), MARGIN);
        let first = next;
        while entries.len() < limit {
            let (bucket, before) = (keys::bucket(next), next);
            let start = i64::try_from(next).unwrap_or(i64::MAX);
            let most = i32::try_from((limit - entries.len()).min(STEP) + dead).unwrap_or(i32::MAX);
            let rows = self.cql.rows::<Row>(Pick::EntriesUp, (inbox, bucket, start, most)).await?;
            let all = rows.len() < most as usize;
            for row in rows {
                let at = keys::position(row.0, row.1);
                if !head.forks.is_live(at) {
                    continue;
                }
                let expected = if entries.is_empty() { first } else { next };
                let follows = at.n == expected;
                if entries.len() == limit || (!follows && !entries.is_empty()) {
                    return Ok(entries);
                }
                let entry = found(row)?;
                if !follows {
                    let may_come = !is_settled(entry.head.recorded_at, self.clock.wall());
                    if may_come || self.is_there(inbox, head, first - 1).await? {
                        return Ok(entries);
                    }
                }
                entries.push(entry);
                next = at.n + 1;
            }
            if all && keys::bucket(next) == bucket {
                if !entries.is_empty() || bucket >= head.bucket {
                    break;
                }
                // Nothing stands in this bucket any more.
                next = keys::first_of(bucket + 1);
            }
            if next == before {
                // Nothing but rows that are no entries: late owners wrote a lot.
                dead *= 4;
            }
        }
        Ok(entries)
    }

    /// Whether the entry of this number stands: rows end oldest first, so behind it nothing has ended.
    async fn is_there(&self, inbox: &str, head: &Head, n: u64) -> PortResult<bool> {
        Ok(!self.gather_down(inbox, head, n, 1).await?.0.is_empty())
    }

    /// Entries up to this number, newest first, and whether there may be more.
    async fn gather_down(&self, inbox: &str, head: &Head, from: u64, limit: usize) -> PortResult<(Vec<Found>, bool)> {
        let (mut entries, mut next, mut dead) = (Vec::new(), from, MARGIN);
        while entries.len() < limit && next > head.ledger.gone.n {
            let (bucket, before) = (keys::bucket(next), next);
            let most = i32::try_from((limit - entries.len()).min(STEP) + dead).unwrap_or(i32::MAX);
            let start = i64::try_from(next).unwrap_or(i64::MAX);
            let rows = self.cql.rows::<Row>(Pick::EntriesDown, (inbox, bucket, start, most)).await?;
            let all = rows.len() < most as usize;
            for row in rows {
                let at = keys::position(row.0, row.1);
                if !head.forks.is_live(at) {
                    continue;
                }
                if at.n != next || entries.len() == limit || at.n <= head.ledger.gone.n {
                    return Ok((entries, at.n == next));
                }
                entries.push(found(row)?);
                next -= 1;
            }
            if all && keys::bucket(next) == bucket {
                return Ok((entries, false));
            }
            if next == before {
                dead *= 4;
            }
        }
        Ok((entries, next > head.ledger.gone.n))
    }

    pub(super) async fn forward(&self, inbox: &Inbox, from: Position, limit: usize) -> PortResult<Span> {
        let name = keys::inbox(inbox);
        let head = self.head(&name).await?;
        let next = head.forks.after(from);
        let entries = match head.forks.is_empty() {
            true => Vec::new(),
            false => self.gather(&name, &head, next, limit).await?,
        };
        let ended = entries.first().is_some_and(|first| first.position.n > next);
        let passed_by_retention = from < head.ledger.gone || ended;
        Ok(Span { entries: self.with_states(inbox, entries).await?, passed_by_retention })
    }

    pub(super) async fn with_states(&self, inbox: &Inbox, found: Vec<Found>) -> PortResult<Vec<(Entry, State)>> {
        let ids: Vec<_> = found.iter().map(|found| found.message.id).collect();
        let mut states = self.states_of(&ids).await?;
        let with = |found: Found| {
            let state = states.remove(&found.message.id).unwrap_or_default();
            (found.head.entry(inbox.clone(), found.position, found.message), state)
        };
        Ok(found.into_iter().map(with).collect())
    }

    pub(super) async fn notices(
        &self,
        inbox: &Inbox,
        order: Order,
        from: Option<Position>,
        limit: usize,
    ) -> PortResult<Page<(Entry, State), Position>> {
        let (name, limit) = (keys::inbox(inbox), limit.max(1));
        let head = self.head(&name).await?;
        if head.forks.is_empty() {
            return Ok(Page { rows: Vec::new(), next: None });
        }
        let mut next = match (order, from) {
            (Order::Oldest, from) => head.forks.after(from.unwrap_or(Position::START)).max(head.ledger.gone.n + 1),
            (Order::Newest, Some(from)) => head.forks.after(from).min(from.n).saturating_sub(1),
            (Order::Newest, None) => self.end(&name, &head).await?.position.n,
        };
        let (mut rows, mut at, mut passed) = (Vec::<Found>::new(), from, 0);
        let more = loop {
            // One more than fits tells whether there is a next page.
            let asked = limit - rows.len() + 1;
            let (some, whole) = match order {
                Order::Oldest => {
                    let some = self.gather(&name, &head, next, asked).await?;
                    let whole = some.len() == asked;
                    (some, whole)
                }
                Order::Newest => self.gather_down(&name, &head, next, asked).await?,
            };
            let mut full = false;
            for row in some {
                if row.head.is_notice() && rows.len() == limit {
                    full = true;
                    break;
                }
                at = Some(row.position);
                next = match order {
                    Order::Oldest => row.position.n + 1,
                    Order::Newest => row.position.n - 1,
                };
                if row.head.is_notice() { rows.push(row) } else { passed += 1 }
            }
            if full || (whole && passed >= PASSED) {
                break true;
            }
            if !whole {
                break false;
            }
        };
        let next = at.filter(|_| more);
        Ok(Page { rows: self.with_states(inbox, rows).await?, next })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_on_its_way_before_an_entry_of_an_hour_ago() {
        let noon = Timestamp(1_800_000_000_000);
        assert!(is_settled(noon, noon.plus_ms(BREAK_MS + 1)) && !is_settled(noon, noon.plus_ms(BREAK_MS)));
        assert!(!is_settled(noon, Timestamp(0)), "a clock that is behind");
    }
}
