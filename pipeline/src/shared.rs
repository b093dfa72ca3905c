//! What the three lanes of one instance share: credits, positions, the dedupe window, the order of releases, and the ports.
//! Lives on the instance's thread; nothing here is locked except what the settler also sees.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
};

use metrics::Histogram;
use schemas::{
    Clock, Lane, Limits, Millis, Tenant,
    port::{Dispatch, History, Log, Presence},
};
use timely::scheduling::Activator;

use crate::{
    conversations::Threads, credit::Credits, functions::Function, gate::Gates, gauges::Counters, handed::Handed,
    operators::dedupe::Window, ownership::Ownership, progress::Progress, rim::Rim, tails::Tails, tenants::Kind,
    unlocated::Unlocated,
};

/// The ports the flow acts through.
#[derive(Clone)]
pub(crate) struct Ports {
    /// Takes facts, retries and dead letters.
    pub(crate) log: Arc<dyn Log>,
    /// Takes messages.
    pub(crate) history: Arc<dyn History>,
    /// Says where users are.
    pub(crate) presence: Arc<dyn Presence>,
    /// Delivers.
    pub(crate) dispatch: Arc<dyn Dispatch>,
}

/// What an instance's flow is made of. It goes to the instance's thread and becomes [`Shared`] there.
pub(crate) struct Kit {
    /// The ports.
    pub(crate) ports: Ports,
    /// The time.
    pub(crate) clock: Arc<dyn Clock>,
    /// The bounds.
    pub(crate) limits: Arc<Limits>,
    /// What was given to dispatch.
    pub(crate) handed: Arc<Handed>,
    /// How far it is, for who owns the consumer.
    pub(crate) progress: Arc<Progress>,
    /// What is counted.
    pub(crate) counters: Arc<Counters>,
    /// What may be acted for.
    pub(crate) ownership: Arc<Ownership>,
    /// The breakers of the ports.
    pub(crate) gates: Arc<Gates>,
    /// User code.
    pub(crate) functions: Arc<[Arc<dyn Function>]>,
}

/// What the lanes share.
pub(crate) struct Shared {
    /// What it was made of.
    pub(crate) kit: Kit,
    /// Where acts run.
    pub(crate) rim: Rim,
    /// Who may go on.
    pub(crate) credits: Credits,
    /// The ids seen lately.
    pub(crate) window: RefCell<Window>,
    /// The ends of inboxes.
    pub(crate) tails: RefCell<Tails>,
    /// Conversations.
    pub(crate) threads: RefCell<Threads>,
    /// In which order writes are released.
    pub(crate) releases: Releases,
    /// Whose place could not be asked.
    pub(crate) unlocated: Unlocated,
    /// What the stages take.
    pub(crate) stages: Stages,
}

/// Times of a batch's stages.
pub(crate) struct Stages {
    /// From having its places to being durable and released.
    pub(crate) recorded: Histogram,
    /// Finding where recipients are.
    pub(crate) routed: Histogram,
    /// Handing over, until all nodes have answered.
    pub(crate) delivered: Histogram,
}

impl Stages {
    fn new() -> Self {
        let of = |stage: &'static str| metrics::histogram!("esh3ar_stage_seconds", "stage" => stage);
        Self { recorded: of("recorded"), routed: of("routed"), delivered: of("delivered") }
    }
}

impl Shared {
    /// Put together on the instance's thread.
    pub(crate) fn new(kit: Kit, rim: Rim) -> Rc<Self> {
        let flow = &kit.limits.flow;
        Rc::new(Self {
            credits: Credits::new(flow),
            window: RefCell::new(Window::new(flow.window_ids, flow.window_ms)),
            tails: RefCell::new(Tails::new(flow.tails)),
            threads: RefCell::new(Threads::new(kit.limits.chat.kept)),
            releases: Releases::default(),
            unlocated: Unlocated::default(),
            stages: Stages::new(),
            rim,
            kit,
        })
    }

    /// All writes below this number are durable.
    pub(crate) fn release(&self, below: u64) {
        self.tails.borrow_mut().release(below);
        self.threads.borrow_mut().release(below);
    }

    /// A stage that began then is over.
    pub(crate) fn took(&self, stage: &Histogram, since: Millis) {
        stage.record(self.kit.clock.mono().since(since) as f64 / 1e3);
    }

    /// Counts messages of tenants.
    pub(crate) fn tell<'a>(&self, lane: Lane, kind: Kind, tenants: impl IntoIterator<Item = &'a Tenant>) {
        self.kit.counters.tenants.count(lane, kind, tenants);
    }

    /// The counters of a lane.
    pub(crate) fn count(&self, lane: Lane) -> &crate::gauges::PerLane {
        self.kit.counters.of(lane)
    }
}

/// The order of releases: writes are numbered as their positions were given, over all lanes, and none is released before
/// those with smaller numbers are durable (rule 1).
pub(crate) struct Releases {
    next: Cell<u64>,
    below: Cell<u64>,
    early: RefCell<std::collections::BTreeSet<u64>>,
    waiting: RefCell<[Option<Activator>; 3]>,
}

impl Default for Releases {
    fn default() -> Self {
        // From 1: tails that no write has moved stand at 0, and count as durable.
        Self { next: Cell::new(1), below: Cell::new(1), early: RefCell::default(), waiting: RefCell::default() }
    }
}

impl Releases {
    /// Whom to wake when writes of this lane may be released.
    pub(crate) fn gate(&self, lane: Lane, activator: Activator) {
        self.waiting.borrow_mut()[usize::from(lane.number())] = Some(activator);
    }

    /// The number of a new write.
    pub(crate) fn begin(&self) -> u64 {
        let n = self.next.get();
        self.next.set(n + 1);
        n
    }

    /// A write is durable. All below the returned number are.
    pub(crate) fn end(&self, n: u64) -> u64 {
        let mut early = self.early.borrow_mut();
        early.insert(n);
        let mut below = self.below.get();
        while early.remove(&below) {
            below += 1;
        }
        if below != self.below.replace(below) {
            self.waiting.borrow().iter().flatten().for_each(Activator::activate);
        }
        below
    }

    /// Whether this write is released.
    pub(crate) fn released(&self, n: u64) -> bool {
        n < self.below.get()
    }
}
