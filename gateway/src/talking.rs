//! What one connection does in conversations: hands to the door what its client sends and reads, and tells the other side
//! that it types. Messages go to the door one after the other, so that they stand in the log in the order of their frames,
//! and wait for the log together; marks and typing have a turn of their own. Bounds are the session's to hold.

use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use ingest::{
    Door,
    auth::Caller,
    chat::{Ask, Say, Underway, Where},
};
use schemas::{
    Code, ConversationId, MessageId, Problem, Ref, UserId,
    conversation::{Command, Side, UpTo},
    port::Signal,
};

use crate::{Gateway, connect::Hold, session};

/// Marks that wait for the one that is under way: as many conversations as a person opens in a moment.
const MARKS: usize = 64;

/// What the session is told of what it asked for.
pub(crate) enum Told {
    /// A message is durable, or refused.
    Said(Ref, Result<MessageId, Problem>),
    /// A mark, or typing, is refused.
    Refused(Problem),
}

/// A connection's part in conversations. Only those that have one pay for it.
#[derive(Default)]
pub(crate) struct Talking {
    waiting: VecDeque<session::Say>,
    asking: Option<BoxFuture<'static, (Ref, Result<Underway, Problem>)>>,
    answering: FuturesUnordered<BoxFuture<'static, (Ref, Result<MessageId, Problem>)>>,
    marks: VecDeque<(ConversationId, UpTo)>,
    marking: Option<BoxFuture<'static, Result<(), Problem>>>,
    typing: Option<BoxFuture<'static, Result<(), Problem>>>,
    refused: Option<Problem>,
}

impl Talking {
    /// Takes a message to send, after those before it.
    pub(crate) fn say(&mut self, say: session::Say) {
        self.waiting.push_back(say);
    }

    /// Takes a mark. A later one of the same conversation stands for an earlier one that still waits.
    pub(crate) fn mark(&mut self, conversation: ConversationId, up_to: UpTo) {
        match self.marks.iter_mut().find(|(there, _)| *there == conversation) {
            Some((_, waiting)) => {
                *waiting = match (*waiting, up_to) {
                    (UpTo::Seq(one), UpTo::Seq(other)) => UpTo::Seq(one.max(other)),
                    (_, later) => later,
                }
            }
            None => self.marks.push_back((conversation, up_to)),
        }
        if self.marks.len() > MARKS {
            self.marks.pop_back();
            let detail = format!("marks of {MARKS} conversations wait, which is the most");
            self.refused = Some(Problem::new(Code::Overloaded, detail).retry_after_ms(100));
        }
    }

    /// Tells the other side that somebody types, unless that is being done already.
    pub(crate) fn types(&mut self, hold: &Hold, conversation: ConversationId) {
        if self.typing.is_none() {
            let (gateway, caller, user) = (hold.gateway.clone(), hold.caller.clone(), hold.handle.me.user.clone());
            self.typing = Some(Box::pin(types(gateway, caller, user, conversation)));
        }
    }

    /// Whether nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        let Self { waiting, asking, answering, marks, marking, typing, refused } = self;
        let said = waiting.is_empty() && asking.is_none() && answering.is_empty();
        said && marks.is_empty() && marking.is_none() && typing.is_none() && refused.is_none()
    }

    /// Goes on with what is under way; what the session is to be told, one thing at a time.
    pub(crate) fn poll(&mut self, hold: &Hold, cx: &mut Context<'_>) -> Option<Told> {
        if let Some(problem) = self.refused.take() {
            return Some(Told::Refused(problem));
        }
        if let Some(told) = self.poll_says(hold, cx) {
            return Some(told);
        }
        if self.marking.is_none()
            && let Some((conversation, up_to)) = self.marks.pop_front()
        {
            let (door, caller) = (hold.gateway.parts.door.clone(), hold.caller.clone());
            self.marking = Some(Box::pin(mark(door, caller, conversation, up_to)));
        }
        for one in [&mut self.marking, &mut self.typing] {
            if let Some(Poll::Ready(done)) = one.as_mut().map(|one| one.poll_unpin(cx)) {
                *one = None;
                if let Err(problem) = done {
                    return Some(Told::Refused(problem));
                }
            }
        }
        // The next mark's turn may have come: it is begun, and polled, in the next turn of the pump.
        if self.marking.is_none() && !self.marks.is_empty() {
            cx.waker().wake_by_ref();
        }
        None
    }

    fn poll_says(&mut self, hold: &Hold, cx: &mut Context<'_>) -> Option<Told> {
        loop {
            if self.asking.is_none()
                && let Some(say) = self.waiting.pop_front()
            {
                let (door, caller) = (hold.gateway.parts.door.clone(), hold.caller.clone());
                self.asking = Some(Box::pin(ask(door, caller, say)));
            }
            let Some(asking) = self.asking.as_mut() else { break };
            let Poll::Ready((client_ref, asked)) = asking.poll_unpin(cx) else { break };
            self.asking = None;
            match asked {
                Ok(underway) => self
                    .answering
                    .push(Box::pin(async move { (client_ref, underway.accepted().await.map(|accepted| accepted.id)) })),
                Err(problem) => return Some(Told::Said(client_ref, Err(problem))),
            }
        }
        match self.answering.poll_next_unpin(cx) {
            Poll::Ready(Some((client_ref, outcome))) => Some(Told::Said(client_ref, outcome)),
            Poll::Ready(None) | Poll::Pending => None,
        }
    }
}

fn closed() -> Problem {
    Problem::new(Code::Unavailable, "this node takes no messages").retry_after_ms(1_000)
}

async fn ask(door: Option<Arc<Door>>, caller: Arc<Caller>, say: session::Say) -> (Ref, Result<Underway, Problem>) {
    let session::Say { client_ref, to, content, content_type, key } = say;
    let to = match to {
        session::SayTo::Conversation(id) => Where::Conversation(id),
        session::SayTo::Party(party) => Where::Party(party),
    };
    let Some(door) = door else { return (client_ref, Err(closed())) };
    let say = Say { to, content, content_type, key, client_ref: Some(client_ref.clone()), trace: None };
    (client_ref, door.say(&caller, say).await)
}

async fn mark(
    door: Option<Arc<Door>>,
    caller: Arc<Caller>,
    conversation: ConversationId,
    up_to: UpTo,
) -> Result<(), Problem> {
    let door = door.ok_or_else(closed)?;
    let underway = door.ask(&caller, conversation, Ask::from(Command::Read { up_to })).await?;
    underway.accepted().await.map(drop)
}

/// Tells the other side, if it is to know.
async fn types(
    gateway: Arc<Gateway>,
    caller: Arc<Caller>,
    user: UserId,
    conversation: ConversationId,
) -> Result<(), Problem> {
    let Some(door) = &gateway.parts.door else { return Ok(()) };
    let (row, side) = match door.thread(&caller, conversation).await {
        Ok(found) => found,
        // Nobody is bothered with what could not be told.
        Err(problem) if problem.code.status() >= 500 => return Ok(()),
        Err(problem) => return Err(problem),
    };
    let writes = row.user(side) == user && row.closed.is_none() && !(row.blocked && side == Side::Business);
    if writes {
        let signal = Signal::Typing { conversation, by: user.party };
        gateway.parts.dispatch.signal(vec![(row.user(side.other()), signal)]).await;
    }
    Ok(())
}
