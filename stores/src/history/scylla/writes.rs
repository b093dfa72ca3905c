//! What a round of recording writes: entries with what leads to them, and the rows of the due-table.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use schemas::{
    Conversation, ConversationId, Epoch, Inbox, MessageId, Partition, Position, Reason, State, Timestamp, UserId,
    port::{Due, DueKind, Entry, PortError, PortResult, Schedule},
};
use scylla::value::CqlValue::{self, BigInt, Blob, Int, Text, Uuid};

use super::{
    conversations::{self, Spot, Stand},
    counts::Counted,
    due,
    facts::{self, counts_as_unread},
    keys, notes, retention,
    rows::{EntryHead, Ledger, Place, PlaceHead, blob, is_notice, is_own},
    session::Write,
    shared::{Known, Shared},
    statements::Pick,
};

/// How many shards a week of a partition's inboxes has: with a million inboxes each is a few megabytes.
pub(super) const SHARDS: i32 = 16;
const WEEK_MS: i64 = 7 * 24 * 3_600_000;

/// A row, and the CQL partition in which its order counts: that of an inbox and its bucket.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) inbox: Option<(String, i64)>,
    pub(super) row: Write,
}

/// What a round writes, and what is to be remembered when it stands.
#[derive(Default)]
pub(super) struct Plan {
    /// First, what inboxes count of entries that are recorded with their end.
    pub(super) ledgers: Vec<Write>,
    /// Then how those entries ended: who reads the entry finds its state.
    pub(super) ends: Vec<Vec<Write>>,
    /// Then turns and what leads to them, and places in lists.
    pub(super) turns: Vec<Vec<Write>>,
    /// With them rows of the due-table, and what leads to entries: an owner that dies here leaves no entry that is not found
    /// by its id, does not expire or that retention does not come by, and no scheduled message that is known and never sent.
    pub(super) leads: Vec<Write>,
    /// Then the rows of conversations, which never say more than there is.
    pub(super) talks: Vec<Write>,
    /// Partitions with entries for users whom the row of their conversation did not name before: a newer owner that sealed that
    /// row has not sealed their inboxes. It is looked before those entries are written whether there is one; who takes over
    /// after that look reads a row that names them, or turns that say where to look.
    pub(super) strangers: BTreeSet<Partition>,
    /// Then entries, and scheduled messages under their ids: an inbox has no message whose thread lacks it.
    pub(super) units: Vec<Unit>,
    pub(super) after: After,
}

/// See [`Plan`].
#[derive(Default)]
pub(super) struct After {
    marks: Vec<(String, i64)>,
    kept: i64,
    due: i64,
    states: Vec<(MessageId, State)>,
    stands: Vec<(ConversationId, Partition, Stand)>,
}

/// The week of a time.
pub(super) fn week(at: Timestamp) -> i64 {
    at.0.div_euclid(WEEK_MS)
}

/// The first moment after a week.
pub(super) fn week_end(week: i64) -> Timestamp {
    Timestamp(week.saturating_add(1).saturating_mul(WEEK_MS))
}

/// The name of a partition's list of weeks.
pub(super) fn weeks(partition: Partition) -> String {
    format!("active/{}", partition.0)
}

/// The shard of an inbox.
pub(super) fn shard(inbox: &str) -> i32 {
    (xxhash_rust::xxh3::xxh3_64(inbox.as_bytes()) % SHARDS as u64) as i32
}

/// What is to be written of these calls. The caller holds the ledgers if an entry brings its end.
pub(super) async fn plan(shared: &Shared, entries: &[&Entry], schedules: &[&Schedule]) -> PortResult<Plan> {
    let mut plan = Plan { units: Vec::with_capacity(entries.len() + 1), ..Plan::default() };
    if entries.iter().any(|entry| entry.end.is_some()) {
        plan.ended(shared, entries).await?;
    }
    for entry in entries {
        plan.entry(shared, entry);
    }
    for schedule in schedules {
        if !schedule.add.is_empty() {
            plan.add_all(shared, schedule).await?;
        }
    }
    if schedules.iter().any(|schedule| !schedule.conversations.is_empty()) {
        plan.conversations(shared, entries, schedules).await?;
    }
    if schedules.iter().any(|schedule| !schedule.completed.is_empty()) {
        plan.completed(shared, entries, schedules);
    }
    Ok(plan)
}

