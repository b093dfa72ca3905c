//! What is asked of a conversation and is no message: read, archive, close, assign, edit and the like. Each says what is to
//! be so; what is so already is answered without a record.

use std::sync::Arc;

use futures::FutureExt as _;
use schemas::{
    ChatCommand, Code, Conversation, ConversationId, Key, MessageId, Priority, Problem, Ref, Sender,
    conversation::{Change, Command, Original, Pair, Side, UpTo},
    port::{Order, PortError},
    record,
};
use sha2::{Digest as _, Sha256};

use super::{Underway, awaited::Sought};
use crate::{
    admission,
    auth::{Caller, Who},
    door::{Accepted, Door, InWork},
};

/// What is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    /// What.
    pub command: Command,
    /// The idempotency key.
    pub key: Option<String>,
    /// The asker's own name for it.
    pub client_ref: Option<Ref>,
    /// The W3C trace it belongs to.
    pub trace: Option<String>,
}

impl From<Command> for Ask {
    fn from(command: Command) -> Self {
        Self { command, key: None, client_ref: None, trace: None }
    }
}

/// What had to be known before a command could be judged.
struct Judged {
    /// What `Read` stands for.
    mark: u64,
    /// It is so already.
    already: bool,
}

impl Door {
    /// Asks something of a conversation. Ends when the log has been asked.
    ///
    /// # Errors
    /// What can be known before: who may not, what is not there, a mark beyond the end.
    pub async fn ask(self: &Arc<Self>, caller: &Caller, id: ConversationId, ask: Ask) -> Result<Underway, Problem> {
        let by = admission::may_chat(caller)?;
        let place = self.enter()?;
        let row = match caller.who {
            Who::Server => self.of_tenant(caller, id).await?,
            _ => self.seen_to_write(caller, id).await?,
        };
        let command = self.command(&by, &row.pair, ask)?;
        let Judged { mark, already } = self.judge(&command, &row).await?;
        if already {
            return Ok(Underway::already(self.clone(), place, &command, row));
        }
        self.ask_for(caller, place, command, mark).await
    }

    /// A command as it stands in the log.
    pub(super) fn command(&self, by: &Sender, pair: &Pair, ask: Ask) -> Result<ChatCommand, Problem> {
        let Ask { command, key, client_ref, trace } = ask;
        let key = key.as_deref().map(Key::parse).transpose();
        let key = key.map_err(|why| Problem::new(Code::InvalidField, why.to_string()).at("/key"))?;
        let accepted_at = self.parts.clock.wall();
        let id = match &key {
            Some(key) => pair.name(by, key.as_str()),
            None => MessageId::fresh(accepted_at),
        };
        let mut fingerprint = [0; 16];
        fingerprint.copy_from_slice(&Sha256::digest(schemas::codec::encode(&(by, &command)))[..16]);
        let (pair, by) = (pair.clone(), by.clone());
        Ok(ChatCommand { id, pair, by, command, accepted_at, client_ref, trace, fingerprint })
    }

    /// A conversation of the business that a server acts for.
    async fn of_tenant(&self, caller: &Caller, id: ConversationId) -> Result<Conversation, Problem> {
        let row = super::row(self.history(), id).await?;
        row.filter(|row| row.pair.tenant == caller.tenant).ok_or_else(super::unseen)
    }

