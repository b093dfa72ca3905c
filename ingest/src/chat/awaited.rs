//! Whoever waits until something is recorded (rule 14). One looker for all of them: whatever is due is asked of history in
//! one batched read, again and again with growing pauses, so that a write costs two or three rows read and no more.
//! Whoever hears that a conversation changed makes it look at once ([`Awaited::hurry`]); without that it finds out by itself,
//! also where the owner runs in another process.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use futures::try_join;
use parking_lot::Mutex;
use schemas::{
    ChatCommand, Conversation, ConversationId, Message, MessageId, Reason,
    conversation::{Command, Shown},
    port::{History, Placed, PortResult},
};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

/// Between two rounds while somebody waits: a record that nothing delays is in history some milliseconds after the log has it.
const TICK: Duration = Duration::from_millis(2);
/// The longest pause between two looks for one of them, in ticks.
const LAST_PAUSE: u32 = 25;
/// Looked for in one read.
const AT_ONCE: usize = 512;

/// What is looked for.
#[derive(Debug, Clone)]
pub(crate) enum Sought {
    /// A message.
    Message { conversation: ConversationId, id: MessageId, fingerprint: [u8; 16] },
    /// That the conversation shows what was asked of it; `mark`: what `Read` stands for.
    Command { command: Box<ChatCommand>, mark: u64 },
}

/// What was found.
#[derive(Debug, Clone, PartialEq)]
pub enum Recorded {
    /// The message in its conversation.
    Said(Box<Shown>),
    /// The conversation as it is now.
    Row(Box<Conversation>),
    /// The edit or deletion.
    Written(Box<Placed>),
    /// Its owner refused it.
    Refused(Reason),
}

impl Recorded {
    /// The message that was written, where one was.
    pub(crate) fn message(&self) -> Option<&Message> {
        match self {
            Self::Said(shown) => Some(&shown.turn.message),
            Self::Written(placed) => Some(&placed.message),
            Self::Row(_) | Self::Refused(_) => None,
        }
    }
}

impl Sought {
    fn conversation(&self) -> ConversationId {
        match self {
            Self::Message { conversation, .. } => *conversation,
            Self::Command { command, .. } => command.pair.id(),
        }
    }

    fn id(&self) -> MessageId {
        match self {
            Self::Message { id, .. } => *id,
            Self::Command { command, .. } => command.id,
        }
    }

    pub(crate) fn fingerprint(&self) -> [u8; 16] {
        match self {
            Self::Message { fingerprint, .. } => *fingerprint,
            Self::Command { command, .. } => command.fingerprint,
        }
    }

    /// Whether it is found by its name: the row does not show it, or shows it no longer where it comes again.
    fn is_entry(&self) -> bool {
        match self {
            Self::Message { .. } => false,
            Self::Command { command, .. } => {
                let changes = matches!(command.command, Command::Edit { .. } | Command::Delete { .. });
                changes || (command.command.is_named() && command.id.is_keyed())
            }
        }
    }
}

struct Waiting {
    sought: Sought,
    tell: oneshot::Sender<Option<Recorded>>,
    /// Ticks until it is looked for.
    left: u32,
    /// Ticks from that look to the next.
    pause: u32,
}

#[derive(Default)]
struct Line {
    next: u64,
    waiting: BTreeMap<u64, Waiting>,
}

/// All that wait at one door.
pub(crate) struct Awaited {
    line: Mutex<Line>,
    woken: Notify,
}

impl Awaited {
    pub(crate) fn new() -> Self {
        Self { line: Mutex::default(), woken: Notify::new() }
    }

    /// Waits for it, as long as the caller does; `None` when the door closes.
    pub(crate) async fn find(&self, sought: Sought) -> Option<Recorded> {
        let (tell, told) = oneshot::channel();
        {
            let mut line = self.line.lock();
            line.next += 1;
            let number = line.next;
            line.waiting.insert(number, Waiting { sought, tell, left: 1, pause: 2 });
        }
        self.woken.notify_one();
        told.await.ok().flatten()
    }

    /// Looks at once for what is awaited in this conversation.
    pub(crate) fn hurry(&self, id: ConversationId) {
        let mut line = self.line.lock();
        let here = line.waiting.values_mut().filter(|waiting| waiting.sought.conversation() == id);
        let count = here.map(|waiting| waiting.left = 0).count();
        drop(line);
        if count > 0 {
            self.woken.notify_one();
        }
    }

