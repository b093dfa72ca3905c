//! Effects: what is to be told and kept once an attempt has its outcome. Decided here, done by `deliver`.

use std::sync::Arc;

use schemas::{
    Fact, Inbox, Lane, Message, Partition, Position, Reason, Timestamp, UserId, What,
    port::{Dead, Due, Hint, Signal},
    record::Again,
    tier::{Attempt, Next, Tier},
};

use crate::item::Marked;

/// What an attempt was about.
#[derive(Debug, Clone)]
pub(crate) struct Tried {
    /// The message.
    pub(crate) message: Arc<Message>,
    /// The partition of its inbox.
    pub(crate) partition: Partition,
    /// Its place.
    pub(crate) position: Position,
    /// Which round.
    pub(crate) round: u8,
    /// Which attempt.
    pub(crate) attempt: Attempt,
}

impl Tried {
    /// What a hint offers.
    pub(crate) fn of(hint: &Hint) -> Self {
        Self {
            message: hint.message.clone(),
            partition: hint.inbox.partition,
            position: hint.position,
            round: hint.round,
            attempt: hint.attempt,
        }
    }

    fn inbox(&self) -> Inbox {
        Inbox { user: self.message.to.clone(), partition: self.partition }
    }

    fn fact(&self, what: What, at: Timestamp) -> Fact {
        Fact {
            id: self.message.id,
            inbox: self.inbox(),
            position: self.position,
            from: self.message.from.clone(),
            client_ref: self.message.client_ref.clone(),
            at,
            round: self.round,
            attempt: self.attempt,
            device: None,
            what,
        }
    }
}

/// Facts for `outcomes`, records for the tiers, and dead letters.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// What happened.
    pub(crate) facts: Vec<Fact>,
    /// What is to be tried again, and after which delay.
    pub(crate) again: Vec<(Tier, Again)>,
    /// What is given up.
    pub(crate) dead: Vec<Dead>,
    /// Rows of the due-table that are done with once the rest is durable.
    pub(crate) done: Vec<Due>,
    /// What was read in conversations.
    pub(crate) marks: Vec<Marked>,
    /// What is told as it happens.
    pub(crate) signals: Vec<(UserId, Signal)>,
}

impl Effects {
    /// Nobody was connected: it waits in the inbox, and the attempts end (rule 7).
    pub(crate) fn parked(&mut self, tried: &Tried, at: Timestamp) {
        self.facts.push(tried.fact(What::Parked, at));
    }

    /// It failed before any attempt: expired, or dropped by a function.
    pub(crate) fn ended(&mut self, tried: &Tried, reason: Reason, at: Timestamp) {
        self.facts.push(tried.fact(What::Failed(reason), at));
    }

    /// An attempt failed: it is logged, and the tier's rule says what follows (R4.1, R4.7, R4.8).
    pub(crate) fn failed(&mut self, tried: &Tried, lane: Lane, reason: Reason, at: Timestamp, first_ms: u64) {
        self.facts.push(tried.fact(What::AttemptFailed(reason), at));
        match tried.attempt.failed() {
            Next::Retry(tier, attempt) if reason.is_retryable() => {
                let due_at = at.plus_ms(tier.delay_ms(first_ms));
                let (id, inbox, position, round) = (tried.message.id, tried.inbox(), tried.position, tried.round);
                self.again.push((tier, Again { id, lane, inbox, position, round, attempt, due_at }));
            }
            Next::Retry(..) | Next::Bury => {
                self.ended(tried, reason, at);
                self.dead.push(Dead {
                    id: tried.message.id,
                    at,
                    reason,
                    round: tried.round,
                    attempts: tried.attempt.0 + 1,
                    inbox: tried.inbox(),
                    position: tried.position,
                    requeued_at: None,
                    message: Some(tried.message.clone()),
                });
            }
        }
    }

    /// Drops what belongs to these partitions: they are another owner's.
    pub(crate) fn drop_of(&mut self, gone: &[Partition]) {
        if gone.is_empty() {
            return;
        }
        self.facts.retain(|fact| !gone.contains(&fact.inbox.partition));
        self.again.retain(|(_, again)| !gone.contains(&again.inbox.partition));
        self.dead.retain(|dead| !gone.contains(&dead.inbox.partition));
        self.done.retain(|due| !gone.contains(&due.partition));
        self.marks.retain(|marked| !gone.contains(&marked.partition));
    }

    /// Whether there is nothing to do.
    pub(crate) fn is_empty(&self) -> bool {
        let Self { facts, again, dead, done, marks, signals } = self;
        let first = facts.is_empty() && again.is_empty() && dead.is_empty();
        first && done.is_empty() && marks.is_empty() && signals.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::message;
    use proptest::prelude::*;

    fn tried(round: u8, attempt: u8) -> Tried {
        let message = Arc::new(message(7));
        Tried { message, partition: Partition(3), position: Position::START, round, attempt: Attempt(attempt) }
    }

    #[test]
    fn r4_1_what_follows_a_failed_attempt() {
        for (attempt, reason, tier) in [
            (0, Reason::NoAck, Some(0)),
            (3, Reason::NodeUnreachable, Some(3)),
            (5, Reason::NoAck, Some(5)),
            (6, Reason::NoAck, None),
            (0, Reason::NotPermitted, None),
        ] {
            let mut effects = Effects::default();
            effects.failed(&tried(0, attempt), Lane::Low, reason, Timestamp(1_000), 1_000);
            assert_eq!(effects.facts[0].what, What::AttemptFailed(reason), "every attempt is logged (R4.7)");
            let again = effects.again.first().map(|(tier, again)| (tier.index(), again.attempt, again.due_at.0));
            assert_eq!(again, tier.map(|t| (t, Attempt(attempt + 1), 1_000 + (1_000 << t))));
            assert_eq!(effects.dead.len(), usize::from(tier.is_none()), "{reason:?}");
            assert_eq!(effects.facts.len(), if tier.is_none() { 2 } else { 1 });
        }
    }

    proptest! {
        // R4.2: each failure leads to one retry or one grave, never both, never neither.
        #[test]
        fn p4_every_failure_has_one_consequence(attempt in 0u8..=6, round in 0u8..3, retryable in any::<bool>()) {
            let reason = if retryable { Reason::NoAck } else { Reason::InvalidContent };
            let mut effects = Effects::default();
            effects.failed(&tried(round, attempt), Lane::High, reason, Timestamp(5), 10);
            prop_assert_eq!(effects.again.len() + effects.dead.len(), 1);
            prop_assert!(effects.again.iter().all(|(_, a)| a.round == round && a.attempt.0 == attempt + 1));
        }
    }
}