/// Where the entries of each turn stand.
fn spots(entries: &[&Entry]) -> HashMap<MessageId, Vec<Spot>> {
    let mut spots = HashMap::<_, Vec<Spot>>::new();
    for entry in entries.iter().filter(|entry| entry.seq.is_some()) {
        let copy = (!is_own(entry)).then(|| entry.inbox.user.clone());
        spots.entry(entry.message.id).or_default().push((copy, entry.position));
    }
    spots
}

/// See [`Plan::strangers`]. Of a row that may stand already, from an attempt that failed, nothing is known of the one before.
fn strangers<'a>(
    rows: impl Iterator<Item = &'a Conversation>,
    stands: &HashMap<ConversationId, Stand>,
    entries: &[&Entry],
) -> BTreeSet<Partition> {
    let mut named = HashMap::<ConversationId, Vec<UserId>>::new();
    for row in rows {
        named.entry(row.id).or_insert_with(|| match stands.get(&row.id) {
            Some(before) if before.version < row.version => before.users.to_vec(),
            Some(_) => Vec::new(),
            None => vec![row.pair.mobile(), row.pair.business()],
        });
    }
    let stranger = |entry: &&&Entry| {
        let conversation = entry.message.kind.conversation();
        let named = conversation.and_then(|id| named.get(&id));
        named.is_some_and(|users| !users.contains(&entry.inbox.user))
    };
    entries.iter().filter(stranger).map(|entry| entry.inbox.partition).collect()
}

/// From where an owner goes on in an inbox.
pub(super) fn fork_row(name: &str, first: Position, prev: Position, stamp: i64) -> Write {
    let ((n, epoch), (_, prev)) = (keys::columns(first), keys::columns(prev));
    Write::new(Pick::Fork, vec![Text(name.to_owned()), Int(epoch), BigInt(n), Int(prev), BigInt(stamp)])
}

fn place_row(shared: &Shared, entry: &Entry, stamp: i64) -> Write {
    let (n, epoch) = keys::columns(entry.position);
    let message = &entry.message;
    let head =
        PlaceHead { recorded_at: entry.recorded_at, fingerprint: message.fingerprint, notice: is_notice(message) };
    let place = [
        BigInt(keys::slot(message.id)),
        Uuid(message.id.0),
        Text(keys::inbox(&entry.inbox)),
        Int(epoch),
        BigInt(n),
        Blob(blob(&head)),
        Int(shared.ttl),
        BigInt(stamp),
    ];
    Write::new(Pick::Place, place.into())
}

