//! Conversations whose partition is taken over: what an owner was told stays as it was told, and what it adds stays, whatever
//! those write who owned it before and wake up late. As with inboxes ([`super::fencing`]) a late write may answer `Fenced` or
//! `Ok`, and what is read afterwards is the same in both kinds of store.

use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use schemas::{
    Conversation, ConversationId, Inbox, Kind, Message, MessageId, UserId,
    conversation::{Command, Pair, Side, Version},
    port::{Entry, History, Order, PortError, Schedule},
};

use super::{
    Installation,
    conversations::{happen, list, thread},
    kit::*,
    talking::{Desk, assign, business, mobile},
};

/// Partitions that no other case writes to: the inboxes of a business user are one a partition.
const PARTITIONS: [u16; 2] = [16, 17];

/// As one that was overtaken: refused, or taken and without effect.
async fn late(history: &dyn History, (entries, schedule): &(Vec<Entry>, Schedule)) {
    match history.record(entries, schedule).await {
        Ok(()) | Err(PortError::Fenced(_)) => {}
        Err(other) => panic!("a late write is refused as such, not with: {other}"),
    }
}

fn pairs(desk: &Desk) -> [Pair; 2] {
    [desk.pair("sara", 1), desk.pair("omar", 1)]
}

fn users(desk: &Desk) -> Vec<UserId> {
    let one = desk.pair("sara", 1);
    ["sara", "omar", "nadia"].iter().map(|name| desk.pair(name, 1).business()).chain([one.mobile()]).collect()
}

/// Rows without the version, which a store may raise when it tells them to an owner.
async fn rows(history: &dyn History, ids: &[ConversationId]) -> Vec<Option<Conversation>> {
    unversioned(history.conversations(ids).await.unwrap())
}

fn unversioned(rows: Vec<Option<Conversation>>) -> Vec<Option<Conversation>> {
    rows.into_iter().map(|row| row.map(|row| Conversation { version: Version::default(), ..row })).collect()
}

/// Rows, lists and counts are those of the owner of the moment, and so are the newest turns.
async fn looks(history: &dyn History, desk: &Desk) {
    let ids = pairs(desk).map(|pair| pair.id());
    assert_eq!(rows(history, &ids).await, unversioned(desk.model.conversations(&ids)));
    for id in ids {
        let newest = desk.model.turns(id, Order::Newest, None, 3, |_| schemas::State::default());
        assert_eq!(history.turns(id, Order::Newest, None, 3).await.unwrap(), newest);
    }
    for user in users(desk) {
        assert_eq!(history.unread_total(&user).await.unwrap(), desk.model.unread_total(&user), "unread of {user}");
        for archived in [false, true] {
            let expected = desk.model.by_user(&user, archived, None, 10).rows.into_iter().map(Some).collect();
            let found = list(history, &user, archived, 5).await.into_iter().map(Some).collect();
            assert_eq!(unversioned(found), unversioned(expected), "the list of {user}");
        }
    }
}

/// And so is everything else: threads both ways, what is found by its name, and the inboxes.
async fn holds(history: &dyn History, desk: &Desk, written: &[Entry], dead: &[MessageId]) {
    let none = |_| schemas::State::default();
    looks(history, desk).await;
    for id in pairs(desk).map(|pair| pair.id()) {
        let mut whole = desk.model.turns(id, Order::Oldest, None, 1_000, none).rows;
        for limit in [2, 100] {
            assert_eq!(thread(history, id, Order::Oldest, limit).await, whole);
        }
        whole.reverse();
        assert_eq!(thread(history, id, Order::Newest, 2).await, whole);
        let log = desk.model.log(id);
        let ids: Vec<_> = log.iter().map(|turn| turn.message.id).collect();
        assert_eq!(history.said(&ids).await.unwrap(), desk.model.said(&ids, none));
        let seqs: Vec<_> = log.iter().map(|turn| turn.seq).collect();
        assert_eq!(seqs, (1..=log.len() as u64).collect::<Vec<_>>(), "no number twice, no gap");
    }
    assert!(history.said(dead).await.unwrap().iter().all(Option::is_none));
    for user in users(desk) {
        let inbox = Inbox { user, partition: desk.partition };
        let mine: Vec<_> = written.iter().filter(|entry| entry.inbox == inbox).cloned().collect();
        assert_eq!(whole(history, &inbox).await, mine);
    }
}

