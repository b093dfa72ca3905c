//! What a conversation's row is in one cell: the row, whose turns count, the notes to one's own devices that it tells of, and
//! how far the lane was applied to it.
//!
//! Such a note (put away, blocked) changes the row and has an entry in the inbox of whoever did it, and no turn. An owner that
//! dies between the two leaves a row that tells of it without the entry, and the row alone does not say by which command it
//! came to be as it is. So the notes of the batch stand in the row until the next one is written, by when their entries stand.
//! Who takes over finds them there: what they tell of is done, and their entries are what may be missing.

use schemas::{
    Conversation, ConversationId, Kind, MessageId, Position, UserId,
    conversation::Version,
    port::{Entry, PortError, PortResult},
};
use scylla::value::CqlValue::{BigInt, Blob, Uuid};

use super::{
    conversations::time,
    rows::{blob, unblob},
    session::{Write, broken},
    statements::Pick,
    threads::Path,
};

/// A note: its name, whose devices it is for, and where its entry was to stand.
pub(super) type Noted = (MessageId, UserId, Position);

/// The notes of a conversation among these entries.
pub(super) fn of(entries: &[&Entry], id: ConversationId) -> Vec<Noted> {
    let own = entries.iter().filter(|entry| entry.seq.is_none() && entry.message.kind == Kind::Note(id));
    own.map(|entry| (entry.message.id, entry.inbox.user.clone(), entry.position)).collect()
}

/// The row, from this version on.
pub(super) fn row(row: &Conversation, path: &Path, notes: &[Noted], from: Version) -> Write {
    let bytes = blob(&(row, path, notes, row.applied));
    Write::new(Pick::Talk, vec![Uuid(row.id.0), Blob(bytes), BigInt(time(from))])
}

/// Reads [`row`], and what was written before there was all of it.
pub(super) fn unrow(bytes: &[u8]) -> PortResult<(Conversation, Path, Vec<Noted>)> {
    let whole =
        || unblob(bytes).map(|(row, path, notes, applied)| (Conversation::of_kept((row, applied)), path, notes));
    let with_notes = || unblob(bytes);
    let with_path = || unblob(bytes).map(|(row, path)| (row, path, Vec::new()));
    whole().or_else(|_| with_notes()).or_else(|_| with_path()).or_else(|_| {
        let row: Conversation = unblob(bytes).map_err(|why| unread(&why))?;
        let path = Path::before(row.last_seq);
        Ok((row, path, Vec::new()))
    })
}

/// Nobody opened the conversation before this version.
pub(super) fn nobody(id: ConversationId, before: Version) -> Write {
    Write::new(Pick::TalkShut, vec![BigInt(time(before)), Uuid(id.0)])
}

/// A row that is no row.
pub(super) fn unread(why: &dyn std::fmt::Display) -> PortError {
    broken("conversations", why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::testing;
    use schemas::{
        Epoch, Offset, Timestamp,
        conversation::{Applied, Side},
    };

    #[test]
    fn every_form_that_was_ever_written_is_read() {
        let row = testing::conversation(Epoch(2));
        let user = row.user(Side::Mobile);
        let mut path = Path::before(7);
        path.take(Epoch(2), 8);
        let notes: Vec<Noted> = vec![(MessageId(uuid::Uuid::from_u128(5)), user, Position { epoch: Epoch(2), n: 9 })];
        let applied = Some(Applied { offset: Offset(0), accepted_at: Timestamp(0) });
        let whole = Conversation { applied, ..row.clone() };
        for notes in [&notes, &Vec::new()] {
            for (bytes, row, notes) in [
                (blob(&(&row, &path)), &row, &Vec::new()),
                (blob(&(&row, &path, notes)), &row, notes),
                (blob(&(&row, &path, notes, None::<Applied>)), &row, notes),
                (blob(&(&row, &path, notes, applied)), &whole, notes),
            ] {
                assert_eq!(unrow(&bytes).unwrap(), (row.clone(), path.clone(), notes.clone()));
            }
        }
        assert_eq!(unrow(&blob(&row)).unwrap(), (row.clone(), Path::before(row.last_seq), Vec::new()));
    }
}
