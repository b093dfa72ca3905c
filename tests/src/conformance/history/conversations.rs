//! Conversations: rows, turns, lists and counts, with the entries of their batch and never against them.

use proptest::prelude::*;
use schemas::{
    Conversation, ConversationId, Epoch, Inbox, MessageId, Offset, Partition, Reason, Sender, Timestamp, UserId, What,
    conversation::{Applied, Command, Shown, Side, UpTo},
    port::{ByActivity, History, Order, PortError, Schedule},
};

use super::{
    Installation,
    kit::*,
    talking::{Desk, business, mobile},
};

async fn one(history: &dyn History, id: ConversationId) -> Option<Conversation> {
    history.conversations(&[id]).await.unwrap().remove(0)
}

pub(super) async fn list(history: &dyn History, user: &UserId, archived: bool, limit: usize) -> Vec<Conversation> {
    let (mut from, mut rows) = (None::<ByActivity>, Vec::new());
    loop {
        let page = history.by_user(user, archived, from, limit).await.unwrap();
        assert!(page.rows.len() <= limit);
        rows.extend(page.rows);
        match page.next {
            Some(next) => from = Some(next),
            None => return rows,
        }
    }
}

pub(super) async fn thread(history: &dyn History, id: ConversationId, order: Order, limit: usize) -> Vec<Shown> {
    let (mut from, mut rows) = (None, Vec::new());
    loop {
        let page = history.turns(id, order, from, limit).await.unwrap();
        assert!(page.rows.len() <= limit);
        rows.extend(page.rows);
        match page.next {
            Some(next) => from = Some(next),
            None => return rows,
        }
    }
}

/// Unknown conversations, users and messages are empty, not errors.
pub async fn a_conversation_nobody_opened_is_not_there(bed: &mut dyn Installation) {
    let (history, desk) = (bed.history(), Desk::new(3));
    let pair = desk.pair("sara", 1);
    assert_eq!(one(&*history, pair.id()).await, None);
    assert!(list(&*history, &pair.business(), false, 5).await.is_empty());
    assert!(thread(&*history, pair.id(), Order::Newest, 5).await.is_empty());
    assert_eq!(history.unread_total(&pair.mobile()).await.unwrap(), 0);
    let id = MessageId(uuid::Uuid::new_v4());
    assert_eq!(history.said(&[id]).await.unwrap(), [None]);
    assert_eq!(history.around(pair.id(), id, 5).await.unwrap(), None);
}

/// R10.1: the row, the turns and the entries of both sides are there together, and after a stop or a crash.
pub async fn what_was_said_is_found_everywhere_and_survives_stop_and_crash(bed: &mut dyn Installation) {
    let mut desk = Desk::new(3);
    let pair = desk.pair("sara", 1);
    let hello = desk.say(&pair, Side::Business, "hello").unwrap();
    let answer = desk.say(&pair, Side::Mobile, "hello yourself").unwrap();
    desk.ask(&pair, business("sara"), Command::Read { up_to: UpTo::Seq(2) }).unwrap();
    desk.record(&*bed.history()).await;
    for round in 0..3 {
        match round {
            1 => bed.crash().await,
            2 => bed.restart().await,
            _ => {}
        }
        let history = bed.history();
        let row = one(&*history, pair.id()).await.unwrap();
        assert_eq!(Some(&row), desk.rows.get(&pair.id()));
        assert_eq!((row.mobile.unread(), row.business.unread(), row.last_seq), (1, 0, 2));
        let said = thread(&*history, pair.id(), Order::Oldest, 10).await;
        assert_eq!(said.iter().map(|shown| shown.turn.message.id).collect::<Vec<_>>(), [hello, answer]);
        for (user, to) in [(pair.mobile(), 1), (pair.business(), 0)] {
            let inbox = Inbox { user: user.clone(), partition: desk.partition };
            let entries = whole(&*history, &inbox).await;
            let ids: Vec<_> = entries.iter().map(|entry| entry.message.id).collect();
            assert_eq!(ids, [hello, answer], "each side has both, its own too");
            assert_eq!(history.unread_total(&user).await.unwrap(), to);
            assert_eq!(list(&*history, &user, false, 10).await, std::slice::from_ref(&row));
            assert_eq!(history.unread(&inbox).await.unwrap().one_way, 0, "chat is not in the one-way count");
        }
        let placed = history.messages(&[hello, answer]).await.unwrap();
        let users: Vec<_> = placed.iter().map(|placed| placed.as_ref().unwrap().inbox.user.clone()).collect();
        assert_eq!(users, [pair.mobile(), pair.business()], "by its id a message is found where its recipient has it");
    }
}

