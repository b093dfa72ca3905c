//! Owning partitions: joining the group, taking over, giving up, losing, leaving. All of it goes on beside the work for the
//! partitions that stay: nothing here holds the intake up. (Kafka's client reads none of them while some are being given up.)
//!
//! **Taking over.** What comes is paused until its epoch is raised and its lanes' ends are known; a history or log that is
//! away is asked again, with waits in between, and a partition that goes meanwhile is released as soon as the call that is
//! under way has ended. Then the log is asked, by a commit that changes nothing, whether the partition is still this member's:
//! who was frozen in the middle has raised an epoch above the one of the owner after it, and must not write under it. **Giving up.** No more of it is fed; once nothing of it is in flight (records, due rows, the settler's
//! work) its offsets are committed and it is released, at the latest when the drain time is over: what was not finished is
//! dropped then, and the next owner does it again from the committed offsets. **Losing.** A newer owner took it, or this one
//! can do nothing for it: all of it is dropped at once. If the log has not taken it away by the drain time, the group is
//! joined anew, so that whoever the log means begins from what is committed.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, join_all},
    stream::FuturesUnordered,
};
use schemas::{
    Epoch, Millis, Offset, Partition, Priority, Topic, TopicPartition,
    port::{Consumer, PortError, PortResult},
    vital,
};
use tokio_util::sync::CancellationToken;

use super::{GROUP, Gone, Intake, Owned, Parts, orders::Orders, topics};
use crate::{backoff::Backoff, operators::repeat::again, tenants::Kind};

/// What a takeover came to.
pub(super) struct TakenOver {
    ticket: u64,
    partitions: Vec<Partition>,
    /// `None`: it was not done, because one of several could not be, or nobody wants it any more.
    owned: Option<Vec<Begun>>,
}

/// What a partition is taken over with.
#[derive(Debug, Clone, Copy)]
struct Begun {
    owned: Owned,
    /// Where the group stands in one of its topics: committing it again changes nothing.
    stands: (TopicPartition, Offset),
}

/// A partition that is being taken over.
struct Arriving {
    ticket: u64,
    unwanted: CancellationToken,
}

/// A partition that is being given up.
struct Leaving {
    until: Millis,
    settled: bool,
}

/// What is on its way in or out.
#[derive(Default)]
pub(super) struct Owning {
    tickets: u64,
    takeovers: FuturesUnordered<BoxFuture<'static, TakenOver>>,
    /// Takeovers whose call is under way, by partition: a partition is not released before it has ended.
    calling: BTreeMap<Partition, usize>,
    arriving: BTreeMap<Partition, Arriving>,
    leaving: BTreeMap<Partition, Leaving>,
    /// Lost, and not yet taken away by the log: until when it has time to.
    lost: BTreeMap<Partition, Millis>,
    rejoining: bool,
}

impl Owning {
    /// Whether nothing is under way.
    pub(super) fn is_still(&self) -> bool {
        self.leaving.is_empty() && self.lost.is_empty() && !self.rejoining
    }

    /// Whether a partition is being given up.
    pub(super) fn goes(&self, partition: Partition) -> bool {
        self.leaving.contains_key(&partition)
    }

    /// Waits for the next takeover to end; for ever while none is under way.
    pub(super) async fn next_taken_over(&mut self) -> TakenOver {
        match self.takeovers.next().await {
            Some(taken) => taken,
            None => std::future::pending().await,
        }
    }

    /// The settler has done what it was given of these.
    pub(super) fn settled(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            if let Some(leaving) = self.leaving.get_mut(partition) {
                leaving.settled = true;
            }
        }
    }

    fn begin(&mut self, parts: &Parts, partitions: Vec<Partition>) {
        self.tickets += 1;
        let (ticket, unwanted) = (self.tickets, CancellationToken::new());
        for partition in &partitions {
            self.arriving.insert(*partition, Arriving { ticket, unwanted: unwanted.clone() });
            *self.calling.entry(*partition).or_default() += 1;
        }
        self.takeovers.push(take_over(parts.clone(), ticket, partitions, unwanted).boxed());
    }
}

/// Joins the group, however long it takes. `None`: the process stops.
pub(super) async fn join(parts: &Parts) -> Option<Box<dyn Consumer>> {
    let (topics, mut backoff) = (topics(), Backoff::default());
    loop {
        match parts.log.join(GROUP, &topics).await {
            Ok(consumer) => return Some(consumer),
            Err(why) => again("join", &why, &backoff),
        }
        tokio::select! {
            () = parts.stop.cancelled() => return None,
            () = backoff.wait() => {}
        }
    }
}

