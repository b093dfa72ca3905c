//! Groups: who is a member, who owns which partition numbers, and how far each group has read.
//!
//! A number changes hands in three steps: its owner is told to give it up, releases it, and only then it is another's. A
//! member that is dropped has released everything.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use fjall::Keyspace;
use parking_lot::Mutex;
use schemas::{
    Offset, Partition, Topic, TopicPartition,
    port::{Event, Group, PortError, PortResult},
};

use super::{
    inbox::{Inbox, event},
    layout::{Layout, commit_key, read_commit_key},
    spread::spread,
    tail::Tails,
};
use crate::{
    OpenError,
    embedded::{Engine, Room, Shape, Write},
};

/// One group.
struct State {
    // The next offset to read, by index; `None` where it never committed.
    committed: Vec<Option<u64>>,
    topics: Vec<Topic>,
    members: BTreeMap<u64, Arc<Inbox>>,
    // By partition number.
    owners: Vec<Option<u64>>,
    leaving: Vec<bool>,
}

/// All groups.
pub(crate) struct Groups {
    layout: Layout,
    rows: Keyspace,
    groups: Mutex<HashMap<String, State>>,
    next: std::sync::atomic::AtomicU64,
}

impl Groups {
    /// Reads what was committed.
    pub(crate) fn open(engine: &Engine, layout: &Layout) -> Result<Self, OpenError> {
        let rows = engine.keyspace("log.groups", Shape::Rows)?;
        let mut groups = HashMap::new();
        for row in rows.iter() {
            let (key, value) = row.into_inner().map_err(OpenError::engine(engine.path()))?;
            let damaged =
                || OpenError::Damaged { path: engine.path().into(), why: "a committed offset is not one".into() };
            let (name, topic, partition) = read_commit_key(&key).ok_or_else(damaged)?;
            let offset = <[u8; 8]>::try_from(&*value).map(u64::from_be_bytes).map_err(|_| damaged())?;
            let state = groups.entry(name.to_string()).or_insert_with(|| State::new(layout));
            if let Some(index) = layout.find(topic, partition) {
                state.committed[index] = Some(offset);
            }
        }
        Ok(Self { layout: layout.clone(), rows, groups: Mutex::new(groups), next: Default::default() })
    }

    /// The next offset a group will read.
    pub(crate) fn committed(&self, group: Group, index: usize) -> Option<u64> {
        self.groups.lock().get(group.0).and_then(|state| state.committed[index])
    }

    /// Whether every group has passed these offsets; `from` is where the records begin that are asked about. A group that
    /// reads a topic and has committed nothing in a partition has passed nothing there.
    pub(crate) fn passed(&self, from: &[u64], to: &[u64]) -> bool {
        let groups = self.groups.lock();
        groups.values().all(|state| {
            let asked = from.iter().zip(to).enumerate().filter(|(_, (from, to))| from < to);
            asked.map(|(index, (_, to))| (index, *to)).all(|(index, to)| match state.committed[index] {
                Some(at) => at >= to,
                None => !state.topics.contains(&self.layout.at(index).topic),
            })
        })
    }

    /// Takes a member in.
    pub(crate) fn join(&self, group: Group, topics: &[Topic], tails: &Tails) -> PortResult<Arc<Inbox>> {
        let mut topics = topics.to_vec();
        topics.sort_unstable();
        topics.dedup();
        let mut groups = self.groups.lock();
        let state = groups.entry(group.0.to_string()).or_insert_with(|| State::new(&self.layout));
        if !state.members.is_empty() && state.topics != topics {
            return Err(PortError::Rejected(format!("the members of {} read other topics", group.0)));
        }
        state.topics = topics;
        let member = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let inbox = Arc::new(Inbox::new(member, self.layout.count()));
        state.members.insert(member, inbox.clone());
        state.settle(&self.layout, tails);
        Ok(inbox)
    }

    /// Gives up partition numbers that were revoked.
    pub(crate) fn release(&self, group: Group, inbox: &Arc<Inbox>, partitions: &[Partition], tails: &Tails) {
        let mut groups = self.groups.lock();
        let Some(state) = groups.get_mut(group.0) else { return };
        for partition in partitions {
            let at = usize::from(partition.0);
            if state.leaving.get(at) == Some(&true) && state.owners[at] == Some(inbox.member) {
                state.free(*partition, &self.layout, tails);
            }
        }
        state.settle(&self.layout, tails);
    }