/// How far the lane was applied stands with the row, also beside a note: each owner that takes over is told, through a crash
/// and a stop.
pub async fn every_owner_is_told_how_far_the_lane_was_applied(bed: &mut dyn Installation) {
    let mut desk = Desk::new(22);
    let pair = desk.pair("sara", 1);
    desk.epoch = own(&*bed.history(), &[desk.partition]).await[0];
    desk.say(&pair, Side::Business, "hello").unwrap();
    desk.ask(&pair, mobile(1), Command::Archive(true)).unwrap();
    let (entries, mut schedule) = desk.take();
    let applied = Some(Applied { offset: Offset(7), accepted_at: Timestamp(1_000) });
    schedule.conversations.iter_mut().for_each(|row| row.applied = applied);
    bed.history().record(&entries, &schedule).await.unwrap();
    let asked = [(pair.id(), vec![Inbox { user: pair.mobile(), partition: desk.partition }])];
    for round in 0..3 {
        match round {
            1 => bed.crash().await,
            2 => bed.restart().await,
            _ => {}
        }
        own(&*bed.history(), &[desk.partition]).await;
        let told = bed.history().owned(&asked).await.unwrap().remove(0).unwrap();
        assert_eq!((told.last_seq, told.applied), (1, applied), "round {round}");
    }
}

/// A batch again, and an older one after a newer one: nothing goes back (invariant 4).
pub async fn the_same_batches_again_change_nothing(bed: &mut dyn Installation) {
    let (history, mut desk) = (bed.history(), Desk::new(3));
    let pair = desk.pair("sara", 1);
    let mut batches = Vec::new();
    for n in 0..6 {
        desk.now = desk.now.plus_ms(1_000);
        let id = desk.say(&pair, if n % 2 == 0 { Side::Business } else { Side::Mobile }, "hello").unwrap();
        if n == 3 {
            desk.ask(&pair, mobile(1), Command::Read { up_to: UpTo::Seq(2) }).unwrap();
            desk.ask(&pair, mobile(1), Command::Delete { of: id }).unwrap();
        }
        if n == 4 {
            desk.ask(&pair, business("sara"), Command::Archive(true)).unwrap();
        }
        batches.push(desk.record(&*history).await);
    }
    let look = async || {
        let row = one(&*history, pair.id()).await;
        let said = thread(&*history, pair.id(), Order::Oldest, 3).await;
        let lists =
            [list(&*history, &pair.business(), false, 5).await, list(&*history, &pair.mobile(), false, 5).await];
        let mut totals = Vec::new();
        for user in [pair.business(), pair.mobile()] {
            totals.push(history.unread_total(&user).await.unwrap());
        }
        (row, said, lists, totals)
    };
    let before = look().await;
    assert_eq!(before.0.as_ref(), desk.rows.get(&pair.id()));
    for (entries, schedule) in batches.iter().rev().chain(&batches) {
        history.record(entries, schedule).await.unwrap();
        assert_eq!(look().await, before);
    }
}

/// Fencing: a late owner's row never replaces the newer owner's, and its turns are not shown.
pub async fn what_a_late_owner_wrote_is_not_in_the_conversation(bed: &mut dyn Installation) {
    let history = bed.history();
    let mut desk = Desk::new(18);
    desk.epoch = own(&*history, &[Partition(18)]).await[0];
    let pair = desk.pair("sara", 1);
    desk.say(&pair, Side::Business, "one").unwrap();
    desk.record(&*history).await;
    let standing = desk.rows[&pair.id()].clone();
    // The late owner goes on from here, and so does the newer one.
    let old = desk.epoch;
    let mut late = Vec::new();
    for _ in 0..3 {
        desk.say(&pair, Side::Mobile, "late").unwrap();
        late.push(desk.take());
    }
    desk.rows.insert(pair.id(), standing.clone());
    desk.epoch = own(&*history, &[Partition(18)]).await[0];
    assert!(desk.epoch > old);
    let row = desk.rows.get_mut(&pair.id()).unwrap();
    row.version = row.version.next(desk.epoch);
    row.blocked = true;
    let truth = row.clone();
    let epochs = [(Partition(18), desk.epoch)].into_iter().collect();
    let schedule = Schedule { conversations: vec![truth.clone()], epochs, ..Schedule::default() };
    history.record(&[], &schedule).await.unwrap();
    for (entries, schedule) in late {
        let mut rows_alone = schedule.clone();
        rows_alone.turns.clear();
        for (entries, schedule) in [(&entries[..], &schedule), (&[][..], &rows_alone)] {
            match history.record(entries, schedule).await {
                Ok(()) | Err(PortError::Fenced(_)) => {}
                Err(other) => panic!("{other}"),
            }
        }
    }
    assert_eq!(one(&*history, pair.id()).await, Some(truth.clone()));
    assert_eq!(thread(&*history, pair.id(), Order::Newest, 10).await.len(), 1);
    assert_eq!(list(&*history, &pair.business(), false, 10).await, [truth]);
}