    /// Looks until told to stop.
    pub(crate) async fn run(self: Arc<Self>, history: Arc<dyn History>, stop: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let idle = self.line.lock().waiting.is_empty();
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.woken.notified() => {}
                _ = tick.tick(), if !idle => self.pass(),
            }
            let due = self.due();
            if due.is_empty() {
                continue;
            }
            match look(history.as_ref(), &due).await {
                Ok(found) => self.answer(found),
                // Whoever waited too long is answered 202; the record is durable.
                Err(why) => tracing::debug!(%why, "history did not say what is recorded"),
            }
        }
        self.line.lock().waiting.clear();
    }

    fn pass(&self) {
        let mut line = self.line.lock();
        line.waiting.retain(|_, waiting| !waiting.tell.is_closed());
        for waiting in line.waiting.values_mut() {
            waiting.left = waiting.left.saturating_sub(1);
        }
    }

    /// Those to be looked for now, each with a longer pause before it.
    fn due(&self) -> Vec<(u64, Sought)> {
        let mut line = self.line.lock();
        let due = line.waiting.iter_mut().filter(|(_, waiting)| waiting.left == 0).take(AT_ONCE);
        due.map(|(number, waiting)| {
            waiting.left = waiting.pause;
            waiting.pause = (waiting.pause * 2).min(LAST_PAUSE);
            (*number, waiting.sought.clone())
        })
        .collect()
    }

    fn answer(&self, found: Vec<(u64, Recorded)>) {
        let mut line = self.line.lock();
        for (number, recorded) in found {
            if let Some(waiting) = line.waiting.remove(&number) {
                // Whoever went away in the meantime needs no answer.
                let _ = waiting.tell.send(Some(recorded));
            }
        }
    }
}

/// Asks history for all of them.
async fn look(history: &dyn History, due: &[(u64, Sought)]) -> PortResult<Vec<(u64, Recorded)>> {
    let messages = due.iter().filter(|(_, sought)| matches!(sought, Sought::Message { .. }));
    let messages: Vec<MessageId> = messages.map(|(_, sought)| sought.id()).collect();
    let entries: Vec<MessageId> =
        due.iter().filter(|(_, sought)| sought.is_entry()).map(|(_, sought)| sought.id()).collect();
    let commands = due.iter().filter(|(_, sought)| matches!(sought, Sought::Command { .. }));
    let mut rows: Vec<ConversationId> = commands.map(|(_, sought)| sought.conversation()).collect();
    rows.sort_unstable();
    rows.dedup();
    let (said, placed, there) = try_join!(
        async { if messages.is_empty() { Ok(Vec::new()) } else { history.said(&messages).await } },
        async { if entries.is_empty() { Ok(Vec::new()) } else { history.messages(&entries).await } },
        async { if rows.is_empty() { Ok(Vec::new()) } else { history.conversations(&rows).await } },
    )?;
    let said: HashMap<MessageId, Shown> = said.into_iter().flatten().map(|s| (s.turn.message.id, s)).collect();
    let placed: HashMap<MessageId, Placed> = placed.into_iter().flatten().map(|p| (p.message.id, p)).collect();
    let there: HashMap<ConversationId, Conversation> = there.into_iter().flatten().map(|row| (row.id, row)).collect();
    let mut found = Vec::with_capacity(due.len());
    let mut missing = Vec::new();
    for (number, sought) in due {
        match shown(sought, &said, &placed, &there) {
            Some(recorded) => found.push((*number, recorded)),
            None => missing.push((*number, sought.id())),
        }
    }
    if !missing.is_empty() {
        let ids: Vec<MessageId> = missing.iter().map(|(_, id)| *id).collect();
        let states = history.states(&ids).await?;
        for ((number, _), state) in missing.into_iter().zip(states) {
            if state.status() == schemas::Status::Failed
                && let Some(reason) = state.reason()
            {
                found.push((number, Recorded::Refused(reason)));
            }
        }
    }
    Ok(found)
}

fn shown(
    sought: &Sought,
    said: &HashMap<MessageId, Shown>,
    placed: &HashMap<MessageId, Placed>,
    rows: &HashMap<ConversationId, Conversation>,
) -> Option<Recorded> {
    match sought {
        Sought::Message { id, .. } => said.get(id).cloned().map(|shown| Recorded::Said(Box::new(shown))),
        Sought::Command { command, mark } => {
            if let Some(placed) = placed.get(&command.id) {
                return Some(Recorded::Written(Box::new(placed.clone())));
            }
            let row = rows.get(&command.pair.id()).filter(|row| command.shows(row, *mark));
            row.cloned().map(|row| Recorded::Row(Box::new(row)))
        }
    }
}
