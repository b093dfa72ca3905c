//! Source: brings what was read from the log into the flow of its lane, an epoch per reading.
//!
//! Keeps a capability for the next epoch while the lane may still be fed, and drops it when the feeder has gone: the flow then
//! drains and ends.

use std::{rc::Rc, sync::Arc};

use schemas::Lane;
use timely::{
    container::CapacityContainerBuilder,
    dataflow::{Scope, operators::generic::operator::source as timely_source},
};
use tokio::sync::mpsc::{Receiver, error::TryRecvError};

use super::{Items, named};
use crate::{item::Item, shared::Shared, wake::Wake};

/// Readings that wait for their instance. Small: what is in flight is bounded in messages and bytes by who feeds.
pub(crate) const FEEDS: usize = 64;

/// Readings taken before the rest of the flow has a turn.
const QUANTUM: usize = 16;

/// What was read at once, of one lane.
pub(crate) struct Feed {
    /// Its epoch: larger than every earlier one of the lane.
    pub(crate) epoch: u64,
    /// The items, in the order of the log within each partition.
    pub(crate) items: Vec<Item>,
}

/// Feeds a lane's flow. Gives the bell to ring after something was sent, too.
pub(crate) fn source<'scope>(
    scope: Scope<'scope, u64>,
    lane: Lane,
    shared: &Rc<Shared>,
    mut feeds: Receiver<Feed>,
) -> (Items<'scope>, Arc<Wake>) {
    let mut bell = None;
    let shared = shared.clone();
    let items =
        timely_source::<_, CapacityContainerBuilder<Vec<Item>>, _, _>(scope, &named("source", lane), |cap, info| {
            let wake = Arc::new(Wake::new(scope.worker().sync_activator_for(info.address.to_vec())));
            bell = Some(wake.clone());
            let activator = scope.activator_for(info.address);
            let mut cap = Some(cap);
            move |output| {
                wake.looking();
                for taken in 0.. {
                    if taken == QUANTUM {
                        activator.activate();
                        return;
                    }
                    let Some(held) = cap.as_mut() else { return };
                    match feeds.try_recv() {
                        Ok(Feed { epoch, mut items }) => {
                            held.downgrade(&epoch);
                            shared.window.borrow_mut().at(shared.kit.clock.mono());
                            output.session(&*held).give_container(&mut items);
                            held.downgrade(&(epoch + 1));
                        }
                        Err(TryRecvError::Empty) => return,
                        Err(TryRecvError::Disconnected) => cap = None,
                    }
                }
            }
        });
    let bell = bell.unwrap_or_else(|| Arc::new(Wake::new(scope.worker().sync_activator_for(Vec::new()))));
    (items, bell)
}
