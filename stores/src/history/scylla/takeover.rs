//! Taking conversations over: the row is sealed before its owner is told of it, as the ends of inboxes are.
//!
//! First the ends of its inboxes and then the row, because a recorder writes the other way round: an entry that stands before
//! such an end is counted by such a row. What the row counts may then lack entries, which an owner that was overtaken wrote
//! where the end was told already, or never came to write. The message comes again from the log, and [`Shared::counted`]
//! says what is missing. Whose inboxes a row does not name yet nobody seals with it: before an owner writes to those it looks
//! whether it still is the owner, once its row stands ([`super::writes::Plan::strangers`]).

use std::collections::BTreeMap;

use futures::{StreamExt, TryStreamExt, stream};
use schemas::{
    Conversation, ConversationId, Epoch, Inbox, MessageId, Partition, Position,
    conversation::{Side, Version},
    port::{Counted, PortResult},
};

use super::{
    conversations::{self, Stand, Talk},
    keys, notes,
    shared::{Head, READS, Shared},
    threads,
};

/// What this process owned when it was asked.
type Owned = BTreeMap<Partition, Epoch>;

impl Shared {
    /// The rows of conversations for their owner.
    pub(super) async fn taken(
        &self,
        asked: &[(ConversationId, Vec<Inbox>)],
        owned: &Owned,
    ) -> PortResult<Vec<Option<Conversation>>> {
        stream::iter(asked.to_vec())
            .map(|(id, inboxes)| self.taken_one(id, inboxes, owned))
            .buffered(READS)
            .try_collect()
            .await
    }

    async fn taken_one(
        &self,
        id: ConversationId,
        mut sealed: Vec<Inbox>,
        owned: &Owned,
    ) -> PortResult<Option<Conversation>> {
        let _alone = self.taking.hold([id.to_string()]).await;
        self.ends(&sealed, owned).await?;
        loop {
            let Some(talk) = self.talk(id).await? else { return self.nobody(id, &sealed, owned).await };
            let Some(own) = owned.get(&talk.row.partition).filter(|own| talk.path.newest() < **own) else {
                return Ok(Some(Conversation { version: talk.changed, ..talk.row }));
            };
            let partition = talk.row.partition;
            let sides = Side::BOTH.map(|side| Inbox { user: talk.row.user(side), partition });
            let open: Vec<_> = sides.into_iter().filter(|inbox| !sealed.contains(inbox)).collect();
            if open.is_empty() {
                return self.seal(talk, *own).await.map(Some);
            }
            // They are known by the row alone, which may have changed until their ends were sealed.
            self.ends(&open, owned).await?;
            sealed.extend(open);
        }
    }

    /// Nobody opened it. From now on no older owner does, who could still be about to.
    async fn nobody(&self, id: ConversationId, asked: &[Inbox], owned: &Owned) -> PortResult<Option<Conversation>> {
        if let Some(own) = asked.first().and_then(|inbox| owned.get(&inbox.partition)) {
            self.cql.send(&[notes::nobody(id, Version::default().under(*own))]).await?;
        }
        Ok(None)
    }

    /// From now on what older owners write is not in it: the row is written as it is with the epoch of its owner, and its
    /// places in lists are, so that they stand whatever older owners write there.
    async fn seal(&self, talk: Talk, own: Epoch) -> PortResult<Conversation> {
        let Talk { row, changed, mut path, notes, gone } = talk;
        path.take(own, row.last_seq + 1);
        path.forget(gone.0);
        let shown = Conversation { version: threads::sealed(changed, &path), ..row };
        let row = Conversation { version: changed, ..shown.clone() };
        self.cql.send_all(conversations::listed(&shown, None)).await?;
        self.cql.send(&[notes::row(&row, &path, &notes, shown.version)]).await?;
        self.talks.lock().put(row.id, Stand::of(&shown, path));
        Ok(row)
    }

    /// What threads have of messages, and where their entries are missing: the ends of those inboxes are sealed before, so that
    /// no entry comes there once it was told to be missing.
    pub(super) async fn counted(
        &self,
        asked: &[(ConversationId, MessageId)],
        owned: &Owned,
    ) -> PortResult<Vec<Option<Counted>>> {
        let ids: Vec<_> = asked.iter().map(|(_, id)| *id).collect();
        let spots = self.spots(&ids).await?;
        let asked: Vec<_> = asked.iter().map(|(of, id)| (*of, *id, spots.get(id).copied())).collect();
        let asked = asked.into_iter().map(|(of, id, spot)| self.counted_one(of, id, spot, owned));
        stream::iter(asked).buffered(READS).try_collect().await
    }

    async fn counted_one(
        &self,
        of: ConversationId,
        id: MessageId,
        spot: Option<(ConversationId, u64)>,
        owned: &Owned,
    ) -> PortResult<Option<Counted>> {
        let Some(talk) = self.talk(of).await? else { return Ok(None) };
        let Some((_, seq)) = spot.filter(|(there, _)| *there == of) else { return self.noted(&talk, id, owned).await };
        let Some((turn, spots)) = self.turn_of(&talk, id, seq).await? else { return Ok(None) };
        let mut missing = Vec::new();
        for (copy, at) in spots {
            let own = copy.is_none();
            let user = copy.unwrap_or_else(|| turn.message.to.clone());
            let inbox = Inbox { user, partition: talk.row.partition };
            let head = self.sealed_head(&inbox, owned).await?;
            let stands =
                self.has_entry(&inbox, &head, at).await? || (own && self.has_another(id, &inbox, &head).await?);
            if !stands {
                missing.push(inbox);
            }
        }
        Ok(Some(Counted { epoch: turn.version.epoch(), turn: Some(turn), missing }))
    }

    /// A note of which the row tells.
    async fn noted(&self, talk: &Talk, id: MessageId, owned: &Owned) -> PortResult<Option<Counted>> {
        let Some((_, user, at)) = talk.notes.iter().find(|note| note.0 == id) else { return Ok(None) };
        let inbox = Inbox { user: user.clone(), partition: talk.row.partition };
        let head = self.sealed_head(&inbox, owned).await?;
        let stands = self.has_entry(&inbox, &head, *at).await? || self.has_another(id, &inbox, &head).await?;
        let missing = if stands { Vec::new() } else { vec![inbox] };
        Ok(Some(Counted { turn: None, epoch: at.epoch, missing }))
    }

    /// Whether an entry stands there, or was removed by retention.
    async fn has_entry(&self, inbox: &Inbox, head: &Head, at: Position) -> PortResult<bool> {
        if at.n <= head.ledger.gone.n {
            return Ok(true);
        }
        let name = keys::inbox(inbox);
        Ok(head.has(at) && self.entries_at(&name, keys::bucket(at.n), [at].into_iter()).await?.contains(&at))
    }

    /// Whether somebody who took over before wrote the entry again.
    async fn has_another(&self, id: MessageId, inbox: &Inbox, head: &Head) -> PortResult<bool> {
        let place = self.places(&[id]).await?.remove(&id);
        match place.and_then(|place| place.position) {
            Some(at) => self.has_entry(inbox, head, at).await,
            None => Ok(false),
        }
    }
}
