//! Conversations as their owner would have written them, for filling a history in bulk through its port.

use std::{collections::HashMap, sync::Arc};

use anyhow::{Context, Result};
use schemas::{
    Content, ContentType, Conversation, ConversationId, Epoch, Inbox, Kind, Message, MessageId, Name, Partition, Phone,
    Position, Priority, Sender, Tenant, Timestamp,
    conversation::{Act, Pair, Side, Turn},
    limits::ChatLimits,
    port::{Entry, History, Schedule},
};

use super::{super::TENANT, content, number};

/// Messages of one call.
const AT_ONCE: usize = 500;

/// What is filled, as it stands.
pub(crate) struct Filling<'a> {
    history: &'a dyn History,
    partitions: u16,
    /// By partition: it is the owner of all of them.
    epochs: Vec<Epoch>,
    rows: HashMap<ConversationId, Conversation>,
    tails: HashMap<Inbox, Position>,
    entries: Vec<Entry>,
    schedule: Schedule,
    made: u64,
}

/// The pair of a business user and the `n`th phone.
pub(crate) fn pair(business: &str, n: usize) -> Result<Pair> {
    let mobile = Phone::from_stored(&number(n)).context("a number")?;
    Ok(Pair { tenant: Tenant::parse(TENANT)?, business: Name::parse(business)?, mobile })
}

impl<'a> Filling<'a> {
    /// Into this history, as its new owner.
    pub(crate) async fn new(history: &'a dyn History, partitions: u16) -> Result<Self> {
        let all: Vec<_> = (0..partitions).map(Partition).collect();
        let epochs = history.take_over(&all).await?;
        history.owns(&all.into_iter().zip(epochs.iter().copied()).collect::<Vec<_>>());
        let (rows, tails, entries) = (HashMap::new(), HashMap::new(), Vec::new());
        Ok(Self { history, partitions, epochs, rows, tails, entries, schedule: Schedule::default(), made: 0 })
    }

    /// A message of one side, at this time.
    pub(crate) async fn say(&mut self, pair: &Pair, from: Side, at: Timestamp) -> Result<()> {
        let id = pair.id();
        let partition = Partition::of(&pair.mobile(), self.partitions);
        let epoch = self.epochs.get(usize::from(partition.0)).copied().context("a partition")?;
        let row = self.rows.entry(id).or_insert_with(|| Conversation::open(pair.clone(), partition, epoch, at));
        let (writer, to) = (row.user(from), row.user(from.other()));
        let message = Message {
            id: MessageId::fresh(at),
            kind: Kind::Chat(id),
            from: Sender::User(writer.party.clone()),
            to: to.clone(),
            priority: Priority::High,
            content: Content {
                content_type: ContentType::Text,
                subject: None,
                body: content(at.0.unsigned_abs(), 100, self.made),
            },
            client_ref: None,
            metadata: None,
            accepted_at: at,
            send_at: None,
            expires_at: None,
            broadcast: None,
            trace: None,
            fingerprint: [0; 16],
        };
        self.made += 1;
        let act = Act::Message { id: message.id, content: &message.content };
        row.apply(&message.from, &act, &ChatLimits::default(), epoch, at)
            .map_err(|refused| anyhow::anyhow!("{refused:?}"))?;
        let row = row.clone();
        let (message, seq) = (Arc::new(message), row.last_seq);
        self.schedule.turns.push(Turn {
            conversation: id,
            seq: row.last_seq,
            to_mobile: row.mobile.to,
            to_business: row.business.to,
            version: row.version,
            recorded_at: at,
            message: message.clone(),
            of: None,
        });
        self.schedule.conversations.retain(|there| there.id != id);
        self.schedule.conversations.push(row);
        for user in [to, writer] {
            let inbox = Inbox { user, partition };
            let prev = match self.tails.get(&inbox) {
                Some(tail) => *tail,
                None => self.history.tails(std::slice::from_ref(&inbox)).await?.pop().unwrap_or_default().position,
            };
            let position = prev.next(epoch);
            self.tails.insert(inbox.clone(), position);
            let (message, seq) = (message.clone(), Some(seq));
            let (one_way, recorded_at, end) = (0, at, None);
            self.entries.push(Entry { inbox, position, prev, one_way, recorded_at, message, end, seq });
        }
        if self.entries.len() >= 2 * AT_ONCE { self.write().await } else { Ok(()) }
    }

    /// Writes what was gathered.
    pub(crate) async fn write(&mut self) -> Result<()> {
        let (entries, schedule) = (std::mem::take(&mut self.entries), std::mem::take(&mut self.schedule));
        self.history.record(&entries, &schedule).await?;
        Ok(())
    }
}
