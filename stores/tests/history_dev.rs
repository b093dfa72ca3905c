#![allow(missing_docs, unreachable_pub)]
mod conformance {
    #[path = "/work/main/tests/src/conformance/history.rs"]
    pub mod history;
}
use std::sync::Arc;
use schemas::{time::ManualClock, limits::StoreLimits, port::History, Timestamp};
use stores::{Settings, Stores};
struct Embedded { dir: tempfile::TempDir, stores: Option<Stores> }
impl Embedded {
    async fn new() -> Self { let dir = tempfile::tempdir().unwrap(); let stores = Some(open(&dir)); Self { dir, stores } }
}
fn open(dir: &tempfile::TempDir) -> Stores {
    let settings = Settings { data: dir.path().into(), limits: StoreLimits::default(), presence_ms: 1000 };
    Stores::open(settings, Arc::new(ManualClock::at(Timestamp(1_800_000_000_000)))).unwrap()
}
#[async_trait::async_trait]
impl conformance::history::Installation for Embedded {
    fn history(&self) -> Arc<dyn History> { self.stores.as_ref().unwrap().history.clone() }
    async fn restart(&mut self) { self.stores.take().unwrap().close().await; self.stores = Some(open(&self.dir)); }
}
history_conformance!(embedded: Embedded::new());
