//! The recorder: what is recorded goes to the store in rounds.
//!
//! A round takes what waits, in the order in which it came, and sends it in few requests at once. While one is on its way
//! the next gathers, so that many small calls become few large requests; up to [`ROUNDS`] are on their way together, never
//! two that write to one inbox or conversation. Nothing of an inbox or a conversation is written after what failed there, until
//! that was repeated: so what stands in the store is at any moment a whole chain, and whoever takes over finds its end.
//!
//! A round that failed is repeated here, in its place, until it stands or its owner was overtaken; what comes after it waits. To
//! refuse what comes after it would leave the order to the callers, each of which tries again in its own time: of dozens that
//! wait only one could succeed, and which it is nobody of them knows. A caller that gives up and asks again takes its old place.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    panic::{AssertUnwindSafe, resume_unwind},
    sync::Arc,
    time::Duration,
};

use futures::future::{FutureExt as _, join_all, try_join_all};
use schemas::{
    ConversationId, Epoch, Inbox, Partition,
    port::{Entry, PortError, PortResult, Schedule},
};
use tokio::{
    sync::{mpsc, mpsc::WeakSender, oneshot, watch},
    task::{JoinError, JoinSet},
};

use super::{
    keys,
    session::{BYTES, ROWS, Write},
    shared::Shared,
    writes::{self, Unit},
};
use crate::fatal;

/// Calls that wait for their round; past that callers wait in line.
const WAITING: usize = 1_024;
/// Rounds on their way at once.
const ROUNDS: usize = 4;
/// Rounds that start with whatever waits; beyond that one starts with [`ENOUGH`]. A call that comes alone then waits for nobody.
const AT_ONCE: usize = 2;
/// Entries from which on a further round starts: they fill some requests.
const ENOUGH: usize = 24;
/// Entries of one round: what a store takes within one answer's time.
const MOST: usize = 1_200;
/// How long a round that failed waits before it is repeated: twice as long each time, up to the second.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

struct Job {
    entries: Vec<Entry>,
    schedule: Schedule,
    /// Write times of the moment in which it was asked for, of the partitions of [`Schedule::epochs`].
    asked: Vec<(Partition, i64)>,
    answer: oneshot::Sender<PortResult<()>>,
}

impl Job {
    fn size(&self) -> usize {
        let Schedule { add, done, conversations, turns, completed, epochs: _ } = &self.schedule;
        let chat = conversations.len() + turns.len() + completed.len();
        self.entries.len() + add.len() + done.len() + chat
    }

    /// Whether the other is the same call, made once more.
    fn is_repeated_by(&self, other: &Self) -> bool {
        let places = |job: &Self| job.entries.iter().map(|entry| entry.position).collect::<Vec<_>>();
        let first = |job: &Self| job.entries.first().map(|entry| entry.inbox.clone());
        self.answer.is_closed()
            && !self.entries.is_empty()
            && self.size() == other.size()
            && first(self) == first(other)
            && places(self) == places(other)
    }
}

/// What only one round at a time writes to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Touched {
    Inbox(Inbox),
    Talk(ConversationId),
}

fn touched(job: &Job) -> impl Iterator<Item = Touched> + '_ {
    let inboxes = job.entries.iter().map(|entry| Touched::Inbox(entry.inbox.clone()));
    inboxes.chain(job.schedule.conversations.iter().map(|row| Touched::Talk(row.id)))
}

/// The way in.
pub(super) struct Recorder {
    shared: Arc<Shared>,
    jobs: mpsc::Sender<Job>,
    fatal: watch::Receiver<Option<String>>,
}

impl Recorder {
    /// Starts it. It ends when the way in is dropped and what waits is written.
    pub(super) fn start(shared: Arc<Shared>) -> Self {
        let (sender, jobs) = mpsc::channel(WAITING);
        let (told, fatal) = watch::channel(None);
        tokio::spawn(watched(run(shared.clone(), jobs, sender.downgrade()), told));
        Self { shared, jobs: sender, fatal }
    }

    /// Says why, once nothing can be recorded any more: what was being written may stand in part, and only a start finds out.
    pub(super) fn fatal(&self) -> watch::Receiver<Option<String>> {
        self.fatal.clone()
    }

