//! Fencing: what an owner writes after a newer one has taken its partition over is refused, or never becomes part of an
//! inbox. Both kinds of store pass these cases: a late write may answer `Fenced` or `Ok`, and what is read afterwards is the
//! same.
//!
//! Each case takes over partitions that no other case writes to, and an owner reads the ends of its inboxes right after it
//! took over, as the pipeline does.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};

use proptest::prelude::*;
use schemas::{
    Epoch, Inbox, MessageId, Partition, Position, Timestamp, What,
    port::{Due, DueKind, Entry, History, Order, PortError, Schedule, Tail},
};

use super::{Installation, kit::*};

/// One owner of a partition, with a handle of its own and what it believes to be the ends of its inboxes.
struct Owner {
    history: Arc<dyn History>,
    partition: Partition,
    epoch: Epoch,
    tails: HashMap<Inbox, Tail>,
}

impl Owner {
    /// Takes the partition over, then reads the ends.
    async fn take(history: Arc<dyn History>, inboxes: &[&Inbox]) -> Self {
        let partition = inboxes[0].partition;
        let epoch = own(&*history, &[partition]).await[0];
        let inboxes: Vec<Inbox> = inboxes.iter().copied().cloned().collect();
        let tails = history.tails(&inboxes).await.unwrap();
        Self { history, partition, epoch, tails: inboxes.into_iter().zip(tails).collect() }
    }

    /// New entries after what it believes to be the end.
    fn next(&mut self, inbox: &Inbox, count: u64) -> Vec<Entry> {
        (0..count).map(|_| self.place(inbox, message(inbox))).collect()
    }

    fn place(&mut self, inbox: &Inbox, message: schemas::Message) -> Entry {
        let tail = self.tails.get_mut(inbox).expect("one of its inboxes");
        let (prev, one_way) = (tail.position, tail.one_way + 1);
        *tail = Tail { position: prev.next(self.epoch), one_way };
        entry(inbox, tail.position, prev, one_way, message)
    }

    /// As the owner of the moment: it must succeed.
    async fn write(&mut self, inbox: &Inbox, count: u64) -> Vec<Entry> {
        let written = self.next(inbox, count);
        record(&*self.history, &written).await;
        written
    }

    /// As one that was overtaken: refused, or taken and without effect.
    async fn write_late(&mut self, inbox: &Inbox, count: u64) -> Vec<Entry> {
        let written = self.next(inbox, count);
        late(&*self.history, &written, &Schedule::default()).await;
        written
    }

    fn schedule(&self, add: Vec<Due>, done: Vec<Due>) -> Schedule {
        Schedule { add, done, epochs: BTreeSet::from([(self.partition, self.epoch)]), ..Schedule::default() }
    }
}

/// Refused, or accepted without effect. Says which.
async fn late(history: &dyn History, entries: &[Entry], schedule: &Schedule) -> bool {
    match history.record(entries, schedule).await {
        Ok(()) => true,
        Err(PortError::Fenced(_)) => false,
        Err(other) => panic!("a late write is refused as such, not with: {other}"),
    }
}

fn inbox_in(partition: u16, number: u32) -> Inbox {
    Inbox { partition: Partition(partition), ..inbox(&tenant(), number) }
}

fn ids(entries: &[Entry]) -> Vec<MessageId> {
    entries.iter().map(|entry| entry.message.id).collect()
}