    /// Holds a command against the conversation as it is, by its owner's own rules.
    async fn judge(&self, command: &ChatCommand, row: &Conversation) -> Result<Judged, Problem> {
        let original = match command.command.about() {
            Some(of) => {
                let shown = self.history().said(&[of]).await?.pop().flatten();
                shown.filter(|shown| shown.turn.conversation == row.id)
            }
            None => None,
        };
        let (mut mark, mut at) = (0, 0);
        if let (Command::Read { up_to }, Some(side)) = (&command.command, command.side()) {
            let counts = original.as_ref().map(|shown| (shown.turn.to_mobile, shown.turn.to_business));
            (at, mark) = match up_to {
                UpTo::Seq(seq) => (*seq, self.mark_at(row, side, *seq).await?),
                UpTo::Id(_) => {
                    let missing = || schemas::conversation::Refused::NoSuchMessage.problem().at("/up_to");
                    let seq = original.as_ref().map(|shown| shown.turn.seq).ok_or_else(missing)?;
                    (seq, ChatCommand::mark(side, row.half(side), row.last_seq, seq, counts))
                }
            };
        }
        let original: Option<Original> = original.and_then(|shown| shown.original());
        let (epoch, now) = (row.version.epoch(), self.parts.clock.wall());
        let act = command.command.act(original.as_ref(), (mark, at));
        match row.clone().apply(&command.by, &act, &self.parts.limits.chat, epoch, now) {
            Ok(change) => Ok(Judged { mark, already: change == Change::Nothing }),
            Err(why) => match self.asked_before(command).await? {
                // What was permitted once is answered as it was then.
                true => Ok(Judged { mark, already: true }),
                false => Err(why.problem()),
            },
        }
    }

    /// Whether this very command was carried out under its key already.
    async fn asked_before(&self, command: &ChatCommand) -> Result<bool, PortError> {
        if !command.id.is_keyed() {
            return Ok(false);
        }
        let placed = self.history().messages(&[command.id]).await?.pop().flatten();
        Ok(placed.is_some_and(|placed| placed.message.fingerprint == command.fingerprint))
    }

    async fn mark_at(&self, row: &Conversation, side: Side, seq: u64) -> Result<u64, Problem> {
        if seq > row.last_seq {
            let detail = format!("`up_to` is {seq}, the conversation ends at {}", row.last_seq);
            return Err(Problem::new(Code::ReadBeyondEnd, detail).at("/up_to"));
        }
        let half = row.half(side);
        if seq == row.last_seq {
            return Ok(half.to);
        }
        let last = self.history().turns(row.id, Order::Newest, Some(seq.saturating_add(1)), 1).await?.rows.pop();
        let counts = last.map(|shown| (shown.turn.to_mobile, shown.turn.to_business));
        Ok(ChatCommand::mark(side, half, row.last_seq, seq, counts))
    }

    /// Holds a command against quota and room and hands it to the log.
    pub(super) async fn ask_for(
        self: &Arc<Self>,
        caller: &Caller,
        place: InWork,
        command: ChatCommand,
        mark: u64,
    ) -> Result<Underway, Problem> {
        // A mark goes no further than what others wrote, so it is bounded by their quotas and takes nothing of the reader's.
        if !matches!(command.command, Command::Read { .. })
            && let Some(violation) = self.quotas.take(caller, 1).await.violation
        {
            return Err(violation.into());
        }
        let (lanes, tenant) = (self.lanes.clone(), caller.tenant.clone());
        if let (_, Some(problem)) = lanes.join(Priority::High, &tenant, 1) {
            return Err(problem);
        }
        let (id, accepted_at, word) = (command.id, command.accepted_at, command.command.word());
        let asked = self.ask_log(vec![record::chat(&command, self.parts.log.partitions())]);
        let durability = self.parts.log.durability();
        let accepted = async move {
            let none = || Err(PortError::Unknown("the log did not say".to_owned()));
            match asked.await.pop().unwrap_or_else(none) {
                Ok(_) => {
                    metrics::counter!("esh3ar_chat_commands_total", "command" => word).increment(1);
                    Ok(Accepted { id, accepted_at, durability, replayed: false, dry_run: None })
                }
                Err(why) => {
                    lanes.leave(Priority::High, &tenant, 1);
                    Err(Problem::from(why))
                }
            }
        };
        let conversation = command.pair.id();
        let sought = Sought::Command { command: Box::new(command), mark };
        Ok(Underway::new(self.clone(), place, id, conversation, accepted.boxed(), sought))
    }
}
