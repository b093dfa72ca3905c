//! People: two small rows a user, one for what it chose and one for when it was last here, so that neither is read to write
//! the other.

use async_trait::async_trait;
use schemas::{
    Timestamp, UserId,
    port::{People, Person, PortResult},
};

use super::{EmbeddedHistory, keys, tables::put};

fn chosen(user: &UserId) -> Vec<u8> {
    keys::tagged(b'p', &keys::user(user))
}

fn seen_at(user: &UserId) -> Vec<u8> {
    keys::tagged(b's', &keys::user(user))
}

#[async_trait]
impl People for EmbeddedHistory {
    async fn people(&self, users: &[UserId]) -> PortResult<Vec<Person>> {
        let tables = &self.tables;
        let person = |user: &UserId| {
            let show_presence = tables.get(&tables.people, &chosen(user))?.unwrap_or(true);
            Ok(Person { show_presence, last_seen: tables.get(&tables.people, &seen_at(user))? })
        };
        users.iter().map(person).collect()
    }

    async fn prefer(&self, user: &UserId, show_presence: bool) -> PortResult<()> {
        self.tables.engine.write(vec![put(&self.tables.people, chosen(user), &show_presence)]).await
    }

    async fn seen(&self, seen: &[(UserId, Timestamp)]) -> PortResult<()> {
        // Rare, and read before it is written: one at a time.
        let _rare = self.rare.lock().await;
        let tables = &self.tables;
        let mut writes = Vec::with_capacity(seen.len());
        for (user, at) in seen {
            let key = seen_at(user);
            if tables.get::<Timestamp>(&tables.people, &key)?.is_none_or(|there| there < *at) {
                writes.push(put(&tables.people, key, at));
            }
        }
        match writes.is_empty() {
            true => Ok(()),
            false => tables.engine.write_along(writes).await,
        }
    }
}