impl Plan {
    /// The states of entries that have ended before they are recorded, with their places and what their inboxes count.
    async fn ended(&mut self, shared: &Shared, entries: &[&Entry]) -> PortResult<()> {
        let ended: Vec<&Entry> = entries.iter().copied().filter(|entry| entry.end.is_some() && is_own(entry)).collect();
        let ids: Vec<_> = ended.iter().map(|entry| entry.message.id).collect();
        let mut places = shared.places(&ids).await?;
        shared.without_gone(&mut places).await?;
        let mut heads = shared.heads(ended.iter().map(|entry| entry.inbox.clone()).collect()).await?;
        shared.catch_up(&mut heads).await?;
        let mut ledgers = BTreeMap::<String, (Ledger, i64)>::new();
        for entry in ended {
            let Some(end) = &entry.end else { continue };
            let id = entry.message.id;
            let stamp = shared.stamps.next(entry.position.epoch);
            let Place { position, mut state, .. } = places.remove(&id).unwrap_or_default();
            // Recorded before: it is counted, and by what was known of it then.
            let before = position.is_none() || counts_as_unread(&state);
            state.merge(end.clone());
            self.ends.push(vec![place_row(shared, entry, stamp), facts::state_row(shared, id, &state, stamp)]);
            if is_notice(&entry.message) {
                let head = || heads.get(&entry.inbox).map(|head| head.ledger.clone()).unwrap_or_default();
                let (ledger, latest) = ledgers.entry(keys::inbox(&entry.inbox)).or_insert_with(|| (head(), stamp));
                *latest = stamp;
                ledger.count(id, before, counts_as_unread(&state));
            }
            let placed = Place { position: Some(entry.position), state: state.clone(), ..Place::default() };
            places.insert(id, placed);
            self.after.states.push((id, state));
        }
        self.ledgers.extend(ledgers.into_iter().map(|(name, (ledger, stamp))| facts::ledger_row(name, &ledger, stamp)));
        Ok(())
    }

    fn entry(&mut self, shared: &Shared, entry: &Entry) {
        let Entry { position, prev, .. } = entry;
        let (n, epoch) = keys::columns(*position);
        let (name, bucket) = (keys::inbox(&entry.inbox), keys::bucket(position.n));
        let stamp = shared.stamps.next(position.epoch);
        if prev.epoch != position.epoch {
            self.leads.push(fork_row(&name, *position, *prev, stamp));
        }
        if bucket > 0 && keys::first_of(bucket) == position.n {
            self.leads.push(Write::new(Pick::Bucket, vec![Text(name.clone()), BigInt(bucket), BigInt(stamp)]));
        }
        if !shared.mine.lock().contains_key(&entry.inbox.partition) {
            shared.met(entry.inbox.partition, position.epoch);
        }
        if is_own(entry) {
            self.leads.push(place_row(shared, entry, stamp));
            self.after.kept += 1;
        }
        let row = [
            Text(name.clone()),
            BigInt(bucket),
            BigInt(n),
            Int(epoch),
            Blob(blob(&EntryHead::of(entry))),
            Blob(blob(&entry.message)),
            Int(shared.ttl),
        ];
        self.active(shared, &entry.inbox, &name, entry.recorded_at);
        self.units.push(Unit { inbox: Some((name, bucket)), row: Write::new(Pick::Entry, row.into()) });
    }

    /// Says, once a week, that this inbox was written to.
    fn active(&mut self, shared: &Shared, inbox: &Inbox, name: &str, at: Timestamp) {
        let week = week(at);
        let key = (name.to_owned(), week);
        if self.after.marks.contains(&key) || shared.marks.lock().get(&key).is_some() {
            return;
        }
        let partition = i32::from(inbox.partition.0);
        let row = vec![Int(partition), BigInt(week), Int(shard(name)), Text(name.to_owned())];
        self.leads.push(Write::new(Pick::Active, row));
        self.after.marks.push(key);
        self.bucket(shared, weeks(inbox.partition), week);
    }

    fn bucket(&mut self, shared: &Shared, name: String, bucket: i64) {
        shared.mark(name.clone(), bucket, &mut self.leads);
        self.after.marks.push((name, bucket));
    }