/// Something that happens between a few people, some time after what was before.
pub(super) type Happening = (u8, u8, u8, u16, u8);

pub(super) fn happenings(most: usize) -> impl Strategy<Value = Vec<Happening>> {
    proptest::collection::vec((0u8..12, 0u8..3, 0u8..3, 0u16..3_000, any::<u8>()), 1..most)
}

/// Lets it happen, as far as the rules permit it.
pub(super) fn happen(desk: &mut Desk, (what, who, whom, ms, which): Happening, said: &mut Vec<MessageId>) {
    desk.now = desk.now.plus_ms(u64::from(ms));
    let pair = desk.pair(["sara", "omar", "nadia"][usize::from(whom)], u32::from(who));
    let id = pair.id();
    let assigned = desk.rows.get(&id).map_or_else(|| pair.business.clone(), |row| row.assigned_to.clone());
    let by: Sender = if which % 2 == 0 { mobile(u32::from(who)) } else { business(assigned.as_str()) };
    let of = || said.get(usize::from(which) % said.len().max(1)).copied().unwrap_or(MessageId(uuid::Uuid::nil()));
    let command = match what {
        0..=3 => {
            let side = if which % 2 == 0 { Side::Mobile } else { Side::Business };
            said.extend(desk.say(&pair, side, &format!("message {which}")));
            return;
        }
        4 => Command::Edit { of: of(), content: message(&inbox(&desk.tenant, 1)).content },
        5 => Command::Delete { of: of() },
        6 | 7 => Command::Read { up_to: UpTo::Seq(u64::from(which) % 12) },
        8 => Command::Archive(which % 3 > 0),
        9 => Command::Assign { to: schemas::Name::parse(["sara", "omar", "nadia"][usize::from(which) % 3]).unwrap() },
        10 if which % 3 == 0 => Command::Close,
        10 => Command::Reopen,
        _ => Command::Block(which % 4 == 0),
    };
    // Half of what is asked of others is refused; that is a rule of its own.
    let _ = desk.ask(&pair, by, command);
}

pub(super) fn everybody(desk: &Desk) -> Vec<UserId> {
    let pairs = (0..3).flat_map(|number| ["sara", "omar", "nadia"].map(|name| desk.pair(name, number)));
    pairs.flat_map(|pair| [pair.business(), pair.mobile()]).collect()
}

/// R1.13, R1.14, P6, P10: whatever happens, a store's lists, rows and counts are those of the plain maps.
pub async fn p6_p10_lists_and_counts_are_what_happened(bed: &mut dyn Installation) {
    let history = bed.history();
    property_of(bed.cases(), &(happenings(60), 1usize..8, 1usize..9), async |(happenings, batch, limit)| {
        let (mut desk, mut said) = (Desk::new(3), Vec::new());
        for chunk in happenings.chunks(batch) {
            for happening in chunk {
                happen(&mut desk, *happening, &mut said);
            }
            desk.record(&*history).await;
        }
        let ids: Vec<_> = desk.rows.keys().copied().collect();
        assert_eq!(history.conversations(&ids).await.unwrap(), desk.model.conversations(&ids));
        for user in everybody(&desk) {
            assert_eq!(history.unread_total(&user).await.unwrap(), desk.model.unread_total(&user));
            for archived in [false, true] {
                let expected = desk.model.by_user(&user, archived, None, 1_000).rows;
                assert_eq!(list(&*history, &user, archived, limit).await, expected, "in pages of {limit}");
            }
        }
    });
}