/// Takes partitions over: raises their epochs and learns where what is new begins. Several are tried once, together; one is
/// tried until it is done or not wanted any more.
async fn take_over(parts: Parts, ticket: u64, partitions: Vec<Partition>, unwanted: CancellationToken) -> TakenOver {
    let mut backoff = Backoff::default();
    let owned = loop {
        match once(&parts, &partitions).await {
            Ok(owned) => break Some(owned),
            Err(why) => again("take_over", &why, &backoff),
        }
        if partitions.len() > 1 {
            break None;
        }
        tokio::select! {
            () = unwanted.cancelled() => break None,
            () = backoff.wait() => {}
        }
    };
    TakenOver { ticket, partitions, owned }
}

async fn once(parts: &Parts, partitions: &[Partition]) -> PortResult<Vec<Begun>> {
    let epochs = parts.gates.history.call(parts.history.take_over(partitions)).await?;
    if epochs.len() != partitions.len() {
        return Err(PortError::Rejected("history raised another number of epochs than was asked".into()));
    }
    let within = Duration::from_millis(parts.limits.flow.record_ms);
    let begun = join_all(partitions.iter().zip(epochs).map(|(partition, epoch)| async move {
        let (mut ends, mut start) = ([Offset(0); 3], Offset(0));
        for (lane, end) in Priority::ALL.into_iter().zip(&mut ends) {
            (start, *end) = in_time(within, parts.log.bounds(lane_of(lane, *partition))).await?;
        }
        let at = lane_of(Priority::Low, *partition);
        let committed = in_time(within, parts.log.committed(GROUP, &[at])).await?;
        let stands = (at, committed.first().copied().flatten().unwrap_or(start));
        Ok(Begun { owned: Owned { epoch, ends }, stands })
    }));
    begun.await.into_iter().collect()
}

fn lane_of(lane: Priority, partition: Partition) -> TopicPartition {
    TopicPartition { topic: Topic::Lane(lane), partition }
}

async fn in_time<T>(within: Duration, call: impl Future<Output = PortResult<T>>) -> PortResult<T> {
    let answer = tokio::time::timeout(within, call).await;
    answer.unwrap_or_else(|_| Err(PortError::Unknown("the log did not answer in time".into())))
}

/// Every topic of these partitions.
fn all_of(partitions: &[Partition]) -> Vec<TopicPartition> {
    let of = |topic: Topic| partitions.iter().map(move |partition| TopicPartition { topic, partition: *partition });
    topics().into_iter().flat_map(of).collect()
}

fn numbers(partitions: &[Partition]) -> Vec<u16> {
    partitions.iter().map(|partition| partition.0).collect()
}

impl Intake {
    /// Partitions came: they are taken over, and nothing of them is read before.
    pub(super) fn assigned(&mut self, partitions: Vec<Partition>) {
        self.consumer.pause(&all_of(&partitions));
        for partition in &partitions {
            // Whatever was known of an earlier time as owner is over.
            self.drop_all(*partition);
            self.owning.leaving.remove(partition);
            self.owning.lost.remove(partition);
        }
        self.owning.begin(&self.parts, partitions);
    }

    /// A takeover has ended.
    pub(super) async fn taken_over(&mut self, taken: TakenOver) {
        let TakenOver { ticket, mut partitions, owned } = taken;
        for partition in &partitions {
            if let Some(calls) = self.owning.calling.get_mut(partition) {
                *calls -= 1;
            }
        }
        self.owning.calling.retain(|_, calls| *calls > 0);
        let mut owned = owned.unwrap_or_default().into_iter();
        let owning = &mut self.owning;
        let mut begun = Vec::new();
        partitions.retain(|partition| {
            let owned = owned.next();
            if owning.arriving.get(partition).is_none_or(|arriving| arriving.ticket != ticket) {
                return false;
            }
            let Some(owned) = owned else { return true };
            owning.arriving.remove(partition);
            begun.push((*partition, owned));
            false
        });
        // What could not be taken over together is tried one by one, so that one of them does not hold the others up.
        for partition in partitions {
            self.owning.begin(&self.parts, vec![partition]);
        }
        let told = self.confirmed(begun).await;
        if told.is_empty() {
            return;
        }
        self.parts.history.owns(&told);
        told.iter().for_each(|(partition, epoch)| self.parts.ownership.took(*partition, *epoch));
        let partitions: Vec<_> = told.iter().map(|(partition, _)| *partition).collect();
        tracing::info!(partitions = ?numbers(&partitions), "partitions taken over");
        // What the owner before still owed to nodes may have died with it.
        let dispatch = self.parts.dispatch.clone();
        let telling = async move { dispatch.taken_over(&partitions).await };
        tokio::spawn(vital::task("telling nodes of a new owner", telling));
        let (settler, mine) = (self.settler.clone(), told.clone());
        self.tell_settler(async move {
            settler.assign(mine).await;
            Vec::new()
        });
        self.begin_reading(&told);
    }

