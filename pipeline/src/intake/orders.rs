//! What the settler is told, one thing after the other: it takes its time now and then, and nothing else of the intake waits.

use std::future::Future;

use futures::{FutureExt, future::BoxFuture};
use schemas::Partition;

/// Orders that the settler is still to take. Each gives the partitions that it has settled to the end because they are given up.
#[derive(Default)]
pub(super) struct Orders(Option<BoxFuture<'static, Vec<Partition>>>);

/// What became of one more order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// It was taken, and so was everything before it, with what came of all of it. Whether something had been waiting.
    All(Vec<Partition>, bool),
    /// It waits, at least for what was told before.
    Waits,
}

impl Orders {
    /// Whether some are still to be taken.
    pub(super) fn wait(&self) -> bool {
        self.0.is_some()
    }

    /// One more, after all that was told before.
    pub(super) fn tell(&mut self, order: impl Future<Output = Vec<Partition>> + Send + 'static) -> Told {
        let before = self.0.take();
        let waited = before.is_some();
        let mut all = async move {
            let mut settled = match before {
                Some(before) => before.await,
                None => Vec::new(),
            };
            settled.extend(order.await);
            settled
        }
        .boxed();
        match (&mut all).now_or_never() {
            Some(settled) => Told::All(settled, waited),
            None => {
                self.0 = Some(all);
                Told::Waits
            }
        }
    }

    /// Waits until all of them are taken; for ever while there are none.
    pub(super) async fn taken(&mut self) -> Vec<Partition> {
        let Some(all) = &mut self.0 else { return std::future::pending().await };
        let settled = all.await;
        self.0 = None;
        settled
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    fn waits(partition: u16) -> (oneshot::Sender<()>, impl Future<Output = Vec<Partition>> + Send + 'static) {
        let (go, gone) = oneshot::channel();
        (go, gone.map(move |_| vec![Partition(partition)]))
    }

    #[tokio::test]
    async fn what_had_been_waiting_is_over_with_whatever_is_told_next() {
        let mut orders = Orders::default();
        assert_eq!(orders.tell(async { vec![Partition(1)] }), Told::All(vec![Partition(1)], false));
        let (go, first) = waits(2);
        assert_eq!(orders.tell(first), Told::Waits);
        assert_eq!(orders.tell(async { vec![Partition(3)] }), Told::Waits);
        assert!(orders.wait() && orders.taken().now_or_never().is_none());
        go.send(()).unwrap();
        // Nobody has looked since: whoever tells it something is told, and has to open again what was shut meanwhile.
        let all = vec![Partition(2), Partition(3), Partition(4)];
        assert_eq!(orders.tell(async { vec![Partition(4)] }), Told::All(all, true));
        assert!(!orders.wait() && orders.taken().now_or_never().is_none());
    }

    #[tokio::test]
    async fn they_are_taken_in_the_order_in_which_they_were_told() {
        let mut orders = Orders::default();
        let ((first_goes, first), (second_goes, second)) = (waits(1), waits(2));
        assert_eq!((orders.tell(first), orders.tell(second)), (Told::Waits, Told::Waits));
        second_goes.send(()).unwrap();
        assert!(orders.taken().now_or_never().is_none(), "the first is not taken yet");
        first_goes.send(()).unwrap();
        assert_eq!(orders.taken().await, [Partition(1), Partition(2)]);
        assert!(!orders.wait());
    }
}
