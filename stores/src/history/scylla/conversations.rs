//! Conversations: threads, lists of them and counts. A row's write time is its version, so the largest stands, whoever
//! writes in whatever order; a late owner's version is smaller.
//!
//! Turns are written before the row that counts them, and what the row does not count is not shown: neither what is being
//! written nor what a late owner wrote beyond the newer one's end, or beside its turns ([`super::threads`]). Entries are
//! written after the row, so an inbox never has what the thread lacks; who takes over finds what an inbox lacks by the turn,
//! which says where its entries stand. A chat message costs nine rows: two entries, its place,
//! its turn and where that is found, the conversation's row, its place in two lists, and later its state. A list is read
//! whole and sorted here: a user's conversations are hundreds, at most some thousands, of small rows.

use std::collections::{BTreeMap, HashMap, HashSet};

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use schemas::{
    Conversation, ConversationId, Inbox, Message, MessageId, Partition, Position, Timestamp, UserId,
    conversation::{Shown, Side, Turn, Version},
    message::{Content, Kind},
    port::{Around, ByActivity, Conversations, Counted, ListMark, Order, Page, PortResult},
};
use scylla::value::CqlValue::{BigInt, Blob, Boolean, Int, Text, Uuid};

use super::{
    ScyllaHistory,
    inboxes::NEAR,
    keys,
    notes::{self, Noted},
    rows::{blob, unblob},
    session::{Write, broken},
    shared::{READS, Shared, by_slot},
    statements::Pick,
    threads::{self, Path},
};

/// What retention removed of a conversation: the last turn that went, and the counts up to there.
pub(super) type Gone = (u64, u64, u64);
/// An edit or a deletion.
type Change = (Timestamp, Kind, Content);
/// Turns of one read.
const STEP: usize = 256;
/// Rows of one read besides: those that late owners wrote.
const MARGIN: usize = 4;

/// What is remembered of a conversation that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stand {
    pub(super) version: Version,
    pub(super) users: [UserId; 2],
    pub(super) path: Path,
}

impl Stand {
    pub(super) fn of(row: &Conversation, path: Path) -> Self {
        Self { version: row.version, users: Side::BOTH.map(|side| row.user(side)), path }
    }
}

/// A conversation as it stands.
#[derive(Debug, Clone)]
pub(super) struct Talk {
    /// As readers are shown it.
    pub(super) row: Conversation,
    /// The version of its last change.
    pub(super) changed: Version,
    pub(super) path: Path,
    /// What it tells of, where the entry may be missing.
    pub(super) notes: Vec<Noted>,
    pub(super) gone: Gone,
}

/// Where an entry of a turn was written: in the inbox of a user, or of whom the message is to.
pub(super) type Spot = (Option<UserId>, Position);

pub(super) fn time(version: Version) -> i64 {
    i64::try_from(version.0).unwrap_or(i64::MAX)
}

fn number(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}

/// Reads a turn, and where its entries were written; of old ones that is not known.
fn unturn(bytes: Option<Vec<u8>>) -> PortResult<(Turn, Vec<Spot>)> {
    let bytes = bytes.unwrap_or_default();
    unblob(&bytes).or_else(|_| {
        let turn = unblob(&bytes).map_err(|why| broken("turns", &why))?;
        Ok((turn, Vec::new()))
    })
}

/// Its places in the lists of its two users; it leaves that of one who answers for it no more.
pub(super) fn listed(row: &Conversation, before: Option<&Stand>) -> Vec<Write> {
    let users = Side::BOTH.map(|side| row.user(side));
    let gone = before.map(|before| &before.users[..]).unwrap_or_default().iter().filter(|user| !users.contains(user));
    let away = gone.map(|user| {
        Write::new(Pick::ListedGone, vec![BigInt(time(row.version)), Text(user.to_string()), Uuid(row.id.0)])
    });
    let here = Side::BOTH.map(|side| {
        let half = row.half(side);
        let values = [
            Text(row.user(side).to_string()),
            Uuid(row.id.0),
            Boolean(half.archived),
            BigInt(row.last_at.0),
            BigInt(number(half.unread())),
            BigInt(time(row.version)),
        ];
        Write::new(Pick::Listed, values.into())
    });
    away.chain(here).collect()
}