/// Every way of reading an inbox gives these entries and nothing else. One that never was received is unread.
async fn holds(history: &dyn History, inbox: &Inbox, chain: &[Entry]) {
    let numbers: Vec<_> = chain.iter().map(|entry| entry.position.n).collect();
    assert_eq!(numbers, (1..=chain.len() as u64).collect::<Vec<_>>(), "no place twice, no gap");
    assert_eq!(whole(history, inbox).await, chain);
    for limit in [1, 2, 3, 7] {
        for (order, turned) in [(Order::Oldest, false), (Order::Newest, true)] {
            let (mut from, mut rows) = (None, Vec::new());
            loop {
                let page = history.one_way(inbox, order, from, limit).await.unwrap();
                rows.extend(page.rows.into_iter().map(|(entry, _)| entry));
                let Some(next) = page.next else { break };
                from = Some(next);
            }
            if turned {
                rows.reverse();
            }
            assert_eq!(rows, chain, "{order:?} in pages of {limit}");
        }
    }
    let last = chain.last().map_or(Tail::default(), |e| Tail { position: e.position, one_way: chain.len() as u64 });
    assert_eq!(history.tails(std::slice::from_ref(inbox)).await.unwrap(), [last]);
    assert_eq!(history.unread(inbox).await.unwrap().one_way, chain.len() as u64);
    let (known, found) = (history.known(&ids(chain)).await.unwrap(), history.messages(&ids(chain)).await.unwrap());
    for ((entry, known), found) in chain.iter().zip(known).zip(found) {
        assert_eq!(known.and_then(|known| known.position), Some(entry.position));
        let found = found.expect("it is found by its id");
        assert_eq!((&found.message, found.position, found.prev), (&entry.message, Some(entry.position), entry.prev));
    }
}

/// None of these is found by its id.
async fn unknown(history: &dyn History, dead: &[Entry]) {
    assert!(history.known(&ids(dead)).await.unwrap().iter().all(Option::is_none));
    assert!(history.messages(&ids(dead)).await.unwrap().iter().all(Option::is_none));
}

/// Before and after the newer owner's first entry, in one inbox and in another: it is not there, and nothing of the newer
/// owner's is overwritten; after a crash too.
pub async fn a_late_owner_adds_nothing(bed: &mut dyn Installation) {
    let (one, two) = (inbox_in(18, 1), inbox_in(18, 2));
    let mut old = Owner::take(bed.another().await, &[&one, &two]).await;
    let (mut live, mut other) = (old.write(&one, 3).await, old.write(&two, 2).await);
    let mut new = Owner::take(bed.another().await, &[&one, &two]).await;
    assert!(new.epoch > old.epoch);
    // Both go on from the same end; the late one is the first to write.
    let mut dead = old.write_late(&one, 2).await;
    live.extend(new.write(&one, 2).await);
    dead.extend(old.write_late(&one, 3).await);
    dead.extend(old.write_late(&two, 1).await);
    other.extend(new.write(&two, 1).await);
    for crashed in [false, true] {
        if crashed {
            bed.crash().await;
        }
        let history = bed.history();
        holds(&*history, &one, &live).await;
        holds(&*history, &two, &other).await;
        unknown(&*history, &dead).await;
    }
    // Its facts about what it believes to be there count nothing either.
    let history = bed.history();
    history.settle(&[fact(&dead[0], What::Read, 5)]).await.unwrap();
    assert_eq!(history.unread(&one).await.unwrap().one_way, 5);
    let mut newest = Owner::take(history.clone(), &[&one, &two]).await;
    live.extend(newest.write(&one, 2).await);
    holds(&*history, &one, &live).await;
}

/// What happens to one inbox: somebody takes over, the owner of the moment writes, or one that was overtaken does.
#[derive(Debug, Clone)]
enum Step {
    Take,
    Write(u64),
    Late(usize, u64),
}