/// What happens: somebody takes over, the owner of the moment does something, or one that was overtaken does.
#[derive(Debug, Clone)]
enum Step {
    Take,
    Do(Vec<(u8, u8, u8)>),
    Late(usize, Vec<(u8, u8, u8)>),
}

/// Whatever owners come and go and whoever of them writes late, also several: the conversations are what the owner of the
/// moment was told and what it added.
pub async fn what_an_owner_was_told_of_conversations_stays(bed: &mut dyn Installation) {
    let handles = [bed.another().await, bed.another().await, bed.history()];
    let number = AtomicU32::new(0);
    let things = || proptest::collection::vec((0u8..10, 0u8..2, any::<u8>()), 1..5);
    let step = prop_oneof![
        2 => Just(Step::Take),
        2 => things().prop_map(Step::Do),
        4 => (0usize..8, things()).prop_map(|(who, things)| Step::Late(who, things)),
    ];
    property_of(bed.cases(), &proptest::collection::vec(step, 2..12), async |steps| {
        let turn = number.fetch_add(1, Ordering::Relaxed);
        let mut first = Desk::new(PARTITIONS[turn as usize % 2]);
        let (pairs, users) = (pairs(&first), users(&first));
        let mut said = Vec::new();
        // Who began has said something everywhere.
        let mut owners = vec![(first.successor(&*handles[0], &pairs, &users).await, handles[0].clone())];
        let (desk, history) = &mut owners[0];
        pairs.iter().for_each(|pair| said.extend(desk.say(pair, Side::Business, "hello")));
        let mut written = desk.record(&**history).await.0;
        let mut dead = Vec::new();
        let act = |desk: &mut Desk, things: &[(u8, u8, u8)], said: &mut Vec<MessageId>| {
            for (what, whom, which) in things {
                happen(desk, (*what, 1, *whom, 10, *which), said);
            }
        };
        for (turn, step) in steps.iter().enumerate() {
            match step {
                Step::Take => {
                    let history = handles[turn % handles.len()].clone();
                    let (desk, _) = owners.last_mut().unwrap();
                    let next = desk.successor(&*history, &pairs, &users).await;
                    for pair in &pairs {
                        assert_eq!(next.rows.get(&pair.id()), desk.rows.get(&pair.id()), "what was written is told");
                    }
                    owners.push((next, history));
                }
                Step::Do(things) => {
                    let (desk, history) = owners.last_mut().unwrap();
                    act(desk, things, &mut said);
                    written.extend(desk.record(&**history).await.0);
                }
                Step::Late(who, things) => {
                    let overtaken = owners.len() - 1;
                    let Some(who) = who.checked_rem(overtaken) else { continue };
                    let mut theirs = said.clone();
                    let (desk, history) = &mut owners[who];
                    act(desk, things, &mut theirs);
                    dead.extend(theirs.split_off(said.len()));
                    late(&**history, &desk.take()).await;
                }
            }
            looks(&*handles[(turn + 1) % 3], &owners.last().unwrap().0).await;
        }
        holds(&*handles[0], &owners.last().unwrap().0, &written, &dead).await;
        // And once the last one has written everywhere.
        let (desk, history) = owners.last_mut().unwrap();
        for pair in &pairs {
            let _ = desk.ask(pair, mobile(1), Command::Block(true));
        }
        written.extend(desk.record(&**history).await.0);
        holds(&*handles[1], desk, &written, &dead).await;
    });
}

