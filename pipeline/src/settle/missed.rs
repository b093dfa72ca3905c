//! What follows an attempt that failed: a retry on its tier, or a burial (R4.1, R4.2). Pure; `worker` does it.

use schemas::{
    Fact, Reason, Timestamp, Topic, What,
    fact::State,
    port::{Dead, Placed},
    record::Again,
    tier::{Attempt, Next, Tier},
};

use super::fact_of;
use crate::watch::Missed;

/// What is to be done about an attempt that failed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    /// Nothing: it was acknowledged, given up, tried again or removed meanwhile.
    Drop,
    /// This on this tier, then the fact.
    Retry(Tier, Again, Fact),
    /// Into the dead letters, then the facts.
    Bury(Box<Dead>, [Fact; 2]),
}

/// Whether a failure of this attempt is news: nothing later is known, and nothing that ended the attempts (R4.4).
fn is_open(state: &State, round: u8, attempt: Attempt) -> bool {
    let failed = |what| matches!(what, What::AttemptFailed(_));
    state.round() <= round
        && !state.is_done(round)
        && !state.past.iter().any(|p| p.round == round && failed(p.what) && p.attempt >= attempt)
}

/// Judges a failed attempt by what is known of its message now.
pub(crate) fn verdict(
    missed: &Missed,
    reason: Reason,
    placed: Option<&Placed>,
    now: Timestamp,
    first_ms: u64,
) -> Verdict {
    // Gone, or without a place: there is nothing to send again.
    let Some((placed, position)) = placed.and_then(|placed| placed.position.map(|at| (placed, at))) else {
        return Verdict::Drop;
    };
    let Missed { id, round, attempt } = *missed;
    if !is_open(&placed.state, round, attempt) {
        return Verdict::Drop;
    }
    let told = |what| fact_of(placed, now, round, attempt, what);
    match attempt.failed() {
        Next::Retry(tier, next) => {
            let due_at = now.plus_ms(tier.delay_ms(first_ms));
            let (lane, inbox) = (placed.message.priority, placed.inbox.clone());
            let again = Again { id, lane, inbox, position, round, attempt: next, due_at };
            Verdict::Retry(tier, again, told(What::AttemptFailed(reason)))
        }
        Next::Bury => {
            let (inbox, message) = (placed.inbox.clone(), Some(placed.message.clone()));
            // Attempts are counted from 0: the first delivery and six retries are seven.
            let attempts = attempt.0.saturating_add(1);
            let dead = Dead { id, at: now, reason, round, attempts, inbox, position, requeued_at: None, message };
            Verdict::Bury(Box::new(dead), [told(What::AttemptFailed(reason)), told(What::Failed(reason))])
        }
    }
}

/// The record that waits on a tier.
pub(crate) fn on_tier(tier: Tier, again: &Again) -> schemas::port::Append {
    schemas::record::again(Topic::Retry(tier), again)
}
