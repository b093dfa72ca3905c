//! What tests of the stores have in common.

use schemas::{Conversation, Epoch, Partition, Phone, Timestamp, conversation::Pair};

/// A conversation in which nobody has said anything, opened under this takeover.
pub(super) fn conversation(epoch: Epoch) -> Conversation {
    let mobile = Phone::from_stored("+962790000001").unwrap();
    let pair = Pair { tenant: "acme".parse().unwrap(), business: "sara".parse().unwrap(), mobile };
    Conversation::open(pair, Partition(3), epoch, Timestamp(1_000))
}