/// An owner was told the end of one inbox, and not yet of a conversation in which somebody speaks who does not know of it:
/// what is counted there is brought to where it is missing, and what is not is as if it had never been.
pub async fn what_stands_in_part_is_completed(bed: &mut dyn Installation) {
    for told in [Side::Mobile, Side::Business] {
        let mut first = Desk::new(PARTITIONS[0]);
        let (pairs, users) = (pairs(&first), users(&first));
        let pair = &pairs[0];
        let (before, after) = (bed.another().await, bed.another().await);
        let mut old = first.successor(&*before, &pairs, &users).await;
        old.say(pair, Side::Business, "hello").unwrap();
        let mut written = old.record(&*before).await.0;
        // The new owner meets one of the two with something else.
        own(&*after, &[old.partition]).await;
        let user = if told == Side::Mobile { pair.mobile() } else { pair.business() };
        after.tails(&[Inbox { user, partition: old.partition }]).await.unwrap();
        let id = old.say(pair, Side::Business, "are you there?").unwrap();
        let (entries, schedule) = old.take();
        late(&*before, &(entries, schedule.clone())).await;
        // And then the conversation: here under one more takeover, which changes nothing.
        let mut new = old.successor(&*after, &pairs, &users).await;
        let counted = after.counted(&[(pair.id(), id)]).await.unwrap().remove(0);
        let stands = new.rows[&pair.id()].last_seq == 2;
        if stands {
            new.model.record(&schedule);
            let counted = counted.expect("a store that takes it says what of it stands");
            assert!(!counted.missing.is_empty(), "one end was told before");
            let turn = counted.turn.expect("it was said");
            counted.missing.iter().for_each(|inbox| new.complete(&turn, inbox));
        } else {
            assert_eq!(counted, None);
            new.say(pair, Side::Business, "are you there?").unwrap();
        }
        let completed = new.record(&*after).await.0;
        written.extend(completed);
        let history = bed.history();
        // Who owns it next meets the message in the log once more: nothing of it is missing now.
        let third = bed.another().await;
        let new = new.successor(&*third, &pairs, &users).await;
        let counted = third.counted(&[(pair.id(), id)]).await.unwrap().remove(0);
        assert_eq!(counted.is_some(), stands);
        assert_eq!(counted.map(|counted| counted.missing).unwrap_or_default(), []);
        looks(&*history, &new).await;
        for user in [pair.mobile(), pair.business()] {
            let inbox = Inbox { user, partition: new.partition };
            let texts: Vec<_> =
                whole(&*history, &inbox).await.into_iter().map(|e| (e.seq, e.message.content.body.clone())).collect();
            assert_eq!(texts, [(Some(1), "hello".into()), (Some(2), "are you there?".into())], "in {inbox:?}");
        }
    }
}

/// A conversation is handed over late, by an owner whose successor was told of it and has heard nothing of who is to answer: in
/// that one's inbox is nothing of it, and then what the successor writes there.
pub async fn what_is_handed_over_late_is_not_in_the_new_inbox(bed: &mut dyn Installation) {
    let mut first = Desk::new(PARTITIONS[0]);
    let (pairs, users) = (pairs(&first), users(&first));
    let pair = &pairs[0];
    let (before, after, third) = (bed.another().await, bed.another().await, bed.another().await);
    let mut old = first.successor(&*before, &pairs, &users).await;
    for pair in &pairs {
        old.say(pair, Side::Business, "hello").unwrap();
    }
    let mut written = old.record(&*before).await.0;
    let nadia = first.pair("nadia", 1).business();
    let known: Vec<_> = users.iter().filter(|user| **user != nadia).cloned().collect();
    let mut new = old.successor(&*after, &pairs, &known).await;
    let mut dead = Vec::new();
    old.ask(pair, business("sara"), assign("nadia")).unwrap();
    for _batch in 0..2 {
        dead.push(old.say(pair, Side::Mobile, "hello nadia").unwrap());
        late(&*before, &old.take()).await;
        looks(&*bed.history(), &new).await;
    }
    let mut last = new.successor(&*third, &pairs, &users).await;
    holds(&*bed.history(), &last, &written, &dead).await;
    last.ask(pair, business("sara"), assign("nadia")).unwrap();
    last.say(pair, Side::Mobile, "hello nadia").unwrap();
    written.extend(last.record(&*third).await.0);
    holds(&*bed.history(), &last, &written, &dead).await;
}

