//! A log with one group of two processes, whose partitions the test moves. A commit is held against history: what it passes
//! must be recorded or scheduled by then.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use schemas::{
    Offset, Partition, Timestamp, Topic, TopicPartition, codec,
    port::{self, Append, Consumer, Durability, Event, Fetch, Log, PortError, PortResult, Record},
    record::LaneRecord,
};
use tokio::sync::Notify;

use super::{Ice, store::Store};

pub(super) struct Group {
    state: Mutex<State>,
    came: Notify,
    store: Store,
    partitions: u16,
}

#[derive(Default)]
struct State {
    records: BTreeMap<TopicPartition, Vec<Record>>,
    committed: BTreeMap<TopicPartition, Offset>,
    /// Which process each partition is to be with.
    wanted: Vec<usize>,
    /// The member that has it, and whether it was told to give it up.
    owners: Vec<Option<(u64, bool)>>,
    /// The present member of each process.
    members: [Option<u64>; 2],
    events: BTreeMap<u64, VecDeque<Event>>,
    joined: u64,
    wrong: Vec<String>,
}

impl State {
    /// Gives out what is free, and asks for what is to go.
    fn settle(&mut self) {
        for p in 0..self.owners.len() {
            let partition = Partition(p as u16);
            let member = self.members[self.wanted[p]].or(self.members[1 - self.wanted[p]]);
            match (self.owners[p], member) {
                (None, Some(member)) => {
                    self.owners[p] = Some((member, false));
                    self.events.entry(member).or_default().push_back(Event::Assigned(vec![partition]));
                }
                (Some((owner, false)), Some(member)) if owner != member => {
                    self.owners[p] = Some((owner, true));
                    self.events.entry(owner).or_default().push_back(Event::Revoked(vec![partition]));
                }
                _ => {}
            }
        }
    }
}

impl Group {
    pub(super) fn new(partitions: u16, store: Store) -> Self {
        let (wanted, owners) = (vec![0; partitions.into()], vec![None; partitions.into()]);
        let state = Mutex::new(State { wanted, owners, ..State::default() });
        Self { state, came: Notify::new(), store, partitions }
    }

    pub(super) fn append(&self, records: Vec<Append>) -> Vec<PortResult<Offset>> {
        let mut state = self.state.lock();
        let one = |append: Append| {
            let records = state.records.entry(append.at).or_default();
            let (offset, appended_at) = (Offset(records.len() as u64), Timestamp(1_000_000));
            records.push(Record { at: append.at, offset, appended_at, headers: append.headers, body: append.body });
            Ok(offset)
        };
        let answers = records.into_iter().map(one).collect();
        drop(state);
        self.came.notify_waiters();
        answers
    }

    /// A partition is to go to a process.
    pub(super) fn move_to(&self, partition: Partition, process: usize) {
        let mut state = self.state.lock();
        state.wanted[usize::from(partition.0)] = process;
        state.settle();
        drop(state);
        self.came.notify_waiters();
    }

    /// A process's session is over: what it has is another's at once, and it is told so when it looks.
    pub(super) fn expel(&self, process: usize) {
        let mut state = self.state.lock();
        let Some(member) = state.members[process] else { return };
        for p in 0..state.owners.len() {
            if state.owners[p].is_some_and(|(owner, _)| owner == member) {
                state.owners[p] = None;
                state.wanted[p] = 1 - process;
                state.events.entry(member).or_default().push_back(Event::Revoked(vec![Partition(p as u16)]));
            }
        }
        state.settle();
        drop(state);
        self.came.notify_waiters();
    }

    pub(super) fn is_committed(&self, at: TopicPartition) -> bool {
        let state = self.state.lock();
        let end = state.records.get(&at).map_or(0, Vec::len) as u64;
        end == 0 || state.committed.get(&at).is_some_and(|next| next.0 == end)
    }

    pub(super) fn violations(&self) -> Vec<String> {
        self.state.lock().wrong.clone()
    }

    /// What is not committed, for who asks why.
    pub(super) fn left(&self) -> String {
        let state = self.state.lock();
        let open = state.records.iter().filter(|(at, _)| at.topic != Topic::Outcomes && at.topic != Topic::Dead);
        let open = open.filter(|(at, records)| state.committed.get(at).map_or(0, |c| c.0) < records.len() as u64);
        let open: Vec<_> = open.map(|(at, r)| format!("{at}: {:?} of {}", state.committed.get(at), r.len())).collect();
        format!("{open:?} owners {:?} members {:?}", state.owners, state.members)
    }
}

/// The log as one process sees it.
pub(super) struct Member {
    pub(super) group: Arc<Group>,
    pub(super) process: usize,
    pub(super) ice: Ice,
}

#[async_trait]
impl Log for Member {
    async fn append(&self, records: Vec<Append>) -> Vec<PortResult<Offset>> {
        self.ice.thawed().await;
        let answers = self.group.append(records);
        self.ice.thawed().await;
        answers
    }
    async fn read(&self, _: TopicPartition, _: Offset, _: Fetch) -> PortResult<Vec<Record>> {
        Ok(Vec::new())
    }
    async fn bounds(&self, at: TopicPartition) -> PortResult<(Offset, Offset)> {
        self.ice.thawed().await;
        let end = self.group.state.lock().records.get(&at).map_or(0, Vec::len) as u64;
        Ok((Offset(0), Offset(end)))
    }
    async fn committed(&self, _: port::Group, at: &[TopicPartition]) -> PortResult<Vec<Option<Offset>>> {
        self.ice.thawed().await;
        let state = self.group.state.lock();
        Ok(at.iter().map(|at| state.committed.get(at).copied()).collect())
    }
    async fn join(&self, _: port::Group, _: &[Topic]) -> PortResult<Box<dyn Consumer>> {
        let mut state = self.group.state.lock();
        state.joined += 1;
        let member = state.joined;
        state.members[self.process] = Some(member);
        state.settle();
        drop(state);
        self.group.came.notify_waiters();
        let (group, ice) = (self.group.clone(), self.ice.clone());
        Ok(Box::new(Reader { group, ice, member, next: BTreeMap::new(), paused: Vec::new(), turn: 0 }))
    }
    fn partitions(&self) -> u16 {
        self.group.partitions
    }
    fn durability(&self) -> Durability {
        Durability::Process
    }
    async fn check(&self) -> PortResult<()> {
        Ok(())
    }
}