    /// Asks the log whether these are still this member's. What it does not say so of is tried again where it was away, and
    /// left alone where it is another's: that it goes is said by the log's own event.
    async fn confirmed(&mut self, begun: Vec<(Partition, Begun)>) -> Vec<(Partition, Epoch)> {
        if begun.is_empty() {
            return Vec::new();
        }
        let stands: Vec<_> = begun.iter().map(|(_, begun)| begun.stands).collect();
        let all = self.commit_within(&stands).await.is_ok();
        let mut told = Vec::with_capacity(begun.len());
        for (partition, Begun { owned, stands }) in begun {
            let answer = if all { Ok(()) } else { self.commit_within(&[stands]).await };
            match answer {
                Ok(()) => {
                    told.push((partition, owned.epoch));
                    self.owned.insert(partition, owned);
                }
                Err(why @ (PortError::Fenced(_) | PortError::Rejected(_))) => {
                    tracing::warn!(%partition, %why, "a partition that was taken over is not this member's any more");
                    let until = self.parts.clock.mono().plus(self.flow().drain_ms);
                    self.owning.lost.insert(partition, until);
                }
                Err(why) => {
                    tracing::warn!(%partition, %why, "a takeover is tried again: the log does not say whose it is");
                    self.owning.begin(&self.parts, vec![partition]);
                }
            }
        }
        told
    }

    /// Lets records of these come, of lanes that have room.
    fn begin_reading(&mut self, partitions: &[(Partition, Epoch)]) {
        let (crowd, waits) = (&self.parts.crowd, self.orders.wait());
        let open = |at: &TopicPartition| match at.topic {
            Topic::Lane(lane) => !crowd.is_full(lane),
            Topic::Outcomes => !waits,
            Topic::Retry(_) | Topic::Dead => true,
        };
        let partitions: Vec<_> = partitions.iter().map(|(partition, _)| *partition).collect();
        let at: Vec<_> = all_of(&partitions).into_iter().filter(open).collect();
        self.consumer.resume(&at);
    }

    /// Partitions are to be given up.
    pub(super) fn revoked(&mut self, partitions: &[Partition]) {
        let until = self.parts.clock.mono().plus(self.flow().drain_ms);
        let mut settling = Vec::new();
        for partition in partitions {
            if let Some(arriving) = self.owning.arriving.remove(partition) {
                arriving.unwanted.cancel();
            }
            self.owning.lost.remove(partition);
            let settled = !self.owned.contains_key(partition);
            self.owning.leaving.insert(*partition, Leaving { until, settled });
            if !settled {
                settling.push(*partition);
            }
        }
        self.consumer.pause(&all_of(partitions));
        self.forget_retries(partitions);
        self.settler.leaving(partitions);
        self.tell_settler_revoked(settling);
    }

    fn forget_retries(&mut self, partitions: &[Partition]) {
        let tenants = &self.parts.counters.tenants;
        for held in self.tiers.forget(partitions) {
            tenants.add(tenants.slot(held.item.tenant()), held.lane, Kind::RetryWaiting, -1);
        }
    }

    fn tell_settler_revoked(&mut self, partitions: Vec<Partition>) {
        if partitions.is_empty() {
            return;
        }
        let settler = self.settler.clone();
        self.tell_settler(async move {
            settler.revoke(partitions.clone()).await;
            partitions
        });
    }

    /// Commits and releases what has nothing in flight any more, or no time left; joins anew where the log does not know
    /// that something was lost.
    pub(super) async fn give_up(&mut self, now: Millis) {
        if self.owning.is_still() {
            return;
        }
        let (ledger, calling) = (&self.ledger, &self.owning.calling);
        let ready = |partition: &Partition, leaving: &Leaving| {
            (leaving.settled && !ledger.holds(*partition) && !calling.contains_key(partition)) || leaving.until <= now
        };
        let ready: Vec<_> = self.owning.leaving.iter().filter(|(p, l)| ready(p, l)).map(|(p, _)| *p).collect();
        if !ready.is_empty() {
            self.release(&ready).await;
        }
        if self.owning.lost.values().any(|until| *until <= now) && !self.owning.rejoining {
            tracing::warn!("a partition was lost and the log still means this member: joining the group anew");
            self.owning.rejoining = true;
            let all: Vec<_> = self.owned.keys().chain(self.owning.arriving.keys()).copied().collect();
            self.revoked(&all);
        }
        if self.owning.rejoining && self.owning.leaving.is_empty() {
            self.rejoin().await;
        }
    }

    async fn release(&mut self, partitions: &[Partition]) {
        // What was done last is committed first.
        self.catch_up();
        self.commit().await;
        let in_time = partitions.iter().all(|partition| !self.ledger.holds(*partition));
        for partition in partitions {
            self.owning.leaving.remove(partition);
            self.drop_all(*partition);
        }
        // Who joins anew releases everything by leaving.
        if !self.owning.rejoining
            && let Err(why) = self.consumer.release(partitions).await
        {
            tracing::warn!(%why, "partitions could not be released; they lapse by themselves");
        }
        tracing::info!(partitions = ?numbers(partitions), in_time, "partitions given up");
    }

