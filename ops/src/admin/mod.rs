//! The administrators' API, on a listener of its own. Everything here needs the permission `admin`. Administrators of the
//! operators' tenant see every tenant; those of another see their own, and do not end the process.

mod dead;
mod gate;
pub mod node;
mod query;
mod tail;

use std::sync::Arc;

use axum::{
    Router,
    extract::FromRef,
    routing::{get, post},
};
use ingest::auth::Auth;
use parking_lot::Mutex;
use schemas::{
    Clock, Limits, Tenant,
    port::{History, Log, Presence},
};
use tokio::sync::watch;

pub use gate::Administrator;

/// The dataflow while it runs; taken out when it is stopped.
pub type Running = Arc<Mutex<Option<pipeline::Pipeline>>>;

/// What administrators can look at and turn.
pub struct Parts {
    /// Who is believed.
    pub auth: Arc<Auth>,
    /// The log.
    pub log: Arc<dyn Log>,
    /// The history.
    pub history: Arc<dyn History>,
    /// Presence.
    pub presence: Arc<dyn Presence>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The bounds.
    pub limits: Arc<Limits>,
    /// The door, where it is here.
    pub door: Option<Arc<ingest::Door>>,
    /// The sockets, where all of them are here.
    pub gateway: Option<Arc<gateway::Gateway>>,
    /// The dataflow, where it runs here.
    pub pipeline: Running,
    /// The tenant whose administrators see everything.
    pub operators: Tenant,
    /// Ends the process, gently.
    pub drain: watch::Sender<bool>,
}

/// What every handler is given.
#[derive(Clone)]
pub struct Admin(Arc<Parts>);

impl FromRef<Admin> for Arc<Auth> {
    fn from_ref(admin: &Admin) -> Self {
        Arc::clone(&admin.0.auth)
    }
}

/// The routes.
pub fn routes(parts: Parts) -> Router {
    Router::new()
        .route("/admin/v1/dead", get(dead::list))
        .route("/admin/v1/dead/requeue", post(dead::requeue))
        .route("/admin/v1/dead/{id}", get(dead::show))
        .route("/admin/v1/books", get(node::books))
        .route("/admin/v1/nodes", get(node::nodes))
        .route("/admin/v1/lanes", get(node::lanes))
        .route("/admin/v1/drain", post(node::drain))
        .route("/admin/v1/tail/{topic}", get(tail::tail))
        .with_state(Admin(Arc::new(parts)))
}
