//! What this process knows of running broadcasts between two looks at history: which were begun here since, and how many each
//! tenant has. As of the last look, so that the door reads nothing to count; what other doors accepted since is not in it.

use std::collections::HashMap;

use parking_lot::Mutex;
use schemas::{BroadcastId, Tenant, port::Broadcast};

/// Running broadcasts, as far as they are known here.
#[derive(Default)]
pub(crate) struct Begun(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// Begun here and not seen in history since.
    since: HashMap<BroadcastId, Tenant>,
    /// What history had running at the last look, or at an earlier one if the last could not read it.
    seen: HashMap<BroadcastId, Tenant>,
}

impl Begun {
    /// One was begun here.
    pub(crate) fn add(&self, id: BroadcastId, tenant: Tenant) {
        self.0.lock().since.insert(id, tenant);
    }

    /// Those begun here that no look has seen. A look asks for them before it reads history, and must find them there.
    pub(crate) fn since(&self) -> Vec<BroadcastId> {
        self.0.lock().since.keys().copied().collect()
    }

    /// A look has found these running. What it could not read stays known as it was.
    pub(crate) fn looked(&self, since: &[BroadcastId], running: &[Broadcast], unread: impl Fn(BroadcastId) -> bool) {
        let mut known = self.0.lock();
        for id in since.iter().filter(|id| !unread(**id)) {
            known.since.remove(id);
        }
        known.seen.retain(|id, _| unread(*id));
        known.seen.extend(running.iter().map(|broadcast| (broadcast.id, broadcast.asked.tenant.clone())));
    }

    /// How many of a tenant run.
    pub(crate) fn running(&self, tenant: &Tenant) -> usize {
        let known = self.0.lock();
        let since = known.since.iter().filter(|(id, _)| !known.seen.contains_key(*id));
        known.seen.iter().chain(since).filter(|(_, whose)| *whose == tenant).count()
    }
}

#[cfg(test)]
mod tests {
    use schemas::{
        Sender, Timestamp,
        port::{Asked, BroadcastState},
    };

    use super::*;

    fn tenant(name: &str) -> Tenant {
        Tenant::parse(name).unwrap()
    }

    fn id(n: u128) -> BroadcastId {
        BroadcastId(uuid::Uuid::from_u128(n))
    }

    fn running(n: u128, whose: &str) -> Broadcast {
        let asked = Asked {
            tenant: tenant(whose),
            from: Sender::Server,
            accepted_at: Timestamp(1),
            trace: None,
            draft: String::new(),
            fingerprint: [0; 16],
        };
        Broadcast { id: id(n), asked, recipients: 1, expanded: 0, state: BroadcastState::Running }
    }

    #[test]
    fn each_is_counted_once_and_one_that_a_look_could_not_read_is_not_forgotten() {
        let (begun, acme, zain) = (Begun::default(), tenant("acme"), tenant("zain"));
        begun.add(id(1), acme.clone());
        begun.add(id(2), acme.clone());
        let since = begun.since();
        begun.add(id(3), acme.clone());
        // The third came while history was read, and is seen there already.
        let there = [running(1, "acme"), running(3, "acme"), running(4, "zain")];
        begun.looked(&since, &there, |unread| unread == id(2));
        assert_eq!((begun.running(&acme), begun.running(&zain)), (3, 1));
        let mut since = begun.since();
        since.sort();
        assert_eq!(since, [id(2), id(3)], "both are still this process's to begin");
        begun.looked(&[], &[running(3, "acme")], |unread| unread == id(1));
        assert_eq!((begun.running(&acme), begun.running(&zain)), (3, 0), "one that cannot be read any more runs still");
        begun.looked(&since, &[], |_| false);
        assert_eq!((begun.running(&acme), begun.running(&zain), begun.since()), (0, 0, Vec::new()));
    }
}
