//! Receipts: a side of a conversation has read more, and each of the other side's messages is told so with a `Read` fact of
//! its own, so that status, events and ticks work as for one-way messages (R9.4, R9.6).
//!
//! Told after the mark is durable, in pieces; the record that asked for it is committed only after the last one is. What a
//! crash leaves untold is told when the record is met again: the row says up to where it was ([`Half::told`]).
//!
//! [`Half::told`]: schemas::conversation::Half::told

use schemas::{
    Kind, MessageId, Status, What,
    conversation::{Shown, Side},
    port::{History, Order},
    record,
};

use crate::{
    item::Marked,
    operators::repeat::{until_answered, until_appended},
    ownership::Owners,
    settle::fact_of,
    shared::Shared,
};

/// Turns to read for so many messages that may have to be told: the reader's own in between come with them, and a history on a
/// server looks up the state of each.
fn enough(left: u64) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).saturating_mul(2).saturating_add(1)
}

/// What of a page is to be told, newest first, and how many may be left before it.
fn read(marked: &Marked, rows: &[Shown]) -> (Vec<MessageId>, u64) {
    let number = |shown: &Shown| match marked.side {
        Side::Mobile => shown.turn.to_mobile,
        Side::Business => shown.turn.to_business,
    };
    let addressed = |shown: &Shown| {
        let message = &shown.turn.message;
        matches!(message.kind, Kind::Chat(_)) && Side::of(&message.to.party) == marked.side
    };
    let within = rows.iter().take_while(|shown| number(shown) > marked.after);
    let told =
        within.filter(|shown| addressed(shown) && number(shown) <= marked.to && shown.state.status() < Status::Read);
    let left = rows.last().map_or(0, |last| number(last).saturating_sub(u64::from(addressed(last))));
    (told.map(|shown| shown.turn.message.id).collect(), left.saturating_sub(marked.after))
}

/// Says it of all of them.
pub(crate) async fn tell(shared: &Shared, marked: &Marked, owners: &mut Owners) {
    let kit = &shared.kit;
    let (history, most): (&dyn History, _) = (&*kit.ports.history, kit.limits.chat.receipts);
    let (mut from, mut left) = (Some(marked.seq.saturating_add(1)), marked.to.saturating_sub(marked.after));
    let mut limit = 0_usize;
    while let Some(before) = from.filter(|_| left > 0) {
        // Where the reader's own are many, pages grow.
        limit = enough(left).max(limit.saturating_mul(2)).min(most);
        let read_one = async || Ok(vec![history.turns(marked.conversation, Order::Newest, Some(before), limit).await?]);
        let pages = until_answered(kit, owners, &[before], read_one).await;
        let Some(page) = pages.and_then(|mut pages| pages.pop()) else { return };
        let ids;
        (ids, left) = read(marked, &page.rows);
        let Some(placed) = until_answered(kit, owners, &ids, || history.messages(&ids)).await else { return };
        let now = kit.clock.wall();
        let fact = |placed| fact_of(placed, now, placed.state.round(), placed.state.attempt(), What::Read);
        let facts = placed.iter().flatten().map(fact).collect();
        until_appended(kit, record::facts(facts), owners).await;
        from = page.next;
    }
    if owners.any_held(&kit.ownership) {
        shared.threads.borrow_mut().told(marked.conversation, marked.epoch, marked.side, marked.to);
    }
}
