//! How often hints to the nodes of this process may have been lost, whose, and who waits to be told.

use std::collections::VecDeque;

use schemas::port::{Missed, Whose};
use tokio::sync::watch;

/// Of so many times it is known whose hints they were; who has missed more is told of all.
const KNOWN: usize = 64;

/// They are counted; whoever has seen fewer is told.
#[derive(Default)]
pub(super) struct Misses(watch::Sender<Counted>);

#[derive(Default)]
struct Counted {
    count: u64,
    /// Of the last ones, the latest first.
    whose: VecDeque<Whose>,
}

impl Misses {
    /// Once more.
    pub(super) fn again(&self, whose: Whose) {
        self.0.send_modify(|counted| {
            counted.count += 1;
            counted.whose.truncate(KNOWN - 1);
            counted.whose.push_front(whose);
        });
    }

    /// Waits until it was more often than `seen` times, and says how often and whose.
    pub(super) async fn more_than(&self, seen: u64) -> Missed {
        let mut counts = self.0.subscribe();
        // The sender lives as long as this does.
        let Ok(counted) = counts.wait_for(|counted| counted.count > seen).await else {
            return std::future::pending().await;
        };
        counted.since(seen)
    }
}

impl Counted {
    fn since(&self, seen: u64) -> Missed {
        let fresh = usize::try_from(self.count - seen).unwrap_or(usize::MAX);
        let known = self.whose.iter().take(fresh).cloned().reduce(Whose::and);
        let whose = known.filter(|_| fresh <= self.whose.len()).unwrap_or(Whose::All);
        Missed { count: self.count, whose }
    }
}

#[cfg(test)]
mod tests {
    use schemas::Partition;

    use super::*;

    fn of(partitions: &[u16]) -> Whose {
        Whose::Of(partitions.iter().copied().map(Partition).collect())
    }

    #[tokio::test]
    async fn who_has_seen_some_is_told_of_the_others() {
        let misses = Misses::default();
        misses.again(of(&[1]));
        misses.again(of(&[2, 3]));
        misses.again(of(&[3, 4]));
        assert_eq!(misses.more_than(1).await, Missed { count: 3, whose: of(&[2, 3, 4]) });
        assert_eq!(misses.more_than(2).await, Missed { count: 3, whose: of(&[3, 4]) });
        misses.again(Whose::All);
        assert_eq!(misses.more_than(2).await, Missed { count: 4, whose: Whose::All });
        misses.again(of(&[7]));
        assert_eq!(misses.more_than(4).await, Missed { count: 5, whose: of(&[7]) });
    }

    #[tokio::test]
    async fn what_is_too_long_ago_to_be_known_may_be_anyones() {
        let misses = Misses::default();
        (0..=KNOWN).for_each(|_| misses.again(of(&[1])));
        assert_eq!(misses.more_than(0).await.whose, Whose::All);
        assert_eq!(misses.more_than(1).await.whose, of(&[1]));
    }
}
