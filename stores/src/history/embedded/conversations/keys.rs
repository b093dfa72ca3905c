//! Keys of conversations and turns. A list's keys sort as the list is read: newest activity first, of one moment by name.

use schemas::{ConversationId, MessageId, Timestamp, UserId, port::ByActivity};
use uuid::Uuid;

use super::super::keys::{id, tagged, user};

/// Bytes of a name.
const ID: usize = 16;

/// A conversation's row (`c`), its mark of being in use (`h`), or what retention removed of it (`g`).
pub(super) fn conversation(tag: u8, id: ConversationId) -> Vec<u8> {
    tagged(tag, id.0.as_bytes())
}

/// Reads [`conversation`] back.
pub(super) fn parse_conversation(key: &[u8]) -> Option<ConversationId> {
    key.get(1..)?.try_into().ok().map(|bytes| ConversationId(Uuid::from_bytes(bytes)))
}

/// Where a message is said.
pub(super) fn said(message: MessageId) -> Vec<u8> {
    tagged(b'i', &id(message))
}

/// All of a user's list.
pub(super) fn list(of: &UserId, archived: bool) -> Vec<u8> {
    let mut key = tagged(b'a', &user(of));
    key.push(u8::from(archived));
    key
}

/// A conversation's place in a list.
pub(super) fn listed(of: &UserId, archived: bool, place: ByActivity) -> Vec<u8> {
    let mut key = list(of, archived);
    // Later times become smaller numbers.
    key.extend_from_slice(&(!(place.last_at.0 ^ i64::MIN)).to_be_bytes());
    key.extend_from_slice(place.id.0.as_bytes());
    key
}

/// Reads the place of [`listed`] back.
pub(super) fn parse_listed(key: &[u8]) -> Option<ByActivity> {
    let (rest, id) = key.split_last_chunk::<ID>()?;
    let (_, at) = rest.split_last_chunk::<8>()?;
    let last_at = Timestamp(!i64::from_be_bytes(*at) ^ i64::MIN);
    Some(ByActivity { last_at, id: ConversationId(Uuid::from_bytes(*id)) })
}

/// What a user has yet to read in all its conversations.
pub(super) fn unread_of(of: &UserId) -> Vec<u8> {
    tagged(b'u', &user(of))
}

/// What a user has yet to read in one.
pub(super) fn unread(of: &UserId, id: ConversationId) -> Vec<u8> {
    let mut key = unread_of(of);
    key.extend_from_slice(id.0.as_bytes());
    key
}

/// Reads the conversation of [`unread`] back.
pub(super) fn parse_unread(key: &[u8]) -> Option<ConversationId> {
    key.split_last_chunk::<ID>().map(|(_, id)| ConversationId(Uuid::from_bytes(*id)))
}

/// A turn.
pub(super) fn turn(id: ConversationId, seq: u64) -> Vec<u8> {
    let mut key = conversation(b't', id);
    key.extend_from_slice(&seq.to_be_bytes());
    key
}

/// An edit or a deletion of a turn, in the order in which they were made.
pub(super) fn change(id: ConversationId, of: u64, seq: u64) -> Vec<u8> {
    let mut key = changes(id, of);
    key.extend_from_slice(&seq.to_be_bytes());
    key
}

/// All edits and deletions of a turn.
pub(super) fn changes(id: ConversationId, of: u64) -> Vec<u8> {
    let mut key = conversation(b'o', id);
    key.extend_from_slice(&of.to_be_bytes());
    key
}

/// Reads the turn of [`change`] back.
pub(super) fn parse_change(key: &[u8]) -> Option<u64> {
    key.get(1 + ID..)?.first_chunk::<8>().map(|of| u64::from_be_bytes(*of))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_list_s_keys_sort_newest_first_and_read_back(a in (any::<i64>(), any::<u128>()), b in (any::<i64>(), any::<u128>())) {
            let of: UserId = "acme/business:sara".parse().unwrap();
            let place = |(at, id): (i64, u128)| {
                ByActivity { last_at: Timestamp(at), id: ConversationId(Uuid::from_u128(id)) }
            };
            let (key_a, key_b) = (listed(&of, false, place(a)), listed(&of, false, place(b)));
            prop_assert_eq!(parse_listed(&key_a), Some(place(a)));
            prop_assert_eq!(key_a.cmp(&key_b), b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
            prop_assert!(key_a.starts_with(&list(&of, false)) && !key_a.starts_with(&list(&of, true)));
        }

        #[test]
        fn turns_sort_by_their_numbers(id in any::<u128>(), a in any::<u64>(), b in any::<u64>()) {
            let id = ConversationId(Uuid::from_u128(id));
            prop_assert_eq!(turn(id, a).cmp(&turn(id, b)), a.cmp(&b));
            prop_assert_eq!(parse_change(&change(id, a, b)), Some(a));
            prop_assert_eq!(parse_conversation(&conversation(b'c', id)), Some(id));
        }
    }
}
