//! Keys: bytes that sort as what they name does, so that one user's slice, one partition's due rows or one list in time
//! order is contiguous.
//!
//! Text is ended by a zero byte, which no name contains: no inbox's key is the beginning of another's.

use std::fmt::Write as _;

use schemas::{
    BroadcastId, DeviceId, Inbox, MessageId, Partition, Position, Timestamp, UserId,
    port::{Due, DueKind},
};
use uuid::Uuid;

/// Bytes of a [`Position`] in a key.
pub(super) const POSITION: usize = 12;

/// What a row of the due-table is for; a number on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Send = 1,
    Expire = 2,
}

/// A time, so that earlier ones sort first, those before 1970 too.
fn time(at: Timestamp) -> [u8; 8] {
    (at.0 ^ i64::MIN).to_be_bytes()
}

fn untime(bytes: [u8; 8]) -> Timestamp {
    Timestamp(i64::from_be_bytes(bytes) ^ i64::MIN)
}

/// The user's text and its end.
pub(super) fn user(user: &UserId) -> Vec<u8> {
    let mut text = String::with_capacity(64);
    // Writing to a string cannot fail.
    let _ = write!(text, "{user}\0");
    text.into_bytes()
}

pub(super) fn device(of: &UserId, device: &DeviceId) -> Vec<u8> {
    let mut key = user(of);
    key.extend_from_slice(device.as_str().as_bytes());
    key
}

pub(super) fn inbox(inbox: &Inbox) -> Vec<u8> {
    let mut text = String::with_capacity(64);
    // The two bytes of the partition need not be text; they are put in front afterwards, in room kept for them.
    let _ = write!(text, "\0\0{}\0", inbox.user);
    let mut key = text.into_bytes();
    key[..2].copy_from_slice(&inbox.partition.0.to_be_bytes());
    key
}

/// Reads an entry's key back: the inbox's part of it, and the position.
pub(super) fn split_entry(key: &[u8]) -> Option<(&[u8], Position)> {
    let (inbox, position) = key.split_last_chunk::<POSITION>()?;
    Some((inbox, Position::from_bytes(*position)))
}

/// Reads [`inbox`] back.
pub(super) fn parse_inbox(key: &[u8]) -> Option<Inbox> {
    let (partition, text) = key.split_first_chunk::<2>()?;
    let user = std::str::from_utf8(text.strip_suffix(&[0])?).ok()?.parse().ok()?;
    Some(Inbox { user, partition: Partition(u16::from_be_bytes(*partition)) })
}

pub(super) fn entry(inbox: &[u8], position: Position) -> Vec<u8> {
    let mut key = Vec::with_capacity(inbox.len() + POSITION);
    key.extend_from_slice(inbox);
    key.extend_from_slice(&position.to_bytes());
    key
}

/// After every entry of the inbox and before the next inbox.
pub(super) fn after_inbox(inbox: &[u8]) -> Vec<u8> {
    let mut key = inbox.to_vec();
    // The end of text becomes the smallest byte that is larger.
    if let Some(end) = key.last_mut() {
        *end = 1;
    }
    key
}

/// All inboxes of a partition: from here, up to before that. `None`: up to the end.
pub(super) fn partition(partition: Partition) -> (Vec<u8>, Option<Vec<u8>>) {
    let end = partition.0.checked_add(1).map(|next| next.to_be_bytes().to_vec());
    (partition.0.to_be_bytes().to_vec(), end)
}

pub(super) fn id(id: MessageId) -> [u8; 16] {
    *id.0.as_bytes()
}

fn dated(tag: u8, partition: Partition, at: Timestamp, tail: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(11 + tail.len());
    key.push(tag);
    key.extend_from_slice(&partition.0.to_be_bytes());
    key.extend_from_slice(&time(at));
    key.extend_from_slice(tail);
    key
}

pub(super) fn due(partition: Partition, at: Timestamp, id: MessageId, kind: Kind) -> Vec<u8> {
    let mut tail = self::id(id).to_vec();
    tail.push(kind as u8);
    dated(b'd', partition, at, &tail)
}

pub(super) fn due_row(due: &Due) -> Vec<u8> {
    let kind = match due.kind {
        DueKind::Send(_) => Kind::Send,
        DueKind::Expire { .. } => Kind::Expire,
    };
    self::due(due.partition, due.at, due.id, kind)
}

/// What is due at or before `now`: from here, up to before that.
pub(super) fn due_until(partition: Partition, now: Timestamp) -> (Vec<u8>, Vec<u8>) {
    let until = Timestamp(now.0.saturating_add(1));
    (dated(b'd', partition, Timestamp(i64::MIN), &[]), dated(b'd', partition, until, &[]))
}

/// Reads [`due`] back.
pub(super) fn parse_due(key: &[u8]) -> Option<(Timestamp, MessageId, Kind)> {
    let (at, rest) = key.get(3..)?.split_first_chunk::<8>()?;
    let (id, rest) = rest.split_first_chunk::<16>()?;
    let kind = match rest {
        [1] => Kind::Send,
        [2] => Kind::Expire,
        _ => return None,
    };
    Some((untime(*at), message_id(*id), kind))
}

pub(super) fn scheduled(id: MessageId) -> Vec<u8> {
    tagged(b's', &self::id(id))
}