/// A turn with where its entries are; a later version says that they were written anew elsewhere.
pub(super) fn turn_row(turn: &Turn, spots: &[Spot], ttl: i32, from: Version) -> Write {
    let column = threads::column(turn.seq, turn.version.epoch());
    let whole = [
        Uuid(turn.conversation.0),
        BigInt(keys::bucket(turn.seq)),
        BigInt(column),
        BigInt(time(turn.version)),
        Blob(blob(&(turn, spots))),
        Int(ttl),
        BigInt(time(from)),
    ];
    Write::new(Pick::Turn, whole.into())
}

/// A turn, where it is found by its message, and in what it shows if it is an edit or a deletion.
pub(super) fn turn_rows(turn: &Turn, spots: &[Spot], ttl: i32, stamp: i64) -> Vec<Write> {
    let (id, seq, version) = (turn.conversation, number(turn.seq), time(turn.version));
    let column = threads::column(turn.seq, turn.version.epoch());
    let message = &turn.message;
    let said = [BigInt(keys::slot(message.id)), Uuid(message.id.0), Uuid(id.0), BigInt(seq), Int(ttl), BigInt(stamp)];
    let mut rows = vec![turn_row(turn, spots, ttl, turn.version), Write::new(Pick::Said, said.into())];
    if let Some(of) = turn.of {
        let change = (turn.recorded_at, message.kind, &message.content);
        let values = [
            Uuid(id.0),
            BigInt(keys::bucket(of)),
            BigInt(number(of)),
            BigInt(column),
            BigInt(version),
            Blob(blob(&change)),
            Int(ttl),
            BigInt(version),
        ];
        rows.push(Write::new(Pick::Change, values.into()));
    }
    rows
}

impl Shared {
    pub(super) async fn talk(&self, id: ConversationId) -> PortResult<Option<Talk>> {
        let rows = self.cql.rows::<(Option<Vec<u8>>, Option<Vec<u8>>)>(Pick::TalkAt, (id.0,)).await?;
        let Some((Some(row), gone)) = rows.into_iter().next() else { return Ok(None) };
        let (mut row, path, notes) = notes::unrow(&row)?;
        let changed = row.version;
        row.version = threads::sealed(changed, &path);
        let gone: Option<Gone> = gone.map(|bytes| unblob(&bytes)).transpose().map_err(|why| notes::unread(&why))?;
        let gone = gone.unwrap_or_default();
        if gone.0 > 0 {
            // What retention removed is neither shown nor counted.
            row.forget(gone.0, gone.1, gone.2);
        }
        Ok(Some(Talk { row, changed, path, notes, gone }))
    }

    async fn talks_of(&self, ids: Vec<ConversationId>) -> PortResult<Vec<Option<Talk>>> {
        stream::iter(ids).map(|id| self.talk(id)).buffered(READS).try_collect().await
    }

    /// What is known of these as they stand: from memory, else read.
    pub(super) async fn stands(&self, ids: HashSet<ConversationId>) -> PortResult<HashMap<ConversationId, Stand>> {
        let (mut stands, mut missing) = (HashMap::with_capacity(ids.len()), Vec::new());
        {
            let mut talks = self.talks.lock();
            for id in ids {
                match talks.get(&id) {
                    Some(stand) => drop(stands.insert(id, stand.clone())),
                    None => missing.push(id),
                }
            }
        }
        let found = self.talks_of(missing).await?;
        stands.extend(found.into_iter().flatten().map(|talk| (talk.row.id, Stand::of(&talk.row, talk.path))));
        Ok(stands)
    }