/// R1.7: chronological, paged, both ways; edits and deletions show in what they are about; `around` has it in the middle.
pub async fn threads_read_the_same_both_ways_and_around_any_message(bed: &mut dyn Installation) {
    let history = bed.history();
    let input = (happenings(60), 1usize..8, 1usize..9, any::<usize>());
    property_of(bed.cases(), &input, async |(happenings, batch, limit, middle)| {
        let (mut desk, mut said) = (Desk::new(3), Vec::new());
        for chunk in happenings.chunks(batch) {
            for (what, _, _, ms, which) in chunk {
                // One pair, so that the thread is long; nobody stops it.
                happen(&mut desk, (what % 8, 1, 0, *ms, *which), &mut said);
            }
            desk.record(&*history).await;
        }
        let none = |_| schemas::State::default();
        let id = desk.pair("sara", 1).id();
        let whole = desk.model.turns(id, Order::Oldest, None, 1_000, none).rows;
        assert_eq!(thread(&*history, id, Order::Oldest, limit).await, whole);
        let mut backwards = whole.clone();
        backwards.reverse();
        assert_eq!(thread(&*history, id, Order::Newest, limit).await, backwards);
        let log = desk.model.log(id);
        let Some(turn) = log.get(middle.checked_rem(log.len()).unwrap_or(0)) else { return };
        let message = turn.message.id;
        let around = history.around(id, message, limit).await.unwrap();
        assert_eq!(around, desk.model.around(id, message, limit, none));
        let around = around.unwrap();
        let here = turn.about().unwrap_or(message);
        assert!(around.rows.len() <= limit && around.rows.iter().any(|row| row.turn.message.id == here));
        // From its two ends it goes on without a break.
        if let Some(older) = around.older {
            let before = history.turns(id, Order::Newest, Some(older), 1).await.unwrap().rows;
            assert_eq!(before[0].turn.seq, whole.iter().rev().find(|row| row.turn.seq < older).unwrap().turn.seq);
        }
        let ids: Vec<_> = log.iter().map(|turn| turn.message.id).collect();
        assert_eq!(history.said(&ids).await.unwrap(), desk.model.said(&ids, none));
    });
}

/// The ticks: what became of a message stands beside it in the thread (R9.7).
pub async fn a_thread_shows_what_became_of_its_messages(bed: &mut dyn Installation) {
    let (history, mut desk) = (bed.history(), Desk::new(3));
    let pair = desk.pair("sara", 1);
    for _ in 0..3 {
        desk.say(&pair, Side::Business, "hello").unwrap();
    }
    let (entries, _) = desk.record(&*history).await;
    let read = entries.iter().find(|entry| entry.inbox.user == pair.mobile()).unwrap();
    history.settle(&[fact(read, What::Read, 5)]).await.unwrap();
    let statuses: Vec<_> =
        thread(&*history, pair.id(), Order::Oldest, 10).await.iter().map(|shown| shown.state.status()).collect();
    assert_eq!(statuses, [schemas::Status::Read, schemas::Status::Pending, schemas::Status::Pending]);
    let found = history.said(&[read.message.id]).await.unwrap().remove(0).unwrap();
    assert_eq!(found.state.status(), schemas::Status::Read);
}

/// Participants only: a message is found in its own conversation and in no other.
pub async fn a_message_is_around_in_its_own_conversation_alone(bed: &mut dyn Installation) {
    let (history, mut desk) = (bed.history(), Desk::new(3));
    let (mine, other) = (desk.pair("sara", 1), desk.pair("sara", 2));
    let id = desk.say(&mine, Side::Business, "hello").unwrap();
    desk.say(&other, Side::Business, "hello").unwrap();
    desk.record(&*history).await;
    assert!(history.around(mine.id(), id, 3).await.unwrap().is_some());
    assert_eq!(history.around(other.id(), id, 3).await.unwrap(), None);
}

