//! People: a row a user. What it chose has the time of the choice as write time, and when it was last here has that time
//! itself: of two nodes that write in any order the later one stays, without either of them reading first.

use async_trait::async_trait;
use futures::future::try_join_all;
use schemas::{
    Timestamp, UserId,
    port::{People, Person, PortResult},
};
use scylla::value::CqlValue::{BigInt, Boolean, Int, Text};

use super::{ScyllaHistory, session::Write, statements::Pick};

#[async_trait]
impl People for ScyllaHistory {
    async fn people(&self, users: &[UserId]) -> PortResult<Vec<Person>> {
        let asked = users.iter().map(async |user| {
            let rows = self.shared.cql.rows::<(Option<bool>, Option<i64>)>(Pick::Person, (user.to_string(),)).await?;
            let (hidden, seen) = rows.into_iter().next().unwrap_or_default();
            Ok(Person { show_presence: !hidden.unwrap_or(false), last_seen: seen.map(Timestamp) })
        });
        try_join_all(asked).await
    }

    async fn prefer(&self, user: &UserId, show_presence: bool) -> PortResult<()> {
        let row = vec![Text(user.to_string()), Boolean(!show_presence)];
        self.shared.cql.send(&[Write::new(Pick::Prefer, row)]).await
    }

    async fn seen(&self, seen: &[(UserId, Timestamp)]) -> PortResult<()> {
        let row = |(user, at): &(UserId, Timestamp)| {
            let (written, ttl) = (BigInt(at.0.saturating_mul(1_000)), Int(self.shared.ttl));
            Write::new(Pick::Seen, vec![Text(user.to_string()), BigInt(at.0), ttl, written])
        };
        self.shared.cql.send_all(seen.iter().map(row).collect()).await
    }
}
