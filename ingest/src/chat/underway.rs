//! What was handed to the log: until it is durable, and until it is recorded.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use schemas::{
    ChatCommand, Code, Conversation, ConversationId, MessageId, Problem, Reason,
    conversation::{Refused, Shown, problem_of},
};

use super::{Recorded, awaited::Sought, row};
use crate::door::{Accepted, Door, InWork};

/// On its way. Dropping it takes nothing back.
pub struct Underway {
    door: Arc<Door>,
    /// Given back when it is answered.
    place: InWork,
    id: MessageId,
    conversation: ConversationId,
    accepted: BoxFuture<'static, Result<Accepted, Problem>>,
    then: Then,
}

enum Then {
    Sought(Sought),
    Known(Recorded),
}

/// What became of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Its name, and since when it is durable.
    pub accepted: Accepted,
    /// The conversation.
    pub conversation: ConversationId,
    /// What history has of it; `None`: not within the time that an answer may take. It will be there.
    pub recorded: Option<Recorded>,
}

impl Underway {
    pub(super) fn new(
        door: Arc<Door>,
        place: InWork,
        id: MessageId,
        conversation: ConversationId,
        accepted: BoxFuture<'static, Result<Accepted, Problem>>,
        sought: Sought,
    ) -> Self {
        Self { door, place, id, conversation, accepted, then: Then::Sought(sought) }
    }

    /// What was so before: nothing is written.
    pub(super) fn already(door: Arc<Door>, place: InWork, command: &ChatCommand, row: Conversation) -> Self {
        let (id, conversation) = (command.id, row.id);
        let accepted = replayed(&door, id, command.accepted_at);
        Self { door, place, id, conversation, accepted, then: Then::Known(Recorded::Row(Box::new(row))) }
    }

    /// What was said before, under the same key.
    pub(super) fn said_already(door: Arc<Door>, place: InWork, shown: Shown) -> Self {
        let (id, conversation) = (shown.turn.message.id, shown.turn.conversation);
        let accepted = replayed(&door, id, shown.turn.message.accepted_at);
        Self { door, place, id, conversation, accepted, then: Then::Known(Recorded::Said(Box::new(shown))) }
    }

    /// Its name.
    pub fn id(&self) -> MessageId {
        self.id
    }

    /// The conversation it belongs to.
    pub fn conversation(&self) -> ConversationId {
        self.conversation
    }

    /// Answers when the log has it durably.
    pub fn accepted(self) -> BoxFuture<'static, Result<Accepted, Problem>> {
        let Self { accepted, place, .. } = self;
        async move {
            let answer = accepted.await;
            drop(place);
            answer
        }
        .boxed()
    }

    /// Answers when it is recorded, or `chat.answer_ms` after it was durable.
    ///
    /// # Errors
    /// The log's; and what the conversation's owner refused.
    pub async fn recorded(self) -> Result<Outcome, Problem> {
        let Self { door, place, conversation, accepted, then, .. } = self;
        let _place = place;
        let mut accepted = accepted.await?;
        let sought = match then {
            Then::Known(recorded) => {
                let recorded = Some(recorded);
                return Ok(Outcome { accepted, conversation, recorded });
            }
            Then::Sought(sought) => sought,
        };
        let wait = Duration::from_millis(door.parts.limits.chat.answer_ms);
        let fingerprint = sought.fingerprint();
        let recorded = match tokio::time::timeout(wait, door.awaited.find(sought)).await {
            Ok(Some(Recorded::Refused(reason))) => return Err(refusal(&door, conversation, reason).await),
            Ok(recorded) => recorded,
            Err(_) => None,
        };
        if let Some(message) = recorded.as_ref().and_then(Recorded::message) {
            if message.fingerprint != fingerprint {
                return Err(crate::known::conflict());
            }
            if message.accepted_at < accepted.accepted_at {
                accepted.accepted_at = message.accepted_at;
                accepted.replayed = true;
            }
        }
        Ok(Outcome { accepted, conversation, recorded })
    }
}

fn replayed(
    door: &Arc<Door>,
    id: MessageId,
    accepted_at: schemas::Timestamp,
) -> BoxFuture<'static, Result<Accepted, Problem>> {
    let durability = door.parts.log.durability();
    let accepted = Accepted { id, accepted_at, durability, replayed: true, dry_run: None };
    futures::future::ready(Ok(accepted)).boxed()
}

/// What the owner refused, as the problem it is.
async fn refusal(door: &Door, conversation: ConversationId, reason: Reason) -> Problem {
    if reason == Reason::AssignedElsewhere {
        // Who it is now; the owner's answer does not carry the name.
        match row(door.history(), conversation).await {
            Ok(Some(row)) => return Refused::AssignedElsewhere(row.assigned_to).problem(),
            Ok(None) => return Refused::Stranger.problem(),
            Err(why) => return why.into(),
        }
    }
    match Refused::of(reason) {
        Some(refused) => refused.problem(),
        None => {
            let code = problem_of(reason).unwrap_or(Code::InvalidContent);
            Problem::new(code, format!("it was not recorded: {}", reason.word()))
        }
    }
}
