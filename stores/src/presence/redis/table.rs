//! What Redis answered, read: a user's lines, and the table of the nodes with what it says of Redis's clock. Pure.

use std::collections::HashMap;

use schemas::{
    DeviceId, Millis, NodeId, SessionId,
    port::{NodeLoad, Place, PortResult, Taken},
};

use crate::redis::odd;

/// One device of a user, as it is kept.
pub(super) struct Line<'a> {
    device: &'a str,
    pub(super) node: &'a str,
    session: &'a str,
    number: u64,
    /// Redis's time when it lapses, ms.
    pub(super) until: u64,
}

impl Line<'_> {
    pub(super) fn place(&self) -> Option<Place> {
        Some(Place {
            node: self.node.parse().ok()?,
            device: self.device.parse().ok()?,
            session: session(self.session)?,
            number: self.number,
        })
    }
}

fn session(text: &str) -> Option<SessionId> {
    uuid::Uuid::try_parse(text).ok().map(SessionId)
}

/// A user's lines; what is none is passed over.
pub(super) fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    text.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let mut word = || words.next();
        let (device, node, session) = (word()?, word()?, word()?);
        let (number, until) = (word()?.parse().ok()?, word()?.parse().ok()?);
        Some(Line { device, node, session, number, until })
    })
}

/// What registering answered.
pub(super) fn taken(answer: impl Iterator<Item = String>, device: &DeviceId) -> PortResult<Taken> {
    let words: Vec<String> = answer.collect();
    let read = || {
        let number = words.first()?.parse().ok()?;
        let replaced = match words.get(1..) {
            None | Some([]) => None,
            Some([node, id, number]) => Some(Place {
                node: node.parse().ok()?,
                device: device.clone(),
                session: session(id)?,
                number: number.parse().ok()?,
            }),
            Some(_) => return None,
        };
        Some(Taken { number, replaced })
    };
    read().ok_or_else(|| odd("a session's registration was answered oddly"))
}

/// What a look at the nodes' table told.
pub(super) struct Told {
    now: u64,
    /// The node that asked was in it before.
    pub(super) known: bool,
    seen: HashMap<String, (u64, NodeLoad)>,
}

/// This process's monotonic time when Redis was asked, and when it had answered.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Asked {
    pub(super) from: Millis,
    pub(super) to: Millis,
}

/// By how much Redis's clock must have run ahead of this process's until that counts as having been held still, ms: as long as others
/// wait for a node. Beside it the clocks may differ by a thousandth.
const HELD_MS: u64 = 5_000;

impl Told {
    /// Reads the one answer of a script.
    pub(super) fn read(answers: Vec<Vec<String>>) -> PortResult<Self> {
        let wrong = || odd("the nodes' table was answered oddly");
        let words = answers.into_iter().next().ok_or_else(wrong)?;
        let [now, known, rest @ ..] = words.as_slice() else { return Err(wrong()) };
        let load = |pair: &[String]| {
            let [node, value] = pair else { return None };
            let mut words = value.splitn(4, ' ');
            let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
            let (seen, sessions, room) = (number()?, number()?, number()?);
            let address = words.next().unwrap_or_default().to_owned();
            let load = NodeLoad { node: node.parse().ok()?, address, sessions, room };
            Some((node.clone(), (seen, load)))
        };
        let seen = rest.chunks(2).filter_map(load).collect();
        Ok(Self { now: now.parse().map_err(|_| wrong())?, known: known == "1", seen })
    }
}

/// The nodes as they were last heard of, and what Redis's clock showed then.
#[derive(Default)]
pub(super) struct Nodes {
    at: Option<Asked>,
    then: u64,
    seen: HashMap<String, (u64, NodeLoad)>,
    own: Vec<NodeId>,
}

impl Nodes {
    /// Takes what was told. Says whether this process was held still since the last time without its own clock telling, as a
    /// machine is that is paused or moved: others had given it up meanwhile.
    pub(super) fn learn(&mut self, told: Told, asked: Asked) -> bool {
        let there_ms = told.now.saturating_sub(self.then);
        let here_ms = self.at.map_or(there_ms, |before| asked.to.since(before.from));
        (self.at, self.then, self.seen) = (Some(asked), told.now, told.seen);
        there_ms.saturating_sub(here_ms) >= HELD_MS + there_ms / 1_000
    }