    /// The turn that counts at a number.
    async fn turn_at(&self, talk: &Talk, seq: u64) -> PortResult<Option<(Turn, Vec<Spot>)>> {
        let key = (talk.row.id.0, keys::bucket(seq), talk.path.at(seq));
        let row = self.cql.rows::<(Option<Vec<u8>>,)>(Pick::TurnAt, key).await?.into_iter().next();
        row.map(|row| unturn(row.0)).transpose()
    }

    async fn thread(&self, talk: &Talk, order: Order, from: Option<u64>, limit: usize) -> PortResult<Page<Shown, u64>> {
        let (limit, up) = (limit.max(1), order == Order::Oldest);
        let (mut low, mut high) = (talk.gone.0 + 1, talk.row.last_seq);
        match (order, from) {
            (Order::Oldest, Some(from)) => low = low.max(from.saturating_add(1)),
            (Order::Newest, Some(from)) => high = high.min(from.saturating_sub(1)),
            (_, None) => {}
        }
        let (mut turns, mut next) = (Vec::<Turn>::new(), None);
        'reading: while low <= high {
            let bucket = keys::bucket(if up { low } else { high });
            let first = low.max(keys::first_of(bucket));
            let last = high.min(keys::first_of(bucket + 1) - 1);
            let ((first, last), (mut least, mut most)) = talk.path.columns(up, first, last);
            loop {
                let asked = (limit - turns.len() + 1 + MARGIN).min(STEP);
                let pick = if up { Pick::TurnsUp } else { Pick::TurnsDown };
                let key = (talk.row.id.0, bucket, least, most, i32::try_from(asked).unwrap_or(i32::MAX));
                let rows = self.cql.rows::<(i64, Option<Vec<u8>>)>(pick, key).await?;
                let all = rows.len() < asked;
                for (column, bytes) in rows {
                    (least, most) = if up { (column + 1, most) } else { (least, column - 1) };
                    if talk.path.counts(column).is_none() {
                        continue;
                    }
                    let (turn, _) = unturn(bytes)?;
                    if !turn.is_shown() {
                        continue;
                    }
                    if turns.len() == limit {
                        next = turns.last().map(|turn| turn.seq);
                        break 'reading;
                    }
                    turns.push(turn);
                }
                if all {
                    break;
                }
            }
            (low, high) = if up { (last + 1, high) } else { (low, first - 1) };
        }
        Ok(Page { rows: self.shown(talk, turns).await?, next })
    }

    /// Turns with what became of them, and their newest text.
    async fn shown(&self, talk: &Talk, turns: Vec<Turn>) -> PortResult<Vec<Shown>> {
        let seqs = || turns.iter().map(|turn| turn.seq);
        let (Some(low), Some(high)) = (seqs().min(), seqs().max()) else { return Ok(Vec::new()) };
        let ids: Vec<_> = turns.iter().map(|turn| turn.message.id).collect();
        let (mut states, mut changes) = futures::try_join!(self.states_of(&ids), self.changes(talk, low, high))?;
        let show = |turn: Turn| {
            let state = states.remove(&turn.message.id).unwrap_or_default();
            let changes = changes.remove(&turn.seq).unwrap_or_default();
            Shown::of(turn, state, changes)
        };
        Ok(turns.into_iter().map(show).collect())
    }

    /// Edits and deletions of turns: those whose own turns count. Of the old ones, whose numbers stand bare, the turn that
    /// stands at the number tells.
    async fn changes(&self, talk: &Talk, low: u64, high: u64) -> PortResult<BTreeMap<u64, Vec<Change>>> {
        type Row = (i64, i64, Option<i64>, Option<Vec<u8>>);
        let (id, mut found) = (talk.row.id.0, Vec::<Row>::new());
        for bucket in keys::bucket(low)..=keys::bucket(high) {
            let key = (id, bucket, number(low), number(high));
            found.extend(self.cql.pages::<Row>(Pick::Changes, key).await?);
        }
        found.retain(|row| talk.path.counts(row.1).is_some_and(|by| by <= talk.row.last_seq));
        let mut versions = HashMap::<i64, Option<i64>>::new();
        let mut asked = BTreeMap::<i64, Vec<i64>>::new();
        for row in found.iter().filter(|row| Path::is_bare(row.1)) {
            asked.entry(keys::bucket(u64::try_from(row.1).unwrap_or(0))).or_default().push(row.1);
        }
        for (bucket, seqs) in asked {
            for seqs in seqs.chunks(100) {
                let key = (id, bucket, seqs.to_vec());
                versions.extend(self.cql.rows::<(i64, Option<i64>)>(Pick::TurnVersions, key).await?);
            }
        }
        let mut changes = BTreeMap::<u64, Vec<Change>>::new();
        for (of, by, version, change) in found {
            if !Path::is_bare(by) || versions.get(&by).copied().flatten() == version {
                let change = unblob(&change.unwrap_or_default()).map_err(|why| broken("changes", &why))?;
                changes.entry(u64::try_from(of).unwrap_or(0)).or_default().push(change);
            }
        }
        Ok(changes)
    }

    /// Where messages are said.
    pub(super) async fn spots(&self, ids: &[MessageId]) -> PortResult<HashMap<MessageId, (ConversationId, u64)>> {
        type Row = (uuid::Uuid, Option<uuid::Uuid>, Option<i64>, Option<Vec<u8>>);
        let found: Vec<Vec<Row>> = stream::iter(by_slot(ids))
            .map(|(slot, ids)| self.cql.rows::<Row>(Pick::Spots, (slot, ids)))
            .buffer_unordered(READS)
            .try_collect()
            .await?;
        let spot = |(id, conversation, turn, _): Row| {
            Some((MessageId(id), (ConversationId(conversation?), u64::try_from(turn?).unwrap_or(0))))
        };
        Ok(found.into_iter().flatten().filter_map(spot).collect())
    }

    /// The turn of a message, if it counts. Where it is said to be a late owner may have said last: it is looked for near
    /// that place then, as owners differ only in what they did while one of them was late.
    pub(super) async fn turn_of(
        &self,
        talk: &Talk,
        message: MessageId,
        seq: u64,
    ) -> PortResult<Option<(Turn, Vec<Spot>)>> {
        let kept = |seq| seq > talk.gone.0 && seq <= talk.row.last_seq;
        if kept(seq)
            && let Some(found) = self.turn_at(talk, seq).await?.filter(|(turn, _)| turn.message.id == message)
        {
            return Ok(Some(found));
        }
        let (low, high) = (seq.saturating_sub(NEAR).max(1), seq.saturating_add(NEAR).min(talk.row.last_seq));
        for bucket in keys::bucket(low)..=keys::bucket(high) {
            let near = (low.max(keys::first_of(bucket)), high.min(keys::first_of(bucket + 1) - 1));
            let (_, (least, most)) = talk.path.columns(false, near.0, near.1);
            let rows = self.cql.pages::<(i64, Option<Vec<u8>>)>(Pick::TurnsNear, (talk.row.id.0, bucket, least, most));
            for (column, bytes) in rows.await? {
                if talk.path.counts(column).is_some_and(kept) {
                    let found = unturn(bytes)?;
                    if found.0.message.id == message {
                        return Ok(Some(found));
                    }
                }
            }
        }
        Ok(None)
    }

    async fn around(&self, id: ConversationId, message: MessageId, limit: usize) -> PortResult<Option<Around>> {
        let limit = limit.max(1);
        let spot = self.spots(&[message]).await?.remove(&message);
        let Some((_, seq)) = spot.filter(|(of, _)| *of == id) else { return Ok(None) };
        let Some(talk) = self.talk(id).await? else { return Ok(None) };
        let Some((turn, _)) = self.turn_of(&talk, message, seq).await? else { return Ok(None) };
        let seq = turn.of.unwrap_or(turn.seq);
        let newest = self.thread(&talk, Order::Newest, Some(seq), limit);
        let oldest = self.thread(&talk, Order::Oldest, Some(seq.saturating_sub(1)), limit);
        let (newest, oldest) = futures::try_join!(newest, oldest)?;
        Ok(Some(Around::of(newest, oldest, limit)))
    }

    async fn said_one(&self, message: MessageId, spot: Option<(ConversationId, u64)>) -> PortResult<Option<Shown>> {
        let Some((id, seq)) = spot else { return Ok(None) };
        let Some(talk) = self.talk(id).await? else { return Ok(None) };
        match self.turn_of(&talk, message, seq).await? {
            Some((turn, _)) if turn.is_shown() => Ok(self.shown(&talk, vec![turn]).await?.pop()),
            _ => Ok(None),
        }
    }

    /// What goes of conversations with messages that retention removes.
    pub(super) async fn unsay(&self, partition: Partition, messages: &[std::sync::Arc<Message>]) -> PortResult<()> {
        let ids: Vec<_> = messages.iter().filter(|it| it.kind.conversation().is_some()).map(|it| it.id).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let mut last = HashMap::<ConversationId, u64>::new();
        for (id, seq) in self.spots(&ids).await?.into_values() {
            let known = last.entry(id).or_default();
            *known = (*known).max(seq);
        }
        let stamp = self.stamp(partition).await?;
        let mut rows = Vec::with_capacity(last.len());
        for (id, seq) in last {
            let Some(talk) = self.talk(id).await? else { continue };
            let Some((turn, _)) = self.turn_at(&talk, seq).await? else { continue };
            let now: Gone = talk.gone.max((seq, turn.to_mobile, turn.to_business));
            if now != talk.gone {
                rows.push(Write::new(Pick::TalkGone, vec![Uuid(id.0), Blob(blob(&now)), BigInt(stamp)]));
            }
        }
        self.cql.send_all(rows).await
    }

    async fn list(&self, user: &UserId) -> PortResult<Vec<(ByActivity, bool, i64)>> {
        type Row = (uuid::Uuid, Option<bool>, Option<i64>, Option<i64>);
        let rows = self.cql.pages::<Row>(Pick::List, (user.to_string(),)).await?;
        let place = |(id, archived, at, unread): Row| {
            let place = ByActivity { last_at: Timestamp(at?), id: ConversationId(id) };
            Some((place, archived.unwrap_or(false), unread.unwrap_or(0)))
        };
        Ok(rows.into_iter().filter_map(place).collect())
    }
}

