//! One member of a group. A thread of its own keeps the membership alive: it polls librdkafka for what the brokers give and
//! ask back, and hands it on. Records are taken straight from the queues that librdkafka keeps for each partition, on the
//! caller's thread and without waiting: what is fetched ahead stays there, within its bound, and a paused partition is a queue
//! that nobody takes from. So a poll that is dropped has taken nothing.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use async_trait::async_trait;
use rdkafka::{
    Message as _, TopicPartitionList, consumer::CommitMode, consumer::Consumer as _, topic_partition_list::Offset as At,
};
use schemas::{
    Offset, Partition, Topic, TopicPartition,
    port::{Consumer, Event, Fetch, PortError, PortResult, Record},
};
use tokio::task::JoinHandle;

use super::{
    form,
    group::{Client, Shared},
    owned::Tell,
    settings::Settings,
    told,
};
use crate::log::embedded::layout::Layout;

/// Records of one partition in one turn, at least.
const TURN: usize = 16;

/// What a member knows of one partition of one topic.
#[derive(Default)]
struct Reading {
    mine: bool,
    paused: bool,
    // Waits in the ring.
    turn: bool,
    // Taken from its queue, and not fitting into the answer it was taken for.
    held: Option<Record>,
    // The offset expected next, once one was seen; and that an earlier one has come, and was said.
    next: Option<u64>,
    behind: bool,
    // By this member, since it has the partition; the first one is asked even where it changes nothing.
    committed: Option<u64>,
}

/// One member.
pub(crate) struct Member {
    shared: Arc<Shared>,
    client: Option<Arc<Client>>,
    settings: Arc<Settings>,
    layout: Layout,
    topics: Vec<Topic>,
    readings: Vec<Reading>,
    // Whose turn it is: indexes of partitions that may have records.
    ring: VecDeque<usize>,
    // A commit that was not waited for to its end.
    committing: Option<JoinHandle<PortResult<()>>>,
}

impl Member {
    pub(crate) fn new(shared: Arc<Shared>, settings: Arc<Settings>, layout: Layout, topics: Vec<Topic>) -> Self {
        let readings = (0..layout.count()).map(|_| Reading::default()).collect();
        Self { shared, client: None, settings, layout, topics, readings, ring: VecDeque::new(), committing: None }
    }

    /// What the consumer is to be told, if there is something.
    fn event(&mut self) -> PortResult<Option<Event>> {
        let (tell, client) = {
            let mut state = self.shared.state.lock();
            if let Some(trouble) = state.trouble.take() {
                return Err(trouble);
            }
            (state.owned.tell(), state.client.clone())
        };
        match tell {
            Some(Tell::Assigned(partitions)) => {
                let old = std::mem::replace(&mut self.client, client);
                retire(old, self.client.as_ref());
                self.each(&partitions, |member, index| {
                    let turn = member.readings[index].turn;
                    member.readings[index] = Reading { mine: true, turn, ..Reading::default() };
                    member.line_up(index);
                });
                Ok(Some(Event::Assigned(partitions)))
            }
            Some(Tell::Revoked(partitions)) => {
                self.each(&partitions, |member, index| {
                    let turn = member.readings[index].turn;
                    // What was committed is remembered for the last commits.
                    let committed = member.readings[index].committed;
                    member.readings[index] = Reading { turn, committed, ..Reading::default() };
                });
                Ok(Some(Event::Revoked(partitions)))
            }
            None => Ok(None),
        }
    }

    fn each(&mut self, partitions: &[Partition], mut act: impl FnMut(&mut Self, usize)) {
        for partition in partitions {
            let indexes: Vec<_> = self.layout.of_partition(&self.topics, *partition).collect();
            indexes.into_iter().for_each(|index| act(self, index));
        }
    }

    fn line_up(&mut self, index: usize) {
        let reading = &mut self.readings[index];
        if reading.mine && !reading.paused && !std::mem::replace(&mut reading.turn, true) {
            self.ring.push_back(index);
        }
    }

    /// One round over the partitions that may have records.
    fn round(&mut self, max: Fetch) -> Vec<Record> {
        while let Some(index) = self.shared.rung() {
            self.line_up(index);
        }
        let Some(client) = self.client.clone() else { return Vec::new() };
        let mut taken = Vec::new();
        let mut bytes = 0;
        let part = (max.records / self.ring.len().max(1)).max(TURN);
        for _ in 0..self.ring.len() {
            let Some(index) = self.ring.pop_front() else { break };
            let at = self.layout.at(index);
            let reading = &mut self.readings[index];
            if !reading.mine || reading.paused {
                reading.turn = false;
                continue;
            }
            let most = taken.len() + part.min(max.records.max(1) - taken.len());
            let empty = loop {
                if taken.len() >= most {
                    break false;
                }
                let Some(record) = reading.held.take().or_else(|| next(&client, index, at)) else { break true };
                if !reading.expects(&record) {
                    continue;
                }
                if !taken.is_empty() && bytes + record.body.len() > max.bytes {
                    reading.held = Some(record);
                    break false;
                }
                bytes += record.body.len();
                reading.next = Some(record.offset.next().0);
                taken.push(record);
            };
            if empty {
                reading.turn = false;
            } else {
                self.ring.push_back(index);
            }
            if taken.len() >= max.records || bytes >= max.bytes && !taken.is_empty() {
                break;
            }
        }
        taken
    }