    /// Notes that a node of this process beats; says whether it did before.
    pub(super) fn beats(&mut self, node: &NodeId) -> bool {
        let before = self.own.contains(node);
        if !before {
            self.own.push(node.clone());
        }
        before
    }

    /// Whether a node of this process has ever beaten.
    pub(super) fn has_own(&self) -> bool {
        !self.own.is_empty()
    }

    pub(super) fn is_fresh(&self, mono: Millis, within_ms: u64) -> bool {
        self.at.is_some_and(|at| mono.since(at.to) < within_ms)
    }

    /// What Redis's clock shows now.
    pub(super) fn now(&self, mono: Millis) -> u64 {
        self.then + self.at.map_or(0, |at| mono.since(at.to))
    }

    /// Whether a node counts as living: one that never said so has only just begun. `heard` is when one of its sessions was last
    /// kept in presence, which may be later than what this table says.
    pub(super) fn lives(&self, node: &str, heard: u64, now: u64, node_ms: u64) -> bool {
        self.seen.get(node).is_none_or(|(seen, _)| now.saturating_sub(heard.max(*seen)) < node_ms)
    }

    pub(super) fn living(&self, now: u64, node_ms: u64) -> Vec<NodeLoad> {
        let living = self.seen.values().filter(|(seen, _)| now.saturating_sub(*seen) < node_ms);
        let mut living: Vec<_> = living.map(|(_, load)| load.clone()).collect();
        living.sort_by(|a, b| a.node.cmp(&b.node));
        living
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_stands_there_is_read_or_passed_over(text in "[a-z0-9 \\n.:-]{0,200}") {
            for line in lines(&text) { let _ = line.place(); }
        }

        #[test]
        fn a_node_lives_for_its_time_and_no_longer(seen in 0u64..1_000_000, later in 0u64..200_000, node_ms in 1u64..100_000) {
            let value = format!("{seen} 3 100 http://a:1 b");
            let told = Told::read(vec![vec![seen.to_string(), "1".into(), "a".into(), value]]).unwrap();
            let mut nodes = Nodes::default();
            nodes.learn(told, Asked { from: Millis(40), to: Millis(50) });
            let now = nodes.now(Millis(50 + later));
            prop_assert_eq!(nodes.lives("a", 0, now, node_ms), later < node_ms);
            prop_assert_eq!(nodes.living(now, node_ms).len(), usize::from(later < node_ms));
            prop_assert!(nodes.lives("unheard-of", 0, now, node_ms));
            prop_assert!(nodes.lives("a", now, now, node_ms), "it has just registered somebody");
        }

        // However long Redis takes to answer, a process that went on all the time is not taken for one that was held, and one
        // that was held for long is found out.
        #[test]
        fn who_was_held_still_is_found_out(
            takes in proptest::collection::vec((0u64..3_000, 0u64..3_000, 0u64..20_000), 1..20), held_ms in 9_000u64..100_000,
        ) {
            let (mut nodes, mut mono, mut redis) = (Nodes::default(), 0, 7_000_000);
            let told = |now: u64| Told::read(vec![vec![now.to_string(), "1".into()]]).unwrap();
            for (there, back, pause) in takes {
                let asked = Asked { from: Millis(mono), to: Millis(mono + there + back) };
                prop_assert!(!nodes.learn(told(redis + there), asked));
                mono += there + back + pause;
                redis += there + back + pause;
            }
            let is_held = nodes.learn(told(redis + held_ms), Asked { from: Millis(mono), to: Millis(mono) });
            prop_assert!(is_held);
        }
    }

    #[test]
    fn odd_answers_are_refused() {
        let device = "d".parse().unwrap();
        let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>().into_iter();
        assert!(taken(words(&["7"]), &device).unwrap().replaced.is_none());
        let id = "00000000000000000000000000000001";
        assert_eq!(taken(words(&["9", "a", id, "7"]), &device).unwrap().replaced.unwrap().number, 7);
        for wrong in [&[][..], &["x"], &["9", "a"], &["9", "a", "no-id", "7"]] {
            assert!(taken(words(wrong), &device).is_err(), "{wrong:?}");
        }
        assert!(Told::read(vec![]).is_err() && Told::read(vec![vec!["x".into(), "1".into()]]).is_err());
    }
}
