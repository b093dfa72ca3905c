//! A running process, and how it is taken apart: what takes work in first, what keeps it last.

use std::{sync::Arc, time::Duration};

use schemas::vital;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::{Kept, Role};
use crate::{admin::Running, config::Config, exit::Failure, folder, health::Health, serve::Serving};

/// How long requests under way may take to finish when the process ends.
const FINISH: Duration = Duration::from_secs(10);
/// How long requests under way may take to be refused when nothing goes any more.
const ANSWER: Duration = Duration::from_secs(1);

/// A running process. What its role does not do is not there.
pub struct Service {
    pub(super) role: Role,
    pub(super) stores: Kept,
    pub(super) door: Option<Arc<ingest::Door>>,
    pub(super) topics: Option<ingest::kafka::Running>,
    pub(super) gateway: Option<Arc<gateway::Gateway>>,
    pub(super) pipeline: Running,
    pub(super) public: Option<Serving>,
    pub(super) admin: Serving,
    pub(super) gauges: AbortOnDropHandle<()>,
    pub(super) health: Health,
    pub(super) config: Config,
    pub(super) fatal: watch::Receiver<Option<String>>,
    pub(super) pipeline_failed: Option<watch::Receiver<Option<String>>>,
    pub(super) drain: watch::Sender<bool>,
}

impl Service {
    /// What it does.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Where clients connect, where its role has a listener for them.
    pub fn listen(&self) -> Option<std::net::SocketAddr> {
        self.public.as_ref().map(Serving::address)
    }

    /// Where administrators connect.
    pub fn admin(&self) -> std::net::SocketAddr {
        self.admin.address()
    }

    /// Waits until something ends the process: `Ok` when it was asked to (by signal or by an administrator), else why it
    /// cannot go on.
    pub async fn ended(&self, signalled: impl Future<Output = ()>) -> Result<(), Failure> {
        let (mut fatal, mut drain) = (self.fatal.clone(), self.drain.subscribe());
        let pipeline = async {
            match self.pipeline_failed.clone() {
                Some(mut failed) => failed.wait_for(Option::is_some).await.ok().and_then(|why| why.clone()),
                None => None,
            }
        };
        let failure = tokio::select! {
            () = signalled => return Ok(()),
            _ = drain.wait_for(|drain| *drain) => return Ok(()),
            Ok(why) = fatal.wait_for(Option::is_some) => format!(
                "the store takes no more writes ({}): nothing accepted is lost; look at why and start again",
                why.as_deref().unwrap_or("no reason told")
            ),
            failure = Self::lost() => return Err(failure),
            Some(why) = pipeline => format!("the dataflow has ended ({why}): nothing accepted is lost; start again"),
        };
        Err(Failure::failed(failure))
    }

    /// Waits until a part is lost without which the process would do half of what it is there for ([`vital`]).
    pub async fn lost() -> Failure {
        let what = vital::lost().await;
        Failure::failed(format!("{what} cannot go on, and the log has why: nothing accepted is lost; start again"))
    }

    /// Takes the process apart: no new work, sockets told to come back, what is in flight finished, the stores closed. Says
    /// whether everything finished in its time; what did not is done again after the next start, or by another process.
    pub async fn close(self) -> bool {
        self.drain.send_replace(true);
        folder::remove_endpoint(&self.config.data, self.role);
        let mut clean = true;
        if let Some(topics) = self.topics {
            clean &= tokio::time::timeout(FINISH, topics.close()).await.is_ok();
        }
        if let Some(gateway) = &self.gateway {
            gateway.drain().await;
        }
        if let Some(public) = &self.public {
            clean &= public.stop(FINISH).await;
        }
        if let Some(door) = &self.door {
            clean &= tokio::time::timeout(FINISH, door.close()).await.is_ok();
        }
        let pipeline = self.pipeline.lock().take();
        if let Some(pipeline) = pipeline {
            clean &= pipeline.stop().await;
        }
        drop((self.gauges, self.health));
        // Administrators lose nothing by being cut off.
        self.admin.stop(ANSWER).await;
        let stores = self.stores.lock().take();
        if let Some(stores) = stores {
            clean &= tokio::time::timeout(FINISH, stores.close()).await.is_ok();
        }
        clean
    }

    /// Ends because the store, the dataflow or another vital part cannot go on: waiting for work would gain nothing, but
    /// whoever asked is told.
    pub async fn abandon(self) {
        folder::remove_endpoint(&self.config.data, self.role);
        drop((self.gauges, self.health));
        let public = async {
            if let Some(public) = &self.public {
                public.stop(ANSWER).await;
            }
        };
        tokio::join!(public, self.admin.stop(ANSWER));
    }
}
