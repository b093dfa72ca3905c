//! Owning partitions: joining the group, taking over, giving up, leaving.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use schemas::{
    Offset, Partition, Priority, Topic, TopicPartition,
    port::{Consumer, PortResult},
};

use super::{GROUP, Gone, Intake, Owned, Parts, topics};
use crate::{backoff::Backoff, operators::record::again};

/// Calls until it happened; `None`: the process stops.
async fn until<T, F: Future<Output = PortResult<T>>>(
    parts: &Parts,
    act: &'static str,
    call: impl Fn() -> F,
) -> Option<T> {
    let mut backoff = Backoff::default();
    loop {
        match call().await {
            Ok(value) => return Some(value),
            Err(why) => again(act, &why, &backoff),
        }
        tokio::select! {
            () = parts.stop.cancelled() => return None,
            () = backoff.wait() => {}
        }
    }
}

/// Joins the group.
pub(super) async fn join(parts: &Parts) -> Option<Box<dyn Consumer>> {
    let topics = topics();
    until(parts, "join", || parts.log.join(GROUP, &topics)).await
}

impl Intake {
    /// Takes partitions over: raises their epochs and learns where what is new begins. Nothing of them is fed before.
    pub(super) async fn assigned(&mut self, partitions: Vec<Partition>) {
        // Of an earlier time as owner something may still be in flight: it must not meet its own replay.
        self.drained(&partitions, None).await;
        let parts = &self.parts;
        let Some(epochs) = until(parts, "take_over", || parts.history.take_over(&partitions)).await else { return };
        let mut owned = Vec::with_capacity(partitions.len());
        for (partition, epoch) in partitions.iter().copied().zip(epochs) {
            let ends = join_all(Priority::ALL.map(|lane| async move {
                let at = TopicPartition { topic: Topic::Lane(lane), partition };
                until(parts, "bounds", || parts.log.bounds(at)).await.map(|(_, end)| end)
            }));
            let [Some(high), Some(normal), Some(low)] = ends.await[..] else { return };
            let ends: [Offset; 3] = [high, normal, low];
            owned.push((partition, Owned { epoch, ends }));
        }
        let told = owned.iter().map(|(partition, owned)| (*partition, owned.epoch)).collect();
        self.owned.extend(owned);
        self.settler.assign(told).await;
        // What is paused stays so for the new ones too.
        let at = |topic| partitions.iter().map(move |p| TopicPartition { topic, partition: *p }).collect::<Vec<_>>();
        for lane in Priority::ALL {
            if self.lanes[super::index(lane)].paused {
                self.consumer.pause(&at(Topic::Lane(lane)));
            }
        }
        if self.taking.is_some() {
            self.consumer.pause(&at(Topic::Outcomes));
        }
        tracing::info!(partitions = ?partitions.iter().map(|p| p.0).collect::<Vec<_>>(), "partitions taken over");
    }

    /// Gives partitions up: feeds no more of them, waits for what is in flight, commits, releases.
    pub(super) async fn revoked(&mut self, partitions: Vec<Partition>) {
        self.tiers.forget(&partitions);
        let deadline = self.flow().drain_ms;
        let in_time = self.drained(&partitions, Some(deadline)).await;
        // Its facts are settled before the offsets are read; records it was to take go on ahead of that.
        if let Some(taking) = self.taking.take() {
            taking.await;
            self.consumer.resume(&self.of_topic(Topic::Outcomes));
        }
        self.settler.revoke(partitions.clone()).await;
        self.commit().await;
        self.owned.retain(|partition, _| !partitions.contains(partition));
        self.uncommitted.retain(|at, _| !partitions.contains(&at.partition));
        self.ledger.forget(&partitions);
        if let Err(why) = self.consumer.release(&partitions).await {
            tracing::warn!(%why, "partitions could not be released; they lapse by themselves");
        }
        tracing::info!(partitions = ?partitions.iter().map(|p| p.0).collect::<Vec<_>>(), in_time, "partitions given up");
    }

    /// Waits until nothing of these is in flight, or so long. Says whether nothing is.
    async fn drained(&mut self, partitions: &[Partition], within_ms: Option<u64>) -> bool {
        let progress = self.parts.progress.clone();
        progress.await_moves(true);
        let drained = async {
            loop {
                self.catch_up();
                if !self.ledger.holds(partitions) {
                    return true;
                }
                tokio::select! {
                    () = progress.moved() => {}
                    // A frontier that moved before anyone waited is seen here at the latest.
                    () = tokio::time::sleep(Duration::from_millis(super::IDLE_LOOK_MS / 10)) => {}
                    () = self.parts.stop.cancelled(), if within_ms.is_none() => return false,
                }
            }
        };
        match within_ms {
            Some(ms) => tokio::time::timeout(Duration::from_millis(ms), drained).await.unwrap_or(false),
            None => drained.await,
        }
    }

    /// Finishes what is in flight within the drain time, commits, and leaves the group. Says whether all of it was done.
    pub(super) async fn leave(mut self) -> Result<bool, Gone> {
        let all: Vec<_> = self.owned.keys().copied().collect();
        let deadline = self.flow().drain_ms;
        let in_time = self.drained(&all, Some(deadline)).await;
        drop(self.taking.take());
        self.commit().await;
        self.tell();
        let Self { settler, consumer, mut lanes, .. } = self;
        let settler = Arc::into_inner(settler);
        let mut consumer = consumer;
        if let Some(settler) = settler {
            settler.revoke(all.clone()).await;
            let done = settler.done();
            if !done.is_empty()
                && let Err(why) = consumer.commit(&done).await
            {
                tracing::warn!(%why, "the last offsets of outcomes could not be committed");
            }
            settler.stop().await;
        }
        if let Err(why) = consumer.leave().await {
            tracing::warn!(%why, "the group could not be left; the partitions lapse by themselves");
        }
        // No more feeders: the flows end when they are empty.
        for lane in &mut lanes {
            let (gone, _) = tokio::sync::mpsc::channel(1);
            lane.feeds = gone;
            lane.bell.ring();
        }
        Ok(in_time)
    }
}
