//! What people say to each other while partitions go back and forth, and what must have come of it.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use schemas::{
    ChatCommand, Inbox, Kind, Message, MessageId, Name, Phone, Priority, Sender, Tenant, Timestamp, UserId,
    conversation::{Command, Pair, Side, UpTo},
    port::Append,
    record,
};

use super::{PARTITIONS, store::Store};
use crate::testing;

/// What an inbox has: the number of a turn, or none for a note to one's own devices.
type Told = (Option<u64>, MessageId);

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
    /// Who answers for the business; at first whoever it began with.
    assigned: Option<Name>,
    /// What is to stand in the inbox of each.
    inboxes: BTreeMap<UserId, Vec<Told>>,
}

impl Log {
    /// A turn, in the inboxes of these.
    fn turn(&mut self, id: MessageId, counts: [u64; 2], users: impl IntoIterator<Item = UserId>) {
        self.turns.push(id);
        self.counts.push(counts);
        let users: BTreeSet<_> = users.into_iter().collect();
        for user in users {
            self.inboxes.entry(user).or_default().push((Some(self.turns.len() as u64), id));
        }
    }
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

/// Turns, and notes to one's own devices.
fn apart(entries: impl Iterator<Item = Told>) -> (Vec<Told>, Vec<Told>) {
    entries.partition(|entry| entry.0.is_some())
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
        let log = self.logs.entry(pair.clone()).or_default();
        let assigned = log.assigned.clone().unwrap_or_else(|| pair.business.clone());
        let answers = UserId::business(pair.tenant.clone(), assigned.clone());
        let user = |side| if side == Side::Mobile { pair.mobile() } else { answers.clone() };
        let both = Side::BOTH.map(user);
        let mut from = Sender::User(user(side).party);
        let id = if n.is_multiple_of(3) { MessageId::fresh(now) } else { pair.name(&from, &n.to_string()) };
        let fingerprint = u128::from(n + 1_000_000).to_le_bytes();
        let content = testing::message(n).content;
        let seen = log.counts.last().copied().unwrap_or_default();
        // Each in its turn within a pair, and of either side.
        let command = match (n / 4 % 7, log.last[index(side)]) {
            (3, Some(of)) => {
                log.turn(id, seen, both);
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
                let archived = *archived;
                log.inboxes.entry(user(side)).or_default().push((None, id));
                Command::Archive(archived)
            }
            // Somebody else is to answer, who was never heard of there or was before; its server may say so too.
            (1 | 6, _) if !log.turns.is_empty() => {
                let others = ["sara", "omar", "nadia"].map(|name| Name::parse(name).unwrap());
                let at = others.iter().position(|name| *name == assigned).unwrap_or_default();
                let to = others[(at + 1 + n as usize % 2) % 3].clone();
                if side == Side::Mobile {
                    from = Sender::Server;
                }
                log.archived[index(Side::Business)] = false;
                log.last[index(Side::Business)] = None;
                log.assigned = Some(to.clone());
                let new = UserId::business(pair.tenant.clone(), to.clone());
                log.turn(id, seen, both.into_iter().chain([new]));
                Command::Assign { to }
            }
            // As it is: nothing changes now, and nothing may where it is read again.
            (5, _) if !log.turns.is_empty() => Command::Archive(log.archived[index(side)]),
            _ => {
                log.archived = [false; 2];
                let mut counts = seen;
                counts[index(side.other())] += 1;
                log.turn(id, counts, both);
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
            prop_assert_eq!(Some(&row.assigned_to), log.assigned.as_ref().or(Some(&pair.business)));
            let partition = pair.partition(PARTITIONS);
            let named = log.inboxes.keys().map(|user| Inbox { user: user.clone(), partition });
            for inbox in chains.keys().cloned().chain(named).collect::<BTreeSet<_>>() {
                let chain = chains.get(&inbox).map(Vec::as_slice).unwrap_or_default();
                let here = chain.iter().filter(|entry| entry.message.kind.conversation() == Some(pair.id()));
                let (turns, notes) = apart(here.map(|entry| (entry.seq, entry.message.id)));
                let there = log.inboxes.get(&inbox.user).into_iter().flatten().copied();
                let (expected, own) = apart(there.filter(|_| inbox.partition == partition));
                prop_assert_eq!(turns, expected, "in {:?}", inbox);
                prop_assert_eq!(notes, own, "notes in {:?}", inbox);
            }
        }
        Ok(())
    }
}
