//! Broadcasts: what was asked for stands once, its recipients in chunks, and how far it is in a small row of its own.

use async_trait::async_trait;
use schemas::{
    BroadcastId, Phone,
    port::{Asked, Broadcast, BroadcastState, Broadcasts, Expanding, PortError, PortResult},
};
use uuid::Uuid;

use super::{
    EmbeddedHistory, keys,
    tables::{Tables, key, mark, put, remove, strange, unread},
};
use crate::embedded::Write;

/// Recipients of one row: eight bytes each.
const CHUNK: usize = 1_000;
/// Bytes of one recipient: its digits as a number.
const NUMBER: usize = 8;

type Header = (Asked, u64);
type Progress = (u64, BroadcastState);

fn number(phone: &Phone) -> [u8; NUMBER] {
    // A phone number is its digits, fifteen at most.
    phone.to_string().trim_start_matches('+').parse().unwrap_or(0u64).to_be_bytes()
}

fn phone(bytes: [u8; NUMBER]) -> Option<Phone> {
    Phone::from_stored(&format!("+{}", u64::from_be_bytes(bytes)))
}

impl Tables {
    pub(super) fn broadcast(&self, id: BroadcastId) -> PortResult<Option<Broadcast>> {
        let Some((asked, recipients)) = self.get::<Header>(&self.broadcasts, &keys::broadcast(b'h', id))? else {
            return Ok(None);
        };
        let progress: Option<Progress> = self.get(&self.broadcasts, &keys::broadcast(b'p', id))?;
        let (expanded, state) = progress.unwrap_or((0, BroadcastState::Running));
        Ok(Some(Broadcast { id, asked, recipients, expanded, state }))
    }

    fn chunks(&self, id: BroadcastId, from: u64, limit: usize) -> PortResult<Vec<Phone>> {
        let mut phones = Vec::with_capacity(limit.min(CHUNK));
        let mut skip = usize::try_from(from % CHUNK as u64).unwrap_or(0) * NUMBER;
        for chunk in u32::try_from(from / CHUNK as u64).unwrap_or(u32::MAX).. {
            if phones.len() >= limit {
                break;
            }
            let Some(row) = self.broadcasts.get(keys::chunk(id, chunk)).map_err(unread)? else { break };
            for bytes in row.get(skip..).unwrap_or_default().chunks(NUMBER).take(limit - phones.len()) {
                let number = bytes.try_into().ok().and_then(phone);
                phones.push(number.ok_or_else(|| strange(&self.broadcasts))?);
            }
            skip = 0;
        }
        Ok(phones)
    }
}

#[async_trait]
impl Broadcasts for EmbeddedHistory {
    async fn begin(&self, broadcast: &Broadcast, recipients: &[Phone]) -> PortResult<Broadcast> {
        let _alone = self.rare.lock().await;
        let (tables, id) = (&*self.tables, broadcast.id);
        if let Some(there) = tables.broadcast(id)? {
            return Ok(there);
        }
        let to = &tables.broadcasts;
        let begun = Broadcast { recipients: recipients.len() as u64, ..broadcast.clone() };
        let over = begun.state != BroadcastState::Running;
        let mut writes: Vec<Write> = vec![
            put(to, keys::broadcast(b'h', id), &(&begun.asked, begun.recipients)),
            put(to, keys::broadcast(b'p', id), &(begun.expanded, begun.state)),
            mark(to, keys::order(over, begun.asked.accepted_at, id)),
        ];
        for (chunk, phones) in (0u32..).zip(recipients.chunks(CHUNK)) {
            let value = phones.iter().flat_map(number).collect::<Vec<u8>>().into();
            writes.push(Write::Put { to: to.clone(), key: keys::chunk(id, chunk), value });
        }
        tables.engine.write(writes).await?;
        Ok(begun)
    }

    async fn broadcast(&self, id: BroadcastId) -> PortResult<Option<Broadcast>> {
        self.tables.broadcast(id)
    }