struct Reader {
    group: Arc<Group>,
    ice: Ice,
    member: u64,
    next: BTreeMap<TopicPartition, Offset>,
    paused: Vec<TopicPartition>,
    turn: usize,
}

impl Reader {
    fn take(&mut self, max: Fetch) -> Option<Event> {
        let mut state = self.group.state.lock();
        if let Some(event) = state.events.get_mut(&self.member).and_then(VecDeque::pop_front) {
            match &event {
                Event::Assigned(partitions) => {
                    for partition in partitions {
                        for topic in Topic::all().filter(|topic| *topic != Topic::Dead) {
                            let at = TopicPartition { topic, partition: *partition };
                            self.next.insert(at, state.committed.get(&at).copied().unwrap_or_default());
                            self.paused.retain(|paused| *paused != at);
                        }
                    }
                }
                Event::Revoked(partitions) => self.next.retain(|at, _| !partitions.contains(&at.partition)),
                Event::Records(_) => {}
            }
            return Some(event);
        }
        let all: Vec<_> = self.next.keys().copied().collect();
        for i in 0..all.len() {
            let at = all[(i + self.turn) % all.len()];
            let next = self.next[&at];
            if self.paused.contains(&at) {
                continue;
            }
            let records: Vec<_> = state
                .records
                .get(&at)
                .into_iter()
                .flatten()
                .skip(next.0 as usize)
                .take(max.records.min(5))
                .cloned()
                .collect();
            if let Some(last) = records.last() {
                self.next.insert(at, last.offset.next());
                self.turn += 1;
                return Some(Event::Records(records));
            }
        }
        None
    }
}

#[async_trait]
impl Consumer for Reader {
    async fn poll(&mut self, max: Fetch) -> PortResult<Event> {
        loop {
            self.ice.thawed().await;
            let group = self.group.clone();
            let came = group.came.notified();
            if let Some(event) = self.take(max) {
                return Ok(event);
            }
            tokio::select! {
                () = came => {}
                // Missed between the look and the wait.
                () = tokio::time::sleep(std::time::Duration::from_millis(2)) => {}
            }
        }
    }
    fn pause(&mut self, at: &[TopicPartition]) {
        self.paused.extend(at);
    }
    fn resume(&mut self, at: &[TopicPartition]) {
        self.paused.retain(|paused| !at.contains(paused));
    }
    async fn commit(&mut self, offsets: &[(TopicPartition, Offset)]) -> PortResult<()> {
        self.ice.thawed().await;
        let mut state = self.group.state.lock();
        // One that was lost and came back meanwhile, and does not know it, is of an earlier time.
        let queued = state.events.get(&self.member);
        let comes = |p| queued.into_iter().flatten().any(|e| matches!(e, Event::Assigned(new) if new.contains(&p)));
        let mine = |at: &TopicPartition| {
            let owner = state.owners[usize::from(at.partition.0)];
            owner.is_some_and(|(owner, _)| owner == self.member) && !comes(at.partition)
        };
        if let Some((at, _)) = offsets.iter().find(|(at, _)| !mine(at)) {
            return Err(PortError::Fenced(format!("{at} is another member's")));
        }
        for (at, next) in offsets {
            let before = state.committed.get(at).copied().unwrap_or_default();
            if *next < before {
                state.wrong.push(format!("{at} goes back from {before} to {next}"));
            }
            let passed: Vec<_> = state
                .records
                .get(at)
                .into_iter()
                .flatten()
                .filter(|r| r.offset >= before && r.offset < *next)
                .cloned()
                .collect();
            for record in passed.iter().filter(|record| matches!(record.at.topic, Topic::Lane(_))) {
                if let Ok(LaneRecord::Accepted(message)) = codec::decode(&record.body)
                    && !self.group.store.has(&message)
                {
                    state.wrong.push(format!("{at} was committed up to {next} past {}", record.offset));
                }
            }
            state.committed.insert(*at, *next);
        }
        Ok(())
    }
    async fn release(&mut self, partitions: &[Partition]) -> PortResult<()> {
        let mut state = self.group.state.lock();
        for partition in partitions {
            let owner = &mut state.owners[usize::from(partition.0)];
            if *owner == Some((self.member, true)) {
                *owner = None;
            }
        }
        state.settle();
        drop(state);
        self.group.came.notify_waiters();
        Ok(())
    }
    async fn leave(self: Box<Self>) -> PortResult<()> {
        let mut state = self.group.state.lock();
        let member = self.member;
        state.owners.iter_mut().filter(|owner| owner.is_some_and(|(o, _)| o == member)).for_each(|owner| *owner = None);
        state.members.iter_mut().filter(|m| **m == Some(member)).for_each(|m| *m = None);
        state.settle();
        drop(state);
        self.group.came.notify_waiters();
        Ok(())
    }
}
