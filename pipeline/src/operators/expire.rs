//! Expire: a message whose time has passed goes on, but only to be recorded: it fails with the reason `expired`, so that its
//! status is known and its inbox has no gap. Remembers nothing.

use std::rc::Rc;

use schemas::{Lane, Reason, Timestamp};

use super::{Items, each::each};
use crate::{
    item::{Item, Work},
    shared::Shared,
};

/// Marks what has expired by now.
fn expired(items: &mut [Item], now: Timestamp) {
    for item in items {
        if let Work::Fresh(fresh) = &mut item.work
            && fresh.message.is_expired(now)
        {
            fresh.end.get_or_insert(Reason::Expired);
        }
    }
}

/// The operator.
pub(crate) fn expire<'scope>(items: Items<'scope>, lane: Lane, shared: &Rc<Shared>) -> Items<'scope> {
    let shared = shared.clone();
    each(items, "expire", lane, move |items| expired(items, shared.kit.clock.wall()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{fresh, message};
    use proptest::prelude::*;

    proptest! {
        // Nothing lost, nothing doubled, order kept; marked exactly when its time has passed.
        #[test]
        fn it_marks_exactly_what_has_expired(times in proptest::collection::vec(proptest::option::of(0i64..100), 0..50), now in 0i64..100) {
            let mut items: Vec<_> = times.iter().enumerate().map(|(n, at)| {
                let mut message = message(n as u64);
                message.expires_at = at.map(Timestamp);
                fresh(message)
            }).collect();
            let before: Vec<_> = items.iter().map(crate::testing::id_of).collect();
            expired(&mut items, Timestamp(now));
            prop_assert_eq!(before, items.iter().map(crate::testing::id_of).collect::<Vec<_>>());
            for (item, at) in items.iter().zip(times) {
                let Work::Fresh(fresh) = &item.work else { unreachable!() };
                prop_assert_eq!(fresh.end, at.filter(|at| *at <= now).map(|_| Reason::Expired));
            }
        }
    }
}