/// The side of a user, if it is there for it now.
fn side_of(row: &Conversation, user: &UserId) -> Option<Side> {
    row.side_of(user).filter(|side| row.user(*side) == *user)
}

#[async_trait]
impl Conversations for ScyllaHistory {
    async fn conversations(&self, ids: &[ConversationId]) -> PortResult<Vec<Option<Conversation>>> {
        let found = self.shared.talks_of(ids.to_vec()).await?;
        Ok(found.into_iter().map(|talk| talk.map(|talk| talk.row)).collect())
    }

    async fn owned(&self, asked: &[(ConversationId, Vec<Inbox>)]) -> PortResult<Vec<Option<Conversation>>> {
        let owned = self.shared.owned();
        self.shared.taken(asked, &owned).await
    }

    async fn counted(&self, asked: &[(ConversationId, MessageId)]) -> PortResult<Vec<Option<Counted>>> {
        let owned = self.shared.owned();
        self.shared.counted(asked, &owned).await
    }

    async fn by_user(
        &self,
        user: &UserId,
        archived: bool,
        from: Option<ByActivity>,
        limit: usize,
    ) -> PortResult<Page<Conversation, ByActivity>> {
        let limit = limit.max(1);
        let order = |place: &ByActivity| (std::cmp::Reverse(place.last_at), place.id);
        let mut places: Vec<ByActivity> =
            self.shared.list(user).await?.into_iter().filter(|row| row.1 == archived).map(|row| row.0).collect();
        places.sort_by_key(order);
        if let Some(from) = from {
            places.retain(|place| order(place) > order(&from));
        }
        let (mut rows, mut last) = (Vec::with_capacity(limit.min(places.len())), None);
        let mut rest = places.as_slice();
        while rows.len() < limit && !rest.is_empty() {
            let (some, later) = rest.split_at((limit - rows.len()).min(rest.len()));
            let found = self.shared.talks_of(some.iter().map(|place| place.id).collect()).await?;
            // A place may be ahead of its row, which is being written, or a late owner's.
            let fits = |row: &Conversation| side_of(row, user).is_some_and(|side| row.half(side).archived == archived);
            rows.extend(found.into_iter().flatten().map(|talk| talk.row).filter(fits));
            (last, rest) = (some.last().copied(), later);
        }
        Ok(Page { rows, next: last.filter(|_| !rest.is_empty()) })
    }

