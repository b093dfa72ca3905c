//! What a round of recording writes: entries with what leads to them, and the rows of the due-table.

use std::collections::HashSet;

use schemas::{
    Inbox, MessageId, Partition, Timestamp,
    port::{Due, DueKind, Entry, PortResult, Schedule},
};
use scylla::value::CqlValue::{self, BigInt, Blob, Int, Text, Uuid};

use super::{
    counts::Counted,
    due, keys,
    recorder::body,
    rows::{EntryHead, Place, PlaceHead, blob, is_notice},
    session::Write,
    shared::{Known, Shared},
    statements::Pick,
};

/// How many shards a week of a partition's inboxes has: with a million inboxes each is a few megabytes.
pub(super) const SHARDS: i32 = 16;
const WEEK_MS: i64 = 7 * 24 * 3_600_000;

/// Rows that go into one request.
#[derive(Debug)]
pub(super) struct Unit {
    /// The CQL partition whose order counts: an inbox and its bucket.
    pub(super) inbox: Option<(String, i64)>,
    pub(super) rows: Vec<Write>,
}

/// What a round writes, and what is to be remembered when it stands.
pub(super) struct Plan {
    pub(super) units: Vec<Unit>,
    pub(super) after: After,
}

/// See [`Plan`].
#[derive(Default)]
pub(super) struct After {
    marks: Vec<(String, i64)>,
    kept: i64,
    due: i64,
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

pub(super) async fn plan(shared: &Shared, entries: &[&Entry], schedules: &[&Schedule]) -> PortResult<Plan> {
    let mut plan = Plan { units: Vec::with_capacity(entries.len() + 1), after: After::default() };
    for entry in entries {
        plan.entry(shared, entry);
    }
    for schedule in schedules {
        if !schedule.add.is_empty() || !schedule.done.is_empty() {
            plan.schedule(shared, entries, schedule).await?;
        }
    }
    Ok(plan)
}

impl Plan {
    fn entry(&mut self, shared: &Shared, entry: &Entry) {
        let Entry { position, prev, message, .. } = entry;
        let (n, epoch) = keys::columns(*position);
        let (name, bucket) = (keys::inbox(&entry.inbox), keys::bucket(position.n));
        let stamp = shared.stamps.next(position.epoch);
        let mut rows = Vec::with_capacity(3);
        if prev.epoch != position.epoch {
            let prev = keys::columns(*prev).1;
            rows.push(Write::new(
                Pick::Fork,
                vec![Text(name.clone()), Int(epoch), BigInt(n), Int(prev), BigInt(stamp)],
            ));
        }
        if bucket > 0 && keys::first_of(bucket) == position.n {
            rows.push(Write::new(Pick::Bucket, vec![Text(name.clone()), BigInt(bucket), BigInt(stamp)]));
        }
        let head =
            PlaceHead { recorded_at: entry.recorded_at, fingerprint: message.fingerprint, notice: is_notice(message) };
        let place = [
            BigInt(keys::slot(message.id)),
            Uuid(message.id.0),
            Text(name.clone()),
            Int(epoch),
            BigInt(n),
            Blob(blob(&head)),
            Int(shared.ttl),
            BigInt(stamp),
        ];
        rows.push(Write::new(Pick::Place, place.into()));
        let row = [
            Text(name.clone()),
            BigInt(bucket),
            BigInt(n),
            Int(epoch),
            Blob(blob(&EntryHead::of(entry))),
            Blob(body(entry)),
            Int(shared.ttl),
        ];
        rows.push(Write::new(Pick::Entry, row.into()));
        self.active(shared, &entry.inbox, &name, entry.recorded_at, &mut rows);
        self.units.push(Unit { inbox: Some((name, bucket)), rows });
        self.after.kept += 1;
    }

    /// Says, once a week, that this inbox was written to.
    fn active(&mut self, shared: &Shared, inbox: &Inbox, name: &str, at: Timestamp, rows: &mut Vec<Write>) {
        let week = week(at);
        let key = (name.to_owned(), week);
        if self.after.marks.contains(&key) || shared.marks.lock().get(&key).is_some() {
            return;
        }
        let partition = i32::from(inbox.partition.0);
        let row = vec![Int(partition), BigInt(week), Int(shard(name)), Text(name.to_owned())];
        rows.push(Write::new(Pick::Active, row));
        self.after.marks.push(key);
        self.bucket(shared, weeks(inbox.partition), week, rows);
    }