    /// Whatever is still in flight of a partition comes to nothing.
    fn drop_all(&mut self, partition: Partition) {
        if self.owned.remove(&partition).is_some() {
            self.parts.ownership.gave_up(partition);
        }
        self.uncommitted.retain(|at, _| at.partition != partition);
        self.ledger.forget(partition);
        self.forget_retries(&[partition]);
        self.settler.leaving(&[partition]);
    }

    /// Drops what somebody was told is another's.
    pub(super) fn forget_lost(&mut self) {
        for (partition, epoch) in self.parts.ownership.take_lost() {
            if self.owned.get(&partition).is_none_or(|owned| owned.epoch != epoch) {
                continue;
            }
            self.drop_all(partition);
            self.consumer.pause(&all_of(&[partition]));
            self.tell_settler_revoked(vec![partition]);
            // One that is being given up is released as soon as the settler has let go of it.
            if !self.owning.goes(partition) {
                let until = self.parts.clock.mono().plus(self.flow().drain_ms);
                self.owning.lost.insert(partition, until);
            }
        }
    }

    /// The log refuses to be read by this member: it is not one any more.
    pub(super) fn unreadable(&mut self, why: &PortError) {
        if matches!(why, PortError::Fenced(_)) && !self.owning.rejoining {
            self.owning.rejoining = true;
            let all: Vec<_> = self.owned.keys().chain(self.owning.arriving.keys()).copied().collect();
            self.revoked(&all);
        }
    }

    /// Becomes a new member of the group, which begins from what is committed.
    async fn rejoin(&mut self) {
        let Some(consumer) = join(&self.parts).await else { return };
        let before = std::mem::replace(&mut self.consumer, consumer);
        if let Err(why) = before.leave().await {
            tracing::warn!(%why, "the group could not be left; the partitions lapse by themselves");
        }
        // Whatever came to the old member meanwhile is the new one's only if the log says so.
        let known = self.owned.keys().chain(self.owning.arriving.keys());
        for partition in known.copied().collect::<Vec<_>>() {
            self.drop_all(partition);
        }
        self.owning.arriving.clear();
        self.owning.rejoining = false;
        self.owning.lost.clear();
        Priority::ALL.into_iter().for_each(|lane| self.parts.crowd.set(lane, false));
    }

    /// Finishes what is in flight within the drain time, commits, and leaves the group, so that others go on at once; then ends what
    /// is left here. Says whether all of it was done.
    pub(super) async fn leave(mut self) -> Result<bool, Gone> {
        let all: Vec<_> = self.owned.keys().copied().collect();
        let drain = Duration::from_millis(self.flow().drain_ms);
        // Takeovers that are under way come to nothing, and nobody waits behind their calls.
        self.owning.takeovers.clear();
        // What the settler has not been told yet is not committed.
        self.orders = Orders::default();
        let settler = self.settler.clone();
        let settled = tokio::time::timeout(drain, settler.revoke(all.clone()));
        let (in_time, _) = tokio::join!(self.drained(&all), settled);
        drop(settler);
        self.commit().await;
        self.tell();
        // What did not end in time is the next owner's from here on.
        all.iter().for_each(|partition| self.parts.ownership.gave_up(*partition));
        let Self { settler, consumer, mut lanes, .. } = self;
        if let Err(why) = consumer.leave().await {
            tracing::warn!(%why, "the group could not be left; the partitions lapse by themselves");
        }
        if let Some(settler) = Arc::into_inner(settler) {
            settler.stop().await;
        }
        // No more feeders: the flows end when they are empty.
        for lane in &mut lanes {
            let (gone, _) = tokio::sync::mpsc::channel(1);
            lane.feeds = gone;
            lane.bell.ring();
        }
        Ok(in_time)
    }

    /// Waits until nothing of these is in flight, or the drain time is over. Says whether nothing is.
    async fn drained(&mut self, partitions: &[Partition]) -> bool {
        let (progress, drain) = (self.parts.progress.clone(), Duration::from_millis(self.flow().drain_ms));
        progress.await_moves(true);
        let drained = async {
            loop {
                self.catch_up();
                if !partitions.iter().any(|partition| self.ledger.holds(*partition)) {
                    return true;
                }
                tokio::select! {
                    () = progress.moved() => {}
                    // A frontier that moved before anyone waited is seen here at the latest.
                    () = tokio::time::sleep(Duration::from_millis(super::IDLE_LOOK_MS / 10)) => {}
                }
            }
        };
        tokio::time::timeout(drain, drained).await.unwrap_or(false)
    }
}
