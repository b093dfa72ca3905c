//! Decides: the dataflow from lanes to deliveries. The only crate that names timely.
//!
//! Each instance is a thread with the flow ([`flow`]) of each lane, a task that reads and commits (`intake`), and a settler
//! ([`settle`]) that keeps statuses. Instances share nothing but the ports; which partitions each has, the log's group says.

mod ages;
mod backoff;
mod believed;
pub mod books;
#[cfg(test)]
mod contest;
mod conversations;
mod credit;
mod crowd;
mod decode;
mod effects;
mod failed;
mod flow;
pub mod functions;
mod gate;
mod gauges;
mod handed;
mod host;
mod intake;
mod item;
mod ledger;
#[cfg(test)]
mod memory;
mod operators;
mod ownership;
mod place;
mod progress;
mod receipts;
pub mod requeue;
mod rim;
mod settle;
mod shared;
mod steady;
mod sweep;
mod tails;
mod tenants;
#[cfg(test)]
mod testing;
mod tiers;
mod trace;
mod unlocated;
mod wake;
mod watch;

use std::{fmt, panic::AssertUnwindSafe, sync::Arc};

use futures::{FutureExt, future::join_all};
use schemas::{
    Clock, Limits,
    port::{Dispatch, History, Log, Presence},
};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch as tell},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

pub use functions::Function;
pub use gauges::Gauges;
pub use intake::GROUP;
pub use tenants::{ByTenant, OfTenant};

use crate::{
    crowd::Crowd,
    failed::Failed,
    gate::Gates,
    gauges::Counters,
    handed::Handed,
    host::Host,
    intake::{Gone, Intake, LaneIn},
    operators::source::FEEDS,
    ownership::Ownership,
    progress::Progress,
    settle::{Settler, SettlerParts},
    shared::{Kit, Ports},
};

/// What a pipeline is made of.
pub struct Parts {
    /// The log.
    pub log: Arc<dyn Log>,
    /// The history.
    pub history: Arc<dyn History>,
    /// Where users are.
    pub presence: Arc<dyn Presence>,
    /// What acts.
    pub dispatch: Arc<dyn Dispatch>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The bounds.
    pub limits: Arc<Limits>,
    /// How many instances: threads that each own a share of the partitions. At least one.
    pub instances: usize,
    /// User code, in the order in which it judges.
    pub functions: Vec<Arc<dyn Function>>,
}

/// A pipeline could not be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartError {
    /// The system gave no thread, or the dataflow could not be built on it.
    Instance(String),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instance(why) => {
                write!(f, "an instance of the pipeline could not be started ({why}); start fewer with `instances`")
            }
        }
    }
}

impl std::error::Error for StartError {}

/// A running pipeline.
pub struct Pipeline {
    stop: CancellationToken,
    instances: Vec<Instance>,
    failed: tell::Receiver<Option<String>>,
}

/// One of its instances. Fields are dropped in this order.
struct Instance {
    intake: JoinHandle<bool>,
    host: Host,
    counters: Arc<Counters>,
}

/// Starts a pipeline on this runtime.
// The parts are given away: what runs owns them.
#[allow(clippy::needless_pass_by_value)]
pub fn start(parts: Parts, runtime: Handle) -> Result<Pipeline, StartError> {
    let stop = CancellationToken::new();
    let (failed, watched) = Failed::channel();
    let mut instances = Vec::new();
    let gates = Arc::new(Gates::new(&parts.limits, &parts.clock));
    for number in 0..parts.instances.max(1) {
        instances.push(Instance::start(number, &parts, &gates, &runtime, &stop, &failed)?);
    }
    Ok(Pipeline { stop, instances, failed: watched })
}