    /// The offsets as librdkafka takes them, without those that were committed already: offsets only grow.
    fn list(&self, offsets: &[(TopicPartition, Offset)]) -> PortResult<(TopicPartitionList, Vec<(usize, u64)>)> {
        let mut list = TopicPartitionList::with_capacity(offsets.len());
        let mut fresh = Vec::with_capacity(offsets.len());
        for (at, offset) in offsets {
            let index = self.layout.index(*at)?;
            if self.readings[index].committed.is_some_and(|committed| offset.0 <= committed) {
                continue;
            }
            let place = (self.settings.topic(at.topic), i32::from(at.partition.0));
            list.add_partition_offset(&place.0, place.1, At::Offset(offset.0 as i64))
                .map_err(|error| PortError::Rejected(error.to_string()))?;
            fresh.push((index, offset.0));
        }
        Ok((list, fresh))
    }

    /// Waits for a commit, and keeps it where it takes too long: two at once could pass each other.
    async fn committed(&mut self) -> PortResult<()> {
        let Some(running) = &mut self.committing else { return Ok(()) };
        match tokio::time::timeout(self.settings.ask, &mut *running).await {
            Ok(done) => {
                self.committing = None;
                done.unwrap_or_else(|_| Err(PortError::Unknown("the commit was interrupted".into())))
            }
            Err(_) => Err(PortError::Unknown("Kafka does not answer for a commit".into())),
        }
    }
}

impl Reading {
    /// Not what was seen already. What is missing is said: it cannot be had any more. So is what comes where was read before: the
    /// log was cut or made anew, and something else stands there. (The last one may come twice when a rebalance interrupts.)
    fn expects(&mut self, record: &Record) -> bool {
        let (Some(next), got) = (self.next, record.offset.0) else { return true };
        if got + 1 < next && !std::mem::replace(&mut self.behind, true) {
            tracing::error!(
                at = %record.at, from = got, read = next,
                "the log goes on before what was read: it was cut or made anew, and what was appended since is passed over. Stop what \
                 reads it and set its group back (docs/kafka.md)"
            );
        }
        if got > next {
            tracing::error!(
                at = %record.at, from = next, to = got,
                "records are missing from the log: retention removed them before they were read, or brokers lost them"
            );
        }
        got >= next
    }
}

/// The next record that was fetched of a partition.
fn next(client: &Client, index: usize, at: TopicPartition) -> Option<Record> {
    let queue = client.queue(index)?;
    loop {
        match queue.poll(Duration::ZERO)? {
            Ok(message) => {
                debug_assert_eq!(message.partition(), i32::from(at.partition.0));
                return Some(form::record(at, &message));
            }
            Err(error) => tracing::warn!(%at, %error, "reading from Kafka"),
        }
    }
}

/// Lets go of a client on a thread that may wait: the last one to do so closes it.
fn retire(old: Option<Arc<Client>>, new: Option<&Arc<Client>>) {
    if let Some(old) = old
        && new.is_none_or(|new| !Arc::ptr_eq(&old, new))
    {
        drop(tokio::task::spawn_blocking(move || drop(old)));
    }
}

#[async_trait]
impl Consumer for Member {
    async fn poll(&mut self, max: Fetch) -> PortResult<Event> {
        loop {
            if let Some(event) = self.event()? {
                return Ok(event);
            }
            let records = self.round(max);
            if !records.is_empty() {
                return Ok(Event::Records(records));
            }
            self.shared.bell.notified().await;
        }
    }

    fn pause(&mut self, at: &[TopicPartition]) {
        for at in at {
            if let Ok(index) = self.layout.index(*at) {
                self.readings[index].paused = true;
            }
        }
    }

    fn resume(&mut self, at: &[TopicPartition]) {
        for at in at {
            if let Ok(index) = self.layout.index(*at) {
                self.readings[index].paused = false;
                self.line_up(index);
            }
        }
    }

    async fn commit(&mut self, offsets: &[(TopicPartition, Offset)]) -> PortResult<()> {
        if let Err(why @ PortError::Unknown(_)) = self.committed().await
            && self.committing.is_some()
        {
            return Err(why);
        }
        {
            let state = self.shared.state.lock();
            for (at, _) in offsets {
                state.owned.may_commit(at.partition)?;
            }
        }
        let (list, fresh) = self.list(offsets)?;
        if fresh.is_empty() {
            return Ok(());
        }
        let Some(client) = self.client.clone() else {
            return Err(PortError::Rejected("this member owns nothing".into()));
        };
        self.committing =
            Some(tokio::task::spawn_blocking(move || match client.consumer.commit(&list, CommitMode::Sync) {
                Ok(()) => Ok(()),
                Err(error) => Err(error.rdkafka_error_code().map_or_else(
                    || PortError::Unknown(format!("the commit was not answered: {error}")),
                    told::uncommitted,
                )),
            }));
        self.committed().await?;
        for (index, offset) in fresh {
            self.readings[index].committed = Some(offset);
        }
        Ok(())
    }

    async fn release(&mut self, partitions: &[Partition]) -> PortResult<()> {
        self.each(partitions, |member, index| member.readings[index].committed = None);
        self.shared.state.lock().owned.released(partitions);
        Ok(())
    }

    async fn leave(mut self: Box<Self>) -> PortResult<()> {
        let _ = self.committed().await;
        let (mut left, patience) = (self.shared.left.subscribe(), self.settings.ask);
        drop(self);
        match tokio::time::timeout(patience, left.wait_for(|left| *left)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(PortError::Unknown("the group did not answer: the session lapses by itself".into())),
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // The thread closes the client, so it is to have the last hold of it.
        self.client = None;
        self.shared.end();
    }
}