/// An owner is told what stands of a hand-over in the inbox of somebody who answered for a while, whom no row names any more: from
/// then on a late owner adds nothing there.
pub async fn what_an_owner_was_told_of_an_inbox_without_its_row_stays(bed: &mut dyn Installation) {
    let mut first = Desk::new(PARTITIONS[1]);
    let (pairs, users) = (pairs(&first), users(&first));
    let (before, after) = (bed.another().await, bed.another().await);
    let mut old = first.successor(&*before, &pairs, &users).await;
    for pair in &pairs {
        old.say(pair, Side::Business, "hello").unwrap();
    }
    let mut by = "sara";
    for to in ["omar", "nadia"] {
        old.ask(&pairs[0], business(by), assign(to)).unwrap();
        by = to;
    }
    let (written, _) = old.record(&*before).await;
    let omar = Inbox { user: first.pair("omar", 1).business(), partition: old.partition };
    let handed = written.iter().find(|entry| entry.inbox == omar && entry.message.kind == Kind::Note(pairs[0].id()));
    let handed = handed.expect("a copy").message.id;
    let known: Vec<_> = users.iter().filter(|user| **user != omar.user).cloned().collect();
    old.successor(&*after, &pairs[..1], &known).await;
    let counted = after.counted(&[(pairs[0].id(), handed)]).await.unwrap().remove(0);
    assert_eq!(counted.map(|counted| counted.missing).unwrap_or_default(), []);
    old.say(&pairs[1], Side::Mobile, "are you there?").unwrap();
    late(&*before, &old.take()).await;
    let there: Vec<_> = written.into_iter().filter(|entry| entry.inbox == omar).collect();
    assert_eq!(whole(&*bed.history(), &omar).await, there);
}

/// Two late owners: one that writes while nobody else does yet, and one that had read before that and writes last. What the
/// third was told stands, under its number and its name, and in the inboxes.
pub async fn who_read_before_and_writes_after_changes_nothing(bed: &mut dyn Installation) {
    let mut first = Desk::new(PARTITIONS[1]);
    let (pairs, users) = (pairs(&first), users(&first));
    let pair = &pairs[0];
    let handles = [bed.another().await, bed.another().await, bed.another().await];
    let mut one = first.successor(&*handles[0], &pairs, &users).await;
    for pair in &pairs {
        one.say(pair, Side::Business, "hello").unwrap();
    }
    let mut written = one.record(&*handles[0]).await.0;
    let mut two = one.sleeper(&*handles[1]).await;
    let said = one.say(pair, Side::Mobile, "hello yourself").unwrap();
    let (entries, schedule) = one.take();
    late(&*handles[0], &(entries.clone(), schedule.clone())).await;
    let mut three = one.successor(&*handles[2], &pairs, &users).await;
    let stands = three.rows[&pair.id()].last_seq == 2;
    if stands {
        three.model.record(&schedule);
        written.extend(entries);
        let counted = handles[2].counted(&[(pair.id(), said)]).await.unwrap().remove(0).unwrap();
        assert_eq!((counted.turn.map(|turn| turn.seq), counted.missing), (Some(2), Vec::new()));
    }
    looks(&*bed.history(), &three).await;
    // It says something else there, says the same again at another number, and gives the conversation away.
    let mut dead = vec![two.say(pair, Side::Business, "are you there?").unwrap()];
    two.say_again(pair, Side::Mobile, "hello yourself", said).unwrap();
    two.ask(pair, business("sara"), assign("nadia")).unwrap();
    late(&*handles[1], &two.take()).await;
    if !stands {
        dead.push(said);
    }
    for history in [bed.history(), handles[2].clone()] {
        holds(&*history, &three, &written, &dead).await;
        let known = history.known(&[said]).await.unwrap().remove(0).and_then(|known| known.position);
        let found = history.messages(&[said]).await.unwrap().remove(0).and_then(|placed| placed.position);
        let at = written.iter().find(|entry| entry.message.id == said && entry.inbox.user == entry.message.to);
        assert_eq!((known, found), (at.map(|entry| entry.position), at.map(|entry| entry.position)));
    }
    three.say(pair, Side::Mobile, "yes").unwrap();
    written.extend(three.record(&*handles[2]).await.0);
    holds(&*bed.history(), &three, &written, &dead).await;
}

