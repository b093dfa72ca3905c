//! Reading an inbox: forward for devices that catch up, both ways for people who look at what they were told. The cost is
//! that of the rows given, however deep in the inbox they stand.

use std::sync::Arc;

use schemas::{
    Inbox, Message, Position, State,
    port::{Entry, Order, Page, PortResult, Span},
    position::Epoch,
};

use super::{
    chain::Chain,
    keys,
    rows::Head,
    tables::{Tables, broken, decode, pair, strange},
};

/// Rows that are read where they are asked for; more go to a thread for long scans. 256 of them take about a millisecond.
pub(super) const INLINE: usize = 256;
/// Rows looked at for one page besides those it holds: entries that are no one-way messages, or were reached over.
const PASSED: usize = 1_000;

type Row = (Head, Arc<Message>);

/// Reads forward, without states.
fn gather(tables: &Tables, inbox: &[u8], from: Position, limit: usize) -> PortResult<Chain<Row>> {
    let (mut chain, mut looked) = (Chain::after(from), 0);
    // The key just after `from`: its own with one byte more.
    let mut start = keys::entry(inbox, from);
    start.push(0);
    while chain.len() < limit {
        for row in tables.entries.range(start..keys::after_inbox(inbox)) {
            let (key, value) = pair(row)?;
            let (_, position) = keys::split_entry(&key).ok_or_else(|| strange(&tables.entries))?;
            let row: Row = decode(&tables.entries, &value)?;
            looked += 1;
            if !chain.push(position, row.0.prev, row) || looked == limit + PASSED {
                return Ok(chain);
            }
            if chain.len() == limit {
                break;
            }
        }
        if chain.len() < limit {
            break;
        }
        // A full page may end with rows that the next epoch's first entry reaches over: that one is asked before they are
        // given out, and if so it comes next.
        match next_epoch(tables, inbox, chain.end())? {
            Some((at, prev)) if prev < chain.end() => {
                chain.reach(prev);
                start = keys::entry(inbox, at);
            }
            _ => break,
        }
    }
    Ok(chain)
}

/// The first entry of a later epoch than this place's, and the one it names.
fn next_epoch(tables: &Tables, inbox: &[u8], after: Position) -> PortResult<Option<(Position, Position)>> {
    let Some(epoch) = after.epoch.0.checked_add(1) else { return Ok(None) };
    let later = keys::entry(inbox, Position { epoch: Epoch(epoch), n: 0 })..keys::after_inbox(inbox);
    let Some(next) = tables.entries.range(later).next() else { return Ok(None) };
    let (key, row) = pair(next)?;
    let (_, at) = keys::split_entry(&key).ok_or_else(|| strange(&tables.entries))?;
    let head = Head::read(&row).map_err(|why| broken(&tables.entries, &why))?;
    Ok(Some((at, head.prev)))
}

/// A piece of an inbox with what became of its entries.
pub(super) fn forward(tables: &Tables, inbox: &Inbox, from: Position, limit: usize) -> PortResult<Span> {
    let key = keys::inbox(inbox);
    let gone = tables.ledger(&key)?.gone;
    // What retention removed is behind the reader: the first entry kept may name the last one removed.
    let chain = gather(tables, &key, from.max(gone), limit)?;
    let entries =
        chain.into_entries().into_iter().map(|row| with_state(tables, inbox, row)).collect::<PortResult<_>>()?;
    Ok(Span { entries, passed_by_retention: from < gone })
}

fn with_state(tables: &Tables, inbox: &Inbox, (at, (head, message)): (Position, Row)) -> PortResult<(Entry, State)> {
    let state = tables.state(message.id)?;
    Ok((head.entry(inbox.clone(), at, message), state))
}

/// One page of the one-way messages of an inbox.
pub(super) fn one_way(
    tables: &Tables,
    inbox: &Inbox,
    order: Order,
    from: Option<Position>,
    limit: usize,
) -> PortResult<Page<(Entry, State), Position>> {
    let limit = limit.max(1);
    let (rows, next) = match order {
        Order::Oldest => oldest(tables, inbox, from.unwrap_or(Position::START), limit)?,
        Order::Newest => newest(tables, inbox, from, limit)?,
    };
    let rows = rows.into_iter().map(|row| with_state(tables, inbox, row)).collect::<PortResult<_>>()?;
    Ok(Page { rows, next })
}

type Found = (Vec<(Position, Row)>, Option<Position>);

fn oldest(tables: &Tables, inbox: &Inbox, from: Position, limit: usize) -> PortResult<Found> {
    let key = keys::inbox(inbox);
    let mut at = from.max(tables.ledger(&key)?.gone);
    let (mut found, mut passed) = (Vec::with_capacity(limit), 0);
    loop {
        // One more than fits tells whether there is a next page.
        let asked = limit - found.len() + 1;
        let rows = gather(tables, &key, at, asked)?.into_entries();
        let more = rows.len() == asked;
        for (position, row) in rows {
            if row.0.is_notice() && found.len() == limit {
                return Ok((found, Some(at)));
            }
            at = position;
            if row.0.is_notice() { found.push((position, row)) } else { passed += 1 }
        }
        if !more {
            return Ok((found, None));
        }
        if passed >= PASSED {
            return Ok((found, Some(at)));
        }
    }
}

fn newest(tables: &Tables, inbox: &Inbox, from: Option<Position>, limit: usize) -> PortResult<Found> {
    let key = keys::inbox(inbox);
    let gone = tables.ledger(&key)?.gone;
    let end = from.map_or_else(|| keys::after_inbox(&key), |from| keys::entry(&key, from));
    // Backwards each entry names the next; what stands between was reached over.
    let mut named = match from {
        Some(from) => tables.entry(&key, from)?.map(|(head, _)| head.prev),
        None => None,
    };
    let (mut found, mut passed, mut at) = (Vec::with_capacity(limit), 0, None);
    for row in tables.entries.range(keys::entry(&key, Position::START)..end).rev() {
        let (row_key, value) = pair(row)?;
        let (_, position) = keys::split_entry(&row_key).ok_or_else(|| strange(&tables.entries))?;
        if position <= gone || named.is_some_and(|named| position < named) {
            break;
        }
        if passed == PASSED {
            return Ok((found, at));
        }
        if named.is_some_and(|named| position > named) {
            continue;
        }
        let row: Row = decode(&tables.entries, &value)?;
        if row.0.is_notice() && found.len() == limit {
            return Ok((found, at));
        }
        named = Some(row.0.prev);
        at = Some(position);
        if row.0.is_notice() { found.push((position, row)) } else { passed += 1 }
    }
    Ok((found, None))
}