/// Retention takes turns with their messages, whichever side had them; what is gone is not unread, and not shown in a list.
pub async fn turns_go_with_their_messages_and_are_no_longer_unread(bed: &mut dyn Installation) {
    let hour = |n: u64| Timestamp(NOON.0 + (n * 3_600_000) as i64);
    let mut desk = Desk::new(19);
    let history = bed.history();
    super::retention::sweep(&*history, desk.partition, Timestamp(i64::MAX), 1_000).await;
    let epochs = own(&*history, &[desk.partition]).await;
    desk.epoch = epochs[0].max(Epoch(1));
    let (pair, old) = (desk.pair("sara", 1), desk.pair("omar", 1));
    let mut said = Vec::new();
    for n in 1..=8 {
        desk.now = hour(n);
        let side = if n % 2 == 0 { Side::Mobile } else { Side::Business };
        said.push(desk.say(&pair, side, &format!("message {n}")).unwrap());
        if n < 5 {
            desk.say(&old, side, "long ago").unwrap();
            let content = message(&inbox(&desk.tenant, 1)).content;
            let by = if side == Side::Mobile { mobile(1) } else { business("sara") };
            let of = said[n as usize - 1];
            desk.ask(&pair, by, Command::Edit { of, content }).unwrap();
        }
    }
    desk.now = hour(9);
    desk.ask(&pair, mobile(1), Command::Archive(true)).unwrap();
    let (entries, _) = desk.record(&*history).await;
    let unreached = super::retention::sweep(&*history, desk.partition, hour(5), 7).await;
    assert!(unreached.iter().all(|placed| placed.recorded_at < hour(5)));
    assert!(unreached.iter().all(|placed| placed.inbox.user == placed.message.to), "nobody waits for a copy");
    drop(history);
    for round in 0..2 {
        if round == 1 {
            bed.restart().await;
        }
        let history = bed.history();
        for order in [Order::Oldest, Order::Newest] {
            let mut left = thread(&*history, pair.id(), order, 3).await;
            left.sort_by_key(|shown| shown.turn.seq);
            let ids: Vec<_> = left.iter().map(|shown| shown.turn.message.id).collect();
            assert_eq!(ids, said[4..]);
            assert!(thread(&*history, old.id(), order, 3).await.is_empty());
        }
        assert!(history.said(&said[..4]).await.unwrap().iter().all(Option::is_none));
        assert_eq!(history.around(pair.id(), said[0], 3).await.unwrap(), None);
        let row = one(&*history, pair.id()).await.unwrap();
        assert_eq!((row.mobile.unread(), row.business.unread()), (2, 2));
        let gone = one(&*history, old.id()).await.unwrap();
        assert_eq!((gone.mobile.unread(), gone.business.unread(), gone.preview.clone()), (0, 0, None));
        assert_eq!(history.unread_total(&pair.mobile()).await.unwrap(), 2);
        assert_eq!(history.unread_total(&old.business()).await.unwrap(), 0);
        for user in [pair.mobile(), pair.business(), old.business()] {
            let left = whole(&*history, &Inbox { user, partition: desk.partition }).await;
            assert!(left.iter().all(|entry| entry.recorded_at >= hour(5)));
        }
    }
    // And the rest, with what one did for oneself.
    super::retention::sweep(&*bed.history(), desk.partition, Timestamp(i64::MAX), 5).await;
    let history = bed.history();
    let ids: Vec<_> = entries.iter().map(|entry| entry.message.id).collect();
    assert!(history.messages(&ids).await.unwrap().iter().all(Option::is_none));
    assert!(thread(&*history, pair.id(), Order::Newest, 3).await.is_empty());
    assert!(unreached.iter().all(|placed| placed.state.reason() != Some(Reason::NoAck)));
}

/// Many write at once, and readers in between see a row, its turns and its list as they stood together at some moment.
pub async fn readers_see_whole_batches(bed: &mut dyn Installation) {
    let (history, mut desk) = (bed.history(), Desk::new(3));
    let pair = desk.pair("sara", 1);
    desk.say(&pair, Side::Business, "first").unwrap();
    desk.record(&*history).await;
    let batches: Vec<_> = (0..100)
        .map(|n| {
            desk.now = desk.now.plus_ms(1);
            desk.say(&pair, if n % 2 == 0 { Side::Mobile } else { Side::Business }, "more").unwrap();
            desk.take()
        })
        .collect();
    let writing =
        futures::future::join_all(batches.iter().map(|(entries, schedule)| history.record(entries, schedule)));
    let reading = async {
        loop {
            let row = one(&*history, pair.id()).await.unwrap();
            let last = history.turns(pair.id(), Order::Newest, None, 1).await.unwrap().rows.remove(0);
            assert!(last.turn.seq >= row.last_seq, "a row never says more than there is");
            assert_eq!(list(&*history, &pair.mobile(), false, 5).await.len(), 1, "it is in its list at every moment");
            if row.last_seq == 101 {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let (outcomes, ()) = futures::join!(writing, reading);
    assert!(outcomes.iter().all(Result::is_ok));
}
