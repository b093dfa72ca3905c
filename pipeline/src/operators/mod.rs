//! The operators of the flow, one file each: what it promises, its memory and when that ends. Rules are pure, time is an
//! argument; what acts is given to the rim.

pub(crate) mod act;
pub(crate) mod batch;
pub(crate) mod commit;
pub(crate) mod dedupe;
pub(crate) mod deliver;
pub(crate) mod each;
pub(crate) mod expire;
pub(crate) mod functions;
pub(crate) mod prioritise;
pub(crate) mod record;
pub(crate) mod repeat;
pub(crate) mod route;
pub(crate) mod source;

use schemas::Lane;
use timely::dataflow::Stream;

use crate::item::{Batch, Item, Step};

/// Items of one lane.
pub(crate) type Items<'scope> = Stream<'scope, u64, Vec<Item>>;
/// Batches of items.
pub(crate) type Batches<'scope> = Stream<'scope, u64, Vec<Batch<Vec<Item>>>>;
/// Recorded batches.
pub(crate) type Recorded<'scope> = Stream<'scope, u64, Vec<Batch<Vec<Step>>>>;
/// Routed batches.
pub(crate) type Routes<'scope> = Stream<'scope, u64, Vec<Batch<route::Ways>>>;
/// Nothing but progress.
pub(crate) type Done<'scope> = Stream<'scope, u64, Vec<()>>;

/// The name of an operator in one lane, for timely's logs.
fn named(operator: &str, lane: Lane) -> String {
    format!("{operator} {}", lane.word())
}