/// Whatever owners come and go and whoever writes late: what each wrote in its time is there, in one chain without a gap,
/// and what is not in the chain is nowhere.
pub async fn the_chain_holds_whoever_writes_late(bed: &mut dyn Installation) {
    let handles = [bed.another().await, bed.another().await, bed.history()];
    let number = AtomicU32::new(0);
    let step = prop_oneof![
        2 => Just(Step::Take),
        3 => (1u64..4).prop_map(Step::Write),
        3 => (0usize..8, 1u64..4).prop_map(|(who, count)| Step::Late(who, count)),
    ];
    property_of(bed.cases(), &proptest::collection::vec(step, 1..14), async |steps| {
        let inbox = inbox_in(19, number.fetch_add(1, Ordering::Relaxed));
        let mut owner = Owner::take(handles[0].clone(), &[&inbox]).await;
        let mut chain: Vec<Entry> = Vec::new();
        let (mut overtaken, mut every) = (Vec::<Owner>::new(), Vec::<Entry>::new());
        for (turn, step) in steps.into_iter().chain([Step::Write(1)]).enumerate() {
            match step {
                Step::Take => {
                    let next = Owner::take(handles[turn % handles.len()].clone(), &[&inbox]).await;
                    overtaken.push(std::mem::replace(&mut owner, next));
                    // What a late owner wrote where nobody newer has written yet may still count.
                    chain = follow(&every, owner.tails[&inbox].position, &chain);
                }
                Step::Write(count) => {
                    let written = owner.write(&inbox, count).await;
                    every.extend(written.clone());
                    chain.extend(written);
                }
                Step::Late(who, count) if !overtaken.is_empty() => {
                    let who = who % overtaken.len();
                    every.extend(overtaken[who].write_late(&inbox, count).await);
                }
                Step::Late(..) => {}
            }
        }
        // The last step was the owner's: an entry of the newest epoch stands, and it decides.
        holds(&*handles[0], &inbox, &chain).await;
        let dead: Vec<_> = every.into_iter().filter(|entry| !chain.contains(entry)).collect();
        unknown(&*handles[2], &dead).await;
        for from in dead.iter().map(|entry| entry.position) {
            let rest: Vec<_> = chain.iter().filter(|entry| entry.position > from).cloned().collect();
            assert_eq!(entries_of(handles[1].read(&inbox, from, 100).await.unwrap()), rest, "from {from}");
        }
    });
}

/// The chain that ends here, which must hold everything that an owner wrote in its time.
fn follow(every: &[Entry], end: Position, before: &[Entry]) -> Vec<Entry> {
    let (mut chain, mut at) = (Vec::new(), end);
    while at != Position::START {
        let entry = every.iter().find(|entry| entry.position == at).expect("an end that somebody wrote");
        chain.push(entry.clone());
        at = entry.prev;
    }
    chain.reverse();
    assert_eq!(chain[..before.len().min(chain.len())], *before, "what was written in time is lost");
    chain
}

/// Two forks, both below the reader's place: nothing of what follows them is skipped, whatever the page size.
pub async fn a_reader_at_a_dead_entry_goes_on_after_the_fork(bed: &mut dyn Installation) {
    let inbox = inbox_in(20, 1);
    let mut first = Owner::take(bed.another().await, &[&inbox]).await;
    let mut live = first.write(&inbox, 3).await;
    let mut second = Owner::take(bed.another().await, &[&inbox]).await;
    let mut dead = first.write_late(&inbox, 6).await;
    live.extend(second.write(&inbox, 2).await);
    let mut third = Owner::take(bed.another().await, &[&inbox]).await;
    dead.extend(second.write_late(&inbox, 4).await);
    dead.extend(first.write_late(&inbox, 1).await);
    live.extend(third.write(&inbox, 2).await);
    let history = bed.history();
    let places = dead.iter().chain(&live).map(|entry| entry.position);
    for from in places.chain([Position::START]) {
        let rest: Vec<_> = live.iter().filter(|entry| entry.position > from).cloned().collect();
        for limit in 1..9 {
            let (mut at, mut read) = (from, Vec::new());
            loop {
                let page = entries_of(history.read(&inbox, at, limit).await.unwrap());
                let Some(last) = page.last() else { break };
                at = last.position;
                read.extend(page);
            }
            assert_eq!(read, rest, "from {from} in pages of {limit}");
        }
    }
    holds(&*history, &inbox, &live).await;
    unknown(&*history, &dead).await;
}

