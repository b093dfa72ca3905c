//! The dead-letter index: newest first, and by id. Dead letters are few; each is kept whole.

use async_trait::async_trait;
use schemas::{
    MessageId, Timestamp,
    port::{Buried, Dead, DeadLetters, Filter, Page, PortResult},
};

use super::{
    EmbeddedHistory, keys,
    tables::{Tables, decode, pair, put, remove},
};
use crate::embedded::Write;

/// Rows looked at for one page of a filtered list: past that the page ends early and says where the next goes on.
const LOOKED: usize = 10_000;

impl Tables {
    fn dead_count(&self) -> PortResult<u64> {
        Ok(self.get(&self.meta, b"d")?.unwrap_or_default())
    }

    fn page(&self, filter: &Filter, from: Option<Buried>, limit: usize) -> PortResult<Page<Dead, Buried>> {
        let since = keys::dead_at(filter.since.unwrap_or(Timestamp(i64::MIN)));
        let until = filter.until.map_or_else(|| vec![b't' + 1], keys::dead_at);
        let from = from.map_or_else(|| until.clone(), |(at, id)| keys::dead(at, id, 0));
        let (mut rows, mut last, mut looked) = (Vec::new(), None, 0);
        if since >= from.clone().min(until.clone()) {
            return Ok(Page { rows, next: None });
        }
        for row in self.dead.range(since..from.min(until)).rev() {
            // One row more than fits says whether there is a next page.
            if rows.len() == limit.max(1) || looked == LOOKED {
                return Ok(Page { rows, next: last });
            }
            let dead: Dead = decode(&self.dead, &pair(row)?.1)?;
            looked += 1;
            last = Some((dead.at, dead.id));
            if filter.takes(&dead) {
                rows.push(dead);
            }
        }
        Ok(Page { rows, next: None })
    }

    fn latest(&self, id: MessageId) -> PortResult<Option<Dead>> {
        let rounds = keys::dead_round(id, 0)..=keys::dead_round(id, u8::MAX);
        let Some(row) = self.dead.range(rounds).next_back() else { return Ok(None) };
        let (key, value) = pair(row)?;
        let at: Timestamp = decode(&self.dead, &value)?;
        self.get(&self.dead, &keys::dead(at, id, key.last().copied().unwrap_or(0)))
    }

    /// Adds or replaces one. Later ones of the same call see what earlier ones did through `batch`.
    fn bury(&self, dead: &Dead, batch: &mut Vec<Write>, count: &mut u64) -> PortResult<()> {
        let name = keys::dead_round(dead.id, dead.round);
        if let Some(at) = self.get::<Timestamp>(&self.dead, &name)? {
            let old = keys::dead(at, dead.id, dead.round);
            if self.get::<Dead>(&self.dead, &old)?.is_some_and(|old| old.requeued_at.is_none()) {
                *count = count.saturating_sub(1);
            }
            batch.push(remove(&self.dead, old));
        }
        *count += u64::from(dead.requeued_at.is_none());
        batch.push(put(&self.dead, name, &dead.at));
        batch.push(put(&self.dead, keys::dead(dead.at, dead.id, dead.round), dead));
        Ok(())
    }

    fn forgotten(&self, before: Timestamp, limit: usize) -> PortResult<(Vec<Write>, usize)> {
        let (mut writes, mut gone, mut count) = (Vec::new(), 0, self.dead_count()?);
        for row in self.dead.range(keys::dead_at(Timestamp(i64::MIN))..keys::dead_at(before)).take(limit) {
            let (key, value) = pair(row)?;
            let dead: Dead = decode(&self.dead, &value)?;
            writes.push(remove(&self.dead, key.to_vec()));
            writes.push(remove(&self.dead, keys::dead_round(dead.id, dead.round)));
            count = count.saturating_sub(u64::from(dead.requeued_at.is_none()));
            gone += 1;
        }
        if gone > 0 {
            writes.push(put(&self.meta, *b"d", &count));
        }
        Ok((writes, gone))
    }
}

#[async_trait]
impl DeadLetters for EmbeddedHistory {
    async fn bury(&self, dead: &[Dead]) -> PortResult<()> {
        let _alone = self.rare.lock().await;
        let mut count = self.tables.dead_count()?;
        let mut writes = Vec::with_capacity(2 * dead.len() + 1);
        // Of several rows of one name in one call the last one counts.
        let mut named = std::collections::HashMap::with_capacity(dead.len());
        for (index, dead) in dead.iter().enumerate() {
            named.insert((dead.id, dead.round), index);
        }
        for (index, dead) in dead.iter().enumerate() {
            if named.get(&(dead.id, dead.round)) == Some(&index) {
                self.tables.bury(dead, &mut writes, &mut count)?;
            }
        }
        if writes.is_empty() {
            return Ok(());
        }
        writes.push(put(&self.tables.meta, *b"d", &count));
        self.tables.engine.write(writes).await
    }

    async fn dead(&self, filter: &Filter, from: Option<Buried>, limit: usize) -> PortResult<Page<Dead, Buried>> {
        let filter = filter.clone();
        self.read_rows(usize::MAX, move |tables| tables.page(&filter, from, limit)).await
    }

    async fn dead_letter(&self, id: MessageId) -> PortResult<Option<Dead>> {
        self.tables.latest(id)
    }

    async fn dead_count(&self) -> PortResult<u64> {
        self.tables.dead_count()
    }

    async fn forget_dead(&self, before: Timestamp, limit: usize) -> PortResult<usize> {
        let _alone = self.rare.lock().await;
        let (writes, gone) = self.read_rows(limit, move |tables| tables.forgotten(before, limit)).await?;
        if gone > 0 {
            self.tables.engine.write(writes).await?;
        }
        Ok(gone)
    }
}