    async fn add_all(&mut self, shared: &Shared, schedule: &Schedule) -> PortResult<()> {
        let asked: Vec<_> = schedule.add.iter().filter(|due| due.is_send()).map(|due| due.id).collect();
        let mut places = if asked.is_empty() { Default::default() } else { shared.places(&asked).await? };
        let gone = shared.without_gone(&mut places).await?;
        // A place proves nothing: who gave it may have died before the entry stood.
        let placed = places.iter().filter(|(_, place)| place.position.is_some());
        let placed: HashMap<_, _> = placed.map(|(id, place)| (*id, place.clone())).collect();
        let ids: Vec<_> = placed.keys().copied().collect();
        let known = shared.known_by(&ids, placed).await?;
        let stands =
            ids.into_iter().zip(&known).filter(|(_, known)| known.as_ref().is_some_and(|k| k.position.is_some()));
        let recorded: HashSet<_> = stands.map(|(id, _)| id).collect();
        for due in &schedule.add {
            if recorded.contains(&due.id) && due.is_send() {
                // It was sent meanwhile, so it must not come up again.
                continue;
            }
            let epoch = schedule.epochs.iter().find(|(partition, _)| *partition == due.partition);
            let stamp = match epoch {
                Some((_, epoch)) => shared.stamps.next(*epoch),
                None => shared.owner_stamp(due.partition).await?,
            };
            if gone.contains(&due.id) && due.is_send() {
                // Its key was another message's, of which retention left this row.
                self.leads.push(retention::forget_row(due.id, stamp - 1));
            }
            self.add(shared, due, places.get(&due.id), stamp);
        }
        Ok(())
    }

    /// Rows of conversations, with their turns and their places in lists.
    async fn conversations(&mut self, shared: &Shared, entries: &[&Entry], schedules: &[&Schedule]) -> PortResult<()> {
        let rows = || schedules.iter().flat_map(|schedule| &schedule.conversations);
        let mut stands = shared.stands(rows().map(|row| row.id).collect()).await?;
        self.strangers = strangers(rows(), &stands, entries);
        let spots = spots(entries);
        let mut last = BTreeMap::<ConversationId, &Conversation>::new();
        for schedule in schedules {
            let mut passed = HashSet::new();
            for row in &schedule.conversations {
                let before = stands.get(&row.id);
                if before.is_some_and(|before| before.version >= row.version) {
                    passed.insert(row.id);
                    continue;
                }
                passed.remove(&row.id);
                self.turns.push(conversations::listed(row, before));
                let mut path = before.map(|before| before.path.clone()).unwrap_or_default();
                let turns = schedule.turns.iter().filter(|turn| turn.conversation == row.id);
                let first = turns.map(|turn| turn.seq).min().unwrap_or(row.last_seq + 1);
                path.take(row.version.epoch(), if before.is_some() { first } else { 1 });
                stands.insert(row.id, Stand::of(row, path));
                last.insert(row.id, row);
            }
            for turn in schedule.turns.iter().filter(|turn| !passed.contains(&turn.conversation)) {
                let epoch = turn.version.epoch();
                let here = spots.get(&turn.message.id).map_or(&[][..], Vec::as_slice);
                self.turns.push(conversations::turn_rows(turn, here, shared.ttl, shared.stamps.next(epoch)));
            }
        }
        for (id, row) in last {
            let Some(stand) = stands.remove(&id) else { continue };
            self.talks.push(notes::row(row, &stand.path, &notes::of(entries, id), row.version));
            self.after.stands.push((id, row.partition, stand));
        }
        Ok(())
    }

    /// Turns of older owners that have their missing entries here say so before these are written, so that the next owner looks
    /// for them here. Where the older owner meant them to be none will ever stand: the inbox was sealed.
    fn completed(&mut self, shared: &Shared, entries: &[&Entry], schedules: &[&Schedule]) {
        let spots = spots(entries);
        for (partition, turn) in schedules.iter().flat_map(|schedule| &schedule.completed) {
            // A newer owner may have read where the entries were to stand before, and seal their inboxes after these are written.
            self.strangers.insert(*partition);
            let Some(here) = spots.get(&turn.message.id) else { continue };
            let own = here.iter().map(|(_, at)| at.epoch).max().unwrap_or_default();
            self.turns.push(vec![conversations::turn_row(turn, here, shared.ttl, turn.version.under(own))]);
        }
    }

