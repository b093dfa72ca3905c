//! Retention: what is old goes, a bounded piece at a time, and never before its sender could be told.
//!
//! An inbox is emptied from its beginning: one mark says up to where, and its rows end by their time to live a week later, so
//! nothing is removed row by row. Which inboxes there are stands in lists by week; a round walks through those of the weeks that
//! have begun to be old ([`super::walk`]). What nobody has received stops its inbox until it is settled, and the next call visits
//! it again.
//!
//! The row of an id ends by its time to live too, unless the id was made of a key: a key may be used again once its message is
//! gone, and must find nothing of what had it before. Those rows are removed once the mark stands, with the mark's write time.
//! Who uses the key again was told that it is not known, which it is not from the mark on; so what it writes is later, and
//! stays.

use std::collections::HashMap;

use futures::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use schemas::{
    Inbox, MessageId, Partition, Sender, Timestamp,
    port::{Entry, Placed, PortResult},
};
use scylla::value::CqlValue::{BigInt, Blob, Int, Text, Uuid};

use super::{
    counts::Counted,
    due,
    due::index::{Key, Pass, WHOLE},
    facts, keys,
    reading::Found,
    rows::{Place, blob},
    session::Write,
    shared::{Head, READS, Shared},
    statements::Pick,
    walk::{LOOKS, Met, Stand, Walk},
    writes::{self, SHARDS},
};

/// A minute: entries may stay so much longer, against a retention of days, and the inboxes are walked through once a minute.
const STEP_MS: u64 = 60_000;

#[derive(Debug, Clone)]
struct Round {
    /// Where it goes on; `None`: it has ended.
    at: Option<Stand>,
    /// Up to which time it removes.
    before: Timestamp,
    /// The oldest entry that it left so far, or that was recorded since it began.
    oldest: Timestamp,
    /// Whether everything of the present week was old and is gone.
    clean: bool,
}

/// Ids whose messages are gone and whose rows are still to go, each with the write time of the mark that says so.
type Owed = HashMap<MessageId, i64>;

/// The rounds of all partitions: kept in memory, so that after a restart a first round learns again.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    rounds: Mutex<HashMap<Partition, Round>>,
    /// What a call that was given up, or failed, leaves to the next one.
    owed: Mutex<HashMap<Partition, Owed>>,
    /// Up to where buckets of ids without a place were emptied, and how wide a piece the servers read there.
    loose: Mutex<HashMap<(Partition, i64), (Key, u128)>>,
}

impl Rounds {
    /// Where to look for what is older than `before`. `None`: there is nothing to be found.
    fn begin(&self, partition: Partition, before: Timestamp) -> Option<Stand> {
        let mut rounds = self.rounds.lock();
        if let Some(round) = rounds.get(&partition) {
            if let Some(at) = &round.at {
                return Some(at.clone());
            }
            let just_looked = round.oldest >= round.before && before.ms_since(round.before) < STEP_MS;
            if round.oldest >= before || just_looked {
                return None;
            }
        }
        let start = Stand::before(i64::MIN);
        let round = Round { at: Some(start.clone()), before, oldest: Timestamp(i64::MAX), clean: true };
        rounds.insert(partition, round);
        Some(start)
    }

    fn end(&self, partition: Partition, at: Option<Stand>, oldest: Option<Timestamp>, clean: bool) {
        if let Some(round) = self.rounds.lock().get_mut(&partition) {
            round.at = at;
            round.oldest = round.oldest.min(oldest.unwrap_or(round.oldest));
            round.clean = clean;
        }
    }

    fn is_clean(&self, partition: Partition) -> bool {
        self.rounds.lock().get(&partition).is_some_and(|round| round.clean)
    }

    /// The mark stands that was written at this time: these ids are gone, and their rows are to go.
    fn owe(&self, partition: Partition, ids: impl Iterator<Item = MessageId>, stamp: i64) {
        self.owed.lock().entry(partition).or_default().extend(ids.map(|id| (id, stamp)));
    }

    fn owed(&self, partition: Partition) -> Owed {
        self.owed.lock().get(&partition).cloned().unwrap_or_default()
    }

