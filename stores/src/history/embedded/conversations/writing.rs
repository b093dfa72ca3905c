//! Writing: the rows of conversations and turns that go with a batch of entries.

use std::collections::{BTreeMap, HashSet};

use schemas::{
    ConversationId, Millis, Party, UserId,
    conversation::Turn,
    port::{PortResult, Schedule},
};

use super::{
    super::tables::{Tables, mark, put, remove},
    Gone, Threads, keys,
    recent::{Held, Moves, Stand},
};
use crate::embedded::Write;

impl Threads {
    /// What a batch writes of conversations. Called by one at a time, in the order of the batches.
    pub(in super::super) fn plan(
        &self,
        tables: &Tables,
        schedule: &Schedule,
        now: Millis,
    ) -> PortResult<(Vec<Write>, Moves)> {
        let recent = self.recent.read();
        let (mut writes, mut moves) = (Vec::new(), Moves::default());
        let mut turns = Vec::new();
        let mut passed = HashSet::new();
        let to = &tables.talks;
        for row in &schedule.conversations {
            // What stands, and whether on disk, with a place in lists there.
            let (before, on_disk) = match (moves.stands.get(&row.id), recent.stand(row.id)) {
                (Some(stand), _) => (Some(stand.clone()), false),
                (None, Some((stand, only_here))) => (Some(stand.clone()), !only_here),
                (None, None) => (tables.conversation(row.id)?.as_ref().map(Stand::of), true),
            };
            if before.as_ref().is_some_and(|before| before.version >= row.version) {
                passed.insert(row.id);
                continue;
            }
            if on_disk {
                writes.push(mark(to, keys::conversation(b'h', row.id)));
                for key in before.iter().flat_map(Stand::listed) {
                    writes.push(remove(to, key));
                }
            }
            writes.push(put(to, keys::conversation(b'c', row.id), &row.kept()));
            let after = Stand::of(row);
            count(tables, row.id, before.as_ref(), &after, &mut writes);
            let gone = tables.gone(row.id)?;
            let unread = |held: &Held| (held.user.clone(), left(&held.user, held.counts, gone) as i64);
            moves.unread.extend(after.sides().iter().map(unread));
            let were = before.iter().flat_map(|before| before.sides()).map(unread);
            moves.unread.extend(were.map(|(user, were)| (user, -were)));
            passed.remove(&row.id);
            moves.stands.insert(row.id, after);
        }
        for turn in schedule.turns.iter().filter(|turn| !passed.contains(&turn.conversation)) {
            say(tables, turn, &mut turns);
        }
        if !moves.stands.is_empty() {
            moves.gone = recent.quiet(now);
            moves.gone.retain(|(id, _)| !moves.stands.contains_key(id));
            for (id, stand) in &moves.gone {
                writes.push(remove(to, keys::conversation(b'h', *id)));
                writes.extend(stand.listed().map(|key| mark(to, key)));
            }
        }
        // A row never says more than can be read.
        turns.extend(writes);
        Ok((turns, moves))
    }
}

/// What a user has yet to read of a conversation: what retention removed is not unread.
pub(super) fn left(user: &UserId, (to, read): (u64, u64), gone: Option<Gone>) -> u64 {
    let gone = gone.map_or(0, |(_, to_mobile, to_business)| match user.party {
        Party::Mobile(_) => to_mobile,
        Party::Business(_) => to_business,
    });
    to.saturating_sub(read.max(gone))
}

/// What the two have yet to read, where that changed.
fn count(tables: &Tables, id: ConversationId, before: Option<&Stand>, after: &Stand, writes: &mut Vec<Write>) {
    let unread = |held: &Held| held.counts.0 > held.counts.1;
    let old = before.map(Stand::sides).into_iter().flatten();
    let mut was: BTreeMap<_, _> = old.filter(|held| unread(held)).map(|held| (&held.user, held)).collect();
    for held in after.sides().iter().filter(|held| unread(held)) {
        if was.remove(&held.user).is_none_or(|was| was.counts != held.counts) {
            writes.push(put(&tables.talks, keys::unread(&held.user, id), &held.counts));
        }
    }
    writes.extend(was.into_keys().map(|user| remove(&tables.talks, keys::unread(user, id))));
}

fn say(tables: &Tables, turn: &Turn, writes: &mut Vec<Write>) {
    let (id, seq) = (turn.conversation, turn.seq);
    writes.push(put(&tables.said, keys::turn(id, seq), turn));
    writes.push(put(&tables.talks, keys::said(turn.message.id), &(id, seq)));
    if let Some(of) = turn.of {
        let change = (turn.recorded_at, turn.message.kind, &turn.message.content);
        writes.push(put(&tables.said, keys::change(id, of, seq), &change));
    }
}