    fn add(&mut self, shared: &Shared, due: &Due, place: Option<&Place>, stamp: i64) {
        let value = match &due.kind {
            DueKind::Expire { inbox, position, .. } => blob(&(inbox, position)),
            DueKind::Send(message) => {
                let place = place.filter(|place| place.head.is_some());
                if place.is_some_and(|place| place.state.reason() == Some(Reason::Cancelled)) {
                    // Meanwhile.
                    return;
                }
                // Otherwise this is a repetition.
                if place.is_none_or(|place| place.body.is_none()) {
                    let waits = due.at.ms_since(shared.clock.wall()) / 1_000;
                    let ttl = i32::try_from(waits).unwrap_or(i32::MAX / 2).saturating_add(shared.ttl);
                    let head = PlaceHead {
                        recorded_at: shared.clock.wall(),
                        fingerprint: message.fingerprint,
                        notice: is_notice(message),
                    };
                    let inbox = Inbox { user: message.to.clone(), partition: due.partition };
                    let row = [
                        BigInt(keys::slot(due.id)),
                        Uuid(due.id.0),
                        Text(keys::inbox(&inbox)),
                        Blob(blob(&head)),
                        Blob(blob(message)),
                        // Twenty years are the longest that a server takes.
                        Int(ttl.min(600_000_000)),
                        BigInt(stamp),
                    ];
                    self.units.push(Unit { inbox: None, row: Write::new(Pick::Scheduled, row.into()) });
                    self.after.kept += 1;
                }
                Vec::new()
            }
        };
        let bucket = due::bucket(due.at);
        self.leads.push(due_row(due::name(due.partition), due, value, stamp));
        // Remembered only where it is not past: who sweeps takes past buckets away.
        if due::is_past(bucket, shared.clock.wall()) {
            self.leads.push(Write::new(Pick::AddBucket, vec![Text(due::name(due.partition)), BigInt(bucket)]));
        } else {
            self.bucket(shared, due::name(due.partition), bucket);
        }
        due::added(shared, due);
        self.after.due += 1;
    }
}

/// Takes rows of the due-table away that were done with, once everything else of their call stands. An owner that was
/// overtaken before that takes none: the newer one may not have seen what came of them. One that is overtaken only now may,
/// as the newer one reads the ends of its inboxes afterwards. `asked` are write times of when it was asked for: what was
/// written anew since stays.
pub(super) async fn take(
    shared: &Shared,
    entries: &[Entry],
    schedule: &Schedule,
    asked: &[(Partition, i64)],
) -> PortResult<()> {
    if schedule.done.is_empty() {
        return Ok(());
    }
    let partitions: HashSet<Partition> = schedule.done.iter().map(|due| due.partition).collect();
    for (partition, epoch) in schedule.epochs.iter().filter(|(partition, _)| partitions.contains(partition)) {
        let newest = shared.look_at(*partition).await?;
        if newest > *epoch {
            return Err(overtaken(*partition, newest, *epoch));
        }
    }
    let ids: Vec<_> = schedule.done.iter().filter(|due| due.is_send()).map(|due| due.id).collect();
    let places = if ids.is_empty() { Default::default() } else { shared.places(&ids).await? };
    let recorded: HashSet<MessageId> = entries.iter().map(|entry| entry.message.id).collect();
    let (mut rows, mut kept) = (Vec::with_capacity(schedule.done.len()), 0);
    for due in &schedule.done {
        let stamp = match asked.iter().find(|(partition, _)| *partition == due.partition) {
            Some((_, stamp)) => *stamp,
            None => shared.owner_stamp(due.partition).await?,
        };
        rows.push(due_gone(due::name(due.partition), due.at, due.id, due::kind(&due.kind), stamp));
        let Some(place) = places.get(&due.id).filter(|place| place.body.is_some()) else { continue };
        if recorded.contains(&due.id) {
            // It was counted when it was scheduled, and again when it was recorded.
            kept -= 1;
        } else if place.position.is_none() {
            // Cancelled before its time: it is still found by its id until retention comes by.
            rows.extend(loose(shared, due.partition, due.at, due.id, stamp));
        }
    }
    shared.cql.send_all(rows).await?;
    shared.counts.add(Counted::Due, -(schedule.done.len() as i64));
    shared.counts.add(Counted::Kept, kept);
    Ok(())
}