    /// These are gone; one that became owed again since stays owed.
    fn paid(&self, partition: Partition, paid: &Owed) {
        if let Some(owed) = self.owed.lock().get_mut(&partition) {
            owed.retain(|id, stamp| paid.get(id) != Some(stamp));
        }
    }

    /// From where a bucket of ids without a place is looked at, and how wide a piece.
    fn loose(&self, partition: Partition, bucket: i64) -> (Key, u128) {
        let from = self.loose.lock().get(&(partition, bucket)).cloned();
        from.unwrap_or_else(|| (Key::first_at(i64::MIN), WHOLE))
    }

    /// What is behind this way is removed.
    fn passed(&self, partition: Partition, pass: &Pass) {
        let mut loose = self.loose.lock();
        let (floor, width) = loose.entry((partition, pass.bucket)).or_insert_with(|| (Key::first_at(i64::MIN), WHOLE));
        *width = pass.width;
        if let Some(reached) = &pass.reached {
            *floor = reached.clone();
        }
    }

    /// An id is left without a place: its row may stand before where its bucket is looked at.
    pub(super) fn loosened(&self, partition: Partition, at: Timestamp, id: MessageId) {
        if let Some((floor, _)) = self.loose.lock().get_mut(&(partition, due::bucket(at))) {
            let key = Key { at: at.0, id: id.0.as_bytes().to_vec(), kind: i32::MIN };
            *floor = key.min(floor.clone());
        }
    }

    /// A look came to the end of a bucket and found nothing.
    fn through(&self, partition: Partition, bucket: i64) {
        self.loose.lock().remove(&(partition, bucket));
    }

    /// Entries were recorded: what was learnt holds no longer if one of them is older.
    pub(super) fn note(&self, entries: &[&Entry]) {
        let mut rounds = self.rounds.lock();
        if rounds.is_empty() {
            return;
        }
        for entry in entries {
            if let Some(round) = rounds.get_mut(&entry.inbox.partition) {
                round.oldest = round.oldest.min(entry.recorded_at);
                round.clean = false;
            }
        }
    }
}

/// What one call comes to.
#[derive(Default)]
struct Sweep {
    unreached: Vec<Placed>,
    removed: i64,
    /// Entries and ids that may still be removed or returned.
    left: usize,
    oldest: Option<Timestamp>,
}

/// Whether retention has passed a place.
pub(super) fn is_gone(place: &Place, heads: &HashMap<Inbox, Head>) -> bool {
    let head = place.inbox.as_ref().and_then(|inbox| heads.get(inbox));
    head.zip(place.position).is_some_and(|(head, at)| at.n <= head.ledger.gone.n)
}

/// Takes the row of an id away, with all that was written of it up to this time.
pub(super) fn forget_row(id: MessageId, stamp: i64) -> Write {
    Write::new(Pick::Forget, vec![BigInt(stamp), BigInt(keys::slot(id)), Uuid(id.0)])
}

impl Shared {
    pub(super) async fn sweep(&self, partition: Partition, before: Timestamp, limit: usize) -> PortResult<Vec<Placed>> {
        self.pay(partition).await?;
        let mut sweep = Sweep { left: limit, ..Sweep::default() };
        self.placeless(partition, before, &mut sweep).await?;
        if let Some(at) = self.rounds.begin(partition, before) {
            let walk = self.walk(partition, before, at, &mut sweep).await?;
            let clean = walk.clean;
            self.rounds.end(partition, walk.end(), sweep.oldest, clean);
        }
        self.counts.add(Counted::Kept, -sweep.removed);
        if let Err(why) = self.pay(partition).await {
            // What the call removed is told all the same.
            tracing::debug!(%partition, %why, "rows of keys that are free again could not be removed yet");
        }
        Ok(sweep.unreached)
    }

    /// Removes the rows that are owed.
    async fn pay(&self, partition: Partition) -> PortResult<()> {
        let owed = self.rounds.owed(partition);
        if owed.is_empty() {
            return Ok(());
        }
        self.cql.send_all(owed.iter().map(|(id, stamp)| forget_row(*id, *stamp)).collect()).await?;
        self.rounds.paid(partition, &owed);
        let mut known = self.known.lock();
        for id in owed.keys() {
            // Once more: who asked for it meanwhile may have read its row.
            known.remove(id);
        }
        Ok(())
    }

