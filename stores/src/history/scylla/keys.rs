//! Keys: how names, places and times become columns. Pure.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use schemas::{Clock, Epoch, Inbox, MessageId, Partition, Position};

/// Entries of one CQL partition of an inbox: 4,096 of a kilobyte are 4 MB, of the largest kind 200 MB, and a reader's page
/// lies in one or two of them.
pub(super) const BUCKET: u64 = 4_096;
/// Low bits of a message's time that do not tell slots apart: 2^14 ms are 16 s. At 10,000 messages a second a slot is then
/// 160,000 rows of about 200 bytes, 32 MB.
const SLOT_BITS: u32 = 14;
/// Bits of a write time that count within an epoch.
const COUNT_BITS: u32 = 40;
/// Counting starts from the wall time since 2020, so that a tool that never took a partition over counts on all the same.
const SINCE_MS: i64 = 1_577_836_800_000;

/// The bucket in which the nth entry of an inbox stands.
pub(super) fn bucket(n: u64) -> i64 {
    i64::try_from((n.max(1) - 1) / BUCKET).unwrap_or(i64::MAX)
}

/// The first entry of a bucket.
pub(super) fn first_of(bucket: i64) -> u64 {
    u64::try_from(bucket).unwrap_or(0) * BUCKET + 1
}

/// An inbox's name: partition, tenant, user.
pub(super) fn inbox(inbox: &Inbox) -> String {
    format!("{}/{}", inbox.partition.0, inbox.user)
}

/// Reads [`inbox`].
pub(super) fn parse_inbox(text: &str) -> Option<Inbox> {
    let (partition, user) = text.split_once('/')?;
    Some(Inbox { user: user.parse().ok()?, partition: Partition(partition.parse().ok()?) })
}

/// Whether an id may come again once retention has removed its message: one that tells its time is made once, any other may be
/// made of its key again.
pub(super) fn comes_again(id: MessageId) -> bool {
    id.0.get_version_num() != 7
}

/// The slot in which an id's row stands: ids that tell their time share one with those of the same moment, so that what a
/// batch writes falls together; others have one of their own.
pub(super) fn slot(id: MessageId) -> i64 {
    let bits = id.0.as_u128();
    let high = (bits >> 64) as u64;
    if !comes_again(id) {
        // The first 48 bits are milliseconds.
        return (high >> (16 + SLOT_BITS)) as i64;
    }
    let spread = high ^ (bits as u64).rotate_left(32);
    (spread >> 1) as i64 | i64::MIN
}

/// Columns of a place.
pub(super) fn columns(position: Position) -> (i64, i32) {
    (i64::try_from(position.n).unwrap_or(i64::MAX), i32::try_from(position.epoch.0).unwrap_or(i32::MAX))
}

/// Reads [`columns`].
pub(super) fn position(n: i64, epoch: i32) -> Position {
    Position { epoch: Epoch(u32::try_from(epoch).unwrap_or(0)), n: u64::try_from(n).unwrap_or(0) }
}

/// One number that grows with the position: value and write time of a cursor.
pub(super) fn packed(position: Position) -> i64 {
    let n = i64::try_from(position.n).unwrap_or(i64::MAX).min((1 << COUNT_BITS) - 1);
    (i64::from(position.epoch.0 & 0x7f_ffff) << COUNT_BITS) | n
}

/// Reads [`packed`].
pub(super) fn unpacked(number: i64) -> Position {
    let number = u64::try_from(number).unwrap_or(0);
    Position { epoch: Epoch((number >> COUNT_BITS) as u32), n: number & ((1 << COUNT_BITS) - 1) }
}

/// Write times: the epoch first, then a count. A late owner's write never wins over a newer owner's on the same cell, and of
/// one owner's writes the last one wins, whatever the clocks of the machines say.
pub(super) struct Stamps {
    clock: Arc<dyn Clock>,
    last: AtomicI64,
}

impl Stamps {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, last: AtomicI64::new(0) }
    }

    /// The next write time of an owner of this epoch. Rows written by one call may share one.
    pub(super) fn next(&self, epoch: Epoch) -> i64 {
        let wall = (self.clock.wall().0 - SINCE_MS).clamp(0, (1 << COUNT_BITS) - 1);
        let step = |last: i64| Some(last.saturating_add(1).max(wall));
        // `step` always gives one.
        let last = self.last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step).unwrap_or_else(|last| last);
        let count = last.saturating_add(1).max(wall).min((1 << COUNT_BITS) - 1);
        (i64::from(epoch.0 & 0x7f_ffff) << COUNT_BITS) | count
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use schemas::{Timestamp, cursor::place, time::ManualClock};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_bucket_begins_where_the_one_before_it_ends() {
        for b in 0..5 {
            assert_eq!((bucket(first_of(b)), bucket(first_of(b + 1) - 1)), (b, b));
        }
        assert_eq!(bucket(0), 0);
    }

    #[test]
    fn ids_of_one_moment_share_a_slot_and_keyed_ones_stand_alone() {
        let at = |ms| MessageId::fresh(Timestamp(ms));
        let noon = 1_800_000_000_000 >> 14 << 14;
        assert_eq!(slot(at(noon)), slot(at(noon + 16_383)));
        assert_eq!(slot(at(noon)) + 1, slot(at(noon + 16_384)));
        let keyed = |name: &str| slot(MessageId(Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes())));
        let (once, again) = (at(noon), MessageId(Uuid::new_v5(&Uuid::NAMESPACE_OID, b"a")));
        assert!(!comes_again(once) && comes_again(again));
        assert!(keyed("a") < 0 && keyed("a") != keyed("b") && keyed("a") == keyed("a"));
    }

    #[test]
    fn a_newer_owner_always_writes_later_and_an_owner_never_goes_back() {
        let clock = Arc::new(ManualClock::at(Timestamp(1_800_000_000_000)));
        let stamps = Stamps::new(clock);
        let (old, new) = (stamps.next(Epoch(5)), stamps.next(Epoch(6)));
        assert!(new > old && stamps.next(Epoch(6)) > new && stamps.next(Epoch(5)) < new);
    }

    proptest! {
        #[test]
        fn inboxes_and_places_round_trip(n in 0u64..1 << 40, epoch in 0u32..1 << 23, partition in 0u16..1024, user in "[a-z]{1,9}/(business:[a-z.]{1,9}|\\+96279[0-9]{7})") {
            let there = Inbox { user: user.parse().unwrap(), partition: Partition(partition) };
            prop_assert_eq!(parse_inbox(&inbox(&there)), Some(there));
            prop_assert_eq!(unpacked(packed(place(epoch, n))), place(epoch, n));
            let (column, of) = columns(place(epoch, n));
            prop_assert_eq!(position(column, of), place(epoch, n));
        }

        #[test]
        fn packing_keeps_the_order(a in (0u32..99, 0u64..1 << 40), b in (0u32..99, 0u64..1 << 40)) {
            let (a, b) = (place(a.0, a.1), place(b.0, b.1));
            prop_assert_eq!(packed(a).cmp(&packed(b)), a.cmp(&b));
        }
    }
}
