//! Chat in the world of the tests: a door whose lanes are a list, and signals that go straight to the node.

use std::sync::Arc;

use async_trait::async_trait;
use ingest::auth::Auth;
use schemas::{
    Clock, Conversation, Epoch, Limits, Message, Partition, Timestamp, UserId, codec,
    conversation::Pair,
    port::{
        Dead, Dispatch, Granted, Limiter, Log as _, Outcome, Presence as _, Quota, Routed, Schedule, Signal, Standing,
    },
    record::LaneRecord,
    view::StatusChange,
};

use super::{PHONE, World, mobile};

struct Open;

#[async_trait]
impl Limiter for Open {
    async fn take(&self, _: &[Quota], count: u32) -> Granted {
        Granted { count, refused: None }
    }
    async fn look(&self, quotas: &[Quota]) -> Vec<Standing> {
        quotas.iter().map(|quota| Standing { remaining: quota.tokens, wait_ms: 0 }).collect()
    }
}

pub(super) fn door(
    world: &Arc<World>,
    clock: &Arc<dyn Clock>,
    limits: &Arc<Limits>,
    auth: &Arc<Auth>,
) -> Arc<ingest::Door> {
    ingest::Door::open(ingest::Parts {
        log: world.clone(),
        history: world.clone(),
        clock: clock.clone(),
        limits: limits.clone(),
        auth: auth.clone(),
        limiter: Arc::new(Open),
        expands: false,
        take_over_ms: 0,
    })
}

#[async_trait]
impl Dispatch for World {
    async fn deliver(&self, batch: Vec<Routed>) -> Vec<Outcome> {
        vec![Outcome::Absent; batch.len()]
    }
    async fn notify(&self, _: Vec<(UserId, StatusChange)>) {}
    async fn signal(&self, signals: Vec<(UserId, Signal)>) {
        let node = self.node.lock().clone();
        for (user, signal) in signals {
            let there = !self.locate(std::slice::from_ref(&user)).await.unwrap().remove(0).is_empty();
            if let (true, Some(node)) = (there, &node) {
                node.signal(vec![(user, signal)]).await;
            }
        }
    }
    async fn alarm(&self, _: &[Dead]) {}
}

impl World {
    /// A conversation of a business user with the phone, as its owner would write it.
    pub(crate) fn converse(&self, business: &str, change: impl FnOnce(&mut Conversation)) -> Conversation {
        let tenant = mobile(PHONE).tenant;
        let pair = Pair::of(&tenant, &format!("business:{business}").parse().unwrap(), &mobile(PHONE).party).unwrap();
        let partition = Partition::of(&pair.mobile(), self.partitions());
        let mut row = Conversation::open(pair, partition, Epoch(1), Timestamp(1));
        change(&mut row);
        self.talks.record(&Schedule { conversations: vec![row.clone()], ..Schedule::default() });
        row
    }

    /// The messages that the door appended, in order.
    pub(crate) fn accepted(&self) -> Vec<Message> {
        let inner = self.inner.lock();
        let messages = inner.lane.iter().filter_map(|append| match codec::decode(&append.body).unwrap() {
            LaneRecord::Accepted(message) => Some(message),
            _ => None,
        });
        messages.collect()
    }
}