    /// Takes a member out, with all it owned.
    pub(crate) fn leave(&self, group: Group, inbox: &Arc<Inbox>, tails: &Tails) {
        let mut groups = self.groups.lock();
        let Some(state) = groups.get_mut(group.0) else { return };
        if !state.members.contains_key(&inbox.member) {
            return;
        }
        for at in 0..self.layout.partitions() {
            if state.owners[usize::from(at)] == Some(inbox.member) {
                state.free(Partition(at), &self.layout, tails);
            }
        }
        state.members.remove(&inbox.member);
        state.settle(&self.layout, tails);
    }

    /// Commits, in the order of all writes; not waited for.
    pub(crate) fn commit(
        &self,
        engine: &Engine,
        room: Room,
        group: Group,
        inbox: &Inbox,
        offsets: &[(usize, TopicPartition, Offset)],
    ) -> PortResult<()> {
        let mut groups = self.groups.lock();
        let state = groups.get_mut(group.0);
        let state = state.ok_or_else(|| PortError::Rejected("this group has no members".into()))?;
        if let Some((_, at, _)) = offsets.iter().find(|(_, at, _)| !state.owns(inbox.member, at.partition)) {
            return Err(PortError::Rejected(format!("{at} is not this member's any more")));
        }
        let write = |(_, at, offset): &(usize, TopicPartition, Offset)| Write::Put {
            to: self.rows.clone(),
            key: commit_key(group.0, *at),
            value: offset.0.to_be_bytes().to_vec().into(),
        };
        // Under the lock, so that what is read as committed is what stands last on disk.
        drop(engine.submit_in(room.along(), offsets.iter().map(write).collect())?);
        for (index, _, offset) in offsets {
            state.committed[*index] = Some(offset.0);
        }
        Ok(())
    }
}

impl State {
    fn new(layout: &Layout) -> Self {
        let partitions = usize::from(layout.partitions());
        Self {
            committed: vec![None; layout.count()],
            topics: Vec::new(),
            members: BTreeMap::new(),
            owners: vec![None; partitions],
            leaving: vec![false; partitions],
        }
    }

    fn owns(&self, member: u64, partition: Partition) -> bool {
        self.owners.get(usize::from(partition.0)) == Some(&Some(member))
    }

    /// Nobody's now.
    fn free(&mut self, partition: Partition, layout: &Layout, tails: &Tails) {
        let at = usize::from(partition.0);
        let owner = self.owners[at].take().and_then(|owner| self.members.get(&owner));
        self.leaving[at] = false;
        if let Some(owner) = owner {
            layout.of_partition(&self.topics, partition).for_each(|index| tails.unwatch(index, owner));
        }
    }

    /// Tells members what is to go, and gives out what is free.
    fn settle(&mut self, layout: &Layout, tails: &Tails) {
        let members: Vec<_> = self.members.keys().copied().collect();
        let target = spread(&self.owners, &members);
        let mut come: BTreeMap<u64, Vec<Partition>> = BTreeMap::new();
        let mut go: BTreeMap<u64, Vec<Partition>> = BTreeMap::new();
        for ((number, target), at) in (0..).map(Partition).zip(target).zip(0..) {
            match (self.owners[at], target) {
                (None, Some(member)) => {
                    self.owners[at] = Some(member);
                    come.entry(member).or_default().push(number);
                }
                (Some(owner), target) if target != Some(owner) && !self.leaving[at] => {
                    self.leaving[at] = true;
                    go.entry(owner).or_default().push(number);
                }
                _ => {}
            }
        }
        for (member, inbox) in &self.members {
            let (go, come) = (go.remove(member).unwrap_or_default(), come.remove(member).unwrap_or_default());
            for partition in &come {
                // Before its position is known: what is published meanwhile makes it ready.
                layout.of_partition(&self.topics, *partition).for_each(|index| tails.watch(index, inbox));
            }
            for event in [event(Event::Revoked, go), event(Event::Assigned, come)].into_iter().flatten() {
                inbox.tell(event);
            }
        }
    }
}