    /// Hands it over at the first poll; answers when it stands.
    pub(super) async fn record(&self, entries: &[Entry], schedule: &Schedule) -> PortResult<()> {
        let (answer, answered) = oneshot::channel();
        let stamp = |(partition, epoch): &(Partition, Epoch)| (*partition, self.shared.stamps.next(*epoch));
        let asked = if schedule.done.is_empty() { Vec::new() } else { schedule.epochs.iter().map(stamp).collect() };
        let job = Job { entries: entries.to_vec(), schedule: schedule.clone(), asked, answer };
        let gone = || PortError::Unavailable("the history is closed".into());
        // The runtime's budget would put some of many calls behind others that were polled after them.
        tokio::task::unconstrained(self.jobs.send(job)).await.map_err(|_| gone())?;
        answered.await.unwrap_or_else(|_| Err(PortError::Unknown("the write was cut off".into())))
    }
}

/// Runs the recorder, and tells where it panics: nobody would be answered any more.
async fn watched(recorder: impl Future<Output = ()>, told: watch::Sender<Option<String>>) {
    if AssertUnwindSafe(recorder).catch_unwind().await.is_err() {
        fatal::tell(&told, "the history's recorder panicked: the log has its last words");
    }
}

/// A round that panicked ends the recorder: what it held busy nobody could write to any more.
fn in_peace<T>(ended: Result<T, JoinError>) -> Option<T> {
    ended.map_err(|why| why.try_into_panic().map(|panic| resume_unwind(panic))).ok()
}

/// A round that ended: its jobs, and how.
type Ended = (Vec<Job>, PortResult<Vec<PortResult<()>>>);

async fn run(shared: Arc<Shared>, mut jobs: mpsc::Receiver<Job>, way_in: WeakSender<Job>) {
    let mut waiting = VecDeque::<Job>::new();
    let mut rounds = JoinSet::<Ended>::new();
    let mut busy = HashSet::<Touched>::new();
    let mut open = true;
    while open || !waiting.is_empty() || !rounds.is_empty() {
        let size: usize = waiting.iter().map(Job::size).sum();
        if rounds.len() < AT_ONCE || (rounds.len() < ROUNDS && size >= ENOUGH) {
            let taken = take(&shared, &mut waiting, &mut busy);
            if !taken.is_empty() {
                let (shared, way_in) = (Arc::clone(&shared), way_in.clone());
                rounds.spawn(async move {
                    let outcome = until_it_stands(&shared, &taken, &way_in).await;
                    (taken, outcome)
                });
                continue;
            }
        }
        tokio::select! {
            ended = rounds.join_next(), if !rounds.is_empty() => {
                if let Some((jobs, outcome)) = ended.and_then(in_peace) {
                    end(&shared, jobs, outcome, &mut busy);
                }
            }
            job = jobs.recv(), if open && waiting.len() < WAITING => match job {
                Some(job) => {
                    join(&mut waiting, job);
                    // What came together goes together.
                    while waiting.len() < WAITING && let Ok(job) = jobs.try_recv() {
                        join(&mut waiting, job);
                    }
                }
                None => open = false,
            },
        }
    }
}

/// Puts a job in line; one that repeats a job whose caller has gone takes its place.
fn join(waiting: &mut VecDeque<Job>, job: Job) {
    match waiting.iter_mut().find(|there| there.is_repeated_by(&job)) {
        Some(there) => *there = job,
        None => waiting.push_back(job),
    }
}

/// The jobs of the next round, in order, up to the first that must wait. Jobs that may not be written are answered.
fn take(shared: &Shared, waiting: &mut VecDeque<Job>, busy: &mut HashSet<Touched>) -> Vec<Job> {
    let (mut taken, mut size, mut fresh) = (Vec::new(), 0, HashSet::new());
    while let Some(job) = waiting.front() {
        let clash = !busy.is_empty() && touched(job).any(|it| busy.contains(&it));
        if clash || (size > 0 && size + job.size() > MOST) {
            break;
        }
        let Some(job) = waiting.pop_front() else { break };
        if let Err(why) = allowed(shared, &job.entries, &job.schedule) {
            shared.unconfirmed.ended(&job.entries, &job.schedule, false);
            // Who asked may have gone.
            let _ = job.answer.send(Err(why));
            continue;
        }
        size += job.size();
        fresh.extend(touched(&job));
        taken.push(job);
    }
    busy.extend(fresh);
    taken
}

/// Whether these are still of the newest owner that is known.
fn owned(shared: &Shared, entries: &[Entry], schedule: &Schedule) -> PortResult<()> {
    let of_entries = entries.iter().map(|entry| (entry.inbox.partition, entry.position.epoch));
    let mut all = of_entries.chain(schedule.epochs.iter().copied());
    all.try_for_each(|(partition, epoch)| shared.fence(partition, epoch))
}

