//! Functions: user code judges each message before it is recorded. A dropped one goes on, but only to be recorded: it fails
//! with the reason `dropped`. Remembers nothing; keeps number and order whatever a function does.

use std::{rc::Rc, sync::Arc};

use schemas::{Lane, Reason};

use super::{Items, each::each};
use crate::{
    functions::{Case, Function, Verdict},
    item::{Item, Work},
    shared::Shared,
};

/// Lets one function judge the messages that are not decided yet.
fn judge(items: &mut [Item], function: &dyn Function, cases: &mut Vec<Case>) {
    cases.clear();
    for item in items.iter() {
        if let Work::Fresh(fresh) = &item.work
            && fresh.end.is_none()
        {
            cases.push(Case { message: fresh.message.clone(), verdict: Verdict::Keep });
        }
    }
    function.apply(cases);
    let mut judged = cases.drain(..);
    for item in items {
        if let Work::Fresh(fresh) = &mut item.work
            && fresh.end.is_none()
            && let Some(mut case) = judged.next()
        {
            if !case.carry_out() {
                fresh.end = Some(Reason::Dropped);
            }
            fresh.message = case.message;
        }
    }
}

/// The operator. Without functions there is none.
pub(crate) fn functions<'scope>(items: Items<'scope>, lane: Lane, shared: &Rc<Shared>) -> Items<'scope> {
    let functions: Arc<[Arc<dyn Function>]> = shared.kit.functions.clone();
    if functions.is_empty() {
        return items;
    }
    let mut cases = Vec::new();
    each(items, "functions", lane, move |items| {
        for function in functions.iter() {
            judge(items, &**function, &mut cases);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{fresh, id_of, message};
    use proptest::prelude::*;
    use schemas::Content;

    /// Drops every third message, rewrites every fourth.
    struct Picky;

    impl Function for Picky {
        fn name(&self) -> &str {
            "picky"
        }
        fn apply(&self, batch: &mut [Case]) {
            for case in batch {
                let n = case.message.metadata.as_ref().map_or(0, |m| m.as_str().parse::<u64>().unwrap());
                if n % 3 == 0 {
                    case.verdict = Verdict::Drop;
                } else if n % 4 == 0 {
                    let body = "changed".to_owned();
                    case.verdict = Verdict::Rewrite(Content { body, ..case.message.content.clone() });
                }
            }
        }
    }

    proptest! {
        #[test]
        fn functions_change_messages_and_never_their_number_or_order(numbers in proptest::collection::vec(0u64..1000, 0..60)) {
            let mut items: Vec<_> = numbers.iter().map(|n| fresh(message(*n))).collect();
            let before: Vec<_> = items.iter().map(id_of).collect();
            judge(&mut items, &Picky, &mut Vec::new());
            prop_assert_eq!(before, items.iter().map(id_of).collect::<Vec<_>>());
            for (item, n) in items.iter().zip(numbers) {
                let Work::Fresh(fresh) = &item.work else { unreachable!() };
                prop_assert_eq!(fresh.end == Some(Reason::Dropped), n % 3 == 0);
                prop_assert_eq!(fresh.message.content.body == "changed", n % 3 != 0 && n % 4 == 0);
            }
        }
    }
}