/// What an overtaken owner is told.
pub(super) fn overtaken(partition: Partition, newest: Epoch, epoch: Epoch) -> PortError {
    let (newest, epoch) = (newest.0, epoch.0);
    PortError::Fenced(format!("partition {partition} is in epoch {newest}, and this was written in {epoch}"))
}

/// Rows that lead retention to an id without a place.
pub(super) fn loose(shared: &Shared, partition: Partition, at: Timestamp, id: MessageId, stamp: i64) -> Vec<Write> {
    let (name, bucket) = (due::loose(partition), due::bucket(at));
    let mut rows = Vec::with_capacity(2);
    shared.mark(name.clone(), bucket, &mut rows);
    shared.rounds.loosened(partition, at, id);
    let values = [
        Text(name),
        BigInt(bucket),
        BigInt(at.0),
        Blob(id.0.as_bytes().to_vec()),
        Int(0),
        Blob(Vec::new()),
        BigInt(stamp),
    ];
    rows.push(Write::new(Pick::Due, values.into()));
    rows
}

fn due_row(name: String, due: &Due, value: Vec<u8>, stamp: i64) -> Write {
    let id = Blob(due.id.0.as_bytes().to_vec());
    let kind = Int(due::kind(&due.kind));
    let values = vec![Text(name), BigInt(due::bucket(due.at)), BigInt(due.at.0), id, kind, Blob(value), BigInt(stamp)];
    Write::new(Pick::Due, values)
}

pub(super) fn due_gone(name: String, at: Timestamp, id: MessageId, kind: i32, stamp: i64) -> Write {
    let id: CqlValue = Blob(id.0.as_bytes().to_vec());
    Write::new(Pick::DueGone, vec![BigInt(stamp), Text(name), BigInt(due::bucket(at)), BigInt(at.0), id, Int(kind)])
}

/// Remembers what stands now. What a round of an earlier takeover wrote may be hidden, or another owner may have written since.
pub(super) fn done(shared: &Shared, entries: &[&Entry], schedules: &[&Schedule], after: After) {
    {
        let mut known = shared.known.lock();
        let mut states: HashMap<MessageId, State> = after.states.into_iter().collect();
        let ours = |entry: &&&Entry| shared.fence(entry.inbox.partition, entry.position.epoch).is_ok();
        for entry in entries.iter().filter(|entry| is_own(entry)).filter(ours) {
            let place = Some((entry.inbox.clone(), entry.position, is_notice(&entry.message)));
            match (known.get(&entry.message.id), states.remove(&entry.message.id)) {
                (_, Some(state)) => known.put(entry.message.id, Known { state, place }),
                // Facts may have come before it.
                (Some(there), None) => there.place = place,
                // One that was scheduled may have come to an end under an entry that does not stand: its row tells.
                (None, None) if entry.message.send_at.is_some() => {}
                (None, None) => known.put(entry.message.id, Known { state: State::default(), place }),
            }
        }
    }
    for due in schedules.iter().flat_map(|schedule| &schedule.add) {
        due::added(shared, due);
    }
    for (name, bucket) in after.marks {
        shared.marked(name, bucket);
    }
    let mut talks = shared.talks.lock();
    for (id, partition, stand) in after.stands {
        if shared.fence(partition, stand.version.epoch()).is_ok() {
            talks.put(id, stand);
        }
    }
    drop(talks);
    shared.rounds.note(entries);
    shared.counts.add(Counted::Kept, after.kept);
    shared.counts.add(Counted::Due, after.due);
}