/// The newer owner comes while the older one writes without a pause: what was answered before it came is there, the rest is
/// there without a gap or not at all.
pub async fn a_takeover_in_the_middle_of_writing_loses_nothing(bed: &mut dyn Installation) {
    let inbox = inbox_in(21, 1);
    for _ in 0..5 {
        let mut old = Owner::take(bed.another().await, &[&inbox]).await;
        let before = whole(&*old.history, &inbox).await.len();
        let answered = Arc::new(AtomicUsize::new(0));
        let writing = {
            let (answered, inbox) = (answered.clone(), inbox.clone());
            tokio::spawn(async move {
                let mut written = Vec::new();
                for _ in 0..400 {
                    let batch = old.next(&inbox, 3);
                    written.extend(batch.clone());
                    if !late(&*old.history, &batch, &Schedule::default()).await {
                        break;
                    }
                    answered.fetch_add(3, Ordering::SeqCst);
                }
                written
            })
        };
        while answered.load(Ordering::SeqCst) < 30 {
            tokio::task::yield_now().await;
        }
        let safe = answered.load(Ordering::SeqCst);
        let mut new = Owner::take(bed.another().await, &[&inbox]).await;
        let end = new.tails[&inbox].position;
        let added = new.write(&inbox, 2).await;
        let written = writing.await.unwrap();
        let history = bed.history();
        let chain = whole(&*history, &inbox).await;
        holds(&*history, &inbox, &chain).await;
        let kept = chain.len() - before - added.len();
        assert!(kept >= safe, "{safe} were answered before the takeover and {kept} are there");
        assert_eq!(chain[before..before + kept], written[..kept]);
        assert_eq!((chain[before + kept - 1].position, &chain[before + kept..]), (end, &added[..]));
        unknown(&*history, &written[kept..]).await;
    }
}

/// A takeover came late, and the log does not say that the partition is whose it was: whatever that one asks, what the rightful
/// owner is told to stand does so.
pub async fn a_takeover_that_the_log_does_not_confirm_shuts_nobody_out(bed: &mut dyn Installation) {
    let inbox = inbox_in(20, 2);
    let mut owner = Owner::take(bed.another().await, &[&inbox]).await;
    let mut written = owner.write(&inbox, 2).await;
    let other = bed.another().await;
    other.take_over(&[inbox.partition]).await.unwrap();
    other.tails(std::slice::from_ref(&inbox)).await.unwrap();
    other.known(&ids(&written)).await.unwrap();
    let more = owner.next(&inbox, 2);
    let stands = late(&*owner.history, &more, &Schedule::default()).await;
    let mut next = Owner::take(other, &[&inbox]).await;
    // Refused it may still stand, where that was noticed in the middle of it.
    if stands || next.tails[&inbox].position.n == 4 {
        written.extend(more);
    }
    written.extend(next.write(&inbox, 1).await);
    holds(&*bed.history(), &inbox, &written).await;
}

/// A batch is of many partitions: none of the overtaken one's stands, and the others' are recorded with a second call.
pub async fn a_batch_with_an_overtaken_partition_may_go_on_without_it(bed: &mut dyn Installation) {
    let (lost, kept) = (inbox_in(22, 1), inbox_in(23, 2));
    let mut old = Owner::take(bed.another().await, &[&lost]).await;
    let mut same = Owner::take(old.history.clone(), &[&kept]).await;
    let mut new = Owner::take(bed.another().await, &[&lost]).await;
    let (dead, live) = (old.next(&lost, 2), same.next(&kept, 2));
    let mixed = [dead[0].clone(), live[0].clone(), dead[1].clone(), live[1].clone()];
    late(&*old.history, &mixed, &Schedule::default()).await;
    record(&*same.history, &live).await;
    let first = new.write(&lost, 1).await;
    let history = bed.history();
    holds(&*history, &kept, &live).await;
    holds(&*history, &lost, &first).await;
    unknown(&*history, &dead).await;
}