    async fn turns(
        &self,
        id: ConversationId,
        order: Order,
        from: Option<u64>,
        limit: usize,
    ) -> PortResult<Page<Shown, u64>> {
        match self.shared.talk(id).await? {
            Some(talk) => self.shared.thread(&talk, order, from, limit).await,
            None => Ok(Page { rows: Vec::new(), next: None }),
        }
    }

    async fn around(&self, id: ConversationId, message: MessageId, limit: usize) -> PortResult<Option<Around>> {
        self.shared.around(id, message, limit).await
    }

    async fn said(&self, ids: &[MessageId]) -> PortResult<Vec<Option<Shown>>> {
        let spots = self.shared.spots(ids).await?;
        let asked: Vec<_> = ids.iter().map(|id| (*id, spots.get(id).copied())).collect();
        stream::iter(asked).map(|(id, spot)| self.shared.said_one(id, spot)).buffered(READS).try_collect().await
    }

    async fn unread_total(&self, user: &UserId) -> PortResult<u64> {
        let waiting = self.shared.list(user).await?.into_iter().filter(|row| row.2 > 0).map(|row| row.0.id);
        let found = self.shared.talks_of(waiting.collect()).await?;
        let unread = |Talk { row, .. }| side_of(&row, user).map_or(0, |side| row.half(side).unread());
        Ok(found.into_iter().flatten().map(unread).sum())
    }

