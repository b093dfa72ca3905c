//! Catch-up: a piece of an inbox as its devices may be shown it, over a socket or over HTTP.
//!
//! An inbox keeps what was written to it, and a deletion is an entry of its own further on. A device that comes later must not
//! be told meanwhile what is not to be read any more: a deleted message and its edits keep their places and say nothing.

use std::{sync::Arc, time::Duration};

use schemas::{
    Content, Inbox, Kind, MessageId, Position,
    port::{PortError, PortResult, Span},
};

use crate::Gateway;

/// Reads a piece. So many at once over the node: a storm of reconnects does not fill memory with spans.
///
/// # Errors
/// Those of [`Inboxes::read`](schemas::port::Inboxes::read); a history that is away is asked again for about a second.
pub(crate) async fn read(gateway: &Gateway, inbox: &Inbox, from: Position, limit: usize) -> PortResult<Span> {
    let _permit = gateway.reads.acquire().await;
    let mut pause = Duration::from_millis(50);
    loop {
        match once(gateway, inbox, from, limit).await {
            Err(PortError::Unavailable(_)) if pause < Duration::from_millis(500) => {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            answer => return answer,
        }
    }
}

async fn once(gateway: &Gateway, inbox: &Inbox, from: Position, limit: usize) -> PortResult<Span> {
    let mut span = gateway.parts.history.read(inbox, from, limit).await?;
    let said: Vec<MessageId> = span.entries.iter().filter_map(|(entry, _)| says(&entry.message)).collect();
    if said.is_empty() {
        return Ok(span);
    }
    let mut shown = gateway.parts.history.said(&said).await?.into_iter();
    for (entry, _) in span.entries.iter_mut().filter(|(entry, _)| says(&entry.message).is_some()) {
        if shown.next().flatten().is_some_and(|shown| shown.deleted_at.is_some()) {
            Arc::make_mut(&mut entry.message).content = Content::empty();
        }
    }
    Ok(span)
}

/// The message of a conversation whose text this entry holds.
fn says(message: &schemas::Message) -> Option<MessageId> {
    match message.kind {
        Kind::Chat(_) => Some(message.id),
        Kind::Edit(_, of) => Some(of),
        Kind::OneWay | Kind::Delete(..) | Kind::Note(_) => None,
    }
}