/// A note to one's own devices, of which the row tells and their inbox does not: it is brought there, once, and what the row
/// says since is not said again.
pub async fn a_note_that_only_the_row_tells_of_is_completed(bed: &mut dyn Installation) {
    let mut first = Desk::new(PARTITIONS[0]);
    let (pairs, users) = (pairs(&first), users(&first));
    let pair = &pairs[0];
    let (before, after, third) = (bed.another().await, bed.another().await, bed.another().await);
    let mut old = first.successor(&*before, &pairs, &users).await;
    old.say(pair, Side::Business, "hello").unwrap();
    old.record(&*before).await;
    // The new owner meets the reader's inbox with something else, and not yet the conversation.
    own(&*after, &[old.partition]).await;
    let inbox = Inbox { user: pair.mobile(), partition: old.partition };
    after.tails(std::slice::from_ref(&inbox)).await.unwrap();
    // Put away, and blocked, in one batch.
    for command in [Command::Archive(true), Command::Block(true)] {
        old.ask(pair, mobile(1), command).unwrap();
    }
    let (entries, schedule) = old.take();
    let notes: Vec<_> = entries.iter().map(|entry| (pair.id(), entry.message.id)).collect();
    assert!(notes.len() == 2 && entries.iter().all(|entry| entry.seq.is_none() && entry.inbox == inbox));
    late(&*before, &(entries.clone(), schedule.clone())).await;
    let mut new = old.successor(&*after, &pairs, &users).await;
    let counted = after.counted(&notes).await.unwrap();
    if new.rows[&pair.id()].blocked {
        new.model.record(&schedule);
        for (counted, entry) in counted.into_iter().zip(&entries) {
            let counted = counted.expect("a store whose row tells of it says what is missing");
            assert_eq!((counted.turn, counted.epoch), (None, entry.position.epoch));
            assert_eq!(counted.missing, std::slice::from_ref(&inbox));
            new.note(Message::clone(&entry.message), &inbox);
        }
    } else {
        assert_eq!(counted, [None, None]);
        for command in [Command::Archive(true), Command::Block(true)] {
            new.ask(pair, mobile(1), command).unwrap();
        }
    }
    new.record(&*after).await;
    let new = new.successor(&*third, &pairs, &users).await;
    let missing = third.counted(&notes).await.unwrap().into_iter().flatten().flat_map(|counted| counted.missing);
    assert_eq!(missing.collect::<Vec<_>>(), []);
    looks(&*bed.history(), &new).await;
    let kept = whole(&*bed.history(), &inbox).await;
    let told: Vec<_> = kept.iter().map(|entry| (entry.seq, entry.message.content.body.as_str())).collect();
    let note = |note: &str| format!("{{\"note\":\"{note}\"}}");
    assert_eq!(told, [(Some(1), "hello"), (None, &note("archived")), (None, &note("blocked"))]);
}

/// Nobody had opened a conversation when its owner asked for it. Whoever opens it late, it is not there, until its owner does.
pub async fn a_conversation_that_was_told_not_to_be_there_is_not(bed: &mut dyn Installation) {
    let mut first = Desk::new(PARTITIONS[1]);
    let (pairs, users) = (pairs(&first), users(&first));
    let handles = [bed.another().await, bed.another().await, bed.another().await];
    let mut owners = Vec::new();
    for history in &handles {
        let next = first.successor(&**history, &pairs, &users).await;
        assert!(next.rows.is_empty(), "nobody has opened one");
        owners.push(next);
    }
    let mut last = owners.remove(2);
    let mut dead = Vec::new();
    for (desk, history) in owners.iter_mut().zip(&handles) {
        for pair in &pairs {
            dead.push(desk.say(pair, Side::Business, "hello").unwrap());
        }
        desk.ask(&pairs[0], business("sara"), assign("nadia")).unwrap();
        late(&**history, &desk.take()).await;
        holds(&*bed.history(), &last, &[], &dead).await;
    }
    let next = bed.another().await;
    let mut last = last.successor(&*next, &pairs, &users).await;
    assert!(last.rows.is_empty(), "nobody has opened one that counts");
    holds(&*bed.history(), &last, &[], &dead).await;
    last.say(&pairs[0], Side::Mobile, "hello?").unwrap();
    let written = last.record(&*next).await.0;
    holds(&*bed.history(), &last, &written, &dead).await;
}
