//! What is told of each message as it goes: one span a stage, with its name, tenant, redacted recipient, lane and attempt, and
//! the trace it belongs to. Only at `debug`: each batch asks once whether anybody listens, and off that is all it costs.

use schemas::{Fact, Lane, Message, tier::Attempt};

/// Whether anybody listens.
pub(crate) fn on() -> bool {
    tracing::enabled!(tracing::Level::DEBUG)
}

/// Tells that messages have come to a stage. The span's name is the stage's.
macro_rules! stages {
    ($($stage:ident $word:literal,)*) => {
        /// How far a message is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Stage { $(#[doc = $word] $stage,)* }

        /// A message has come to a stage.
        pub(crate) fn reached(stage: Stage, message: &Message, lane: Lane, attempt: Attempt) {
            let (id, tenant, to) = (message.id, message.tenant(), message.to.redacted());
            let (lane, attempt, traceparent) = (lane.word(), attempt.0, message.trace.as_deref());
            match stage {
                $(Stage::$stage => {
                    let span = tracing::debug_span!($word, %id, %tenant, to, lane, attempt, traceparent);
                    span.in_scope(|| tracing::debug!(concat!("a message is ", $word)));
                })*
            }
        }
    };
}

stages! {
    Accepted "accepted",
    Recorded "recorded",
    Routed "routed",
    Delivered "delivered",
    Retried "retried",
    Buried "buried",
}

/// A fact was merged into its message's status.
pub(crate) fn settled(fact: &Fact) {
    let (id, tenant, to) = (fact.id, &fact.inbox.user.tenant, fact.inbox.user.redacted());
    let (attempt, what) = (fact.attempt.0, fact.what);
    let span = tracing::debug_span!("settled", %id, %tenant, to, attempt, ?what);
    span.in_scope(|| tracing::debug!("a fact is settled"));
}