/// Whether these may be written now.
fn allowed(shared: &Shared, entries: &[Entry], schedule: &Schedule) -> PortResult<()> {
    owned(shared, entries, schedule)?;
    shared.unconfirmed.allow(entries, schedule)
}

/// Answers the jobs of a round.
#[allow(clippy::needless_pass_by_value, reason = "they are done with here")]
fn end(shared: &Shared, jobs: Vec<Job>, outcome: PortResult<Vec<PortResult<()>>>, busy: &mut HashSet<Touched>) {
    for job in &jobs {
        for done in touched(job) {
            busy.remove(&done);
        }
        shared.unconfirmed.ended(&job.entries, &job.schedule, outcome.is_ok());
    }
    let mut answers = outcome.clone().unwrap_or_default().into_iter();
    for job in jobs {
        let answer = match (&outcome, answers.next()) {
            (Err(why), _) => Err(owned(shared, &job.entries, &job.schedule).err().unwrap_or_else(|| why.clone())),
            (Ok(_), answer) => answer.unwrap_or(Ok(())),
        };
        let _ = job.answer.send(answer);
    }
}

/// Writes a round, again and again while the store is away, unless it would be another owner's by now or nobody is left who
/// could ask.
async fn until_it_stands(shared: &Shared, jobs: &[Job], way_in: &WeakSender<Job>) -> PortResult<Vec<PortResult<()>>> {
    let mut pause = FIRST_PAUSE;
    loop {
        let outcome = round(shared, jobs).await;
        let Err(PortError::Unavailable(why) | PortError::Unknown(why)) = &outcome else { return outcome };
        let is_left = way_in.strong_count() == 0 && jobs.iter().all(|job| job.answer.is_closed());
        if is_left || jobs.iter().any(|job| owned(shared, &job.entries, &job.schedule).is_err()) {
            return outcome;
        }
        metrics::counter!("esh3ar_history_rounds_repeated_total").increment(1);
        if pause == FIRST_PAUSE {
            tracing::warn!(why, "a write to the history did not succeed and is repeated");
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

/// Writes a round; answers each of its jobs, and to one whose partition has a newer owner by now that it is not the owner any more.
async fn round(shared: &Shared, jobs: &[Job]) -> PortResult<Vec<PortResult<()>>> {
    let entries: Vec<&Entry> = jobs.iter().flat_map(|job| &job.entries).collect();
    let schedules: Vec<&Schedule> = jobs.iter().map(|job| &job.schedule).collect();
    let ended = entries.iter().filter(|entry| entry.end.is_some());
    let alone = shared.ledgers.hold(ended.map(|entry| keys::inbox(&entry.inbox))).await;
    let plan = writes::plan(shared, &entries, &schedules).await?;
    shared.cql.send_all(plan.ledgers).await?;
    shared.cql.send_units(plan.ends).await?;
    drop(alone);
    tokio::try_join!(shared.cql.send_units(plan.turns), shared.cql.send_all(plan.leads))?;
    shared.cql.send_all(plan.talks).await?;
    if !plan.strangers.is_empty() {
        try_join_all(plan.strangers.iter().map(|partition| shared.look_at(*partition))).await?;
        if jobs.iter().any(|job| owned(shared, &job.entries, &job.schedule).is_err()) {
            // Said to the others; those of the partition are told so.
            return Err(PortError::Unavailable("a partition was taken over while this was being written".into()));
        }
    }
    for wave in waves(plan.units, |units| shared.cql.cut(units)) {
        try_join_all(wave.into_iter().map(|request| shared.cql.insist(request))).await?;
    }
    writes::done(shared, &entries, &schedules, plan.after);
    let taken = join_all(jobs.iter().map(|job| writes::take(shared, &job.entries, &job.schedule, &job.asked))).await;
    shared.look_again().await;
    let owned = jobs.iter().map(|job| owned(shared, &job.entries, &job.schedule));
    Ok(taken.into_iter().zip(owned).map(|(taken, owned)| taken.and(owned)).collect())
}

/// Requests in waves: those of one wave go at once, the next when all of them stand. What is written to one inbox is in one
/// request as far as it fits and is in one CQL partition, and in order over the waves where it is not.
fn waves(units: Vec<Unit>, cut: impl Fn(Vec<Vec<Write>>) -> Vec<Vec<Write>>) -> Vec<Vec<Vec<Write>>> {
    let mut waves: Vec<Vec<Vec<Write>>> = Vec::new();
    let mut put = |wave: usize, piece: Vec<Write>| {
        if waves.len() <= wave {
            waves.resize_with(wave + 1, Vec::new);
        }
        if let Some(wave) = waves.get_mut(wave) {
            wave.push(piece);
        }
    };
    let (mut order, mut inboxes) = (Vec::new(), HashMap::<String, Vec<(i64, Write)>>::new());
    for Unit { inbox, row } in units {
        match inbox {
            None => put(0, vec![row]),
            Some((name, bucket)) => match inboxes.get_mut(&name) {
                Some(there) => there.push((bucket, row)),
                None => {
                    order.push(name.clone());
                    inboxes.insert(name, vec![(bucket, row)]);
                }
            },
        }
    }
    for rows in order.into_iter().filter_map(|name| inboxes.remove(&name)) {
        let (mut wave, mut open, mut bytes, mut at) = (0, Vec::<Write>::new(), 0, i64::MIN);
        for (bucket, row) in rows {
            let fits = bucket == at && bytes + row.weight <= BYTES && open.len() < ROWS;
            if !open.is_empty() && !fits {
                put(wave, std::mem::take(&mut open));
                (wave, bytes) = (wave + 1, 0);
            }
            (bytes, at) = (bytes + row.weight, bucket);
            open.push(row);
        }
        if !open.is_empty() {
            put(wave, open);
        }
    }
    waves.into_iter().map(cut).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use scylla::value::CqlValue;

    use super::*;
    use crate::history::scylla::{
        session::{self, PARTITIONS},
        statements::Pick,
    };

    fn unit(inbox: u8, bucket: i64, bytes: usize) -> Unit {
        let name = CqlValue::Text(format!("{inbox}"));
        let row = Write::new(Pick::Entry, vec![name, CqlValue::BigInt(bucket), CqlValue::Blob(vec![0; bytes])]);
        Unit { inbox: Some((format!("{inbox}"), bucket)), row }
    }

    #[tokio::test]
    async fn a_recorder_that_panics_is_told_of() {
        let (told, fatal) = watch::channel(None);
        watched(async {}, told.clone()).await;
        assert!(fatal.borrow().is_none());
        let mut rounds = JoinSet::<Ended>::new();
        rounds.spawn(async { panic!("as asked") });
        watched(async { drop(rounds.join_next().await.and_then(in_peace)) }, told).await;
        assert!(fatal.borrow().as_ref().is_some_and(|why| why.contains("panicked")));
    }

    proptest! {
        #[test]
        fn an_inbox_is_written_in_order_and_requests_are_bounded(
            units in proptest::collection::vec((0u8..5, 1usize..40_000), 1..120), crossing in 1usize..50,
        ) {
            let mut counts = [0usize; 5];
            let units: Vec<_> = units.into_iter().map(|(inbox, bytes)| {
                counts[usize::from(inbox)] += 1;
                unit(inbox, (counts[usize::from(inbox)] / crossing) as i64, bytes)
            }).collect();
            let total = units.len();
            let names: Vec<_> = units.iter().filter_map(|unit| unit.inbox.clone()).collect();
            // The weight stands for the partition.
            let waves = waves(units, |units| session::cut(units, |row| row.weight as u64));
            let mut sent = 0;
            let mut order = Vec::new();
            for wave in &waves {
                let mut at = HashMap::new();
                for (number, request) in wave.iter().enumerate() {
                    prop_assert!(request.len() == 1 || request.iter().map(|row| row.weight).sum::<usize>() <= BYTES);
                    prop_assert!(!request.is_empty() && request.len() <= ROWS);
                    let homes: HashSet<_> = request.iter().map(|row| row.weight).collect();
                    prop_assert!(homes.len() <= PARTITIONS || request.len() == 1);
                    for row in request {
                        sent += 1;
                        let key = (format!("{:?}", row.values[0]), format!("{:?}", row.values[1]));
                        // In one wave an inbox is in one request and one bucket, so it stands as one mutation.
                        let there = at.entry(key.0.clone()).or_insert((number, key.1.clone())).clone();
                        prop_assert_eq!(there, (number, key.1.clone()));
                        order.push(key);
                    }
                }
            }
            prop_assert_eq!(sent, total);
            for inbox in 0..5 {
                let name = format!("{inbox}");
                let asked: Vec<_> = names.iter().filter(|it| it.0 == name).map(|it| format!("{:?}", CqlValue::BigInt(it.1))).collect();
                let key = format!("{:?}", CqlValue::Text(name));
                let written: Vec<_> = order.iter().filter(|it| it.0 == key).map(|it| it.1.clone()).collect();
                prop_assert_eq!(asked, written);
            }
        }
    }
}
