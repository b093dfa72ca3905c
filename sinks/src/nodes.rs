//! The nodes' breakers: one for each node that failed lately, none for a healthy one, so that the usual way costs a look
//! into an empty map. Says in the log and in a metric when one opens or closes.

use std::collections::HashMap;

use parking_lot::Mutex;
use schemas::{Millis, NodeId};

use crate::breaker::{Breaker, Change, Pass, Rule};

/// The breakers of all nodes.
pub(crate) struct Nodes {
    rule: Rule,
    most: usize,
    failing: Mutex<HashMap<NodeId, Breaker>>,
}

/// Leave to call a node; without a pass where the node has no breaker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Leave(Option<Pass>);

impl Nodes {
    pub(crate) fn new(rule: Rule, most: usize) -> Self {
        Self { rule, most, failing: Mutex::new(HashMap::new()) }
    }

    /// Asks for leave to call a node; `None`: its breaker is open.
    pub(crate) fn admit(&self, node: &NodeId, now: Millis) -> Option<Leave> {
        match self.failing.lock().get_mut(node) {
            None => Some(Leave(None)),
            Some(breaker) => breaker.admit(&self.rule, now).map(|pass| Leave(Some(pass))),
        }
    }

    /// Whether a node's breaker is open.
    pub(crate) fn is_open(&self, node: &NodeId) -> bool {
        self.failing.lock().get(node).is_some_and(Breaker::is_open)
    }

    /// Reports how the call went.
    pub(crate) fn record(&self, node: &NodeId, now: Millis, leave: Leave, ok: bool) {
        let mut failing = self.failing.lock();
        let change = match failing.get_mut(node) {
            None if ok => return,
            None => {
                if failing.len() >= self.most {
                    failing.retain(|_, breaker| !breaker.is_idle(&self.rule, now));
                }
                if failing.len() >= self.most {
                    return;
                }
                let mut breaker = Breaker::new(now);
                let pass = breaker.admit(&self.rule, now);
                let change = pass.map_or(Change::None, |pass| breaker.record(&self.rule, now, pass, false));
                failing.insert(node.clone(), breaker);
                change
            }
            Some(breaker) => {
                // A call that began before the node had a breaker counts as one of its first state.
                let pass = leave.0.or_else(|| breaker.admit(&self.rule, now));
                let change = pass.map_or(Change::None, |pass| breaker.record(&self.rule, now, pass, ok));
                if ok && breaker.is_idle(&self.rule, now) {
                    failing.remove(node);
                }
                change
            }
        };
        drop(failing);
        told(&format!("node:{node}"), change);
    }
}

/// Says that a breaker opened or closed.
pub(crate) fn told(name: &str, change: Change) {
    match change {
        Change::None => {}
        Change::Opened => {
            metrics::gauge!("esh3ar_breaker_open", "breaker" => name.to_owned()).set(1.0);
            metrics::counter!("esh3ar_breaker_opened_total", "breaker" => name.to_owned()).increment(1);
            tracing::warn!(breaker = name, "the breaker is open: too many calls failed; one will try again later");
        }
        Change::Closed => {
            metrics::gauge!("esh3ar_breaker_open", "breaker" => name.to_owned()).set(0.0);
            tracing::info!(breaker = name, "the breaker is closed: calls go through again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Rule =
        Rule { failures: 5, percent: 50, calls: 20, window_ms: 10_000, open_ms: 30_000, probe_ms: 30_000 };

    fn fail(nodes: &Nodes, node: &NodeId, times: u64) {
        for t in 0..times {
            if let Some(leave) = nodes.admit(node, Millis(t)) {
                nodes.record(node, Millis(t), leave, false);
            }
        }
    }

    #[test]
    fn one_node_s_breaker_is_not_another_s() {
        let nodes = Nodes::new(RULE, 8);
        let (one, two) = (NodeId::parse("one").unwrap(), NodeId::parse("two").unwrap());
        fail(&nodes, &one, 5);
        assert!(nodes.admit(&one, Millis(10)).is_none());
        assert!(nodes.admit(&two, Millis(10)).is_some());
    }

    #[test]
    fn a_node_that_is_well_again_is_forgotten() {
        let nodes = Nodes::new(RULE, 8);
        let one = NodeId::parse("one").unwrap();
        fail(&nodes, &one, 5);
        let probe = nodes.admit(&one, Millis(40_000)).unwrap();
        nodes.record(&one, Millis(40_001), probe, true);
        assert!(nodes.failing.lock().is_empty());
    }

    #[test]
    fn one_probe_at_a_time() {
        let nodes = Nodes::new(RULE.open_for(2_000, 5_000), 8);
        let one = NodeId::parse("one").unwrap();
        fail(&nodes, &one, 5);
        let probe = nodes.admit(&one, Millis(2_004)).unwrap();
        for later in [2_004, 4_004, 7_003] {
            assert!(nodes.admit(&one, Millis(later)).is_none(), "{later}");
        }
        assert!(nodes.admit(&one, Millis(7_004)).is_some(), "it was not answered in its time");
        nodes.record(&one, Millis(7_100), probe, true);
        assert!(!nodes.is_open(&one), "answered well, however late");
    }

    #[test]
    fn the_breakers_are_bounded() {
        let nodes = Nodes::new(RULE, 8);
        for i in 0..100 {
            fail(&nodes, &NodeId::parse(&format!("n{i}")).unwrap(), 2);
        }
        assert_eq!(nodes.failing.lock().len(), 8);
    }
}
