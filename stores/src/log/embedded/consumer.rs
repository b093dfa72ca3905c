//! One member of a group: reads what is its own, from memory where it keeps up, from disk where it is behind.
//!
//! Partitions take turns; each that may have records waits in the inbox and gets an equal part of what is asked for. A poll
//! that is dropped in the middle has taken nothing: positions move only when records are handed out.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use schemas::{
    Offset, Partition, Topic, TopicPartition,
    port::{Consumer, Event, Fetch, Group, PortError, PortResult, Record},
};
use tokio::time::Instant;

use super::{
    Log,
    inbox::Inbox,
    tail::{Found, Taking},
};

/// Before a partition that could not be read is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// Records of one partition in one turn, at least.
const TURN: usize = 16;

/// One member.
pub(crate) struct Member {
    log: Arc<Log>,
    group: Group,
    topics: Vec<Topic>,
    inbox: Arc<Inbox>,
    // The next offset to hand out, by index; `None` where it is not this member's.
    positions: Vec<Option<u64>>,
    paused: Vec<bool>,
    /// Those that could not be read, each with when that is tried again.
    unreadable: BTreeMap<usize, Instant>,
}

impl Member {
    pub(crate) fn join(log: Arc<Log>, group: Group, topics: &[Topic]) -> PortResult<Self> {
        let inbox = log.groups.join(group, topics, &log.tails)?;
        let count = log.layout.count();
        Ok(Self {
            log,
            group,
            topics: topics.to_vec(),
            inbox,
            positions: vec![None; count],
            paused: vec![false; count],
            unreadable: BTreeMap::new(),
        })
    }

    /// Takes up what was assigned, puts down what was revoked.
    fn heed(&mut self, event: &Event) {
        let log = self.log.clone();
        match event {
            Event::Assigned(partitions) => {
                for index in
                    partitions.iter().flat_map(|p| log.layout.of_partition(&self.topics, *p).collect::<Vec<_>>())
                {
                    let start = log.segments.start(index);
                    self.positions[index] = Some(log.groups.committed(self.group, index).unwrap_or(start).max(start));
                    self.paused[index] = false;
                    self.unreadable.remove(&index);
                    self.inbox.ready(index);
                }
            }
            Event::Revoked(partitions) => {
                for index in
                    partitions.iter().flat_map(|p| log.layout.of_partition(&self.topics, *p).collect::<Vec<_>>())
                {
                    self.positions[index] = None;
                    self.unreadable.remove(&index);
                }
            }
            Event::Records(_) => {}
        }
    }

    /// Lets those come again that could not be read, if it is time; says when it is for the next of the others.
    fn try_again(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let inbox = &self.inbox;
        self.unreadable.retain(|index, at| {
            let waits = *at > now;
            if !waits {
                inbox.ready(*index);
            }
            waits
        });
        self.unreadable.values().min().copied()
    }

    /// One round over the partitions that may have records.
    async fn round(&mut self, max: Fetch) -> PortResult<Vec<Record>> {
        let mut taken = Taking::new(max);
        let waiting = self.inbox.waiting();
        let part = (max.records / waiting.max(1)).max(TURN);
        for _ in 0..waiting {
            let left = taken.left();
            if !taken.records.is_empty() && (left.records == 0 || left.bytes == 0) {
                break;
            }
            let Some(index) = self.inbox.turn() else { break };
            let left_alone = self.paused[index] || self.unreadable.contains_key(&index);
            let Some(from) = self.positions[index].filter(|_| !left_alone) else {
                self.inbox.turn_over();
                continue;
            };
            let ask = Fetch { records: part.min(left.records), bytes: left.bytes };
            let read = match self.log.tails.read(index, from, ask) {
                Found::Records(records) => Ok(records),
                Found::End => Ok(Vec::new()),
                // The disk is waited for with empty hands only: what was taken goes out first.
                Found::OnDisk(_) if !taken.records.is_empty() => break,
                Found::OnDisk(end) => self.log.read_disk(index, from, end, ask).await,
            };
            self.inbox.turn_over();
            // One that cannot be read is told of, and tried again later: the others go on.
            if read.is_err() {
                self.unreadable.insert(index, Instant::now() + AGAIN);
            }
            let records = read?;
            let next = records.last().map_or(from, |record| record.offset.0 + 1);
            // The first record is handed out whatever its size, but only into empty hands.
            let fits = records.first().is_none_or(|first| taken.records.is_empty() || first.body.len() <= left.bytes);
            if fits {
                self.positions[index] = Some(next);
                taken.extend(records);
            }
            let position = if fits { next } else { from };
            if position < self.log.tails.end(index) {
                self.inbox.ready(index);
            }
            if !fits {
                break;
            }
        }
        Ok(taken.records)
    }

    fn index(&self, at: TopicPartition) -> PortResult<usize> {
        self.log.layout.index(at)
    }
}

#[async_trait]
impl Consumer for Member {
    async fn poll(&mut self, max: Fetch) -> PortResult<Event> {
        loop {
            if let Some(event) = self.inbox.event() {
                self.heed(&event);
                return Ok(event);
            }
            let again = self.try_again();
            let records = self.round(max).await?;
            if !records.is_empty() {
                return Ok(Event::Records(records));
            }
            if self.inbox.waiting() == 0 {
                match again {
                    Some(at) => drop(tokio::time::timeout_at(at, self.inbox.wait()).await),
                    None => self.inbox.wait().await,
                }
            }
        }
    }

    fn pause(&mut self, at: &[TopicPartition]) {
        for index in at.iter().filter_map(|at| self.index(*at).ok()).collect::<Vec<_>>() {
            self.paused[index] = true;
        }
    }

    fn resume(&mut self, at: &[TopicPartition]) {
        for index in at.iter().filter_map(|at| self.index(*at).ok()).collect::<Vec<_>>() {
            if std::mem::replace(&mut self.paused[index], false) {
                self.inbox.ready(index);
            }
        }
    }

    async fn commit(&mut self, offsets: &[(TopicPartition, Offset)]) -> PortResult<()> {
        if offsets.is_empty() {
            return Ok(());
        }
        let mut known = Vec::with_capacity(offsets.len());
        for (at, offset) in offsets {
            let index = self.index(*at)?;
            if offset.0 > self.log.tails.end(index) {
                return Err(PortError::Rejected(format!("{at} does not reach {offset}")));
            }
            known.push((index, *at, *offset));
        }
        let room = self.log.engine.room(known.len() * 64).await?;
        self.log.groups.commit(&self.log.engine, room, self.group, &self.inbox, &known)
    }

    async fn release(&mut self, partitions: &[Partition]) -> PortResult<()> {
        self.log.groups.release(self.group, &self.inbox, partitions, &self.log.tails);
        Ok(())
    }

    async fn leave(self: Box<Self>) -> PortResult<()> {
        // Dropping it is leaving.
        Ok(())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.log.groups.leave(self.group, &self.inbox, &self.log.tails);
    }
}