    async fn running(&self) -> PortResult<Expanding> {
        let mut found = Expanding::default();
        for row in self.tables.broadcasts.prefix([b'o', 0]) {
            match keys::parse_order(&key(row)?) {
                Some(id) => found.add(id, self.tables.broadcast(id)),
                None => found.add(BroadcastId(Uuid::nil()), Err(strange(&self.tables.broadcasts))),
            }
        }
        Ok(found)
    }

    async fn recipients(&self, id: BroadcastId, from: u64, limit: usize) -> PortResult<Vec<Phone>> {
        self.tables.chunks(id, from, limit)
    }

    async fn progress(&self, id: BroadcastId, expanded: u64, state: BroadcastState) -> PortResult<Broadcast> {
        let _alone = self.rare.lock().await;
        let tables = &*self.tables;
        let Some(mut broadcast) = tables.broadcast(id)? else {
            return Err(PortError::Rejected(format!("there is no broadcast {id}")));
        };
        let before = broadcast.state;
        broadcast.expanded = broadcast.expanded.max(expanded).min(broadcast.recipients);
        // What is over stays as it ended.
        if before == BroadcastState::Running {
            broadcast.state = state;
        }
        let to = &tables.broadcasts;
        let mut writes = vec![put(to, keys::broadcast(b'p', id), &(broadcast.expanded, broadcast.state))];
        if before != broadcast.state {
            let at = broadcast.asked.accepted_at;
            writes.push(remove(to, keys::order(false, at, id)));
            writes.push(mark(to, keys::order(true, at, id)));
        }
        tables.engine.write(writes).await?;
        Ok(broadcast)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use schemas::{Sender, Tenant, Timestamp, limits::StoreLimits, time::ManualClock};

    use super::*;
    use crate::embedded::Engine;

    fn broadcast(n: u8) -> Broadcast {
        let asked = Asked {
            tenant: Tenant::parse("acme").unwrap(),
            from: Sender::Server,
            accepted_at: Timestamp(i64::from(n)),
            trace: None,
            draft: r#"{"to":"","content":"sale"}"#.into(),
            fingerprint: [n; 16],
        };
        let id = BroadcastId(Uuid::from_u128(n.into()));
        Broadcast { id, asked, recipients: 1, expanded: 0, state: BroadcastState::Running }
    }

    #[tokio::test]
    async fn a_header_or_progress_that_cannot_be_read_hides_no_other_broadcast() {
        let dir = tempfile::tempdir().unwrap();
        let limits = StoreLimits { free_bytes: 0, ..StoreLimits::default() };
        let engine = Engine::open(dir.path(), &limits).unwrap();
        let clock = Arc::new(ManualClock::at(Timestamp(1_000)));
        let history = EmbeddedHistory::open(engine.clone(), clock, &limits).unwrap();
        let all = [1, 2, 3, 4].map(broadcast);
        for begun in &all {
            history.begin(begun, &[Phone::from_stored("+962790000001").unwrap()]).await.unwrap();
        }
        let rows = history.tables.broadcasts.clone();
        let spoil = |tag, n: usize| {
            let (to, key) = (rows.clone(), keys::broadcast(tag, all[n].id));
            Write::Put { to, key, value: bytes::Bytes::from_static(b"\xff") }
        };
        // The last is a row of the list that names none.
        let nameless = mark(&rows, vec![b'o', 0, 0xff]);
        engine.write(vec![spoil(b'h', 0), spoil(b'p', 2), nameless]).await.unwrap();
        let found = history.running().await.unwrap();
        assert_eq!(found.running, [all[1].clone(), all[3].clone()]);
        let unread: Vec<_> = found.unread.iter().map(|(id, _)| *id).collect();
        assert_eq!(unread, [all[0].id, all[2].id, BroadcastId(Uuid::nil())]);
        // Mended, it goes on.
        let header = put(&rows, keys::broadcast(b'h', all[0].id), &(&all[0].asked, 1u64));
        engine.write(vec![header]).await.unwrap();
        assert_eq!(history.running().await.unwrap().running[0], all[0]);
        engine.close().await;
    }
}