impl Instance {
    fn start(
        number: usize,
        parts: &Parts,
        gates: &Arc<Gates>,
        runtime: &Handle,
        stop: &CancellationToken,
        failed: &Failed,
    ) -> Result<Self, StartError> {
        let Parts { log, history, presence, dispatch, clock, limits, functions, .. } = parts;
        let (counters, progress) = (Arc::new(Counters::new(limits.flow.tenants_named)), Arc::new(Progress::default()));
        let handed = Arc::new(Handed::new(4 * limits.flow.in_flight));
        let ownership = Arc::new(Ownership::of(log.partitions()));
        let crowd = Arc::new(Crowd::default());
        let kit = Kit {
            ports: Ports {
                log: log.clone(),
                history: history.clone(),
                presence: presence.clone(),
                dispatch: dispatch.clone(),
            },
            clock: clock.clone(),
            limits: limits.clone(),
            handed: handed.clone(),
            progress: progress.clone(),
            counters: counters.clone(),
            ownership: ownership.clone(),
            gates: gates.clone(),
            functions: functions.clone().into(),
        };
        let ways = [(); 3].map(|()| mpsc::channel(FEEDS));
        let (feeds, fed): (Vec<_>, Vec<_>) = ways.into_iter().unzip();
        let fed = fed.try_into().map_err(|_| StartError::Instance("three lanes".into()))?;
        let (host, bells) = Host::start(kit, fed, runtime.clone(), failed.clone()).map_err(StartError::Instance)?;
        let mut ways = feeds.into_iter().zip(bells);
        let lanes = [(); 3].map(|()| ways.next());
        let [Some(high), Some(normal), Some(low)] = lanes else {
            return Err(StartError::Instance("three lanes".into()));
        };
        let lanes = [high, normal, low].map(|(feeds, bell)| LaneIn { feeds, bell, epoch: 0 });
        // One sweep's worth: what is due is read again while it is not done.
        let (feed, due) = mpsc::channel(1);
        let settler = SettlerParts {
            log: log.clone(),
            history: history.clone(),
            dispatch: dispatch.clone(),
            clock: clock.clone(),
            limits: limits.clone(),
            handed,
            ownership: ownership.clone(),
            gates: gates.clone(),
            crowd: crowd.clone(),
            feed,
            failed: failed.clone(),
        };
        let intake = intake::Parts {
            log: log.clone(),
            history: history.clone(),
            dispatch: dispatch.clone(),
            clock: clock.clone(),
            limits: limits.clone(),
            counters: counters.clone(),
            progress,
            crowd,
            ownership,
            gates: gates.clone(),
            stop: stop.clone(),
        };
        let settler = Settler::start(settler, runtime);
        let failed = failed.clone();
        let intake = runtime.spawn(async move {
            // One that panics must not look like one that has nothing to do.
            match AssertUnwindSafe(Intake::run(intake, lanes, settler, due)).catch_unwind().await {
                Ok(Ok(drained)) => drained,
                Ok(Err(Gone)) | Err(_) => {
                    failed.tell(format!("dataflow instance {number} has ended"));
                    false
                }
            }
        });
        Ok(Self { intake, host, counters })
    }
}

impl Pipeline {
    /// Stops: feeds no more, finishes what is in flight within `drain_ms`, commits and leaves the group. True: all of it was
    /// finished. What was not is done again after the next start.
    pub async fn stop(mut self) -> bool {
        self.stop.cancel();
        let instances = std::mem::take(&mut self.instances);
        let ends = join_all(instances.into_iter().map(|instance| async move {
            let Instance { intake, mut host, .. } = instance;
            let drained = intake.await.unwrap_or(false);
            let ended = tokio::task::spawn_blocking(move || host.end()).await.is_ok();
            drained && ended
        }));
        ends.await.into_iter().all(|drained| drained)
    }

    /// Says why, if an instance has ended by itself: the process should end and be started again.
    pub fn failed(&self) -> tell::Receiver<Option<String>> {
        self.failed.clone()
    }

    /// What it is doing, by tenant.
    pub fn by_tenant(&self) -> ByTenant {
        let mut sum = ByTenant::new();
        self.instances.iter().for_each(|instance| instance.counters.tenants.sum_into(&mut sum));
        sum
    }

    /// What it is doing.
    pub fn gauges(&self) -> Gauges {
        let mut sum = Gauges::default();
        self.instances.iter().for_each(|instance| instance.counters.sum_into(&mut sum));
        sum
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
