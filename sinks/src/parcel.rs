//! Parcels: a batch sorted by the node it goes to, and the nodes' answers folded back into one outcome per message. Pure.
//! Within a parcel the order is the batch's, so that a node is handed an inbox in position order.

use schemas::{
    NodeId, Reason,
    port::{Hint, Landing, Outcome, Routed},
};

/// What goes to one node.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Parcel {
    /// Where to.
    pub(crate) node: NodeId,
    /// What, in the batch's order.
    pub(crate) hints: Vec<Hint>,
    /// Which message of the batch each hint is.
    pub(crate) lines: Vec<usize>,
}

/// Sorts a batch by node. A user on several nodes is in several parcels; in none, whoever is nowhere.
pub(crate) fn parcels(batch: Vec<Routed>) -> Vec<Parcel> {
    let room = batch.len();
    let mut parcels: Vec<Parcel> = Vec::with_capacity(1);
    let mut put = |node: &NodeId, hint: Hint, line: usize| {
        // Nodes are few, and mostly the last one is meant: a search from the start is shorter than any map.
        let at = parcels.iter().position(|p| p.node == *node).unwrap_or_else(|| {
            let (hints, lines) = (Vec::with_capacity(room), Vec::with_capacity(room));
            parcels.push(Parcel { node: node.clone(), hints, lines });
            parcels.len() - 1
        });
        let parcel = &mut parcels[at];
        // Two devices on one node are one line: the node offers it to both.
        if parcel.lines.last() != Some(&line) {
            parcel.hints.push(hint);
            parcel.lines.push(line);
        }
    };
    for (line, Routed { hint, nodes }) in batch.into_iter().enumerate() {
        let Some((last, others)) = nodes.split_last() else { continue };
        for node in others {
            put(node, hint.clone(), line);
        }
        put(last, hint, line);
    }
    parcels
}

/// Adds one node's answer for one message: taken if any took it; failed if none took it and one did not answer; absent only
/// if all said so.
pub(crate) fn fold(so_far: Outcome, landing: Option<Landing>) -> Outcome {
    match (so_far, landing) {
        (Outcome::Taken, _) | (_, Some(Landing::Taken)) => Outcome::Taken,
        (Outcome::Failed(reason), _) => Outcome::Failed(reason),
        (Outcome::Absent, Some(Landing::Absent)) => Outcome::Absent,
        (Outcome::Absent, None) => Outcome::Failed(Reason::NodeUnreachable),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use schemas::{
        Content, ContentType, Epoch, Kind, Message, MessageId, Partition, Position, Priority, Sender, State, Timestamp,
        UserId,
    };

    use super::*;

    /// The `n`th message to user `user`, for the given nodes.
    pub(crate) fn routed(n: u64, user: u8, nodes: &[&str]) -> Routed {
        let to: UserId = format!("acme/+9627900000{user:02}").parse().unwrap();
        let message = Message {
            id: MessageId::fresh(Timestamp(n as i64)),
            kind: Kind::OneWay,
            from: Sender::Server,
            to,
            priority: Priority::Normal,
            content: Content { content_type: ContentType::Text, subject: None, body: format!("message {n}") },
            client_ref: None,
            metadata: None,
            accepted_at: Timestamp(n as i64),
            send_at: None,
            expires_at: None,
            broadcast: None,
            trace: None,
            fingerprint: [0; 16],
        };
        let hint = Hint {
            inbox: message.inbox(24),
            position: Position { epoch: Epoch(1), n },
            prev: Position { epoch: Epoch(1), n: n.saturating_sub(1) },
            seq: None,
            message: Arc::new(message),
            round: 0,
            attempt: Default::default(),
            state: State::default(),
        };
        assert!(hint.inbox.partition < Partition(24));
        Routed { hint, nodes: nodes.iter().map(|node| NodeId::parse(node).unwrap()).collect() }
    }

    #[test]
    fn the_answers_of_several_nodes_make_one_outcome() {
        let unreachable = Outcome::Failed(Reason::NodeUnreachable);
        let table: &[(&[Option<Landing>], Outcome)] = &[
            (&[], Outcome::Absent),
            (&[Some(Landing::Absent), Some(Landing::Absent)], Outcome::Absent),
            (&[Some(Landing::Absent), Some(Landing::Taken)], Outcome::Taken),
            (&[Some(Landing::Taken), None], Outcome::Taken),
            (&[None, Some(Landing::Taken)], Outcome::Taken),
            (&[Some(Landing::Absent), None], unreachable),
            (&[None, Some(Landing::Absent)], unreachable),
        ];
        for (landings, outcome) in table {
            assert_eq!(landings.iter().fold(Outcome::Absent, |o, l| fold(o, *l)), *outcome, "{landings:?}");
        }
    }

    proptest! {
        #[test]
        fn every_message_reaches_each_of_its_nodes_once_and_in_order(
            batch in proptest::collection::vec((0u8..9, proptest::collection::vec(0usize..4, 0..5)), 0..60),
        ) {
            const NODES: [&str; 4] = ["a", "b", "c", "d"];
            let routes: Vec<Routed> = batch.iter().enumerate().map(|(i, (user, nodes))| {
                routed(i as u64, *user, &nodes.iter().map(|n| NODES[*n]).collect::<Vec<_>>())
            }).collect();
            let parcels = parcels(routes.clone());
            for parcel in &parcels {
                prop_assert!(parcel.lines.is_sorted_by(|a, b| a < b));
                prop_assert_eq!(parcel.lines.len(), parcel.hints.len());
                for (line, hint) in parcel.lines.iter().zip(&parcel.hints) {
                    prop_assert_eq!(hint, &routes[*line].hint);
                    prop_assert!(routes[*line].nodes.contains(&parcel.node));
                }
            }
            for (line, route) in routes.iter().enumerate() {
                let mut nodes = route.nodes.clone();
                nodes.sort();
                nodes.dedup();
                prop_assert_eq!(parcels.iter().filter(|p| p.lines.contains(&line)).count(), nodes.len());
            }
        }
    }
}