pub(super) fn left(partition: Partition, at: Timestamp, id: MessageId) -> Vec<u8> {
    dated(b'l', partition, at, &self::id(id))
}

/// Ids without a place from before that time: from here, up to before that.
pub(super) fn left_until(partition: Partition, before: Timestamp) -> (Vec<u8>, Vec<u8>) {
    (dated(b'l', partition, Timestamp(i64::MIN), &[]), dated(b'l', partition, before, &[]))
}

/// Reads the id of [`left`] back.
pub(super) fn parse_left(key: &[u8]) -> Option<MessageId> {
    key.get(11..)?.try_into().ok().map(message_id)
}

fn message_id(bytes: [u8; 16]) -> MessageId {
    MessageId(Uuid::from_bytes(bytes))
}

pub(super) fn tagged(tag: u8, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + rest.len());
    key.push(tag);
    key.extend_from_slice(rest);
    key
}

pub(super) fn dead(at: Timestamp, id: MessageId, round: u8) -> Vec<u8> {
    let mut key = Vec::with_capacity(26);
    key.push(b't');
    key.extend_from_slice(&time(at));
    key.extend_from_slice(&self::id(id));
    key.push(round);
    key
}

/// Before every dead letter of that time.
pub(super) fn dead_at(at: Timestamp) -> Vec<u8> {
    tagged(b't', &time(at))
}

pub(super) fn dead_round(id: MessageId, round: u8) -> Vec<u8> {
    let mut key = tagged(b'i', &self::id(id));
    key.push(round);
    key
}

pub(super) fn broadcast(tag: u8, id: BroadcastId) -> Vec<u8> {
    tagged(tag, id.0.as_bytes())
}

pub(super) fn chunk(id: BroadcastId, number: u32) -> Vec<u8> {
    let mut key = broadcast(b'c', id);
    key.extend_from_slice(&number.to_be_bytes());
    key
}

pub(super) fn order(over: bool, at: Timestamp, id: BroadcastId) -> Vec<u8> {
    let mut key = vec![b'o', u8::from(over)];
    key.extend_from_slice(&time(at));
    key.extend_from_slice(id.0.as_bytes());
    key
}

/// Broadcasts that are running or over, from before that time: from here, up to before that.
pub(super) fn order_until(over: bool, before: Timestamp) -> (Vec<u8>, Vec<u8>) {
    let at = |t| [&[b'o', u8::from(over)], &time(t)[..]].concat();
    (at(Timestamp(i64::MIN)), at(before))
}

/// Reads the id of [`order`] back.
pub(super) fn parse_order(key: &[u8]) -> Option<BroadcastId> {
    key.get(10..)?.try_into().ok().map(|bytes| BroadcastId(Uuid::from_bytes(bytes)))
}

pub(super) fn epoch(partition: Partition) -> Vec<u8> {
    tagged(b'e', &partition.0.to_be_bytes())
}

/// Reads [`epoch`] back.
pub(super) fn parse_epoch(key: &[u8]) -> Option<Partition> {
    key.get(1..)?.try_into().ok().map(|bytes| Partition(u16::from_be_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn users() -> impl Strategy<Value = UserId> {
        ("[a-z]{1,3}", prop_oneof!["business:[a-c.]{1,3}", "\\+9[0-9]{7,9}"])
            .prop_map(|(tenant, party)| format!("{tenant}/{party}").parse().unwrap())
    }

    proptest! {
        #[test]
        fn keys_of_entries_sort_as_positions_and_inboxes_keep_apart(
            a in (users(), 0u16..3, 0u32..3, any::<u64>()), b in (users(), 0u16..3, 0u32..3, any::<u64>())
        ) {
            let place = |(user, partition, epoch, n): (UserId, u16, u32, u64)| {
                let inbox = Inbox { user, partition: Partition(partition) };
                (inbox, schemas::cursor::place(epoch, n))
            };
            let ((inbox_a, at_a), (inbox_b, at_b)) = (place(a), place(b));
            let (key_a, key_b) = (entry(&inbox(&inbox_a), at_a), entry(&inbox(&inbox_b), at_b));
            prop_assert_eq!(split_entry(&key_a), Some((&inbox(&inbox_a)[..], at_a)));
            prop_assert_eq!(parse_inbox(&inbox(&inbox_a)), Some(inbox_a.clone()));
            if inbox_a == inbox_b {
                prop_assert_eq!(key_a.cmp(&key_b), at_a.cmp(&at_b));
            } else {
                prop_assert!(!key_b.starts_with(&inbox(&inbox_a)));
                // All of one inbox stands before or after all of another.
                let (first, last) = (entry(&inbox(&inbox_a), Position::START), after_inbox(&inbox(&inbox_a)));
                prop_assert!(key_b < first || key_b >= last);
            }
        }

        #[test]
        fn due_rows_sort_by_time_then_id(a in (any::<i64>(), any::<u128>()), b in (any::<i64>(), any::<u128>())) {
            let key = |(at, id): (i64, u128)| due(Partition(1), Timestamp(at), message_id(id.to_be_bytes()), Kind::Send);
            prop_assert_eq!(key(a).cmp(&key(b)), a.cmp(&b));
            prop_assert_eq!(parse_due(&key(a)), Some((Timestamp(a.0), message_id(a.1.to_be_bytes()), Kind::Send)));
        }
    }
}
