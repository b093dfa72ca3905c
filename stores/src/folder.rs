//! What stands in the data folder: the engine, and on it the log, the history, or both.

use std::sync::Arc;

use schemas::{
    Clock,
    port::{History, Log},
};
use tokio::sync::watch;

use crate::{
    OpenError, Settings, Stats, embedded::Engine, history::embedded::EmbeddedHistory, keeper::Keeper, log::EmbeddedLog,
};

/// An open data folder.
pub(crate) struct Folder {
    engine: Engine,
    log: Option<(EmbeddedLog, Keeper)>,
    history: Option<Arc<EmbeddedHistory>>,
}

impl Folder {
    /// Opens it for what is to be kept in it. Recovery reads the journal, which may take a while and blocks, so it has a
    /// thread of its own.
    pub(crate) async fn open(
        settings: Settings,
        clock: Arc<dyn Clock>,
        with_log: bool,
        with_history: bool,
    ) -> Result<Self, OpenError> {
        let path = settings.data.clone();
        let opening = tokio::task::spawn_blocking(move || {
            let Settings { data, limits, .. } = settings;
            let engine = Engine::open(&data, &limits)?;
            let log = match with_log {
                true => {
                    let log = EmbeddedLog::open(engine.clone(), clock.clone(), &limits)?;
                    let keeper = Keeper::start(log.clone(), clock.clone());
                    Some((log, keeper.map_err(OpenError::io("starting the keeper of", data))?))
                }
                false => None,
            };
            let history = match with_history {
                true => Some(Arc::new(EmbeddedHistory::open(engine.clone(), clock, &limits)?)),
                false => None,
            };
            Ok(Self { engine, log, history })
        });
        let ended = |why: tokio::task::JoinError| OpenError::Io {
            what: "opening the store in",
            path,
            source: std::io::Error::other(why.to_string()),
        };
        opening.await.map_err(ended)?
    }

    pub(crate) fn log(&self) -> Option<Arc<dyn Log>> {
        self.log.as_ref().map(|(log, _)| Arc::new(log.clone()) as Arc<dyn Log>)
    }

    pub(crate) fn history(&self) -> Option<Arc<dyn History>> {
        self.history.clone().map(|history| history as Arc<dyn History>)
    }

    pub(crate) fn fatal(&self) -> watch::Receiver<Option<String>> {
        self.engine.fatal()
    }

    pub(crate) fn stats(&self) -> Stats {
        self.engine.stats()
    }

    pub(crate) async fn close(self) {
        if let Some((_, keeper)) = self.log {
            keeper.stop().await;
        }
        if let Some(history) = self.history
            && let Err(error) = history.flush().await
        {
            tracing::warn!(%error, "the last cursors were not written: those devices are sent a little twice");
        }
        self.engine.close().await;
    }
}