/// The newer owner still finds what is due, whatever the older one believes to have sent, and sends it once.
pub async fn a_late_owner_takes_no_due_row_away_and_brings_none_back(bed: &mut dyn Installation) {
    let inbox = inbox_in(22, 3);
    let mut old = Owner::take(bed.another().await, &[&inbox]).await;
    let rows = |history: Arc<dyn History>| async move {
        let due = history.due(Partition(22), Timestamp(i64::MAX), 1_000).await.unwrap();
        due.into_iter().map(|due| due.id).collect::<Vec<_>>()
    };
    let send = |message: &schemas::Message| {
        let kind = DueKind::Send(Arc::new(message.clone()));
        Due { partition: inbox.partition, at: NOON, id: message.id, kind }
    };
    let (sent, cancelled) = (message(&inbox), message(&inbox));
    let both = vec![send(&sent), send(&cancelled)];
    old.history.record(&[], &old.schedule(both.clone(), vec![])).await.unwrap();
    let mut new = Owner::take(bed.another().await, &[&inbox]).await;
    let placed = old.place(&inbox, sent.clone());
    late(&*old.history, std::slice::from_ref(&placed), &old.schedule(vec![], vec![both[0].clone()])).await;
    late(&*old.history, &[], &old.schedule(vec![], both.clone())).await;
    let due = rows(new.history.clone()).await;
    assert!(both.iter().all(|row| due.contains(&row.id)), "a late owner took a row away");
    // The newer one sends it, once.
    let placed = new.place(&inbox, sent.clone());
    let done = new.schedule(vec![], vec![both[0].clone()]);
    new.history.record(std::slice::from_ref(&placed), &done).await.unwrap();
    late(&*old.history, &[], &old.schedule(both.clone(), vec![])).await;
    for crashed in [false, true] {
        if crashed {
            bed.crash().await;
        }
        let due = rows(bed.history()).await;
        assert!(!due.contains(&sent.id) && due.contains(&cancelled.id));
        let history = bed.history();
        assert_eq!(whole(&*history, &inbox).await, std::slice::from_ref(&placed));
        assert_eq!(history.known(&[sent.id]).await.unwrap()[0].as_ref().unwrap().position, Some(placed.position));
        assert_eq!(history.messages(&[sent.id]).await.unwrap()[0].as_ref().unwrap().position, Some(placed.position));
    }
    let epochs = BTreeSet::from([(new.partition, new.epoch)]);
    bed.history().record(&[], &Schedule { done: both, epochs, ..Schedule::default() }).await.unwrap();
    assert!(!rows(bed.history()).await.contains(&cancelled.id));
}

/// Of the dead entries nobody is told, and the chain goes as if they were not there.
pub async fn retention_passes_over_what_a_late_owner_wrote(bed: &mut dyn Installation) {
    let inbox = inbox_in(23, 4);
    let mut old = Owner::take(bed.another().await, &[&inbox]).await;
    let mut live = old.write(&inbox, 2).await;
    let mut new = Owner::take(bed.another().await, &[&inbox]).await;
    let dead = old.write_late(&inbox, 3).await;
    live.extend(new.write(&inbox, 2).await);
    let facts: Vec<_> = live[..3].iter().map(|entry| fact(entry, What::Delivered, 1)).collect();
    let history = bed.history();
    history.settle(&facts).await.unwrap();
    let later = Timestamp(NOON.0 + 1);
    let mut told = Vec::new();
    for _ in 0..6 {
        let unreached = history.retain(inbox.partition, later, 1_000).await.unwrap();
        let mine: Vec<_> = unreached.into_iter().filter(|placed| placed.inbox == inbox).collect();
        let facts = mine.iter().map(|placed| {
            let fact = placeless(&placed.message, &inbox, What::Failed(schemas::Reason::Expired), 2);
            schemas::Fact { position: placed.position.unwrap_or_default(), ..fact }
        });
        history.settle(&facts.collect::<Vec<_>>()).await.unwrap();
        told.extend(mine.into_iter().map(|placed| placed.message.id));
    }
    told.dedup();
    assert_eq!(told, [live[3].message.id], "nobody had received it, and nobody is told of the dead ones");
    assert!(whole(&*history, &inbox).await.is_empty());
    let tail = history.tails(std::slice::from_ref(&inbox)).await.unwrap()[0];
    assert_eq!(tail, Tail { position: live[3].position, one_way: 4 });
    assert_eq!(history.unread(&inbox).await.unwrap().one_way, 0);
    unknown(&*history, &dead).await;
    let next = new.write(&inbox, 1).await;
    let span = history.read(&inbox, live[3].position, 10).await.unwrap();
    assert_eq!(entries_of(span), next);
}
