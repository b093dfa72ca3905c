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

/// What of a page is to be told, newest first, and whether there may be more before it.
fn read(marked: &Marked, rows: &[Shown]) -> (Vec<MessageId>, bool) {
    let number = |shown: &Shown| match marked.side {
        Side::Mobile => shown.turn.to_mobile,
        Side::Business => shown.turn.to_business,
    };
    let within = rows.iter().take_while(|shown| number(shown) > marked.after);
    let told = within.clone().filter(|shown| {
        let message = &shown.turn.message;
        let addressed = matches!(message.kind, Kind::Chat(_)) && Side::of(&message.to.party) == marked.side;
        addressed && number(shown) <= marked.to && shown.state.status() < Status::Read
    });
    (told.map(|shown| shown.turn.message.id).collect(), within.count() == rows.len())
}

/// Says it of all of them.
pub(crate) async fn tell(shared: &Shared, marked: &Marked, owners: &mut Owners) {
    let kit = &shared.kit;
    let (history, limit): (&dyn History, _) = (&*kit.ports.history, kit.limits.chat.receipts);
    let mut from = Some(marked.seq.saturating_add(1));
    while let Some(before) = from {
        let page = async || Ok(vec![history.turns(marked.conversation, Order::Newest, Some(before), limit).await?]);
        let Some(page) = until_answered(kit, owners, &[before], page).await.and_then(|mut pages| pages.pop()) else {
            return;
        };
        let (ids, more) = read(marked, &page.rows);
        let Some(placed) = until_answered(kit, owners, &ids, || history.messages(&ids)).await else { return };
        let now = kit.clock.wall();
        let fact = |placed| fact_of(placed, now, placed.state.round(), placed.state.attempt(), What::Read);
        let facts = placed.iter().flatten().map(fact).collect();
        until_appended(kit, record::facts(facts), owners).await;
        from = page.next.filter(|_| more);
    }
    if owners.any_held(&kit.ownership) {
        shared.threads.borrow_mut().told(marked.conversation, marked.epoch, marked.side, marked.to);
    }
}
