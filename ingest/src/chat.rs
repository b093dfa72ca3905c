//! The door of chat: what is said and asked in conversations becomes records of lane High, for HTTP and for sockets alike.
//!
//! A record is accepted when the log has it durably, as with every message. Whoever wants to read their own write waits on
//! until it is recorded ([`Underway::recorded`], rule 14). The conversation's row is read before anything is appended: it
//! says who takes part, where the record goes, and most refusals, by the very rules that its owner applies. What changes in
//! between is the owner's to decide, and its answer is waited for.

pub(crate) mod asking;
pub(crate) mod awaited;
pub mod routes;
mod underway;

use std::{sync::Arc, time::Duration};

use futures::FutureExt as _;
use schemas::{
    Code, Content, ContentType, Conversation, ConversationId, Kind, Message, Party, Priority, Problem, Ref, Sender,
    conversation::{Act, Command, Pair, Side},
    draft::{Admission, ChatDraft},
    json::Json,
    port::{History, PortResult},
};

use crate::{
    admission::{self, Admitted},
    auth::Caller,
    chat::awaited::Sought,
    door::Door,
    text,
};

pub use asking::Ask;
pub use awaited::Recorded;
pub use underway::{Outcome, Underway};

/// How long a reader waits for a conversation that was opened a moment ago (rule 14).
pub const READER_WAITS: Duration = Duration::from_secs(1);
/// Between looks meanwhile: doubled up to a tenth of a second.
const FIRST_LOOK: Duration = Duration::from_millis(10);
const LAST_LOOK: Duration = Duration::from_millis(100);

/// Where something is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Where {
    /// In a conversation that is there.
    Conversation(ConversationId),
    /// To somebody: in the conversation with them, which the message opens if it is the first.
    Party(Party),
}

/// A chat message as its writer gives it.
#[derive(Debug, Clone, PartialEq)]
pub struct Say {
    /// Where.
    pub to: Where,
    /// A string where `content_type` is `text`; any JSON value where it is `json`.
    pub content: Json,
    /// What it is.
    pub content_type: ContentType,
    /// The idempotency key, if it is not the `ref`.
    pub key: Option<String>,
    /// The writer's own name for it; repeats of it are one message.
    pub client_ref: Option<Ref>,
    /// The W3C trace it belongs to.
    pub trace: Option<String>,
}

impl Door {
    /// Says something. Ends when the log has been asked, so that what one session says one after the other stands there in
    /// that order.
    ///
    /// # Errors
    /// What can be known before: who may not, where, what is wrong with it. Quotas and room answer in [`Underway`] too.
    pub async fn say(self: &Arc<Self>, caller: &Caller, say: Say) -> Result<Underway, Problem> {
        let from = admission::may_chat(caller)?;
        let place = self.enter()?;
        let (pair, row) = match &say.to {
            Where::Conversation(id) => {
                let row = self.seen_to_write(caller, *id).await?;
                (row.pair.clone(), Some(row))
            }
            Where::Party(with) => {
                let pair = pair_with(caller, with, "/to")?;
                let row = row(self.history(), pair.id()).await?;
                (pair, row)
            }
        };
        let message = self.said(caller, &from, say, &pair, row.as_ref())?;
        // A repeat of what was said is answered as the first time, whatever the conversation has come to since.
        if let Some(mut row) = row
            && self.keys.seen(&message)?.is_none()
        {
            let now = message.accepted_at;
            let (epoch, act) = (row.version.epoch(), Act::Message { id: message.id, content: &message.content });
            if let Err(why) = row.apply(&from, &act, &self.parts.limits.chat, epoch, now) {
                let said = self.history().said(&[message.id]).await?.pop().flatten();
                let said = said.filter(|shown| shown.turn.message.fingerprint == message.fingerprint);
                let shown = said.ok_or_else(|| why.problem())?;
                return Ok(Underway::said_already(self.clone(), place, shown));
            }
        }
        let (id, conversation, fingerprint) = (message.id, pair.id(), message.fingerprint);
        let answers = self.submit(caller, vec![Ok(Admitted { message, dry_run: false })], false).await;
        let accepted = answers.map(|mut answers| answers.pop().unwrap_or_else(|| Err(none()))).boxed();
        let sought = Sought::Message { conversation, id, fingerprint };
        Ok(Underway::new(self.clone(), place, id, conversation, accepted, sought))
    }

    /// What is said, as a message of its conversation.
    fn said(
        &self,
        caller: &Caller,
        from: &Sender,
        say: Say,
        pair: &Pair,
        row: Option<&Conversation>,
    ) -> Result<Message, Problem> {
        let Say { content, content_type, key, client_ref, trace, .. } = say;
        let client_ref = client_ref.as_ref().map(ToString::to_string);
        let draft = ChatDraft { content, content_type, key, client_ref };
        let at = self.admission(caller, from, trace.as_deref());
        let shared = draft.shared(&at)?;
        let to = match (row, Side::of(&party(from)?).other()) {
            (Some(row), side) => row.user(side),
            (None, Side::Mobile) => pair.mobile(),
            (None, Side::Business) => pair.business(),
        };
        Ok(shared.said(&at, pair, to))
    }

    fn admission<'a>(&'a self, caller: &'a Caller, from: &'a Sender, trace: Option<&'a str>) -> Admission<'a> {
        Admission {
            tenant: &caller.tenant,
            from,
            header_key: None,
            broadcast: None,
            trace,
            default_priority: Priority::High,
            now: self.parts.clock.wall(),
            limits: &self.parts.limits.message,
            phone: &schemas::Phone::parse,
            clean: &text::clean,
        }
    }

