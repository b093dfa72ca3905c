//! What people say to each other while partitions go back and forth, and what must have come of it.

use std::collections::BTreeMap;

use proptest::prelude::*;
use schemas::{
    ChatCommand, Inbox, Kind, Message, MessageId, Name, Phone, Priority, Sender, Tenant, Timestamp,
    conversation::{Command, Pair, Side, UpTo},
    port::Append,
    record,
};

use super::{PARTITIONS, store::Store};
use crate::testing;

/// The conversation of one pair, as the log has it.
#[derive(Default)]
struct Log {
    /// Messages and edits.
    turns: Vec<MessageId>,
    /// Messages to each side so far, at each turn.
    counts: Vec<[u64; 2]>,
    /// The last message of each side.
    last: [Option<MessageId>; 2],
    marks: [u64; 2],
    archived: [bool; 2],
    /// Notes to one's own devices.
    notes: [Vec<MessageId>; 2],
}

/// All of them.
#[derive(Default)]
pub(super) struct Talking {
    count: u64,
    logs: BTreeMap<Pair, Log>,
}

fn index(side: Side) -> usize {
    usize::from(side == Side::Mobile)
}

impl Talking {
    /// The next record: mostly a message, sometimes an edit or a mark, or one puts it away or takes it out again,
    /// or asks for what is so.
    pub(super) fn next(&mut self, now: Timestamp) -> Append {
        let n = self.count;
        self.count += 1;
        let pair = Pair {
            tenant: Tenant::parse("acme").unwrap(),
            business: Name::parse("sara").unwrap(),
            // The same people that one-way messages are for.
            mobile: Phone::from_stored(&format!("+96279000000{}", n * 5 % 4)).unwrap(),
        };
        let side = if (n / 4).is_multiple_of(2) { Side::Business } else { Side::Mobile };
        let user = |side| if side == Side::Mobile { pair.mobile() } else { pair.business() };
        let from = Sender::User(user(side).party);
        let id = if n.is_multiple_of(3) { MessageId::fresh(now) } else { pair.name(&from, &n.to_string()) };
        let fingerprint = u128::from(n + 1_000_000).to_le_bytes();
        let content = testing::message(n).content;
        let log = self.logs.entry(pair.clone()).or_default();
        let seen = log.counts.last().copied().unwrap_or_default();
        // Each in its turn within a pair, and of either side.
        let command = match (n / 4 % 7, log.last[index(side)]) {
            (3, Some(of)) => {
                log.turns.push(id);
                log.counts.push(seen);
                Command::Edit { of, content }
            }
            (4, _) if !log.turns.is_empty() => {
                let up_to = log.turns.len();
                log.marks[index(side)] = seen[index(side)];
                Command::Read { up_to: UpTo::Seq(up_to as u64) }
            }
            (2, _) if !log.turns.is_empty() => {
                let archived = &mut log.archived[index(side)];
                *archived = !*archived;
                log.notes[index(side)].push(id);
                Command::Archive(*archived)
            }
            // As it is: nothing changes now, and nothing may where it is read again.
            (5, _) if !log.turns.is_empty() => Command::Archive(log.archived[index(side)]),
            _ => {
                log.archived = [false; 2];
                let mut counts = seen;
                counts[index(side.other())] += 1;
                log.turns.push(id);
                log.counts.push(counts);
                log.last[index(side)] = Some(id);
                let (kind, to, priority) = (Kind::Chat(pair.id()), user(side.other()), Priority::High);
                let said = Message {
                    id,
                    kind,
                    from,
                    to,
                    priority,
                    content,
                    accepted_at: now,
                    fingerprint,
                    ..testing::message(n)
                };
                return record::accepted(&said, PARTITIONS);
            }
        };
        let (client_ref, trace) = (None, None);
        let asked = ChatCommand { id, pair, by: from, command, accepted_at: now, client_ref, trace, fingerprint };
        record::chat(&asked, PARTITIONS)
    }

    /// What must have come of it.
    pub(super) fn check(&self, store: &Store) -> Result<(), TestCaseError> {
        let chains: BTreeMap<_, _> = store.chains().into_iter().collect();
        for (pair, log) in &self.logs {
            let kept = store.kept.lock();
            let thread = kept.threads.get(&pair.id());
            let said: Vec<_> = thread.map(|thread| thread.said()).unwrap_or_default();
            let ids: Vec<_> = said.iter().map(|turn| turn.message.id).collect();
            prop_assert_eq!(&ids, &log.turns, "the thread of {}", pair.mobile());
            let Some(row) = thread.and_then(|thread| thread.row()) else { continue };
            let counts = log.counts.last().copied().unwrap_or_default();
            prop_assert_eq!([row.business.to, row.mobile.to], counts, "counts of {}", pair.mobile());
            prop_assert_eq!([row.business.read, row.mobile.read], log.marks, "marks of {}", pair.mobile());
            for (turn, counts) in said.iter().zip(&log.counts) {
                prop_assert_eq!([turn.to_business, turn.to_mobile], *counts);
            }
            let archived = [row.business.archived, row.mobile.archived];
            prop_assert_eq!(archived, log.archived, "put away by {}", pair.mobile());
            for side in Side::BOTH {
                let inbox = Inbox { user: row.user(side), partition: pair.partition(PARTITIONS) };
                let here = chains.get(&inbox).into_iter().flatten();
                let here = here.filter(|entry| entry.message.kind.conversation() == Some(pair.id()));
                let (entries, notes): (Vec<_>, Vec<_>) =
                    here.map(|entry| (entry.seq, entry.message.id)).partition(|entry| entry.0.is_some());
                let turns: Vec<_> = said.iter().map(|turn| (Some(turn.seq), turn.message.id)).collect();
                prop_assert_eq!(entries, turns, "in {:?}", inbox);
                let own: Vec<_> = log.notes[index(side)].iter().map(|id| (None, *id)).collect();
                prop_assert_eq!(notes, own, "notes in {:?}", inbox);
            }
        }
        Ok(())
    }
}
