//! The common shape of operators that look at items as they pass: no memory of their own in the dataflow, no waiting, no
//! change of order.

use schemas::Lane;
use timely::dataflow::{channels::pact::Pipeline, operators::generic::Operator};

use super::{Items, named};
use crate::item::Item;

/// Lets each container of items pass through `look`, which may change and remove items.
pub(crate) fn each<'scope>(
    items: Items<'scope>,
    operator: &str,
    lane: Lane,
    mut look: impl FnMut(&mut Vec<Item>) + 'static,
) -> Items<'scope> {
    items.unary(Pipeline, &named(operator, lane), move |_, _| {
        move |input, output| {
            // In the order of arrival: `for_each_stamp` would sort, and break the order within a key.
            input.for_each(|cap, items| {
                look(items);
                if !items.is_empty() {
                    output.session(&cap).give_container(items);
                }
            });
        }
    })
}