    /// The text of an edit, checked as a message's is.
    pub(crate) fn checked(&self, caller: &Caller, from: &Sender, draft: &ChatDraft) -> Result<Content, Problem> {
        Ok(draft.shared(&self.admission(caller, from, None))?.content().clone())
    }

    /// A conversation with somebody is to exist.
    ///
    /// # Errors
    /// Whoever is no user with a right to chat, or names nobody of the other side.
    pub async fn open_with(
        self: &Arc<Self>,
        caller: &Caller,
        with: &Party,
        trace: Option<String>,
    ) -> Result<Underway, Problem> {
        let by = admission::may_chat(caller)?;
        let place = self.enter()?;
        let pair = pair_with(caller, with, "/with")?;
        let ask = Ask { trace, ..Ask::from(Command::Open) };
        let command = self.command(&by, &pair, ask)?;
        match row(self.history(), pair.id()).await? {
            Some(row) => Ok(Underway::already(self.clone(), place, &command, row)),
            None => self.ask_for(caller, place, command, 0).await,
        }
    }

    /// A conversation that the caller may see, and from which side.
    ///
    /// # Errors
    /// [`Code::NotRecordedOrUnknown`] for one that is not there, and for other people's: the two are not told apart.
    pub async fn thread(&self, caller: &Caller, id: ConversationId) -> Result<(Conversation, Side), Problem> {
        seen(self.history(), caller, id, Duration::ZERO).await
    }

    /// Something was recorded in this conversation: whoever waits for it looks at once.
    pub fn changed(&self, id: ConversationId) {
        self.awaited.hurry(id);
    }

    pub(crate) fn history(&self) -> &dyn History {
        self.parts.history.as_ref()
    }

    /// A conversation that the caller may write to, waited for as long as an answer may take. An id that names a one-way
    /// message is refused as what it is (P12).
    pub(crate) async fn seen_to_write(&self, caller: &Caller, id: ConversationId) -> Result<Conversation, Problem> {
        match seen(self.history(), caller, id, Duration::ZERO).await {
            Err(problem) if problem.code == Code::NotRecordedOrUnknown => {}
            found => return found.map(|(row, _)| row),
        }
        let named = self.history().messages(&[schemas::MessageId(id.0)]).await?.pop().flatten();
        let one_way = named.filter(|placed| matches!(placed.message.kind, Kind::OneWay));
        if one_way.is_some_and(|placed| caller.user().as_ref() == Some(&placed.message.to)) {
            return Err(no_reply());
        }
        let wait = Duration::from_millis(self.parts.limits.chat.answer_ms);
        seen(self.history(), caller, id, wait).await.map(|(row, _)| row)
    }
}

fn none() -> Problem {
    Problem::new(Code::Internal, "the message got no answer")
}

/// The refusal of a reply to a one-way message (R1.4, P12).
pub fn no_reply() -> Problem {
    let detail = "this is a one-way message: write to a business user instead, with `to`: \"business:NAME\"";
    Problem::new(Code::NoReply, detail)
}

/// The person who writes: a server holds no conversations.
fn party(from: &Sender) -> Result<Party, Problem> {
    match from {
        Sender::User(party) => Ok(party.clone()),
        Sender::Server => {
            let detail = "a server holds no conversations: use the token of a business user";
            Err(Problem::new(Code::Forbidden, detail).at("Authorization"))
        }
    }
}

/// The pair of the caller and somebody else.
fn pair_with(caller: &Caller, with: &Party, field: &str) -> Result<Pair, Problem> {
    let own = party(&admission::may_chat(caller)?)?;
    Pair::of(&caller.tenant, &own, with).ok_or_else(|| {
        let detail = match own {
            Party::Mobile(_) => "a mobile user writes to a business user: \"business:NAME\"",
            Party::Business(_) => "a business user writes to a mobile user: an E.164 number",
        };
        Problem::new(Code::InvalidField, detail).at(field)
    })
}

async fn row(history: &dyn History, id: ConversationId) -> PortResult<Option<Conversation>> {
    Ok(history.conversations(&[id]).await?.pop().flatten())
}

/// The side on which a caller may see a conversation; `None`: it is other people's.
pub fn side_of(caller: &Caller, row: &Conversation) -> Option<Side> {
    row.side_of(&caller.user()?)
}

/// A conversation that the caller may see, waited for a moment where it is not there yet. Other people's is waited for just
/// as long, so that the time tells nothing either.
///
/// # Errors
/// [`Code::NotRecordedOrUnknown`], or the caller may not chat.
pub async fn seen(
    history: &dyn History,
    caller: &Caller,
    id: ConversationId,
    wait: Duration,
) -> Result<(Conversation, Side), Problem> {
    party(&admission::may_chat(caller)?)?;
    let (mut pause, mut waited) = (FIRST_LOOK, Duration::ZERO);
    loop {
        if let Some(row) = row(history, id).await?
            && let Some(side) = side_of(caller, &row)
        {
            return Ok((row, side));
        }
        if waited >= wait {
            return Err(unseen());
        }
        tokio::time::sleep(pause).await;
        waited += pause;
        pause = (pause * 2).min(LAST_LOOK);
    }
}

/// What a reader of an unknown conversation is told.
fn unseen() -> Problem {
    let detail = "no conversation of yours has this id, or it was opened a moment ago: ask again shortly";
    Problem::new(Code::NotRecordedOrUnknown, detail).retry_after_ms(1_000)
}
