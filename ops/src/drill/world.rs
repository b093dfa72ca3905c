//! What all people of a drill share: where the server is, who they are, the ledger they write, and when they may send.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, AtomicUsize},
};

use parking_lot::Mutex;
use schemas::Clock;
use serde_json::Value;
use tokio::sync::{RwLock, watch};
use tokio_util::sync::CancellationToken;

use super::ledger::{Promise, Seen, Sent};

/// Faults seen while it goes on that are kept in words.
const KEPT: usize = 100;

/// The tenants of a drill.
pub(super) const TENANTS: [&str; 2] = ["north", "south"];

/// A recipient and its phone.
pub(super) struct Recipient {
    /// Whose.
    pub(super) tenant: usize,
    /// Its number, as a phone's.
    pub(super) number: String,
    /// Its token.
    pub(super) token: String,
    /// Whether its phone connects only while an account is drawn up.
    pub(super) sleeps: bool,
    /// What the phone saw, each id once, in order.
    pub(super) seen: Mutex<Vec<Seen>>,
    /// Sent again on a later connection (allowed, dropped).
    pub(super) repeats: AtomicU64,
    /// Sent twice on one connection (never allowed).
    pub(super) repeats_in_session: AtomicU64,
}

/// How much people send.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// How many times slower than as fast as they can.
    pub slower: u32,
    /// Messages a second of all of them together: batches make up what the others leave of it, also a few seconds' worth
    /// of what could not be sent while nobody took it. `None`: batches are as large and as frequent as they happen to be.
    pub rate: Option<u32>,
}

/// The public doors, `http://…`; the same through every restart.
pub(super) struct Doors {
    /// For requests.
    pub(super) url: String,
    /// For sockets.
    pub(super) sockets: String,
}

/// What is shared.
pub(super) struct World {
    /// Where they knock.
    pub(super) doors: Doors,
    /// How much they send.
    pub(super) pace: Pace,
    /// For requests.
    pub(super) http: reqwest::Client,
    /// The time.
    pub(super) clock: Arc<dyn Clock>,
    /// Each tenant's server key.
    pub(super) servers: Vec<String>,
    /// Each tenant's connected business user.
    pub(super) desks: Vec<String>,
    /// The recipients, one tenant's after the other's.
    pub(super) people: Vec<Recipient>,
    /// Held for reading while something is sent until its fate is known, for writing while accounts are drawn up.
    pub(super) gate: RwLock<()>,
    /// When everything began, ms of the clock.
    pub(super) began: schemas::Millis,
    /// For how long the gate was closed so far, ms.
    pub(super) closed_ms: AtomicU64,
    /// Whether sleepers are to be awake.
    pub(super) awake: watch::Sender<bool>,
    /// Sleepers that are.
    pub(super) connected_sleepers: AtomicUsize,
    /// Ends everybody.
    pub(super) over: CancellationToken,
    /// What was accepted.
    pub(super) ledger: Mutex<Vec<Sent>>,
    /// Statuses that senders were told: (id, connection, status).
    pub(super) told: Mutex<Vec<(String, u32, schemas::Status)>>,
    /// Connections of the business users so far.
    pub(super) desk_connections: AtomicU32,
    /// Broadcasts that each tenant is to have sent by now.
    pub(super) broadcasts: AtomicU64,
    /// Batches that broke and were sent again.
    pub(super) broken_batches: AtomicU64,
    /// The latest time at which something expires unseen, ms since 1970.
    pub(super) last_expiry: Mutex<schemas::Timestamp>,
    /// What was wrong as it happened.
    pub(super) faults: Mutex<Vec<String>>,
}

impl World {
    /// The recipients of a tenant that are awake, or that sleep.
    pub(super) fn of(&self, tenant: usize, sleeps: bool) -> Vec<usize> {
        let of = |n: &usize| self.people[*n].tenant == tenant && self.people[*n].sleeps == sleeps;
        (0..self.people.len()).filter(of).collect()
    }

    /// For how long people could send so far, ms. Asked while the gate is open.
    pub(super) fn open_ms(&self) -> u64 {
        let closed_ms = self.closed_ms.load(std::sync::atomic::Ordering::Acquire);
        self.clock.mono().since(self.began).saturating_sub(closed_ms)
    }

    /// Writes down what was accepted.
    pub(super) fn accepted(&self, to: usize, content: &str, answer: &Value, promise: Promise) {
        let id = answer["id"].as_str().map(str::to_owned);
        self.ledger.lock().push(Sent { to, content: content.to_owned(), id, by_desk: false, promise });
    }

    /// Says what is wrong.
    pub(super) fn fault(&self, what: String) {
        let mut faults = self.faults.lock();
        if faults.len() < KEPT {
            faults.push(what);
        }
    }

    /// One request with a JSON body, and a token; status 0 where no answer came.
    pub(super) async fn ask(
        &self,
        method: http::Method,
        path: &str,
        token: &str,
        body: Option<&Value>,
    ) -> (u16, Value) {
        let mut request = self.http.request(method, format!("{}{path}", self.doors.url)).bearer_auth(token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let Ok(response) = request.send().await else { return (0, Value::Null) };
        let status = response.status().as_u16();
        match response.json().await {
            Ok(answer) => (status, answer),
            // The line broke in the middle of the answer: what it would have said is not known.
            Err(_) => (0, Value::Null),
        }
    }
}