    /// Takes the places out that retention has passed, and answers whose they are: what stands there until it is removed, or
    /// for good where an owner died before that, is not of who uses the key now.
    pub(super) async fn without_gone(&self, places: &mut HashMap<MessageId, Place>) -> PortResult<Vec<MessageId>> {
        let placed = places.values().filter(|place| place.position.is_some());
        let heads = self.heads(placed.filter_map(|place| place.inbox.clone()).collect()).await?;
        let gone: Vec<_> = places.iter().filter(|(_, place)| is_gone(place, &heads)).map(|(id, _)| *id).collect();
        let mut known = self.known.lock();
        for id in &gone {
            places.remove(id);
            known.remove(id);
        }
        Ok(gone)
    }

    /// Ids that never got a place: what was dropped, and what was cancelled before its time.
    async fn placeless(&self, partition: Partition, before: Timestamp, sweep: &mut Sweep) -> PortResult<()> {
        let name = due::loose(partition);
        for bucket in self.buckets(&name).await?.into_iter().filter(|bucket| *bucket <= due::bucket(before)) {
            let (from, width) = self.rounds.loose(partition, bucket);
            let is_whole = from == Key::first_at(i64::MIN);
            let mut pass = Pass::new(bucket, from, Key::first_at(before.0), width);
            let (mut is_empty, mut ended) = (true, false);
            while sweep.left > 0 && !ended {
                match self.due_piece(&name, &mut pass, sweep.left).await? {
                    Some(rows) if !rows.is_empty() => {
                        is_empty = false;
                        self.let_go(partition, &name, rows, sweep).await?;
                    }
                    Some(_) => {}
                    None => ended = true,
                }
                self.rounds.passed(partition, &pass);
            }
            if is_empty && ended && due::is_past(bucket, self.clock.wall()) && due::is_past(bucket, before) {
                if is_whole {
                    self.bucket_gone(&name, bucket).await?;
                }
                // Else the next call looks at the whole once more.
                self.rounds.through(partition, bucket);
            }
            if sweep.left == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Removes ids that never got a place, and the rows that lead to them.
    async fn let_go(&self, partition: Partition, name: &str, rows: Vec<due::Row>, sweep: &mut Sweep) -> PortResult<()> {
        let ids = rows.iter().map(|row| due::id(&row.1)).collect::<PortResult<Vec<_>>>()?;
        // Before it is looked: what is written from here on stays.
        let stamp = self.stamp(partition).await?;
        let places = self.places(&ids).await?;
        let mut writes = Vec::with_capacity(2 * rows.len());
        for (row, id) in rows.iter().zip(ids) {
            sweep.left -= 1;
            writes.push(writes::due_gone(name.to_owned(), Timestamp(row.0), id, row.2, stamp));
            match places.get(&id) {
                // It got a place after all and goes with its entry.
                Some(Place { position: Some(_), .. }) => {}
                // It is still to be sent; its row of the due-table leads to it.
                Some(place) if place.body.is_some() && !place.state.is_over() => {}
                place => {
                    sweep.removed += i64::from(place.is_some_and(|place| place.body.is_some()));
                    writes.push(forget_row(id, stamp));
                    self.known.lock().remove(&id);
                }
            }
        }
        self.cql.send_all(writes).await
    }

    /// Walks on through the inboxes of old weeks.
    async fn walk(&self, partition: Partition, before: Timestamp, from: Stand, sweep: &mut Sweep) -> PortResult<Walk> {
        let mut weeks = self.buckets(&writes::weeks(partition)).await?;
        weeks.retain(|week| *week <= writes::week(before));
        let mut walk = Walk::new(from, self.rounds.is_clean(partition), weeks);
        while let Some(at) = walk.list() {
            let here = (i32::from(partition.0), at.week, at.shard, &at.inbox, LOOKS);
            let inboxes = self.cql.rows::<(String,)>(Pick::ActiveFrom, here).await?;
            if !inboxes.is_empty() {
                let inboxes = inboxes.into_iter().map(|row| row.0).collect();
                self.page(inboxes, before, sweep, &mut walk).await?;
            } else if let Some(week) = walk.turn().filter(|week| writes::week_end(*week) <= before) {
                self.week_gone(partition, week).await?;
            }
        }
        Ok(walk)
    }

    /// Visits inboxes of the list that the walk is at.
    async fn page(
        &self,
        inboxes: Vec<String>,
        before: Timestamp,
        sweep: &mut Sweep,
        walk: &mut Walk,
    ) -> PortResult<()> {
        // Most have nothing to remove: that is found out many at once.
        let look = async |inbox: String| {
            let head = self.head(&inbox).await?;
            let first = self.gather(&inbox, &head, head.ledger.gone.n + 1, 1).await?;
            Ok::<_, schemas::port::PortError>((inbox, first.first().map(|first| first.head.recorded_at)))
        };
        let firsts: Vec<(String, Option<Timestamp>)> =
            stream::iter(inboxes).map(look).buffered(READS).try_collect().await?;
        for (inbox, first) in firsts {
            let met = match first {
                None => Met::Done,
                Some(first) if first >= before => {
                    walk.clean = false;
                    sweep.oldest = sweep.oldest.into_iter().chain([first]).min();
                    Met::Done
                }
                Some(_) if sweep.left == 0 => Met::Unseen,
                Some(_) => {
                    let (waiting, removed) = (sweep.unreached.len(), sweep.removed);
                    let finished = self.empty(&inbox, before, sweep, &mut walk.clean).await?;
                    let done = finished && sweep.unreached.len() == waiting;
                    if done { Met::Done } else { Met::Left { removed: sweep.removed != removed } }
                }
            };
            walk.met(inbox, met);
            if met == Met::Unseen {
                break;
            }
        }
        Ok(())
    }

    /// Empties one inbox as far as it may; `false`: the call's bound ended it.
    async fn empty(&self, name: &str, before: Timestamp, sweep: &mut Sweep, clean: &mut bool) -> PortResult<bool> {
        let Some(inbox) = keys::parse_inbox(name) else { return Ok(true) };
        // Settling writes back what is judged here.
        let _alone = self.ledgers.hold([name.to_owned()]).await;
        let head: Head = self.head(name).await?;
        let mut found = self.gather(name, &head, head.ledger.gone.n + 1, sweep.left + 1).await?;
        let ids: Vec<_> = found.iter().map(|found| found.message.id).collect();
        let states = self.states_of(&ids).await?;
        let old = found.partition_point(|found| found.head.recorded_at < before);
        let rest = found.split_off(old.min(sweep.left));
        let finished = rest.first().is_none_or(|found| found.head.recorded_at >= before);
        let mut oldest = rest.first().map(|found| found.head.recorded_at);
        let mut ledger = head.ledger.clone();
        let (mut stopped, mut said) = (false, Vec::new());
        for Found { position, head, message } in found {
            sweep.left -= 1;
            let state = states.get(&message.id).cloned().unwrap_or_default();
            // In chat a copy, and what one did for one's own other devices, waits for nobody's answer.
            let chat = message.kind.conversation().is_some();
            let is_copy = chat && inbox.user != message.to;
            let own = is_copy || (chat && message.from == Sender::User(inbox.user.party.clone()));
            if own && !stopped {
                (ledger.gone, ledger.gone_one_way) = (position, head.one_way);
                if !is_copy {
                    sweep.removed += 1;
                    said.push(message);
                }
            } else if !own && !state.is_over() {
                (stopped, oldest) = (true, oldest.into_iter().chain([head.recorded_at]).min());
                let super::rows::EntryHead { prev, recorded_at, .. } = head;
                let position = Some(position);
                sweep.unreached.push(Placed {
                    message,
                    inbox: inbox.clone(),
                    position,
                    prev,
                    recorded_at,
                    seq: None,
                    state,
                });
            } else if !stopped {
                (ledger.gone, ledger.gone_one_way) = (position, head.one_way);
                // What nobody can read any more is not unread.
                let unread = ledger.remove(message.id, facts::counts_as_unread(&state));
                ledger.seen += u64::from(head.is_notice() && unread);
                sweep.removed += 1;
                self.known.lock().remove(&message.id);
                said.push(message);
            } else {
                oldest = oldest.into_iter().chain([head.recorded_at]).min();
            }
        }
        // What ended by its time to live before it was read was not counted: nothing up to the mark is unread.
        ledger.seen = ledger.seen.max(ledger.gone_one_way);
        // Before the mark: what is removed once is not looked at again.
        self.unsay(inbox.partition, &said).await?;
        if ledger != head.ledger {
            // Of before the mark stands: a key is used again after that, so whatever is written of it then is later.
            let stamp = self.stamp(inbox.partition).await?;
            let mut rows =
                vec![Write::new(Pick::SetLedger, vec![Text(name.into()), Blob(blob(&ledger)), BigInt(stamp)])];
            for spent in head.forks.spent(ledger.gone.n) {
                let epoch = i32::try_from(spent.0).unwrap_or(i32::MAX);
                rows.push(Write::new(Pick::ForkGone, vec![BigInt(stamp), Text(name.into()), Int(epoch)]));
            }
            self.cql.send(&rows).await?;
            let keyed = said.iter().map(|message| message.id).filter(|id| keys::comes_again(*id));
            self.rounds.owe(inbox.partition, keyed, stamp);
        }
        *clean &= oldest.is_none();
        sweep.oldest = sweep.oldest.into_iter().chain(oldest).min();
        Ok(finished)
    }

    /// Everything that was written in this week is gone: its lists go too.
    async fn week_gone(&self, partition: Partition, week: i64) -> PortResult<()> {
        let gone = |shard| vec![Int(i32::from(partition.0)), BigInt(week), Int(shard)];
        let rows = (0..SHARDS).map(|shard| Write::new(Pick::ActiveGone, gone(shard))).collect();
        self.cql.send_all(rows).await?;
        self.bucket_gone(&writes::weeks(partition), week).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: Partition = Partition(1);
    const NOON: Timestamp = Timestamp(1_000_000_000);

    fn at(week: i64) -> Option<Stand> {
        Some(Stand { week, shard: 0, inbox: "x".into() })
    }

    #[test]
    fn nothing_is_looked_for_before_the_oldest_is_old() {
        let rounds = Rounds::default();
        assert!(rounds.begin(P, NOON).is_some());
        rounds.end(P, at(7), Some(NOON.plus_ms(90_000)), false);
        assert_eq!(rounds.begin(P, NOON), at(7), "a round goes on where it was");
        rounds.end(P, None, Some(NOON.plus_ms(100_000)), false);
        assert_eq!(rounds.begin(P, NOON.plus_ms(90_000)), None);
        assert!(rounds.begin(P, NOON.plus_ms(90_001)).is_some());
    }

    #[test]
    fn a_round_begins_once_a_minute_while_something_grows_old_all_the_time() {
        let rounds = Rounds::default();
        rounds.begin(P, NOON);
        rounds.end(P, None, Some(NOON.plus_ms(10)), false);
        assert_eq!(rounds.begin(P, NOON.plus_ms(59_999)), None);
        assert!(rounds.begin(P, NOON.plus_ms(60_000)).is_some());
    }

    #[test]
    fn what_is_owed_stays_owed_until_it_is_gone_up_to_its_own_time() {
        let (rounds, id) = (Rounds::default(), |n| MessageId(uuid::Uuid::from_u128(n)));
        rounds.owe(P, [id(1), id(2)].into_iter(), 5);
        let first = rounds.owed(P);
        assert_eq!(first, Owed::from([(id(1), 5), (id(2), 5)]));
        // The second one was used again, and is gone again.
        rounds.owe(P, [id(2)].into_iter(), 9);
        rounds.paid(P, &first);
        assert_eq!(rounds.owed(P), Owed::from([(id(2), 9)]));
        assert!(rounds.owed(Partition(2)).is_empty());
    }

    #[test]
    fn what_is_left_old_is_looked_for_at_once() {
        let rounds = Rounds::default();
        rounds.begin(P, NOON);
        rounds.end(P, None, Some(Timestamp(NOON.0 - 1)), false);
        assert!(rounds.begin(P, NOON).is_some(), "it waits to be settled");
    }
}