    /// A place is written whenever its row is, with the row's version as its time. A list without the rows: one request,
    /// where the list itself takes one more for each of them.
    async fn list_mark(&self, user: &UserId, archived: bool, limit: usize) -> PortResult<Option<ListMark>> {
        type Row = (uuid::Uuid, Option<bool>, Option<i64>, Option<i64>);
        let rows = self.shared.cql.pages::<Row>(Pick::ListMarks, (user.to_string(),)).await?;
        let (mut mark, mut places) = (xxhash_rust::xxh3::Xxh3::new(), Vec::new());
        for (id, put_away, at, written) in rows {
            let (put_away, Some(at), Some(written)) = (put_away.unwrap_or(false), at, written) else { continue };
            mark.update(id.as_bytes());
            mark.update(&written.to_be_bytes());
            if put_away == archived {
                let id = ConversationId(id);
                let version = Version(u64::try_from(written).unwrap_or(0));
                places.push((ByActivity { last_at: Timestamp(at), id }, version));
            }
        }
        places.sort_by_key(|(place, _)| (std::cmp::Reverse(place.last_at), place.id));
        places.truncate(limit);
        let rows = places.into_iter().map(|(place, version)| (place.id, version)).collect();
        Ok(Some(ListMark { mark: mark.digest(), rows }))
    }
}