    fn bucket(&mut self, shared: &Shared, name: String, bucket: i64, rows: &mut Vec<Write>) {
        shared.mark(name.clone(), bucket, rows);
        self.after.marks.push((name, bucket));
    }

    async fn schedule(&mut self, shared: &Shared, entries: &[&Entry], schedule: &Schedule) -> PortResult<()> {
        let sends = |due: &&Due| matches!(due.kind, DueKind::Send(_));
        let asked: Vec<_> = schedule.add.iter().chain(&schedule.done).filter(sends).map(|due| due.id).collect();
        let places = if asked.is_empty() { Default::default() } else { shared.places(&asked).await? };
        let recorded: HashSet<MessageId> = entries.iter().map(|entry| entry.message.id).collect();
        for due in &schedule.add {
            self.add(shared, due, places.get(&due.id)).await?;
        }
        for due in &schedule.done {
            self.take(shared, due, places.get(&due.id), recorded.contains(&due.id)).await?;
        }
        Ok(())
    }

    async fn add(&mut self, shared: &Shared, due: &Due, place: Option<&Place>) -> PortResult<()> {
        let stamp = shared.stamp(due.partition).await?;
        let mut rows = Vec::with_capacity(3);
        let value = match &due.kind {
            DueKind::Expire { inbox, position, .. } => blob(&(inbox, position)),
            DueKind::Send(message) => {
                if let Some(place) = place.filter(|place| place.head.is_some()) {
                    // It was sent or cancelled meanwhile, so it must not come up again; or this is a repetition.
                    if place.position.is_some() || place.state.status().is_settled() {
                        return Ok(());
                    }
                } else {
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
                    rows.push(Write::new(Pick::Scheduled, row.into()));
                    self.after.kept += 1;
                }
                Vec::new()
            }
        };
        let bucket = due::bucket(due.at);
        rows.push(due_row(due::name(due.partition), due, value, stamp));
        // Remembered only where it is not past: who sweeps takes past buckets away.
        if due::is_past(bucket, shared.clock.wall()) {
            rows.push(Write::new(Pick::AddBucket, vec![Text(due::name(due.partition)), BigInt(bucket)]));
        } else {
            self.bucket(shared, due::name(due.partition), bucket, &mut rows);
        }
        due::added(shared, due.partition, due.at);
        self.after.due += 1;
        self.units.push(Unit { inbox: None, rows });
        Ok(())
    }

    async fn take(&mut self, shared: &Shared, due: &Due, place: Option<&Place>, recorded: bool) -> PortResult<()> {
        let stamp = shared.stamp(due.partition).await?;
        let mut rows = vec![due_gone(due::name(due.partition), due.at, due.id, due::kind(&due.kind), stamp)];
        self.after.due -= 1;
        if let (DueKind::Send(_), Some(place)) = (&due.kind, place.filter(|place| place.body.is_some())) {
            if recorded {
                // It was counted when it was scheduled, and again when it was recorded.
                self.after.kept -= 1;
            } else if place.position.is_none() {
                // Cancelled before its time: it is still found by its id until retention comes by.
                rows.extend(loose(shared, due.partition, due.at, due.id, stamp));
            }
        }
        self.units.push(Unit { inbox: None, rows });
        Ok(())
    }
}

/// Rows that lead retention to an id without a place.
pub(super) fn loose(shared: &Shared, partition: Partition, at: Timestamp, id: MessageId, stamp: i64) -> Vec<Write> {
    let (name, bucket) = (due::loose(partition), due::bucket(at));
    let mut rows = Vec::with_capacity(2);
    shared.mark(name.clone(), bucket, &mut rows);
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

/// Remembers what stands now.
pub(super) fn done(shared: &Shared, entries: &[&Entry], schedules: &[&Schedule], after: After) {
    {
        let mut known = shared.known.lock();
        for entry in entries {
            let place = Some((entry.inbox.clone(), entry.position, is_notice(&entry.message)));
            match known.get(&entry.message.id) {
                // Facts may have come before it.
                Some(there) => there.place = place,
                None => known.put(entry.message.id, Known { state: Default::default(), place }),
            }
        }
    }
    for due in schedules.iter().flat_map(|schedule| &schedule.add) {
        due::added(shared, due.partition, due.at);
    }
    for (name, bucket) in after.marks {
        shared.marked(name, bucket);
    }
    shared.rounds.note(entries);
    shared.counts.add(Counted::Kept, after.kept);
    shared.counts.add(Counted::Due, after.due);
}
